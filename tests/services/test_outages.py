"""A full disk and a database that may only be read: whoever writes is refused and nothing has changed; reads go on."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from uuid import UUID

import asyncpg
import pytest

from db.db_session import DbSession, Piece
from db.engine import Engine, SqliteEngine
from services.actor import Actor
from services.errors import StorageUnavailable
from services.reads import Reads
from services.session_service import SessionService
from tests.conftest import Configure, Everything, StorageFails

Outage = Callable[[], AbstractAsyncContextManager[None]]


@pytest.fixture(params=["full", "read-only"])
def outage(request: pytest.FixtureRequest, engine: Engine, database_url: str, storage_fails: StorageFails) -> Outage:
    """The real database is full, or may only be read, for a while."""

    @asynccontextmanager
    async def sqlite() -> AsyncIterator[None]:
        assert isinstance(engine, SqliteEngine)
        writer = await engine.writer()
        if request.param == "full":
            # What is free inside the file counts as full, too: it is filled up first.
            await writer.execute("PRAGMA max_page_count = 1")
            await fill(engine)
        else:
            await writer.execute("PRAGMA query_only = ON")
        try:
            yield
        finally:
            await writer.execute("PRAGMA max_page_count = 1073741823")
            await writer.execute("PRAGMA query_only = OFF")

    @asynccontextmanager
    async def postgres() -> AsyncIterator[None]:
        if request.param == "full":
            async with storage_fails("journal"):
                yield
            return
        admin = await asyncpg.connect(database_url)
        await admin.execute("SET default_transaction_read_only = off")
        await admin.execute("ALTER ROLE postgres SET default_transaction_read_only = on")
        await expire(engine)
        try:
            yield
        finally:
            await admin.execute("ALTER ROLE postgres RESET default_transaction_read_only")
            await admin.close()
            await expire(engine)

    return sqlite if engine.engine_type == "sqlite" else postgres


async def fill(engine: Engine) -> None:
    for number in range(100_000):
        try:
            await engine.run("INSERT INTO rate_bucket (key, tat_us) VALUES (?, 0)", [f"{number} " * 200])
        except Exception as error:
            assert "full" in str(error)
            return
    raise AssertionError("the disk does not fill")


async def expire(engine: Engine) -> None:
    assert not isinstance(engine, SqliteEngine) and engine.pool is not None
    await engine.pool.expire_connections()


async def test_46_nothing_is_written_while_there_is_no_room_and_everything_works_again_afterwards(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, outage: Outage,
    everything: Everything, configure: Configure, engine: Engine, request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    told = "disk is full" if "full" in request.node.name else "may only be read"
    await configure("user", turns="0", sessions_created="0")
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    await sessions.append([Piece(session_id, turn.id, 0, "shown ")], db_session)
    async with outage():
        before = await everything()
        writes = [
            lambda: sessions.begin_turn(None, "Hello " * 10_000, db_session, actor=ann, key="0"),
            lambda: sessions.append([Piece(session_id, turn.id, 6, "x" * 50_000)], db_session),
            lambda: sessions.create_session(db_session, actor=ann, title="x" * 100, key="1"),
            lambda: sessions.switch_model(session_id, "smart", db_session, actor=ann, key="3"),
            lambda: sessions.close_session(session_id, db_session, actor=ann, key="4"),
        ]
        if "full" in request.node.name:
            # What is small still finds a place in a file that cannot grow; on PostgreSQL the journal cannot.
            writes = writes[:2] if engine.engine_type == "sqlite" else [writes[0], *writes[2:]]
        for write in writes:
            for _ in range(2):
                with pytest.raises(StorageUnavailable, match=told) as refused:
                    await write()
                assert refused.value.retry_after_seconds > 0
        assert await everything() == before
        live = await sessions.get_session(session_id, db_session, actor=ann)
        found = await Reads(sessions).transcript(live, db_session, actor=ann)
        assert (found.written.reply, live.running_turn) == ("shown ", turn.id)
        assert (await sessions.list_sessions(db_session, actor=ann)).sessions
    # The same keys as before: nothing was done under them.
    await sessions.append([Piece(session_id, turn.id, 6, "and more")], db_session)
    assert (await sessions.finish_turn(turn.id, db_session, state="done")).reply == "shown and more"
    made = await sessions.create_session(db_session, actor=ann, title="x" * 100, key="1")
    assert (await sessions.create_session(db_session, actor=ann, title="x" * 100, key="1")).row.id == made.row.id
    assert (await sessions.switch_model(session_id, "smart", db_session, actor=ann, key="3")).changed

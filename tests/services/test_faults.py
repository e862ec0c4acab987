"""The database fails at its n-th call, for every n of every writing verb: all or nothing, and the same call goes
through as soon as the database does.

A session's life is told once for each kind of failure. Each verb of it is called with a failure at its first call, its
second, its third, … until it comes to its end. BEGIN and COMMIT are calls as well. On PostgreSQL, where each failure
costs a connection, every fifth call fails, and every one with LONG_TESTS=1. Failures are made where the driver
meets the database; on PostgreSQL the connection really ends.
"""

import asyncio
import contextvars
import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import aiosqlite
import asyncpg
import msgspec
import pytest

from db import engine as engines
from db import whole as steps
from db.db_session import DbSession, Piece
from db.engine import DatabaseUnavailable, Engine, SqliteEngine
from services.actor import Actor
from services.brought import Brought
from services.client_pool import ClientPool
from services.clients import Usage
from services.errors import Refusal, StorageUnavailable
from tests.conftest import Clock
from tests.services.invariants import all_rows, effects
from tests.services.world import World

pytestmark = pytest.mark.usefixtures("a_copy_at_a_time")

Answer = TypeVar("Answer")
Do = Callable[[DbSession], Awaitable[Answer]]
#: before and after: this call does nothing, or does it and does not say so; gone: nor does any later one;
#: cancelled: whoever called goes away meanwhile
KINDS = ["before", "after", "gone", "cancelled"]
#: (database, kind); a connection that PostgreSQL has lost once is gone for every later call already
CASES = [(database, kind) for database in ("sqlite", "postgres") for kind in KINDS]
CASES.remove(("postgres", "gone"))
#: calls from one failure to the next, on PostgreSQL
STEP = 1 if os.environ.get("LONG_TESTS") else 5


class Faults:
    """Counts the calls that the drivers make, and lets the n-th fail."""

    def __init__(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kind = kind
        self.calls = self.nth = 0
        #: the statement that failed
        self.failed = ""
        self.task: asyncio.Task[Any] | None = None
        for driver in (aiosqlite.Connection, asyncpg.Connection):
            for name in ("execute", "execute_fetchall", "fetch"):
                if hasattr(driver, name):
                    monkeypatch.setattr(driver, name, self._watched(getattr(driver, name)))

    @contextmanager
    def at(self, nth: int) -> Iterator[None]:
        """The n-th call from now on fails."""
        self.calls, self.nth, self.failed = 0, nth, ""
        try:
            yield
        finally:
            self.nth = 0

    def _watched(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def watched(connection: Any, sql: str, *args: Any, **more: Any) -> Any:
            # The pool's own tidying up comes after the verb.
            passing = not self.nth or "pg_advisory_unlock_all" in sql
            # A lost connection is noticed at the next call: what was done on it matters for a COMMIT alone.
            if self.kind == "after" and isinstance(connection, asyncpg.Connection):
                passing = passing or not sql.startswith("COMMIT")
            if passing:
                return await call(connection, sql, *args, **more)
            self.calls += 1
            if self.calls < self.nth or (self.calls > self.nth and self.kind != "gone"):
                return await call(connection, sql, *args, **more)
            self.failed = self.failed or sql
            if self.kind == "cancelled":
                assert self.task is not None
                self.task.cancel()
                return await call(connection, sql, *args, **more)
            if self.kind == "after":
                await call(connection, sql, *args, **more)
            if isinstance(connection, aiosqlite.Connection):
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR
                raise error
            connection.terminate()
            if self.kind == "after":
                raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
            return await call(connection, sql, *args, **more)

        return watched


class Story:
    """Calls each verb with every failure, until it goes through."""

    def __init__(self, world: World, faults: Faults) -> None:
        self.world, self.faults = world, faults
        self.engine = world.engine
        self.step = 1 if isinstance(self.engine, SqliteEngine) else STEP
        #: verbs that were called, and how many calls of the database failed
        self.told = self.failures = 0

    async def tell(self, do: Do[Answer], *, in_parts: bool = False) -> Answer:
        """What a verb answers in the end; one `in_parts` has several transactions, each of which is whole."""
        # Each verb begins at another call, so that no statement that many of them share is passed over by all.
        self.told += 1
        nth, before = self.told % self.step + 1 - self.step, await all_rows(self.engine)
        while True:
            nth, noticed = nth + self.step, self._noticed()
            with self.faults.at(nth):
                done, answer = await self._attempt(
                    do, (StorageUnavailable, DatabaseUnavailable) if in_parts else StorageUnavailable
                )
            await self._left_nothing_open()
            if done:
                assert not self.faults.failed
                await self.world.check()
                return answer  # type: ignore[return-value]
            assert self.faults.failed
            self.failures += 1
            after = await all_rows(self.engine)
            if in_parts:
                before = after
            elif after == before:
                assert self._noticed() == noticed
            else:
                # The commit came through, only its acknowledgement did not: the same call finds what it did.
                assert self.faults.failed.startswith("COMMIT")
                await self.world.check()
                answer = await do(DbSession(self.engine))
                assert effects(await all_rows(self.engine)) == effects(after)
                await self.world.check()
                return answer

    async def _attempt(self, do: Do[Answer], failure: Any = StorageUnavailable) -> tuple[bool, Answer | None]:
        task = asyncio.get_running_loop().create_task(do(DbSession(self.engine)), context=contextvars.Context())  # type: ignore[arg-type]
        self.faults.task = task
        try:
            return True, await task
        except failure:
            assert self.faults.kind != "cancelled"
        except asyncio.CancelledError:
            assert self.faults.kind == "cancelled"
        return False, None

    def _noticed(self) -> tuple[int, int, int]:
        """What readers and the runner were told."""
        orders = self.world.orders
        return len(self.world.published), len(orders.started), len(orders.stopped)

    async def _left_nothing_open(self) -> None:
        while steps._shielded:
            await asyncio.wait(steps._shielded)
        if isinstance(self.engine, SqliteEngine):
            assert not self.engine.writing.locked()
            assert self.engine._reading._value == engines.SQLITE_READERS
            assert self.engine._writer is None or not self.engine._writer.in_transaction
            return
        assert self.engine.pool is not None
        async with asyncio.timeout(60):
            while self.engine.pool.get_size() > self.engine.pool.get_idle_size() or await self.engine.run(OPEN):
                await asyncio.sleep(0.002)


OPEN = """
    SELECT 1 FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND state LIKE 'idle in transaction%'
"""


@pytest.fixture
async def world(
    engine: Engine, pool: ClientPool, clock: Clock, ann: Actor, bob: Actor, ada: Actor, guest: Actor, script: Actor
) -> World:
    world = World(engine, pool, clock, [ann, bob, ada, guest, script])
    await world.begin()
    for limit in ("tokens_per_day", "money_per_month"):
        await engine.run(f"UPDATE limit_rule SET value = '1000000' WHERE name = '{limit}'")
    return world


@pytest.mark.parametrize(("database_url", "kind"), CASES, indirect=["database_url"])
async def test_I5_whichever_call_of_the_database_fails_it_is_all_or_nothing(
    world: World, clock: Clock, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    ann, bob, ada, guest, _ = world.cast
    worker, story = world.verbs.worker, Story(world, Faults(kind, monkeypatch))
    tell = story.tell

    # Sessions begin
    made = await tell(lambda db: worker.create_session(db, actor=ann, model="smart", title="Plans", key="1"))
    id = made.row.id
    auto = await tell(lambda db: worker.begin_turn(None, "Hello", db, actor=guest, model="fast", key="2"))
    await tell(lambda db: worker.ensure_session(None, db, actor=bob))
    await tell(lambda db: worker.rename_session(id, "Other plans", db, actor=ann, key="3"))

    # … turns run, and end in every way
    first = (await tell(lambda db: worker.begin_turn(id, "Hello", db, actor=ann, model="aging", key="4"))).turn
    together = [Piece(id, first.id, 0, "Some "), Piece(auto.session.row.id, auto.turn.id, 0, "x", reasoning=True)]
    await tell(lambda db: worker.append(together, db))
    clock.pass_(seconds=10)
    await tell(lambda db: worker.heartbeat([first.id, auto.turn.id], db))
    await tell(
        lambda db: worker.switch_model(
            id, "fast", db, actor=ada, when="stop", reason="costs", lock=True, expected_version=3, key="5"
        )
    )
    await tell(lambda db: worker.switch_model(id, "smart", db, actor=ada, reason="enough", lock=False, key="6"))
    second = (await tell(lambda db: worker.retry_turn(first.id, db, actor=ann, model="fast", key="7"))).turn
    await tell(lambda db: worker.append([Piece(id, second.id, 0, "Some ")], db))
    await tell(lambda db: worker.finish_turn(second.id, db, state="done", usage=Usage(3, 5), tail="text", start=5))
    third = (await tell(lambda db: worker.edit_turn(second.id, "Rather this", db, actor=ann, key="8"))).turn
    await tell(lambda db: worker.stop_turn(third.id, db, actor=ann, key="9"))
    clock.pass_(seconds=10)
    await tell(lambda db: worker.extend_session(id, db, actor=ann, key="10"))
    fork = await tell(lambda db: worker.fork_session(id, db, actor=ann, key="11"))

    # … what was said elsewhere comes in
    told = Brought.told("Be brief.", [("One", "1"), ("Two", "2")])
    script = await tell(lambda db: worker.begin_turn(None, "Three", db, actor=bob, brought=told, cap=9, key="11a"))
    await tell(lambda db: worker.stop_turn(script.turn.id, db, actor=bob, key="11b"))
    exported = msgspec.structs.replace(told, model="smart", title="Elsewhere")
    await tell(lambda db: worker.import_session(exported, db, actor=bob, key="11c"))

    # … sessions end
    await tell(lambda db: worker.begin_turn(fork.row.id, "More", db, actor=ann, key="12"))
    await tell(lambda db: worker.close_session(fork.row.id, db, actor=ada, reason="done", key="13"))
    other = await tell(lambda db: worker.begin_turn(None, "Soon gone", db, actor=ann, key="14"))
    await tell(lambda db: worker.pin_session(fork.row.id, db, actor=ann, key="13a"))
    await tell(lambda db: worker.archive_session(fork.row.id, db, actor=ann, key="13b"))
    await tell(lambda db: worker.delete_session(other.session.row.id, db, actor=ann, key="15"))
    await tell(lambda db: worker.restore_session(other.session.row.id, db, actor=ann, key="15a"))
    await tell(lambda db: worker.delete_session(other.session.row.id, db, actor=ann, key="15b"))
    await tell(lambda db: worker.delete_session(fork.row.id, db, actor=ann, for_good=True, key="15c"))
    await tell(lambda db: worker.begin_turn(id, "Left alone", db, actor=ann, key="16"))
    for _ in range(2):
        with pytest.raises(Refusal) as refused:
            await worker.reopen_session(other.session.row.id, world.db_session, actor=ann)
        world.ledger.note(refused.value, ann)
    clock.pass_(days=31)
    await tell(lambda db: worker.sweep(db), in_parts=True)
    await tell(lambda db: worker.reopen_session(id, db, actor=ann, key="17"))

    async def adopt(db: DbSession) -> None:
        await worker.adopt_sessions(guest.id, db, actor=ann)

    await tell(adopt)
    assert story.failures > (20 if kind == "after" else 300) / story.step


@pytest.mark.parametrize("kind", KINDS)
async def test_I5_a_refusal_stands_when_it_cannot_be_written_down(
    world: World, ann: Actor, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    faults, worker = Faults(kind, monkeypatch), world.verbs.worker
    rows, refused = await all_rows(world.engine), False
    for nth in range(1, 30):
        with faults.at(nth):
            story = Story(world, faults)
            try:
                await story._attempt(lambda db: worker.create_session(db, actor=ann, model="no-such-model", key="1"))
            except Refusal as refusal:
                assert refusal.code == "model_unknown"
                refused = True
        await story._left_nothing_open()
        assert effects(await all_rows(world.engine)) == effects(rows)
    assert refused

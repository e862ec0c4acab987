"""Many streams at once: what they ask of the database, when one has to give way, and when nobody is let in."""

import asyncio
import hashlib
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from db.db_session import DatabaseUnavailable, DbSession, Piece, new_id
from db.engine import Engine
from db.tables import Account, Login
from services import readers
from services.accounts import Accounts, Credentials
from services.actor import Actor
from services.errors import TooManyStreams
from services.event_bus import MemoryEventBus
from services.session_service import SessionService
from services.turn_log import Beat, Changed, Event, Gone, Ousted, Position, TurnLog
from tests.conftest import Clock, Until

NOBODY = Credentials("", "", "", "", "")


class Counted:
    """A log, and how many statements the engine was sent."""

    def __init__(self, log: TurnLog, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log, self.statements, self.fails = log, 0, False
        run = engine.run

        async def counted(sql: str, args: Sequence[object] = ()) -> list[object]:
            if self.fails:
                raise DatabaseUnavailable("it is restarted")
            self.statements += 1
            return await run(sql, args)

        monkeypatch.setattr(engine, "run", counted)


class May:
    """Who may go on reading, and how often that was asked."""

    def __init__(self) -> None:
        self.lost: set[UUID] = set()
        self.asked: list[int] = []

    async def __call__(self, asked: Sequence[tuple[Credentials, Actor]], db_session: DbSession) -> list[bool]:
        await db_session.engine.run("SELECT 1")
        self.asked.append(len(asked))
        return [actor.id not in self.lost for _, actor in asked]


@pytest.fixture
def may() -> May:
    return May()


@pytest.fixture
async def counted(
    sessions: SessionService, bus: MemoryEventBus, engine: Engine, may: May, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Counted]:
    """A log whose streams beat every 200 ms and are asked for every 40."""
    monkeypatch.setattr(readers, "HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setattr(readers, "ASK_SECONDS", 0.04)
    monkeypatch.setattr(readers, "TICK_SECONDS", 0.01)
    drained = asyncio.Event()
    yield Counted(TurnLog(sessions, bus, lambda: DbSession(engine), drained, may), engine, monkeypatch)
    drained.set()


class Streams:
    """Streams that are read in the background, each with what it was told."""

    def __init__(self, log: TurnLog) -> None:
        self.log = log
        self.seen: list[list[Event]] = []
        self.tasks: list[asyncio.Task[None]] = []

    def open(self, session_id: UUID, actor: Actor, position: Position | None = None) -> list[Event]:
        seen: list[Event] = []

        async def read() -> None:
            async for event in self.log.follow_session(session_id, position or Position(), actor, NOBODY):
                seen.append(event)

        self.seen.append(seen)
        self.tasks.append(asyncio.create_task(read()))
        return seen

    def ended(self) -> list[bool]:
        return [task.done() for task in self.tasks]


@pytest.fixture
async def streams(counted: Counted) -> AsyncIterator[Streams]:
    streams = Streams(counted.log)
    yield streams
    for task in streams.tasks:
        task.cancel()
    await asyncio.gather(*streams.tasks, return_exceptions=True)
    assert len(counted.log.readers) == 0


async def test_a_hundred_idle_streams_are_asked_for_together(
    sessions: SessionService, db_session: DbSession, ann: Actor, counted: Counted, streams: Streams, may: May,
    until: Until,
) -> None:  # fmt: skip
    ids = [(await sessions.create_session(db_session, actor=ann)).row.id for _ in range(5)]
    for number in range(100):
        streams.open(ids[number % 5], ann)
    await until(lambda: all(Beat(0) in seen for seen in streams.seen))
    counted.statements, may.asked = 0, []
    begun = [len(seen) for seen in streams.seen]
    await until(lambda: all(len(seen) >= before + 3 for seen, before in zip(streams.seen, begun, strict=True)))
    beats = sum(len(seen) for seen in streams.seen) - sum(begun)
    # Each beat alone would be two statements, and each question one more.
    assert beats >= 300
    assert counted.statements < beats / 3
    assert sum(may.asked) > 100
    assert len(may.asked) < sum(may.asked) / 3
    assert all(event == Beat(0) for seen in streams.seen for event in seen)


async def test_nothing_ticks_when_nobody_reads(
    ann: Actor, session_id: UUID, counted: Counted, streams: Streams, until: Until
) -> None:
    seen = streams.open(session_id, ann)
    await until(lambda: seen)
    streams.tasks[0].cancel()
    await asyncio.gather(*streams.tasks, return_exceptions=True)
    await until(lambda: not [task for task in asyncio.all_tasks() if "Readers._tick" in repr(task)])
    again = streams.open(session_id, ann)
    await until(lambda: again)


async def test_where_one_actor_has_too_many_streams_the_oldest_gives_way(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, session_id: UUID, counted: Counted,
    streams: Streams, until: Until, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A page that comes back again and again is not shut out by what it left behind."""
    monkeypatch.setattr(readers, "STREAMS_PER_ACTOR", 3)
    others = (await sessions.create_session(db_session, actor=bob)).row.id
    theirs = streams.open(others, bob)
    for number in range(1, 8):
        streams.open(session_id, ann)
        await until(lambda number=number: len(counted.log.readers) == 1 + min(number, 3))
    await until(lambda: all(Beat(0) in seen for seen in streams.seen[-3:]))
    assert streams.ended() == [False] + [True] * 4 + [False] * 3
    assert [seen[-1] for seen in streams.seen[1:5]] == [Ousted()] * 4
    assert Ousted() not in theirs


async def test_what_answers_a_prompt_does_not_give_way(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, counted: Counted, streams: Streams,
    until: Until, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(readers, "STREAMS_PER_ACTOR", 1)
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    waiting = asyncio.create_task(counted.log.await_end(turn, ann))
    for _ in range(3):
        seen = streams.open(session_id, ann)
        await until(lambda seen=seen: seen)
    assert not waiting.done()
    await sessions.finish_turn(turn.id, db_session, state="done", tail="Hi")
    async with asyncio.timeout(60):
        await waiting


async def test_a_process_that_is_full_lets_nobody_in_and_the_next_one_when_there_is_room(
    sessions: SessionService, bus: MemoryEventBus, engine: Engine, ann: Actor, session_id: UUID, until: Until
) -> None:
    log = TurnLog(sessions, bus, lambda: DbSession(engine), asyncio.Event(), room=2)
    streams = Streams(log)
    for _ in range(2):
        log.require_room()
        streams.open(session_id, ann)
    await until(lambda: len(log.readers) == 2)
    with pytest.raises(TooManyStreams) as refused:
        log.require_room()
    assert refused.value.retry_after_seconds > 0
    streams.tasks[0].cancel()
    await asyncio.gather(streams.tasks[0], return_exceptions=True)
    log.require_room()
    streams.tasks[1].cancel()
    await asyncio.gather(*streams.tasks, return_exceptions=True)


async def test_O4_a_reader_who_lost_the_right_is_sent_away_in_the_middle_of_a_replay(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, counted: Counted, may: May,
    until: Until, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    await db_session.add_pieces([Piece(turn.session_id, turn.id, start, "x") for start in range(5000)], turn.created_at)
    events = counted.log.follow_session(session_id, Position(), ann, NOBODY)
    told = [await anext(events), await anext(events)]
    may.lost.add(ann.id)
    asked = len(may.asked)
    await until(lambda: len(may.asked) > asked + 2)
    told += [event async for event in events]
    assert told[-1] == Gone()
    assert len(told) < 5


async def test_readers_are_kept_while_the_database_is_away_and_miss_nothing(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, counted: Counted, streams: Streams,
    bus: MemoryEventBus, until: Until, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    told = streams.open(session_id, ann)
    await until(lambda: Beat(0) in told)
    # One hint is lost, and one comes while nobody can read what it is about.
    lost, bus.publish = bus.publish, lambda hint: None  # type: ignore[method-assign]
    switch = await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    bus.publish = lost  # type: ignore[method-assign]
    await sessions.rename_session(session_id, "Plans", db_session, actor=ann)
    counted.fails = True
    late = streams.open(session_id, ann, Position(version=0))
    before = len(told)
    await until(lambda: len(told) > before + 3)
    assert not any(streams.ended())
    assert len([record for record in caplog.records if "does not answer" in record.message]) == 1
    counted.fails = False
    for seen in (told, late):
        await until(lambda seen=seen: Beat(2) in seen)
        assert [event.session.title for event in seen if isinstance(event, Changed)][-1] == "Plans"
    assert switch.changed


async def test_O1_who_watches_sees_only_what_is_his(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, ada: Actor, session_id: UUID
) -> None:
    other = (await sessions.create_session(db_session, actor=bob)).row.id
    asked = [(session_id, ann.id), (session_id, bob.id), (other, bob.id), (uuid4(), ann.id), (session_id, ada.id)]
    found = await sessions.glances(asked, db_session)
    assert [glance is not None for glance in found] == [True, False, True, False, False]
    assert await sessions.glances([], db_session) == []


# ---------------------------------------------------------------- rights, asked for many at once


@pytest.fixture
def accounts(clock: Clock) -> Accounts:
    return Accounts(b"secret" * 8, guests=True, now=clock)


async def test_O4_many_are_asked_for_at_once_and_each_is_told_what_it_would_be_told_alone(
    accounts: Accounts, db_session: DbSession, engine: Engine, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    cookies, tokens, now = {}, {}, clock()
    for name in ("ann", "bob", "cara", "dora"):
        id, cookies[name] = new_id(), f"cookie of {name}"
        await db_session.add(Account(id=id, name=name, role="admin", group_name="admin", created_at=now))
        hashed = hashlib.sha256(cookies[name].encode()).hexdigest()
        dates = {"created_at": now, "last_used_at": now, "expires_at": now + timedelta(days=30)}
        await db_session.add(Login(id=new_id(), account_id=id, token_hash=hashed, **dates))
        tokens[name] = await accounts.create_token(name, "a script", ("chat",), db_session)
    given = [Credentials(None, cookie, "", "", "") for cookie in cookies.values()]
    given += [Credentials(token, "", "", "", "") for token in tokens.values()]
    given += [Credentials(None, "", accounts.new_guest_cookie(), "", "")]
    actors = [await accounts.authenticate(one, db_session) for one in given]
    watched = list(zip(given, actors, strict=True)) * 20
    assert await accounts.still(watched, db_session) == [True] * len(watched)

    bob, cara = actors[1].id, actors[2].id
    for statement in (
        f"UPDATE account SET disabled_at = created_at WHERE id = '{actors[0].id}'",
        f"UPDATE account SET role = 'user' WHERE id = '{bob}'",
        f"DELETE FROM login WHERE account_id = '{cara}'",
        f"UPDATE api_token SET scopes = 'read' WHERE account_id = '{cara}'",
        f"UPDATE api_token SET revoked_at = created_at WHERE account_id = '{actors[3].id}'",
    ):
        await engine.run(statement)
    expected = {
        (None, cookies["ann"]): False, (None, cookies["bob"]): False, (None, cookies["cara"]): False,
        (None, cookies["dora"]): True, (tokens["ann"], ""): False, (tokens["bob"], ""): False,
        (tokens["cara"], ""): False, (tokens["dora"], ""): False, (None, ""): True,
    }  # fmt: skip
    sent: list[str] = []
    run = engine.run

    async def listened(sql: str, args: Sequence[object] = ()) -> list[object]:
        sent.append(sql)
        return await run(sql, args)

    monkeypatch.setattr(engine, "run", listened)
    found = await accounts.still(watched, db_session)
    assert found == [expected[one.bearer, one.login_cookie] for one, _ in watched]
    assert len(sent) == 2
    clock.pass_(days=400)
    assert await accounts.still(watched, db_session) == [
        one.bearer is None and not one.login_cookie for one, _ in watched
    ]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_S12_what_another_process_commits_on_sqlite_is_told_long_before_a_heartbeat(
    sessions: SessionService, bus: MemoryEventBus, engine: Engine, db_session: DbSession, ann: Actor, session_id: UUID,
    may: May, until: Until, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """As a command does: it sends no hints, and nothing but the file tells of it."""
    monkeypatch.setattr(readers, "HEARTBEAT_SECONDS", 3600.0)
    drained, seen = asyncio.Event(), list[Event]()
    log = TurnLog(sessions, bus, lambda: DbSession(engine), drained, may)

    async def read() -> None:
        async for event in log.follow_session(session_id, Position(version=0), ann):
            seen.append(event)

    reading = asyncio.create_task(read())
    try:
        # What the file was like is known once the clock has looked at it.
        await until(lambda: engine._data_version is not None)  # type: ignore[union-attr]
        with closing(sqlite3.connect(engine.path)) as other:  # type: ignore[union-attr]
            other.execute("UPDATE session SET title = 'Rome', version = version + 1")
            other.commit()
        await until(lambda: any(isinstance(event, Changed) and event.session.title == "Rome" for event in seen))
    finally:
        drained.set()
        await reading

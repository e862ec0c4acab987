"""The real TurnRunner with the real built-in echo on both databases: rules G1, G4 to G7, G10 and I13."""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from db import engine as engines
from db.db_session import DatabaseUnavailable, DbSession, Piece
from db.engine import Engine
from db.tables import Turn
from services import turn_runner
from services.actor import Actor
from services.client_pool import ClientPool, Provider, client_for
from services.clients import Ask, Client, Message, Said, Text, Usage
from services.clients.builtin import BuiltinClient
from services.clients.echo import EchoClient
from services.errors import StorageUnavailable
from services.event_bus import Hint
from services.outcomes import TurnOrder
from services.session_service import SessionService
from services.turn_runner import TurnRunner
from tests.conftest import Clock, Configure, JournalRows, Offer, Orders, StorageFails, Until

LONG = bool(os.environ.get("LONG_TESTS"))


class WatchedEcho(EchoClient):
    """The echo, which counts the streams that are open and has the faults of some providers."""

    def __init__(self) -> None:
        super().__init__()
        self.open = 0
        #: pieces that whoever reads has taken, and come back for more
        self.taken = 0
        self.asked: list[Ask] = []

    async def stream(self, ask: Ask) -> AsyncGenerator[Said, None]:
        self.open += 1
        self.asked.append(ask)
        try:
            if ask.messages[-1].text == "/raw":
                for text in ("a\0", "b\ud800", "\udfffc", "\0"):
                    yield Text(text)
            elif ask.messages[-1].text == "/absurd":
                yield Text("all of it")
                yield Usage(2**31, 10**30)
            elif ask.messages[-1].text == "/bug":
                yield Text("so far ")
                raise ZeroDivisionError
            else:
                async for event in super().stream(ask):
                    yield event
                    self.taken += 1
        finally:
            self.open -= 1


@pytest.fixture
def echo() -> WatchedEcho:
    return WatchedEcho()


@pytest.fixture
async def pool(echo: WatchedEcho) -> AsyncIterator[ClientPool]:
    def connect(provider: Provider) -> Client:
        return BuiltinClient({"echo": echo}) if provider.kind == "builtin" else client_for(provider)

    pool = ClientPool(
        [Provider("builtin", "builtin"), Provider("down", "openai", "http://127.0.0.1:9/v1")], connect=connect
    )
    yield pool
    await pool.aclose()


class Opened:
    """Makes a DbSession for each transaction of the runner, and counts them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.times = 0

    def __call__(self) -> DbSession:
        self.times += 1
        return DbSession(self.engine)


@pytest.fixture
def opened(engine: Engine) -> Opened:
    return Opened(engine)


@pytest.fixture
async def runner(
    sessions: SessionService, pool: ClientPool, opened: Opened, configure: Configure
) -> AsyncIterator[TurnRunner]:
    await configure("user", turns="0", sessions_created="0", concurrent_turns=0)
    runner = sessions.runner = TurnRunner(sessions, pool, opened)
    await runner.open()
    yield runner
    async with asyncio.timeout(60):
        await runner.close()


Ended = Callable[[Turn], Awaitable[Turn]]


@pytest.fixture
def ended(engine: Engine, published: list[Hint], until: Until) -> Ended:
    """Wait until a turn's end is written and told."""

    async def wait(turn: Turn) -> Turn:
        await until(lambda: Hint(turn.session_id, "turn_ended", turn.id) in published)
        found = await DbSession(engine).find_turn(turn.id)
        assert found is not None and found.state != "running"
        return found

    return wait


def shown(hints: list[Hint], turn: Turn) -> str:
    """The text that was published of a turn; each piece must join the one before."""
    text = ""
    for hint in hints:
        if hint.kind == "text" and hint.turn_id == turn.id:
            assert hint.offset == len(text)
            text += hint.text
    return text


def numbered(count: int) -> str:
    return "".join(f"tok{number} " for number in range(count))


async def test_G4_the_reply_is_what_the_model_sent(
    runner: TurnRunner, sessions: SessionService, db_session: DbSession, ann: Actor, ended: Ended,
    published: list[Hint], until: Until, echo: WatchedEcho,
) -> None:  # fmt: skip
    for prompt, reply in (
        ("Hello  world\n", "Hello  world\n"),
        ("Zwölf Boxkämpfer 🦊 e\u0301 日本語 \u2028 ok", "Zwölf Boxkämpfer 🦊 e\u0301 日本語 \u2028 ok"),
        ("/tokens 700", numbered(700)),
        ("/tokens 12 /delay 7ms", numbered(12)),
    ):
        turn = (await sessions.begin_turn(None, prompt, db_session, actor=ann)).turn
        done = await ended(turn)
        assert (done.state, done.reply, done.error_code) == ("done", reply, None)
        assert (done.estimated, done.reply_tokens) == (False, len(reply.split()))
        await until(lambda: runner.running == 0)
        assert shown(published, turn) == reply
        assert echo.open == 0
        assert (await db_session.text_of(turn.id)).reply == ""


async def test_G4_the_first_piece_comes_at_once_and_later_ones_with_the_tick(
    runner: TurnRunner, sessions: SessionService, db_session: DbSession, ann: Actor, published: list[Hint],
    until: Until, monkeypatch: pytest.MonkeyPatch, echo: WatchedEcho,
) -> None:  # fmt: skip
    monkeypatch.setattr(turn_runner, "TICK_SECONDS", 60)
    first = (await sessions.begin_turn(None, "/hang after 1", db_session, actor=ann)).turn
    await until(lambda: shown(published, first))
    assert shown(published, first) == "tok0 "
    second = (await sessions.begin_turn(None, "/tokens 4 /delay 20ms /hang after 4", db_session, actor=ann)).turn
    await until(lambda: shown(published, second))
    await until(lambda: echo.taken == 1 + 4)
    assert shown(published, second) == "tok0 "
    third = (await sessions.begin_turn(None, "/hang after 1", db_session, actor=ann)).turn
    await until(lambda: shown(published, third))
    assert shown(published, second) == numbered(4)


async def test_G4_one_commit_serves_many_tokens_of_many_turns(
    runner: TurnRunner, sessions: SessionService, db_session: DbSession, ann: Actor, ended: Ended, opened: Opened,
    published: list[Hint], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # A slow machine may take a tick of 50 ms for each token, and then each is a piece of its own.
    monkeypatch.setattr(turn_runner, "TICK_SECONDS", 1)
    turns = [(await sessions.begin_turn(None, "/tokens 60 /delay 5ms", db_session, actor=ann)).turn for _ in range(10)]
    for turn in turns:
        done = await ended(turn)
        assert (done.state, done.reply) == ("done", numbered(60))
    pieces = [hint for hint in published if hint.kind == "text"]
    assert len(pieces) < 300
    assert opened.times < 100
    for turn in turns:
        assert shown(published, turn) == numbered(60)


async def test_G1_a_turn_runs_after_the_commit_and_outside_the_callers_transaction(
    runner: TurnRunner, sessions: SessionService, db_session: DbSession, ann: Actor, ended: Ended, echo: WatchedEcho
) -> None:
    async with db_session.transaction():
        turn = (await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn
        await asyncio.sleep(0.02)
        assert (runner.running, echo.asked) == (0, [])
    with pytest.raises(ZeroDivisionError):
        async with db_session.transaction():
            lost = (await sessions.begin_turn(None, "Lost", db_session, actor=ann)).turn
            raise ZeroDivisionError
    assert (await ended(turn)).reply == "Hello"
    assert [ask.messages[-1].text for ask in echo.asked] == ["Hello"]
    assert await db_session.find_turn(lost.id) is None


async def test_G4_the_model_is_asked_for_by_its_upstream_name_with_the_transcript(
    runner: TurnRunner, sessions: SessionService, db_session: DbSession, ann: Actor, ended: Ended, echo: WatchedEcho,
    offer: Offer,
) -> None:  # fmt: skip
    await offer(fast={"max_reply_tokens": 3})
    first = (await sessions.begin_turn(None, "/tokens 9", db_session, actor=ann)).turn
    assert (await ended(first)).reply == numbered(3)
    await ended((await sessions.begin_turn(first.session_id, "More", db_session, actor=ann)).turn)
    asked = echo.asked[-1]
    assert (asked.model, asked.max_reply_tokens) == ("echo", 3)
    assert [(message.role, message.text) for message in asked.messages] == [
        ("user", "/tokens 9"),
        ("assistant", numbered(3)),
        ("user", "More"),
    ]


async def test_G7_stop_closes_the_client_and_keeps_the_text(
    runner: TurnRunner, sessions: SessionService, db_session: DbSession, ann: Actor, published: list[Hint],
    until: Until, echo: WatchedEcho,
) -> None:  # fmt: skip
    turn = (await sessions.begin_turn(None, "/hang after 5", db_session, actor=ann)).turn
    await until(lambda: shown(published, turn) == numbered(5))
    assert (runner.running, echo.open) == (1, 1)
    stopped = await sessions.stop_turn(turn.id, db_session, actor=ann)
    await until(lambda: echo.open == 0)
    assert (stopped.state, stopped.reply) == ("stopped", numbered(5))
    assert runner.running == 0
    kept = await db_session.find_turn(turn.id)
    assert kept is not None and (kept.state, kept.reply) == ("stopped", numbered(5))


async def test_G7_a_turn_stopped_while_it_streams_keeps_exactly_what_was_shown(
    runner: TurnRunner, sessions: SessionService, db_session: DbSession, ann: Actor, published: list[Hint],
    until: Until, echo: WatchedEcho,
) -> None:  # fmt: skip
    for tokens in (1, 30, 90):
        turn = (await sessions.begin_turn(None, "/tokens 5000 /delay 1ms", db_session, actor=ann)).turn
        await until(lambda turn=turn, tokens=tokens: shown(published, turn).count(" ") >= tokens)
        stopped = await sessions.stop_turn(turn.id, db_session, actor=ann)
        await until(lambda: echo.open == 0)
        await asyncio.sleep(0.1)
        kept = await db_session.find_turn(turn.id)
        assert kept is not None
        assert kept.reply == stopped.reply == shown(published, turn)
        assert numbered(5000).startswith(kept.reply)
        assert (await db_session.text_of(turn.id)).reply == ""


async def test_G7_a_turn_is_stopped_by_another_process(
    runner: TurnRunner, sessions: SessionService, other_worker: SessionService, db_session: DbSession, ann: Actor,
    published: list[Hint], until: Until, echo: WatchedEcho, orders: Orders,
) -> None:  # fmt: skip
    turn = (await sessions.begin_turn(None, "/tokens 5000 /delay 5ms", db_session, actor=ann)).turn
    await until(lambda: shown(published, turn))
    stopped = await other_worker.stop_turn(turn.id, db_session, actor=ann)
    async with asyncio.timeout(10):  # by itself it would end after 25 s
        await until(lambda: echo.open == 0 and runner.running == 0)
    kept = await db_session.find_turn(turn.id)
    assert kept is not None and (kept.state, kept.reply) == ("stopped", stopped.reply)


async def test_G5_shutdown_interrupts_with_all_text_kept(
    runner: TurnRunner, sessions: SessionService, db_session: DbSession, ann: Actor, published: list[Hint],
    until: Until, echo: WatchedEcho, ended: Ended, monkeypatch: pytest.MonkeyPatch, journal: JournalRows,
) -> None:  # fmt: skip
    monkeypatch.setattr(turn_runner, "TICK_SECONDS", 60)
    turns = []
    for _ in range(5):
        turns.append((await sessions.begin_turn(None, "/delay 2ms /hang after 9", db_session, actor=ann)).turn)
    await until(lambda: all(shown(published, turn) for turn in turns))
    await until(lambda: echo.taken == 5 * 9)
    async with asyncio.timeout(30):
        await runner.close()
    assert (echo.open, runner.running) == (0, 0)
    for turn in turns:
        kept = await db_session.find_turn(turn.id)
        assert kept is not None
        assert (kept.state, kept.reply, kept.error_code) == ("interrupted", numbered(9), "interrupted")
        assert shown(published, turn) == numbered(9)
    assert [row.outcome for row in await journal("turn_ended")] == ["interrupted"] * 5


async def test_G5_a_turn_that_has_only_just_been_begun_is_interrupted_too(
    runner: TurnRunner, sessions: SessionService, db_session: DbSession, ann: Actor, orders: Orders
) -> None:
    sessions.runner = orders
    turn = (await sessions.begin_turn(None, "/tokens 500 /delay 5ms", db_session, actor=ann)).turn
    runner.start(orders.started[0])
    async with asyncio.timeout(30):
        await runner.close()
    kept = await db_session.find_turn(turn.id)
    assert kept is not None and kept.state == "interrupted"


async def test_G5_a_turn_that_is_begun_after_the_shutdown_is_interrupted_too(
    runner: TurnRunner, sessions: SessionService, db_session: DbSession, ann: Actor, ended: Ended, echo: WatchedEcho
) -> None:
    await runner.close()
    late = await ended((await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn)
    assert (late.state, late.reply, echo.asked) == ("interrupted", "", [])


async def test_G5_a_shutdown_while_the_end_is_written_loses_nothing(
    runner: TurnRunner, sessions: SessionService, db_session: DbSession, ann: Actor, storage_fails: StorageFails,
    echo: WatchedEcho, until: Until, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    async with storage_fails("usage"):
        turn = (await sessions.begin_turn(None, "/tokens 50", db_session, actor=ann)).turn
        await until(lambda: echo.asked and not runner.running)
        closing = asyncio.create_task(runner.close())
        await asyncio.sleep(0.1)
        assert not closing.done()
    async with asyncio.timeout(30):
        await closing
    kept = await db_session.find_turn(turn.id)
    assert kept is not None and (kept.state, kept.reply) == ("done", numbered(50))


async def test_G6_a_worker_whose_lease_lapsed_writes_nothing_more(
    runner: TurnRunner, sessions: SessionService, other_worker: SessionService, db_session: DbSession, ann: Actor,
    published: list[Hint], until: Until, echo: WatchedEcho, clock: Clock,
) -> None:  # fmt: skip
    turn = (await sessions.begin_turn(None, "/tokens 5000 /delay 2ms", db_session, actor=ann)).turn
    await until(lambda: shown(published, turn))
    clock.pass_(seconds=30)
    await until(lambda: echo.open == 0 and runner.running == 0)
    text = (await db_session.text_of(turn.id)).reply
    assert text == shown(published, turn)
    assert await other_worker.sweep(db_session) == 1
    kept = await db_session.find_turn(turn.id)
    assert kept is not None and (kept.state, kept.reply) == ("interrupted", text)
    assert numbered(5000).startswith(text)


async def test_G6_a_worker_that_wakes_up_at_the_end_of_its_turn_changes_nothing(
    runner: TurnRunner, sessions: SessionService, db_session: DbSession, ann: Actor, published: list[Hint],
    until: Until, clock: Clock, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(turn_runner, "TICK_SECONDS", 60)
    turn = (await sessions.begin_turn(None, "/tokens 20 /delay 10ms", db_session, actor=ann)).turn
    await until(lambda: shown(published, turn))
    clock.pass_(seconds=30)
    await until(lambda: runner.running == 0)
    await runner.close()
    kept = await db_session.find_turn(turn.id)
    assert kept is not None and (kept.state, kept.reply) == ("running", None)
    assert (await db_session.text_of(turn.id)).reply == shown(published, turn) == "tok0 "


@pytest.mark.parametrize("way", ["stopped", "deleted", "lapsed"])
async def test_G7_what_another_process_ends_closes_the_connection_of_a_silent_provider_within_a_second(
    runner: TurnRunner, sessions: SessionService, other_worker: SessionService, db_session: DbSession, ann: Actor,
    echo: WatchedEcho, until: Until, clock: Clock, way: str, published: list[Hint], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Nothing tells this process: no hint, and no text that could be refused."""
    turn = (await sessions.begin_turn(None, "/hang after 1", db_session, actor=ann)).turn
    other = (await sessions.begin_turn(None, "/hang after 1", db_session, actor=ann)).turn
    await until(lambda: shown(published, turn) and shown(published, other) and echo.open == 2)
    began = asyncio.get_running_loop().time()
    if way == "stopped":
        await other_worker.stop_turn(turn.id, db_session, actor=ann)
    elif way == "deleted":
        await other_worker.delete_session(turn.session_id, db_session, actor=ann)
    else:
        await db_session.end_leases([sessions.worker], clock())
        await sessions.heartbeat([turn.id, other.id], db_session)
    left = 0 if way == "lapsed" else 1
    await until(lambda: echo.open == runner.running == left)
    # Within a second; on a busy machine before the leases are renewed, after 10 s, which would show it too.
    assert asyncio.get_running_loop().time() - began < (1 if LONG else 8)
    if left:
        await sessions.stop_turn(other.id, db_session, actor=ann)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_G5_whoever_succeeds_a_dead_worker_frees_what_it_held_at_once(
    sessions: SessionService, other_worker: SessionService, db_session: DbSession, ann: Actor, bob: Actor,
    configure: Configure, published: list[Hint],
) -> None:  # fmt: skip
    await configure("user", concurrent_turns=1)
    theirs = (await other_worker.begin_turn(None, "Hello", db_session, actor=ann)).turn
    await other_worker.append([Piece(theirs.session_id, theirs.id, 0, "so far")], db_session)
    ours = (await sessions.begin_turn(None, "Hello", db_session, actor=bob)).turn
    await sessions.succeed([other_worker.worker, UUID(int=1)], db_session)
    assert await other_worker.append([Piece(theirs.session_id, theirs.id, 6, "!")], db_session) == set()
    assert (await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn.state == "running"
    assert await sessions.sweep(db_session, thorough=False) == 1
    kept, held = await db_session.find_turn(theirs.id), await db_session.find_turn(ours.id)
    assert kept is not None and (kept.state, kept.reply) == ("interrupted", "so far")
    assert held is not None and held.state == "running"
    assert Hint(theirs.session_id, "turn_ended", theirs.id) in published


async def test_G6_leases_are_renewed_and_lapsed_ones_swept(
    sessions: SessionService, other_worker: SessionService, pool: ClientPool, opened: Opened, db_session: DbSession,
    ann: Actor, until: Until, clock: Clock, configure: Configure, ended: Ended, published: list[Hint],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    lost = (await other_worker.begin_turn(None, "Lost", db_session, actor=ann)).turn
    monkeypatch.setattr(turn_runner, "LEASE", timedelta(milliseconds=60))
    monkeypatch.setattr(turn_runner, "SWEEP_SECONDS", 0.02)
    runner = sessions.runner = TurnRunner(sessions, pool, opened)
    await runner.open()
    try:
        turn = (await sessions.begin_turn(None, "/hang after 1", db_session, actor=ann)).turn
        await until(lambda: shown(published, turn))
        for _ in range(3):
            clock.pass_(seconds=20)

            async def renewed() -> bool:
                row = await db_session.find_turn(turn.id)
                return row is not None and row.lease_until == clock() + timedelta(seconds=30)

            await until(renewed)
        assert (await ended(lost)).state == "interrupted"
        held = await db_session.find_turn(turn.id)
        assert held is not None and held.state == "running"
    finally:
        await runner.close()


async def test_G10_a_provider_that_fails_leaves_the_text_and_the_reason(
    runner: TurnRunner, sessions: SessionService, db_session: DbSession, ann: Actor, ended: Ended, echo: WatchedEcho,
    published: list[Hint],
) -> None:  # fmt: skip
    for fault, code in (
        ("500", "provider_failed"),
        ("429", "provider_rate_limited"),
        ("401", "provider_refused"),
        ("timeout", "provider_timeout"),
        ("broken", "provider_broken"),
        ("unreachable", "provider_unreachable"),
    ):
        turn = (await sessions.begin_turn(None, f"/error {fault} after 5", db_session, actor=ann)).turn
        failed = await ended(turn)
        assert (failed.state, failed.reply, failed.error_code) == ("failed", numbered(5), code)
        assert failed.error_detail and failed.error_detail.endswith(".")
        assert (failed.estimated, failed.reply_tokens) == (True, -(-len(numbered(5)) // 3))
        assert shown(published, turn) == numbered(5)
        assert echo.open == 0


async def test_M6_a_provider_that_cannot_be_reached_is_known_to_be_down(
    runner: TurnRunner, sessions: SessionService, db_session: DbSession, ann: Actor, ended: Ended, pool: ClientPool
) -> None:
    turn = (await sessions.begin_turn(None, "Hello", db_session, actor=ann, model="far")).turn
    assert pool.is_up("down") is None
    failed = await ended(turn)
    assert (failed.state, failed.reply, failed.error_code) == ("failed", "", "provider_unreachable")
    assert "127.0.0.1" not in (failed.error_detail or "")
    assert pool.is_up("down") is False


async def test_G10_a_bug_in_a_client_ends_the_turn_and_is_logged(
    runner: TurnRunner, sessions: SessionService, db_session: DbSession, ann: Actor, ended: Ended, echo: WatchedEcho,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    turn = (await sessions.begin_turn(None, "/bug", db_session, actor=ann)).turn
    failed = await ended(turn)
    assert (failed.state, failed.reply, failed.error_code) == ("failed", "so far ", "internal")
    assert any(record.levelno == logging.ERROR and record.exc_info for record in caplog.records)
    assert "ZeroDivision" not in (failed.error_detail or "")
    assert echo.open == 0


async def test_G10_a_model_that_is_not_there_fails(
    runner: TurnRunner, sessions: SessionService, db_session: DbSession, ann: Actor, ended: Ended, offer: Offer
) -> None:
    await offer(fast={"upstream": "none"})
    failed = await ended((await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn)
    assert (failed.state, failed.reply, failed.error_code) == ("failed", "", "model_missing")


async def test_G10_what_no_database_can_hold_is_replaced(
    runner: TurnRunner, sessions: SessionService, db_session: DbSession, ann: Actor, ended: Ended,
    published: list[Hint],
) -> None:  # fmt: skip
    turn = (await sessions.begin_turn(None, "/raw", db_session, actor=ann)).turn
    done = await ended(turn)
    assert (done.state, done.reply) == ("done", "a\ufffdb\ufffd\ufffdc\ufffd")
    assert shown(published, turn) == done.reply


async def test_G10_absurd_figures_of_a_provider_do_not_lose_the_reply(
    runner: TurnRunner, sessions: SessionService, db_session: DbSession, ann: Actor, ended: Ended
) -> None:
    turn = (await sessions.begin_turn(None, "/absurd", db_session, actor=ann)).turn
    done = await ended(turn)
    assert (done.state, done.reply, done.estimated) == ("done", "all of it", True)
    assert (done.prompt_tokens, done.reply_tokens) == (7, 3)


async def test_I13_nothing_is_shown_that_could_not_be_committed(
    runner: TurnRunner, sessions: SessionService, db_session: DbSession, ann: Actor, ended: Ended,
    published: list[Hint], until: Until, storage_fails: StorageFails, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    async with storage_fails("turn_piece"):
        turn = (await sessions.begin_turn(None, "/tokens 200 /delay 5ms", db_session, actor=ann)).turn
        await until(lambda: "text could not be committed" in caplog.text)
        assert shown(published, turn) == ""
        assert (await db_session.text_of(turn.id)).reply == ""
    done = await ended(turn)
    assert (done.state, done.reply) == ("done", numbered(200))
    assert shown(published, turn) == numbered(200)
    assert "tok" not in caplog.text


async def test_G10_a_commit_whose_acknowledgement_was_lost_doubles_nothing(
    runner: TurnRunner, sessions: SessionService, db_session: DbSession, ann: Actor, ended: Ended,
    published: list[Hint], monkeypatch: pytest.MonkeyPatch, until: Until,
) -> None:  # fmt: skip
    append, times = sessions.append, 0

    async def lost(pieces: Sequence[tuple[UUID, UUID, int, str]], db_session: DbSession) -> set[UUID]:
        nonlocal times
        await append(pieces, db_session)
        times += 1
        raise StorageUnavailable

    for prompt in ("/tokens 40 /delay 2ms", "/tokens 400 /delay 2ms"):
        times = 0
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(sessions, "append", lost)
            turn = (await sessions.begin_turn(None, prompt, db_session, actor=ann)).turn
            await until(lambda: times)  # noqa: B023
        done = await ended(turn)
        assert (done.state, done.reply) == ("done", numbered(int(prompt.split()[1])))


async def test_G1_a_turn_whose_begin_was_committed_and_not_acknowledged_is_run(
    runner: TurnRunner, sessions: SessionService, db_session: DbSession, ann: Actor, engine: Engine, ended: Ended,
    echo: WatchedEcho, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    end, came_through = engine.transaction_class.end, True

    async def lost(transaction: Any, commit: bool) -> None:
        await end(transaction, commit and came_through)
        if commit:
            raise DatabaseUnavailable("the connection was lost")

    live = await sessions.create_session(db_session, actor=ann)
    for came_through in (False, True):  # noqa: B007 – `lost` asks
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(engine.transaction_class, "end", lost)
            with pytest.raises(StorageUnavailable):
                await sessions.begin_turn(live.row.id, "Hello", db_session, actor=ann, key="once")
    # Whoever sends it again under the same key finds the turn, which is running meanwhile or has ended.
    turn = (await sessions.begin_turn(live.row.id, "Hello", db_session, actor=ann, key="once")).turn
    done = await ended(turn)
    assert (done.state, done.reply) == ("done", "Hello")
    assert len(echo.asked) == 1


async def test_G10_an_end_that_cannot_be_written_is_tried_again(
    runner: TurnRunner, sessions: SessionService, db_session: DbSession, ann: Actor, ended: Ended, echo: WatchedEcho,
    until: Until, storage_fails: StorageFails, published: list[Hint],
) -> None:  # fmt: skip
    async with storage_fails("usage"):
        turn = (await sessions.begin_turn(None, "/tokens 50", db_session, actor=ann)).turn
        await until(lambda: echo.asked and echo.open == 0)
        await asyncio.sleep(0.1)
        held = await db_session.find_turn(turn.id)
        assert held is not None and held.state == "running"
        assert Hint(turn.session_id, "turn_ended", turn.id) not in published
    done = await ended(turn)
    assert (done.state, done.reply) == ("done", numbered(50))


async def test_G4_a_session_that_is_deleted_ends_its_turn_quietly(
    runner: TurnRunner, sessions: SessionService, db_session: DbSession, ann: Actor, until: Until, echo: WatchedEcho,
    published: list[Hint], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    turn = (await sessions.begin_turn(None, "/tokens 5000 /delay 2ms", db_session, actor=ann)).turn
    await until(lambda: shown(published, turn))
    await sessions.delete_session(turn.session_id, db_session, actor=ann)
    await until(lambda: echo.open == 0 and runner.running == 0)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_G3_a_turn_whose_order_is_lost_holds_its_slot_for_one_lease(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, clock: Clock, ended: Ended,
    pool: ClientPool, opened: Opened,
) -> None:  # fmt: skip
    await configure("user", concurrent_turns=1)
    sessions.runner = None
    lost = (await sessions.begin_turn(None, "Lost", db_session, actor=ann)).turn
    clock.pass_(seconds=30)
    runner = sessions.runner = TurnRunner(sessions, pool, opened)
    await runner.open()
    try:
        turn = (await sessions.begin_turn(lost.session_id, "Hello", db_session, actor=ann)).turn
        assert (await ended(turn)).reply == "Hello"
        assert (await ended(lost)).state == "interrupted"
    finally:
        await runner.close()


async def test_an_unknown_provider_fails_the_turn(
    runner: TurnRunner, sessions: SessionService, db_session: DbSession, ann: Actor, ended: Ended, orders: Orders
) -> None:
    sessions.runner = orders
    turn = (await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn
    (order,) = orders.started
    runner.start(TurnOrder(order.turn_id, order.session_id, "nowhere", order.ask))
    failed = await ended(turn)
    assert (failed.state, failed.error_code) == ("failed", "internal")


async def test_an_end_of_a_turn_that_is_gone_is_no_error(
    runner: TurnRunner, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    runner.start(TurnOrder(UUID(int=1), UUID(int=2), "builtin", Ask("echo", (Message("user", "Hello"),), 0)))
    await until(lambda: runner.running == 0)
    await runner.close()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_I7_a_renewal_that_failed_is_tried_again_long_before_the_lease_ends(
    sessions: SessionService, pool: ClientPool, opened: Opened, db_session: DbSession, ann: Actor, until: Until,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A lock of ten seconds costs one renewal, and the next by the clock would come when the lease is over."""
    tries, heartbeat = 0, sessions.heartbeat

    async def fails_first(turn_ids: Sequence[UUID], db: DbSession) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            monkeypatch.setattr(turn_runner, "LEASE", timedelta(hours=1))
            raise StorageUnavailable
        await heartbeat(turn_ids, db)

    monkeypatch.setattr(sessions, "heartbeat", fails_first)
    monkeypatch.setattr(turn_runner, "LEASE", timedelta(seconds=0.3))
    runner = sessions.runner = TurnRunner(sessions, pool, opened)
    await runner.open()
    try:
        await sessions.begin_turn(None, "/hang after 1", db_session, actor=ann)
        await until(lambda: tries >= 2)
    finally:
        await runner.close()


async def test_G5_a_shutdown_interrupts_what_is_only_looked_for(
    runner: TurnRunner, sessions: SessionService, db_session: DbSession, ann: Actor, orders: Orders
) -> None:
    """A turn whose commit nobody acknowledged, and a stop before it is found."""
    sessions.runner = orders
    turn = (await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn
    runner.seek(orders.started[0])
    async with asyncio.timeout(20):
        await runner.close()
    kept = await db_session.find_turn(turn.id)
    assert kept is not None and kept.state == "interrupted"


async def test_G5_a_shutdown_that_has_no_time_for_the_ends_keeps_the_text_and_cancels_no_end(
    runner: TurnRunner, sessions: SessionService, db_session: DbSession, ann: Actor, storage_fails: StorageFails,
    until: Until, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(turn_runner, "TICK_SECONDS", 60)
    turns = [(await sessions.begin_turn(None, "/hang after 9", db_session, actor=ann)).turn for _ in range(3)]
    await until(
        lambda: len(runner._drafts) == 3 and all(one.reply.start or one.reply.parts for one in runner._drafts.values())
    )
    async with storage_fails("usage"):
        await runner.close(within=0.3)
        for turn in turns:
            found = await db_session.find_turn(turn.id)
            assert found is not None and found.state == "running"
            assert (await db_session.text_of(turn.id)).reply == numbered(9)
    for turn in turns:
        await until(lambda turn=turn: ended_in(db_session, turn.id))
        found = await db_session.find_turn(turn.id)
        assert found is not None and (found.state, found.reply) == ("interrupted", numbered(9))


async def ended_in(db_session: DbSession, turn_id: UUID) -> bool:
    found = await db_session.find_turn(turn_id)
    return found is not None and found.ended_at is not None


REFUSES = {
    "sqlite": [
        "CREATE TRIGGER refuses BEFORE INSERT ON turn_piece WHEN NEW.text LIKE '%poison%' "
        "BEGIN SELECT RAISE(ABORT, 'not in this encoding'); END"
    ],
    "postgres": [
        "CREATE FUNCTION refuses() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'not in this encoding' USING ERRCODE = 'untranslatable_character'; END $$",
        "CREATE TRIGGER refuses BEFORE INSERT ON turn_piece FOR EACH ROW WHEN (NEW.text LIKE '%poison%') "
        "EXECUTE FUNCTION refuses()",
    ],
}


async def test_I13_text_that_the_database_refuses_for_good_holds_up_no_other_turn(
    runner: TurnRunner, sessions: SessionService, engine: Engine, db_session: DbSession, ann: Actor, ended: Ended,
    until: Until, echo: WatchedEcho,
) -> None:  # fmt: skip
    for statement in REFUSES[engine.engine_type]:
        await engine.run_ddl(statement)
    try:
        prompt = "/delay 5ms /text poison poison poison"
        poisoned = (await sessions.begin_turn(None, prompt, db_session, actor=ann)).turn
        other = await ended((await sessions.begin_turn(None, "/tokens 60 /delay 5ms", db_session, actor=ann)).turn)
        assert (other.state, other.reply) == ("done", numbered(60))
        # Nobody works on the other any more; it is interrupted when its lease ends.
        await until(lambda: runner.running == 0 and echo.open == 0)
        assert (await db_session.text_of(poisoned.id)).reply == ""
    finally:
        await engine.run_ddl("DROP TRIGGER refuses" + (" ON turn_piece" if engine.engine_type == "postgres" else ""))
        if engine.engine_type == "postgres":
            await engine.run_ddl("DROP FUNCTION refuses")


async def test_I7_a_crowd_of_writers_costs_no_reply(
    sessions: SessionService, engine: Engine, pool: ClientPool, ann: Actor, configure: Configure,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """More than are served before they give up. What keeps replies alive does not queue up behind them."""
    await configure("user", turns="0", sessions_created="0", concurrent_turns=0)
    monkeypatch.setattr(engines, "BUSY_SECONDS", 2)
    runner = sessions.runner = TurnRunner(sessions, pool, lambda: DbSession(engine, urgent=True))
    turns = [(await sessions.begin_turn(None, "/hang after 1", DbSession(engine), actor=ann)).turn for _ in range(5)]
    refused, stopped = 0, asyncio.Event()

    async def write() -> None:
        nonlocal refused
        while not stopped.is_set():
            try:
                async with DbSession(engine).transaction():
                    await asyncio.sleep(0 if stopped.is_set() else 0.1)
            except DatabaseUnavailable:
                refused += 1

    crowd = [asyncio.create_task(write()) for _ in range(300)]
    try:
        async with asyncio.timeout(60):
            while refused < 100:
                await sessions.heartbeat([turn.id for turn in turns], DbSession(engine, urgent=True))
                await asyncio.sleep(0.05)
    finally:
        stopped.set()
        await asyncio.gather(*crowd)
        await runner.close()

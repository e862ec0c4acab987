"""What a reply costs grows as its text does, and no faster: counted in statements, characters and commits."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID

import pytest

from db.db_session import DbSession, Piece
from db.engine import Engine
from services.actor import Actor
from services.client_pool import ClientPool
from services.event_bus import MemoryEventBus
from services.reads import Reads
from services.session_service import SessionService
from services.turn_log import TOLD_CHARACTERS, Begun, Delta, Ended, Position, TurnLog
from services.turn_runner import TurnRunner
from tests.conftest import Configure, Offer, Orders, Until
from web.sse import for_scripts

PIECE = 1000


class Sent:
    """What an engine was sent: how many statements, how much text with them, and how many commits."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engine = engine
        self.clear()
        run, end = engine.run, engine.transaction_class.end

        async def counted(sql: str, args: Sequence[Any] = ()) -> list[Any]:
            self.statements += 1
            self.characters += sum(len(arg) for arg in args if isinstance(arg, str))
            if "INTO turn_piece" in sql:
                self.pieces.append(len(args) // 3)
            rows = await run(sql, args)
            self.read += sum(len(value) for row in rows for value in dict(row).values() if isinstance(value, str))
            return rows

        async def ended(transaction: Any, commit: bool) -> None:
            self.commits += commit
            await end(transaction, commit)

        monkeypatch.setattr(engine, "run", counted)
        monkeypatch.setattr(engine.transaction_class, "end", ended)

    def clear(self) -> None:
        self.statements = self.characters = self.read = self.commits = 0
        #: rows of each statement that wrote text
        self.pieces: list[int] = []


@pytest.fixture
def sent(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Sent:
    return Sent(engine, monkeypatch)


async def cost_of(
    characters: int, sessions: SessionService, db_session: DbSession, ann: Actor, log: TurnLog, sent: Sent
) -> tuple[float, float, float, float]:
    """Of one reply that somebody reads as it is written: statements, characters written, read and told, for each."""
    turn = (await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn
    told, text = 0, ""
    sent.clear()
    events = log.follow_session(turn.session_id, Position(turn.id), ann)
    frames = for_scripts(events)
    for start in range(0, characters, PIECE):
        await sessions.append([Piece(turn.session_id, turn.id, start, "x" * PIECE)], db_session)
        frame = await anext(frames)
        told += len(frame)
        text += "x" * PIECE
    await sessions.finish_turn(turn.id, db_session, state="done")
    told += len(await anext(frames))
    await frames.aclose()
    assert told > 2 * characters
    found = await db_session.find_turn(turn.id)
    assert found is not None and found.reply == text
    return tuple(count / characters for count in (sent.statements, sent.characters, sent.read, told))  # type: ignore[return-value]


async def test_a_long_reply_costs_for_each_character_what_a_short_one_costs(
    sessions: SessionService, db_session: DbSession, engine: Engine, ann: Actor, bus: MemoryEventBus, sent: Sent,
    configure: Configure,
) -> None:  # fmt: skip
    log = TurnLog(sessions, bus, lambda: DbSession(engine), asyncio.Event())
    short = await cost_of(10 * PIECE, sessions, db_session, ann, log, sent)
    long = await cost_of(400 * PIECE, sessions, db_session, ann, log, sent)
    for name, of_short, of_long in zip(("statements", "written", "read", "told"), short, long, strict=True):
        assert of_long <= of_short * 1.05, name
    statements, written, read, told = long
    # Each piece in a transaction of its own; the text twice in the database, as pieces and as the reply.
    assert statements * PIECE < 6
    assert written < 2.1
    assert read < 3.1
    assert told < 2.2


async def test_a_reader_that_takes_nothing_holds_one_turn_and_no_session(
    sessions: SessionService, db_session: DbSession, engine: Engine, ann: Actor, session_id: UUID, bus: MemoryEventBus,
    sent: Sent, configure: Configure,
) -> None:  # fmt: skip
    """What is loaded before it is asked for stays in memory for as long as the reader stands still."""
    await configure("user", turns="0")
    replies = [f"{number} " + "x" * 9_990 for number in range(8)]
    for reply in replies:
        turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
        await sessions.finish_turn(turn.id, db_session, state="done", tail=reply)
    log = TurnLog(sessions, bus, lambda: DbSession(engine), asyncio.Event())
    events = log.follow_session(session_id, Position(), ann)
    sent.clear()
    told = []
    while len(told) < len(replies):
        event = await anext(events)
        assert sent.read < (len(told) + 2) * 11_000  # one of them for the rules and the session
        if isinstance(event, Ended):
            told.append(event.turn.reply)
    await events.aclose()
    assert told == replies


@pytest.mark.parametrize("running", [True, False], ids=["running", "ended"])
async def test_a_long_reply_is_told_in_pieces_and_goes_on_after_any_of_them(
    sessions: SessionService, db_session: DbSession, engine: Engine, ann: Actor, session_id: UUID, bus: MemoryEventBus,
    *, running: bool,
) -> None:  # fmt: skip
    text = "".join(f"{number} 🦊 " for number in range(20_000))
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    await sessions.append([Piece(session_id, turn.id, 0, text)], db_session)
    if not running:
        await sessions.finish_turn(turn.id, db_session, state="done")
    log = TurnLog(sessions, bus, lambda: DbSession(engine), asyncio.Event())
    positions, joined = [""], ""
    while len(joined) < len(text):
        events = log.follow_session(session_id, Position.parse(positions[-1]), ann)
        async for event in events:
            if isinstance(event, Delta):
                break
        await events.aclose()
        assert isinstance(event, Delta) and event.offset == len(joined)
        assert 0 < len(event.text) <= TOLD_CHARACTERS
        joined += event.text
        positions.append(f"{turn.id}:{len(joined)}")
    assert joined == text and len(positions) > 4
    # And all of them on one stream.
    events, frames = log.follow_session(session_id, Position(), ann), []
    scripts = for_scripts(events)
    while len(frames) < len(positions):
        frames.append(await anext(scripts))
    await scripts.aclose()
    ids = [frame.partition(b"\n")[0].decode() for frame in frames[1:]]
    assert ids == [f"id: {position}" for position in positions[1:]]


@pytest.fixture
async def runner(
    sessions: SessionService, pool: ClientPool, engine: Engine, configure: Configure
) -> AsyncIterator[TurnRunner]:
    await configure("user", turns="0", sessions_created="0", concurrent_turns=0)
    runner = sessions.runner = TurnRunner(sessions, pool, lambda: DbSession(engine))
    await runner.open()
    yield runner
    await runner.close()


async def test_one_commit_a_tick_serves_all_running_turns(
    runner: TurnRunner, sessions: SessionService, db_session: DbSession, ann: Actor, sent: Sent, until: Until
) -> None:
    """Counted at the driver: of forty turns that write at once, most of each commit's turns have text in it."""
    turns = 40
    for _ in range(turns):
        await sessions.begin_turn(None, "/tokens 100000 /delay 2ms", db_session, actor=ann)
    await until(lambda: len(sent.pieces) > 10)
    sent.clear()
    await until(lambda: len(sent.pieces) >= 8)
    texts, commits = list(sent.pieces), sent.commits
    # Besides the ticks there are a lease to renew and a sweep now and then.
    assert commits <= len(texts) + 4
    assert sum(texts) > len(texts) * turns / 2


async def test_opening_and_going_on_costs_the_same_in_a_session_of_any_length(
    sessions: SessionService, db_session: DbSession, engine: Engine, ann: Actor, session_id: UUID, sent: Sent,
    configure: Configure,
) -> None:  # fmt: skip
    await configure("user", turns="0")
    costs = []
    for number in range(3):
        for _ in range(60):
            turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
            await sessions.finish_turn(turn.id, db_session, state="done", tail="Hi there")
        sent.clear()
        live = await sessions.get_session(session_id, db_session, actor=ann)
        found = await Reads(sessions).transcript(live, db_session, actor=ann)
        before = await Reads(sessions).transcript(live, db_session, actor=ann, last=found.earlier)
        assert len(found.turns) == 50
        assert len(before.turns) == (10 if number == 0 else 50)
        assert live.row.turn_count == 60 * (number + 1)
        costs.append((sent.statements, sent.characters))
    assert costs[0] == costs[1] == costs[2]


async def test_going_on_reads_no_more_of_a_long_transcript_than_may_fit(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, sent: Sent, configure: Configure,
    offer: Offer, orders: Orders,
) -> None:  # fmt: skip
    await configure("user", turns="0")
    await offer(fast={"context_tokens": 8192, "max_reply_tokens": 1024}, smart={"context_tokens": 0})
    for number in range(60):
        turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
        await sessions.finish_turn(turn.id, db_session, state="done", tail=f"{number:05}" * 1000)
    read = {}
    for model in ("fast", "smart"):
        sent.clear()
        begun = await sessions.begin_turn(session_id, "And?", db_session, actor=ann, model=model)
        read[model] = sent.read
        kept = begun.turn.depth - 1 - begun.turn.context_left_out
        said = [message.text for message in orders.started[-1].ask.messages if message.role == "assistant"]
        assert said == [f"{number:05}" * 1000 for number in range(60)][60 - len(said) :]
        assert (kept, len(said)) == ((4, 4) if model == "fast" else (60, 60))
        await sessions.finish_turn(begun.turn.id, db_session, state="done")
    # A window of some 21,000 characters: 20 replies of 5,000 are looked at, not all 60.
    assert read["fast"] < 25 * 5000 < 60 * 5000 < read["smart"]


async def test_coming_back_to_a_running_reply_reads_only_what_is_new(
    sessions: SessionService, db_session: DbSession, engine: Engine, ann: Actor, bus: MemoryEventBus, sent: Sent
) -> None:
    """A page that reconnects again and again does not cost the whole reply each time."""
    turn = (await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn
    await db_session.add_pieces(
        [Piece(turn.session_id, turn.id, start, "text ") for start in range(0, 15_000, 5)], turn.created_at
    )
    log = TurnLog(sessions, bus, lambda: DbSession(engine), asyncio.Event())
    sent.clear()
    found = await Reads(sessions).require_turn(turn.id, db_session, actor=ann)
    events = log.follow_turn(found, ann, after=Position(turn.id, 14_990))
    assert await anext(events) == Begun(found)
    assert await anext(events) == Delta(turn.id, 14_990, "text text ", f"{turn.id}:15000")
    await events.aclose()
    assert sent.read < 1000
    assert (await db_session.text_of(turn.id)).reply == "text " * 3000

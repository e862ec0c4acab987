"""Readers of live sessions: every character once, in order, from every position, whatever gets lost on the way."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import pytest

from db.db_session import DbSession, Piece, Written
from db.engine import Engine
from db.tables import Turn
from services import readers
from services.accounts import Credentials
from services.actor import Actor
from services.event_bus import BACKLOG, Hint, MemoryEventBus
from services.outcomes import LiveSession
from services.session_service import SessionService
from services.turn_log import Beat, Begun, Changed, Delta, Ended, Event, Gone, Position, TurnLog
from tests.conftest import Clock, Configure, Offer, Until

TEXT = "Zwölf Boxkämpfer 🦊 e\u0301 \u2028 jagen\nViktor"


@pytest.fixture
def draining() -> asyncio.Event:
    return asyncio.Event()


@pytest.fixture
def log(sessions: SessionService, bus: MemoryEventBus, engine: Engine, draining: asyncio.Event) -> TurnLog:
    return TurnLog(sessions, bus, lambda: DbSession(engine), draining)


class Reading:
    """A reader at work in the background."""

    def __init__(self, events: AsyncGenerator[Event, None]) -> None:
        self.seen: list[Event] = []
        self.task = asyncio.create_task(self._read(events))

    async def _read(self, events: AsyncGenerator[Event, None]) -> None:
        async for event in events:
            self.seen.append(event)

    def text(self, turn: Turn, start: int = 0) -> str:
        """The text shown of a turn; each piece must join the one before."""
        text = ""
        for event in self.seen:
            if isinstance(event, Delta) and event.turn_id == turn.id:
                assert event.offset == start + len(text)
                assert event.text
                text += event.text
        return text

    def shows(self, turn: Turn) -> bool:
        """Whether any text of a turn has come."""
        return any(isinstance(event, Delta) and event.turn_id == turn.id for event in self.seen)

    async def finish(self) -> "Reading":
        """Wait for the end of the stream."""
        async with asyncio.timeout(60):
            await self.task
        return self


Follow = Callable[[AsyncGenerator[Event, None]], Reading]


@pytest.fixture
async def follow() -> AsyncIterator[Follow]:
    """Read a stream in the background; what still reads at the end is let go."""
    readings: list[Reading] = []

    def begin(events: AsyncGenerator[Event, None]) -> Reading:
        readings.append(Reading(events))
        return readings[-1]

    yield begin
    for reading in readings:
        reading.task.cancel()
    await asyncio.gather(*(reading.task for reading in readings), return_exceptions=True)


@pytest.fixture
async def turn(sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID) -> Turn:
    """A running turn of ann's."""
    return (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn


async def written(sessions: SessionService, db_session: DbSession, turn: Turn, text: str) -> None:
    """Append text in pieces of one, two, three … characters."""
    start, size = 0, 1
    while start < len(text):
        await sessions.append([Piece(turn.session_id, turn.id, start, text[start : start + size])], db_session)
        start, size = start + size, size + 1


# ---------------------------------------------------------------- one turn


async def test_from_every_offset_of_an_ended_turn_comes_the_exact_rest(
    sessions: SessionService, db_session: DbSession, ann: Actor, turn: Turn, log: TurnLog, follow: Follow
) -> None:
    ended = await sessions.finish_turn(turn.id, db_session, state="done", tail=TEXT)
    for offset in range(len(TEXT) + 2):
        reading = await follow(log.follow_turn(ended, ann, after=Position(ended.id, offset))).finish()
        assert reading.text(turn, offset) == TEXT[offset:]
        assert isinstance(reading.seen[0], Begun) and isinstance(reading.seen[-1], Ended)
        assert reading.seen[-1].turn.reply == TEXT
        assert len(reading.seen) == (3 if offset < len(TEXT) else 2)


async def test_from_every_offset_of_a_running_turn_comes_the_exact_rest(
    sessions: SessionService, db_session: DbSession, ann: Actor, turn: Turn, log: TurnLog, follow: Follow,
    until: Until,
) -> None:  # fmt: skip
    half = len(TEXT) // 2
    await written(sessions, db_session, turn, TEXT[:half])
    readings = [follow(log.follow_turn(turn, ann, after=Position(turn.id, offset))) for offset in range(half + 1)]
    await until(lambda: all(one.text(turn, at) == TEXT[at:half] for at, one in enumerate(readings)))
    await sessions.append([Piece(turn.session_id, turn.id, half, TEXT[half:-3])], db_session)
    await sessions.finish_turn(turn.id, db_session, state="done", tail=TEXT[-3:])
    for offset, reading in enumerate(readings):
        await reading.finish()
        assert reading.text(turn, offset) == TEXT[offset:]
        assert isinstance(reading.seen[-1], Ended) and reading.seen[-1].turn.state == "done"
        assert [type(event) for event in reading.seen].count(Ended) == 1


async def test_a_running_turn_of_thousands_of_pieces_is_read_to_its_last(
    sessions: SessionService, db_session: DbSession, ann: Actor, turn: Turn, log: TurnLog, follow: Follow, until: Until
) -> None:
    text = "".join(chr(97 + number % 26) for number in range(2300))
    await sessions.append(
        [Piece(turn.session_id, turn.id, start, letter) for start, letter in enumerate(text)], db_session
    )
    for offset in (0, 1, 999, 1000, 1001, 1999, 2299):
        reading = follow(log.follow_turn(turn, ann, after=Position(turn.id, offset)))
        await until(lambda reading=reading, offset=offset: reading.text(turn, offset) == text[offset:])


async def test_readers_that_come_at_any_moment_read_the_same(
    sessions: SessionService, db_session: DbSession, ann: Actor, script: Actor, turn: Turn, log: TurnLog,
    follow: Follow,
) -> None:  # fmt: skip
    text = TEXT * 20
    readings = []
    for start in range(0, len(text), 40):
        readings.append(follow(log.follow_turn(turn, (ann, script)[start % 3 % 2])))
        await sessions.append([Piece(turn.session_id, turn.id, start, text[start : start + 40])], db_session)
    await sessions.finish_turn(turn.id, db_session, state="done")
    assert len(readings) > 15
    for reading in readings:
        assert (await reading.finish()).text(turn) == text


async def test_a_reader_that_goes_and_comes_again_has_every_character_once(
    sessions: SessionService, db_session: DbSession, ann: Actor, turn: Turn, log: TurnLog
) -> None:
    text, read = TEXT * 6, ""
    for start in range(0, len(text), 9):
        await sessions.append([Piece(turn.session_id, turn.id, start, text[start : start + 9])], db_session)
        async with closing(log.follow_turn(turn, ann, after=Position(turn.id, max(0, len(read) - 4)))) as events:
            async for event in events:
                if isinstance(event, Delta):
                    read = read[: event.offset] + event.text
                    break
    ended = await sessions.finish_turn(turn.id, db_session, state="done")
    async for event in log.follow_turn(ended, ann, after=Position(ended.id, len(read))):
        if isinstance(event, Delta):
            read = read[: event.offset] + event.text
    assert read == text


@asynccontextmanager
async def closing(events: AsyncGenerator[Event, None]) -> AsyncIterator[AsyncGenerator[Event, None]]:
    try:
        async with asyncio.timeout(60):
            yield events
    finally:
        await events.aclose()


@pytest.mark.parametrize("end", ["stopped", "failed", "interrupted"])
async def test_every_kind_of_end_is_told(
    sessions: SessionService, db_session: DbSession, ann: Actor, turn: Turn, log: TurnLog, follow: Follow, end: str
) -> None:
    await sessions.append([Piece(turn.session_id, turn.id, 0, TEXT)], db_session)
    reading = follow(log.follow_turn(turn, ann))
    if end == "stopped":
        await sessions.stop_turn(turn.id, db_session, actor=ann)
    else:
        await sessions.finish_turn(turn.id, db_session, state=end, error=("x", "It failed."))  # type: ignore[arg-type]
    await reading.finish()
    assert reading.text(turn) == TEXT
    assert isinstance(reading.seen[-1], Ended) and reading.seen[-1].turn.state == end


async def test_a_turns_reader_sees_no_other_turn(
    sessions: SessionService, db_session: DbSession, ann: Actor, turn: Turn, log: TurnLog, follow: Follow
) -> None:
    ended = await sessions.finish_turn(turn.id, db_session, state="done", tail="One")
    second = (await sessions.begin_turn(turn.session_id, "Two", db_session, actor=ann)).turn
    await sessions.append([Piece(turn.session_id, second.id, 0, "Two")], db_session)
    reading = await follow(log.follow_turn(ended, ann)).finish()
    assert {getattr(event, "turn_id", turn.id) for event in reading.seen} == {turn.id}
    assert reading.text(turn) == "One"


async def test_I13_nothing_is_shown_before_its_commit(
    sessions: SessionService, db_session: DbSession, ann: Actor, turn: Turn, log: TurnLog, follow: Follow, until: Until
) -> None:
    reading = follow(log.follow_turn(turn, ann))
    await until(lambda: reading.seen)
    async with db_session.transaction():
        await sessions.append([Piece(turn.session_id, turn.id, 0, TEXT)], db_session)
        late = follow(log.follow_turn(turn, ann))
        await asyncio.sleep(0.05)
        assert reading.text(turn) == late.text(turn) == ""
    await until(lambda: reading.text(turn) == late.text(turn) == TEXT)


# ---------------------------------------------------------------- a session


async def test_a_session_is_followed_turn_by_turn(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, log: TurnLog, follow: Follow,
    until: Until,
) -> None:  # fmt: skip
    reading = follow(log.follow_session(session_id, Position(), ann))
    turns = []
    for number in range(3):
        turn = (await sessions.begin_turn(session_id, f"Prompt {number}", db_session, actor=ann)).turn
        await written(sessions, db_session, turn, TEXT)
        await sessions.finish_turn(turn.id, db_session, state="done", tail=str(number))
        turns.append(turn)
    await until(lambda: sum(isinstance(event, Ended) for event in reading.seen) == 3)
    told = [(type(event), event.turn.id) for event in reading.seen if isinstance(event, Begun | Ended)]
    assert told == [(kind, turn.id) for turn in turns for kind in (Begun, Ended)]
    for number, turn in enumerate(turns):
        assert reading.text(turn) == TEXT + str(number)


async def test_a_reader_that_was_away_for_several_turns_is_shown_them_all(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, log: TurnLog, follow: Follow,
    until: Until,
) -> None:  # fmt: skip
    turns = []
    for number in range(4):
        turn = (await sessions.begin_turn(session_id, f"Prompt {number}", db_session, actor=ann)).turn
        turns.append(turn)
        if number < 3:
            await sessions.finish_turn(turn.id, db_session, state="done", tail=TEXT)
    await sessions.append([Piece(session_id, turns[3].id, 0, TEXT[:7])], db_session)
    for place, offset, ended, parts in (
        (0, 5, False, [TEXT[5:], TEXT, TEXT, TEXT[:7]]),
        (1, len(TEXT), False, [None, "", TEXT, TEXT[:7]]),
        (1, 0, True, [None, None, TEXT, TEXT[:7]]),
        (3, 4, False, [None, None, None, TEXT[4:7]]),
        (None, 0, False, [TEXT, TEXT, TEXT, TEXT[:7]]),
    ):
        position = Position() if place is None else Position(turns[place].id, offset, ended=ended)
        reading = follow(log.follow_session(session_id, position, ann))
        await until(lambda reading=reading: reading.shows(turns[3]))
        for number, (turn, part) in enumerate(zip(turns, parts, strict=True)):
            assert reading.text(turn, offset if number == place else 0) == (part or "")
        first = parts.index(next(part for part in parts if part is not None))
        over = [event.turn.id for event in reading.seen if isinstance(event, Ended)]
        assert over == [turn.id for turn in turns[first:3]]


async def test_a_reader_that_comes_back_after_the_end_is_shown_the_rest_and_the_end(
    sessions: SessionService, db_session: DbSession, ann: Actor, turn: Turn, log: TurnLog, follow: Follow, until: Until
) -> None:
    await sessions.append([Piece(turn.session_id, turn.id, 0, TEXT[:9])], db_session)
    await sessions.finish_turn(turn.id, db_session, state="done", tail=TEXT[9:])
    reading = follow(log.follow_session(turn.session_id, Position.parse(f"{turn.id}:4"), ann))
    await until(lambda: len(reading.seen) == 2)
    assert reading.text(turn, 4) == TEXT[4:]
    assert isinstance(reading.seen[1], Ended)
    silent = follow(log.follow_session(turn.session_id, Position.parse(f"{turn.id}:end"), ann))
    second = (await sessions.begin_turn(turn.session_id, "Two", db_session, actor=ann)).turn
    await until(lambda: any(isinstance(event, Begun) for event in silent.seen))
    assert [event.turn.id for event in silent.seen if isinstance(event, Begun | Ended)] == [second.id]
    assert silent.text(turn) == ""


ABSURD = (
    "", ":", "x", "x:1", "{turn}", "{turn}:", "{turn}:-5", "{turn}:1e3", "{turn}:99999999999", "{turn}:2147483647",
    "{turn}:2147483648", "{turn}:3:", "{turn}:3:-5", "{turn}:3:x", "{turn}:3:1:1",
    "{turn}:" + "9" * 5000, "{other}:3", "{other}:end", "{turn}:end:1", "{turn}:ende",
    "\0:\ud800",
)  # fmt: skip


async def test_absurd_positions_lose_nothing_that_comes_later(
    sessions: SessionService, db_session: DbSession, ann: Actor, log: TurnLog, follow: Follow, until: Until,
    configure: Configure,
) -> None:  # fmt: skip
    await configure("user", turns="0", sessions_created="0")
    for text in ABSURD:
        turn = (await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn
        position = Position.parse(text.format(turn=turn.id, other=uuid4()))
        offset = position.offset if position.turn_id == turn.id else 0
        assert 0 <= position.offset < 2**31
        await sessions.append([Piece(turn.session_id, turn.id, 0, TEXT[:9])], db_session)
        reading = follow(log.follow_session(turn.session_id, position, ann))
        await sessions.append([Piece(turn.session_id, turn.id, 9, TEXT[9:])], db_session)
        await sessions.finish_turn(turn.id, db_session, state="done")
        await until(lambda reading=reading: any(isinstance(event, Ended) for event in reading.seen))
        assert reading.text(turn, offset) == TEXT[offset:]
        (end,) = [event for event in reading.seen if isinstance(event, Ended)]
        assert end.turn.reply == TEXT


def test_a_position_is_written_as_it_is_read() -> None:
    turn_id = uuid4()
    for text in (f"{turn_id}:0", f"{turn_id}:17", f"{turn_id}:17:4", f"{turn_id}:0:4", f"{turn_id}:end", ""):
        assert str(Position.parse(text)) == text


async def test_a_page_goes_on_where_its_transcript_stops(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID
) -> None:
    assert Position.after([], Written()) == Position()
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    assert Position.after([turn], Written("Once", "Let me see")) == Position(turn.id, 4, 10)
    ended = await sessions.finish_turn(turn.id, db_session, state="done", tail="Hi")
    assert Position.after([ended], Written()) == Position(turn.id, ended=True)


async def test_S12_a_switch_a_title_and_a_lock_are_told(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, session_id: UUID, log: TurnLog,
    follow: Follow, until: Until,
) -> None:  # fmt: skip
    reading = follow(log.follow_session(session_id, Position(version=0), ann))

    def told() -> list[LiveSession]:
        return [event.session for event in reading.seen if isinstance(event, Changed)]

    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    await until(lambda: len(told()) == 1)
    await sessions.rename_session(session_id, "Rome", db_session, actor=ann)
    await until(lambda: len(told()) == 2)
    await sessions.switch_model(session_id, "smart", db_session, actor=ada, reason="audit", lock=True)
    await until(lambda: len(told()) == 3)
    assert [(one.current.id, one.row.title, one.row.locked) for one in told()] == [
        ("smart", "", False),
        ("smart", "Rome", False),
        ("smart", "Rome", True),
    ]


async def test_S12_a_page_that_missed_a_change_is_told_when_it_comes_back(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, log: TurnLog, follow: Follow,
    until: Until,
) -> None:  # fmt: skip
    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    reading = follow(log.follow_session(session_id, Position(version=0), ann))
    await until(lambda: reading.seen)
    (changed,) = reading.seen
    assert isinstance(changed, Changed) and changed.session.current.id == "smart"


async def test_O1_a_foreign_or_absent_session_is_gone_at_once(
    sessions: SessionService, bob: Actor, turn: Turn, log: TurnLog, follow: Follow
) -> None:
    for id in (turn.session_id, uuid4()):
        reading = await follow(log.follow_session(id, Position(turn.id, 0), bob)).finish()
        assert reading.seen == [Gone()]


async def test_a_deleted_session_is_gone(
    sessions: SessionService, db_session: DbSession, ann: Actor, turn: Turn, log: TurnLog, follow: Follow, until: Until
) -> None:
    readings = [
        follow(log.follow_session(turn.session_id, Position(), ann)),
        follow(log.follow_turn(turn, ann)),
    ]
    await until(lambda: all(reading.seen for reading in readings))
    await sessions.delete_session(turn.session_id, db_session, actor=ann)
    of_session, of_turn = [(await reading.finish()).seen[-1] for reading in readings]
    # What was being written was stopped first, and that is the end of its stream.
    assert isinstance(of_session, Gone)
    assert isinstance(of_turn, Gone) or (isinstance(of_turn, Ended) and of_turn.turn.state == "stopped")


# ---------------------------------------------------------------- hints, heartbeats, the end


class LossyBus(MemoryEventBus):
    """Loses hints of some kinds, as a bus that was cut off does."""

    def __init__(self, *lost: str) -> None:
        super().__init__()
        self.lost = lost

    def publish(self, hint: Hint) -> None:
        if hint.kind not in self.lost:
            super().publish(hint)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat every 30 ms, and a question whether the reader still may every 10."""
    monkeypatch.setattr(readers, "HEARTBEAT_SECONDS", 0.03)
    monkeypatch.setattr(readers, "ASK_SECONDS", 0.01)
    monkeypatch.setattr(readers, "TICK_SECONDS", 0.005)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "lost", [("text",), ("turn_begun", "turn_ended"), ("session", "text", "turn_begun", "turn_ended")]
)
async def test_lost_hints_lose_nothing(
    sessions: SessionService, db_session: DbSession, engine: Engine, ann: Actor, session_id: UUID, follow: Follow,
    until: Until, draining: asyncio.Event, lost: tuple[str, ...],
) -> None:  # fmt: skip
    bus = sessions.bus = LossyBus(*lost)
    log = TurnLog(sessions, bus, lambda: DbSession(engine), draining)
    reading = follow(log.follow_session(session_id, Position(version=0), ann))
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    following = follow(log.follow_turn(turn, ann, after=Position(turn.id, 3)))
    for start in range(0, len(TEXT), 5):
        await sessions.append([Piece(session_id, turn.id, start, TEXT[start : start + 5])], db_session)
        await asyncio.sleep(0.01)
    await sessions.finish_turn(turn.id, db_session, state="done")
    await until(lambda: any(isinstance(event, Ended) for event in reading.seen))
    assert reading.text(turn) == TEXT
    assert any(isinstance(event, Changed) for event in reading.seen)
    assert (await following.finish()).text(turn, 3) == TEXT[3:]


async def test_a_hint_lost_in_the_middle_is_made_good_by_the_next(
    sessions: SessionService, db_session: DbSession, engine: Engine, ann: Actor, turn: Turn, follow: Follow,
    until: Until, draining: asyncio.Event,
) -> None:  # fmt: skip
    bus = sessions.bus = LossyBus()
    log = TurnLog(sessions, bus, lambda: DbSession(engine), draining)
    reading = follow(log.follow_session(turn.session_id, Position(), ann))
    await until(lambda: reading.seen)
    await sessions.append([Piece(turn.session_id, turn.id, 0, TEXT[:4])], db_session)
    bus.lost = ("text",)
    await sessions.append([Piece(turn.session_id, turn.id, 4, TEXT[4:9])], db_session)
    bus.lost = ()
    await sessions.append([Piece(turn.session_id, turn.id, 9, TEXT[9:])], db_session)
    await until(lambda: reading.text(turn) == TEXT)


async def test_hints_that_come_twice_or_late_are_shown_once(
    sessions: SessionService, db_session: DbSession, ann: Actor, turn: Turn, log: TurnLog, bus: MemoryEventBus,
    follow: Follow, until: Until, published: list[Hint],
) -> None:  # fmt: skip
    reading = follow(log.follow_session(turn.session_id, Position(), ann))
    await written(sessions, db_session, turn, TEXT)
    await until(lambda: reading.text(turn) == TEXT)
    for hint in list(published):
        bus.publish(hint)
    await sessions.finish_turn(turn.id, db_session, state="done", tail="!")
    for hint in list(published):
        bus.publish(hint)
    await until(lambda: isinstance(reading.seen[-1], Ended))
    assert reading.text(turn) == TEXT + "!"
    assert [type(event) for event in reading.seen].count(Ended) == 1


async def test_a_slow_reader_that_lags_behind_the_backlog_loses_nothing(
    sessions: SessionService, db_session: DbSession, ann: Actor, turn: Turn, log: TurnLog
) -> None:
    events = log.follow_turn(turn, ann)
    read = ""
    async with closing(events):
        assert isinstance(await anext(events), Begun)
        await sessions.append([Piece(turn.session_id, turn.id, 0, "0 ")], db_session)
        first = await anext(events)
        assert isinstance(first, Delta)
        read += first.text
        async with db_session.transaction():
            start = 2
            for number in range(1, BACKLOG + 60):
                text = f"{number} "
                await sessions.append([Piece(turn.session_id, turn.id, start, text)], db_session)
                start += len(text)
        await sessions.finish_turn(turn.id, db_session, state="done", tail="end")
        async for event in events:
            if isinstance(event, Delta):
                assert event.offset == len(read)
                read += event.text
    assert read == "".join(f"{number} " for number in range(BACKLOG + 60)) + "end"


@pytest.mark.usefixtures("impatient")
async def test_a_quiet_session_beats_with_its_version(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, log: TurnLog, follow: Follow,
    until: Until,
) -> None:  # fmt: skip
    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    reading = follow(log.follow_session(session_id, Position(), ann))
    await until(lambda: len(reading.seen) >= 3)
    assert set(reading.seen) == {Beat(1)}


@pytest.mark.usefixtures("impatient")
async def test_S12_a_change_whose_hint_was_lost_is_told_at_the_heartbeat(
    sessions: SessionService, db_session: DbSession, engine: Engine, ann: Actor, session_id: UUID, follow: Follow,
    until: Until, draining: asyncio.Event,
) -> None:  # fmt: skip
    bus = sessions.bus = LossyBus("session")
    log = TurnLog(sessions, bus, lambda: DbSession(engine), draining)
    reading = follow(log.follow_session(session_id, Position(), ann))
    await until(lambda: Beat(0) in reading.seen)
    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    await until(lambda: Beat(1) in reading.seen)
    assert [event.session.current.id for event in reading.seen if isinstance(event, Changed)] == ["smart"]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("busy", [False, True])
async def test_O4_a_stream_ends_when_its_reader_loses_the_right_to_it(
    sessions: SessionService, db_session: DbSession, engine: Engine, ann: Actor, turn: Turn, bus: MemoryEventBus,
    draining: asyncio.Event, follow: Follow, until: Until, busy: bool,
) -> None:  # fmt: skip
    may, proof = True, Credentials("tk_of_ann", "", "", "", "")

    async def still(asked: Sequence[tuple[Credentials, Actor]], _: DbSession) -> list[bool]:
        assert set(asked) == {(proof, ann)}
        return [may for _ in asked]

    log = TurnLog(sessions, bus, lambda: DbSession(engine), draining, still)
    readings = [
        follow(log.follow_session(turn.session_id, Position(), ann, proof)),
        follow(log.follow_turn(turn, ann, proof)),
    ]
    start = 0

    async def seen() -> bool:
        nonlocal start
        if busy:
            await sessions.append([Piece(turn.session_id, turn.id, start, "more ")], db_session)
            start += 5
        return all(reading.task.done() for reading in readings)

    for _ in range(10):
        assert not await seen()
        await asyncio.sleep(0.005)
    may = False
    await until(seen)
    for reading in readings:
        assert reading.seen[-1] == Gone()
        assert reading.seen.count(Gone()) == 1


async def test_draining_ends_every_stream(
    sessions: SessionService, db_session: DbSession, ann: Actor, turn: Turn, log: TurnLog, follow: Follow,
    until: Until, draining: asyncio.Event, bus: MemoryEventBus,
) -> None:  # fmt: skip
    await sessions.append([Piece(turn.session_id, turn.id, 0, TEXT)], db_session)
    readings = [
        follow(log.follow_session(turn.session_id, Position(), ann)),
        follow(log.follow_turn(turn, ann)),
    ]
    await until(lambda: all(reading.text(turn) == TEXT for reading in readings))
    draining.set()
    for reading in readings:
        await reading.finish()
        assert not any(isinstance(event, Ended) for event in reading.seen)
    late = await follow(log.follow_session(turn.session_id, Position(turn.id, 3), ann)).finish()
    assert late.text(turn, 3) == TEXT[3:]


async def test_a_reader_that_leaves_is_forgotten(
    sessions: SessionService, ann: Actor, turn: Turn, log: TurnLog, bus: MemoryEventBus, until: Until
) -> None:
    before = {task for task in asyncio.all_tasks() if not task.done()}
    for events in (log.follow_session(turn.session_id, Position(), ann), log.follow_turn(turn, ann)):
        async with closing(events):
            assert isinstance(await anext(events), Begun)
    reading = Reading(log.follow_session(turn.session_id, Position(), ann))
    await until(lambda: reading.seen)
    reading.task.cancel()
    await asyncio.gather(reading.task, return_exceptions=True)
    assert bus._subscriptions == {}
    # The pool takes its connection back in a task of its own.
    await until(lambda: {task for task in asyncio.all_tasks() if not task.done()} <= before)


async def test_two_hundred_readers_of_one_turn_read_the_same(
    sessions: SessionService, db_session: DbSession, ann: Actor, turn: Turn, log: TurnLog, follow: Follow,
    configure: Configure,
) -> None:  # fmt: skip
    readings = [follow(log.follow_turn(turn, ann)) for _ in range(200)]
    text = TEXT * 3
    for start in range(0, len(text), 25):
        await sessions.append([Piece(turn.session_id, turn.id, start, text[start : start + 25])], db_session)
    await sessions.finish_turn(turn.id, db_session, state="done")
    for reading in readings:
        assert (await reading.finish()).text(turn) == text


@pytest.mark.usefixtures("impatient")
async def test_S12_what_time_and_the_rules_change_is_told_at_the_heartbeat(
    sessions: SessionService, ann: Actor, session_id: UUID, log: TurnLog, follow: Follow, until: Until, offer: Offer,
    clock: Clock,
) -> None:  # fmt: skip
    """No row of the session changes when its model is switched off, or when it expires; an open page hears of both."""
    reading = follow(log.follow_session(session_id, Position(), ann))
    await until(lambda: Beat(0) in reading.seen)

    def told() -> list[tuple[str | None, str]]:
        return [(one.session.current.id, one.session.state) for one in reading.seen if isinstance(one, Changed)]

    await offer(default="smart", fast={"state": "disabled"})
    await until(lambda: ("smart", "active") in told())
    clock.pass_(days=31)
    await until(lambda: ("smart", "expired") in told())
    assert told() == [("smart", "active"), ("smart", "expired")]

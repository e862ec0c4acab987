"""Reasoning apart from the reply, on both databases: stored as safely, told as exactly, and never a part of it."""

import asyncio
from uuid import UUID

import pytest

from db.db_session import DbSession, Piece, Written
from db.engine import Engine
from db.tables import Turn
from services.actor import Actor
from services.clients import Usage
from services.event_bus import BACKLOG, MemoryEventBus
from services.session_service import SessionService
from services.text import tokens_of
from services.turn_log import Delta, Ended, Event, Position, Thought, TurnLog
from tests.conftest import Clock, Offer, Orders

REASONING, REPLY = "Zwölf 🦊 <b>?\nHm", "Viktor\u2028 jagt"


@pytest.fixture
async def turn(sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID) -> Turn:
    return (await sessions.begin_turn(session_id, "Who?", db_session, actor=ann)).turn


@pytest.fixture
def log(sessions: SessionService, bus: MemoryEventBus, engine: Engine) -> TurnLog:
    return TurnLog(sessions, bus, lambda: DbSession(engine), asyncio.Event())


def pieces(turn: Turn, text: str, size: int = 3, *, reasoning: bool = False) -> list[Piece]:
    """A text in parts."""
    return [
        Piece(turn.session_id, turn.id, start, text[start : start + size], reasoning)
        for start in range(0, len(text), size)
    ]


def told(events: list[Event], offset: int = 0, thought: int = 0) -> Written:
    """What a reader has read from a place on; each piece joins the one before and says where it ends."""
    at, texts = {Delta: offset, Thought: thought}, {Delta: "", Thought: ""}
    for event in events:
        if isinstance(event, Delta | Thought):
            assert event.offset == at[type(event)]
            at[type(event)] += len(event.text)
            texts[type(event)] += event.text
            place = Position.parse(event.place)
            assert (place.offset, place.thought) == (at[Delta], at[Thought])
    return Written(texts[Delta], texts[Thought])


async def test_reasoning_is_stored_beside_the_reply_and_is_no_part_of_it(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, turn: Turn, orders: Orders,
    clock: Clock,
) -> None:  # fmt: skip
    await sessions.append(pieces(turn, REASONING, reasoning=True), db_session)
    thought_at = clock()
    clock.pass_(seconds=5)
    await sessions.append(pieces(turn, REPLY[:6]), db_session)
    replied_at = clock()
    assert await db_session.text_of(turn.id) == (REPLY[:6], REASONING)
    ended = await sessions.finish_turn(
        turn.id, db_session, state="done", tail=REPLY[6:], start=6, thought="…", thought_start=len(REASONING)
    )
    assert (ended.reply, ended.reasoning) == (REPLY, REASONING + "…")
    assert (ended.first_text_at, ended.first_reply_at) == (thought_at, replied_at)
    assert await db_session.text_of(turn.id) == ("", "")
    # An estimate counts both, as providers do; the next turn is told the reply alone.
    assert (ended.estimated, ended.reply_tokens) == (True, tokens_of(REPLY) + tokens_of(REASONING + "…"))
    await sessions.begin_turn(session_id, "And?", db_session, actor=ann)
    assert [message.text for message in orders.started[-1].ask.messages] == ["Who?", REPLY, "And?"]


async def test_a_turn_that_only_reasoned_is_no_context(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, turn: Turn, orders: Orders
) -> None:
    await sessions.append(pieces(turn, REASONING, reasoning=True), db_session)
    stopped = await sessions.stop_turn(turn.id, db_session, actor=ann)
    assert (stopped.reply, stopped.reasoning, stopped.first_reply_at) == ("", REASONING, None)
    assert stopped.first_text_at is not None
    await sessions.begin_turn(session_id, "And?", db_session, actor=ann)
    assert [message.text for message in orders.started[-1].ask.messages] == ["And?"]


async def test_G5_what_a_dead_worker_reasoned_is_kept(
    sessions: SessionService, db_session: DbSession, ann: Actor, turn: Turn, clock: Clock
) -> None:
    await sessions.append(pieces(turn, REASONING, reasoning=True), db_session)
    clock.pass_(seconds=31)
    await sessions.sweep(db_session)
    found = await db_session.find_turn(turn.id)
    assert found is not None
    assert (found.state, found.reasoning, found.reply) == ("interrupted", REASONING, "")


async def test_text_whose_commit_was_not_acknowledged_is_there_once(
    sessions: SessionService, db_session: DbSession, turn: Turn
) -> None:
    for start, text in ((0, "Let "), (4, "me "), (4, "me see")):
        await sessions.append([Piece(turn.session_id, turn.id, start, text, reasoning=True)], db_session)
    ended = await sessions.finish_turn(turn.id, db_session, state="done", thought="me see it", thought_start=4)
    assert ended.reasoning == "Let me see it"


async def test_L3_the_providers_count_holds_for_both(
    sessions: SessionService, db_session: DbSession, turn: Turn
) -> None:
    ended = await sessions.finish_turn(turn.id, db_session, state="done", tail="a", thought="b", usage=Usage(3, 90))
    assert (ended.reply_tokens, ended.estimated) == (90, False)


async def test_43_reading_goes_on_at_any_place_in_either(
    sessions: SessionService, db_session: DbSession, ann: Actor, turn: Turn, log: TurnLog
) -> None:
    """While it runs, and after its end; the number of the reasoning may be missing."""
    await sessions.append([*pieces(turn, REASONING, reasoning=True), *pieces(turn, REPLY)], db_session)
    places = [(offset, thought) for offset in range(len(REPLY) + 1) for thought in (0, 1, 7, len(REASONING))]
    for running in (True, False):
        for offset, thought in places:
            number = f":{thought}" if thought else ""
            place = Position.parse(f"{turn.id}:{offset}{number}")
            seen: list[Event] = []
            async for event in log.follow_turn(turn, ann, after=place):
                seen.append(event)
                if running and told(seen, offset, thought) == (REPLY[offset:], REASONING[thought:]):
                    break
            assert told(seen, offset, thought) == (REPLY[offset:], REASONING[thought:])
            kinds = [type(event) for event in seen if isinstance(event, Delta | Thought)]
            assert kinds == sorted(kinds, key=lambda kind: kind is Delta), "what is told again is reasoning first"
        if running:
            turn = await sessions.finish_turn(turn.id, db_session, state="done")
    assert isinstance(seen[-1], Ended)


async def test_hints_that_were_lost_lose_no_thought(
    sessions: SessionService, db_session: DbSession, ann: Actor, turn: Turn, log: TurnLog
) -> None:
    """So many that a reader who is slow misses how the reasoning began."""
    events = log.follow_turn(turn, ann)
    seen = [await anext(events)]
    first = asyncio.create_task(anext(events))
    await asyncio.sleep(0)
    thoughts = "".join(chr(97 + number % 26) for number in range(BACKLOG + 50))
    await sessions.append(pieces(turn, thoughts, 1, reasoning=True), db_session)
    await sessions.append(pieces(turn, REPLY, 1), db_session)
    await sessions.finish_turn(turn.id, db_session, state="done")
    seen += [await first, *[event async for event in events]]
    assert told(seen) == (REPLY, thoughts)


async def test_why_a_turn_has_its_model_is_kept_with_it(
    sessions: SessionService, db_session: DbSession, ann: Actor, offer: Offer
) -> None:
    async def why(session_id: UUID | None, model: str | None = None, beside: Turn | None = None) -> tuple[str, ...]:
        begun = (
            await sessions.retry_turn(beside.id, db_session, actor=ann, model=model)
            if beside is not None
            else await sessions.begin_turn(session_id, "Hello", db_session, actor=ann, model=model)
        )
        last.append(await sessions.finish_turn(begun.turn.id, db_session, state="done", tail="Hi"))
        return last[-1].model, last[-1].model_source, last[-1].model_reason

    last: list[Turn] = []
    assert await why(None) == ("fast", "default", "The default here.")
    id = last[-1].session_id
    kept = "Default model."
    assert await why(id) == ("fast", "session", kept)
    assert await why(id, "smart") == ("smart", "asked", "Asked for with this message.")
    assert await why(id) == ("smart", "session", "Chosen by ann.")
    assert await why(id, "fast", beside=last[-1]) == ("fast", "asked", "Asked for with this message.")
    assert await why(id) == ("smart", "session", "Chosen by ann.")
    await offer(smart={"state": "retired", "replacement": "fast"}, other={"label": "Other"})
    assert await why(id) == ("fast", "replacement", "Replaces Smart, which is retired.")
    await sessions.switch_model(id, "other", db_session, actor=ann)
    await offer(other={"state": "disabled"})
    assert await why(id) == ("fast", "fallback", "Other is disabled. Fast stands in.")
    # What was, stays as it was told then.
    found = await db_session.find_turn(last[0].id)
    assert found is not None and found.model_reason == "The default here."

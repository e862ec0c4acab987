"""retry_turn, edit_turn and branches: rule G9."""

from typing import Any
from uuid import UUID, uuid4

import pytest

from db.db_session import DbSession, Piece
from db.tables import Turn
from services.actor import Actor
from services.outcomes import BegunTurn
from services.reads import Reads
from services.session_service import SessionService
from tests.conftest import AtOnce, Chain, Clock, Configure, Everything, JournalRows, Offer, Orders, Refused


class Beside:
    """Retry and edit, called alike."""

    def __init__(self, verb: str, sessions: SessionService, db_session: DbSession) -> None:
        self.verb, self.sessions, self.db_session = verb, sessions, db_session

    async def __call__(self, turn_id: UUID, db_session: DbSession | None = None, **asked: Any) -> BegunTurn:
        if self.verb == "retry":
            return await self.sessions.retry_turn(turn_id, db_session or self.db_session, **asked)
        return await self.sessions.edit_turn(turn_id, "Edited", db_session or self.db_session, **asked)


@pytest.fixture(params=["retry", "edit"])
def beside(request: pytest.FixtureRequest, sessions: SessionService, db_session: DbSession) -> Beside:
    return Beside(request.param, sessions, db_session)


@pytest.fixture
async def turns(sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID) -> list[Turn]:
    """Two ended turns of ann's, on `fast`."""
    made = []
    for prompt in ("One", "Two"):
        turn = (await sessions.begin_turn(session_id, prompt, db_session, actor=ann)).turn
        made.append(await sessions.finish_turn(turn.id, db_session, state="done", tail=prompt.upper()))
    return made


async def test_G9_it_makes_a_sibling_and_keeps_the_first(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, turns: list[Turn], beside: Beside,
    orders: Orders, journal: JournalRows,
) -> None:  # fmt: skip
    begun = await beside(turns[1].id, actor=ann)
    prompt = "Two" if beside.verb == "retry" else "Edited"
    assert (begun.turn.prompt, begun.turn.parent_id, begun.turn.depth) == (prompt, turns[0].id, 2)
    assert (begun.turn.state, begun.turn.model, begun.turn.session_id) == ("running", "fast", session_id)
    assert (begun.session.row.head_id, begun.session.row.turn_count) == (begun.turn.id, 3)
    # The model is shown what came before, and not the turn it stands beside.
    assert [message.text for message in orders.started[-1].ask.messages] == ["One", "ONE", prompt]
    assert (await journal("turn_begun"))[-1].turn_id == begun.turn.id
    await sessions.finish_turn(begun.turn.id, db_session, state="done", tail="Better")
    kept = await db_session.find_turn(turns[1].id)
    assert kept is not None and kept.to_dict() == turns[1].to_dict()
    live = await sessions.get_session(session_id, db_session, actor=ann)
    shown = (await Reads(sessions).transcript(live, db_session, actor=ann)).turns
    assert [turn.id for turn in shown] == [turns[0].id, begun.turn.id]
    after = (await sessions.begin_turn(session_id, "Three", db_session, actor=ann)).turn
    assert after.parent_id == begun.turn.id
    assert [message.text for message in orders.started[-1].ask.messages] == ["One", "ONE", prompt, "Better", "Three"]


async def test_G9_the_first_turn_can_be_repeated_too(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, turns: list[Turn], beside: Beside,
    orders: Orders,
) -> None:  # fmt: skip
    begun = await beside(turns[0].id, actor=ann)
    assert (begun.turn.parent_id, begun.turn.depth, begun.session.row.head_id) == (None, 1, begun.turn.id)
    assert len(orders.started[-1].ask.messages) == 1
    everyone = await Reads(sessions).siblings(begun.session, db_session, actor=ann)
    assert [turn.id for turn in everyone] == [turns[0].id, turns[1].id, begun.turn.id]


async def test_G9_another_model_is_recorded_on_the_turn_and_leaves_last_model_alone(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, turns: list[Turn], beside: Beside,
    orders: Orders, chain: Chain, journal: JournalRows,
) -> None:  # fmt: skip
    before = await db_session.find_session(session_id, ann.id)
    begun = await beside(turns[1].id, actor=ann, model="small")
    after = await db_session.find_session(session_id, ann.id)
    assert before is not None and after is not None
    assert (begun.turn.model, (await journal("turn_begun"))[-1].to_value) == ("small", "small")
    assert (after.last_model, after.version) == (before.last_model, before.version)
    assert await chain(session_id) == ["fast"]
    assert orders.started[-1].ask.max_reply_tokens == 8
    await sessions.finish_turn(begun.turn.id, db_session, state="done")
    assert (await sessions.begin_turn(session_id, "Three", db_session, actor=ann)).turn.model == "fast"


async def test_G9_another_model_is_checked_like_a_switch(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, session_id: UUID, turns: list[Turn],
    beside: Beside, configure: Configure, refused: Refused,
) -> None:  # fmt: skip
    for model, code in (
        ("no-such-model", "model_unknown"),
        ("hidden", "model_unknown"),
        ("off", "model_disabled"),
        ("old", "model_retired"),
        ("far", "model_unavailable"),
    ):
        async with refused(code):
            await beside(turns[1].id, actor=ann, model=model)
    await configure("user", switches="1/h", turns="0")
    for model, again in (("quick", False), ("smart", False), ("smart", True)):
        if again:
            async with refused("rate_limited") as told:
                await beside(turns[1].id, actor=ann, model=model)
            assert told.facts["limit"] == "switches"
        else:
            # An alias of the session's own model takes no place; another model takes one.
            begun = await beside(turns[1].id, actor=ann, model=model)
            await sessions.finish_turn(begun.turn.id, db_session, state="done")
    await sessions.switch_model(session_id, "fast", db_session, actor=ada, reason="audit", lock=True)
    async with refused("model_locked"):
        await beside(turns[1].id, actor=ann, model="smart")
    assert (await beside(turns[1].id, actor=ann)).turn.model == "fast"


async def test_G9_without_a_model_the_current_one_answers_and_a_stand_in_is_stored(
    ann: Actor, session_id: UUID, turns: list[Turn], beside: Beside, offer: Offer, chain: Chain
) -> None:
    await offer(default="smart", fast={"state": "disabled"})
    assert (await beside(turns[1].id, actor=ann)).turn.model == "smart"
    assert await chain(session_id) == ["fast", "smart"]


async def test_G9_it_is_refused_like_any_turn(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, ada: Actor, session_id: UUID,
    turns: list[Turn], beside: Beside, clock: Clock, refused: Refused,
) -> None:  # fmt: skip
    for turn_id in (turns[1].id, uuid4()):
        async with refused("session_not_found") as told:
            await beside(turn_id, actor=bob)
        assert (str(told.refusal), told.facts) == ("There is no such turn.", {})
    async with refused("forbidden"):
        await beside(turns[1].id, actor=ada)
    running = (await sessions.begin_turn(session_id, "Three", db_session, actor=ann)).turn
    for turn in (turns[0], running):
        async with refused("session_busy") as told:
            await beside(turn.id, actor=ann)
        assert told.facts == {"running_turn": running.id}
    await sessions.stop_turn(running.id, db_session, actor=ann)
    clock.pass_(days=30)
    async with refused("session_expired"):
        await beside(turns[1].id, actor=ann)
    await sessions.close_session(session_id, db_session, actor=ann)
    async with refused("session_closed"):
        await beside(turns[1].id, actor=ann)


async def test_G9_a_turn_that_went_wrong_can_be_tried_again(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, clock: Clock, orders: Orders
) -> None:
    turn = (await sessions.begin_turn(session_id, "One", db_session, actor=ann)).turn
    await sessions.append([Piece(session_id, turn.id, 0, "half")], db_session)
    clock.pass_(seconds=30)
    again = (await sessions.retry_turn(turn.id, db_session, actor=ann)).turn
    lost = await db_session.find_turn(turn.id)
    assert lost is not None and (lost.state, lost.reply) == ("interrupted", "half")
    assert (again.parent_id, [message.text for message in orders.started[-1].ask.messages]) == (None, ["One"])


async def test_G9_an_edited_prompt_is_checked_as_any(
    sessions: SessionService, db_session: DbSession, ann: Actor, turns: list[Turn], refused: Refused
) -> None:
    for prompt, code in (("", "invalid_request"), ("a\0b", "invalid_request"), ("x" * 100_001, "prompt_too_long")):
        async with refused(code):
            await sessions.edit_turn(turns[1].id, prompt, db_session, actor=ann)


async def test_G9_a_prompt_may_follow_an_earlier_turn(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, session_id: UUID, turns: list[Turn],
    orders: Orders, refused: Refused,
) -> None:  # fmt: skip
    begun = await sessions.begin_turn(session_id, "Another two", db_session, actor=ann, parent_id=turns[0].id)
    assert (begun.turn.parent_id, begun.turn.depth) == (turns[0].id, 2)
    assert [message.text for message in orders.started[-1].ask.messages] == ["One", "ONE", "Another two"]
    await sessions.finish_turn(begun.turn.id, db_session, state="done")
    theirs = (await sessions.begin_turn(None, "Secret", db_session, actor=bob)).turn
    for parent_id in (theirs.id, uuid4()):
        async with refused("session_not_found") as told:
            await sessions.begin_turn(session_id, "Three", db_session, actor=ann, parent_id=parent_id)
        assert (str(told.refusal), told.facts) == ("There is no such turn.", {})


async def test_L2_a_retry_counts_as_one_turn(
    sessions: SessionService, db_session: DbSession, ann: Actor, turns: list[Turn], beside: Beside,
    configure: Configure, clock: Clock, refused: Refused,
) -> None:  # fmt: skip
    await configure("user", turns="1/h")
    clock.pass_(hours=1)
    begun = await beside(turns[1].id, actor=ann)
    await sessions.finish_turn(begun.turn.id, db_session, state="done")
    async with refused("rate_limited") as told:
        await beside(turns[1].id, actor=ann)
    assert told.facts["limit"] == "turns"


async def test_D1_one_key_is_one_retry_also_at_once(
    ann: Actor, turns: list[Turn], beside: Beside, at_once: AtOnce, everything: Everything, refused: Refused
) -> None:
    results = await at_once(20, lambda _, db: beside(turns[1].id, db, actor=ann, key="k1"))
    assert results.codes == []
    assert len({begun.turn.id for begun in results.done}) == 1
    assert len((await everything())["turn"]) == 3
    for asked in ({"turn_id": turns[0].id}, {"turn_id": turns[1].id, "model": "smart"}):
        async with refused("idempotency_key_reused"):
            await beside(**asked, actor=ann, key="k1")


async def test_I2_twenty_retries_at_once_begin_one(
    ann: Actor, turns: list[Turn], beside: Beside, at_once: AtOnce, configure: Configure
) -> None:
    await configure("user", turns="0")
    results = await at_once(20, lambda _, db: beside(turns[1].id, db, actor=ann))
    assert (len(results.done), results.codes) == (1, ["session_busy"] * 19)

"""Where less of a budget is left than a reply may need, the reply is cut to that: rule L4."""

from uuid import UUID

import pytest

from db.db_session import DbSession
from db.tables import Turn, TurnCap
from services.actor import Actor
from services.clients import Usage as Counted
from services.errors import LimitReached, OverBudget
from services.reads import Reads
from services.session_service import SessionService
from tests.conftest import AtOnce, Clock, Configure, Everything, Offer, Orders, Refused
from web.views import TurnView

#: what "Hello" is counted at, with what a template puts around it
HELLO = 6


@pytest.fixture(autouse=True)
async def no_rates(sessions: SessionService, configure: Configure) -> None:
    await configure("user", turns="0", sessions_created="0", concurrent_turns=0)


async def test_L4_a_small_budget_lets_a_model_without_a_cap_reply_with_what_is_left(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, orders: Orders
) -> None:
    """With 3,000 tokens a day nothing could be sent at all, since 4,096 were held for the reply."""
    await configure("user", tokens_per_day=3000)
    begun = await sessions.begin_turn(None, "Hello", db_session, actor=ann)
    assert (begun.turn.capped, begun.cap) == ((3000 - HELLO, "tokens_per_day"), 3000 - HELLO)
    assert orders.started[-1].ask.max_reply_tokens == 3000 - HELLO
    assert begun.turn.reserved_tokens == 3000
    (left,) = [one for one in begun.allowance if one.name == "tokens_per_day"]
    assert (left.used, left.remaining) == (3000, 0)
    # The turn says so: while it runs, when it has ended, in the transcript, in a list, and in a copy.
    ended = await sessions.finish_turn(begun.turn.id, db_session, state="done", tail="Hi", usage=Counted(6, 100))
    fork = await sessions.fork_session(begun.turn.session_id, db_session, actor=ann)
    reads = Reads(sessions)
    told: list[Turn] = [ended]
    for live in (await sessions.get_session(begun.turn.session_id, db_session, actor=ann), fork):
        told += (await reads.transcript(live, db_session, actor=ann)).turns
        told += await reads.siblings(live, db_session, actor=ann)
    assert len(told) == 5
    for turn in told:
        view = TurnView.of(turn)
        assert view.reply_cap is not None and (view.reply_cap.tokens, view.reply_cap.limit) == (2994, "tokens_per_day")
        assert view.reply_cap.words == "Limited to 2,994 tokens: that was left of your tokens for today."


async def test_L4_the_reply_is_cut_down_to_256_tokens_and_no_further(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, clock: Clock, refused: Refused
) -> None:
    await configure("user", tokens_per_day=1000)
    first = (await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn
    await sessions.finish_turn(first.id, db_session, state="done", usage=Counted(6, 1000 - 6 - 256 - HELLO))
    least = (await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn
    assert least.capped == (256, "tokens_per_day")
    await sessions.finish_turn(least.id, db_session, state="done", usage=Counted(HELLO, 1))
    # 255 tokens are left, and the message needs 256 for its reply alone: it waits for tomorrow.
    async with refused("budget_exhausted") as told:
        await sessions.begin_turn(None, "Hello", db_session, actor=ann)
    assert isinstance(told.refusal, LimitReached)
    assert (told.facts["limit"], told.facts["remaining"]) == ("tokens_per_day", 255)
    clock.pass_(seconds=told.refusal.retry_after_seconds)
    await sessions.begin_turn(None, "Hello", db_session, actor=ann)


async def test_L4_a_message_that_never_fits_is_refused_as_such_and_waiting_is_not_suggested(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, configure: Configure,
    refused: Refused,
) -> None:  # fmt: skip
    await configure("user", tokens_per_day=HELLO + 256)
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    assert turn.capped == (256, "tokens_per_day")
    await sessions.finish_turn(turn.id, db_session, state="done", usage=Counted(HELLO, 256))
    async with refused("over_budget") as told:
        await sessions.begin_turn(None, "Hello, you", db_session, actor=ann)
    assert isinstance(told.refusal, OverBudget) and not hasattr(told.refusal, "retry_after_seconds")
    assert told.facts == {"limit": "tokens_per_day", "size": 262, "needed_tokens": 264}
    assert str(told.refusal) == (
        "This message needs more than your whole budget of 262 tokens per day: with the conversation before it and a "
        "short reply it is about 264 tokens. Shorten it, or start a new chat; an admin can raise the budget."
    )
    # What fits tomorrow is told to come back tomorrow.
    async with refused("budget_exhausted") as told:
        await sessions.begin_turn(None, "Hello", db_session, actor=ann)
    assert str(told.refusal) == (
        "You have used your budget for today: 262 tokens. It resets on 5 May at 00:00 (UTC). Need more? Ask your admin."
    )


async def test_L4_a_model_with_a_cap_of_its_own_keeps_it_where_it_fits(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, offer: Offer, refused: Refused
) -> None:
    await offer(fast={"max_reply_tokens": 100}, smart={"max_reply_tokens": 2000})
    await configure("user", tokens_per_day=700)
    short = (await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn
    assert (short.capped, short.reserved_tokens) == (None, HELLO + 100)
    long = await sessions.begin_turn(None, "Hello", db_session, actor=ann, model="smart")
    assert (long.turn.capped, long.cap) == ((700 - 106 - HELLO, "tokens_per_day"), 588)
    # A client's own limit on its reply is one too: it is never made shorter than what it asked for.
    await sessions.finish_turn(long.turn.id, db_session, state="done", usage=Counted(6, 480))
    asked = await sessions.begin_turn(None, "Hello", db_session, actor=ann, cap=50)
    assert (asked.turn.capped, asked.cap) == (None, 50)
    async with refused("budget_exhausted"):
        await sessions.begin_turn(None, "Hello", db_session, actor=ann)


async def test_L4_a_budget_of_money_cuts_the_reply_by_the_price_of_its_model(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, orders: Orders, refused: Refused
) -> None:
    # fast: 1,000 nano-money a token in, 2,000 a token out.
    await configure("user", money_per_month=0.000_607, tokens_per_day=100_000)
    begun = await sessions.begin_turn(None, "Hello", db_session, actor=ann)
    assert begun.turn.capped == (300, "money_per_month")
    assert orders.started[-1].ask.max_reply_tokens == 300
    assert begun.turn.reserved_nanos == 606_000
    async with refused("budget_exhausted") as told:
        await sessions.begin_turn(None, "Hello", db_session, actor=ann)
    assert (told.facts["limit"], told.facts["alternatives"]) == ("money_per_month", ["smart", "small", "aging"])
    free = (await sessions.begin_turn(None, "Hello", db_session, actor=ann, model="smart")).turn
    assert (free.capped, free.reserved_nanos) == (None, 0)
    await configure("user", money_per_month=0.000_517)
    async with refused("over_budget") as told:
        await sessions.begin_turn(None, "Hello", db_session, actor=ann)
    assert (told.facts["limit"], told.facts["alternatives"]) == ("money_per_month", ["smart", "small", "aging"])


async def test_L4_a_model_is_offered_where_the_budget_allows_it_and_the_session_too(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, configure: Configure, offer: Offer,
    refused: Refused,
) -> None:  # fmt: skip
    await configure("user", money_per_month=0.001)
    turn = (await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn
    await sessions.finish_turn(turn.id, db_session, state="done", usage=Counted(6, 497))
    async with refused("budget_exhausted") as told:
        await sessions.begin_turn(turn.session_id, "Hello", db_session, actor=ann)
    assert str(told.refusal).startswith("You have used your budget for this month: 0.001.")
    assert told.facts["alternatives"] == ["smart", "small", "aging"]
    # A budget of tokens is the same for every model, and a model that costs something may cost too much as well.
    await configure("user", tokens_per_month=510)
    async with refused("budget_exhausted") as told:
        await sessions.begin_turn(turn.session_id, "Hello", db_session, actor=ann)
    assert "alternatives" not in told.facts
    await configure("user", tokens_per_month=0)
    await sessions.switch_model(turn.session_id, "fast", db_session, actor=ada, reason="Keep it.", lock=True)
    async with refused("budget_exhausted") as told:
        await sessions.begin_turn(turn.session_id, "Hello", db_session, actor=ann)
    assert "alternatives" not in told.facts


async def test_L4_many_at_once_with_shortened_replies_never_overshoot(
    sessions: SessionService, ann: Actor, configure: Configure, at_once: AtOnce, everything: Everything
) -> None:
    size = 3 * (4096 + HELLO) + 300 + HELLO
    await configure("user", tokens_per_day=size)
    results = await at_once(12, lambda _, db: sessions.begin_turn(None, "Hello", db, actor=ann))
    assert (len(results.done), results.codes) == (4, ["budget_exhausted"] * 8)
    rows = await everything()
    assert sum(turn["reserved_tokens"] for turn in rows["turn"]) == size
    assert [(row["reply_tokens"], row["limit_name"]) for row in rows["turn_cap"]] == [(300, "tokens_per_day")]


async def test_L4_what_a_running_reply_only_holds_is_waited_for_until_its_end(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, refused: Refused
) -> None:
    """It was called used, and the next message sent to tomorrow, though the reply gives nearly all of it back."""
    await configure("user", tokens_per_day=3000, money_per_month=0.1)
    first = (await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn
    async with refused("budget_exhausted") as told:
        await sessions.begin_turn(None, "Hello", db_session, actor=ann)
    assert isinstance(told.refusal, LimitReached)
    assert (told.refusal.retry_after_seconds, "resets_at" in told.facts) == (5, False)
    assert str(told.refusal) == (
        "Replies in progress hold the tokens for today that this message needs. Wait for one to end, or stop one."
    )
    await sessions.finish_turn(first.id, db_session, state="done", usage=Counted(HELLO, 100))
    await sessions.begin_turn(None, "Hello", db_session, actor=ann)


async def test_L4_what_is_held_is_not_waited_for_where_its_whole_release_is_too_little(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, refused: Refused
) -> None:
    await configure("user", tokens_per_day=1000)
    first = (await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn
    await sessions.finish_turn(first.id, db_session, state="done", usage=Counted(HELLO, 500))
    await sessions.begin_turn(None, "Hello", db_session, actor=ann)
    long = "word " * 240
    async with refused("budget_exhausted") as told:
        await sessions.begin_turn(None, long, db_session, actor=ann)
    assert "resets_at" in told.facts
    # Money that a reply holds is told as money.
    await configure("user", tokens_per_day=0, money_per_day=0.0025)
    async with refused("budget_exhausted") as told:
        await sessions.begin_turn(None, "Hello", db_session, actor=ann)
    assert str(told.refusal).startswith("Replies in progress hold the money for today that this message needs.")


async def test_L4_a_turn_that_has_ended_leaves_what_it_did_not_use(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure
) -> None:
    await configure("user", tokens_per_day=3000, money_per_day=1, concurrent_turns=3)
    begun = await sessions.begin_turn(None, "Hello", db_session, actor=ann)
    running = await Reads(sessions).require_turn(begun.turn.id, db_session, actor=ann)
    assert begun.allowance_after(running) == begun.allowance
    ended = await sessions.finish_turn(begun.turn.id, db_session, state="done", usage=Counted(HELLO, 100))
    told = {one.name: one.remaining for one in begun.allowance_after(ended)}
    now = {one.name: one.remaining for one in await sessions.allowances(db_session, actor=ann)}
    assert told == {name: now[name] for name in told}
    assert told["tokens_per_day"] == 3000 - HELLO - 100


async def test_L4_what_a_reply_was_cut_to_goes_with_its_session(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure
) -> None:
    await configure("user", tokens_per_day=3000)
    turn = (await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn
    assert await TurnCap.count() == 1
    await sessions.delete_session(turn.session_id, db_session, actor=ann, for_good=True)
    assert await TurnCap.count() == 0

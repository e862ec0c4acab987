"""Rates, slots, quotas and budgets at the verbs: rules L1 to L7."""

import asyncio
import json
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from db.db_session import DbSession, Piece
from db.engine import Engine, open_engine
from db.tables import LimitRule, Usage
from services.actor import Actor
from services.client_pool import ClientPool
from services.clients import Usage as Counted
from services.configuration import GroupConfig, InstanceConfig
from services.errors import LimitReached, Refusal
from services.event_bus import MemoryEventBus
from services.policies import Allowance
from services.session_service import SessionService
from services.text import tokens_of
from tests.conftest import (
    BEGINNING,
    AtOnce,
    Clock,
    Configuration,
    Configure,
    Everything,
    Offer,
    Orders,
    Refused,
    StorageFails,
)

MIDNIGHT = datetime(2026, 5, 5, tzinfo=UTC)
NEXT_MONTH = datetime(2026, 6, 1, tzinfo=UTC)


async def put_limit(rule: LimitRule) -> None:
    """What an admin's change leaves in the table, from wherever it came."""
    await LimitRule.delete().where(LimitRule.group_name == rule.group_name, LimitRule.name == rule.name)
    await LimitRule.insert(rule)


async def used(ann: Actor, everything: Everything) -> dict[date, tuple[int, int]]:
    """{day: (tokens, nano-money)} of ann's ended turns."""
    rows = (await everything())["usage"]
    return {row["day"]: (row["tokens"], row["cost_nanos"]) for row in rows if row["owner_id"] == ann.id}


async def test_L1_the_rate_of_turns_and_again_after_exactly_the_wait(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, configure: Configure, clock: Clock,
    refused: Refused,
) -> None:  # fmt: skip
    await configure("user", turns="6/min burst 2")

    async def begin() -> Allowance:
        begun = await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)
        await sessions.finish_turn(begun.turn.id, db_session, state="done")
        return begun.allowance[0]

    first, second = await begin(), await begin()
    assert [(one.name, one.size, one.used, one.remaining, one.window_seconds) for one in (first, second)] == [
        ("turns", 2, 1, 1, 20),
        ("turns", 2, 2, 0, 20),
    ]
    async with refused("rate_limited") as told:
        await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)
    # The wait is a fact, which pages count down: the sentence does not say it again.
    assert str(told.refusal) == "You're sending messages too quickly. The limit is 6 per minute, 2 at once."
    assert told.facts == {
        "limit": "turns",
        "size": 2,
        "remaining": 0,
        "resets_at": BEGINNING + timedelta(seconds=10),
        "retry_after_seconds": 10,
    }
    clock.pass_(seconds=9, microseconds=999_999)
    async with refused("rate_limited"):
        await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)
    clock.pass_(microseconds=1)
    await begin()
    async with refused("rate_limited") as told:
        await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)
    assert told.wait == timedelta(seconds=10)


async def test_L1_a_client_within_the_rate_is_never_refused(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, configure: Configure, clock: Clock
) -> None:
    await configure("user", turns="3/min burst 1")
    for _ in range(20):
        begun = await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)
        await sessions.finish_turn(begun.turn.id, db_session, state="done")
        clock.pass_(seconds=20)


async def test_L1_twenty_at_once_take_exactly_the_burst(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, at_once: AtOnce
) -> None:
    await configure("user", turns="60/min burst 7", sessions_created="0", concurrent_turns=0)
    results = await at_once(20, lambda n, db: sessions.begin_turn(None, f"Prompt {n}", db, actor=ann))
    assert (len(results.done), results.codes) == (7, ["rate_limited"] * 13)


ONE_PROCESS = """
import asyncio, json, sys
from uuid import UUID
from db.db_session import DbSession
from db.engine import open_engine
from services.actor import Actor
from services.client_pool import ClientPool, Provider
from services.errors import Refusal
from services.event_bus import MemoryEventBus
from services.session_service import SessionService

async def main():
    engine = open_engine(sys.argv[1])
    await engine.start()
    sessions = SessionService(ClientPool([Provider("builtin", "builtin")]), MemoryEventBus())
    actor = Actor(kind="user", id=UUID(sys.argv[2]), name="ann", group="user", rate_key="account:ann")
    told = []
    for verb in (
        lambda n: sessions.begin_turn(None, f"Hello {n}", DbSession(engine), actor=actor),
        lambda n: sessions.create_session(DbSession(engine), actor=actor, title="x"),
    ):
        print("ready", flush=True)
        sys.stdin.readline()
        results = await asyncio.gather(*(verb(n) for n in range(10)), return_exceptions=True)
        told += [getattr(result, "code", type(result).__name__) for result in results]
    print(json.dumps(told), flush=True)
    await engine.stop()

asyncio.run(main())
"""


async def test_C5_limits_are_exact_over_processes(
    database_url: str, sessions: SessionService, ann: Actor, configure: Configure, everything: Everything
) -> None:
    await configure("user", turns="1/h burst 9", sessions_created="1/h burst 12", concurrent_turns=4)
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", ONE_PROCESS, database_url, str(ann.id), cwd=Path(__file__).parents[2],
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    async with asyncio.timeout(150):
        for _ in range(2):
            for process in processes:
                assert process.stdin is not None and process.stdout is not None
                assert await process.stdout.readline() == b"ready\n"
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(b"go\n")
        told = await asyncio.gather(*(process.communicate() for process in processes))
    results = sorted(result for output, _ in told for result in json.loads(output))
    assert results == (["BegunTurn"] * 4 + ["LiveSession"] * 8 + ["concurrency_limited"] * 16 + ["rate_limited"] * 12)
    rows = await everything()
    assert (len(rows["session"]), len(rows["turn"])) == (12, 4)


async def test_L1_a_failing_database_refuses_and_never_admits(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, refused: Refused,
    storage_fails: StorageFails,
) -> None:  # fmt: skip
    async with refused("storage_unavailable"), storage_fails("rate_bucket"):
        await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)


async def test_L2_an_accepted_turn_counts_one_and_a_refused_one_none(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, session_id: UUID, configure: Configure,
    refused: Refused,
) -> None:  # fmt: skip
    await configure("user", turns="3/h", concurrent_turns=1)

    async def left() -> int:
        return {one.name: one.remaining for one in await sessions.allowances(db_session, actor=ann)}["turns"]

    assert await left() == 3
    turn = (await sessions.begin_turn(session_id, "One", db_session, actor=ann)).turn
    assert await left() == 2
    other = (await sessions.create_session(db_session, actor=ann)).row.id
    theirs = (await sessions.create_session(db_session, actor=bob)).row.id
    for session, model, version, code in (
        (session_id, None, None, "session_busy"),
        (other, None, None, "concurrency_limited"),
        (other, "off", None, "model_disabled"),
        (other, "far", None, "model_unavailable"),
        (other, None, 99, "version_conflict"),
        (theirs, None, None, "session_not_found"),
    ):
        async with refused(code):
            await sessions.begin_turn(session, "Two", db_session, actor=ann, model=model, expected_version=version)
    await sessions.switch_model(session_id, "fast", db_session, actor=ann)
    await sessions.get_session(session_id, db_session, actor=ann)
    assert await left() == 2
    await sessions.finish_turn(turn.id, db_session, state="failed", error=("provider_failed", "It failed."))
    await sessions.begin_turn(session_id, "One again", db_session, actor=ann)
    assert await left() == 1


async def test_L3_the_providers_figures_count(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, everything: Everything
) -> None:
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    ended = await sessions.finish_turn(turn.id, db_session, state="done", tail="Hi", usage=Counted(70, 900))
    assert (ended.prompt_tokens, ended.reply_tokens, ended.estimated) == (70, 900, False)
    assert ended.cost_nanos == 70 * 1000 + 900 * 2000
    assert await used(ann, everything) == {BEGINNING.date(): (970, 1_870_000)}


@pytest.mark.parametrize("end", ["done", "stopped", "interrupted", "failed"])
async def test_L3_without_them_what_was_produced_is_estimated_and_marked(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, clock: Clock,
    everything: Everything, end: str,
) -> None:  # fmt: skip
    turn = (await sessions.begin_turn(session_id, "x" * 40, db_session, actor=ann)).turn
    await sessions.append([Piece(session_id, turn.id, 0, "y" * 81)], db_session)
    if end == "stopped":
        await sessions.stop_turn(turn.id, db_session, actor=ann)
    elif end == "interrupted":
        clock.pass_(seconds=30)
        await sessions.sweep(db_session)
    else:
        await sessions.finish_turn(turn.id, db_session, state=end)  # type: ignore[arg-type]
    ended = await db_session.find_turn(turn.id)
    assert ended is not None
    assert (ended.state, ended.prompt_tokens, ended.reply_tokens, ended.estimated) == (end, 18, 27, True)
    assert await used(ann, everything) == {BEGINNING.date(): (45, 18 * 1000 + 27 * 2000)}


async def test_I8_what_was_used_is_the_sum_of_the_turns(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, clock: Clock,
    everything: Everything,
) -> None:  # fmt: skip
    await configure("user", turns="0", sessions_created="0")
    for number in range(6):
        turn = (await sessions.begin_turn(None, "x" * (number + 1), db_session, actor=ann)).turn
        clock.pass_(seconds=31 if number == 2 else 0)
        await sessions.sweep(db_session)
        usage = Counted(number, 2 * number) if number % 2 else None
        await sessions.finish_turn(turn.id, db_session, state="done", tail="Hi", usage=usage)
        clock.pass_(hours=9)
    rows = await everything()
    assert sum(row["tokens"] for row in rows["usage"]) == sum(
        row["prompt_tokens"] + row["reply_tokens"] for row in rows["turn"]
    )
    assert sum(row["cost_nanos"] for row in rows["usage"]) == sum(row["cost_nanos"] for row in rows["turn"])
    assert [row["day"].day for row in sorted(rows["usage"], key=lambda row: row["day"])] == [4, 5, 6]


async def test_L4_a_budget_holds_what_is_spent_reserved_and_asked_for(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, offer: Offer, clock: Clock,
    refused: Refused,
) -> None:  # fmt: skip
    await offer(fast={"max_reply_tokens": 100})
    await configure("user", tokens_per_day=354, sessions_created="0", turns="0")
    first = (await sessions.begin_turn(None, "x" * 40, db_session, actor=ann)).turn
    assert first.reserved_tokens == 14 + 4 + 100
    await sessions.begin_turn(None, "y" * 40, db_session, actor=ann)
    async with refused("budget_exhausted") as told:
        await sessions.begin_turn(None, "z" * 43, db_session, actor=ann)
    assert told.facts == {
        "limit": "tokens_per_day",
        "size": 354,
        "remaining": 118,
        "retry_after_seconds": 5,  # running replies hold what is missing
        "alternatives": ["small"],  # its replies are short enough
    }
    third = (await sessions.begin_turn(None, "z" * 40, db_session, actor=ann)).turn
    await sessions.finish_turn(first.id, db_session, state="done", usage=Counted(10, 7))
    await sessions.finish_turn(third.id, db_session, state="done", usage=Counted(10, 6))
    # Spent 33, reserved 118: 203 remain.
    async with refused("budget_exhausted") as told:
        await sessions.begin_turn(None, "z" * 298, db_session, actor=ann)
    assert told.facts["remaining"] == 203
    await sessions.begin_turn(None, "z" * 297, db_session, actor=ann)


async def test_L4_a_reservation_lapses_with_its_lease(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, offer: Offer, clock: Clock,
    refused: Refused,
) -> None:  # fmt: skip
    await offer(fast={"max_reply_tokens": 100})
    await configure("user", tokens_per_day=150)
    await sessions.begin_turn(None, "x" * 40, db_session, actor=ann)
    async with refused("budget_exhausted"):
        await sessions.begin_turn(None, "x" * 40, db_session, actor=ann)
    clock.pass_(seconds=30)
    await sessions.begin_turn(None, "x" * 40, db_session, actor=ann)


async def test_L4_twenty_at_once_never_overshoot(
    sessions: SessionService, ann: Actor, configure: Configure, offer: Offer, at_once: AtOnce
) -> None:
    await offer(fast={"max_reply_tokens": 100})
    await configure("user", tokens_per_day=589, sessions_created="0", turns="0", concurrent_turns=0)
    results = await at_once(20, lambda _, db: sessions.begin_turn(None, "x" * 40, db, actor=ann))
    assert (len(results.done), results.codes) == (4, ["budget_exhausted"] * 16)


async def test_L4_a_new_day_is_a_new_budget_and_the_wait_is_exact(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, offer: Offer, clock: Clock,
    refused: Refused,
) -> None:  # fmt: skip
    await offer(fast={"max_reply_tokens": 100})
    await configure("user", tokens_per_day=150)
    turn = (await sessions.begin_turn(None, "x" * 40, db_session, actor=ann)).turn
    await sessions.finish_turn(turn.id, db_session, state="done", usage=Counted(10, 100))
    clock.pass_(hours=5, microseconds=1)
    async with refused("budget_exhausted") as told:
        await sessions.begin_turn(turn.session_id, "x" * 40, db_session, actor=ann)
    assert told.wait == timedelta(hours=7)
    clock.pass_(hours=6, minutes=59, seconds=59)
    async with refused("budget_exhausted"):
        await sessions.begin_turn(turn.session_id, "x" * 40, db_session, actor=ann)
    clock.at += timedelta(seconds=1)
    await sessions.begin_turn(turn.session_id, "x" * 40, db_session, actor=ann)


async def test_L4_a_budget_of_money_is_by_month_and_price(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, offer: Offer, clock: Clock,
    refused: Refused,
) -> None:  # fmt: skip
    await offer(fast={"max_reply_tokens": 100})
    # A turn holds 18 × 1000 + 100 × 2000 = 218,000 nano-money.
    await configure("user", money_per_month=0.000_435_999)
    turn = (await sessions.begin_turn(None, "x" * 40, db_session, actor=ann)).turn
    assert turn.reserved_nanos == 218_000
    async with refused("budget_exhausted") as told:
        await sessions.begin_turn(None, "x" * 40, db_session, actor=ann)
    assert (told.facts["limit"], told.wait) == ("money_per_month", timedelta(seconds=5))
    assert (told.facts["size"], told.facts["remaining"]) == (0.000_435, 0.000_217)
    await sessions.finish_turn(turn.id, db_session, state="done", usage=Counted(18, 100))
    assert (await sessions.begin_turn(None, "free", db_session, actor=ann, model="smart")).turn.reserved_nanos == 0
    clock.at = NEXT_MONTH - timedelta(microseconds=1)
    async with refused("budget_exhausted") as told:
        await sessions.begin_turn(turn.session_id, "x" * 40, db_session, actor=ann)
    assert told.wait == timedelta(seconds=1)
    clock.at = NEXT_MONTH
    await sessions.begin_turn(turn.session_id, "x" * 40, db_session, actor=ann)


BUDGETS = {
    # name: size, what a turn of "Hello" reserves of it, when it is new
    "tokens_per_day": (211, 106, MIDNIGHT),
    "tokens_per_month": (211, 106, NEXT_MONTH),
    "money_per_day": (0.000_411, 0.000_206, MIDNIGHT),
    "money_per_month": (0.000_411, 0.000_206, NEXT_MONTH),
}


@pytest.mark.parametrize("name", BUDGETS)
async def test_L4_each_budget_is_reserved_and_settled_in_its_window(
    name: str, sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, offer: Offer,
    clock: Clock, refused: Refused,
) -> None:  # fmt: skip
    size, reserved, until = BUDGETS[name]
    await offer(fast={"max_reply_tokens": 100})
    await configure("user", **{name: size})

    async def left() -> float:
        (told,) = [one for one in await sessions.allowances(db_session, actor=ann) if one.name == name]
        assert told.resets_at == until
        return told.figures.remaining

    turn = (await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn
    assert await left() == pytest.approx(size - reserved)
    async with refused("budget_exhausted") as told:
        await sessions.begin_turn(None, "Hello", db_session, actor=ann)
    assert (told.facts["limit"], told.facts["size"], told.wait) == (name, size, timedelta(seconds=5))
    assert told.facts["remaining"] == await left()
    await sessions.finish_turn(turn.id, db_session, state="done", usage=Counted(6, 1))
    assert await left() == pytest.approx(size - (7 if name.startswith("tokens") else 0.000_008))
    turn = (await sessions.begin_turn(turn.session_id, "Hello", db_session, actor=ann)).turn
    await sessions.finish_turn(turn.id, db_session, state="done", usage=Counted(6, 100))
    async with refused("budget_exhausted") as told:
        await sessions.begin_turn(None, "Hello", db_session, actor=ann)
    assert (told.facts["resets_at"], told.wait) == (until, until - clock())
    clock.at = until - timedelta(microseconds=1)
    async with refused("budget_exhausted"):
        await sessions.begin_turn(None, "Hello", db_session, actor=ann)
    clock.at = until
    await sessions.begin_turn(None, "Hello", db_session, actor=ann)


@pytest.mark.parametrize(
    ("zone", "now", "until"),
    [
        ("Asia/Kolkata", datetime(2026, 5, 4, 18, 29, tzinfo=UTC), datetime(2026, 5, 4, 18, 30, tzinfo=UTC)),
        ("America/New_York", datetime(2026, 5, 5, 3, 59, tzinfo=UTC), datetime(2026, 5, 5, 4, 0, tzinfo=UTC)),
        # The days on which the clocks of New York jump and fall back.
        ("America/New_York", datetime(2026, 3, 8, 5, 0, tzinfo=UTC), datetime(2026, 3, 9, 4, 0, tzinfo=UTC)),
        ("America/New_York", datetime(2026, 11, 1, 4, 0, tzinfo=UTC), datetime(2026, 11, 2, 5, 0, tzinfo=UTC)),
    ],
)
async def test_L4_days_begin_at_midnight_in_the_set_time_zone(
    zone: str, now: datetime, until: datetime, sessions: SessionService, db_session: DbSession, ann: Actor,
    configure: Configure, offer: Offer, clock: Clock, refused: Refused,
) -> None:  # fmt: skip
    await offer(fast={"max_reply_tokens": 100})
    await configure("user", tokens_per_day=150)
    await put_limit(LimitRule(group_name="*", name="time_zone", value=zone, set_by="ada"))
    clock.at = now
    turn = (await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn
    await sessions.finish_turn(turn.id, db_session, state="done", usage=Counted(6, 100))
    clock.at = until - timedelta(seconds=1)
    async with refused("budget_exhausted") as told:
        await sessions.begin_turn(None, "Hello", db_session, actor=ann)
    assert (told.facts["resets_at"], told.wait) == (until, timedelta(seconds=1))
    clock.at = until
    (told_now,) = [one for one in await sessions.allowances(db_session, actor=ann) if one.name == "tokens_per_day"]
    assert told_now.used == 0
    await sessions.begin_turn(None, "Hello", db_session, actor=ann)


async def test_L4_where_a_budget_applies_the_reply_is_really_cut(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, configure: Configure, offer: Offer,
    orders: Orders,
) -> None:  # fmt: skip
    async def cap(actor: Actor, model: str) -> tuple[int, int]:
        """What the provider is told, and what is reserved for the reply."""
        turn = (await sessions.begin_turn(None, "Hello", db_session, actor=actor, model=model)).turn
        await sessions.finish_turn(turn.id, db_session, state="done")
        return orders.started[-1].ask.max_reply_tokens, turn.reserved_tokens - turn.prompt_tokens

    await offer(smart={"max_reply_tokens": 300}, aging={"context_tokens": 1000})
    assert [await cap(ann, model) for model in ("fast", "smart")] == [(0, 4096), (300, 300)]
    await configure("user", money_per_month=1000)
    told = [await cap(ann, model) for model in ("fast", "smart", "aging")]
    assert told == [(4096, 4096), (300, 300), (500, 500)]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0),
        ("a", 1),
        ("abc", 1),
        ("abcd", 2),
        ("x" * 3000, 1000),
        ("γειά", 4),
        ("Привет", 6),
        ("你好", 4),
        ("नमस्ते", 12),
        ("👍", 3),
        ("ok 👍", 4),
        ("\ud83d", 2),
    ],
)
def test_L4_the_estimate_is_careful(text: str, tokens: int) -> None:
    assert tokens_of(text) == tokens


async def test_L4_what_the_template_adds_is_counted_for_each_message(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID
) -> None:
    reserved = []
    for _ in range(3):
        turn = (await sessions.begin_turn(session_id, "abc", db_session, actor=ann)).turn
        reserved.append(turn.reserved_tokens - 4096)
        await sessions.finish_turn(turn.id, db_session, state="done", tail="xyz")
    assert reserved == [5, 15, 25]


async def test_L4_others_budgets_are_their_own(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, configure: Configure, refused: Refused
) -> None:
    await configure("user", tokens_per_day=4300)
    await sessions.begin_turn(None, "Hello", db_session, actor=ann)
    async with refused("budget_exhausted"):
        await sessions.begin_turn(None, "Hello", db_session, actor=ann)
    await sessions.begin_turn(None, "Hello", db_session, actor=bob)


async def test_L5_the_strictest_limit_wins_and_is_named(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, refused: Refused
) -> None:
    await configure("user", concurrent_turns=1, turns="1/min burst 2", tokens_per_day=4300)
    spent = (await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn
    await sessions.finish_turn(spent.id, db_session, state="done", usage=Counted(6, 4000))
    await sessions.begin_turn(None, "Hello", db_session, actor=ann)
    # A wait for the running reply is shorter than one for a rate; what is spent lasts until midnight.
    async with refused("rate_limited"):
        await sessions.begin_turn(None, "Hello", db_session, actor=ann)
    await configure("user", tokens_per_day=4100)
    async with refused("budget_exhausted") as told:
        await sessions.begin_turn(None, "Hello", db_session, actor=ann)
    assert (told.facts["limit"], told.wait) == ("tokens_per_day", timedelta(hours=12))
    await configure("user", tokens_per_day=0)
    async with refused("rate_limited") as told:
        await sessions.begin_turn(None, "Hello", db_session, actor=ann)
    assert (told.facts["limit"], told.wait) == ("turns", timedelta(minutes=1))
    await configure("user", turns="0")
    async with refused("concurrency_limited") as told:
        await sessions.begin_turn(None, "Hello", db_session, actor=ann)
    assert told.facts["limit"] == "concurrent_turns"


async def test_L5_a_success_tells_every_limit_that_applied_and_the_tightest_first(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, configure: Configure, offer: Offer
) -> None:
    await offer(smart={"max_reply_tokens": 100, "concurrent_turns": 9})
    await configure("*", concurrent_turns=50)
    await configure(
        "user", turns="10/h", switches="4/h", concurrent_turns=5, tokens_per_day=1000, tokens_per_month=106_000,
        money_per_day=5, sessions_created="5/h", open_sessions=100,
    )  # fmt: skip
    await sessions.switch_model(session_id, "fast", db_session, actor=ann)
    begun = await sessions.begin_turn(session_id, "Hello", db_session, actor=ann, model="smart")
    assert [(one.name, one.remaining, one.size) for one in begun.allowance] == [
        ("switches", 3, 4),
        ("concurrent_turns", 4, 5),
        ("concurrent_turns_of_model", 8, 9),
        ("tokens_per_day", 894, 1000),
        ("turns", 9, 10),
        ("concurrent_turns_of_instance", 49, 50),
        ("tokens_per_month", 105_894, 106_000),
        ("money_per_day", 5 * 10**9, 5 * 10**9),
    ]
    # What is told is what is there.
    there = {one.name: one for one in await sessions.allowances(db_session, actor=ann)}
    assert all(there[one.name] == one for one in begun.allowance)
    made = await sessions.create_session(db_session, actor=ann, title="one")
    assert [(one.name, one.remaining) for one in made.allowance] == [("sessions_created", 4), ("open_sessions", 98)]
    switch = await sessions.switch_model(session_id, "fast", db_session, actor=ann)
    assert [(one.name, one.remaining) for one in switch.allowance] == [("switches", 2)]


async def test_L5_a_refusal_tells_the_limit_that_lasts_longest_and_then_the_others_untouched(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, configure: Configure, clock: Clock,
    refused: Refused,
) -> None:  # fmt: skip
    await configure("user", turns="6/min burst 4", switches="10/h", concurrent_turns=1, tokens_per_month=10**6)
    await sessions.begin_turn(session_id, "Hello", db_session, actor=ann, model="fast")
    other = (await sessions.create_session(db_session, actor=ann, title="other", model="fast")).row.id
    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    clock.pass_(seconds=5)
    there = {one.name: one for one in await sessions.allowances(db_session, actor=ann)}
    async with refused("concurrency_limited") as told:
        await sessions.begin_turn(other, "Hello", db_session, actor=ann, model="smart")
    assert isinstance(told.refusal, LimitReached)
    first, *others = told.refusal.allowance
    assert (first.name, first.remaining) == ("concurrent_turns", 0)
    assert [one.name for one in others] == ["turns", "switches", "tokens_per_month"]
    assert all(there[one.name] == one for one in (first, *others))


async def test_L5_a_refusal_says_what_is_short_in_words(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, offer: Offer, refused: Refused
) -> None:
    await offer(fast={"concurrent_turns": 1})
    await configure("user", tokens_per_day=4300)
    turn = (await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn
    await sessions.finish_turn(turn.id, db_session, state="done", usage=Counted(6, 4096))
    async with refused("budget_exhausted") as told:
        await sessions.begin_turn(None, "Hello", db_session, actor=ann)
    assert str(told.refusal) == (
        "198 of 4,300 tokens are left for today, and this message needs more. It resets on 5 May at 00:00 (UTC). "
        "Need more? Ask your admin."
    )
    await configure("user", tokens_per_day=0)
    await sessions.begin_turn(None, "Hello", db_session, actor=ann)
    async with refused("concurrency_limited") as told:
        await sessions.begin_turn(None, "Hello", db_session, actor=ann)
    assert str(told.refusal) == (
        "fast is writing 1 reply, as many as it may at once. Wait for one to end, or use another model."
    )


async def test_L6_an_admins_change_holds_from_the_next_call(
    sessions: SessionService, other_worker: SessionService, db_session: DbSession, ann: Actor, refused: Refused
) -> None:
    await sessions.create_session(db_session, actor=ann, title="one")
    await put_limit(LimitRule(group_name="user", name="open_sessions", value="1", set_by="ada"))
    for service in (sessions, other_worker):
        async with refused("session_quota"):
            await service.create_session(db_session, actor=ann)
    await put_limit(LimitRule(group_name="user", name="open_sessions", value="2", set_by="ada"))
    await other_worker.create_session(db_session, actor=ann)


async def test_L6_a_change_holds_at_the_next_call_of_another_process(
    sessions: SessionService, database_url: str, pool: ClientPool, clock: Clock, db_session: DbSession, ann: Actor,
    configure: Configure,
) -> None:  # fmt: skip
    elsewhere = open_engine(database_url)
    await elsewhere.start()
    there, far = SessionService(pool, MemoryEventBus(), now=clock), DbSession(elsewhere)
    try:
        running = (await there.begin_turn(None, "Hello", far, actor=ann)).turn
        for group, name, value, code in (
            ("user", "concurrent_turns", "1", "concurrency_limited"),
            ("user", "concurrent_turns", "0", ""),
            ("*", "concurrent_turns", "2", "concurrency_limited"),
            ("*", "concurrent_turns", "0", ""),
            ("user", "tokens_per_month", "100", "over_budget"),
            ("user", "tokens_per_month", "0", ""),
            ("user", "money_per_day", "0.000001", "over_budget"),
            ("user", "money_per_day", "0", ""),
            ("user", "turns", "1/h", "rate_limited"),
        ):
            await put_limit(LimitRule(group_name=group, name=name, value=value, set_by="ada"))
            try:
                begun = await there.begin_turn(None, "Hello", far, actor=ann)
            except Refusal as refusal:
                assert refusal.code == code, (name, value)
            else:
                assert code == "", (name, value)
                if name != "concurrent_turns" or group == "*":
                    await there.stop_turn(begun.turn.id, far, actor=ann)
        ended = await there.finish_turn(running.id, far, state="done", tail="Hi")
        assert (ended.state, ended.reply) == ("done", "Hi")
    finally:
        await elsewhere.stop()


async def test_L6_the_time_zone_is_a_rule_like_the_others(
    sessions: SessionService, db_session: DbSession, ann: Actor, configuration: Configuration
) -> None:
    configuration.groups["user"] = GroupConfig(tokens_per_day=1000)

    async def midnight() -> datetime | None:
        return {one.name: one for one in await sessions.allowances(db_session, actor=ann)}["tokens_per_day"].resets_at

    configuration.groups["*"] = InstanceConfig(time_zone="Asia/Kolkata")
    await configuration.apply()
    assert await midnight() == datetime(2026, 5, 4, 18, 30, tzinfo=UTC)
    await put_limit(LimitRule(group_name="*", name="time_zone", value="America/New_York", set_by="ada"))
    assert await midnight() == datetime(2026, 5, 5, 4, 0, tzinfo=UTC)
    await configuration.apply()
    assert await midnight() == datetime(2026, 5, 5, 4, 0, tzinfo=UTC)


async def test_L6_a_restart_keeps_what_an_admin_changed(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, refused: Refused
) -> None:
    await put_limit(LimitRule(group_name="user", name="open_sessions", value="0", set_by="ada"))
    await put_limit(LimitRule(group_name="user", name="sessions_created", value="1/h", set_by="ada"))
    await configure("user", open_sessions=1, sessions_created="50/h")
    await sessions.create_session(db_session, actor=ann)
    async with refused("rate_limited"):
        await sessions.create_session(db_session, actor=ann)


async def test_L6_lowering_a_budget_never_kills_a_running_turn(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, refused: Refused
) -> None:
    turn = (await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn
    await configure("user", tokens_per_day=1, concurrent_turns=1, turns="1/h")
    assert await sessions.append([Piece(turn.session_id, turn.id, 0, "Once ")], db_session) == {turn.id}
    await sessions.heartbeat([turn.id], db_session)
    await sessions.sweep(db_session)
    ended = await sessions.finish_turn(turn.id, db_session, state="done", tail="upon", usage=Counted(5000, 5000))
    assert (ended.state, ended.reply) == ("done", "Once upon")
    async with refused("over_budget"):
        await sessions.begin_turn(turn.session_id, "Hello", db_session, actor=ann)


async def test_L7_every_limit_is_told_before_sending(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, configure: Configure,
    offer: Offer, clock: Clock, everything: Everything,
) -> None:  # fmt: skip
    await offer(fast={"max_reply_tokens": 100})
    await configure(
        "user", turns="6/min burst 4", switches="2/min", sessions_created="3/h", concurrent_turns=3, open_sessions=9,
        tokens_per_day=1000, money_per_month=1.0,
    )  # fmt: skip
    await sessions.create_session(db_session, actor=ann)
    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    await sessions.begin_turn(session_id, "x" * 40, db_session, actor=ann, model="fast")
    clock.pass_(seconds=5)
    before = await everything()
    told = {one.name: one for one in await sessions.allowances(db_session, actor=ann)}
    assert told == {
        "turns": Allowance("turns", 4, 1, 3, BEGINNING + timedelta(seconds=10), 40, pace="6 per minute"),
        "switches": Allowance("switches", 2, 1, 1, BEGINNING + timedelta(seconds=30), 60, pace="2 per minute"),
        "sessions_created": Allowance(
            "sessions_created", 3, 1, 2, BEGINNING + timedelta(minutes=20), 3600, pace="3 per hour"
        ),
        "concurrent_turns": Allowance("concurrent_turns", 3, 1, 2),
        "open_sessions": Allowance("open_sessions", 9, 2, 7),
        "tokens_per_day": Allowance("tokens_per_day", 1000, 118, 882, MIDNIGHT, 86400, held=118),
        "money_per_month": Allowance(
            "money_per_month", 10**9, 218_000, 10**9 - 218_000, NEXT_MONTH, 31 * 86400, held=218_000
        ),
    }  # fmt: skip
    assert await everything() == before


async def test_L7_a_limit_that_is_off_is_not_told(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure
) -> None:
    assert {one.name for one in await sessions.allowances(db_session, actor=ann)} == {
        "turns", "switches", "sessions_created", "concurrent_turns", "open_sessions",
    }  # fmt: skip
    await configure("user", turns="0", switches="0", sessions_created="0", concurrent_turns=0, open_sessions=0)
    assert await sessions.allowances(db_session, actor=ann) == []


async def test_L7_slots_of_models_and_of_the_server_are_told_too(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, configure: Configure, offer: Offer
) -> None:
    limited = {"concurrent_turns": 4}
    await offer(fast=limited, smart={"concurrent_turns": 2}, hidden=limited, off=limited, old=limited)
    await configure("*", concurrent_turns=9)
    await sessions.begin_turn(None, "Hello", db_session, actor=bob)
    await sessions.begin_turn(None, "Hello", db_session, actor=bob, model="aging")
    told = [one for one in await sessions.allowances(db_session, actor=ann) if one.name.startswith("concurrent")]
    assert told == [
        Allowance("concurrent_turns", 3, 0, 3),
        Allowance("concurrent_turns_of_model", 4, 1, 3, model="fast"),
        Allowance("concurrent_turns_of_model", 2, 0, 2, model="smart"),
        Allowance("concurrent_turns_of_instance", 9, 2, 7),
    ]


async def test_L7_what_has_no_limit_is_not_even_counted(
    sessions: SessionService, db_session: DbSession, engine: Engine, ann: Actor, configure: Configure,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    await configure("user", turns="0", switches="0", sessions_created="0", concurrent_turns=0, open_sessions=0)
    said, run = [], engine.run

    async def listened(sql: str, args: Sequence[object] = ()) -> list[dict[str, object]]:
        said.append(sql)
        return await run(sql, args)

    monkeypatch.setattr(engine, "run", listened)
    assert await sessions.allowances(db_session, actor=ann) == []
    asked = {table for table in ("session", "turn", "usage", "rate_bucket") if any(f'"{table}"' in one for one in said)}
    assert (asked, len(said)) == (set(), 1)
    said.clear()
    await sessions.create_session(db_session, actor=ann)
    assert not any("COUNT(" in one for one in said), said
    assert any("INSERT" in one for one in said)


async def test_L7_what_is_told_is_what_a_refusal_says(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, configure: Configure,
    refused: Refused,
) -> None:  # fmt: skip
    await configure("user", turns="1/min")
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    await sessions.finish_turn(turn.id, db_session, state="done")
    async with refused("rate_limited") as told:
        await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)
    known = {one.name: one for one in await sessions.allowances(db_session, actor=ann)}["turns"]
    assert (told.facts["size"], told.facts["remaining"], told.facts["resets_at"]) == (
        known.size,
        known.remaining,
        known.resets_at,
    )


async def test_a_guest_has_the_guests_limits_and_an_unknown_group_those_of_users(
    sessions: SessionService, db_session: DbSession, guest: Actor
) -> None:
    assert {one.name: one.size for one in await sessions.allowances(db_session, actor=guest)} == {
        "turns": 10,
        "switches": 10,
        "sessions_created": 5,
        "concurrent_turns": 2,
        "open_sessions": 50,
    }
    stranger = Actor(kind="user", id=guest.id, name="x", group="nobody knows", rate_key="r")
    sizes = {one.name: one.size for one in await sessions.allowances(db_session, actor=stranger)}
    assert (sizes["concurrent_turns"], sizes["open_sessions"]) == (3, 500)


async def test_usage_of_ended_days_does_not_count(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure
) -> None:
    await configure("user", tokens_per_day=1000, money_per_month=1)
    yesterday, last_month = date(2026, 5, 3), date(2026, 4, 30)
    for day in (yesterday, last_month):
        await db_session.add(Usage(owner_id=ann.id, day=day, tokens=7, cost_nanos=11))
    told = {one.name: one.used for one in await sessions.allowances(db_session, actor=ann)}
    assert (told["tokens_per_day"], told["money_per_month"]) == (0, 11)


@pytest.mark.parametrize(("before", "after"), [("5/d", "60/min burst 60"), ("60/min burst 60", "2/d")])
async def test_L6_another_rate_holds_from_the_next_call(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, refused: Refused, before: str,
    after: str,
) -> None:  # fmt: skip
    await configure("user", sessions_created=before)
    for _ in range(5):
        await sessions.create_session(db_session, actor=ann)
    await configure("user", sessions_created=after)
    burst = 60 if "60" in after else 2
    for _ in range(burst):
        await sessions.create_session(db_session, actor=ann)
    async with refused("rate_limited"):
        await sessions.create_session(db_session, actor=ann)


async def test_L4_a_turn_whose_worker_is_gone_counts_what_it_wrote_before_anybody_has_noticed(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, clock: Clock, refused: Refused
) -> None:
    await configure("user", tokens_per_day=3900, concurrent_turns=0)
    lost = (await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn
    await sessions.append([Piece(lost.session_id, lost.id, 0, "x" * 11000)], db_session)
    clock.pass_(seconds=31)
    before = {one.name: one.used for one in await sessions.allowances(db_session, actor=ann)}
    assert 2000 < before["tokens_per_day"] < 5000
    async with refused("budget_exhausted"):
        await sessions.begin_turn(None, "Hello", db_session, actor=ann)
    await sessions.sweep(db_session)
    assert {one.name: one.used for one in await sessions.allowances(db_session, actor=ann)} == before

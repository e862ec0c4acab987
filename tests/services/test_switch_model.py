"""switch_model: rules S0 to S13."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from db.db_session import DbSession, Piece
from db.engine import Engine
from services.actor import Actor
from services.client_pool import ClientPool
from services.event_bus import Hint
from services.session_service import SessionService
from tests.conftest import (
    BEGINNING,
    AtOnce,
    Chain,
    Clock,
    Configure,
    Everything,
    JournalRows,
    Offer,
    Orders,
    Refused,
    StorageFails,
)


@pytest.fixture
async def on_fast(sessions: SessionService, db_session: DbSession, ann: Actor) -> UUID:
    """A session of ann's whose first model is chosen already."""
    return (await sessions.create_session(db_session, actor=ann, model="fast")).row.id


async def test_a_switch_works_and_says_what_became_of_it(
    sessions: SessionService, db_session: DbSession, ann: Actor, on_fast: UUID, clock: Clock, chain: Chain,
    journal: JournalRows, published: list[Hint],
) -> None:  # fmt: skip
    clock.pass_(minutes=5)
    switch = await sessions.switch_model(on_fast, "smart", db_session, actor=ann, reason="  harder\nquestions ")
    assert (switch.changed, switch.from_model, switch.to_model) == (True, "fast", "smart")
    assert (switch.effective, switch.warnings, switch.session.row.version) == ("now", (), 2)
    assert (switch.session.current.id, switch.session.current.source) == ("smart", "session")
    row = await db_session.find_session(on_fast, ann.id)
    assert row is not None
    assert (row.last_model, row.version, row.last_activity_at) == ("smart", 2, clock())
    (told,) = await journal("model_switched")
    assert (told.actor_kind, told.actor_name, told.owner_id, told.session_id) == ("user", "ann", ann.id, on_fast)
    assert (told.from_value, told.to_value, told.version, told.reason) == ("fast", "smart", 2, "harder questions")
    assert (told.at, told.outcome) == (clock(), "done")
    assert published == [Hint(on_fast, "session")]
    assert await chain(on_fast) == ["fast", "smart"]


async def test_S1_unknown_or_hidden_is_refused_alike_and_costs_nothing(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, refused: Refused
) -> None:
    for model in ("no-such-model", "hidden", "", "switch", "echo", "Fast"):
        async with refused("model_unknown") as told:
            await sessions.switch_model(session_id, model, db_session, actor=ann)
        assert told.facts == {}
        assert str(told.refusal) == f"There is no model “{model}”."


async def test_S1_an_admin_may_not_give_a_session_what_its_owner_may_not_use(
    sessions: SessionService, db_session: DbSession, ada: Actor, session_id: UUID, refused: Refused
) -> None:
    async with refused("forbidden"):
        await sessions.switch_model(session_id, "hidden", db_session, actor=ada, reason="try this")


async def test_S1_an_admins_own_session_may_use_it(sessions: SessionService, db_session: DbSession, ada: Actor) -> None:
    own = (await sessions.create_session(db_session, actor=ada)).row.id
    assert (await sessions.switch_model(own, "hidden", db_session, actor=ada)).session.row.last_model == "hidden"


async def test_S2_disabled_and_retired_are_refused_and_the_replacement_is_named(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, refused: Refused, offer: Offer
) -> None:
    async with refused("model_disabled") as told:
        await sessions.switch_model(session_id, "off", db_session, actor=ann)
    assert told.facts == {}
    async with refused("model_retired") as told:
        await sessions.switch_model(session_id, "old", db_session, actor=ann)
    assert told.facts == {"replacement": "smart"}
    await offer(stray={"provider": "nowhere"})
    async with refused("model_disabled"):
        await sessions.switch_model(session_id, "stray", db_session, actor=ann)


async def test_S2_a_provider_that_is_down_is_a_warning(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, pool: ClientPool
) -> None:
    switch = await sessions.switch_model(session_id, "far", db_session, actor=ann)
    assert (switch.changed, switch.to_model, switch.warnings) == (True, "far", ("provider_down",))
    assert switch.session.row.last_model == "far"
    pool.note("down", True)
    await sessions.switch_model(session_id, "fast", db_session, actor=ann)
    assert (await sessions.switch_model(session_id, "far", db_session, actor=ann)).warnings == ()


async def test_S2_a_deprecated_model_can_be_chosen(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID
) -> None:
    assert (await sessions.switch_model(session_id, "aging", db_session, actor=ann)).session.current.usable is True


async def test_S3_expired_or_closed_is_gone(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, clock: Clock, refused: Refused
) -> None:
    closed = (await sessions.create_session(db_session, actor=ann)).row.id
    await sessions.close_session(closed, db_session, actor=ann)
    async with refused("session_closed"):
        await sessions.switch_model(closed, "smart", db_session, actor=ann)
    clock.pass_(days=30)
    async with refused("session_expired") as told:
        await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    assert told.facts == {"can_reopen": True, "can_fork": True}


async def test_S3_foreign_and_absent_are_the_same(
    sessions: SessionService, db_session: DbSession, bob: Actor, guest: Actor, session_id: UUID, refused: Refused
) -> None:
    for actor in (bob, guest):
        for id in (session_id, uuid4()):
            async with refused("session_not_found") as told:
                await sessions.switch_model(id, "smart", db_session, actor=actor)
            assert (str(told.refusal), told.facts) == ("There is no such session.", {})


async def test_S3_the_first_fault_of_two_wins(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, ada: Actor, session_id: UUID,
    clock: Clock, configure: Configure, offer: Offer, refused: Refused, storage_fails: StorageFails,
) -> None:  # fmt: skip
    """Every two neighbours of the order of checks, at once."""
    await configure("user", switches="1/d")
    closed = (await sessions.create_session(db_session, actor=ann)).row.id
    await sessions.close_session(closed, db_session, actor=ann)
    await sessions.switch_model(session_id, "aging", db_session, actor=ann, key="k1")
    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    begun = await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)
    sleeping = (await sessions.create_session(db_session, actor=ann)).row.id

    async def check(code: str, **change: Any) -> None:
        asked = {"session_id": session_id, "new_model": "fast", "actor": ann, **change}
        async with refused(code):
            await sessions.switch_model(db_session=db_session, **asked)

    # form, key
    await check("invalid_request", reason="x" * 1000, key="k1")
    # key, owner
    await check("idempotency_key_reused", key="k1", session_id=uuid4())
    # owner, state
    await check("session_not_found", actor=bob, session_id=closed)
    # state, permission
    await check("session_closed", session_id=closed, lock=True)
    await check("session_closed", session_id=closed, actor=ada)  # without a reason
    # permission, model
    await check("forbidden", new_model="no-such-model", lock=True)
    await check("invalid_request", new_model="no-such-model", actor=ada)
    # model, nothing to do: what is asked for is in use, and gone
    await offer(smart={"state": "disabled"})
    await check("model_disabled", new_model="smart")
    await offer(smart={"state": "active"})
    # model, version
    await check("model_unknown", new_model="no-such-model", expected_version=99)
    # nothing to do, version
    assert not (
        await sessions.switch_model(session_id, "smart", db_session, actor=ann, expected_version=99, when="idle")
    ).changed
    # version, busy
    await check("version_conflict", expected_version=99, when="idle")
    # busy, limits
    await check("session_busy", when="idle")
    # limits, the write itself
    async with storage_fails("journal"):
        await check("rate_limited")
    await sessions.finish_turn(begun.turn.id, db_session, state="done")
    clock.pass_(days=31)
    for id in (session_id, sleeping):
        await check("session_expired", session_id=id, new_model="no-such-model", lock=True)
    await sessions.reopen_session(sleeping, db_session, actor=ann)
    await sessions.switch_model(sleeping, "smart", db_session, actor=ada, reason="audit", lock=True)
    # the lock, model
    await check("model_locked", session_id=sleeping, new_model="no-such-model")


async def test_S4_an_alias_is_resolved_before_it_is_compared_and_stored(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, chain: Chain
) -> None:
    first = await sessions.switch_model(session_id, "quick", db_session, actor=ann)
    assert (first.changed, first.to_model, first.session.row.last_model) == (True, "fast", "fast")
    again = await sessions.switch_model(session_id, "fast", db_session, actor=ann)
    assert (again.changed, again.from_model, again.to_model) == (False, "fast", "fast")
    assert (await sessions.switch_model(session_id, "quick", db_session, actor=ann)).changed is False
    assert await chain(session_id) == ["fast"]


async def test_S5_same_model_changes_nothing(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, clock: Clock, configure: Configure,
    everything: Everything, published: list[Hint],
) -> None:  # fmt: skip
    await configure("user", switches="2/h")
    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    before, hints = await everything(), list(published)
    clock.pass_(minutes=1)
    for _ in range(3):
        again = await sessions.switch_model(session_id, "smart", db_session, actor=ann, reason="again")
        assert (again.changed, again.from_model, again.to_model) == (False, "smart", "smart")
        assert (again.session.row.version, again.allowance) == (1, ())
    assert await everything() == before
    assert published == hints
    assert (await sessions.switch_model(session_id, "fast", db_session, actor=ann)).changed is True


async def test_S5_nothing_to_do_is_done_also_with_a_stale_version_or_a_running_turn(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, everything: Everything
) -> None:
    await sessions.begin_turn(session_id, "Hello", db_session, actor=ann, model="smart")
    before = await everything()
    again = await sessions.switch_model(session_id, "smart", db_session, actor=ann, expected_version=99, when="idle")
    assert again.changed is False
    stopping = await sessions.switch_model(session_id, "smart", db_session, actor=ann, when="stop")
    assert (stopping.changed, stopping.session.running_turn is not None) == (False, True)
    assert await everything() == before


async def test_S5_pinning_the_default_is_a_change(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, chain: Chain, offer: Offer
) -> None:
    assert (await sessions.current_model(session_id, db_session, actor=ann)).id == "fast"
    switch = await sessions.switch_model(session_id, "fast", db_session, actor=ann)
    assert (switch.changed, switch.from_model, switch.to_model) == (True, None, "fast")
    assert await chain(session_id) == ["fast"]
    await offer(default="smart")
    assert (await sessions.current_model(session_id, db_session, actor=ann)).id == "fast"


async def test_S6_next_turn_lets_the_reply_finish_on_its_snapshot(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, orders: Orders
) -> None:
    first = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    switch = await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    assert (switch.changed, switch.effective) == (True, "next_turn")
    assert (switch.session.running_turn, switch.session.current.id) == (first.id, "smart")
    assert orders.stopped == []
    ended = await sessions.finish_turn(first.id, db_session, state="done", tail="Hi")
    assert (ended.state, ended.model, ended.reply) == ("done", "fast", "Hi")
    second = (await sessions.begin_turn(session_id, "And now?", db_session, actor=ann)).turn
    assert second.model == "smart"
    kept = await db_session.find_turn(first.id)
    assert kept is not None and kept.model == "fast"


async def test_S6_stop_keeps_the_text_and_switches_now(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, orders: Orders, chain: Chain
) -> None:
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    await sessions.append([Piece(session_id, turn.id, 0, "Once upon")], db_session)
    switch = await sessions.switch_model(session_id, "smart", db_session, actor=ann, when="stop")
    assert (switch.changed, switch.effective, switch.session.running_turn) == (True, "now", None)
    stopped = await db_session.find_turn(turn.id)
    assert stopped is not None
    assert (stopped.state, stopped.reply, stopped.model) == ("stopped", "Once upon", "fast")
    assert orders.stopped == [turn.id]
    assert await chain(session_id) == ["fast", "smart"]


async def test_S6_stop_that_is_refused_stops_nothing(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, configure: Configure,
    refused: Refused,
) -> None:  # fmt: skip
    await configure("user", switches="1/h")
    await sessions.switch_model(session_id, "aging", db_session, actor=ann)
    await sessions.switch_model(session_id, "fast", db_session, actor=ann)
    await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)
    async with refused("rate_limited"):
        await sessions.switch_model(session_id, "smart", db_session, actor=ann, when="stop")


async def test_S6_idle_is_refused_while_busy(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, refused: Refused
) -> None:
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    async with refused("session_busy") as told:
        await sessions.switch_model(session_id, "smart", db_session, actor=ann, when="idle")
    assert told.facts == {"running_turn": turn.id}
    await sessions.finish_turn(turn.id, db_session, state="done")
    switch = await sessions.switch_model(session_id, "smart", db_session, actor=ann, when="idle")
    assert (switch.changed, switch.effective) == (True, "now")


async def test_S6_a_turn_whose_worker_is_gone_keeps_nobody_busy(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, clock: Clock
) -> None:
    await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)
    clock.pass_(seconds=30)
    switch = await sessions.switch_model(session_id, "smart", db_session, actor=ann, when="idle")
    assert (switch.changed, switch.effective, switch.session.running_turn) == (True, "now", None)


async def test_S7_limited_per_actor_and_again_after_exactly_the_wait(
    sessions: SessionService, db_session: DbSession, ann: Actor, clock: Clock, configure: Configure, refused: Refused
) -> None:
    await configure("user", switches="3/min")
    ids = [(await sessions.create_session(db_session, actor=ann, model="fast")).row.id for _ in range(4)]
    for id in ids[:3]:
        await sessions.switch_model(id, "smart", db_session, actor=ann)
    async with refused("rate_limited") as told:
        await sessions.switch_model(ids[3], "smart", db_session, actor=ann)
    assert told.wait == timedelta(seconds=20)
    assert (told.facts["limit"], told.facts["size"], told.facts["remaining"]) == ("switches", 3, 0)
    assert told.facts["resets_at"] == BEGINNING + timedelta(seconds=20)
    clock.pass_(seconds=19, microseconds=999_999)
    async with refused("rate_limited") as told:
        await sessions.switch_model(ids[3], "smart", db_session, actor=ann)
    assert told.wait == timedelta(seconds=1)
    clock.pass_(microseconds=1)
    assert (await sessions.switch_model(ids[3], "smart", db_session, actor=ann)).changed is True


async def test_S7_limited_per_session_whoever_switches(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, on_fast: UUID, clock: Clock,
    configure: Configure, refused: Refused,
) -> None:  # fmt: skip
    await configure("user", switches="1/min")
    await configure("admin", switches="1/min")
    await sessions.switch_model(on_fast, "smart", db_session, actor=ann)
    async with refused("rate_limited"):
        await sessions.switch_model(on_fast, "fast", db_session, actor=ada, reason="costs")
    other = (await sessions.create_session(db_session, actor=ada, model="fast")).row.id
    assert (await sessions.switch_model(other, "smart", db_session, actor=ada)).changed is True
    clock.pass_(minutes=1)
    assert (await sessions.switch_model(on_fast, "fast", db_session, actor=ada, reason="costs")).changed is True


async def test_S7_others_are_not_affected(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, on_fast: UUID, configure: Configure,
    refused: Refused,
) -> None:  # fmt: skip
    await configure("user", switches="1/min")
    theirs = (await sessions.create_session(db_session, actor=bob, model="fast")).row.id
    await sessions.switch_model(on_fast, "smart", db_session, actor=ann)
    async with refused("rate_limited"):
        await sessions.switch_model(on_fast, "fast", db_session, actor=ann)
    assert (await sessions.switch_model(theirs, "smart", db_session, actor=bob)).changed is True


async def test_S8_twenty_at_once_are_serialised(
    sessions: SessionService, ann: Actor, session_id: UUID, configure: Configure, offer: Offer, at_once: AtOnce,
    chain: Chain,
) -> None:  # fmt: skip
    await configure("user", switches="0")
    await offer(**{f"m{number}": {} for number in range(20)})
    results = await at_once(20, lambda n, db: sessions.switch_model(session_id, f"m{n}", db, actor=ann))
    assert results.codes == []
    assert all(switch.changed for switch in results.done)
    versions = sorted((switch.session.row.version, switch.from_model, switch.to_model) for switch in results.done)
    assert [version for version, _, _ in versions] == list(range(1, 21))
    assert [to for _, _, to in versions] == await chain(session_id)
    assert [before for _, before, _ in versions] == [None, *(to for _, _, to in versions[:-1])]


async def test_S8_over_the_rate_exactly_the_burst_switch(
    sessions: SessionService, ann: Actor, on_fast: UUID, configure: Configure, offer: Offer, at_once: AtOnce,
    chain: Chain,
) -> None:  # fmt: skip
    await configure("user", switches="7/h")
    await offer(**{f"m{number}": {} for number in range(20)})
    results = await at_once(20, lambda n, db: sessions.switch_model(on_fast, f"m{n}", db, actor=ann))
    assert (len(results.done), results.codes) == (7, ["rate_limited"] * 13)
    assert len(await chain(on_fast)) == 1 + 7


async def test_S9_with_the_same_expected_version_exactly_one_wins(
    sessions: SessionService, ann: Actor, session_id: UUID, offer: Offer, at_once: AtOnce, chain: Chain
) -> None:
    await offer(**{f"m{number}": {} for number in range(20)})
    results = await at_once(
        20, lambda n, db: sessions.switch_model(session_id, f"m{n}", db, actor=ann, expected_version=0)
    )
    (winner,) = results.done
    assert results.codes == ["version_conflict"] * 19
    assert [refusal.facts for refusal in results.refusals] == [{"current_model": winner.to_model, "version": 1}] * 19
    assert await chain(session_id) == [winner.to_model]


async def test_S9_a_stale_version_is_told_the_current_state(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, refused: Refused
) -> None:
    await sessions.switch_model(session_id, "smart", db_session, actor=ann, expected_version=0)
    async with refused("version_conflict") as told:
        await sessions.switch_model(session_id, "fast", db_session, actor=ann, expected_version=0)
    assert told.facts == {"current_model": "smart", "version": 1}
    switch = await sessions.switch_model(session_id, "fast", db_session, actor=ann, expected_version=1)
    assert switch.session.row.version == 2


async def test_S10_a_turn_has_the_old_or_the_new_model_entirely(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, configure: Configure, offer: Offer,
    at_once: AtOnce, orders: Orders, journal: JournalRows, chain: Chain,
) -> None:  # fmt: skip
    await configure("user", switches="0", turns="0")
    await offer(a={"upstream": "up-a"}, b={"upstream": "up-b"})
    await sessions.switch_model(session_id, "a", db_session, actor=ann)
    seen = set()
    for number in range(8):
        model = "ba"[number % 2]

        async def race(place: int, db: DbSession, model: str = model) -> object:
            if place:
                return await sessions.switch_model(session_id, model, db, actor=ann)
            return await sessions.begin_turn(session_id, "Hello", db, actor=ann)

        results = await at_once(2, race)
        assert results.codes == []
        turn = results.done[0].turn
        order = orders.started[-1]
        assert (order.turn_id, order.ask.model) == (turn.id, f"up-{turn.model}")
        (row,) = [row for row in await journal("turn_begun") if row.turn_id == turn.id]
        assert row.to_value == turn.model
        assert (await sessions.current_model(session_id, db_session, actor=ann)).id == model
        seen.add(turn.model)
        await sessions.finish_turn(turn.id, db_session, state="done")
    assert seen <= {"a", "b"}
    assert len(await chain(session_id)) == 9


async def test_S11_a_failing_database_changes_nothing(
    sessions: SessionService, db_session: DbSession, ann: Actor, on_fast: UUID, refused: Refused,
    storage_fails: StorageFails,
) -> None:  # fmt: skip
    for place in ("rate_bucket", "journal", "commit"):
        async with refused("storage_unavailable"), storage_fails(place):
            await sessions.switch_model(on_fast, "smart", db_session, actor=ann, key="k1")
    assert (await sessions.switch_model(on_fast, "smart", db_session, actor=ann, key="k1")).changed is True


async def test_S11_a_caller_who_goes_away_leaves_all_or_nothing(
    sessions: SessionService, db_session: DbSession, engine: Engine, ann: Actor, session_id: UUID,
    configure: Configure, chain: Chain, published: list[Hint],
) -> None:  # fmt: skip
    await configure("user", switches="0")
    done = 0
    for number in range(30):
        model = ("smart", "fast")[done % 2]
        published.clear()
        task = asyncio.create_task(sessions.switch_model(session_id, model, DbSession(engine), actor=ann))
        await asyncio.sleep(number * 0.0005)
        if number < 29:
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        async with asyncio.timeout(60):
            await sessions.rename_session(session_id, f"after {number}", db_session, actor=ann)
        row = await db_session.find_session(session_id, ann.id)
        assert row is not None
        changed = row.last_model == model
        assert published.count(Hint(session_id, "session")) == 1 + changed
        done += changed
        assert len(await chain(session_id)) == done
    assert 0 < done < 30


async def test_S12_every_watcher_is_told_after_the_commit(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, published: list[Hint]
) -> None:
    async with db_session.transaction():
        await sessions.switch_model(session_id, "smart", db_session, actor=ann)
        assert published == []
    assert published == [Hint(session_id, "session")]


async def test_S13_an_admin_gives_a_reason_and_the_owner_sees_it(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, on_fast: UUID, refused: Refused,
    journal: JournalRows,
) -> None:  # fmt: skip
    for reason in ("", "  \n"):
        async with refused("invalid_request") as told:
            await sessions.switch_model(on_fast, "smart", db_session, actor=ada, reason=reason)
        assert told.facts == {"field": "reason"}
    switch = await sessions.switch_model(on_fast, "smart", db_session, actor=ada, reason="it is cheaper.")
    assert switch.changed is True
    (row,) = await journal("model_switched")
    assert (row.actor_kind, row.actor_id, row.actor_name) == ("admin", ada.id, "ada")
    assert (row.owner_id, row.reason) == (ann.id, "it is cheaper.")
    seen = await sessions.get_session(on_fast, db_session, actor=ann)
    assert seen.current.reason == "Chosen by ada: it is cheaper."
    assert seen.last_switch is not None
    assert (seen.last_switch.actor_name, seen.last_switch.reason) == ("ada", "it is cheaper.")


async def test_S13_a_locked_model_is_the_admins(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, session_id: UUID, refused: Refused,
    journal: JournalRows,
) -> None:  # fmt: skip
    switch = await sessions.switch_model(session_id, "smart", db_session, actor=ada, reason="audit", lock=True)
    assert (switch.changed, switch.session.row.locked, switch.session.row.version) == (True, True, 2)
    (row,) = await journal("model_locked")
    assert (row.actor_name, row.owner_id, row.reason, row.to_value, row.version) == ("ada", ann.id, "audit", "smart", 2)
    for model in ("fast", "smart", "no-such-model"):
        async with refused("model_locked"):
            await sessions.switch_model(session_id, model, db_session, actor=ann)
    async with refused("model_locked"):
        await sessions.begin_turn(session_id, "Hello", db_session, actor=ann, model="fast")
    assert (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn.model == "smart"


async def test_S13_only_an_admin_locks_and_unlocks(
    sessions: SessionService, db_session: DbSession, ann: Actor, script: Actor, ada: Actor, session_id: UUID,
    refused: Refused, journal: JournalRows,
) -> None:  # fmt: skip
    for actor in (ann, script):
        for lock in (True, False):
            async with refused("forbidden"):
                await sessions.switch_model(session_id, "smart", db_session, actor=actor, lock=lock)
    await sessions.switch_model(session_id, "smart", db_session, actor=ada, reason="audit", lock=True)
    again = await sessions.switch_model(session_id, "fast", db_session, actor=ada, reason="other")
    assert (again.changed, again.session.row.locked) == (True, True)
    freed = await sessions.switch_model(session_id, "fast", db_session, actor=ada, reason="done", lock=False)
    assert (freed.changed, freed.session.row.locked) == (False, False)
    assert len(await journal("model_unlocked")) == 1
    assert (await sessions.switch_model(session_id, "smart", db_session, actor=ann)).changed is True


async def test_S13_locking_twice_is_locking_once(
    sessions: SessionService, db_session: DbSession, ada: Actor, session_id: UUID, everything: Everything
) -> None:
    await sessions.switch_model(session_id, "smart", db_session, actor=ada, reason="audit", lock=True)
    before = await everything()
    again = await sessions.switch_model(session_id, "smart", db_session, actor=ada, reason="audit", lock=True)
    assert again.changed is False
    assert await everything() == before


async def test_S13_a_locked_model_that_goes_away_blocks_instead_of_falling_back(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, session_id: UUID, offer: Offer,
    refused: Refused,
) -> None:  # fmt: skip
    await sessions.switch_model(session_id, "smart", db_session, actor=ada, reason="audit", lock=True)
    await offer(smart={"state": "disabled"})
    current = await sessions.current_model(session_id, db_session, actor=ann)
    assert (current.id, current.usable, current.wanted) == (None, False, "smart")
    async with refused("no_model_available"):
        await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)


async def test_an_admins_token_without_that_scope_is_no_admin(
    sessions: SessionService, db_session: DbSession, ada: Actor, session_id: UUID, refused: Refused
) -> None:
    scopes = frozenset({"read", "chat"})
    token = Actor(kind="token", id=ada.id, name="ada", group="admin", rate_key="r", role="admin", scopes=scopes)
    async with refused("session_not_found"):
        await sessions.switch_model(session_id, "smart", db_session, actor=token, reason="try")


@pytest.mark.parametrize("reason", ["default", "fork", "fallback", "replacement", "import"])
async def test_S13_whatever_the_admins_reason_the_owner_sees_who(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, session_id: UUID, reason: str
) -> None:
    await sessions.switch_model(session_id, "smart", db_session, actor=ada, reason=reason)
    current = await sessions.current_model(session_id, db_session, actor=ann)
    assert current.reason == f"Chosen by ada: {reason}."


async def test_S4_an_alias_moves_on_from_a_model_that_is_gone(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, offer: Offer
) -> None:
    await offer(small={"aliases": ["tiny"]})
    await offer(small=None, fast={"aliases": ["quick", "tiny"]})
    assert (await sessions.switch_model(session_id, "tiny", db_session, actor=ann)).to_model == "fast"


async def test_S4_M2_a_model_that_goes_by_another_name_takes_its_sessions_along(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, session_id: UUID, offer: Offer
) -> None:
    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    await offer(smart=None, smarter={"aliases": ["smart"]})
    current = await sessions.current_model(session_id, db_session, actor=ann)
    assert (current.id, current.source, current.wanted) == ("smarter", "replacement", "smart")
    theirs = (await sessions.create_session(db_session, actor=bob, model="smart")).row
    assert theirs.last_model == "smarter"

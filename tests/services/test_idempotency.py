"""One key, one effect: rules I9 and D1."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec

from db.db_session import DbSession
from services.actor import Actor
from services.session_service import SessionService
from tests.conftest import AtOnce, Clock, Configure, Everything, Orders, Refused, StorageFails


async def test_D1_a_repeated_turn_is_answered_with_the_first_one(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, everything: Everything,
    orders: Orders,
) -> None:  # fmt: skip
    first = await sessions.begin_turn(session_id, "Hello", db_session, actor=ann, key="k1")
    before = await everything()
    again = await sessions.begin_turn(session_id, "Hello", db_session, actor=ann, key="k1")
    assert (again.turn.id, again.session.row.id, again.turn.state) == (first.turn.id, session_id, "running")
    assert await everything() == before
    assert len(orders.started) == 1
    await sessions.finish_turn(first.turn.id, db_session, state="done", tail="Hi")
    ended = await sessions.begin_turn(session_id, "Hello", db_session, actor=ann, key="k1")
    assert (ended.turn.id, ended.turn.state, ended.turn.reply) == (first.turn.id, "done", "Hi")


async def test_D1_a_repeated_first_prompt_makes_one_session(
    sessions: SessionService, ann: Actor, everything: Everything, at_once: AtOnce
) -> None:
    results = await at_once(20, lambda _, db: sessions.begin_turn(None, "Hello", db, actor=ann, key="k1"))
    assert results.codes == []
    assert len({begun.turn.session_id for begun in results.done}) == 1
    rows = await everything()
    assert (len(rows["session"]), len(rows["turn"])) == (1, 1)


async def test_D1_a_repeated_switch_is_answered_with_the_first_one(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, everything: Everything
) -> None:
    await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)
    first = await sessions.switch_model(session_id, "smart", db_session, actor=ann, expected_version=1, key="k1")
    await sessions.switch_model(session_id, "far", db_session, actor=ann)
    before = await everything()
    again = await sessions.switch_model(session_id, "smart", db_session, actor=ann, expected_version=1, key="k1")
    assert await everything() == before
    for switch in (first, again):
        assert (switch.changed, switch.from_model, switch.to_model) == (True, "fast", "smart")
        assert (switch.effective, switch.warnings) == ("next_turn", ())
    assert again.session.row.last_model == "far"


async def test_D1_L5_a_repeated_call_tells_the_limits_as_they_stand_and_takes_nothing(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, configure: Configure
) -> None:
    await configure("user", turns="10/min burst 10", switches="9/min", sessions_created="8/min", tokens_per_day=100_000)
    await sessions.switch_model(session_id, "fast", db_session, actor=ann)
    for verb in (
        lambda: sessions.create_session(db_session, actor=ann, key="k1"),
        lambda: sessions.fork_session(session_id, db_session, actor=ann, key="k1"),
        lambda: sessions.switch_model(session_id, "smart", db_session, actor=ann, key="k1"),
        lambda: sessions.begin_turn(session_id, "Hello", db_session, actor=ann, key="k1"),
    ):
        first, again = (await verb()).allowance, (await verb()).allowance
        assert again and {one.name: one.used for one in again} == {one.name: one.used for one in first}
        assert {(one.name, one.model) for one in again} == {(one.name, one.model) for one in first}


async def test_D1_a_switch_that_changed_nothing_is_remembered_too(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID
) -> None:
    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    assert (await sessions.switch_model(session_id, "smart", db_session, actor=ann, key="k1")).changed is False
    await sessions.switch_model(session_id, "fast", db_session, actor=ann)
    assert (await sessions.switch_model(session_id, "smart", db_session, actor=ann, key="k1")).changed is False
    row = await db_session.find_session(session_id, ann.id)
    assert row is not None and row.last_model == "fast"


async def test_D1_twenty_switches_with_one_key_are_one(
    sessions: SessionService, ann: Actor, session_id: UUID, at_once: AtOnce, everything: Everything
) -> None:
    results = await at_once(20, lambda _, db: sessions.switch_model(session_id, "smart", db, actor=ann, key="k1"))
    assert results.codes == []
    assert {switch.changed for switch in results.done} == {True}
    rows = await everything()
    assert [row["what"] for row in rows["journal"]].count("model_chosen") == 1
    assert len(rows["idempotency"]) == 1


async def test_D1_the_same_key_for_another_turn_is_refused(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, refused: Refused
) -> None:
    asked = {"session_id": session_id, "prompt": "Hello", "db_session": db_session, "actor": ann, "key": "k1"}
    await sessions.begin_turn(**asked)  # type: ignore[arg-type]
    for change in ({"prompt": "Other"}, {"model": "smart"}, {"session_id": None}, {"expected_version": 0}):
        async with refused("idempotency_key_reused"):
            await sessions.begin_turn(**{**asked, **change})  # type: ignore[arg-type]


async def test_D1_the_same_key_for_another_switch_or_session_is_refused(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, refused: Refused
) -> None:
    await sessions.switch_model(session_id, "smart", db_session, actor=ann, key="k1")
    for change in ({"new_model": "fast"}, {"when": "stop"}, {"reason": "other"}, {"session_id": uuid4()}):
        asked: dict[str, Any] = {"session_id": session_id, "new_model": "smart", "db_session": db_session}
        async with refused("idempotency_key_reused"):
            await sessions.switch_model(**{**asked, **change}, actor=ann, key="k1")
    await sessions.create_session(db_session, actor=ann, title="One", key="k2")
    for change in ({"title": "Two"}, {"model": "fast"}):
        async with refused("idempotency_key_reused"):
            await sessions.create_session(db_session, **{"title": "One", **change}, actor=ann, key="k2")  # type: ignore[arg-type]


async def test_D1_a_key_is_the_actors_and_the_verbs_own(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, script: Actor, everything: Everything
) -> None:
    mine = await sessions.create_session(db_session, actor=ann, key="k1")
    theirs = await sessions.create_session(db_session, actor=bob, key="k1")
    assert mine.row.id != theirs.row.id
    assert (await sessions.create_session(db_session, actor=script, key="k1")).row.id == mine.row.id
    begun = await sessions.begin_turn(mine.row.id, "Hello", db_session, actor=ann, key="k1")
    switch = await sessions.switch_model(mine.row.id, "smart", db_session, actor=ann, key="k1")
    assert (begun.turn.session_id, switch.changed) == (mine.row.id, True)
    assert len((await everything())["idempotency"]) == 4


async def test_D1_a_refused_call_is_not_remembered(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, configure: Configure, clock: Clock,
    refused: Refused,
) -> None:  # fmt: skip
    await configure("user", turns="1/min")
    turn = (await sessions.begin_turn(session_id, "One", db_session, actor=ann)).turn
    async with refused("session_busy"):
        await sessions.begin_turn(session_id, "Two", db_session, actor=ann, key="k1")
    await sessions.finish_turn(turn.id, db_session, state="done")
    async with refused("rate_limited") as told:
        await sessions.begin_turn(session_id, "Two", db_session, actor=ann, key="k1")
    clock.at += told.wait
    begun = await sessions.begin_turn(session_id, "Two", db_session, actor=ann, key="k1")
    assert (begun.turn.prompt, begun.turn.state) == ("Two", "running")


async def test_D1_a_failed_call_is_not_remembered(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, refused: Refused,
    storage_fails: StorageFails,
) -> None:  # fmt: skip
    async with refused("storage_unavailable"), storage_fails("commit"):
        await sessions.begin_turn(session_id, "Hello", db_session, actor=ann, key="k1")
    begun = await sessions.begin_turn(session_id, "Hello", db_session, actor=ann, key="k1")
    assert begun.turn.state == "running"


async def test_D1_the_key_is_answered_before_state_and_limits_are_judged(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, configure: Configure,
    everything: Everything,
) -> None:  # fmt: skip
    await configure("user", turns="1/h", switches="1/h")
    begun = await sessions.begin_turn(session_id, "Hello", db_session, actor=ann, key="k1")
    await sessions.switch_model(session_id, "smart", db_session, actor=ann, key="k2")
    await sessions.close_session(session_id, db_session, actor=ann)
    before = await everything()
    again = await sessions.begin_turn(session_id, "Hello", db_session, actor=ann, key="k1")
    assert (again.turn.id, again.turn.state, again.session.state) == (begun.turn.id, "stopped", "closed")
    assert (await sessions.switch_model(session_id, "smart", db_session, actor=ann, key="k2")).changed is True
    assert await everything() == before


async def test_D1_after_the_session_is_deleted_nothing_is_made_again(
    sessions: SessionService, db_session: DbSession, ann: Actor, refused: Refused
) -> None:
    begun = await sessions.begin_turn(None, "Hello", db_session, actor=ann, key="k1")
    made = await sessions.create_session(db_session, actor=ann, title="One", key="k1")
    await sessions.delete_session(begun.turn.session_id, db_session, actor=ann)
    await sessions.delete_session(made.row.id, db_session, actor=ann)
    async with refused("session_not_found"):
        await sessions.begin_turn(None, "Hello", db_session, actor=ann, key="k1")
    async with refused("session_not_found"):
        await sessions.create_session(db_session, actor=ann, title="One", key="k1")


async def test_D1_every_verb_of_life_is_done_once_under_its_key(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, clock: Clock,
    everything: Everything, orders: Orders,
) -> None:  # fmt: skip
    async def twice(call: Callable[[], Awaitable[Any]], *, after: float = 1) -> tuple[Any, Any]:
        clock.pass_(hours=after)
        first = await call()
        before, stopped = await everything(), list(orders.stopped)
        clock.pass_(hours=1)
        again = await call()
        assert await everything() == before
        assert orders.stopped == stopped
        return first, again

    for one in await twice(lambda: sessions.rename_session(session_id, "Rome", db_session, actor=ann, key="k")):
        assert (one.row.title, one.row.version) == ("Rome", 1)
    for one in await twice(lambda: sessions.extend_session(session_id, db_session, actor=ann, key="k")):
        assert (one.extended, one.reason, one.session.row.version) == (True, "", 2)
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    for one in await twice(lambda: sessions.stop_turn(turn.id, db_session, actor=ann, key="k"), after=0):
        assert (one.id, one.state) == (turn.id, "stopped")
    clock.pass_(days=31)
    for one in await twice(lambda: sessions.reopen_session(session_id, db_session, actor=ann, key="k")):
        assert (one.state, one.row.version) == ("active", 4)
    for one in await twice(lambda: sessions.close_session(session_id, db_session, actor=ann, key="k")):
        assert (one.state, one.row.version) == ("closed", 5)
    for one in await twice(lambda: sessions.pin_session(session_id, db_session, actor=ann, key="k")):
        assert (one.row.pinned, one.row.version) == (True, 6)
    for one in await twice(lambda: sessions.pin_session(session_id, db_session, actor=ann, pinned=False, key="k")):
        assert (one.row.pinned, one.row.version) == (False, 7)
    for one in await twice(lambda: sessions.archive_session(session_id, db_session, actor=ann, key="k")):
        assert (one.row.archived, one.row.version) == (True, 8)
    for one in await twice(
        lambda: sessions.archive_session(session_id, db_session, actor=ann, archived=False, key="k")
    ):
        assert (one.row.archived, one.row.version) == (False, 9)
    await twice(lambda: sessions.delete_session(session_id, db_session, actor=ann, key="k"))
    for one in await twice(lambda: sessions.restore_session(session_id, db_session, actor=ann, key="k")):
        assert (one.row.deleted_at, one.row.version) == (None, 11)
    await twice(lambda: sessions.delete_session(session_id, db_session, actor=ann, for_good=True, key="gone"))
    assert (await everything())["session"] == []


async def test_D1_a_key_is_forgotten_after_a_day(
    sessions: SessionService, db_session: DbSession, ann: Actor, clock: Clock
) -> None:
    first = await sessions.create_session(db_session, actor=ann, key="k1")
    clock.pass_(hours=23, minutes=59)
    await sessions.sweep(db_session)
    assert (await sessions.create_session(db_session, actor=ann, key="k1")).row.id == first.row.id
    clock.at += timedelta(minutes=2)
    await sessions.sweep(db_session)
    assert (await sessions.create_session(db_session, actor=ann, key="k1")).row.id != first.row.id


async def test_D1_without_a_key_every_call_counts(
    sessions: SessionService, db_session: DbSession, ann: Actor, everything: Everything
) -> None:
    for key in (None, "", None):
        await sessions.create_session(db_session, actor=ann, key=key)
    rows = await everything()
    assert (len(rows["session"]), rows["idempotency"]) == (3, [])


async def test_D1_a_key_that_is_too_long_is_refused(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, refused: Refused
) -> None:
    async with refused("invalid_request"):
        await sessions.begin_turn(session_id, "Hello", db_session, actor=ann, key="k" * 201)
    await sessions.begin_turn(session_id, "Hello", db_session, actor=ann, key="k" * 200)


async def test_D1_a_key_that_no_column_can_hold_is_refused(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, refused: Refused
) -> None:
    for key in ("a\0b", "\ud800"):
        async with refused("invalid_request"):
            await sessions.begin_turn(session_id, "Hello", db_session, actor=ann, key=key)


async def test_D1_the_content_is_kept_as_a_fingerprint_only(
    sessions: SessionService, db_session: DbSession, ann: Actor, everything: Everything
) -> None:
    await sessions.begin_turn(None, "a canary in the prompt", db_session, actor=ann, key="k1")
    (row,) = (await everything())["idempotency"]
    assert len(row["fingerprint"]) == 64
    assert "canary" not in msgspec.json.encode(row, enc_hook=str).decode()


async def test_D1_a_key_is_forgotten_after_a_day_without_any_sweep(
    sessions: SessionService, db_session: DbSession, ann: Actor, clock: Clock
) -> None:
    first = await sessions.create_session(db_session, actor=ann, title="One", key="k1")
    clock.pass_(hours=24, microseconds=1)
    second = await sessions.create_session(db_session, actor=ann, title="Two", key="k1")
    assert first.row.id != second.row.id

"""Refusals in the journal: rule J2, and the bookkeeping that I5 leaves aside."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from db.db_session import DbSession
from db.tables import RefusalCount
from services.actor import Actor
from services.errors import Refusal
from services.session_service import SessionService
from tests.conftest import AtOnce, Clock, Configure, Everything, JournalRows, StorageFails

Call = Callable[[], Awaitable[Any]]


async def turned_down(call: Call, code: str) -> None:
    with pytest.raises(Refusal) as raised:
        await call()
    assert raised.value.code == code


async def counted() -> dict[tuple[str, str], int]:
    """The counts that wait for a sweep: (name, code) → how many."""
    return {(row.actor_name, row.code): row.times for row in await RefusalCount.objects()}


async def test_J2_a_refusal_is_journalled_though_nothing_else_is_kept(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, journal: JournalRows,
    everything: Everything, clock: Clock,
) -> None:  # fmt: skip
    ann = msgspec.structs.replace(ann, request_id="r7")
    before = await everything()
    await turned_down(
        lambda: sessions.switch_model(session_id, "no-such-model", db_session, actor=ann), "model_unknown"
    )
    assert await everything() == before
    (row,) = await journal("refused")
    assert (row.outcome, row.reason, row.at, row.request_id) == ("model_unknown", "switch_model", clock(), "r7")
    assert (row.actor_kind, row.actor_id, row.actor_name) == ("user", ann.id, "ann")
    assert (row.session_id, row.from_value, row.to_value, row.version) == (session_id, None, None, None)


async def test_J2_the_first_of_an_actor_code_and_minute_then_their_number(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, session_id: UUID, clock: Clock,
    journal: JournalRows,
) -> None:  # fmt: skip
    clock.pass_(seconds=30)

    async def unknown(actor: Actor = ann) -> None:
        own = (await sessions.ensure_session(None, db_session, actor=actor)).row.id
        await turned_down(lambda: sessions.switch_model(own, "nothing", db_session, actor=actor), "model_unknown")

    for _ in range(4):
        await unknown()
    for _ in range(2):
        await turned_down(lambda: sessions.switch_model(session_id, "off", db_session, actor=ann), "model_disabled")
    await unknown(bob)
    rows = [(row.actor_name, row.outcome) for row in await journal("refused")]
    assert rows == [("ann", "model_unknown"), ("ann", "model_disabled"), ("bob", "model_unknown")]
    assert await counted() == {
        ("ann", "model_unknown"): 4,
        ("ann", "model_disabled"): 2,
        ("bob", "model_unknown"): 1,
    }
    await sessions.sweep(db_session)
    assert await journal("refusals_counted") == []  # the minute is not over
    clock.pass_(seconds=30)
    await unknown()
    assert [row.actor_name for row in await journal("refused")] == ["ann", "ann", "bob", "ann"]
    await sessions.sweep(db_session)
    told = {(row.outcome, row.owner_id): row.reason for row in await journal("refusals_counted")}
    assert told == {
        ("model_unknown", ann.id): "3 more of ann in the minute of 2026-05-04 12:00",
        ("model_disabled", ann.id): "1 more of ann in the minute of 2026-05-04 12:00",
    }
    assert {row.actor_kind for row in await journal("refusals_counted")} == {"system"}
    clock.pass_(minutes=1)
    for _ in range(2):
        await sessions.sweep(db_session)
    assert (len(await journal("refusals_counted")), await counted()) == (2, {})


async def test_J2_twenty_at_once_are_one_row_and_a_count(
    sessions: SessionService, other_worker: SessionService, ann: Actor, session_id: UUID, at_once: AtOnce,
    journal: JournalRows, clock: Clock,
) -> None:  # fmt: skip
    workers = (sessions, other_worker)
    results = await at_once(20, lambda n, db: workers[n % 2].switch_model(session_id, "nothing", db, actor=ann))
    assert results.codes == ["model_unknown"] * 20
    assert len(await journal("refused")) == 1
    clock.pass_(minutes=1)
    await at_once(4, lambda n, db: workers[n % 2].sweep(db))
    (row,) = await journal("refusals_counted")
    assert row.reason.startswith("19 more of ann ")


async def test_J2_every_verb_of_an_actor_is_told_by_its_name_and_once(
    sessions: SessionService, db_session: DbSession, ann: Actor, clock: Clock, journal: JournalRows,
    configure: Configure,
) -> None:  # fmt: skip
    await configure("user", sessions_created="1/h", concurrent_turns=1)
    turn = (await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn
    id, absent = turn.session_id, uuid4()
    calls: list[tuple[str, str, Call]] = [
        ("create_session", "rate_limited", lambda: sessions.create_session(db_session, actor=ann)),
        ("ensure_session", "rate_limited", lambda: sessions.ensure_session(None, db_session, actor=ann)),
        # A verb within a verb is one refusal, under the name that was asked for.
        ("begin_turn", "rate_limited", lambda: sessions.begin_turn(None, "Two", db_session, actor=ann)),
        ("begin_turn", "session_busy", lambda: sessions.begin_turn(id, "Two", db_session, actor=ann)),
        ("retry_turn", "session_busy", lambda: sessions.retry_turn(turn.id, db_session, actor=ann)),
        ("edit_turn", "session_busy", lambda: sessions.edit_turn(turn.id, "Two", db_session, actor=ann)),
        ("fork_session", "rate_limited", lambda: sessions.fork_session(id, db_session, actor=ann)),
        ("switch_model", "model_retired", lambda: sessions.switch_model(id, "old", db_session, actor=ann)),
        ("stop_turn", "session_not_found", lambda: sessions.stop_turn(absent, db_session, actor=ann)),
        ("rename_session", "session_not_found", lambda: sessions.rename_session(absent, "x", db_session, actor=ann)),
        ("extend_session", "session_not_found", lambda: sessions.extend_session(absent, db_session, actor=ann)),
        ("close_session", "session_not_found", lambda: sessions.close_session(absent, db_session, actor=ann)),
        ("reopen_session", "session_not_found", lambda: sessions.reopen_session(absent, db_session, actor=ann)),
        ("delete_session", "session_not_found", lambda: sessions.delete_session(absent, db_session, actor=ann)),
    ]
    for number, (verb, code, call) in enumerate(calls, start=1):
        for _ in range(3):  # a minute, in which the turn is kept alive
            clock.pass_(seconds=20)
            await sessions.heartbeat([turn.id], db_session)
        await turned_down(call, code)
        rows = await journal("refused")
        assert len(rows) == number, verb
        assert (rows[-1].reason, rows[-1].outcome) == (verb, code)
        assert rows[-1].session_id in ((None,) if code == "session_not_found" else (None, id))
    assert set((await counted()).values()) == {1}


async def test_J2_what_is_not_there_for_somebody_is_not_named(
    sessions: SessionService, db_session: DbSession, bob: Actor, session_id: UUID, journal: JournalRows
) -> None:
    await turned_down(lambda: sessions.rename_session(session_id, "Mine", db_session, actor=bob), "session_not_found")
    (row,) = await journal("refused")
    assert (row.session_id, row.owner_id in (None, bob.id)) == (None, True)


async def test_J2_a_failing_database_is_told_to_the_caller_and_needs_no_row(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, storage_fails: StorageFails,
    journal: JournalRows,
) -> None:  # fmt: skip
    async with storage_fails("journal"):
        await turned_down(
            lambda: sessions.rename_session(session_id, "x", db_session, actor=ann), "storage_unavailable"
        )
        # A refusal stands, though it cannot be written down.
        await turned_down(lambda: sessions.switch_model(session_id, "x", db_session, actor=ann), "model_unknown")
    assert await journal("refused") == []
    await turned_down(lambda: sessions.switch_model(session_id, "x", db_session, actor=ann), "model_unknown")
    assert len(await journal("refused")) == 1


async def test_J2_a_sweep_settles_in_portions_and_loses_no_count(
    sessions: SessionService, db_session: DbSession, clock: Clock, journal: JournalRows
) -> None:
    for number in range(30):
        actor = Actor(kind="user", id=uuid4(), name=f"user-{number}", group="user", rate_key=f"account:{number}")
        for _ in range(2):
            call = partial(sessions.rename_session, uuid4(), "x", db_session, actor=actor)
            await turned_down(call, "session_not_found")
    clock.at += timedelta(minutes=1)
    while await counted():
        await sessions.sweep(db_session)
    assert len(await journal("refusals_counted")) == 30


async def test_J2_a_session_is_named_only_to_who_may_see_it(
    sessions: SessionService, db_session: DbSession, bob: Actor, session_id: UUID, journal: JournalRows
) -> None:
    own = (await sessions.create_session(db_session, actor=bob)).row.id
    await sessions.switch_model(own, "smart", db_session, actor=bob, key="k1")
    for key, code in (("k1", "idempotency_key_reused"), ("k" * 201, "invalid_request")):
        with pytest.raises(Refusal) as raised:
            await sessions.switch_model(session_id, "smart", db_session, actor=bob, key=key)
        assert raised.value.code == code
    assert {row.session_id for row in await journal("refused")} == {None}


async def test_J2_a_refused_form_is_told_too(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, journal: JournalRows
) -> None:
    with pytest.raises(Refusal):
        await sessions.begin_turn(session_id, "x" * 100_001, db_session, actor=ann)
    with pytest.raises(Refusal):
        await sessions.rename_session(session_id, "x" * 121, db_session, actor=ann)
    assert [(row.reason, row.outcome) for row in await journal("refused")] == [
        ("begin_turn", "prompt_too_long"),
        ("rename_session", "invalid_request"),
    ]

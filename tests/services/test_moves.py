"""Moving every session of one model to another: rule S14."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from db.db_session import DbSession, new_id
from db.engine import Engine
from db.tables import Account, ModelMove, Session
from services.actor import Actor
from services.event_bus import MemoryEventBus
from services.moves import MoveRunner, Moves
from services.session_service import SessionService
from services.turns import LEASE
from tests.conftest import AtOnce, Chain, Clock, Configure, JournalRows, Offer, Refused, Until, an_actor

WHY = "the old one goes"


@pytest.fixture
def moves(sessions: SessionService) -> Moves:
    return Moves(sessions)


@pytest.fixture
async def sixty(sessions: SessionService, db_session: DbSession, configure: Configure, clock: Clock) -> list[UUID]:
    """Sixty sessions of six people on `fast`: of each one's ten, one is locked and one has a reply running."""
    await configure("user", sessions_created="0", turns="0", concurrent_turns=50)
    made = []
    for number in range(6):
        owner = an_actor(f"person{number}")
        for place in range(10):
            session_id = (await sessions.create_session(db_session, actor=owner, model="fast")).row.id
            if place == 0:
                admin = an_actor("ada", "admin")
                await sessions.switch_model(session_id, "fast", db_session, actor=admin, reason="stay", lock=True)
            if place == 1:
                await sessions.begin_turn(session_id, "Hello", db_session, actor=owner)
            made.append(session_id)
    return made


async def through(moves: Moves, worker: UUID, db_session: DbSession, clock: Clock) -> int:
    """Run whatever is claimed to its end; how many batches it took."""
    move_id, batches = await moves.claim(worker, db_session), 0
    assert move_id is not None
    while (wait := await moves.advance(move_id, worker, db_session)) is not None:
        clock.pass_(seconds=wait.total_seconds())
        batches += 1
    return batches


async def test_S14_a_dry_run_counts_and_changes_nothing(
    moves: Moves, sixty: list[UUID], db_session: DbSession, ada: Actor, everything: object
) -> None:
    before = await everything()  # type: ignore[operator]
    found = await moves.preview("fast", "smart", db_session, actor=ada)
    assert (found.total, found.running, found.locked, found.refused) == (60, 6, 6, 0)
    assert [session.id for session, _ in found.sample] == sorted(sixty)[:5]
    assert (await moves.preview("fast", "hidden", db_session, actor=ada)).refused == 60
    assert await everything() == before  # type: ignore[operator]


async def test_S14_every_live_session_is_switched_once_and_its_owner_sees_who_and_why(
    moves: Moves, sessions: SessionService, sixty: list[UUID], db_session: DbSession, ada: Actor, bob: Actor,
    clock: Clock, chain: Chain, journal: JournalRows,
) -> None:  # fmt: skip
    other = (await sessions.create_session(db_session, actor=bob, model="small")).row.id
    closed = (await sessions.create_session(db_session, actor=bob, model="fast")).row.id
    await sessions.close_session(closed, db_session, actor=bob)
    move = await moves.order("fast", "smart", WHY, db_session, actor=ada)
    assert (move.state, move.total) == ("running", 60)
    await through(moves, new_id(), db_session, clock)
    (done,) = await moves.list_moves(db_session, actor=ada)
    assert (done.state, done.total, done.moved, done.skipped, done.note) == ("done", 60, 60, 0, "")
    for session_id in sixty:
        assert (await chain(session_id))[-2:] == ["fast", "smart"]
        live = await sessions.get_session(session_id, db_session, actor=ada)
        assert live.current.reason.startswith(f"Chosen by ada: {WHY}.")
    assert await chain(other) == ["small"]
    assert await chain(closed) == ["fast"]
    ours = [row for row in await journal("model_switched") if row.reason == WHY]
    assert {row.actor_name for row in ours} == {"ada"} and len(ours) == 60
    told = [(row.what, row.from_value, row.to_value) for row in await journal() if row.what.startswith("move_")]
    assert told == [("move_ordered", "fast", "smart"), ("move_ended", "fast", "smart")]
    locked = [one for one in sixty if (await sessions.get_session(one, db_session, actor=ada)).row.locked]
    assert len(locked) == 6


async def test_S14_what_its_owner_may_not_use_is_skipped_and_counted(
    moves: Moves, sessions: SessionService, db_session: DbSession, ada: Actor, ann: Actor, clock: Clock, chain: Chain
) -> None:
    theirs = (await sessions.create_session(db_session, actor=ann, model="fast")).row.id
    hers = (await sessions.create_session(db_session, actor=ada, model="fast")).row.id
    await moves.order("fast", "hidden", WHY, db_session, actor=ada)
    await through(moves, new_id(), db_session, clock)
    (done,) = await moves.list_moves(db_session, actor=ada)
    assert (done.state, done.moved, done.skipped) == ("done", 1, 1)
    assert await chain(theirs) == ["fast"]
    assert await chain(hers) == ["fast", "hidden"]


async def test_S14_killed_halfway_another_process_goes_on_and_counts_right(
    moves: Moves, other_worker: SessionService, sessions: SessionService, sixty: list[UUID], db_session: DbSession,
    ada: Actor, clock: Clock, chain: Chain, journal: JournalRows, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    move = await moves.order("fast", "smart", WHY, db_session, actor=ada)
    first, second = new_id(), new_id()
    assert await moves.claim(first, db_session) == move.id

    switch, switched = sessions.switch_model, 0

    async def dying(*args: object, **named: object) -> object:
        nonlocal switched
        switched += 1
        result = await switch(*args, **named)  # type: ignore[arg-type]
        if switched == 25:
            raise asyncio.CancelledError
        return result

    monkeypatch.setattr(sessions, "switch_model", dying)
    with pytest.raises(asyncio.CancelledError):
        await moves.advance(move.id, first, db_session)
    monkeypatch.undo()
    elsewhere = Moves(other_worker)
    assert await elsewhere.claim(second, db_session) is None, "the lease still lives"
    clock.pass_(seconds=LEASE.total_seconds() + 1)
    await through(elsewhere, second, db_session, clock)
    assert await moves.advance(move.id, first, db_session) is None, "who lost the lease goes on with nothing"
    (done,) = await moves.list_moves(db_session, actor=ada)
    assert (done.state, done.moved, done.skipped) == ("done", 60, 0)
    assert len([row for row in await journal("model_switched") if row.reason == WHY]) == 60
    for session_id in sixty:
        await chain(session_id)


async def test_S14_a_second_worker_beside_the_first_switches_nothing_twice(
    moves: Moves, other_worker: SessionService, sixty: list[UUID], engine: Engine, db_session: DbSession, ada: Actor,
    journal: JournalRows,
) -> None:  # fmt: skip
    await moves.order("fast", "smart", WHY, db_session, actor=ada)
    claims = await asyncio.gather(
        moves.claim(new_id(), DbSession(engine)), Moves(other_worker).claim(new_id(), DbSession(engine))
    )
    assert sorted(claim is None for claim in claims) == [False, True]


async def test_S14_it_waits_for_the_limit_of_switches(
    moves: Moves, sessions: SessionService, db_session: DbSession, ada: Actor, ann: Actor, clock: Clock,
    configure: Configure,
) -> None:  # fmt: skip
    for _ in range(4):
        await sessions.create_session(db_session, actor=ann, model="fast")
    await configure("admin", switches="6/min burst 2")
    await moves.order("fast", "smart", WHY, db_session, actor=ada)
    began = clock()
    await through(moves, new_id(), db_session, clock)
    (done,) = await moves.list_moves(db_session, actor=ada)
    assert (done.state, done.moved, done.skipped) == ("done", 4, 0)
    assert clock() - began == timedelta(seconds=20)


async def test_S14_it_stops_when_who_ordered_it_is_no_longer_an_admin(
    moves: Moves, sessions: SessionService, db_session: DbSession, ada: Actor, ann: Actor, clock: Clock
) -> None:
    await sessions.create_session(db_session, actor=ann, model="fast")
    await moves.order("fast", "smart", WHY, db_session, actor=ada)
    await Account.update({Account.role: "user"}).where(Account.id == ada.id)
    await through(moves, new_id(), db_session, clock)
    (stopped,) = await db_session.list_moves(5)
    assert (stopped.state, stopped.moved, stopped.note) == ("stopped", 0, "ada is no longer an admin.")


async def test_S14_it_stops_when_its_model_is_taken_away(
    moves: Moves, sessions: SessionService, db_session: DbSession, ada: Actor, ann: Actor, clock: Clock, offer: Offer
) -> None:
    await sessions.create_session(db_session, actor=ann, model="fast")
    await moves.order("fast", "smart", WHY, db_session, actor=ada)
    await offer(smart={"state": "disabled"})
    await through(moves, new_id(), db_session, clock)
    (stopped,) = await db_session.list_moves(5)
    assert (stopped.state, stopped.note) == ("stopped", "“Smart” is switched off.")


async def test_S14_an_admin_stops_it_where_it_is(
    moves: Moves, sessions: SessionService, db_session: DbSession, ada: Actor, ann: Actor, chain: Chain
) -> None:
    session_id = (await sessions.create_session(db_session, actor=ann, model="fast")).row.id
    move = await moves.order("fast", "smart", WHY, db_session, actor=ada)
    worker = new_id()
    await moves.claim(worker, db_session)
    for _ in range(2):
        assert (await moves.stop(move.id, db_session, actor=ada)).note == "Stopped by ada."
    assert await moves.advance(move.id, worker, db_session) is None
    assert await chain(session_id) == ["fast"]


async def test_S14_one_key_is_one_order(moves: Moves, db_session: DbSession, ada: Actor, refused: Refused) -> None:
    first = await moves.order("fast", "smart", WHY, db_session, actor=ada, key="k")
    again = await moves.order("fast", "smart", WHY, db_session, actor=ada, key="k")
    assert first.id == again.id
    async with refused("idempotency_key_reused"):
        await moves.order("fast", "small", WHY, db_session, actor=ada, key="k")
    async with refused("invalid_request") as told:
        await moves.order("fast", "small", WHY, db_session, actor=ada)
    assert told.facts["field"] == "from"


async def test_S14_what_makes_no_sense_is_refused(
    moves: Moves, db_session: DbSession, ada: Actor, ann: Actor, refused: Refused
) -> None:
    for from_model, to_model, reason, code in (
        ("none", "smart", WHY, "invalid_request"),
        ("fast", "quick", WHY, "invalid_request"),
        ("fast", "smart", " ", "invalid_request"),
        ("fast", "none", WHY, "model_unknown"),
        ("fast", "off", WHY, "model_disabled"),
        ("fast", "old", WHY, "model_retired"),
    ):
        async with refused(code):
            await moves.order(from_model, to_model, reason, db_session, actor=ada)
    async with refused("forbidden"):
        await moves.order("fast", "smart", WHY, db_session, actor=ann)
    async with refused("forbidden"):
        await moves.preview("fast", "smart", db_session, actor=ann)
    async with refused("forbidden"):
        await moves.list_moves(db_session, actor=ann)


@pytest.fixture
async def runner(moves: Moves, engine: Engine, bus: MemoryEventBus) -> AsyncIterator[MoveRunner]:
    runner = MoveRunner(moves, new_id(), lambda: DbSession(engine))
    await runner.open()
    yield runner
    await runner.close()


async def test_S14_a_runner_begins_what_is_ordered_and_comes_to_its_end(
    moves: Moves, runner: MoveRunner, sixty: list[UUID], db_session: DbSession, ada: Actor, until: Until
) -> None:
    await moves.order("fast", "smart", WHY, db_session, actor=ada)

    async def ended() -> bool:
        (move,) = await db_session.list_moves(5)
        return move.state == "done"

    await until(ended)
    assert [move.moved for move in await ModelMove.objects()] == [60]


async def test_S14_who_switches_after_the_listing_keeps_the_choice(
    moves: Moves, sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, session_id: UUID,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    await sessions.switch_model(session_id, "fast", db_session, actor=ann)
    move = await moves.order("fast", "smart", WHY, db_session, actor=ada)
    await moves.claim(sessions.worker, db_session)
    listed = db_session.list_sessions_on

    async def and_then_ann_switches(*args: Any) -> list[Session]:
        found = await listed(*args)
        if found:
            await sessions.switch_model(session_id, "aging", DbSession(db_session.engine), actor=ann)
        return found

    monkeypatch.setattr(db_session, "list_sessions_on", and_then_ann_switches)
    while await moves.advance(move.id, sessions.worker, db_session) is not None:
        pass
    assert (await sessions.get_session(session_id, db_session, actor=ann)).row.last_model == "aging"


async def test_S14_two_orders_at_once_are_one(
    moves: Moves, sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, session_id: UUID,
    at_once: AtOnce,
) -> None:  # fmt: skip
    await sessions.switch_model(session_id, "fast", db_session, actor=ann)
    results = await at_once(8, lambda _, db: moves.order("fast", "smart", WHY, db, actor=ada))
    assert (len(results.done), set(results.codes)) == (1, {"invalid_request"})


async def test_S4_S14_a_move_from_an_alias_is_one_from_its_model(
    moves: Moves, sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, session_id: UUID
) -> None:
    await sessions.switch_model(session_id, "fast", db_session, actor=ann)
    found = await moves.preview("quick", "smart", db_session, actor=ada)
    assert (found.from_model, found.total) == ("fast", 1)
    assert (await moves.order("quick", "smart", WHY, db_session, actor=ada)).from_model == "fast"

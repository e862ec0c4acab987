"""What is worthless is forgotten bit by bit, and a clock that jumps admits nobody, blocks nobody and loses no text."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from db.db_session import DbSession, Piece, new_id
from db.engine import Engine
from db.tables import Account, Idempotency, Login, ModelMove, RateBucket
from services import upkeep
from services.actor import Actor
from services.errors import ConcurrencyLimited, RateLimited
from services.moves import Moves
from services.policies import microseconds
from services.session_service import SessionService
from services.turns import LEASE
from tests.conftest import Clock, Configure, Orders

DAY, TEN_YEARS = timedelta(days=1), timedelta(days=3653)
JUMPS = [DAY, -DAY, TEN_YEARS, -TEN_YEARS]


async def spent(rows: int, account: Account, now: datetime, db_session: DbSession) -> None:
    """Rates that are whole, logins that have ended, keys that are old, and one of each that is not."""
    before = now - timedelta(days=2)
    for number in range(-1, rows):
        at = now if number < 0 else before
        await db_session.add(RateBucket(key=f"rate {number}", tat_us=microseconds(at) + (number < 0)))
        await db_session.add(
            Login(
                id=new_id(), account_id=account.id, token_hash=f"login {number}", created_at=before,
                last_used_at=before, expires_at=at + timedelta(seconds=number < 0),
            )
        )  # fmt: skip
        await db_session.add(
            Idempotency(actor_id=account.id, verb="verb", key=f"key {number}", fingerprint="", created_at=at)
        )


async def test_E9_what_is_spent_is_deleted_a_bounded_number_of_rows_at_a_time(
    sessions: SessionService, db_session: DbSession, engine: Engine, ann: Actor, clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    account = await db_session.find_account(ann.id)
    assert account is not None
    await spent(35, account, clock(), db_session)
    monkeypatch.setattr(upkeep, "FORGOTTEN_ROWS", 10)
    deleted: dict[str, list[int]] = {}
    run = engine.run

    async def listened(sql: str, args: Sequence[Any] = ()) -> list[Any]:
        rows = await run(sql, args)
        if sql.startswith("DELETE"):
            assert not db_session.in_transaction
            deleted.setdefault(sql.split()[2], []).append(len(rows))
        return rows

    monkeypatch.setattr(engine, "run", listened)
    await sessions.upkeep.forget(db_session)
    assert deleted == {name: [10, 10, 10, 5] for name in ("rate_bucket", "login", "idempotency")}
    await sessions.upkeep.forget(db_session)
    for table in (RateBucket, Login, Idempotency):
        assert await table.count() == 1


async def test_E9_a_backlog_is_not_deleted_all_in_one_go(
    sessions: SessionService, db_session: DbSession, ann: Actor, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = await db_session.find_account(ann.id)
    assert account is not None
    await spent(30, account, clock(), db_session)
    monkeypatch.setattr(upkeep, "FORGOTTEN_ROWS", 4)
    monkeypatch.setattr(upkeep, "ROUNDS", 2)
    await sessions.sweep(db_session)
    assert await RateBucket.count() == 31 - 8


# ---------------------------------------------------------------- clocks that jump


@pytest.mark.parametrize("jump", JUMPS, ids=str)
async def test_C5_a_clock_that_jumps_admits_no_more_than_fits_and_the_rate_works_on(
    sessions: SessionService, db_session: DbSession, ann: Actor, clock: Clock, configure: Configure, jump: timedelta
) -> None:
    await configure("user", sessions_created="2/min burst 2", open_sessions=0)

    async def admitted(times: int) -> int:
        count = 0
        for _ in range(times):
            try:
                await sessions.create_session(db_session, actor=ann)
                count += 1
            except RateLimited as refusal:
                assert refusal.retry_after_seconds > 0
        return count

    assert await admitted(5) == 2
    clock.at += jump
    # Forwards the time has passed, by all that anybody can tell; backwards nobody gets in earlier.
    assert await admitted(5) == (2 if jump > timedelta(0) else 0)
    await sessions.sweep(db_session)
    assert await admitted(5) == 0
    # One place grows back in half a minute, whatever the clock was before: the rate is as full as it can be.
    clock.pass_(seconds=31)
    assert await admitted(5) == 1
    clock.at -= jump
    await sessions.sweep(db_session)
    clock.pass_(seconds=61)
    assert await admitted(5) == 2


@pytest.mark.parametrize("jump", JUMPS, ids=str)
async def test_I7_a_clock_that_jumps_blocks_no_slot_for_longer_than_a_lease(
    sessions: SessionService, other_worker: SessionService, db_session: DbSession, ann: Actor, session_id: UUID,
    clock: Clock, configure: Configure, orders: Orders, jump: timedelta,
) -> None:  # fmt: skip
    """The worker dies, the clock jumps, and another process looks after what was left."""
    await configure("user", concurrent_turns=1, turns="0", sessions_created="0")
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    await sessions.append([Piece(session_id, turn.id, 0, "shown ")], db_session)
    clock.at += jump
    second = (await other_worker.create_session(db_session, actor=ann)).row.id
    if jump < timedelta(0):
        with pytest.raises(ConcurrencyLimited):
            await other_worker.begin_turn(second, "And?", db_session, actor=ann)
    await other_worker.sweep(db_session)
    clock.pass_(seconds=LEASE.total_seconds() + 1)
    await other_worker.sweep(db_session)
    kept = await db_session.find_turn(turn.id)
    assert kept is not None and (kept.state, kept.reply, kept.error_code) == ("interrupted", "shown ", "interrupted")
    await other_worker.begin_turn(second, "And?", db_session, actor=ann)


@pytest.mark.parametrize("jump", JUMPS, ids=str)
async def test_G5_a_clock_that_jumps_under_a_running_turn_loses_no_text(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, clock: Clock, jump: timedelta
) -> None:
    """It goes on where the clock went back, and ends with its text and a reason where it went ahead."""
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    await sessions.append([Piece(session_id, turn.id, 0, "shown ")], db_session)
    clock.at += jump
    for _ in range(4):
        await sessions.sweep(db_session)
        await sessions.heartbeat([turn.id], db_session)
        clock.pass_(seconds=LEASE.total_seconds() / 3)
    held = await sessions.append([Piece(session_id, turn.id, 6, "and more")], db_session)
    await sessions.finish_turn(turn.id, db_session, state="done")
    kept = await db_session.find_turn(turn.id)
    assert kept is not None
    if jump < timedelta(0):
        assert (held, kept.state, kept.reply) == ({turn.id}, "done", "shown and more")
    else:
        assert (held, kept.state, kept.reply, kept.error_code) == (set(), "interrupted", "shown ", "interrupted")


async def test_S14_a_move_is_taken_over_after_the_clock_was_set_back(
    sessions: SessionService, db_session: DbSession, ada: Actor, session_id: UUID, clock: Clock
) -> None:
    moves = Moves(sessions)
    await moves.order("fast", "smart", "costs", db_session, actor=ada)
    worker, other = new_id(), new_id()
    assert await moves.claim(worker, db_session) is not None
    clock.at -= TEN_YEARS
    assert await moves.claim(other, db_session) is None
    await sessions.sweep(db_session, thorough=False)
    assert await moves.claim(other, db_session) is None
    clock.pass_(seconds=LEASE.total_seconds() + 1)
    assert await moves.claim(other, db_session) is not None
    assert await ModelMove.count() == 1

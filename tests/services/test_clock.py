"""A clock that is set back makes nobody wait for longer than a rate lasts: rule L8, and what else compares times."""

from datetime import timedelta
from uuid import UUID

import pytest

from db.db_session import DbSession
from services.accounts import Accounts
from services.actor import Actor
from services.client_pool import ClientPool
from services.clients import Usage as Counted
from services.errors import RateLimited, Refusal, Unauthenticated
from services.event_bus import MemoryEventBus
from services.session_service import SessionService
from services.sign_in_limits import PAIR
from tests.conftest import AtOnce, Clock, Configure, Offer

BACK = [timedelta(hours=2), timedelta(days=1), timedelta(days=3650)]


async def refusal_of(call: object) -> Refusal | None:
    try:
        await call  # type: ignore[misc]
    except Refusal as refusal:
        return refusal
    return None


@pytest.mark.parametrize("back", BACK, ids=str)
@pytest.mark.parametrize("verb", ["message", "switch", "session"])
async def test_L8_after_the_clock_is_set_back_nobody_waits_longer_than_one_place_takes(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, configure: Configure, clock: Clock,
    back: timedelta, verb: str,
) -> None:  # fmt: skip
    rate, models = "6/min burst 3", ["smart", "fast"]
    await configure("user", turns=rate, switches=rate, sessions_created=rate)
    await sessions.switch_model(session_id, "fast", db_session, actor=ann)
    clock.pass_(hours=1)

    async def use() -> None:
        if verb == "session":
            await sessions.create_session(db_session, actor=ann)
        elif verb == "switch":
            await sessions.switch_model(session_id, models[0], db_session, actor=ann)
            models.reverse()
        else:
            begun = await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)
            await sessions.finish_turn(begun.turn.id, db_session, state="done")

    for _ in range(3):
        await use()
    clock.at -= back
    # The page tells it before anybody tries.
    name = {"message": "turns", "switch": "switches", "session": "sessions_created"}[verb]
    (known,) = [one for one in await sessions.allowances(db_session, actor=ann) if one.name == name]
    assert (known.remaining, known.retry_after_seconds(clock())) in ((0, 10), (3, 1))
    refusal = await refusal_of(use())
    assert isinstance(refusal, RateLimited)
    assert refusal.retry_after_seconds == 10
    # The wait that was told is the wait there is, no sooner and no later.
    clock.pass_(seconds=9, microseconds=999_999)
    assert isinstance(await refusal_of(use()), RateLimited)
    clock.pass_(microseconds=1)
    await use()
    assert isinstance(await refusal_of(use()), RateLimited)
    # And when the clock is right again, nothing is left of it.
    clock.at += back
    if back < timedelta(days=30):  # the session has not expired
        await use()


async def test_L8_many_at_once_after_the_clock_was_set_back_admit_exactly_what_grows_back(
    sessions: SessionService, ann: Actor, configure: Configure, clock: Clock, at_once: AtOnce
) -> None:
    await configure("user", sessions_created="6/min burst 2", open_sessions=0)

    async def admitted(times: int) -> int:
        results = await at_once(times, lambda n, db: sessions.create_session(db, actor=ann, title=f"{n}"))
        assert set(results.codes) <= {"rate_limited"}
        return len(results.done)

    assert await admitted(5) == 2
    clock.at -= timedelta(hours=2)
    assert await admitted(6) == 0
    clock.pass_(seconds=10)
    assert await admitted(6) == 1
    clock.pass_(seconds=20)
    assert await admitted(6) == 2


async def test_L8_attempts_to_sign_in_wait_no_longer_than_their_rate_after_the_clock_was_set_back(
    sessions: SessionService, db_session: DbSession, clock: Clock
) -> None:
    accounts = Accounts(b"secret", guests=True, now=clock)
    nobody = accounts.nobody("203.0.113.9", "")

    async def attempt() -> Refusal | None:
        return await refusal_of(accounts.sign_in("nobody", "wrong password", db_session, actor=nobody))

    refusals = [await attempt() for _ in range(PAIR.burst + 1)]
    assert isinstance(refusals[0], Unauthenticated) and isinstance(refusals[-1], RateLimited)
    clock.at -= timedelta(days=1)
    refusal = await attempt()
    assert isinstance(refusal, RateLimited)
    assert timedelta(seconds=refusal.retry_after_seconds) <= timedelta(microseconds=PAIR.window_us)
    clock.pass_(seconds=refusal.retry_after_seconds)
    assert isinstance(await attempt(), Unauthenticated)


@pytest.mark.parametrize("back", BACK, ids=str)
async def test_L8_what_a_wrong_clock_booked_on_days_to_come_is_no_use_of_today(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, offer: Offer, clock: Clock,
    back: timedelta,
) -> None:  # fmt: skip
    await offer(fast={"max_reply_tokens": 100})
    await configure("user", tokens_per_day=150, sessions_created="0", turns="0")
    clock.at += back
    day = clock().date()
    turn = (await sessions.begin_turn(None, "x" * 40, db_session, actor=ann)).turn
    await sessions.finish_turn(turn.id, db_session, state="done", usage=Counted(50, 100))
    clock.at -= back
    used = {one.name: one.used for one in await sessions.allowances(db_session, actor=ann)}["tokens_per_day"]
    if clock().date() == day:
        assert used == 150
    else:
        assert used == 0
        await sessions.begin_turn(None, "x" * 40, db_session, actor=ann)


async def test_a_transcript_that_was_opened_under_a_clock_ahead_does_not_stay_open(
    engine: object, pool: ClientPool, bus: MemoryEventBus, sessions: SessionService, db_session: DbSession, ada: Actor,
    session_id: UUID, clock: Clock,
) -> None:  # fmt: skip
    reading = SessionService(pool, bus, now=clock, admins_read=True).inspection
    session = await db_session.find_session(session_id, None)
    assert session is not None
    clock.pass_(hours=2)
    await reading.open(session, "a complaint", db_session, actor=ada)
    assert await reading.is_open(session_id, db_session, actor=ada)
    clock.pass_(hours=-2)
    assert not await reading.is_open(session_id, db_session, actor=ada)
    await reading.open(session, "a complaint, again", db_session, actor=ada)
    assert await reading.is_open(session_id, db_session, actor=ada)

"""Texts that took too long to render are remembered by every process, and their number is bounded."""

import asyncio
from datetime import timedelta

import pytest

from db.db_session import DatabaseUnavailable, DbSession
from db.engine import Engine
from db.tables import RenderTimeout
from services import render_timeouts
from services.render_timeouts import RenderTimeouts
from services.session_service import SessionService
from tests.conftest import Clock


@pytest.fixture
def timeouts(engine: Engine, clock: Clock) -> RenderTimeouts:
    return RenderTimeouts(lambda: DbSession(engine), clock)


async def test_53_what_one_process_found_every_other_knows(
    timeouts: RenderTimeouts, engine: Engine, clock: Clock
) -> None:
    other = RenderTimeouts(lambda: DbSession(engine), clock)
    assert await other.known(["one", "two"]) == set()
    await asyncio.gather(timeouts.remember("one"), other.remember("one"), timeouts.remember("one"))
    assert await RenderTimeout.count() == 1
    later = RenderTimeouts(lambda: DbSession(engine), clock)
    assert await later.known([*map(str, range(1_200)), "one", "one"]) == {"one"}
    assert await later.known([]) == set()


async def test_53_while_the_database_is_away_a_process_remembers_by_itself(
    timeouts: RenderTimeouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise DatabaseUnavailable("locked")

    with monkeypatch.context() as patched:
        patched.setattr(DbSession, "find_render_timeouts", away)
        patched.setattr(DbSession, "add_render_timeout", away)
        await timeouts.remember("one")
        assert await timeouts.known(["one", "two"]) == {"one"}
    assert await RenderTimeout.count() == 0
    assert await timeouts.known(["one", "two"]) == {"one"}


async def test_the_oldest_of_too_many_are_forgotten(
    sessions: SessionService, timeouts: RenderTimeouts, db_session: DbSession, clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(render_timeouts, "KEPT", 5)
    monkeypatch.setattr(render_timeouts, "FORGOTTEN_ROWS", 2)
    for number in range(12):
        clock.at += timedelta(seconds=1)
        await timeouts.remember(f"text {number}")
    await sessions.sweep(db_session, alone=False, thorough=True)
    left = await RenderTimeout.select(RenderTimeout.digest).order_by(RenderTimeout.created_at)
    assert [row["digest"] for row in left] == [f"text {number}" for number in range(7, 12)]

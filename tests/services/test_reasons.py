"""Whatever takes something from somebody else needs a reason, and that somebody is told it: rules O2 and S13."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest

from db.db_session import DbSession, new_id
from services.actor import Actor
from services.configuration import configured
from services.governance import Governance
from services.moves import Moves
from services.session_service import SessionService
from tests.conftest import MODELS, AtOnce, Clock, Everything, JournalRows, Refused

Verb = Callable[..., Awaitable[Any]]
#: what takes a session away from its owner, by what the journal calls it
TAKING: dict[str, Verb] = {
    "session_closed": lambda sessions, id, db, actor, **asks: sessions.close_session(id, db, actor=actor, **asks),
    "session_deleted": lambda sessions, id, db, actor, **asks: sessions.delete_session(id, db, actor=actor, **asks),
}


@pytest.mark.parametrize("what", TAKING)
async def test_S13_somebody_elses_session_is_not_taken_away_without_a_reason(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, session_id: UUID, refused: Refused,
    everything: Everything, journal: JournalRows, what: str,
) -> None:  # fmt: skip
    await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)
    before = await everything()
    for reason in ("", " \n"):
        async with refused("invalid_request") as told:
            await TAKING[what](sessions, session_id, db_session, ada, reason=reason)
        assert told.refusal.facts["field"] == "reason"
    assert await everything() == before
    await TAKING[what](sessions, session_id, db_session, ada, reason="  spring   cleaning ", key="k")
    # The same click once more is the same deed.
    if what == "session_deleted":
        await TAKING[what](sessions, session_id, db_session, ada, reason="spring cleaning", key="k")
    (row,) = await journal(what)
    assert (row.actor_name, row.owner_id, row.reason) == ("ada", ann.id, "spring cleaning")


@pytest.mark.parametrize("what", TAKING)
async def test_S13_ones_own_session_needs_no_reason(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, journal: JournalRows, what: str
) -> None:
    await TAKING[what](sessions, session_id, db_session, ann)
    (row,) = await journal(what)
    assert (row.actor_name, row.reason) == ("ann", "")


async def test_S13_that_it_is_over_is_said_before_that_a_reason_is_missing(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, session_id: UUID, refused: Refused
) -> None:
    await sessions.close_session(session_id, db_session, actor=ann)
    async with refused("session_closed"):
        await sessions.close_session(session_id, db_session, actor=ada)
    await sessions.delete_session(session_id, db_session, actor=ann)
    for verb in TAKING.values():
        async with refused("session_not_found"):
            await verb(sessions, session_id, db_session, ada)


async def test_S13_two_admins_at_once_close_once_and_the_owner_is_told_the_first_reason(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, session_id: UUID, at_once: AtOnce,
    journal: JournalRows,
) -> None:  # fmt: skip
    reasons = ["the first", "the second", ""]
    together = await at_once(3, lambda n, db: sessions.close_session(session_id, db, actor=ada, reason=reasons[n]))
    assert len(together.done) == 1
    assert set(together.codes) <= {"session_closed", "invalid_request"}
    (row,) = await journal("session_closed")
    assert row.reason in reasons[:2]
    ending = (await sessions.get_session(session_id, db_session, actor=ann)).ending
    assert ending is not None and ending.reason == row.reason


async def test_O2_the_owner_is_told_who_closed_or_deleted_a_session_and_why(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, session_id: UUID, clock: Clock
) -> None:
    async def told(session_id: UUID = session_id, show: Any = "all") -> tuple[str, str] | None:
        page = await sessions.list_sessions(db_session, actor=ann, show=show)
        (one,) = [one for one in page.sessions if one.row.id == session_id]
        if show == "all":
            assert (await sessions.get_session(session_id, db_session, actor=ann)).ending == one.ending
        return (one.ending.actor_name, one.ending.reason) if one.ending is not None else None

    assert await told() is None
    await sessions.delete_session(session_id, db_session, actor=ada, reason="by mistake")
    assert await told(show="deleted") == ("ada", "by mistake")
    clock.pass_(minutes=1)
    assert (await sessions.restore_session(session_id, db_session, actor=ann)).ending is None
    await sessions.close_session(session_id, db_session, actor=ada, reason="costs")
    assert await told() == ("ada", "costs")
    await sessions.delete_session(session_id, db_session, actor=ann)
    assert await told(show="deleted") == ("ann", "")
    # Had back, it is closed as before, and that is what is told of it.
    await sessions.restore_session(session_id, db_session, actor=ann)
    assert await told() == ("ada", "costs")
    idled = (await sessions.create_session(db_session, actor=ann)).row.id
    clock.pass_(days=30)
    assert await told(idled) is None


async def test_O2_a_model_is_not_taken_out_of_use_without_a_reason(
    sessions: SessionService, db_session: DbSession, ada: Actor, clock: Clock, refused: Refused, everything: Everything,
    journal: JournalRows,
) -> None:  # fmt: skip
    governance = Governance(sessions.units, configured(MODELS, {}, "fast"), clock)
    for state in ("retired", "disabled"):
        before = await everything()
        for asked in ({}, {"state_reason": " ", "reason": ""}):
            async with refused("invalid_request") as told:
                await governance.set_model("smart", db_session, actor=ada, state=state, **asked)  # type: ignore[arg-type]
            assert told.refusal.facts["field"] == "state_reason"
        assert await everything() == before
        why = {"state_reason": "too dear"} if state == "retired" else {"reason": "a leak"}
        await governance.set_model("smart", db_session, actor=ada, state=state, **why)  # type: ignore[arg-type]
        # Nothing more is taken by what follows.
        await governance.set_model("smart", db_session, actor=ada, state=state, concurrent_turns=3)  # type: ignore[arg-type]
    await governance.set_model("smart", db_session, actor=ada, state="active")
    assert [row.reason for row in await journal("model_changed")] == ["too dear", "", "a leak", ""]


async def test_S14_a_move_of_another_admin_is_not_stopped_without_a_reason(
    sessions: SessionService, db_session: DbSession, ada: Actor, bob: Actor, refused: Refused, everything: Everything
) -> None:
    moves = Moves(sessions)
    eve = Actor(kind="admin", id=new_id(), name="eve", group="admin", rate_key="account:eve", role="admin")
    move = await moves.order("fast", "smart", "costs", db_session, actor=ada)
    before = await everything()
    async with refused("invalid_request") as told:
        await moves.stop(move.id, db_session, actor=eve)
    assert told.refusal.facts["field"] == "reason"
    assert await everything() == before
    assert (
        await moves.stop(move.id, db_session, actor=eve, reason="wrong model")
    ).note == "Stopped by eve: wrong model"
    # It is over, so there is nothing left to give a reason for.
    assert (await moves.stop(move.id, db_session, actor=eve)).note == "Stopped by eve: wrong model"

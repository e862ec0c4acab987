"""The only ways to a session and its turns: through the owner, and to change one, locked and live.

A collaborator of SessionService and of the upkeep.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from db.db_session import DbSession, changes_between, snapshot
from db.tables import Session, Turn
from services.actor import SYSTEM, Actor
from services.errors import NotFound, Refusal, SessionClosed, SessionExpired
from services.event_bus import EventBus, Hint
from services.outcomes import State
from services.policies import DELETED_KEPT
from services.records import publish
from services.standing import Standing, state_of
from services.unit_of_work import UnitOfWork

NO_TURN = "There is no such turn."


class Access:
    """Finds, locks and saves; what it does not find is not there, whoever has it."""

    def __init__(self, units: UnitOfWork, standing: Standing, bus: EventBus) -> None:
        self._units, self._standing, self._bus = units, standing, bus

    async def require(
        self, session_id: UUID, db_session: DbSession, actor: Actor, *, lock: bool = False, deleted: bool = False
    ) -> Session:
        """A session through its owner; an admin reaches every one. Raises NotFound.

        With `deleted` also one that its owner can still have back; for everybody else it is not there.
        """
        session = await db_session.find_session(
            session_id,
            None if actor.is_admin else actor.id,
            lock=lock,
            deleted_after=self._units.now() - DELETED_KEPT if deleted else None,
        )
        if session is None or (session.deleted_at is not None and session.owner_id != actor.id):
            raise NotFound()
        return session

    @asynccontextmanager
    async def changing(
        self, session_id: UUID, db_session: DbSession, actor: Actor, *, also: State = "active", verb: str = ""
    ) -> AsyncIterator[Session]:
        """The only way to get a session to change: through its owner, locked, live, saved and announced.

        What does not ask whether it lives is `also` for a closed one.
        """
        async with self._units.writing(db_session, actor=actor, verb=verb):
            session = await self.require(session_id, db_session, actor, lock=True)
            lifetime, now = await self._standing.lifetime(session, db_session), self._units.now()
            state, mine = state_of(session, lifetime, now), session.owner_id == actor.id
            try:
                if also != "closed":
                    if state == "closed":
                        raise SessionClosed(can_fork=mine)
                    if state == "expired" and also != "expired":
                        raise SessionExpired(can_reopen=lifetime.only_idled_out(session, now), can_fork=mine)
                    # Stored again with the first change: it may live again under today's policy, or have idled out.
                    session.state = state
                before = snapshot(session)
                yield session
            except Refusal as refusal:
                refusal.session_id = session.id
                raise
            if changes := changes_between(before, session):
                await db_session.update(session, **{"state": session.state, **changes})
                publish(self._bus, Hint(session.id, "session"), db_session)

    async def require_turn(self, turn_id: UUID, db_session: DbSession, actor: Actor) -> Turn:
        """A turn through its session's owner. Raises NotFound."""
        turn = await db_session.find_turn(turn_id)
        if turn is None:
            raise NotFound(NO_TURN)
        try:
            await self.require(turn.session_id, db_session, actor)
        except NotFound as error:
            raise NotFound(NO_TURN) from error
        return turn

    async def lock_turn(self, turn_id: UUID, db_session: DbSession, actor: Actor = SYSTEM) -> tuple[Session, Turn]:
        """A turn and its session, both kept from changing until commit; the session first. Raises NotFound."""
        found = await db_session.find_turn(turn_id)
        owner_id = None if actor.is_admin else actor.id
        session = await db_session.find_session(found.session_id, owner_id, lock=True) if found is not None else None
        turn = await db_session.find_turn(turn_id, lock=True) if session is not None else None
        if session is None or turn is None:
            raise NotFound(NO_TURN)
        return session, turn

    async def turn_in(self, session: Session, turn_id: UUID | None, db_session: DbSession) -> Turn | None:
        """A turn of this session; None for none. Raises NotFound."""
        if turn_id is None:
            return None
        turn = await db_session.find_turn(turn_id)
        if turn is None or turn.session_id != session.id:
            raise NotFound(NO_TURN)
        return turn

"""Inspection: an admin reads somebody else's transcript, where the deployment says so, and the journal shows it.

To open one is a decision with a reason, which its owner sees. It lets that admin read for a while; the row of the
journal is the permission, so nobody reads without one.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from uuid import UUID

from db.db_session import DbSession
from db.tables import Session
from services.actor import Actor, require_admin
from services.errors import Forbidden, InvalidRequest
from services.records import record
from services.text import REASON_CHARACTERS, checked_line
from services.unit_of_work import UnitOfWork

#: how long a transcript that was opened may be read
OPEN = timedelta(minutes=15)
#: how far the clocks of several machines may differ
AHEAD = timedelta(minutes=1)
#: openings that are looked through for one of lately
OPENINGS = 20


class Inspection:
    """Who may read what others own."""

    def __init__(self, units: UnitOfWork, now: Callable[[], datetime], *, allowed: bool) -> None:
        self._units, self.now = units, now
        #: whether this deployment lets admins read chats at all
        self.allowed = allowed

    async def open(
        self, session: Session, reason: str, db_session: DbSession, *, actor: Actor, key: str | None = None
    ) -> None:
        """Let an admin read a session for a while. Raises Forbidden, InvalidRequest."""
        async with self._units.refusing("open_transcript", actor, db_session):
            reason = checked_line(reason, REASON_CHARACTERS, "reason")
        async with self._units.once("open_transcript", key, (session.id, reason), actor, db_session) as once:
            if once.answer:
                return
            require_admin(actor)
            self.require_allowed()
            if not reason:
                raise InvalidRequest("Please give a reason; the owner of the session will see it.", field="reason")
            await record("transcript_opened", session, actor, self.now(), db_session, reason=reason)

    def require_allowed(self) -> None:
        """Raise Forbidden where no admin reads chats."""
        if not self.allowed:
            raise Forbidden("On this server admins do not read chats.")

    async def is_open(self, session_id: UUID, db_session: DbSession, *, actor: Actor) -> bool:
        """Whether the actor has opened it lately."""
        if not self.allowed or not actor.is_admin:
            return False
        rows, now = (
            await db_session.list_decisions(
                limit=OPENINGS, session_id=session_id, account_id=actor.id, what="transcript_opened"
            ),
            self.now(),
        )
        # Opened in the future means under a clock that has been set back: it must not stay open until then.
        return any(now - OPEN < row.at <= now + AHEAD for row in rows)

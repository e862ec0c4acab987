"""The desk: live sessions and running turns of everybody as they happen, and what an admin does to many at once.

Whoever watches looks at the rows once a second: what another process does shows as soon as what this one does. To act
on many is to ask the same verb for each, so every session is judged, changed and journalled by itself.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import msgspec

from db.db_session import DatabaseUnavailable, DbSession
from services.accounts import Credentials
from services.actor import Actor, require_admin
from services.errors import InvalidRequest, NoModelAvailable, Refusal
from services.event_bus import Subscription
from services.outcomes import LiveSession, Sort
from services.readers import Readers
from services.session_service import SessionService
from services.text import storable
from services.turn_log import Gone, Ousted

#: between two looks
LOOK_SECONDS = 1.0
#: sessions that one order acts on
MOST_AT_ONCE = 200

Deed = Literal["switch", "lock", "unlock", "stop", "extend", "close"]


class Wanted(msgspec.Struct, frozen=True):
    """Which sessions are to be shown, and in which order."""

    q: str = ""
    state: str = ""
    model: str = ""
    #: a name
    owner: str = ""
    group: str = ""
    #: only those in which a reply is being written
    running: bool = False
    sort: Sort = "activity"


class Writing(msgspec.Struct, frozen=True):
    """A reply that is being written."""

    turn_id: UUID
    model: str
    begun_at: datetime
    #: an estimate
    tokens: int
    #: since its first text; None before
    tokens_per_second: float | None


class OnDesk(msgspec.Struct, frozen=True):
    """A session as the desk shows it."""

    session: LiveSession
    writing: Writing | None


class DeskPage(msgspec.Struct, frozen=True):
    """Part of what is on the desk."""

    sessions: list[OnDesk]
    next: tuple[Any, UUID] | None
    #: replies that are being written on the whole server
    running: int


class Outcome(msgspec.Struct, frozen=True):
    """What became of one session of an order; no code where it was done."""

    session_id: UUID
    code: str = ""
    detail: str = ""


class Desk:
    """What admins watch and steer."""

    def __init__(self, sessions: SessionService, readers: Readers, open_session: Callable[[], DbSession]) -> None:
        self._sessions, self._readers, self._open_session = sessions, readers, open_session
        self.now = sessions.now

    async def look(
        self,
        wanted: Wanted,
        db_session: DbSession,
        *,
        actor: Actor,
        after: tuple[Any, UUID] | None = None,
        limit: int = 50,
    ) -> DeskPage:
        """Everybody's sessions, with what is being written in them. Raises Forbidden."""
        require_admin(actor)
        asked = msgspec.structs.asdict(wanted)
        if name := storable(asked.pop("owner")):
            account = await db_session.find_account_by_name(name)
            if account is None:
                return DeskPage([], None, await db_session.count_running_turns(self.now()))
            asked["owner_id"] = account.id
        page = await self._sessions.list_sessions(
            db_session, actor=actor, everybody=True, limit=limit, after=after, **asked
        )
        now = self.now()
        figures = await db_session.list_figures([one.row.id for one in page.sessions if one.running_turn], now)
        return DeskPage(
            [OnDesk(one, _writing(figures.get(one.row.id), now)) for one in page.sessions],
            page.next,
            await db_session.count_running_turns(now),
        )

    async def watch(
        self, wanted: Wanted, *, actor: Actor, proof: Credentials | None = None, limit: int = 50
    ) -> AsyncGenerator[DeskPage | Gone | Ousted, None]:
        """The first page again and again, as long as the reader may, until the server stops. Raises Forbidden."""
        subscription = Subscription()
        with self._readers.seated(None, actor, proof, subscription) as seat:
            while not self._readers.is_over:
                if seat.gone or seat.ousted:
                    yield Gone() if seat.gone else Ousted()
                    return
                with suppress(DatabaseUnavailable):
                    yield await self.look(wanted, self._open_session(), actor=actor, limit=limit)
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await subscription.woken.wait()
                        subscription.take()

    async def act(
        self,
        deed: Deed,
        session_ids: Sequence[UUID],
        db_session: DbSession,
        *,
        actor: Actor,
        model: str = "",
        reason: str = "",
        key: str | None = None,
    ) -> list[Outcome]:
        """Do the same to each of these sessions; one that refuses keeps no other from it.

        Raises Forbidden, InvalidRequest.
        """
        async with self._sessions.units.refusing(deed, actor, db_session):
            require_admin(actor)
            if not 0 < len(set(session_ids)) <= MOST_AT_ONCE:
                raise InvalidRequest(f"Choose 1 to {MOST_AT_ONCE} sessions.", field="session_ids")
            if deed == "switch" and not model:
                raise InvalidRequest("Choose a model.", field="model")
        outcomes = []
        for session_id in dict.fromkeys(session_ids):
            asks = {"actor": actor, "key": _key_of(key, session_id)}
            try:
                await self._act(deed, session_id, model, reason, db_session, asks)
            except Refusal as refusal:
                outcomes.append(Outcome(session_id, refusal.code, str(refusal)))
            else:
                outcomes.append(Outcome(session_id))
        return outcomes

    async def _act(
        self, deed: Deed, session_id: UUID, model: str, reason: str, db_session: DbSession, asks: dict[str, Any]
    ) -> None:
        sessions, actor = self._sessions, asks["actor"]
        if deed == "switch":
            await sessions.switch_model(session_id, model, db_session, reason=reason, **asks)
        elif deed == "extend":
            await sessions.extend_session(session_id, db_session, **asks)
        elif deed == "close":
            await sessions.close_session(session_id, db_session, reason=reason, **asks)
        else:
            session = await sessions.get_session(session_id, db_session, actor=actor)
            if deed == "stop":
                if session.running_turn is not None:
                    await sessions.stop_turn(session.running_turn, db_session, **asks)
                return
            if session.current.id is None:
                raise NoModelAvailable
            lock, model = deed == "lock", session.current.id
            await sessions.switch_model(session_id, model, db_session, lock=lock, reason=reason, **asks)


def _writing(figures: tuple[UUID, str, datetime, datetime | None, int] | None, now: datetime) -> Writing | None:
    if figures is None:
        return None
    turn_id, model, begun_at, first_text_at, characters = figures
    # Three characters are a token, as `services.text` estimates; which characters they are is not looked at.
    tokens, seconds = characters // 3, (now - first_text_at).total_seconds() if first_text_at else 0.0
    return Writing(turn_id, model, begun_at, tokens, tokens / seconds if seconds > 0 else None)


def _key_of(key: str | None, session_id: UUID) -> str | None:
    """A key of its own for each session of an order."""
    return hashlib.sha256(f"{key} {session_id}".encode("utf-8", "surrogatepass")).hexdigest() if key else None

"""What pages list: transcripts and timelines, through their owner; nothing here writes."""

from collections.abc import Sequence
from uuid import UUID

import msgspec

from db.db_session import DbSession, Written
from db.tables import Journal, Turn
from services.access import NO_TURN
from services.actor import Actor
from services.errors import Forbidden, NotFound
from services.model_rule import came_by_itself, is_first, is_owners
from services.outcomes import LiveSession
from services.session_service import SessionService

#: switches that one page of a transcript tells of
SWITCHES = 50
NOT_YOURS = "Only its owner reads a session."


class Transcript(msgspec.Struct, frozen=True):
    """Part of a session's transcript, oldest first."""

    turns: list[Turn]
    #: what the running turn among them has written so far
    written: Written
    #: the last turn of the part before; None at the beginning
    earlier: UUID | None


class Ways(msgspec.Struct, frozen=True):
    """From one turn to those in its place, each a list in the order they were begun, with the turn itself."""

    #: other messages: of each that was asked several times, the newest
    messages: list[UUID]
    #: other replies to the same message
    replies: list[UUID]

    @classmethod
    def of(cls, turn_id: UUID, siblings: Sequence[tuple[UUID, int]]) -> "Ways":
        """`siblings` are the turns in one place, with a number that is the same where they ask the same."""
        asked = dict(siblings)[turn_id]
        newest = {number: id for id, number in siblings} | {asked: turn_id}
        # In the order in which each message was first sent.
        return cls([newest[number] for number in newest], [id for id, number in siblings if number == asked])


class Reads:
    """Reading, scoped to the owner. An admin steers what others own, and reads no more of it than was opened."""

    def __init__(self, sessions: SessionService) -> None:
        self._sessions = sessions

    async def transcript(
        self, session: LiveSession, db_session: DbSession, *, actor: Actor, last: UUID | None = None, limit: int = 50
    ) -> Transcript:
        """The turns that end with `last`, or with the session's head. Raises Forbidden, NotFound."""
        await self._may_read(session, db_session, actor)
        turns = await db_session.list_path(last or session.row.head_id, limit)
        if (last is not None and not turns) or any(turn.session_id != session.row.id for turn in turns):
            raise NotFound(NO_TURN)
        written = Written()
        if turns:
            turns[-1], written = await self._so_far(turns[-1], db_session)
        return Transcript(turns, written, turns[0].parent_id if turns else None)

    async def ways(
        self, session: LiveSession, turns: Sequence[Turn], db_session: DbSession, *, actor: Actor
    ) -> dict[UUID, Ways]:
        """{turn: the ways from it to its siblings}, where it has any. Raises Forbidden."""
        require_owner(session, actor)
        if not turns or session.row.turn_count == turns[-1].depth:
            return {}  # every turn there is stands on the path
        found = await db_session.list_siblings(session.row.id, {turn.parent_id for turn in turns})
        return {turn.id: Ways.of(turn.id, ones) for turn in turns if len(ones := found[turn.parent_id]) > 1}

    async def lock(self, session: LiveSession, db_session: DbSession) -> Journal | None:
        """The decision that locked a session's model; None where it is not locked."""
        return await db_session.find_lock(session.row.id) if session.row.locked else None

    async def switches(
        self, session: LiveSession, turns: Sequence[Turn], db_session: DbSession, *, actor: Actor
    ) -> list[Journal]:
        """Who put the session on another model since the first of these turns, oldest first. Raises Forbidden."""
        require_owner(session, actor)
        begun = turns[0].created_at if turns else session.row.created_at
        found = await db_session.list_switches(session.row.id, SWITCHES)
        return [row for row in found if row.at >= begun and not is_quiet(row)]

    async def draft(self, session: LiveSession, db_session: DbSession, *, actor: Actor) -> str:
        """What is typed there and not sent. Raises Forbidden."""
        require_owner(session, actor)
        return await db_session.find_draft(session.row.id)

    async def require_session(self, session_id: UUID, db_session: DbSession, *, actor: Actor) -> None:
        """Whether the actor may read a session. Raises NotFound, Forbidden."""
        session = await self._sessions.access.require(session_id, db_session, actor)
        if session.owner_id != actor.id:
            raise Forbidden(NOT_YOURS)

    async def siblings(
        self, session: LiveSession, db_session: DbSession, *, actor: Actor, after: UUID | None = None, limit: int = 50
    ) -> list[Turn]:
        """Every turn of a session, in the order they were begun. Raises Forbidden."""
        await self._may_read(session, db_session, actor)
        return await db_session.list_all_turns(session.row.id, after, limit)

    async def require_turn(self, turn_id: UUID, db_session: DbSession, *, actor: Actor) -> Turn:
        """A turn, without what it has written while it runs. Raises NotFound, Forbidden."""
        turn = await self._sessions.access.require_turn(turn_id, db_session, actor)
        if turn.owner_id != actor.id:
            raise Forbidden(NOT_YOURS)
        return turn

    async def turn(self, turn_id: UUID, db_session: DbSession, *, actor: Actor) -> tuple[Turn, Written]:
        """A turn, and what it has written so far while it runs. Raises NotFound, Forbidden."""
        return await self._so_far(await self.require_turn(turn_id, db_session, actor=actor), db_session)

    async def _so_far(self, turn: Turn, db_session: DbSession) -> tuple[Turn, Written]:
        """A turn with what it has written while it runs. Where there is nothing of that it may have ended just now."""
        written = await db_session.text_of(turn.id) if turn.reply is None else Written()
        if turn.reply is None and not any(written):
            turn = await db_session.find_turn(turn.id) or turn
        return turn, written

    async def _may_read(self, session: LiveSession, db_session: DbSession, actor: Actor) -> None:
        """Raise Forbidden unless it is the actor's own, or was opened by the actor."""
        if session.row.owner_id == actor.id:
            return
        if not await self._sessions.inspection.is_open(session.row.id, db_session, actor=actor):
            raise Forbidden(NOT_YOURS)

    async def timeline(self, session_id: UUID, db_session: DbSession, *, actor: Actor) -> list[Journal]:
        """What was decided about a session, newest first. Raises NotFound."""
        session = await self._sessions.get_session(session_id, db_session, actor=actor)
        return await db_session.list_journal(session.row.id)


def is_quiet(choice: Journal) -> bool:
    """Whether the transcript need not tell of it: the first model, unless somebody else chose it for the owner."""
    return is_first(choice) and (is_owners(choice) or came_by_itself(choice))


def require_owner(session: LiveSession, actor: Actor) -> None:
    """Raise Forbidden unless the session is the actor's own."""
    if session.row.owner_id != actor.id:
        raise Forbidden(NOT_YOURS)

"""What the journal tells about a session, and the hint that follows the commit."""

from datetime import datetime

from db.db_session import DbSession, Piece
from db.tables import Session, Turn
from services.actor import Actor
from services.event_bus import EventBus, Hint


async def record(
    what: str,
    session: Session,
    actor: Actor,
    at: datetime,
    db_session: DbSession,
    *,
    turn: Turn | None = None,
    reason: str = "",
    outcome: str = "done",
    before: str | None = None,
    to: str | None = None,
) -> None:
    """Write one decision about a session down, in the transaction of what it tells."""
    await db_session.record(
        what,
        actor,
        at,
        owner_id=session.owner_id,
        session_id=session.id,
        turn_id=turn.id if turn is not None else None,
        outcome=outcome,
        reason=reason,
        from_value=before,
        to_value=to,
        version=session.version,
    )


def told_of(piece: Piece) -> Hint:
    """The hint that follows text."""
    kind = "reasoning" if piece.reasoning else "text"
    return Hint(piece.session_id, kind, piece.turn_id, piece.start, piece.text)


def publish(bus: EventBus, hint: Hint, db_session: DbSession) -> None:
    """Send a hint out once the open transaction is committed."""
    db_session.after_commit(lambda: bus.publish(hint))

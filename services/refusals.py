"""Refusals in the journal: the first of an actor, code and minute as it happens, the others counted."""

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from db.db_session import DatabaseUnavailable, DbSession
from services.actor import SYSTEM, Actor
from services.errors import Refusal, StorageUnavailable

#: counts that one sweep writes down
SETTLED_ROWS = 1000


async def note(refusal: Refusal, verb: str, actor: Actor, now: datetime, db_session: DbSession) -> None:
    """Write a refusal down, after its transaction was rolled back. Where even that fails, the refusal stands."""
    if actor.kind == "system" or isinstance(refusal, StorageUnavailable):
        return
    minute = now.replace(second=0, microsecond=0)
    with suppress(DatabaseUnavailable):
        async with db_session.transaction():
            if await db_session.count_refusal(refusal.code, actor, minute) == 1:
                session_id = refusal.session_id
                await db_session.record("refused", actor, now, session_id=session_id, outcome=refusal.code, reason=verb)


async def settle(now: Callable[[], datetime], db_session: DbSession) -> None:
    """Write down how many refusals followed the first, for the minutes that are over."""
    async with db_session.transaction():
        for row in await db_session.take_refusals_before(now().replace(second=0, microsecond=0), SETTLED_ROWS):
            if row.times > 1:
                who = row.actor_name or "nobody"
                await db_session.record(
                    "refusals_counted",
                    SYSTEM,
                    now(),
                    owner_id=row.actor_id,
                    outcome=row.code,
                    reason=f"{row.times - 1} more of {who} in the minute of {row.minute:%Y-%m-%d %H:%M}",
                )

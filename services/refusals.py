"""Refusals in the journal: the first of an actor, code and minute as it happens, the others counted."""

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any

import msgspec

from db.db_session import DatabaseUnavailable, DbSession
from services.actor import NOBODY, SYSTEM, Actor
from services.errors import Refusal, StorageUnavailable

#: counts that one sweep writes down
SETTLED_ROWS = 1000


async def note(refusal: Refusal, verb: str, actor: Actor, now: datetime, db_session: DbSession) -> None:
    """Write a refusal down, after its transaction was rolled back. Where even that fails, the refusal stands."""
    if actor.kind == "system" or isinstance(refusal, StorageUnavailable):
        return
    minute, outcome = now.replace(second=0, microsecond=0), refusal.outcome or refusal.code
    with suppress(DatabaseUnavailable):
        async with db_session.transaction():
            if await db_session.count_refusal(outcome, _counted(actor, refusal), minute) == 1:
                told: dict[str, Any] = {"session_id": refusal.session_id, "owner_id": refusal.account_id}
                # Who has proved nothing is told apart by a keyed hash of the address alone.
                told |= {"from_value": actor.rate_key} if actor.id == NOBODY else {}
                await db_session.record("refused", actor, now, outcome=outcome, reason=verb, **told)


def _counted(actor: Actor, refusal: Refusal) -> Actor:
    """Under whom a refusal is counted: where nobody tried to be somebody, for each account by itself."""
    if refusal.account_id is None or actor.id != NOBODY:
        return actor
    return msgspec.structs.replace(actor, id=refusal.account_id, rate_key=f"{actor.rate_key} {refusal.account_id}")


async def settle(now: Callable[[], datetime], db_session: DbSession) -> None:
    """Write down how many refusals followed the first, for the minutes that are over."""
    async with db_session.transaction():
        for row in await db_session.take_refusals_before(now().replace(second=0, microsecond=0), SETTLED_ROWS):
            if row.times > 1:
                who = row.actor_name or "nobody"
                told = {} if row.actor_name else {"from_value": row.rate_key.split()[0], "to_value": str(row.times - 1)}
                await db_session.record(
                    "refusals_counted",
                    SYSTEM,
                    now(),
                    owner_id=row.actor_id,
                    outcome=row.code,
                    reason=f"{row.times - 1} more of {who} in the minute of {row.minute:%Y-%m-%d %H:%M}",
                    **told,
                )

"""What time has made worthless is forgotten, and what another time has left behind is put right.

No rule depends on either. Each transaction is bounded, and several processes may do it at once.
"""

import logging
from collections.abc import Callable
from datetime import datetime
from uuid import UUID

from db.db_session import DbSession
from services.accounts import SIGN_INS
from services.idempotency import KEPT
from services.policies import microseconds
from services.rules import Rules
from services.turns import LEASE

log = logging.getLogger(__name__)

#: rows of one kind that one transaction deletes
FORGOTTEN_ROWS = 1_000
#: such transactions in one go
ROUNDS = 20
#: sessions that one sweep marks as expired
LAPSED_ROWS = 100


class Upkeep:
    """Keeps the tables of what is for the moment only from growing, and from outlasting a clock that was wrong."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self.now = now
        #: the last session that was looked at; each look goes on behind it
        self._looked_at: UUID | None = None

    async def lapsed_sessions(self, db_session: DbSession) -> list[UUID]:
        """Some of the sessions whose end has passed and is not written down yet; all of them are come to in turn."""
        now, rules = self.now(), await Rules.now(db_session)
        found, self._looked_at = await db_session.list_lapsed_sessions(
            rules.ends(now), now, self._looked_at, LAPSED_ROWS
        )
        return found

    async def forget(self, db_session: DbSession) -> None:
        """Drop rates that are whole again, logins that have ended, and idempotency keys that are too old."""
        now = self.now()
        for _ in range(ROUNDS):
            if await db_session.delete_spent(microseconds(now), now, now - KEPT, FORGOTTEN_ROWS) < FORGOTTEN_ROWS:
                return

    async def put_right(self, db_session: DbSession, *, rates: bool) -> None:
        """Bring back to this time what was written by a clock that was ahead.

        No lease reaches further than its length, and no rate is fuller than full. What says so was written before the
        clock was set back, and would hold a slot, or an actor's rate, until that time comes again. It is shortened to
        the most it can be, so that nobody is let in who should wait.
        """
        # Two leases: clocks of several machines differ a little.
        longest = self.now() + 2 * LEASE
        if await db_session.is_leased_beyond(longest):
            await db_session.shorten_leases(longest, self.now() + LEASE)
            log.warning("the clock was set back: leases were shortened")
        if rates:
            now_us, windows = microseconds(self.now()), (await Rules.now(db_session)).windows_us
            windows["sign_in"] = SIGN_INS.window_us
            if await db_session.shorten_rates({name: now_us + window for name, window in windows.items()}):
                log.warning("the clock was set back: rates were shortened")

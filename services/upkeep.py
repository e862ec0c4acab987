"""What time has ended is written down, what it has made worthless is forgotten, and a wrong clock's is put right.

What takes too long for the verb that asks for it is begun by the verb and gone on with here, some of it at a time.

No rule depends on any of it. Each transaction is bounded, and several processes may do it at once.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID

from db import addresses
from db.db_session import DbSession
from db.tables import Session
from services import refusals, render_timeouts, sign_in_limits
from services.access import Access
from services.actor import SYSTEM, Actor
from services.errors import NotFound
from services.event_bus import EventBus, Hint
from services.idempotency import KEPT
from services.policies import DELETED_KEPT, microseconds
from services.records import publish, record
from services.rules import Rules
from services.standing import Standing
from services.turns import LEASE, Turns
from services.unit_of_work import UnitOfWork

log = logging.getLogger(__name__)

#: usage by address is kept for the longest budget, a month, and some days
ADDRESS_KEPT = timedelta(days=40)
#: rows of one kind that one transaction deletes
FORGOTTEN_ROWS = 1_000
#: such transactions in one go
ROUNDS = 20
#: turns that one sweep ends
SWEEP_ROWS = 100
#: sessions that one sweep marks as expired
LAPSED_ROWS = 100
#: turns of a deleted session that one transaction takes away; the words of long ones take their time
ERASED_TURNS = 50
#: copied turns that one transaction lets be found, and the characters of them, give or take a turn
INDEXED_TURNS, INDEXED_CHARACTERS = 25, 200_000
#: such transactions in one sweep
ERASED_ROUNDS, INDEXED_ROUNDS = 100, 100
#: sessions of which one sweep builds the index anew
REINDEXED_SESSIONS = 20
#: before the first turn of any session
BEFORE_ALL = UUID(int=0)
#: when a session was deleted that nobody can have back, whatever the clock says
FOR_GOOD = datetime.fromtimestamp(0, UTC)


class Upkeep:
    """What one process does about the passing of time."""

    def __init__(self, units: UnitOfWork, access: Access, standing: Standing, turns: Turns, bus: EventBus) -> None:
        self._units, self._access, self._standing, self._turns, self._bus = units, access, standing, turns, bus
        self.now = units.now
        #: the last session that was looked at; each look goes on behind it
        self._looked_at: UUID | None = None
        #: whether the index of the search may still have to be built anew
        self._reindexing = True

    async def sweep(self, db_session: DbSession, *, alone: bool, thorough: bool) -> int:
        """As SessionService says."""
        lapsed = await db_session.list_lapsed_turns(self.now(), SWEEP_ROWS)
        if alone:
            lapsed += await db_session.list_turns_not_leased_to(self._turns.worker)
        for turn_id in lapsed:
            with suppress(NotFound):  # deleted meanwhile
                await self._interrupt(turn_id, db_session, alone=alone)
        await self.put_right(db_session, rates=thorough)
        ended = len(lapsed)
        if thorough:
            await refusals.settle(self.now, db_session)
            await self.forget(db_session)
            await render_timeouts.forget(db_session)
            ended += await self._expire(db_session) + await self._erase(db_session)
        await self._index(db_session)
        await self._reindex(db_session)
        return ended

    async def _interrupt(self, turn_id: UUID, db_session: DbSession, *, alone: bool) -> None:
        """End a turn whose worker is gone."""
        async with self._units.writing(db_session):
            session, turn = await self._access.lock_turn(turn_id, db_session)
            gone = turn.lease_until <= self.now() or (alone and turn.lease_owner != self._turns.worker)
            if turn.state == "running" and gone:
                await self._turns.interrupt(session, turn, db_session)

    async def _expire(self, db_session: DbSession) -> int:
        """Mark sessions whose end has passed. They are looked for outside any transaction: that may take a while."""
        expired = 0
        for session_id in await self.lapsed_sessions(db_session):
            async with self._units.writing(db_session):
                session = await db_session.find_session(session_id, None, lock=True)
                if session is None or session.state != "active" or not await self._standing.over(session, db_session):
                    continue
                await db_session.update(session, state="expired", version=session.version + 1)
                await addresses.release_session(session.id)
                await record("session_expired", session, SYSTEM, self.now(), db_session)
                publish(self._bus, Hint(session.id, "session"), db_session)
                expired += 1
        return expired

    async def erase(self, session: Session, actor: Actor, db_session: DbSession) -> bool:
        """Take away a session that is locked, of a long one some turns; whether that was all.

        Nobody can have back what is left, and the sweep goes on with it.
        """
        if session.deleted_at != FOR_GOOD:
            await record("session_erased", session, actor, self.now(), db_session)
            await addresses.release_session(session.id)
            await db_session.update(session, deleted_at=FOR_GOOD, indexed_to=None)
        if not await db_session.erase_turns(session.id, ERASED_TURNS):
            return False
        await db_session.erase_session(session.id)
        return True

    async def _erase(self, db_session: DbSession) -> int:
        """Take away what was deleted long enough ago."""
        deleted_before = self.now() - DELETED_KEPT

        async def erase(session_id: UUID) -> bool:
            session = await db_session.lock_deleted_session(session_id, deleted_before)
            return session is None or await self.erase(session, SYSTEM, db_session)

        ids = await db_session.list_deleted_sessions(deleted_before, LAPSED_ROWS)
        return await self._in_parts(erase, ids, ERASED_ROUNDS, db_session)

    async def index_copies(self, session: Session, db_session: DbSession) -> None:
        """Let be found what was copied into a new session, of much some turns; the sweep goes on with the others."""
        session.indexed_to = BEFORE_ALL
        await db_session.index_turns(session, INDEXED_TURNS, INDEXED_CHARACTERS)

    async def _index(self, db_session: DbSession) -> None:
        """Let be found what was copied, as far as nobody has."""

        async def index(session_id: UUID) -> bool:
            session = await db_session.find_session(session_id, None, lock=True, deleted_after=FOR_GOOD)
            if session is None or session.indexed_to is None:
                return True
            await db_session.index_turns(session, INDEXED_TURNS, INDEXED_CHARACTERS)
            return session.indexed_to is None

        await self._in_parts(index, await db_session.list_sessions_to_index(LAPSED_ROWS), INDEXED_ROUNDS, db_session)

    async def _reindex(self, db_session: DbSession) -> None:
        """Build the index of some more sessions anew, where a release changed how words are made of a text.

        Of a long session only the beginning; `_index` goes on with it.
        """
        if not self._reindexing:
            return
        after = await db_session.find_reindexing()
        session_ids = await db_session.list_session_ids(after, REINDEXED_SESSIONS) if after is not None else []
        for session_id in session_ids:
            async with self._units.writing(db_session):
                session = await db_session.find_session(session_id, None, lock=True, deleted_after=FOR_GOOD)
                if session is not None and session.indexed_to is None:
                    await self.index_copies(session, db_session)
                    await db_session.renew_title(session)
                await db_session.reindex_to(session_id)
        if not session_ids:
            self._reindexing = False
            async with self._units.writing(db_session):
                await db_session.reindex_to(None)

    async def _in_parts(
        self,
        part: Callable[[UUID], Awaitable[bool]],
        session_ids: Sequence[UUID],
        rounds: int,
        db_session: DbSession,
    ) -> int:
        """Do a part of something to each session in a transaction, until it is done; how many came to that."""
        done = 0
        for session_id in session_ids:
            over = False
            while not over and rounds:
                rounds -= 1
                async with self._units.writing(db_session):
                    over = await part(session_id)
            done += over
        return done

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
        await addresses.forget_usage(now.date() - ADDRESS_KEPT, FORGOTTEN_ROWS)
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
            windows["sign_in"] = sign_in_limits.WINDOW_US
            if await db_session.shorten_rates({name: now_us + window for name, window in windows.items()}):
                log.warning("the clock was set back: rates were shortened")

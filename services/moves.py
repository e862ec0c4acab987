"""Moves: an admin's order to put every live session of one model on another.

First a dry run that counts; then a job of single switches by that admin, each journalled and shown to its owner. A
switch and its place in the count are one transaction, under a lease as a turn is: whoever goes on after a crash begins
behind the last session that was counted, and none is switched twice.
"""

import asyncio
import contextvars
import logging
from collections.abc import Callable
from datetime import timedelta
from uuid import UUID

import msgspec

from db.db_session import DbSession, new_id
from db.tables import Account, ModelMove, Session
from services.actor import SYSTEM, Actor, require_admin
from services.catalogue import Entry
from services.errors import (
    InvalidRequest,
    LimitReached,
    ModelDisabled,
    NotFound,
    Refusal,
    StorageUnavailable,
    UnknownModel,
    UnusableModel,
)
from services.outages import tell
from services.rules import Rules
from services.session_service import SessionService
from services.text import REASON_CHARACTERS, checked_line
from services.turns import LEASE

#: sessions that are looked for at once
BATCH = 100
SAMPLE = 5
LISTED = 50
#: between two looks for a move that nobody runs
LOOK_SECONDS = 2.0

log = logging.getLogger(__name__)


class Preview(msgspec.Struct, frozen=True):
    """What a move would do now. Nothing has been ordered."""

    from_model: str
    to_model: str
    #: live sessions on `from_model`
    total: int
    #: of them, those in which a reply is being written: it ends on its model
    running: int
    #: of them, those whose model an admin has locked: they move, and stay locked
    locked: int
    #: of them, those whose owner may not use `to_model`: they stay
    refused: int
    #: the first of them, with their owners
    sample: list[tuple[Session, Account]]


class _Over(Exception):
    """This worker has nothing more to do for a move: it ended, or somebody else runs it."""


class _CannotGoOn(Exception):
    """Why a move has to stop."""


class Moves:
    """The verbs about moves, and the work of one batch."""

    def __init__(self, sessions: SessionService) -> None:
        self._sessions = sessions
        self._units = sessions.units
        self.now = sessions.now
        #: told that there is work
        self.ordered = asyncio.Event()

    # ------------------------------------------------------------ for admins

    async def preview(self, from_model: str, to_model: str, db_session: DbSession, *, actor: Actor) -> Preview:
        """Count what a move would do. Raises Forbidden, InvalidRequest, UnknownModel, UnusableModel."""
        require_admin(actor)
        rules, now = await Rules.now(db_session), self.now()
        from_model, to = self._checked(from_model, to_model, actor, rules)
        ends = rules.ends(now)
        total, running, locked, outside = await db_session.count_sessions_on(from_model, ends, now, to.groups)
        first = await db_session.list_sessions_on(from_model, ends, now, None, SAMPLE)
        owners = await db_session.list_accounts(session.owner_id for session in first)
        sample = [(session, owners[session.owner_id]) for session in first]
        return Preview(from_model, to.id, total, running, locked, outside, sample)

    async def order(
        self,
        from_model: str,
        to_model: str,
        reason: str,
        db_session: DbSession,
        *,
        actor: Actor,
        key: str | None = None,
    ) -> ModelMove:
        """Order a move; it begins at once. Raises Forbidden, InvalidRequest, UnknownModel, UnusableModel."""
        async with self._units.refusing("order_move", actor, db_session):
            reason = checked_line(reason, REASON_CHARACTERS, "reason")
        async with self._units.once("order_move", key, (from_model, to_model, reason), actor, db_session) as once:
            require_admin(actor)
            if once.answer:
                return await self._require(UUID(once.answer), db_session)
            rules, now = await Rules.now(db_session), self.now()
            from_model, to = self._checked(from_model, to_model, actor, rules)
            if not reason:
                raise InvalidRequest("Please give a reason; the owners of the sessions will see it.", field="reason")
            await db_session.lock("moves")
            if any(move.from_model == from_model for move in await db_session.list_moves(LISTED, state="running")):
                raise InvalidRequest(f"The sessions on “{from_model}” are being moved already.", field="from")
            total, *_ = await db_session.count_sessions_on(from_model, rules.ends(now), now, to.groups)
            move = ModelMove(
                id=new_id(),
                from_model=from_model,
                to_model=to.id,
                reason=reason,
                state="running",
                admin_id=actor.id,
                admin_name=actor.name,
                total=total,
                created_at=now,
            )
            await db_session.add(move)
            await self._record("move_ordered", move, actor, db_session, reason)
            await once.remember(str(move.id))
            db_session.after_commit(self.ordered.set)
            return move

    async def stop(
        self, move_id: UUID, db_session: DbSession, *, actor: Actor, reason: str = "", key: str | None = None
    ) -> ModelMove:
        """Stop a move where it is; what was moved stays. Twice is once.

        One that another admin ordered needs a reason. Raises Forbidden, NotFound, InvalidRequest.
        """
        async with self._units.refusing("stop_move", actor, db_session):
            reason = checked_line(reason, REASON_CHARACTERS, "reason")
        asked = (move_id, reason) if reason else move_id
        async with self._units.once("stop_move", key, asked, actor, db_session):
            require_admin(actor)
            move = await self._require(move_id, db_session, lock=True)
            if move.state == "running":
                if move.admin_id != actor.id and not reason:
                    text = f"Please give a reason; {move.admin_name} ordered this and will see it."
                    raise InvalidRequest(text, field="reason")
                why = f"Stopped by {actor.name}{f': {reason}' if reason else '.'}"
                await self._end(move, "stopped", why, actor, db_session)
            return move

    async def list_moves(self, db_session: DbSession, *, actor: Actor) -> list[ModelMove]:
        """The latest moves, newest first. Raises Forbidden."""
        require_admin(actor)
        return await db_session.list_moves(LISTED)

    # ------------------------------------------------------------ for whoever runs them

    async def claim(self, worker: UUID, db_session: DbSession, *, alone: bool = False) -> UUID | None:
        """Take on a running move that nobody runs; `alone`: what another process held is lost already."""
        now = self.now()
        async with self._units.writing(db_session):
            return await db_session.claim_move(worker, now, now + LEASE, alone=alone)

    async def release(self, move_id: UUID, worker: UUID, db_session: DbSession) -> None:
        """Let another process go on at once."""
        async with self._units.writing(db_session):
            await db_session.renew_move(move_id, worker, self.now())

    async def advance(self, move_id: UUID, worker: UUID, db_session: DbSession) -> timedelta | None:
        """Move one batch. How long to wait before the next; None when there is nothing more to do here.

        Raises StorageUnavailable; what is counted by then is done.
        """
        try:
            move = await self._held(move_id, worker, db_session)
            admin = await self._admin(move, db_session)
            now = self.now()
            ends = (await Rules.now(db_session)).ends(now)
            batch = await db_session.list_sessions_on(move.from_model, ends, now, move.last_session_id, BATCH)
            for session in batch:
                await self._move(session.id, move_id, worker, admin, db_session)
            if not batch:
                await self._finish(move_id, worker, db_session)
                return None
            return timedelta(0)
        except _Over:
            return None
        except _CannotGoOn as why:
            await self._give_up(move_id, worker, str(why), db_session)
            return None
        except LimitReached as refusal:
            await self._renew(move_id, worker, db_session)
            return min(timedelta(seconds=refusal.retry_after_seconds), LEASE / 3)

    async def _move(self, session_id: UUID, move_id: UUID, worker: UUID, admin: Actor, db_session: DbSession) -> None:
        """Switch one session and count it, together; or count that it was refused."""
        try:
            async with self._units.writing(db_session, actor=admin, verb="move_sessions"):
                move = await self._held(move_id, worker, db_session, lock=True)
                await self._admin(move, db_session)
                session = await db_session.find_session(session_id, None, lock=True)
                changed = False
                # Somebody may have switched or deleted it since it was listed.
                if session is not None and session.last_model == move.from_model:
                    switch = await self._sessions.switch_model(
                        session_id, move.to_model, db_session, actor=admin, reason=move.reason
                    )
                    changed = switch.changed
                await self._count(move, session_id, db_session, moved=int(changed))
        except (LimitReached, StorageUnavailable):
            raise
        except (UnknownModel, UnusableModel) as refusal:
            raise _CannotGoOn(str(refusal)) from refusal
        except Refusal:
            async with self._units.writing(db_session):
                move = await self._held(move_id, worker, db_session, lock=True)
                await self._count(move, session_id, db_session, skipped=1)

    async def _count(
        self, move: ModelMove, session_id: UUID, db_session: DbSession, *, moved: int = 0, skipped: int = 0
    ) -> None:
        await db_session.update(
            move,
            moved=move.moved + moved,
            skipped=move.skipped + skipped,
            last_session_id=session_id,
            lease_until=self.now() + LEASE,
        )

    async def _finish(self, move_id: UUID, worker: UUID, db_session: DbSession) -> None:
        async with self._units.writing(db_session):
            move = await self._held(move_id, worker, db_session, lock=True)
            await self._end(move, "done", "", SYSTEM, db_session)

    async def _give_up(self, move_id: UUID, worker: UUID, why: str, db_session: DbSession) -> None:
        async with self._units.writing(db_session):
            try:
                move = await self._held(move_id, worker, db_session, lock=True)
            except _Over:
                return
            await self._end(move, "stopped", why, SYSTEM, db_session)

    async def _renew(self, move_id: UUID, worker: UUID, db_session: DbSession) -> None:
        async with self._units.writing(db_session):
            await db_session.renew_move(move_id, worker, self.now() + LEASE)

    async def _end(self, move: ModelMove, state: str, note: str, actor: Actor, db_session: DbSession) -> None:
        await db_session.update(move, state=state, note=note, ended_at=self.now(), lease_owner=None, lease_until=None)
        counted = f"{move.moved} moved, {move.skipped} skipped. {note}".rstrip()
        await self._record("move_ended" if state == "done" else "move_stopped", move, actor, db_session, counted)

    # ------------------------------------------------------------ judgements

    def _checked(self, from_name: str, to_name: str, actor: Actor, rules: Rules) -> tuple[str, Entry]:
        """The model to move from, and the one to move to. Raises InvalidRequest, UnknownModel, UnusableModel."""
        from_model = rules.catalogue.id_of(from_name)
        if not from_model:
            raise InvalidRequest(f"There is no model “{from_name[:80]}”.", field="from")
        to = rules.catalogue.require(to_name, actor)
        if not self._sessions.pool.has(to.provider):
            raise ModelDisabled(f"The provider of “{to.label}” is not configured.", replacement=to.replacement)
        if to.id == from_model:
            raise InvalidRequest("These are the same model.", field="to")
        return from_model, to

    async def _require(self, move_id: UUID, db_session: DbSession, *, lock: bool = False) -> ModelMove:
        move = await db_session.find_move(move_id, lock=lock)
        if move is None:
            raise NotFound("There is no such move.")
        return move

    async def _held(self, move_id: UUID, worker: UUID, db_session: DbSession, *, lock: bool = False) -> ModelMove:
        """A move that this worker runs. Raises _Over."""
        move = await db_session.find_move(move_id, lock=lock)
        if move is None or move.state != "running" or move.lease_owner != worker or move.lease_until <= self.now():
            raise _Over
        return move

    async def _admin(self, move: ModelMove, db_session: DbSession) -> Actor:
        """Who ordered it, as long as that is an admin. Raises _CannotGoOn."""
        if move.admin_id == SYSTEM.id:
            return msgspec.structs.replace(SYSTEM, name=move.admin_name)
        account = await db_session.find_account(move.admin_id)
        if account is None or account.role != "admin" or account.disabled_at is not None:
            raise _CannotGoOn(f"{move.admin_name} is no longer an admin.")
        return Actor(
            kind="admin",
            id=account.id,
            name=account.name,
            group=account.group_name,
            rate_key=f"account:{account.id}",
            role="admin",
        )

    async def _record(self, what: str, move: ModelMove, actor: Actor, db_session: DbSession, reason: str) -> None:
        await db_session.record(
            what, actor, self.now(), reason=reason, from_value=move.from_model, to_value=move.to_model
        )


class MoveRunner:
    """Runs the moves of this process, one after another, outside any request."""

    def __init__(self, moves: Moves, worker: UUID, open_session: Callable[[], DbSession]) -> None:
        self._moves, self._worker, self._open_session = moves, worker, open_session
        self._task: asyncio.Task[None] | None = None

    async def open(self, *, alone: bool = False) -> None:
        """Begin to look for moves that nobody runs; `alone`: no other process can be running one."""
        self._task = asyncio.create_task(self._run(alone), context=contextvars.Context())

    async def close(self) -> None:
        """Leave what is under way to another process, or to the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, alone: bool) -> None:
        while True:
            try:
                self._moves.ordered.clear()
                while (move_id := await self._moves.claim(self._worker, self._open_session(), alone=alone)) is not None:
                    await self._finish(move_id)
                alone = False
            except Exception as error:
                tell(log, "a move of sessions could not go on; trying again", error)
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._moves.ordered.wait()
            except TimeoutError:
                pass

    async def _finish(self, move_id: UUID) -> None:
        """One move to its end, or until its lease is lost."""
        wait: timedelta | None = timedelta(0)
        try:
            while wait is not None:
                await asyncio.sleep(wait.total_seconds())
                wait = await self._moves.advance(move_id, self._worker, self._open_session())
        except asyncio.CancelledError:
            await self._moves.release(move_id, self._worker, self._open_session())
            raise

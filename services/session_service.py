"""SessionService: every rule about a session, once.

Each public verb owns its transaction (or joins the caller's), checks in one order — who, idempotency, ownership,
state, permission, model, nothing to do, version, busy, limits — and writes the change and its journal row together.
What it does not do is raised as a `services.errors.Refusal`. Live hints go out only after the commit.

Its collaborators: `Access` is the only way to a session and its turns, `Standing` judges how a session stands,
`ModelRule` which model it uses, `Admission` whether one more is allowed, `Turns` writes the rows of turns, `UnitOfWork`
opens the transactions, `Upkeep` writes down what time has ended and goes on with what takes long.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

import msgspec

from db import addresses
from db.db_session import DbSession, Piece, new_id, snapshot
from db.tables import Session, Turn
from services import search
from services.access import Access
from services.actor import SYSTEM, Actor
from services.admission import Admission
from services.brought import Brought
from services.catalogue import CurrentModel, Entry
from services.client_pool import ClientPool
from services.clients import PLAIN, Ask, Message, Usage, Wishes
from services.context import CONTEXT_TURNS, FEW_TURNS, fit
from services.counts import Counts
from services.errors import (
    BudgetExhausted,
    Forbidden,
    InvalidRequest,
    ModelLocked,
    ModelUnavailable,
    NotFound,
    OverBudget,
    SessionBusy,
    SessionExpired,
    UnknownModel,
    UnusableModel,
    VersionConflict,
)
from services.event_bus import EventBus, Hint
from services.idempotency import Once
from services.inspection import Inspection
from services.model_rule import ASKED, FIRST, NAMED, SWITCHED
from services.outcomes import (
    BegunTurn,
    End,
    Extension,
    Glance,
    LiveSession,
    Origin,
    Runner,
    SessionPage,
    Show,
    Sort,
    Switch,
    SwitchAnswer,
    TurnOrder,
    When,
)
from services.policies import (
    DELETED_KEPT,
    SESSION_LIMITS,
    SWITCH_LIMITS,
    TURN_LIMITS,
    Allowance,
    tightest_first,
)
from services.records import publish, record, told_of
from services.rules import Rules
from services.standing import Standing, account_of, state_of
from services.text import (
    REASON_CHARACTERS,
    TITLE_CHARACTERS,
    checked_draft,
    checked_line,
    checked_prompt,
    storable,
    title_of,
)
from services.turns import LEASE, Tail, Turns
from services.unit_of_work import UnitOfWork
from services.upkeep import Upkeep

#: an untouched session younger than this is used again instead of a new one
REUSE = timedelta(days=1)
#: turns that a fork takes along, the newest of them
FORK_TURNS = 10_000


def utc_now() -> datetime:
    return datetime.now(UTC)


class SessionService:
    """The one place where sessions are created, checked, extended, limited and pointed at a model."""

    def __init__(
        self,
        pool: ClientPool,
        bus: EventBus,
        *,
        worker: UUID | None = None,
        now: Callable[[], datetime] = utc_now,
        counts: Counts | None = None,
        admins_read: bool = False,
    ) -> None:
        self.pool = pool
        self.bus = bus
        self.now = now
        self.units = UnitOfWork(now)
        self.inspection = Inspection(self.units, now, allowed=admins_read)
        self.standing = Standing(pool, now)
        self.admission = Admission(now)
        self.turns = Turns(self.standing, bus, worker or new_id(), now, counts or Counts())
        self.access = Access(self.units, self.standing, bus)
        self.upkeep = Upkeep(self.units, self.access, self.standing, self.turns, bus)

    @property
    def worker(self) -> UUID:
        """The name under which this process holds turns."""
        return self.turns.worker

    @property
    def runner(self) -> Runner | None:
        """Who runs begun turns in this process."""
        return self.turns.runner

    @runner.setter
    def runner(self, runner: Runner) -> None:
        self.turns.runner = runner

    # ------------------------------------------------------------ creation

    async def create_session(
        self,
        db_session: DbSession,
        *,
        actor: Actor,
        model: str | None = None,
        title: str = "",
        origin: Origin = "script",
        key: str | None = None,
    ) -> LiveSession:
        """Make a session. Raises UnknownModel, UnusableModel, SessionQuota, RateLimited."""
        async with self.units.refusing("create_session", actor, db_session):
            title = checked_line(title, TITLE_CHARACTERS, "title")
        async with self.units.once("create_session", key, (model, title), actor, db_session) as once:
            if once.answer:
                return await self._done_before(UUID(once.answer), SESSION_LIMITS, db_session, actor)
            rules = await Rules.now(db_session)
            rule = self.standing.model_rule(rules)
            entry = rule.require(model, actor, actor.group) if model else None
            allowance = await self.admission.admit_session(actor.id, actor.group, actor, rules, db_session)
            session = await self._add_session(actor, title, origin, db_session)
            if entry is not None:
                await self._put_model(session, entry.id, actor, "", db_session)
                await db_session.update(session, last_model=session.last_model, version=session.version)
            await once.remember(str(session.id))
            return await self.standing.of(session, actor, db_session, rules=rules, allowance=allowance)

    async def fork_session(
        self,
        session_id: UUID,
        db_session: DbSession,
        *,
        actor: Actor,
        turn_id: UUID | None = None,
        draft: str = "",
        key: str | None = None,
    ) -> LiveSession:
        """Make a session that begins with another's transcript, up to `turn_id` or its last ended turn.

        Also from one that has ended; its draft goes along where no other `draft` is given. Raises NotFound, Forbidden,
        SessionQuota, RateLimited, PromptTooLong, InvalidRequest.
        """
        async with self.units.refusing("fork_session", actor, db_session):
            draft = checked_draft(draft)
        content = (session_id, turn_id, *((draft,) if draft else ()))
        async with self.units.once("fork_session", key, content, actor, db_session) as once:
            if once.answer:
                return await self._done_before(UUID(once.answer), SESSION_LIMITS, db_session, actor)
            source = await self.access.require(session_id, db_session, actor, lock=True)
            self._may_write(source, actor)
            path = await self._path_to_fork(source, turn_id, db_session)
            rules = await Rules.now(db_session)
            allowance = await self.admission.admit_session(actor.id, actor.group, actor, rules, db_session)
            session = await self._add_session(actor, source.title, "fork", db_session)
            session.opening, session.instructions = source.opening, source.instructions
            if source.last_model is not None:
                await self._put_model(session, source.last_model, actor, "fork", db_session)
            if source.locked:
                await self._put_lock(session, True, actor, "fork", db_session)
            copies = await db_session.copy_turns(path, session.id)
            session.head_id, session.turn_count = copies[-1] if copies else None, len(copies)
            await self.upkeep.index_copies(session, db_session)
            await db_session.update(session, **snapshot(session))
            await self._move_draft(source, session, draft, db_session)
            await once.remember(str(session.id))
            return await self.standing.of(session, actor, db_session, rules=rules, allowance=allowance)

    async def import_session(
        self, brought: Brought, db_session: DbSession, *, actor: Actor, key: str | None = None
    ) -> LiveSession:
        """Make a session of one that was exported. Raises InvalidRequest, SessionQuota, RateLimited."""
        async with self.units.refusing("import_session", actor, db_session):
            brought.check()
        async with self.units.once("import_session", key, brought, actor, db_session) as once:
            if once.answer:
                return await self.get_session(UUID(once.answer), db_session, actor=actor)
            session, allowance = await self._bring(brought, "import", actor, db_session)
            await once.remember(str(session.id))
            return await self.standing.of(session, actor, db_session, allowance=allowance)

    async def adopt_sessions(self, guest_id: UUID, db_session: DbSession, *, actor: Actor) -> int:
        """Give a guest's sessions to the account the guest has signed in to, once. Returns how many.

        They live as the account's from now on; what is over by then stays over, and can be forked.
        """
        async with self.units.writing(db_session, actor=actor, verb="adopt_sessions"):
            guest = await db_session.find_account(guest_id)
            if guest is None or guest.role != "guest" or actor.kind not in ("user", "admin"):
                return 0
            await db_session.lock_sessions_of(guest_id)
            # Who is about to make one more is waited for, so that none stays behind.
            await db_session.find_account(guest_id, lock=True)
            sessions, rules = await db_session.lock_sessions_of(guest_id), await Rules.now(db_session)
            before, after = (rules.policies_of(group).lifetime for group in (guest.group_name, actor.group))
            await db_session.give_turns_and_usage([session.id for session in sessions], guest_id, actor.id)
            for session in sessions:
                end = before.end_kept(session, self.now(), under=after)
                await addresses.release_session(session.id)
                await db_session.update(session, owner_id=actor.id, version=session.version + 1, expires_at=end)
                await self._record("session_adopted", session, actor, db_session, before=guest.name, to=actor.name)
                self._publish(db_session, Hint(session.id, "session"))
            return len(sessions)

    async def ensure_session(self, session_id: UUID | None, db_session: DbSession, *, actor: Actor) -> LiveSession:
        """The session asked for, or without an id an untouched one, or a new one. An id never yields a new session."""
        if session_id is not None:
            async with self.access.changing(session_id, db_session, actor, verb="ensure_session") as session:
                return await self.standing.of(session, actor, db_session)
        async with self.units.writing(db_session, actor=actor, verb="ensure_session"):
            await db_session.lock(f"auto:{actor.id}")
            untouched = await db_session.find_untouched_session(actor.id, self.now() - REUSE)
            if untouched is not None and not await self.standing.over(untouched, db_session):
                return await self.standing.of(untouched, actor, db_session)
            return await self.create_session(db_session, actor=actor, origin="auto")

    # ------------------------------------------------------------ reading: writes nothing

    async def get_session(self, session_id: UUID, db_session: DbSession, *, actor: Actor) -> LiveSession:
        """A session of the actor's, or any for an admin. Raises NotFound."""
        return await self.standing.of(await self.access.require(session_id, db_session, actor), actor, db_session)

    async def glances(self, watched: Sequence[tuple[UUID, UUID]], db_session: DbSession) -> list[Glance | None]:
        """For each (session, owner) whether a watcher has missed something, cheaply; None where there is no such."""
        return await self.standing.glances(watched, db_session)

    async def list_sessions(
        self,
        db_session: DbSession,
        *,
        actor: Actor,
        everybody: bool = False,
        limit: int = 50,
        after: tuple[Any, UUID] | None = None,
        state: str = "",
        model: str = "",
        q: str = "",
        sort: Sort = "activity",
        show: Show = "all",
        owner_id: UUID | None = None,
        group: str = "",
        running: bool = False,
    ) -> SessionPage:
        """The actor's own sessions; `everybody` for an admin, or those of `owner_id`. Raises Forbidden, InvalidRequest.

        `q` looks through what was said in one's own, the newest match first; through titles in everybody's.
        """
        if everybody and not actor.is_admin:
            raise Forbidden("Only an admin sees everybody's sessions.")
        now = self.now()
        which: dict[str, Any] = {
            "limit": limit,
            "after": after,
            "ends": (await Rules.now(db_session)).ends(now),
            "now": now,
            "state": state,
            "model": storable(model),
            "show": show,
            "deleted_after": now - DELETED_KEPT if show == "deleted" else None,
        }
        if (q := storable(q)) and not everybody:
            rows, found, following = await search.look(q, db_session, owner_id=actor.id, **which)
            live = await self.standing.all_of(rows, actor, db_session)
            return SessionPage([msgspec.structs.replace(one, found=found[one.row.id]) for one in live], following)
        rows, following = await db_session.list_sessions(
            owner_id=owner_id if everybody else actor.id,
            q=q,
            sort="deletion" if show == "deleted" else sort,
            group=storable(group),
            running=running,
            **which,
        )
        return SessionPage(await self.standing.all_of(rows, actor, db_session), following)

    async def current_model(self, session_id: UUID, db_session: DbSession, *, actor: Actor) -> CurrentModel:
        """Which model the next turn will use, and why. Raises NotFound."""
        return (await self.get_session(session_id, db_session, actor=actor)).current

    async def default_model(self, db_session: DbSession, *, actor: Actor) -> CurrentModel:
        """Which model a new session of the actor's will use."""
        owner = await self.standing.owner(actor.id, db_session, actor)
        return self.standing.model_rule(await Rules.now(db_session)).default(owner)

    async def models(self, db_session: DbSession, *, actor: Actor) -> list[Entry]:
        """The catalogue as the actor may see it."""
        return (await Rules.now(db_session)).catalogue.visible_to(actor)

    async def turns_running(self, db_session: DbSession) -> int:
        """How many replies are being written, in all processes."""
        return await db_session.count_running_turns(self.now())

    async def allowances(self, db_session: DbSession, *, actor: Actor) -> list[Allowance]:
        """Every limit that applies to the actor, as it stands before sending."""
        return await self.admission.allowances(actor, await Rules.now(db_session), db_session)

    # ------------------------------------------------------------ life

    async def rename_session(
        self, session_id: UUID, title: str, db_session: DbSession, *, actor: Actor, key: str | None = None
    ) -> LiveSession:
        """Give a session a title. Raises NotFound, Ended."""
        async with self.units.refusing("rename_session", actor, db_session):
            title = checked_line(title, TITLE_CHARACTERS, "title")
        async with self.units.once("rename_session", key, (session_id, title), actor, db_session) as once:
            if once.answer:
                return await self.get_session(session_id, db_session, actor=actor)
            async with self.access.changing(session_id, db_session, actor) as session:
                if session.title != title:
                    session.title = title
                    session.version += 1
                    await db_session.index_title(session)
                    await self._record("session_renamed", session, actor, db_session)
                return await self.standing.of(session, actor, db_session)

    async def extend_session(
        self, session_id: UUID, db_session: DbSession, *, actor: Actor, key: str | None = None
    ) -> Extension:
        """Let a session live longer from now on; never revives. Raises NotFound, Ended."""
        async with self.units.once("extend_session", key, session_id, actor, db_session) as once:
            if once.answer:
                live = await self.get_session(session_id, db_session, actor=actor)
                reason = once.answer.removeprefix("no: ") if once.answer != "yes" else ""
                return Extension(not reason, live.deadline, reason, live)
            async with self.access.changing(session_id, db_session, actor) as session:
                lifetime, now = await self.standing.lifetime(session, db_session), self.now()
                reason = lifetime.why_no_longer(session, now)
                if not reason:
                    session.last_activity_at = now
                    session.version += 1
                    await self._record("session_extended", session, actor, db_session)
                await once.remember(f"no: {reason}" if reason else "yes")
                live = await self.standing.of(session, actor, db_session)
                return Extension(not reason, live.deadline, reason, live)

    async def close_session(
        self, session_id: UUID, db_session: DbSession, *, actor: Actor, reason: str = "", key: str | None = None
    ) -> LiveSession:
        """End a session for good, stop its running turn, keep its text readable.

        Somebody else's needs a reason. Raises NotFound, SessionClosed, InvalidRequest.
        """
        async with self.units.refusing("close_session", actor, db_session):
            reason = checked_line(reason, REASON_CHARACTERS, "reason")
        async with self.units.once("close_session", key, (session_id, reason), actor, db_session) as once:
            if once.answer:
                return await self.get_session(session_id, db_session, actor=actor)
            async with self.access.changing(session_id, db_session, actor, also="expired") as session:
                self._check_reason(session, actor, reason)
                await self.turns.stop_running(session, actor, db_session)
                session.state = "closed"
                await addresses.release_session(session.id)
                session.version += 1
                await self._record("session_closed", session, actor, db_session, reason=reason)
                return await self.standing.of(session, actor, db_session)

    async def reopen_session(
        self, session_id: UUID, db_session: DbSession, *, actor: Actor, key: str | None = None
    ) -> LiveSession:
        """Bring back a session that idled out, within the creation limit. Raises NotFound, Ended, RateLimited."""
        async with self.units.once("reopen_session", key, session_id, actor, db_session) as once:
            if once.answer:
                return await self._done_before(session_id, SESSION_LIMITS, db_session, actor)
            async with self.access.changing(session_id, db_session, actor, also="expired") as session:
                rules, now = await Rules.now(db_session), self.now()
                lifetime = await self.standing.lifetime(session, db_session)
                if state_of(session, lifetime, now) == "active":
                    return await self.standing.of(session, actor, db_session, rules=rules)
                if not lifetime.only_idled_out(session, now):
                    text = "This session has reached its end and cannot be reopened."
                    raise SessionExpired(text, can_fork=session.owner_id == actor.id)
                owner = await self.standing.owner(session.owner_id, db_session)
                allowance = await self.admission.admit_session(owner.id, owner.group_name, actor, rules, db_session)
                await self.admission.hold_session(session, actor)
                session.state = "active"
                session.last_activity_at = now
                session.version += 1
                await self._record("session_reopened", session, actor, db_session)
                return await self.standing.of(session, actor, db_session, rules=rules, allowance=allowance)

    async def pin_session(
        self, session_id: UUID, db_session: DbSession, *, actor: Actor, pinned: bool = True, key: str | None = None
    ) -> LiveSession:
        """Keep a session at the top of its owner's list, or no longer. Raises NotFound, Forbidden."""
        did = ("pin_session", "session_pinned") if pinned else ("unpin_session", "session_unpinned")
        return await self._arrange(*did, session_id, db_session, actor, key, pinned=pinned)

    async def archive_session(
        self, session_id: UUID, db_session: DbSession, *, actor: Actor, archived: bool = True, key: str | None = None
    ) -> LiveSession:
        """Put a session out of its owner's list, or back; it lives on as before. Raises NotFound, Forbidden."""
        did = ("archive_session", "session_archived") if archived else ("unarchive_session", "session_unarchived")
        return await self._arrange(*did, session_id, db_session, actor, key, archived=archived)

    async def delete_session(
        self,
        session_id: UUID,
        db_session: DbSession,
        *,
        actor: Actor,
        for_good: bool = False,
        reason: str = "",
        key: str | None = None,
    ) -> None:
        """Take a session away from everybody; for a while its owner can have it back, unless it is `for_good`.

        What runs in it is stopped. Somebody else's needs a reason. Raises NotFound, Forbidden, InvalidRequest.
        """
        async with self.units.refusing("delete_session", actor, db_session):
            reason = checked_line(reason, REASON_CHARACTERS, "reason")
        # Without a reason a key is what it was before there were reasons: an old one still answers.
        asked = (session_id, for_good, reason) if reason else (session_id, for_good)
        async with self.units.once("delete_session", key, asked, actor, db_session) as once:
            if once.answer:
                return
            session = await self.access.require(session_id, db_session, actor, lock=True, deleted=True)
            if for_good and session.owner_id != actor.id:
                raise Forbidden("Only its owner deletes a session for good; others leave a way back.")
            self._check_reason(session, actor, reason)
            if session.deleted_at is not None and not for_good:
                return
            await self.turns.stop_running(session, actor, db_session)
            if for_good:
                await self.upkeep.erase(session, actor, db_session)
            else:
                await db_session.update(session, deleted_at=self.now(), version=session.version + 1)
                await addresses.release_session(session.id)
                await self._record("session_deleted", session, actor, db_session, reason=reason)
            self._publish(db_session, Hint(session.id, "session"))

    async def restore_session(
        self, session_id: UUID, db_session: DbSession, *, actor: Actor, key: str | None = None
    ) -> LiveSession:
        """Bring a deleted session back as it was, within its owner's quota. Raises NotFound, SessionQuota."""
        async with self.units.once("restore_session", key, session_id, actor, db_session) as once:
            if once.answer:
                return await self._done_before(session_id, SESSION_LIMITS, db_session, actor)
            session = await self.access.require(session_id, db_session, actor, lock=True, deleted=True)
            rules = await Rules.now(db_session)
            allowance: tuple[Allowance, ...] = ()
            if session.deleted_at is not None:
                if not await self.standing.over(session, db_session):
                    allowance = await self.admission.admit_restored(actor, rules, db_session)
                    await self.admission.hold_session(session, actor)
                await db_session.update(session, deleted_at=None, version=session.version + 1)
                await self._record("session_restored", session, actor, db_session)
                self._publish(db_session, Hint(session.id, "session"))
            return await self.standing.of(session, actor, db_session, rules=rules, allowance=allowance)

    # ------------------------------------------------------------ the model

    async def switch_model(
        self,
        session_id: UUID,
        new_model: str,
        db_session: DbSession,
        *,
        actor: Actor,
        expected_version: int | None = None,
        when: When = "next_turn",
        reason: str = "",
        lock: bool | None = None,
        key: str | None = None,
    ) -> Switch:
        """Point a session at `new_model` (an id or an alias).

        Raises NotFound, Ended, Forbidden, UnknownModel, UnusableModel, VersionConflict, SessionBusy, RateLimited.
        """
        async with self.units.refusing("switch_model", actor, db_session):
            reason = checked_line(reason, REASON_CHARACTERS, "reason")
        asked = (session_id, new_model, expected_version, when, reason, lock)
        async with self.units.once("switch_model", key, asked, actor, db_session) as once:
            if once.answer:
                first: SwitchAnswer = msgspec.json.decode(once.answer, type=SwitchAnswer)
                live = await self._done_before(session_id, SWITCH_LIMITS, db_session, actor)
                return Switch(*first, live, live.allowance if first[0] and first[1] else ())
            async with self.access.changing(session_id, db_session, actor) as session:
                before = session.last_model
                self._may_switch(session, actor, reason, lock)
                rules = await Rules.now(db_session)
                owner = await self.standing.owner(session.owner_id, db_session)
                entry = self.standing.model_rule(rules).require(new_model, actor, owner.group_name)
                changed = entry.id != session.last_model
                locking = lock is not None and lock != session.locked
                running = await self.turns.running(session, db_session)
                allowance: tuple[Allowance, ...] = ()
                if changed or locking:
                    self._check_version(session, expected_version)
                    if when == "idle":
                        self._check_idle(running)
                if changed:
                    if when == "stop":
                        await self.turns.stop_running(session, actor, db_session)
                        running = None
                    if before is not None:
                        allowance = await self.admission.admit_switch(session.id, actor, rules, db_session)
                    await self._put_model(session, entry.id, actor, reason, db_session)
                    session.last_activity_at = self.now()
                if locking:
                    await self._put_lock(session, bool(lock), actor, reason, db_session)
                effective: Literal["now", "next_turn"] = "next_turn" if running is not None else "now"
                warnings = ("provider_down",) if self.pool.is_up(entry.provider) is False else ()
                answer: SwitchAnswer = (changed, before, entry.id, effective, warnings)
                await once.remember(msgspec.json.encode(answer).decode())
                return Switch(*answer, await self.standing.of(session, actor, db_session, rules=rules), allowance)

    # ------------------------------------------------------------ turns

    async def begin_turn(
        self,
        session_id: UUID | None,
        prompt: str,
        db_session: DbSession,
        *,
        actor: Actor,
        model: str | None = None,
        parent_id: UUID | None = None,
        expected_version: int | None = None,
        brought: Brought | None = None,
        cap: int = 0,
        wishes: Wishes = PLAIN,
        key: str | None = None,
    ) -> BegunTurn:
        """Accept a prompt and hand it to the runner after the commit; `model` switches the session first.

        Without `session_id` the session is `ensure_session`'s, in the same transaction, or with `brought` a new one
        that begins with it. With `parent_id` the prompt follows that turn instead of the last one. `cap` is what the
        reply may be at most in tokens, 0 for what its model allows.

        Raises NotFound, Ended, Forbidden, UnknownModel, UnusableModel, NoModelAvailable, ModelUnavailable,
        VersionConflict, SessionBusy, LimitReached, PromptTooLong, ContextOverflow.
        """
        async with self.units.refusing("begin_turn", actor, db_session):
            prompt = checked_prompt(prompt)
            if brought is not None:
                brought.check()
        asked = (session_id, prompt, model, parent_id, expected_version, brought, cap, wishes)
        async with self.units.once("begin_turn", key, asked, actor, db_session) as once:
            if once.answer:
                return await self._begun_before(UUID(once.answer), db_session, actor)
            made: tuple[Allowance, ...] = ()
            if session_id is None:
                await self._check_first(prompt, model, brought, cap, actor, db_session)
            if session_id is None and brought is not None:
                row, made = await self._bring(brought, "script", actor, db_session)
                session_id = row.id
            elif session_id is None:
                ensured = await self.ensure_session(None, db_session, actor=actor)
                session_id, made = ensured.row.id, ensured.allowance
            async with self.access.changing(session_id, db_session, actor) as session:
                if brought is not None:
                    self._check_instructions(session, brought)
                parent = await self.access.turn_in(session, parent_id or session.head_id, db_session)
                begun = await self._begin(
                    session, parent, prompt, actor, model, db_session, version=expected_version, cap=cap, wishes=wishes
                )
                await once.remember(str(begun.turn.id))
                return msgspec.structs.replace(begun, allowance=tightest_first((*made, *begun.allowance)))

    async def retry_turn(
        self, turn_id: UUID, db_session: DbSession, *, actor: Actor, model: str | None = None, key: str | None = None
    ) -> BegunTurn:
        """Ask the same again, as a sibling turn; another `model` is for this turn alone. Raises as begin_turn."""
        return await self._beside("retry_turn", turn_id, None, db_session, actor, model, key)

    async def edit_turn(
        self,
        turn_id: UUID,
        prompt: str,
        db_session: DbSession,
        *,
        actor: Actor,
        model: str | None = None,
        key: str | None = None,
    ) -> BegunTurn:
        """Ask something else in the same place, as a sibling turn. Raises as begin_turn."""
        return await self._beside("edit_turn", turn_id, prompt, db_session, actor, model, key)

    async def append(self, pieces: Sequence[Piece], db_session: DbSession) -> set[UUID]:
        """Commit text of this worker's turns. Returns the turns it still holds."""
        async with self.units.writing(db_session):
            now = self.now()
            held = await db_session.list_held_turns([*{piece.turn_id for piece in pieces}], self.worker, now)
            ours = [piece for piece in pieces if piece.turn_id in held]
            if ours:
                await db_session.add_pieces(ours, now)
                for piece in ours:
                    self._publish(db_session, told_of(piece))
            return held

    async def heartbeat(self, turn_ids: Sequence[UUID], db_session: DbSession) -> None:
        """Renew the leases of the turns this worker runs."""
        async with self.units.writing(db_session):
            now = self.now()
            await db_session.renew_leases(turn_ids, self.worker, now, now + LEASE)

    async def succeed(self, workers: Sequence[UUID], db_session: DbSession) -> None:
        """Free what workers held that are known to be dead; the next sweep writes the ends of their turns."""
        async with self.units.writing(db_session):
            await db_session.end_leases(workers, self.now())

    async def held_turns(self, turn_ids: Sequence[UUID], db_session: DbSession) -> set[UUID]:
        """Those of `turn_ids` that this worker may still write to: nobody has ended them, and their leases live."""
        return await db_session.list_held_turns(turn_ids, self.worker, self.now(), lock=False)

    async def finish_turn(
        self,
        turn_id: UUID,
        db_session: DbSession,
        *,
        state: End,
        usage: Usage | None = None,
        error: tuple[str, str] | None = None,
        tail: str = "",
        start: int | None = None,
        thought: str = "",
        thought_start: int | None = None,
    ) -> Turn:
        """End a turn this worker holds; a late or second end changes nothing.

        `tail` is the text not yet appended. It begins `start` characters into the reply; None for where that ends.
        `thought` and `thought_start` are the same of its reasoning.
        """
        async with self.units.writing(db_session):
            session, turn = await self.access.lock_turn(turn_id, db_session)
            if turn.state == "running" and turn.lease_owner == self.worker and turn.lease_until > self.now():
                tails = Tail(tail, start), Tail(thought, thought_start)
                await self.turns.end(session, turn, state, SYSTEM, db_session, usage, error, *tails)
            return turn

    async def stop_turn(self, turn_id: UUID, db_session: DbSession, *, actor: Actor, key: str | None = None) -> Turn:
        """Stop a reply and keep its text; stopping twice is stopping once. Raises NotFound."""
        async with self.units.once("stop_turn", key, turn_id, actor, db_session):
            session, turn = await self.access.lock_turn(turn_id, db_session, actor)
            if turn.state == "running":
                await self.turns.stop(session, turn, actor, db_session)
            return turn

    async def choose_turn(self, turn_id: UUID, db_session: DbSession, *, actor: Actor, key: str | None = None) -> Turn:
        """Show the branches through a turn: the transcript ends with the newest turn below it.

        Raises NotFound, Ended, Forbidden, SessionBusy.
        """
        async with self.units.once("choose_turn", key, turn_id, actor, db_session) as once:
            turn = await self.access.require_turn(turn_id, db_session, actor)
            if once.answer:
                return turn
            async with self.access.changing(turn.session_id, db_session, actor) as session:
                self._may_write(session, actor)
                newest = await db_session.find_newest_below(turn)
                if newest != session.head_id:
                    self._check_idle(await self.turns.running(session, db_session))
                    session.head_id = newest
                    await self._record("turn_chosen", session, actor, db_session, turn=turn)
                return turn

    async def keep_draft(
        self, session_id: UUID, text: str, db_session: DbSession, *, actor: Actor, key: str | None = None
    ) -> None:
        """Keep what is typed in a session, if no turn was begun under its `key` meanwhile; nothing is journalled.

        Raises NotFound, Forbidden.
        """
        async with self.units.refusing("keep_draft", actor, db_session):
            text = checked_draft(text)
        async with self.units.writing(db_session, actor=actor, verb="keep_draft"):
            # Locked: a message that is on its way is sent before this, or takes away what this keeps.
            session = await self.access.require(session_id, db_session, actor, lock=True)
            self._may_write(session, actor)
            if await Once.is_done("begin_turn", key, actor, self.now(), db_session):
                return
            await (db_session.keep_draft(session.id, text, self.now()) if text else db_session.drop_draft(session.id))

    # ------------------------------------------------------------ upkeep

    async def sweep(self, db_session: DbSession, *, alone: bool = False, thorough: bool = True) -> int:
        """Write down what time has ended: lapsed turns, and if `thorough` sessions and spent rows. Returns how many.

        What long forks and imports brought along is let be found.

        Bounded, idempotent and safe with several at once; no rule depends on it. `alone`: this is the only process,
        so a turn that another one held is lost already.
        """
        return await self.upkeep.sweep(db_session, alone=alone, thorough=thorough)

    # ------------------------------------------------------------ parts of verbs

    async def _arrange(
        self,
        verb: str,
        what: str,
        session_id: UUID,
        db_session: DbSession,
        actor: Actor,
        key: str | None,
        **wanted: bool,
    ) -> LiveSession:
        """Where a session stands in its owner's list; it need not live, and this is no use of it."""
        async with self.units.once(verb, key, session_id, actor, db_session) as once:
            if once.answer:
                return await self.get_session(session_id, db_session, actor=actor)
            async with self.access.changing(session_id, db_session, actor, also="closed") as session:
                if session.owner_id != actor.id:
                    raise Forbidden("Only its owner arranges a session.")
                if any(getattr(session, name) != value for name, value in wanted.items()):
                    for name, value in wanted.items():
                        setattr(session, name, value)
                    session.version += 1
                    await self._record(what, session, actor, db_session)
                return await self.standing.of(session, actor, db_session)

    def _new_session(self, actor: Actor, title: str = "", origin: Origin = "auto") -> Session:
        """A session of the actor's, not yet written."""
        now = self.now()
        return Session(
            id=new_id(),
            owner_id=actor.id,
            title=title,
            opening="",
            origin=origin,
            state="active",
            version=0,
            created_at=now,
            last_activity_at=now,
        )

    async def _add_session(self, actor: Actor, title: str, origin: Origin, db_session: DbSession) -> Session:
        """A new session of the actor's, admitted already, with its row of the journal."""
        session = self._new_session(actor, title, origin)
        await db_session.add_account_once(account_of(actor, session.created_at))
        await db_session.add(session)
        await self.admission.hold_session(session, actor)
        if title:
            await db_session.index_title(session)
        await self._record("session_created", session, actor, db_session, reason=origin)
        return session

    async def _bring(
        self, brought: Brought, origin: Origin, actor: Actor, db_session: DbSession
    ) -> tuple[Session, tuple[Allowance, ...]]:
        """A new session of the actor's that begins with what was brought, within the creation limits."""
        rules = await Rules.now(db_session)
        allowance = await self.admission.admit_session(actor.id, actor.group, actor, rules, db_session)
        session = await self._add_session(actor, brought.title, origin, db_session)
        session.instructions = brought.instructions
        session.opening = brought.opening or next((title_of(turn.prompt) for turn in brought.turns), "")
        with suppress(UnknownModel, UnusableModel, Forbidden):
            if brought.model is not None:
                entry = self.standing.model_rule(rules).require(brought.model, actor, actor.group)
                await self._put_model(session, entry.id, actor, "import", db_session)
        ids = [new_id() for _ in brought.turns]
        await db_session.add_turns(self.turns.brought(session, brought.turns, ids))
        session.head_id = ids[brought.head] if brought.head is not None else None
        session.turn_count = len(ids)
        await self.upkeep.index_copies(session, db_session)
        await db_session.update(session, **snapshot(session))
        return session, allowance

    async def _put_model(
        self,
        session: Session,
        model: str,
        actor: Actor,
        reason: str,
        db_session: DbSession,
        *,
        turn: Turn | None = None,
    ) -> None:
        """The one place where `last_model` is written, with its link of the journal's chain; `turn` is what did it.

        The first model is a choice and begins the chain; each one after it is a switch.
        """
        before, session.last_model = session.last_model, model
        session.version += 1
        facts = {"reason": reason or ("" if before else NAMED), "before": before, "to": model}
        await self._record(SWITCHED if before else FIRST, session, actor, db_session, turn=turn, **facts)

    async def _put_lock(self, session: Session, locked: bool, actor: Actor, reason: str, db_session: DbSession) -> None:
        """The one place where a session's model is locked and unlocked."""
        session.locked = locked
        session.version += 1
        what = "model_locked" if locked else "model_unlocked"
        await self._record(what, session, actor, db_session, reason=reason, to=session.last_model)

    async def _path_to_fork(self, session: Session, turn_id: UUID | None, db_session: DbSession) -> list[UUID]:
        """The ended turns from the root to `turn_id`, or to the session's last. Raises NotFound."""
        last = await self.access.turn_in(session, turn_id or session.head_id, db_session)
        if last is not None and last.state == "running":
            last = await self.access.turn_in(session, last.parent_id, db_session)
        return await db_session.list_path_ids(last.id, FORK_TURNS) if last is not None else []

    async def _move_draft(self, source: Session, fork: Session, draft: str, db_session: DbSession) -> None:
        """Give a fork this draft, else that of a source in which it can no longer be sent."""
        lifetime = await self.standing.lifetime(source, db_session)
        if state_of(source, lifetime, self.now()) != "active":
            draft = draft or await db_session.find_draft(source.id)
            await db_session.drop_draft(source.id)
        if draft:
            await db_session.keep_draft(fork.id, draft, self.now())

    async def _begin(
        self,
        session: Session,
        parent: Turn | None,
        prompt: str,
        actor: Actor,
        model: str | None,
        db_session: DbSession,
        *,
        version: int | None = None,
        beside: bool = False,
        cap: int = 0,
        wishes: Wishes = PLAIN,
    ) -> BegunTurn:
        """A turn after `parent`. One `beside` another may have a model of its own, which the session does not keep."""
        self._may_write(session, actor)
        rules, asked = await Rules.now(db_session), model
        entry, why = await self._callable_model(session, asked, cap, actor, rules, db_session)
        self._check_version(session, version)
        self._check_idle(await self.turns.running(session, db_session))
        messages, kept = await self._fitting(prompt, parent, entry, session, db_session)
        left_out = parent.depth - kept if parent is not None else 0
        turn = self.turns.new(session, parent, prompt, entry, why, messages, left_out)
        other = entry.id != session.last_model
        # The first model is no switch; one for this turn alone is checked as one all the same.
        switching = other and asked is not None and (beside or session.last_model is not None)
        try:
            allowance = await self.admission.admit_turn(turn, entry, actor, rules, db_session, switching=switching)
        except (BudgetExhausted, OverBudget) as refusal:
            others = await self._other_models(session, actor, rules, db_session)
            affordable = await self.admission.affordable(turn, others, actor, rules, db_session)
            refusal.facts |= {"alternatives": affordable} if affordable else {}
            raise
        if other and not (beside and asked is not None):
            await self._put_model(
                session, entry.id, actor, "" if asked is not None else why.source, db_session, turn=turn
            )
        await db_session.add_turn(turn)
        await self.admission.hold_turn(turn, actor)
        await db_session.index_turn(turn)
        session.opening = session.opening or title_of(prompt)
        session.head_id, session.turn_count = turn.id, session.turn_count + 1
        session.last_activity_at = turn.created_at
        if not beside and actor.kind != "token":
            await db_session.drop_draft(session.id)
        await self._record("turn_begun", session, actor, db_session, turn=turn, to=entry.id)
        self._publish(db_session, Hint(session.id, "turn_begun", turn.id))
        cap = self.admission.reply_cap(turn, entry, actor.group, rules)
        ask = Ask(model=entry.upstream, messages=messages, max_reply_tokens=cap, wishes=wishes)
        self.turns.start(TurnOrder(turn.id, session.id, entry.provider, ask), db_session)
        return BegunTurn(turn, await self.standing.of(session, actor, db_session, rules=rules), allowance, cap)

    async def _callable_model(
        self, session: Session, asked: str | None, cap: int, actor: Actor, rules: Rules, db_session: DbSession
    ) -> tuple[Entry, CurrentModel]:
        """The model that a turn calls, with at most `cap` tokens of reply, and why that one.

        Raises UnknownModel, UnusableModel, Forbidden, ModelLocked, NoModelAvailable, ModelUnavailable.
        """
        rule, owner = self.standing.model_rule(rules), await self.standing.owner(session.owner_id, db_session, actor)
        if asked is not None:
            self._may_switch(session, actor, "", None)
            entry = rule.require(asked, actor, owner.group_name)
            why = CurrentModel(entry.id, "asked", True, ASKED)
        else:
            why = await self.standing.current(session, owner, rules, db_session)
            entry = rule.usable(why)
        if self.pool.is_up(entry.provider) is False:
            others = await self._other_models(session, actor, rules, db_session)
            text = f"The provider of “{entry.label}” does not answer at the moment."
            raise ModelUnavailable(text, alternatives=[one.id for one in others])
        if cap:
            entry = msgspec.structs.replace(entry, max_reply_tokens=min(cap, entry.max_reply_tokens or cap))
        return entry, why

    async def _other_models(self, session: Session, actor: Actor, rules: Rules, db_session: DbSession) -> list[Entry]:
        """The models that a turn could call instead, the default first; none where the session is locked."""
        if session.locked and not actor.is_admin:
            return []
        owner = await self.standing.owner(session.owner_id, db_session, actor)
        return self.standing.model_rule(rules).callable_by(owner, self.pool.is_up)

    async def _check_first(
        self, prompt: str, model: str | None, brought: Brought | None, cap: int, actor: Actor, db_session: DbSession
    ) -> None:
        """What is wrong with a session's first turn comes before the limits of making one. Raises as begin_turn."""
        session, rules = self._new_session(actor), await Rules.now(db_session)
        entry, _ = await self._callable_model(session, model, cap, actor, rules, db_session)
        fit(prompt, (), entry, brought.instructions if brought is not None else "")

    async def _fitting(
        self, prompt: str, parent: Turn | None, entry: Entry, session: Session, db_session: DbSession
    ) -> tuple[tuple[Message, ...], int]:
        """What a model is shown, and how many turns of the transcript that is.

        The latest few are read first: where those do not all fit, what was said before is never looked at.
        """
        last = parent.id if parent is not None else None
        few = await db_session.list_path(last, FEW_TURNS)
        messages, kept = fit(prompt, few, entry, session.instructions)
        if len(few) < FEW_TURNS or kept < sum(bool(turn.reply) for turn in few):
            return messages, kept
        return fit(prompt, await db_session.list_path(last, CONTEXT_TURNS), entry, session.instructions)

    async def _beside(
        self,
        verb: str,
        turn_id: UUID,
        prompt: str | None,
        db_session: DbSession,
        actor: Actor,
        model: str | None,
        key: str | None,
    ) -> BegunTurn:
        """A sibling of a turn, with its prompt or another."""
        async with self.units.refusing(verb, actor, db_session):
            asked = checked_prompt(prompt) if prompt is not None else None
        async with self.units.once(verb, key, (turn_id, asked, model), actor, db_session) as once:
            if once.answer:
                return await self._begun_before(UUID(once.answer), db_session, actor)
            turn = await self.access.require_turn(turn_id, db_session, actor)
            async with self.access.changing(turn.session_id, db_session, actor) as session:
                parent = await self.access.turn_in(session, turn.parent_id, db_session)
                begun = await self._begin(session, parent, asked or turn.prompt, actor, model, db_session, beside=True)
                await once.remember(str(begun.turn.id))
                return begun

    async def _begun_before(self, turn_id: UUID, db_session: DbSession, actor: Actor) -> BegunTurn:
        """The answer to a repeated key: the turn it began."""
        turn = await db_session.find_turn(turn_id)
        if turn is None:
            raise NotFound("The turn that this key began is gone.")
        live = await self._done_before(turn.session_id, TURN_LIMITS, db_session, actor)
        return BegunTurn(turn, live, tuple(one for one in live.allowance if one.model in ("", turn.model)))

    async def _done_before(
        self, session_id: UUID, limits: frozenset[str], db_session: DbSession, actor: Actor
    ) -> LiveSession:
        """The answer to a repeated key: the session as it is now, with the verb's limits, of which nothing is taken."""
        live = await self.get_session(session_id, db_session, actor=actor)
        standing = await self.allowances(db_session, actor=actor)
        return msgspec.structs.replace(live, allowance=tightest_first(one for one in standing if one.name in limits))

    # ------------------------------------------------------------ judgements

    def _may_switch(self, session: Session, actor: Actor, reason: str, lock: bool | None) -> None:
        if lock is not None and not actor.is_admin:
            raise Forbidden("Only an admin can lock a model.")
        if session.locked and not actor.is_admin:
            raise ModelLocked()
        self._check_reason(session, actor, reason)

    def _check_reason(self, session: Session, actor: Actor, reason: str) -> None:
        """Raise InvalidRequest unless the session is the actor's own, or its owner is told why."""
        if session.owner_id != actor.id and not reason:
            raise InvalidRequest("Please give a reason; the owner of the session will see it.", field="reason")

    def _may_write(self, session: Session, actor: Actor) -> None:
        if session.owner_id != actor.id:
            raise Forbidden("Only its owner can write in a session.")

    def _check_instructions(self, session: Session, brought: Brought) -> None:
        if brought.instructions and brought.instructions != session.instructions:
            text = "This session has other instructions. Leave them out, or begin a new session."
            raise InvalidRequest(text, field="instructions")

    def _check_version(self, session: Session, expected: int | None) -> None:
        if expected is not None and expected != session.version:
            raise VersionConflict(current_model=session.last_model, version=session.version)

    def _check_idle(self, running: Turn | None) -> None:
        if running is not None:
            raise SessionBusy(running_turn=running.id)

    # ------------------------------------------------------------ journal and hints

    async def _record(self, what: str, session: Session, actor: Actor, db_session: DbSession, **facts: Any) -> None:
        await record(what, session, actor, self.now(), db_session, **facts)

    def _publish(self, db_session: DbSession, hint: Hint) -> None:
        publish(self.bus, hint, db_session)

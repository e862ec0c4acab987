"""SessionService: every rule about a session, once.

Each public verb owns its transaction (or joins the caller's), checks in one order — who, idempotency, ownership,
state, permission, model, nothing to do, version, busy, limits — and writes the change and its journal row together.
What it does not do is raised as a `services.errors.Refusal`. Live hints go out only after the commit.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID

import msgspec

from db.db_session import DatabaseUnavailable, DbSession, changes_between, new_id, snapshot
from db.tables import Account, Journal, Session, Turn
from services.actor import SYSTEM, Actor
from services.admission import Admission, switch_keys
from services.catalogue import CurrentModel, Entry
from services.client_pool import ClientPool
from services.clients import Ask, Message, Usage
from services.context import CONTEXT_TURNS, fit
from services.errors import (
    Forbidden,
    InvalidRequest,
    ModelDisabled,
    ModelLocked,
    ModelUnavailable,
    NoModelAvailable,
    NotFound,
    SessionBusy,
    SessionClosed,
    SessionExpired,
    StorageUnavailable,
    VersionConflict,
)
from services.event_bus import EventBus, Hint
from services.idempotency import Once
from services.outcomes import (
    BegunTurn,
    End,
    Extension,
    LiveSession,
    Origin,
    Runner,
    SessionPage,
    State,
    Switch,
    SwitchAnswer,
    TurnOrder,
    When,
)
from services.policies import Allowance, Lifetime, microseconds
from services.rules import Rules
from services.text import (
    REASON_CHARACTERS,
    TITLE_CHARACTERS,
    checked_line,
    checked_prompt,
    storable,
    title_of,
    tokens_of,
)

#: how long a worker may write to a turn without renewing
LEASE = timedelta(seconds=30)
#: an untouched session younger than this is used again instead of a new one
REUSE = timedelta(days=1)
IDEMPOTENCY = timedelta(hours=24)
#: what a reply is assumed to use at most where the model states no cap
REPLY_TOKENS = 4096
#: more than this no provider counts in earnest
MOST_TOKENS = 100_000_000
#: rows that one sweep changes in one transaction
SWEEP_ROWS = 100
#: rates that are whole again, forgotten in one sweep
SPENT_ROWS = 10_000
#: whose default it is, when it is the account's own
OWN = "Your default model"
#: the reason of a session's own model, until the journal tells more
CHOSEN = "Chosen for this session."
INTERRUPTED = ("interrupted", "The server stopped while this reply was being written.")


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
    ) -> None:
        self.pool = pool
        self.bus = bus
        #: the name under which this process holds turns
        self.worker = worker or new_id()
        self.now = now
        self.admission = Admission(now)
        #: set by whoever runs turns; without one a turn waits for its lease to lapse
        self.runner: Runner | None = None

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
        title = checked_line(title, TITLE_CHARACTERS, "title")
        async with self._once("create_session", key, (model, title), actor, db_session) as once:
            if once.answer:
                return await self.get_session(UUID(once.answer), db_session, actor=actor)
            rules = await Rules.now(db_session)
            entry = self._require_model(model, actor, actor.group, rules) if model else None
            allowance = await self.admission.admit_session(actor.id, actor.group, actor, rules, db_session)
            now = self.now()
            session = Session(
                id=new_id(),
                owner_id=actor.id,
                title=title,
                origin=origin,
                state="active",
                version=0,
                created_at=now,
                last_activity_at=now,
            )
            await db_session.add_account_once(_account_of(actor, now))
            await db_session.add(session)
            await self._record("session_created", session, actor, db_session, reason=origin)
            if entry is not None:
                await self._put_model(session, entry.id, actor, "", db_session)
                await db_session.update(session, last_model=session.last_model, version=session.version)
            await once.remember(str(session.id))
            return await self._live(session, db_session, rules=rules, allowance=allowance)

    async def ensure_session(self, session_id: UUID | None, db_session: DbSession, *, actor: Actor) -> LiveSession:
        """The session asked for, or without an id an untouched one, or a new one. An id never yields a new session."""
        if session_id is not None:
            async with self._changing(session_id, db_session, actor) as session:
                return await self._live(session, db_session)
        async with self._writing(db_session):
            await db_session.lock(f"auto:{actor.id}")
            untouched = await db_session.find_untouched_session(actor.id, self.now() - REUSE)
            if untouched is not None and not await self._over(untouched, db_session):
                return await self._live(untouched, db_session)
            return await self.create_session(db_session, actor=actor, origin="auto")

    # ------------------------------------------------------------ reading: writes nothing

    async def get_session(self, session_id: UUID, db_session: DbSession, *, actor: Actor) -> LiveSession:
        """A session of the actor's, or any for an admin. Raises NotFound."""
        return await self._live(await self._require(session_id, db_session, actor), db_session)

    async def version_of(self, session_id: UUID, db_session: DbSession, *, actor: Actor) -> tuple[int, UUID | None]:
        """A session's version and its last turn: whether a reader has missed something. Raises NotFound."""
        session = await self._require(session_id, db_session, actor)
        return session.version, session.head_id

    async def list_sessions(
        self,
        db_session: DbSession,
        *,
        actor: Actor,
        everybody: bool = False,
        limit: int = 50,
        after: tuple[datetime, UUID] | None = None,
        state: str = "",
        model: str = "",
        q: str = "",
    ) -> SessionPage:
        """The actor's own sessions; `everybody` for an admin. Raises Forbidden."""
        if everybody and not actor.is_admin:
            raise Forbidden("Only an admin sees everybody's sessions.")
        rows = await db_session.list_sessions(
            owner_id=None if everybody else actor.id,
            limit=limit + 1,
            ends=(await Rules.now(db_session)).ends(self.now()),
            now=self.now(),
            after=after,
            state=state,
            model=storable(model),
            q=storable(q),
        )
        more, rows = len(rows) > limit, rows[:limit]
        return SessionPage(
            await self._live_all(rows, db_session),
            (rows[-1].last_activity_at, rows[-1].id) if more else None,
        )

    async def current_model(self, session_id: UUID, db_session: DbSession, *, actor: Actor) -> CurrentModel:
        """Which model the next turn will use, and why. Raises NotFound."""
        return (await self.get_session(session_id, db_session, actor=actor)).current

    async def default_model(self, db_session: DbSession, *, actor: Actor) -> CurrentModel:
        """Which model a new session of the actor's will use."""
        return self._default(await self._owner(actor.id, db_session, actor), await Rules.now(db_session))

    async def models(self, db_session: DbSession, *, actor: Actor) -> list[Entry]:
        """The catalogue as the actor may see it."""
        return (await Rules.now(db_session)).catalogue.visible_to(actor)

    async def allowances(self, db_session: DbSession, *, actor: Actor) -> list[Allowance]:
        """Every limit that applies to the actor, as it stands before sending."""
        return await self.admission.allowances(actor, await Rules.now(db_session), db_session)

    # ------------------------------------------------------------ life

    async def rename_session(
        self, session_id: UUID, title: str, db_session: DbSession, *, actor: Actor, key: str | None = None
    ) -> LiveSession:
        """Give a session a title. Raises NotFound, Ended."""
        title = checked_line(title, TITLE_CHARACTERS, "title")
        async with self._once("rename_session", key, (session_id, title), actor, db_session) as once:
            if once.answer:
                return await self.get_session(session_id, db_session, actor=actor)
            async with self._changing(session_id, db_session, actor) as session:
                if session.title != title:
                    session.title = title
                    session.version += 1
                    await self._record("session_renamed", session, actor, db_session)
                return await self._live(session, db_session)

    async def extend_session(
        self, session_id: UUID, db_session: DbSession, *, actor: Actor, key: str | None = None
    ) -> Extension:
        """Let a session live longer from now on; never revives. Raises NotFound, Ended."""
        async with self._once("extend_session", key, session_id, actor, db_session) as once:
            if once.answer:
                live = await self.get_session(session_id, db_session, actor=actor)
                reason = once.answer.removeprefix("no: ") if once.answer != "yes" else ""
                return Extension(not reason, live.deadline, reason, live)
            async with self._changing(session_id, db_session, actor) as session:
                lifetime, active_at = await self._lifetime(session, db_session), session.last_activity_at
                before = lifetime.deadline(session)
                session.last_activity_at = self.now()
                after = lifetime.deadline(session)
                reason = "" if before is not None and after != before else "It cannot live any longer."
                if before is None:
                    reason = "It never expires."
                if reason:
                    session.last_activity_at = active_at
                else:
                    session.version += 1
                    await self._record("session_extended", session, actor, db_session)
                await once.remember(f"no: {reason}" if reason else "yes")
                return Extension(not reason, after, reason, await self._live(session, db_session))

    async def close_session(
        self, session_id: UUID, db_session: DbSession, *, actor: Actor, reason: str = "", key: str | None = None
    ) -> LiveSession:
        """End a session for good, stop its running turn, keep its text readable. Raises NotFound, SessionClosed."""
        reason = checked_line(reason, REASON_CHARACTERS, "reason")
        async with self._once("close_session", key, (session_id, reason), actor, db_session) as once:
            if once.answer:
                return await self.get_session(session_id, db_session, actor=actor)
            async with self._changing(session_id, db_session, actor, also="expired") as session:
                await self._stop_running(session, actor, db_session)
                session.state = "closed"
                session.version += 1
                await self._record("session_closed", session, actor, db_session, reason=reason)
                return await self._live(session, db_session)

    async def reopen_session(
        self, session_id: UUID, db_session: DbSession, *, actor: Actor, key: str | None = None
    ) -> LiveSession:
        """Bring back a session that idled out, within the creation limit. Raises NotFound, Ended, RateLimited."""
        async with self._once("reopen_session", key, session_id, actor, db_session) as once:
            if once.answer:
                return await self.get_session(session_id, db_session, actor=actor)
            async with self._changing(session_id, db_session, actor, also="expired") as session:
                rules, now = await Rules.now(db_session), self.now()
                lifetime = await self._lifetime(session, db_session)
                if _state_of(session, lifetime, now) == "active":
                    return await self._live(session, db_session, rules=rules)
                if not lifetime.only_idled_out(session, now):
                    raise SessionExpired("This session has reached its end and cannot be reopened.")
                owner = await self._owner(session.owner_id, db_session)
                allowance = await self.admission.admit_session(owner.id, owner.group_name, actor, rules, db_session)
                session.state = "active"
                session.last_activity_at = now
                session.version += 1
                await self._record("session_reopened", session, actor, db_session)
                return await self._live(session, db_session, rules=rules, allowance=allowance)

    async def delete_session(
        self, session_id: UUID, db_session: DbSession, *, actor: Actor, key: str | None = None
    ) -> None:
        """Take a session and its turns away; the journal keeps that they were. Raises NotFound."""
        async with self._once("delete_session", key, session_id, actor, db_session) as once:
            if once.answer:
                return
            session = await self._require(session_id, db_session, actor, lock=True)
            await self._stop_running(session, actor, db_session)
            await self._record("session_deleted", session, actor, db_session)
            await db_session.delete_session(session.id)
            self._publish(db_session, Hint(session.id, "session"))

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
        reason = checked_line(reason, REASON_CHARACTERS, "reason")
        asked = (session_id, new_model, expected_version, when, reason, lock)
        async with self._once("switch_model", key, asked, actor, db_session) as once:
            if once.answer:
                first: SwitchAnswer = msgspec.json.decode(once.answer, type=SwitchAnswer)
                return Switch(*first, await self.get_session(session_id, db_session, actor=actor))
            async with self._changing(session_id, db_session, actor) as session:
                before = session.last_model
                self._may_switch(session, actor, reason, lock)
                rules = await Rules.now(db_session)
                owner = await self._owner(session.owner_id, db_session)
                entry = self._require_model(new_model, actor, owner.group_name, rules)
                changed = entry.id != session.last_model
                locking = lock is not None and lock != session.locked
                running = await self._running(session, db_session)
                allowance = None
                if changed or locking:
                    self._check_version(session, expected_version)
                    if when == "idle":
                        self._check_idle(running)
                if changed:
                    if when == "stop":
                        await self._stop_running(session, actor, db_session)
                        running = None
                    rate = rules.policies_of(actor.group).switches
                    keys = switch_keys(session.id, actor)
                    allowance = await self.admission.take("switches", rate, keys, db_session)
                    await self._put_model(session, entry.id, actor, reason, db_session)
                    session.last_activity_at = self.now()
                if locking:
                    session.locked = bool(lock)
                    session.version += 1
                    what = "model_locked" if lock else "model_unlocked"
                    await self._record(what, session, actor, db_session, reason=reason, to=entry.id)
                effective: Literal["now", "next_turn"] = "next_turn" if running is not None else "now"
                warnings = ("provider_down",) if self.pool.is_up(entry.provider) is False else ()
                answer: SwitchAnswer = (changed, before, entry.id, effective, warnings)
                await once.remember(msgspec.json.encode(answer).decode())
                return Switch(*answer, await self._live(session, db_session, rules=rules), allowance)

    # ------------------------------------------------------------ turns

    async def begin_turn(
        self,
        session_id: UUID | None,
        prompt: str,
        db_session: DbSession,
        *,
        actor: Actor,
        model: str | None = None,
        expected_version: int | None = None,
        key: str | None = None,
    ) -> BegunTurn:
        """Accept a prompt and hand it to the runner after the commit; `model` switches the session first.

        Without `session_id` the session is `ensure_session`'s, in the same transaction.

        Raises NotFound, Ended, Forbidden, UnknownModel, UnusableModel, NoModelAvailable, ModelUnavailable,
        VersionConflict, SessionBusy, LimitReached, PromptTooLong, ContextOverflow.
        """
        prompt = checked_prompt(prompt)
        asked = (session_id, prompt, model, expected_version)
        async with self._once("begin_turn", key, asked, actor, db_session) as once:
            if once.answer:
                return await self._begun_before(UUID(once.answer), db_session, actor)
            if session_id is None:
                session_id = (await self.ensure_session(None, db_session, actor=actor)).row.id
            async with self._changing(session_id, db_session, actor) as session:
                self._may_write(session, actor)
                rules = await Rules.now(db_session)
                owner = await self._owner(session.owner_id, db_session, actor)
                if model is not None:
                    self._may_switch(session, actor, "", None)
                    entry = self._require_model(model, actor, owner.group_name, rules)
                    source = ""
                else:
                    current = self._current(session, owner, rules)
                    entry, source = self._usable(current, rules), current.source
                if self.pool.is_up(entry.provider) is False:
                    raise ModelUnavailable(f"The provider of “{entry.label}” does not answer at the moment.")
                self._check_version(session, expected_version)
                self._check_idle(await self._running(session, db_session))
                transcript = await db_session.list_path(session.head_id, CONTEXT_TURNS)
                messages, kept = fit(prompt, transcript, entry)
                turn = self._new_turn(session, prompt, entry, messages, session.turn_count - kept)
                switching = model is not None and entry.id != session.last_model
                allowance = await self.admission.admit_turn(turn, entry, actor, rules, db_session, switching=switching)
                if entry.id != session.last_model:
                    await self._put_model(session, entry.id, actor, source, db_session)
                await db_session.add(turn)
                session.title = session.title or title_of(prompt)
                session.head_id, session.turn_count = turn.id, session.turn_count + 1
                session.last_activity_at = turn.created_at
                await self._record("turn_begun", session, actor, db_session, turn=turn, to=entry.id)
                await once.remember(str(turn.id))
                self._publish(db_session, Hint(session.id, "turn_begun", turn.id))
                ask = Ask(model=entry.upstream, messages=messages, max_reply_tokens=entry.max_reply_tokens)
                self._start(TurnOrder(turn.id, session.id, entry.provider, ask), db_session)
                return BegunTurn(turn, await self._live(session, db_session, rules=rules), allowance)

    async def append(self, pieces: Sequence[tuple[UUID, UUID, int, str]], db_session: DbSession) -> set[UUID]:
        """Commit text of this worker's turns: (session, turn, start, text). Returns the turns it still holds."""
        async with self._writing(db_session):
            now = self.now()
            held = await db_session.list_held_turns([turn_id for _, turn_id, _, _ in pieces], self.worker, now)
            ours = [piece for piece in pieces if piece[1] in held]
            if ours:
                await db_session.add_pieces([piece[1:] for piece in ours], now)
                for session_id, turn_id, start, text in ours:
                    self._publish(db_session, Hint(session_id, "text", turn_id, start, text))
            return held

    async def heartbeat(self, turn_ids: Sequence[UUID], db_session: DbSession) -> None:
        """Renew the leases of the turns this worker runs."""
        async with self._writing(db_session):
            now = self.now()
            await db_session.renew_leases(turn_ids, self.worker, now, now + LEASE)

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
    ) -> Turn:
        """End a turn this worker holds; a late or second end changes nothing.

        `tail` is the text not yet appended. It begins `start` characters into the reply; None for where that ends.
        """
        async with self._writing(db_session):
            session, turn = await self._lock_turn(turn_id, db_session)
            if turn.state == "running" and turn.lease_owner == self.worker and turn.lease_until > self.now():
                await self._end_turn(session, turn, state, SYSTEM, db_session, usage, error, tail, start)
            return turn

    async def stop_turn(self, turn_id: UUID, db_session: DbSession, *, actor: Actor, key: str | None = None) -> Turn:
        """Stop a reply and keep its text; stopping twice is stopping once. Raises NotFound."""
        async with self._once("stop_turn", key, turn_id, actor, db_session):
            session, turn = await self._lock_turn(turn_id, db_session, actor)
            if turn.state == "running":
                await self._end_turn(session, turn, "stopped", actor, db_session)
            return turn

    # ------------------------------------------------------------ upkeep

    async def sweep(self, db_session: DbSession, *, alone: bool = False, thorough: bool = True) -> int:
        """Write down what time has ended: lapsed turns, and if `thorough` sessions and spent rows. Returns how many.

        Bounded, idempotent and safe with several at once; no rule depends on it. `alone`: this is the only process,
        so a turn that another one held is lost already.
        """
        lapsed = await db_session.list_lapsed_turns(self.now(), SWEEP_ROWS)
        if alone:
            lapsed += await db_session.list_turns_not_leased_to(self.worker)
        for turn_id in lapsed:
            with suppress(NotFound):  # deleted meanwhile
                await self._interrupt(turn_id, db_session, alone=alone)
        if not thorough:
            return len(lapsed)
        now = self.now()
        await db_session.delete_keys_before(now - IDEMPOTENCY)
        await db_session.delete_spent(microseconds(now), now, SPENT_ROWS)
        return len(lapsed) + await self._expire(db_session)

    # ------------------------------------------------------------ the only ways to a session

    @asynccontextmanager
    async def _writing(self, db_session: DbSession) -> AsyncIterator[None]:
        """The transaction of a verb."""
        try:
            async with db_session.transaction():
                yield
        except DatabaseUnavailable as error:
            raise StorageUnavailable() from error

    @asynccontextmanager
    async def _once(
        self, verb: str, key: str | None, content: object, actor: Actor, db_session: DbSession
    ) -> AsyncIterator[Once]:
        """The transaction of a verb with an idempotency key: a repeated one finds its first answer."""
        async with self._writing(db_session):
            once = await Once.claim(verb, key, content, actor, self.now(), db_session)
            yield once
            await once.close()

    async def _require(self, session_id: UUID, db_session: DbSession, actor: Actor, *, lock: bool = False) -> Session:
        """A session through its owner; an admin reaches every one. Raises NotFound."""
        session = await db_session.find_session(session_id, None if actor.is_admin else actor.id, lock=lock)
        if session is None:
            raise NotFound()
        return session

    @asynccontextmanager
    async def _changing(
        self, session_id: UUID, db_session: DbSession, actor: Actor, *, also: State = "active"
    ) -> AsyncIterator[Session]:
        """The only way to get a session to change: through its owner, locked, live, saved and announced."""
        async with self._writing(db_session):
            session = await self._require(session_id, db_session, actor, lock=True)
            lifetime, now = await self._lifetime(session, db_session), self.now()
            state = _state_of(session, lifetime, now)
            if state == "closed":
                raise SessionClosed()
            if state == "expired" and also != "expired":
                raise SessionExpired(can_reopen=lifetime.only_idled_out(session, now))
            before = snapshot(session)
            session.state = state
            yield session
            if changes := changes_between(before, session):
                await db_session.update(session, **changes)
                self._publish(db_session, Hint(session.id, "session"))

    async def _lock_turn(self, turn_id: UUID, db_session: DbSession, actor: Actor = SYSTEM) -> tuple[Session, Turn]:
        """A turn and its session, through its owner, both kept from changing until commit. Raises NotFound."""
        turn = await db_session.find_turn(turn_id)
        if turn is None:
            raise NotFound("There is no such turn.")
        try:
            session = await self._require(turn.session_id, db_session, actor, lock=True)
        except NotFound as error:
            raise NotFound("There is no such turn.") from error
        turn = await db_session.find_turn(turn_id, lock=True)
        if turn is None:
            raise NotFound("There is no such turn.")
        return session, turn

    # ------------------------------------------------------------ the one rule about the current model

    def _current(self, session: Session, owner: Account, rules: Rules) -> CurrentModel:
        """Which model a session uses, and why: its own, a retired one's replacement, a fallback, or a default."""
        if session.last_model is None:
            return self._default(owner, rules)
        entry = rules.catalogue.find(session.last_model, owner.group_name)
        if entry is not None and self._callable(entry):
            reason = CHOSEN
            if entry.state == "deprecated":
                reason += f" It is going away. {entry.state_reason}".rstrip()
            return CurrentModel(entry.id, "session", True, reason)
        if entry is not None and entry.state == "retired":
            replacement = rules.catalogue.replacement_of(entry, owner.group_name)
            if replacement is not None and self._callable(replacement):
                reason = f"Replaces {entry.label}, which is retired."
                return CurrentModel(replacement.id, "replacement", True, reason, wanted=entry.id)
        return self._fallback(session, owner, rules)

    def _fallback(self, session: Session, owner: Account, rules: Rules) -> CurrentModel:
        """What stands in for a model that can no longer be used: the group's default, the instance's, or nothing."""
        wanted = str(session.last_model)
        known = rules.catalogue.entries.get(wanted)
        if known is not None and not known.open_to(owner.group_name):
            known = None
        label = known.label if known is not None else wanted
        why = f"{label} is {known.state}." if known is not None and not known.serves else f"{label} is not available."
        if session.locked or rules.catalogue.defaults_of(owner.group_name).on_missing_model == "block":
            return CurrentModel(None, "none", False, f"{why} An admin has to choose another model.", wanted=wanted)
        for whose, entry in self._defaults(owner, rules):
            if whose != OWN:
                return CurrentModel(entry.id, "fallback", True, f"{why} {entry.label} stands in.", wanted=wanted)
        return CurrentModel(None, "none", False, f"{why} No other model can be used.", wanted=wanted)

    def _default(self, owner: Account, rules: Rules) -> CurrentModel:
        """What a session uses that names no model: the account's default, the group's, or the instance's."""
        for whose, entry in self._defaults(owner, rules):
            return CurrentModel(entry.id, "default", True, f"{whose}.")
        return CurrentModel(None, "none", False, NoModelAvailable.text)

    def _defaults(self, owner: Account, rules: Rules) -> Iterator[tuple[str, Entry]]:
        """The defaults that can be used, nearest first, with whose they are."""
        for whose, name in (
            (OWN, owner.default_model),
            ("The default of your group", rules.catalogue.defaults_of(owner.group_name).default_model),
            ("The default here", rules.catalogue.instance.default_model),
        ):
            entry = rules.catalogue.find(name, owner.group_name)
            if entry is not None and self._callable(entry):
                yield whose, entry

    def _callable(self, entry: Entry) -> bool:
        """Whether it may serve and is configured here; a provider that is down is not a missing model."""
        return entry.serves and self.pool.has(entry.provider)

    def _usable(self, current: CurrentModel, rules: Rules) -> Entry:
        """The model a turn will call. Raises NoModelAvailable."""
        if current.id is None:
            raise NoModelAvailable(current.reason)
        return rules.catalogue.entries[current.id]

    def _require_model(self, name: str, actor: Actor, owner_group: str, rules: Rules) -> Entry:
        """The one check of a model that somebody asks for. Raises UnknownModel, UnusableModel, Forbidden."""
        entry = rules.catalogue.require(name, actor)
        if not self.pool.has(entry.provider):
            raise ModelDisabled(f"The provider of “{entry.label}” is not configured.", replacement=entry.replacement)
        if not entry.open_to(owner_group):
            raise Forbidden(f"The group of this session's owner may not use “{entry.label}”.")
        return entry

    async def _put_model(self, session: Session, model: str, actor: Actor, reason: str, db_session: DbSession) -> None:
        """The one place where `last_model` is written, with its link of the journal's chain."""
        before, session.last_model = session.last_model, model
        session.version += 1
        await self._record("model_switched", session, actor, db_session, reason=reason, before=before, to=model)

    # ------------------------------------------------------------ judgements

    def _may_switch(self, session: Session, actor: Actor, reason: str, lock: bool | None) -> None:
        if lock is not None and not actor.is_admin:
            raise Forbidden("Only an admin can lock a model.")
        if session.locked and not actor.is_admin:
            raise ModelLocked()
        if session.owner_id != actor.id and not reason:
            raise InvalidRequest("Please give a reason; the owner of the session will see it.", field="reason")

    def _may_write(self, session: Session, actor: Actor) -> None:
        if session.owner_id != actor.id:
            raise Forbidden("Only its owner can write in a session.")

    def _check_version(self, session: Session, expected: int | None) -> None:
        if expected is not None and expected != session.version:
            raise VersionConflict(current_model=session.last_model, version=session.version)

    def _check_idle(self, running: Turn | None) -> None:
        if running is not None:
            raise SessionBusy(running_turn=running.id)

    # ------------------------------------------------------------ a turn's parts

    def _new_turn(
        self, session: Session, prompt: str, entry: Entry, messages: tuple[Message, ...], left_out: int
    ) -> Turn:
        now = self.now()
        asked = sum(tokens_of(message.text) for message in messages)
        cap = entry.max_reply_tokens or REPLY_TOKENS
        return Turn(
            id=new_id(),
            session_id=session.id,
            owner_id=session.owner_id,
            parent_id=session.head_id,
            prompt=prompt,
            model=entry.id,
            state="running",
            prompt_tokens=asked,
            reserved_tokens=asked + cap,
            reserved_nanos=asked * entry.price_in_nanos + cap * entry.price_out_nanos,
            context_left_out=left_out,
            lease_owner=self.worker,
            lease_until=now + LEASE,
            created_at=now,
        )

    async def _begun_before(self, turn_id: UUID, db_session: DbSession, actor: Actor) -> BegunTurn:
        """The answer to a repeated key: the turn it began."""
        turn = await db_session.find_turn(turn_id)
        if turn is None:
            raise NotFound("The turn that this key began is gone.")
        return BegunTurn(turn, await self.get_session(turn.session_id, db_session, actor=actor))

    async def _end_turn(
        self,
        session: Session,
        turn: Turn,
        state: End,
        actor: Actor,
        db_session: DbSession,
        usage: Usage | None = None,
        error: tuple[str, str] | None = None,
        tail: str = "",
        start: int | None = None,
    ) -> None:
        """Write a running turn's end: its whole text, what it used, and why it ended."""
        now = self.now()
        code, detail = error or (None, None)
        before = await db_session.text_of(turn.id)
        # Text whose commit was not acknowledged may be there already; it comes again in the tail.
        kept = before if start is None or not tail else before[:start]
        reply = kept + tail
        if usage is not None and not all(
            0 <= count <= MOST_TOKENS for count in (usage.prompt_tokens, usage.reply_tokens)
        ):
            usage = None  # no figure that a column holds: ours is nearer
        prompt_tokens = usage.prompt_tokens if usage is not None else turn.prompt_tokens
        reply_tokens = usage.reply_tokens if usage is not None else tokens_of(reply)
        entry = (await Rules.now(db_session)).catalogue.entries.get(turn.model)
        cost = 0
        if entry is not None:
            cost = prompt_tokens * entry.price_in_nanos + reply_tokens * entry.price_out_nanos
        await db_session.update(
            turn,
            reply=reply,
            state=state,
            error_code=code,
            error_detail=detail,
            prompt_tokens=prompt_tokens,
            reply_tokens=reply_tokens,
            estimated=usage is None,
            cost_nanos=cost,
            first_text_at=turn.first_text_at or (now if reply else None),
            ended_at=now,
        )
        await db_session.delete_pieces(turn.id)
        await db_session.add_usage(turn.owner_id, now.date(), prompt_tokens + reply_tokens, cost)
        if not await self._over(session, db_session):
            await db_session.update(session, last_activity_at=now)
        await self._record("turn_ended", session, actor, db_session, turn=turn, reason=code or "", outcome=state)
        if tail:
            self._publish(db_session, Hint(session.id, "text", turn.id, len(kept), tail))
        self._publish(db_session, Hint(session.id, "turn_ended", turn.id))
        if self.runner is not None:
            runner = self.runner
            db_session.after_commit(lambda: runner.stop(turn.id))

    async def _running(self, session: Session, db_session: DbSession) -> Turn | None:
        """The turn that runs in a session that is being changed; one whose lease lapsed ends here."""
        running = await db_session.find_running_turn(session.id)
        if running is not None and running.lease_until <= self.now():
            await self._interrupt(running.id, db_session)
            return None
        return running

    async def _stop_running(self, session: Session, actor: Actor, db_session: DbSession) -> None:
        running = await self._running(session, db_session)
        if running is not None:
            await self._end_turn(session, running, "stopped", actor, db_session)

    async def _interrupt(self, turn_id: UUID, db_session: DbSession, *, alone: bool = False) -> None:
        """End a turn whose worker is gone, keeping what it wrote."""
        async with self._writing(db_session):
            session, turn = await self._lock_turn(turn_id, db_session)
            gone = turn.lease_until <= self.now() or (alone and turn.lease_owner != self.worker)
            if turn.state == "running" and gone:
                await self._end_turn(session, turn, "interrupted", SYSTEM, db_session, error=INTERRUPTED)

    def _start(self, order: TurnOrder, db_session: DbSession) -> None:
        if self.runner is not None:
            runner = self.runner
            db_session.after_commit(lambda: runner.start(order))

    # ------------------------------------------------------------ a session's parts

    async def _owner(self, owner_id: UUID, db_session: DbSession, actor: Actor = SYSTEM) -> Account:
        """The owner's account; an actor that has made nothing yet has no row."""
        owner = await db_session.find_account(owner_id)
        return owner if owner is not None else _account_of(actor, self.now())

    async def _lifetime(self, session: Session, db_session: DbSession) -> Lifetime:
        owner = await self._owner(session.owner_id, db_session)
        return (await Rules.now(db_session)).policies_of(owner.group_name).lifetime

    async def _over(self, session: Session, db_session: DbSession) -> bool:
        return _state_of(session, await self._lifetime(session, db_session), self.now()) != "active"

    async def _live(
        self,
        session: Session,
        db_session: DbSession,
        *,
        rules: Rules | None = None,
        allowance: Allowance | None = None,
    ) -> LiveSession:
        rules = rules or await Rules.now(db_session)
        owner = await self._owner(session.owner_id, db_session)
        running = await db_session.list_running_turns([session.id], self.now())
        switches = await db_session.list_last_switches([session.id] if session.last_model is not None else [])
        return self._as_live(session, owner, running.get(session.id), switches.get(session.id), rules, allowance)

    async def _live_all(self, sessions: list[Session], db_session: DbSession) -> list[LiveSession]:
        rules, ids = await Rules.now(db_session), [session.id for session in sessions]
        owners = await db_session.list_accounts(session.owner_id for session in sessions)
        running = await db_session.list_running_turns(ids, self.now())
        switches = await db_session.list_last_switches(ids)
        return [
            self._as_live(session, owners[session.owner_id], running.get(session.id), switches.get(session.id), rules)
            for session in sessions
        ]

    def _as_live(
        self,
        session: Session,
        owner: Account,
        running: UUID | None,
        switch: Journal | None,
        rules: Rules,
        allowance: Allowance | None = None,
    ) -> LiveSession:
        lifetime = rules.policies_of(owner.group_name).lifetime
        return LiveSession(
            session,
            owner,
            _state_of(session, lifetime, self.now()),
            _explained(self._current(session, owner, rules), switch),
            switch,
            lifetime.deadline(session),
            running,
            allowance,
        )

    async def _expire(self, db_session: DbSession) -> int:
        """Mark sessions whose end has passed. They are looked for outside any transaction: that may take a while."""
        ends, expired = (await Rules.now(db_session)).ends(self.now()), 0
        for session_id in await db_session.list_lapsed_sessions(ends, self.now(), SWEEP_ROWS):
            async with self._writing(db_session):
                session = await db_session.find_session(session_id, None, lock=True)
                if session is not None and session.state == "active" and await self._over(session, db_session):
                    await db_session.update(session, state="expired", version=session.version + 1)
                    await self._record("session_expired", session, SYSTEM, db_session)
                    self._publish(db_session, Hint(session.id, "session"))
                    expired += 1
        return expired

    # ------------------------------------------------------------ journal and hints

    async def _record(
        self,
        what: str,
        session: Session,
        actor: Actor,
        db_session: DbSession,
        *,
        turn: Turn | None = None,
        reason: str = "",
        outcome: str = "done",
        before: str | None = None,
        to: str | None = None,
    ) -> None:
        await db_session.record(
            what,
            actor,
            self.now(),
            owner_id=session.owner_id,
            session_id=session.id,
            turn_id=turn.id if turn is not None else None,
            outcome=outcome,
            reason=reason,
            from_value=before,
            to_value=to,
            version=session.version,
        )

    def _publish(self, db_session: DbSession, hint: Hint) -> None:
        db_session.after_commit(lambda: self.bus.publish(hint))


def _explained(current: CurrentModel, switch: Journal | None) -> CurrentModel:
    """The session's own choice, with who made it and why, as the journal tells."""
    if current.source != "session" or switch is None:
        return current
    if switch.reason in ("default", "replacement", "fallback"):
        whose = f"Kept since the first reply; it was the {switch.reason}."
    else:
        whose = f"Chosen by {switch.actor_name}{f': {switch.reason}' if switch.reason else ''}."
    return msgspec.structs.replace(current, reason=current.reason.replace(CHOSEN, whose))


def _state_of(session: Session, lifetime: Lifetime, now: datetime) -> State:
    """What a session is now; the stored state is believed only where it says closed."""
    if session.state == "closed":
        return "closed"
    return "expired" if lifetime.over(session, now) else "active"


def _account_of(actor: Actor, now: datetime) -> Account:
    return Account(id=actor.id, name=actor.name, role=actor.role, group_name=actor.group, created_at=now)

"""How a session stands now: whose it is, whether it lives, which model it uses and why, what runs in it."""

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from uuid import UUID

import msgspec

from db.db_session import DbSession
from db.tables import Account, Journal, Session
from services.actor import SYSTEM, Actor
from services.catalogue import CurrentModel
from services.client_pool import ClientPool
from services.model_rule import ModelRule
from services.outcomes import Glance, LiveSession, State
from services.policies import Allowance, Lifetime
from services.rules import Rules

LATELY_SECONDS = 1.0


class Standing:
    """Judges sessions under the rules of this moment; writes nothing."""

    def __init__(self, pool: ClientPool, now: Callable[[], datetime]) -> None:
        self._pool = pool
        self.now = now
        self._rules: Rules | None = None
        self._rules_at = 0.0

    async def of(
        self,
        session: Session,
        actor: Actor,
        db_session: DbSession,
        *,
        rules: Rules | None = None,
        allowance: tuple[Allowance, ...] = (),
    ) -> LiveSession:
        """One session, as `actor` may see it."""
        rules = rules or await Rules.now(db_session)
        owner = await self.owner(session.owner_id, db_session)
        running = await db_session.list_running_turns([session.id], self.now())
        switches = await db_session.list_last_switches([session.id] if session.last_model is not None else [])
        endings = await self._endings([session], db_session)
        switch, ending = switches.get(session.id), endings.get(session.id)
        return self._live(session, owner, actor, running.get(session.id), switch, ending, rules, allowance)

    async def all_of(self, sessions: list[Session], actor: Actor, db_session: DbSession) -> list[LiveSession]:
        """Many at once, in as few queries."""
        rules, ids = await Rules.now(db_session), [session.id for session in sessions]
        owners = await db_session.list_accounts(session.owner_id for session in sessions)
        running = await db_session.list_running_turns(ids, self.now())
        switches = await db_session.list_last_switches(ids)
        endings = await self._endings(sessions, db_session)
        return [
            self._live(
                one, owners[one.owner_id], actor, running.get(one.id), switches.get(one.id), endings.get(one.id), rules
            )
            for one in sessions
        ]

    async def _endings(self, sessions: Sequence[Session], db_session: DbSession) -> dict[UUID, Journal]:
        """{session id: the decision that deleted it, or else closed it}."""
        deleted = [one.id for one in sessions if one.deleted_at is not None]
        closed = [one.id for one in sessions if one.deleted_at is None and one.state == "closed"]
        return {
            **await db_session.list_last_decisions("session_closed", closed),
            **await db_session.list_last_decisions("session_deleted", deleted),
        }

    async def glances(self, watched: Sequence[tuple[UUID, UUID]], db_session: DbSession) -> list[Glance | None]:
        """The least that shows whether anything has changed, under rules that may be a second old.

        For each (session, owner); None where there is no such.
        """
        rows = await db_session.list_owned(watched)
        owners, rules, now = (
            await db_session.list_accounts(owner for _, owner in rows),
            await self._lately(db_session),
            self.now(),
        )
        rule = self.model_rule(rules)

        def glance(session: Session, owner: Account) -> Glance:
            state = state_of(session, rules.policies_of(owner.group_name).lifetime, now)
            current = rule.current(session, owner)
            return Glance(session.version, session.head_id, state, current.id, current.source)

        return [glance(row, owners[row.owner_id]) if (row := rows.get(key)) is not None else None for key in watched]

    async def _lately(self, db_session: DbSession) -> Rules:
        """The rules for those who only look, thousands of them in a second."""
        if self._rules is None or time.monotonic() - self._rules_at > LATELY_SECONDS:
            self._rules, self._rules_at = await Rules.now(db_session), time.monotonic()
        return self._rules

    async def current(self, session: Session, owner: Account, rules: Rules, db_session: DbSession) -> CurrentModel:
        """Which model its next turn uses, and why, as the journal tells."""
        switches = await db_session.list_last_switches([session.id] if session.last_model is not None else [])
        return self.model_rule(rules).current(session, owner, switches.get(session.id))

    async def owner(self, owner_id: UUID, db_session: DbSession, actor: Actor = SYSTEM) -> Account:
        """The owner's account; an actor that has made nothing yet has no row."""
        owner = await db_session.find_account(owner_id)
        return owner if owner is not None else account_of(actor, self.now())

    async def lifetime(self, session: Session, db_session: DbSession) -> Lifetime:
        """How long it may live, under its owner's group."""
        owner = await self.owner(session.owner_id, db_session)
        return (await Rules.now(db_session)).policies_of(owner.group_name).lifetime

    async def over(self, session: Session, db_session: DbSession) -> bool:
        """Whether it is closed or past its end."""
        return state_of(session, await self.lifetime(session, db_session), self.now()) != "active"

    def model_rule(self, rules: Rules) -> ModelRule:
        """The rule about the model, with the providers configured here."""
        return ModelRule(rules, self._pool.has)

    def _live(
        self,
        session: Session,
        owner: Account,
        actor: Actor,
        running: tuple[UUID, str] | None,
        switch: Journal | None,
        ending: Journal | None,
        rules: Rules,
        allowance: tuple[Allowance, ...] = (),
    ) -> LiveSession:
        lifetime = rules.policies_of(owner.group_name).lifetime
        mine = session.owner_id == actor.id
        current = self.model_rule(rules).current(session, owner, switch)
        if running is not None and switch is not None and switch.id > running[0] and running[1] != current.id:
            current = msgspec.structs.replace(current, reason=f"{current.reason} From the next reply on.")
        return LiveSession(
            session,
            owner,
            session.title or (session.opening if mine else ""),
            state_of(session, lifetime, self.now()),
            current,
            switch,
            lifetime.deadline(session),
            running[0] if running is not None else None,
            ending,
            allowance,
        )


def state_of(session: Session, lifetime: Lifetime, now: datetime) -> State:
    """What a session is now; the stored state is believed only where it says closed."""
    if session.state == "closed":
        return "closed"
    return "expired" if lifetime.over(session, now) else "active"


def account_of(actor: Actor, now: datetime) -> Account:
    """The row of an actor that has none yet."""
    return Account(id=actor.id, name=actor.name, role=actor.role, group_name=actor.group, created_at=now)

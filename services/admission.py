"""Whether one more is allowed: rates, open things and budgets, decided inside the verb's writing transaction.

A rate is taken in one statement. Counts are taken under a lock on whom they are counted for, so that they are exact
over processes too. Whatever a refused verb took is rolled back with it.
"""

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

from db.db_session import DbSession
from db.tables import Turn
from services.actor import Actor
from services.catalogue import Entry
from services.errors import BudgetExhausted, ConcurrencyLimited, LimitReached, RateLimited, SessionQuota
from services.policies import Allowance, Lifetime, Policies, Rate, Slots, microseconds
from services.rules import Rules


class Admission:
    """The limits of actors, as their rows stand."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self.now = now

    async def allowances(self, actor: Actor, rules: Rules, db_session: DbSession) -> list[Allowance]:
        """Every limit that applies to the actor, as it stands; nothing is taken."""
        now = self.now()
        policies = rules.policies_of(actor.group)
        rates = (
            ("turns", policies.turns),
            ("switches", policies.switches),
            ("sessions_created", policies.sessions_created),
        )
        open_sessions = await self._count_open(actor.id, policies.lifetime, db_session)
        found = [
            rate.allowance(name, await db_session.bucket_tat(bucket_of(name, actor.rate_key)), now)
            for name, rate in rates
            if rate.count
        ]
        found += await self._slots(actor, rules.catalogue.visible_to(actor), rules, db_session)
        if (quota := policies.open_sessions.allowance("open_sessions", open_sessions)) is not None:
            found.append(quota)
        return found + await self._budgets(actor.id, policies, db_session)

    async def admit_session(
        self, owner_id: UUID, group: str, actor: Actor, rules: Rules, db_session: DbSession
    ) -> Allowance | None:
        """One more open session for its owner, at the actor's rate. Raises SessionQuota, RateLimited."""
        policies = rules.policies_of(group)
        await db_session.lock(f"owner:{owner_id}")
        used = await self._count_open(owner_id, policies.lifetime, db_session)
        quota = policies.open_sessions.allowance("open_sessions", used)
        if quota is not None and not quota.remaining:
            raise SessionQuota(size=quota.size, used=quota.used)
        rate = rules.policies_of(actor.group).sessions_created
        return await self.take("sessions_created", rate, (actor.rate_key,), db_session)

    async def admit_turn(
        self, turn: Turn, entry: Entry, actor: Actor, rules: Rules, db_session: DbSession, *, switching: bool
    ) -> Allowance | None:
        """A slot, a place in each rate and a reservation for one turn. Raises the LimitReached that lasts longest."""
        policies, now = rules.policies_of(actor.group), self.now()
        await db_session.lock(
            f"owner:{actor.id}",
            *([f"model:{entry.id}"] if entry.concurrent_turns else []),
            *(["instance"] if rules.concurrent_turns else []),
        )
        refusals: list[LimitReached] = []
        for slots in await self._slots(actor, [entry], rules, db_session):
            if not slots.remaining:
                text = f"{slots.used} replies are being written at once; no more are allowed. Wait for one to end."
                refusals.append(ConcurrencyLimited(text, slots, now))
        need = {"tokens_per_day": turn.reserved_tokens, "money_per_month": turn.reserved_nanos}
        for budget in await self._budgets(actor.id, policies, db_session):
            if budget.remaining < need[budget.name]:
                text = f"The budget “{budget.name.replace('_', ' ')}” is used up for now."
                refusals.append(BudgetExhausted(text, budget, now))
        allowance = None
        try:
            if switching:
                await self.take("switches", policies.switches, switch_keys(turn.session_id, actor), db_session)
        except RateLimited as refusal:
            refusals.append(refusal)
        try:
            allowance = await self.take("turns", policies.turns, (actor.rate_key,), db_session)
        except RateLimited as refusal:
            refusals.append(refusal)
        if refusals:
            raise max(refusals, key=lambda refusal: refusal.retry_after_seconds)
        return allowance

    async def _slots(
        self, actor: Actor, entries: Iterable[Entry], rules: Rules, db_session: DbSession
    ) -> list[Allowance]:
        """The counts of running turns that apply: the actor's, each model's, the instance's."""
        now = self.now()
        scopes: list[tuple[str, Slots, dict[str, Any]]] = [
            ("concurrent_turns", rules.policies_of(actor.group).concurrent_turns, {"owner_id": actor.id}),
            *(
                ("concurrent_turns_of_model", Slots(entry.concurrent_turns), {"model": entry.id})
                for entry in entries
                if entry.concurrent_turns
            ),
            ("concurrent_turns_of_instance", Slots(rules.concurrent_turns), {}),
        ]
        return [
            allowance
            for name, slots, scope in scopes
            if slots.size
            and (allowance := slots.allowance(name, await db_session.count_running_turns(now, **scope))) is not None
        ]

    async def take(self, name: str, rate: Rate, keys: Iterable[str], db_session: DbSession) -> Allowance | None:
        """One place in each bucket of a rate. Raises RateLimited for the one that stays full longest."""
        if not rate.count:
            return None
        now, allowances, full = self.now(), [], []
        for key in sorted(keys):
            bucket = bucket_of(name, key)
            tat = await db_session.take_from_bucket(bucket, microseconds(now), rate.interval_us, rate.burst)
            if tat is None:
                full.append(rate.allowance(name, await db_session.bucket_tat(bucket), now))
            else:
                allowances.append(rate.allowance(name, tat, now))
        if full:
            raise RateLimited(_too_often(name), max(full, key=lambda one: one.retry_after_seconds(now)), now)
        return min(allowances, key=lambda one: one.remaining)

    async def _budgets(self, owner_id: UUID, policies: Policies, db_session: DbSession) -> list[Allowance]:
        """The budgets that apply: spent by ended turns, held by running ones."""
        now = self.now()
        found: list[Allowance] = []
        for place, (name, budget) in enumerate(
            (("tokens_per_day", policies.tokens_per_day), ("money_per_month", policies.money_per_month))
        ):
            if budget.size:
                # Held before spent: a turn that settles in between counts twice, never not at all.
                held = (await db_session.reserved_of(owner_id, now))[place]
                spent = (await db_session.usage_since(owner_id, budget.since(now).date()))[place]
                if (allowance := budget.allowance(name, spent + held, now)) is not None:
                    found.append(allowance)
        return found

    async def _count_open(self, owner_id: UUID, lifetime: Lifetime, db_session: DbSession) -> int:
        now = self.now()
        return await db_session.count_open_sessions(
            owner_id,
            now,
            now - lifetime.idle if lifetime.idle else None,
            now - lifetime.absolute if lifetime.absolute else None,
        )


def bucket_of(name: str, key: str) -> str:
    """The key of a rate's state."""
    return f"{name}:{key}"


def switch_keys(session_id: UUID, actor: Actor) -> tuple[str, str]:
    """What a switch is counted under: its session, and who switches."""
    return f"session:{session_id}", actor.rate_key


def _too_often(name: str) -> str:
    what = {"turns": "prompts", "switches": "switches of the model", "sessions_created": "new sessions"}[name]
    return f"Too many {what} in a short time. Please wait a moment."

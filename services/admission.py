"""Whether one more is allowed: rates, open things and budgets, decided inside the verb's writing transaction.

A rate is taken in one statement. Counts are taken under a lock on whom they are counted for, so that they are exact
over processes too. Whatever a refused verb took is rolled back with it. A verb that is admitted gets every limit that
applied, as it stands afterwards and the tightest first.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from uuid import UUID

import msgspec

from db.db_session import DbSession
from db.tables import Turn
from services import rates, shortages
from services.actor import Actor
from services.catalogue import Entry
from services.context import reply_tokens
from services.errors import BudgetExhausted, ConcurrencyLimited, LimitReached, OverBudget, RateLimited, SessionQuota
from services.policies import (
    CONCURRENT,
    MONEY,
    REQUESTS,
    TOKENS,
    Allowance,
    Policies,
    Rate,
    Slots,
    tightest_first,
)
from services.rules import Rules
from services.text import tokens_of

#: a reply is not cut to less: then the message waits for the next day or month
LEAST_REPLY_TOKENS = 256
#: tokens of a reply that costs nothing
UNBOUNDED = 10**12


class Claim(msgspec.Struct, frozen=True):
    """What a verb wants of one limit."""

    before: Allowance
    #: None where there is not enough
    after: Allowance | None
    #: buckets that a wrong clock has filled: {key: microseconds of a full one}
    ahead: Mapping[str, int] = {}


class Admission:
    """The limits of actors, as their rows stand."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self.now = now

    async def allowances(self, actor: Actor, rules: Rules, db_session: DbSession) -> list[Allowance]:
        """Every limit that applies to the actor, as it stands; nothing is taken."""
        policies, now = rules.policies_of(actor.group), self.now()
        rates = (
            ("turns", policies.turns),
            ("switches", policies.switches),
            ("sessions_created", policies.sessions_created),
        )
        return [
            *[
                rate.allowance(name, await db_session.bucket_tat(bucket_of(name, rate, actor.rate_key)), now)
                for name, rate in rates
                if rate.count
            ],
            *await self._slots(actor, rules.catalogue.visible_to(actor), rules, db_session),
            *await self._open_sessions(actor.id, policies, db_session),
            *await self._budgets(actor.id, policies, rules, db_session),
        ]

    async def admit_session(
        self, owner_id: UUID, group: str, actor: Actor, rules: Rules, db_session: DbSession
    ) -> tuple[Allowance, ...]:
        """One more open session for its owner, at the actor's rate; the system's has none.

        Raises SessionQuota, RateLimited.
        """
        claims = await self._room(owner_id, group, rules, db_session)
        if actor.kind == "system":
            return self._granted(claims, rules)
        rate = rules.policies_of(actor.group).sessions_created
        claims += await self._claims("sessions_created", rate, (actor.rate_key,), db_session)
        return self._granted(claims, rules)

    async def admit_restored(
        self, owner_id: UUID, group: str, rules: Rules, db_session: DbSession
    ) -> tuple[Allowance, ...]:
        """One more open session for its owner, which was made before. Raises SessionQuota."""
        return self._granted(await self._room(owner_id, group, rules, db_session), rules)

    async def _room(self, owner_id: UUID, group: str, rules: Rules, db_session: DbSession) -> list[Claim]:
        """A place in the quota of open sessions, where there is one. Raises SessionQuota."""
        policies = rules.policies_of(group)
        if not policies.open_sessions.size:
            return []
        await db_session.lock(f"owner:{owner_id}")
        claims = [Claim(one, one.less(1)) for one in await self._open_sessions(owner_id, policies, db_session)]
        for claim in claims:
            if claim.after is None:
                raise SessionQuota(
                    shortages.too_many_chats(claim.before), size=claim.before.size, used=claim.before.used
                )
        return claims

    async def admit_switch(
        self, session_id: UUID, actor: Actor, rules: Rules, db_session: DbSession
    ) -> tuple[Allowance, ...]:
        """One place among the switches of a session and of the actor. Raises RateLimited."""
        rate = rules.policies_of(actor.group).switches
        claims = await self._claims("switches", rate, switch_keys(session_id, actor), db_session)
        return self._granted(claims, rules)

    async def admit_turn(
        self, turn: Turn, entry: Entry, actor: Actor, rules: Rules, db_session: DbSession, *, switching: bool
    ) -> tuple[Allowance, ...]:
        """A slot, a place in each rate and a reservation for one turn.

        Where less of a budget is left, the turn reserves that and is `capped`. Raises OverBudget for what no wait makes
        fit, and else the LimitReached that lasts longest.
        """
        policies = rules.policies_of(actor.group)
        await db_session.lock(
            f"owner:{actor.id}",
            *([f"model:{entry.id}"] if entry.concurrent_turns else []),
            *(["instance"] if rules.concurrent_turns else []),
        )
        budgets = await self._budgets(actor.id, policies, rules, db_session)
        self._reserve(turn, entry, budgets)
        need = {CONCURRENT: 1, TOKENS: turn.reserved_tokens, MONEY: turn.reserved_nanos}
        held = await self._slots(actor, [entry], rules, db_session) + budgets
        claims = [Claim(one, one.less(need[one.unit])) for one in held]
        if switching:
            claims += await self._claims("switches", policies.switches, switch_keys(turn.session_id, actor), db_session)
        claims += await self._claims("turns", policies.turns, (actor.rate_key,), db_session)
        return self._granted(claims, rules)

    def _reserve(self, turn: Turn, entry: Entry, budgets: Sequence[Allowance]) -> None:
        """What a turn may use at most: its reply is cut to what the budgets leave it. Raises OverBudget."""
        asked, whole = turn.prompt_tokens, reply_tokens(entry)
        least = min(LEAST_REPLY_TOKENS, whole)
        for one in budgets:
            if _room_for(one, one.size, asked, entry) < least:
                raise OverBudget(shortages.never_fits(one, asked + least), one, needed_tokens=asked + least)
        rooms = {one.name: _room_for(one, one.remaining, asked, entry) for one in budgets}
        tightest = min(rooms, key=rooms.__getitem__, default="")
        cap = max(least, rooms[tightest]) if tightest and rooms[tightest] < whole else whole
        turn.reserved_tokens = asked + cap
        turn.reserved_nanos = asked * entry.price_in_nanos + cap * entry.price_out_nanos
        turn.capped = (cap, tightest) if cap < whole else None

    def reply_cap(self, turn: Turn, entry: Entry, group: str, rules: Rules) -> int:
        """Where a reply is cut, so that it cannot use more than is reserved for it; 0 where nothing asks for that."""
        if turn.capped is not None:
            return turn.capped[0]
        return reply_tokens(entry) if entry.max_reply_tokens or rules.policies_of(group).budgets else 0

    def _granted(self, claims: Iterable[Claim], rules: Rules) -> tuple[Allowance, ...]:
        """The limits after a verb took its part of each. Raises the LimitReached that lasts longest."""
        claims, now = list(claims), self.now()
        short = [claim.before for claim in claims if claim.after is None]
        if not short:
            return tightest_first(claim.after for claim in claims if claim.after is not None)
        longest = max(short, key=lambda one: one.retry_after_seconds(now))
        others = tightest_first(claim.before for claim in claims if claim.before is not longest)
        refusal = _refusal(longest, now, others, rules)
        refusal.ahead = {bucket: us for claim in claims for bucket, us in claim.ahead.items()}
        raise refusal

    async def _claims(self, name: str, rate: Rate, keys: Iterable[str], db_session: DbSession) -> list[Claim]:
        """One place in each bucket of a rate; of several buckets the tightest is told."""
        if not rate.count:
            return []
        claims = []
        for key in sorted(keys):
            taken = await rates.take(bucket_of(name, rate, key), name, rate, self.now, db_session)
            claims.append(Claim(taken.before, taken.after, taken.ahead))
        now = self.now()
        tightest = max(
            claims, key=lambda one: (one.after is None, one.before.used, one.before.retry_after_seconds(now))
        )
        ahead = {bucket: us for one in claims for bucket, us in one.ahead.items()}
        return [msgspec.structs.replace(tightest, ahead=ahead)]

    async def _slots(
        self, actor: Actor, entries: Iterable[Entry], rules: Rules, db_session: DbSession
    ) -> list[Allowance]:
        """The counts of running turns that apply: the actor's, each model's, the instance's."""
        now, found = self.now(), []
        if (slots := rules.policies_of(actor.group).concurrent_turns).size:
            used = await db_session.count_running_turns(now, owner_id=actor.id)
            found.append(slots.allowance("concurrent_turns", used))
        for entry in entries:
            if entry.serves and (slots := Slots(entry.concurrent_turns)).size:
                used = await db_session.count_running_turns(now, model=entry.id)
                found.append(slots.allowance("concurrent_turns_of_model", used, entry.id))
        if (slots := Slots(rules.concurrent_turns)).size:
            used = await db_session.count_running_turns(now)
            found.append(slots.allowance("concurrent_turns_of_instance", used))
        return found

    async def _open_sessions(self, owner_id: UUID, policies: Policies, db_session: DbSession) -> list[Allowance]:
        """The quota of open sessions, where there is one."""
        now, lifetime = self.now(), policies.lifetime
        if not policies.open_sessions.size:
            return []
        used = await db_session.count_open_sessions(
            owner_id,
            now,
            now - lifetime.idle if lifetime.idle else None,
            now - lifetime.absolute if lifetime.absolute else None,
        )
        return [policies.open_sessions.allowance("open_sessions", used)]

    async def _budgets(
        self, owner_id: UUID, policies: Policies, rules: Rules, db_session: DbSession
    ) -> list[Allowance]:
        """The budgets that apply: spent by ended turns, held by running ones."""
        now, budgets = self.now(), policies.budgets
        if not budgets:
            return []
        # Held before spent: a turn that settles in between counts twice, never not at all.
        reserved, lapsed = (
            await db_session.reserved_of(owner_id, now),
            await self._unbooked(owner_id, rules, db_session),
        )
        held = reserved[0] + lapsed[0], reserved[1] + lapsed[1]
        # Both ends: a clock that was ahead has booked use on days to come.
        windows = {(budget.first_day(now), budget.end_day(now)) for budget in budgets.values()}
        spent = {days: await db_session.usage_between(owner_id, *days) for days in windows}
        found = []
        for name, budget in budgets.items():
            place = ("tokens", "money").index(name.partition("_")[0])
            found.append(
                budget.allowance(name, held[place] + spent[budget.first_day(now), budget.end_day(now)][place], now)
            )
        return found

    async def _unbooked(self, owner_id: UUID, rules: Rules, db_session: DbSession) -> tuple[int, int]:
        """Tokens and nano-money of turns whose worker is gone and whose end nobody has written down yet."""
        tokens = nanos = 0
        for turn in await db_session.list_lapsed_turns_of(owner_id, self.now()):
            written = sum(map(tokens_of, await db_session.text_of(turn.id)))
            tokens += turn.prompt_tokens + written
            nanos += rules.catalogue.cost_nanos(turn.model, turn.prompt_tokens, written)
        return tokens, nanos


def _room_for(budget: Allowance, amount: int, asked: int, entry: Entry) -> int:
    """Tokens of reply that fit into so much of a budget, behind a prompt of `asked` tokens; below 0 for none."""
    if budget.unit == TOKENS:
        return amount - asked
    rest = amount - asked * entry.price_in_nanos
    if entry.price_out_nanos:
        return rest // entry.price_out_nanos
    return UNBOUNDED if rest >= 0 else -1


def bucket_of(name: str, rate: Rate, key: str) -> str:
    """The key of a rate's state. A state is counted in the rate's interval, so another rate has another."""
    return f"{name}:{key}:{rate.interval_us}"


def switch_keys(session_id: UUID, actor: Actor) -> tuple[str, str]:
    """What a switch is counted under: its session, and who switches."""
    return f"session:{session_id}", actor.rate_key


def _refusal(limit: Allowance, now: datetime, others: tuple[Allowance, ...], rules: Rules) -> LimitReached:
    """What the caller of a verb is told about the limit that stands against it."""
    kinds: dict[str, type[LimitReached]] = {REQUESTS: RateLimited, CONCURRENT: ConcurrencyLimited}
    return kinds.get(limit.unit, BudgetExhausted)(shortages.short(limit, rules.zone), limit, now, others)

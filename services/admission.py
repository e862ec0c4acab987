"""Whether one more is allowed: rates, open things and budgets, decided inside the verb's writing transaction.

A rate is taken in one statement. Counts are taken under a lock on whom they are counted for, so that they are exact
over processes too. Whatever a refused verb took is rolled back with it. A verb that is admitted gets every limit that
applied, as it stands afterwards and the tightest first.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from uuid import UUID

import msgspec

from db import addresses
from db.db_session import DbSession
from db.tables import Session, Turn
from services import rates, shortages
from services.actor import NETWORK_SHARES, Actor
from services.catalogue import Entry
from services.context import reply_tokens
from services.errors import BudgetExhausted, ConcurrencyLimited, LimitReached, OverBudget, RateLimited, SessionQuota
from services.holders import Holder, holders_of, locks_of
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
        policies, now, holders = rules.policies_of(actor.group), self.now(), holders_of(actor.id, actor)
        rates = (
            ("turns", policies.turns),
            ("switches", policies.switches),
            ("sessions_created", policies.sessions_created),
        )
        found = [
            *[
                one.allowance(name, await db_session.bucket_tat(bucket_of(name, one, key)), now)
                for name, rate in rates
                for one, key in buckets_of(rate, (actor.rate_key,), actor)
            ],
            *await self._slots(holders, rules.catalogue.visible_to(actor), policies, rules, db_session),
            *await self._open_sessions(holders, policies, db_session),
            *await self._budgets(holders, policies, rules, db_session),
        ]
        return [claim.before for claim in _strictest(Claim(one, one) for one in found)]

    async def admit_session(
        self, owner_id: UUID, group: str, actor: Actor, rules: Rules, db_session: DbSession
    ) -> tuple[Allowance, ...]:
        """One more open session for its owner, at the actor's rate; the system's has none.

        Raises SessionQuota, RateLimited.
        """
        claims = await self._room(owner_id, group, actor, rules, db_session)
        if actor.kind == "system":
            return self._granted(claims, rules)
        rate = rules.policies_of(actor.group).sessions_created
        claims += await self._claims("sessions_created", rate, (actor.rate_key,), actor, db_session)
        return self._granted(claims, rules)

    async def admit_restored(self, actor: Actor, rules: Rules, db_session: DbSession) -> tuple[Allowance, ...]:
        """One more open session for the actor, which was made before. Raises SessionQuota."""
        return self._granted(await self._room(actor.id, actor.group, actor, rules, db_session), rules)

    async def _room(self, owner_id: UUID, group: str, actor: Actor, rules: Rules, db_session: DbSession) -> list[Claim]:
        """A place in the quota of open sessions, where there is one. Raises SessionQuota."""
        policies = rules.policies_of(group)
        if not policies.open_sessions.size:
            return []
        await db_session.lock(*locks_of(owner_id, actor))
        held = await self._open_sessions(holders_of(owner_id, actor), policies, db_session)
        claims = [Claim(one, one.less(1)) for one in held]
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
        claims = await self._claims("switches", rate, switch_keys(session_id, actor), actor, db_session)
        return self._granted(claims, rules)

    async def admit_turn(
        self, turn: Turn, entry: Entry, actor: Actor, rules: Rules, db_session: DbSession, *, switching: bool
    ) -> tuple[Allowance, ...]:
        """A slot, a place in each rate and a reservation for one turn.

        Where less of a budget is left, the turn reserves that and is `capped`. Raises OverBudget for what no wait makes
        fit, and else the LimitReached that lasts longest.
        """
        policies, holders = rules.policies_of(actor.group), holders_of(actor.id, actor)
        await db_session.lock(
            *locks_of(actor.id, actor),
            *([f"model:{entry.id}"] if entry.concurrent_turns else []),
            *(["instance"] if rules.concurrent_turns else []),
        )
        budgets = await self._budgets(holders, policies, rules, db_session)
        self._reserve(turn, entry, budgets)
        need = {CONCURRENT: 1, TOKENS: turn.reserved_tokens, MONEY: turn.reserved_nanos}
        held = await self._slots(holders, [entry], policies, rules, db_session) + budgets
        claims = [Claim(one.awaited(need[one.unit]), one.less(need[one.unit])) for one in held]
        if switching:
            keys = switch_keys(turn.session_id, actor)
            claims += await self._claims("switches", policies.switches, keys, actor, db_session)
        claims += await self._claims("turns", policies.turns, (actor.rate_key,), actor, db_session)
        return self._granted(claims, rules)

    async def affordable(
        self, turn: Turn, entries: Iterable[Entry], actor: Actor, rules: Rules, db_session: DbSession
    ) -> list[str]:
        """The ids of the models whose shortest reply to a turn fits into what is left of the budgets."""
        holders = holders_of(actor.id, actor)
        budgets = await self._budgets(holders, rules.policies_of(actor.group), rules, db_session)
        return [
            entry.id
            for entry in entries
            if all(_room_for(one, one.remaining, turn.prompt_tokens, entry) >= _least_reply(entry) for one in budgets)
        ]

    def _reserve(self, turn: Turn, entry: Entry, budgets: Sequence[Allowance]) -> None:
        """What a turn may use at most: its reply is cut to what the budgets leave it. Raises OverBudget."""
        asked, whole, least = turn.prompt_tokens, reply_tokens(entry), _least_reply(entry)
        for one in budgets:
            if _room_for(one, one.size, asked, entry) < least:
                raise OverBudget(shortages.never_fits(one, asked + least), one, needed_tokens=asked + least)
        room, tightest = min(
            ((_room_for(one, one.remaining, asked, entry), one.name) for one in budgets), default=(whole, "")
        )
        cap = max(least, min(room, whole))
        turn.reserved_tokens = asked + cap
        turn.reserved_nanos = asked * entry.price_in_nanos + cap * entry.price_out_nanos
        turn.capped = (cap, tightest) if cap < whole else None

    def reply_cap(self, turn: Turn, entry: Entry, group: str, rules: Rules) -> int:
        """Where a reply is cut, so that it cannot use more than is reserved for it; 0 where nothing asks for that."""
        if turn.capped is not None:
            return turn.capped[0]
        return reply_tokens(entry) if entry.max_reply_tokens or rules.policies_of(group).budgets else 0

    async def hold_turn(self, turn: Turn, actor: Actor) -> None:
        """Count a begun turn under its guest's addresses; its end takes that away."""
        await addresses.hold_turn(turn.id, [key for key, _ in actor.addresses])

    async def hold_session(self, session: Session, actor: Actor) -> None:
        """Count an open session under its guest's addresses."""
        await addresses.hold_session(session.id, [key for key, _ in actor.addresses])

    def _granted(self, claims: Iterable[Claim], rules: Rules) -> tuple[Allowance, ...]:
        """The limits after a verb took its part of each. Raises the LimitReached that lasts longest."""
        every, now = list(claims), self.now()
        claims = _strictest(every)
        short = [claim.before for claim in claims if claim.after is None]
        if not short:
            return tightest_first(claim.after for claim in claims if claim.after is not None)
        longest = max(short, key=lambda one: one.retry_after_seconds(now))
        others = tightest_first(claim.before for claim in claims if claim.before is not longest)
        refusal = _refusal(longest, now, others, rules)
        refusal.ahead = {bucket: us for claim in every for bucket, us in claim.ahead.items()}
        raise refusal

    async def _claims(
        self, name: str, rate: Rate, keys: Iterable[str], actor: Actor, db_session: DbSession
    ) -> list[Claim]:
        """One place in each bucket of a rate."""
        buckets = sorted((bucket_of(name, one, key), one) for one, key in buckets_of(rate, keys, actor))
        taken = [await rates.take(bucket, name, one, self.now, db_session) for bucket, one in buckets]
        return [Claim(one.before, one.after, one.ahead) for one in taken]

    async def _slots(
        self, holders: Iterable[Holder], entries: Iterable[Entry], policies: Policies, rules: Rules,
        db_session: DbSession,
    ) -> list[Allowance]:  # fmt: skip
        """The counts of running turns that apply: the holders', each model's, the instance's."""
        now, found = self.now(), []
        for one in holders if policies.concurrent_turns.size else ():
            slots = Slots(policies.concurrent_turns.size * one.share)
            told = slots.allowance("concurrent_turns", await one.running_turns(now, db_session))
            found.append(msgspec.structs.replace(told, shared=one.shared))
        for entry in entries:
            if entry.serves and (slots := Slots(entry.concurrent_turns)).size:
                used = await db_session.count_running_turns(now, model=entry.id)
                found.append(slots.allowance("concurrent_turns_of_model", used, entry.id))
        if (slots := Slots(rules.concurrent_turns)).size:
            used = await db_session.count_running_turns(now)
            found.append(slots.allowance("concurrent_turns_of_instance", used))
        return found

    async def _open_sessions(
        self, holders: Iterable[Holder], policies: Policies, db_session: DbSession
    ) -> list[Allowance]:
        """The quota of open sessions, where there is one."""
        now, lifetime, found = self.now(), policies.lifetime, []
        active_after = now - lifetime.idle if lifetime.idle else None
        created_after = now - lifetime.absolute if lifetime.absolute else None
        for one in holders if policies.open_sessions.size else ():
            used = await one.open_sessions(now, active_after, created_after, db_session)
            told = Slots(policies.open_sessions.size * one.share).allowance("open_sessions", used)
            found.append(msgspec.structs.replace(told, shared=one.shared))
        return found

    async def _budgets(
        self, holders: Iterable[Holder], policies: Policies, rules: Rules, db_session: DbSession
    ) -> list[Allowance]:
        """The budgets that apply: spent by ended turns, held by running ones."""
        now, budgets, found = self.now(), policies.budgets, []
        for one in holders if budgets else ():
            # Held before spent: a turn that settles in between counts twice, never not at all.
            reserved, lapsed = (
                await one.reserved(now, db_session),
                await self._unbooked(await one.lapsed_turns(now, db_session), rules, db_session),
            )
            held = reserved[0] + lapsed[0], reserved[1] + lapsed[1]
            # Both ends: a clock that was ahead has booked use on days to come.
            windows = {(budget.first_day(now), budget.end_day(now)) for budget in budgets.values()}
            spent = {days: await one.used(*days, db_session) for days in windows}
            for name, budget in budgets.items():
                place = ("tokens", "money").index(name.partition("_")[0])
                used = held[place] + spent[budget.first_day(now), budget.end_day(now)][place]
                shared = msgspec.structs.replace(budget, size=budget.size * one.share)
                told = shared.allowance(name, used, now, held[place])
                found.append(msgspec.structs.replace(told, shared=one.shared))
        return found

    async def _unbooked(self, turns: Iterable[Turn], rules: Rules, db_session: DbSession) -> tuple[int, int]:
        """Tokens and nano-money of turns whose worker is gone and whose end nobody has written down yet."""
        tokens = nanos = 0
        for turn in turns:
            written = sum(map(tokens_of, await db_session.text_of(turn.id)))
            tokens += turn.prompt_tokens + written
            nanos += rules.catalogue.cost_nanos(turn.model, turn.prompt_tokens, written)
        return tokens, nanos


def _strictest(claims: Iterable[Claim]) -> list[Claim]:
    """Of several claims on one limit the one that stands most against the verb; of equal ones the owner's own."""
    found: dict[tuple[str, str], Claim] = {}
    for claim in claims:
        key = claim.before.name, claim.before.model
        if key not in found or _rank(claim) > _rank(found[key]):
            found[key] = claim
    return list(found.values())


def _rank(claim: Claim) -> tuple[bool, float, int, float]:
    """How much a claim stands against its verb."""
    at = claim.before.resets_at
    until = at.timestamp() if at is not None else 0.0
    full = claim.after is None
    return full, until if full else 0.0, -(claim.after or claim.before).remaining, until


def buckets_of(rate: Rate, keys: Iterable[str], actor: Actor) -> list[tuple[Rate, str]]:
    """The buckets of a rate that an actor takes from: of the keys, and of the networks around a guest's address."""
    if not rate.count:
        return []
    wider = zip(actor.networks, NETWORK_SHARES, strict=False)
    return [
        *((rate, key) for key in keys),
        *((msgspec.structs.replace(rate, count=rate.count * n, burst=rate.burst * n), key) for key, n in wider),
    ]


def _least_reply(entry: Entry) -> int:
    """The shortest reply that is worth it, in tokens."""
    return min(LEAST_REPLY_TOKENS, reply_tokens(entry))


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

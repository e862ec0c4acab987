"""Rate, Lifetime, Slots, Budget: frozen values that judge facts; no clock, no I/O.

A group's limits are data (`limit_rule` rows, written as in the configuration); `Policies` is one group's set, parsed.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from math import ceil
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec

#: a century
LONGEST_DAYS = 36_500
#: how long a deleted session can be had back. The same for everybody: whoever was away for a week still can, and it is
#: not long until what is deleted is no more
DELETED_KEPT = timedelta(days=7)
_SPAN = {"s": 1, "sec": 1, "min": 60, "h": 3600, "hour": 3600, "d": 86400, "day": 86400}

_SPAN_NAMES = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))

#: how limits are written
RATE_WRITTEN = "a rate is written like '10/min burst 5', or 0 for no limit"
COUNT_WRITTEN = "a count is a whole number like 3, or 0 for no limit"
SPAN_WRITTEN = "a span is written like '30d', '12h' or '30min', or 0 for no end"
MONEY_WRITTEN = "an amount of money is a plain number like 20 or 0.05, without a currency, or 0 for no limit"

REQUESTS, CONCURRENT, SESSIONS, TOKENS = "requests", "concurrent-requests", "sessions", "tokens"
#: millionths of the money: what is left of it can be a very small number, and headers know integers only
MONEY = "micro-money"


class Kind(msgspec.Struct, frozen=True):
    """What a limit counts."""

    #: as people call it, after a number
    noun: str
    #: the quota unit (draft-ietf-httpapi-ratelimit-headers-10 §3.1.2)
    unit: str


#: every limit under its name
KINDS = {
    "turns": Kind("messages", REQUESTS),
    "switches": Kind("model switches", REQUESTS),
    "sessions_created": Kind("new sessions", REQUESTS),
    "sign_ins": Kind("attempts to sign in", REQUESTS),
    "concurrent_turns": Kind("replies at once", CONCURRENT),
    "concurrent_turns_of_model": Kind("replies at once of", CONCURRENT),
    "concurrent_turns_of_instance": Kind("replies at once on this server", CONCURRENT),
    "open_sessions": Kind("open sessions", SESSIONS),
    "tokens_per_day": Kind("tokens today", TOKENS),
    "tokens_per_month": Kind("tokens this month", TOKENS),
    "money_per_day": Kind("money today", MONEY),
    "money_per_month": Kind("money this month", MONEY),
}
#: what a new session, a switch and a turn are counted under
SESSION_LIMITS = frozenset({"sessions_created", "open_sessions"})
SWITCH_LIMITS = frozenset({"switches"})
TURN_LIMITS = frozenset(KINDS) - SESSION_LIMITS - SWITCH_LIMITS - {"sign_ins"}


class Figures(NamedTuple):
    """The three figures of a limit in one unit."""

    size: float
    used: float
    remaining: float


class Allowance(msgspec.Struct, frozen=True):
    """One limit as it stands: what it allows, what is used, when it is whole again. Money is in nano-money."""

    name: str
    size: int
    used: int
    remaining: int
    #: when something is available again (at the limit) or all of it is (below); None where time alone frees nothing
    resets_at: datetime | None = None
    #: 0 for a count of open things
    window_seconds: int = 0
    #: the model whose limit it is; empty for everything else
    model: str = ""
    #: all guests at a network address are counted together
    shared: bool = False
    #: of a rate, for people: how fast it grows back, "30 per minute"
    pace: str = ""
    #: of a budget: how much of `used` running replies only hold
    held: int = 0

    @property
    def unit(self) -> str:
        """The quota unit of its figures in headers."""
        return KINDS[self.name].unit

    @property
    def noun(self) -> str:
        """What it counts, as people call it, after a number."""
        return f"{KINDS[self.name].noun} {self.model}".rstrip()

    @property
    def units(self) -> Figures:
        """The figures in whole quota units; what remains is never rounded up."""
        if self.unit != MONEY:
            return Figures(self.size, self.used, self.remaining)
        size, remaining = self.size // 1000, self.remaining // 1000
        return Figures(size, max(size - remaining, self.used // 1000), remaining)

    @property
    def figures(self) -> Figures:
        """The figures as they are told: money in money."""
        return Figures(*(count / 1e6 for count in self.units)) if self.unit == MONEY else self.units

    @property
    def words(self) -> tuple[str, str, str]:
        """The figures for people: size, used, remaining."""
        size, used, remaining = (_money(int(n)) if self.unit == MONEY else f"{n:,}" for n in self.units)
        return size, used, remaining

    def less(self, need: int) -> "Allowance | None":
        """The same once `need` more is used; None where there is not enough."""
        if need > self.remaining:
            return None
        held = self.held + need if self.unit in (TOKENS, MONEY) else 0
        return msgspec.structs.replace(self, used=self.used + need, remaining=self.remaining - need, held=held)

    def more(self, freed: int) -> "Allowance":
        """The same once `freed` less is used; below 0 where more is."""
        used = self.used - freed
        return msgspec.structs.replace(self, used=used, remaining=max(0, self.size - used))

    def awaited(self, need: int) -> "Allowance":
        """As it stands against `need`: where the end of running replies may free enough, nobody waits for its reset."""
        if self.remaining < need <= self.size - self.used + self.held:
            return msgspec.structs.replace(self, resets_at=None)
        return self

    def retry_after_seconds(self, now: datetime) -> int:
        """Whole seconds after which a retry meets a freed place; a count of open things suggests 5."""
        if self.resets_at is None:
            return 5
        return max(1, ceil((self.resets_at - now).total_seconds()))


def tightest_first(allowances: Iterable[Allowance]) -> tuple[Allowance, ...]:
    """In the order in which they will refuse: by the share that remains, of the same share the longest first."""
    last = datetime.min.replace(tzinfo=UTC)
    later = sorted(allowances, key=lambda one: one.resets_at or last, reverse=True)
    return tuple(sorted(later, key=lambda one: one.remaining / one.size))


class Rate(msgspec.Struct, frozen=True):
    """`count` per `per`, `burst` at once: the parameters of GCRA (ITU-T I.371). count 0 = no limit."""

    count: int
    per: timedelta
    burst: int

    @classmethod
    def parse(cls, text: str) -> "Rate":
        """Read `10/min burst 5`; `0` for no limit. Raises ValueError."""
        if text.strip() == "0":
            return cls(0, timedelta(minutes=1), 0)
        found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d*)\s*([a-z]+)(?:\s+burst\s+(\d+))?\s*", text)
        if not found or found[3] not in _SPAN:
            raise ValueError(f"{RATE_WRITTEN}, not {text!r}")
        count, every, burst = int(found[1]), int(found[2] or 1), int(found[4] or found[1])
        if not (0 < count <= 1_000_000 and 0 < every <= 1000 and 0 < burst <= 1_000_000):
            raise ValueError(f"a rate has a count and a burst from 1 to a million, not {text!r}")
        rate = cls(count, timedelta(seconds=every * _SPAN[found[3]]), burst)
        if not rate.interval_us:
            raise ValueError(f"a rate is at most a million a second, not {text!r}")
        return rate

    @property
    def interval_us(self) -> int:
        """Microseconds in which one place grows back."""
        return int(self.per / timedelta(microseconds=1)) // self.count

    @property
    def pace(self) -> str:
        """For people: "30 per minute", "5 per 10 minutes"."""
        seconds = int(self.per.total_seconds())
        size, name = next((size, name) for size, name in _SPAN_NAMES if seconds % size == 0)
        span = name if seconds == size else f"{seconds // size} {name}s"
        return f"{self.count:,} per {span}"

    @property
    def window_us(self) -> int:
        """Microseconds in which an empty bucket fills."""
        return self.burst * self.interval_us if self.count else 0

    def allowance(self, name: str, tat_us: int, now: datetime) -> Allowance:
        """What a bucket with theoretical arrival time `tat_us` still allows at `now`."""
        now_us = microseconds(now)
        # Further than a full bucket reaches only what a clock has written that was ahead.
        tat_us = min(tat_us, now_us + self.window_us)
        waiting = -(-max(0, tat_us - now_us) // self.interval_us)
        used = min(self.burst, waiting)
        free_us = tat_us - (self.burst - 1) * self.interval_us if used == self.burst else max(tat_us, now_us)
        return Allowance(
            name,
            self.burst,
            used,
            self.burst - used,
            instant(free_us),
            ceil(self.burst * self.interval_us / 1_000_000),
            pace=self.pace,
        )


class Lifetime(msgspec.Struct, frozen=True):
    """How long a session lives without activity, and at most. Zero = no such end."""

    idle: timedelta
    absolute: timedelta

    def deadline(self, session: Any) -> datetime | None:
        """The earliest end of `session` (created_at, last_activity_at, expires_at); None for never."""
        return min((end for end in self._ends(session) if end is not None), default=None)

    def over(self, session: Any, now: datetime) -> bool:
        deadline = self.deadline(session)
        return deadline is not None and now >= deadline

    def only_idled_out(self, session: Any, now: datetime) -> bool:
        """Whether new activity would bring it back: no other end has passed."""
        return all(end is None or now < end for end in self._ends(session)[1:])

    def why_no_longer(self, session: Any, now: datetime) -> str:
        """Why a session that is used at `now` would not end any later; empty where it would."""
        if (deadline := self.deadline(session)) is None:
            return "It never expires."
        later = self.idle and min(end for end in (now + self.idle, *self._ends(session)[1:]) if end is not None)
        return "" if later and later != deadline else "It cannot live any longer."

    def end_kept(self, session: Any, now: datetime, *, under: "Lifetime") -> datetime | None:
        """`expires_at` of a session that is to live `under` another lifetime: one that is over by now stays over."""
        if not self.over(session, now):
            return session.expires_at
        return min(end for end in (self.deadline(session), under._ends(session)[1]) if end is not None)

    def _ends(self, session: Any) -> tuple[datetime | None, datetime | None, datetime | None]:
        return (
            session.last_activity_at + self.idle if self.idle else None,
            session.created_at + self.absolute if self.absolute else None,
            session.expires_at,
        )


class Slots(msgspec.Struct, frozen=True):
    """How many of something may be open at once. 0 = no limit."""

    size: int

    def allowance(self, name: str, used: int, model: str = "") -> Allowance:
        return Allowance(name, self.size, used, max(0, self.size - used), model=model)


class Budget(msgspec.Struct, frozen=True):
    """How much may be used in a day or a month of a time zone. 0 = no limit."""

    size: int
    #: day · month
    window: str
    zone: tzinfo = UTC

    def first_day(self, now: datetime) -> date:
        """The day on which the present window began."""
        today = now.astimezone(self.zone).date()
        return today if self.window == "day" else today.replace(day=1)

    def since(self, now: datetime) -> datetime:
        return self._begins(self.first_day(now))

    def end_day(self, now: datetime) -> date:
        """The day on which the next window begins."""
        first = self.first_day(now)
        return first + timedelta(days=1) if self.window == "day" else _next_month(first)

    def until(self, now: datetime) -> datetime:
        return self._begins(self.end_day(now))

    def _begins(self, day: date) -> datetime:
        """When a day begins; where clocks jump over midnight, at the jump."""
        return datetime.combine(day, time(), self.zone).astimezone(UTC)

    def allowance(self, name: str, used: int, now: datetime, held: int = 0) -> Allowance:
        """`used` counts what is spent and what running turns hold; `held` is the latter alone."""
        until = self.until(now)
        window = int((until - self.since(now)).total_seconds())
        return Allowance(name, self.size, used, max(0, self.size - used), until, window, held=held)


class Policies(msgspec.Struct, frozen=True):
    """All limits of one group."""

    sessions_created: Rate
    turns: Rate
    switches: Rate
    concurrent_turns: Slots
    open_sessions: Slots
    #: {name: budget} of those that are set; money in nano-money
    budgets: dict[str, Budget]
    lifetime: Lifetime

    @classmethod
    def parse(cls, rules: Mapping[str, str], zone: tzinfo = UTC) -> "Policies":
        """Build from limit_rule rows {name: value}; what is missing has the default of `user`. Raises ValueError."""
        rules = {**DEFAULT_LIMITS["user"], **rules}
        return cls(
            Rate.parse(rules["sessions_created"]),
            Rate.parse(rules["turns"]),
            Rate.parse(rules["switches"]),
            Slots(parse_count(rules["concurrent_turns"])),
            Slots(parse_count(rules["open_sessions"])),
            {name: budget for name in BUDGETS if (budget := _budget(name, rules[name], zone)).size},
            Lifetime(parse_span(rules["idle"]), parse_span(rules["absolute"])),
        )


#: the names of the rates
RATES = ("sessions_created", "turns", "switches")
#: the names of the budgets: what is counted, and in which window
BUDGETS = ("tokens_per_day", "tokens_per_month", "money_per_day", "money_per_month")

DEFAULT_LIMITS: dict[str, dict[str, str]] = {
    "user": {
        "sessions_created": "10/min burst 5",
        "turns": "30/min burst 10",
        "switches": "30/min burst 10",
        "concurrent_turns": "3",
        "open_sessions": "500",
        "tokens_per_day": "0",
        "tokens_per_month": "0",
        "money_per_day": "0",
        "money_per_month": "0",
        "idle": "30d",
        "absolute": "0",
    },
    "guest": {"concurrent_turns": "2", "open_sessions": "50", "idle": "30min", "absolute": "24h"},
    "admin": {"switches": "0", "concurrent_turns": "10"},
    # The instance as a whole.
    "*": {"concurrent_turns": "0", "time_zone": "UTC"},
}


def check_rule(name: str, value: str, group: str = "user") -> None:
    """Raise ValueError unless `value` is a legal text for the limit `name` of `group`; `*` has limits of its own."""
    known = DEFAULT_LIMITS["*" if group == "*" else "user"]
    if name not in known:
        raise ValueError(f"there is no limit {name!r}; there are {', '.join(known)}")
    if name == "time_zone":
        parse_zone(value)
    else:
        Policies.parse({name: value})


def parse_count(text: str) -> int:
    """Read a whole number ≥ 0. Raises ValueError."""
    if not text.strip().isdecimal():
        raise ValueError(f"{COUNT_WRITTEN}, not {text!r}")
    return int(text)


def parse_span(text: str) -> timedelta:
    """Read `30d`, `12h`, `30min`, `45s` or `0`. Raises ValueError."""
    found = re.fullmatch(r"\s*(\d+)\s*([a-z]*)\s*", text)
    if not found or (found[2] not in _SPAN and found[1] != "0"):
        raise ValueError(f"{SPAN_WRITTEN}, not {text!r}")
    span = int(found[1]) * _SPAN.get(found[2], 0)
    if span > LONGEST_DAYS * 86400:
        raise ValueError(f"a span is at most {LONGEST_DAYS} days, not {text!r}; 0 is no end at all")
    return timedelta(seconds=span)


def parse_zone(name: str) -> tzinfo:
    """Read the name of a time zone. Raises ValueError."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ValueError, LookupError, OSError) as error:
        raise ValueError(f"there is no time zone {name!r}; they are named like 'Europe/Berlin'") from error


def nanos(money: str | float) -> int:
    """Money as written → nano-money. Raises ValueError."""
    try:
        amount = float(money)
    except ValueError:
        amount = -1
    if not 0 <= amount < 1e9:
        raise ValueError(f"{MONEY_WRITTEN}, and less than a billion; not {money!r}")
    return round(amount * 1_000_000_000)


def microseconds(at: datetime) -> int:
    """Microseconds since 1970, exactly."""
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def instant(us: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)


def _budget(name: str, text: str, zone: tzinfo) -> Budget:
    what, _, window = name.partition("_per_")
    return Budget(nanos(text) if what == "money" else parse_count(text), window, zone)


def _next_month(first: date) -> date:
    return (first + timedelta(days=32)).replace(day=1)


def _money(millionths: int) -> str:
    """An amount of money: with two decimals, a very small one with as many as it takes."""
    if millionths >= 10_000 or not millionths:
        return f"{millionths // 10_000 / 100:,.2f}"
    return f"{millionths / 1e6:.6f}".rstrip("0")

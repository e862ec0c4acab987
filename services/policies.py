"""Rate, Lifetime, Slots, Budget: frozen values that judge facts; no clock, no I/O.

A group's limits are data (`limit_rule` rows, written as in the configuration); `Policies` is one group's set, parsed.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Any

import msgspec

#: a century
LONGEST_DAYS = 36_500
_SPAN = {"s": 1, "sec": 1, "min": 60, "h": 3600, "hour": 3600, "d": 86400, "day": 86400}


class Allowance(msgspec.Struct, frozen=True):
    """One limit as it stands: what it allows, what is used, when it is whole again."""

    name: str
    size: int
    used: int
    remaining: int
    #: when something is available again (at the limit) or all of it is (below); None where time alone frees nothing
    resets_at: datetime | None = None
    #: 0 for a count of open things
    window_seconds: int = 0

    def retry_after_seconds(self, now: datetime) -> int:
        """Whole seconds after which a retry meets a freed place; a count of open things suggests 5."""
        if self.resets_at is None:
            return 5
        return max(1, ceil((self.resets_at - now).total_seconds()))


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
            raise ValueError(f"a rate is written like '10/min burst 5', not {text!r}")
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

    def allowance(self, name: str, tat_us: int, now: datetime) -> Allowance:
        """What a bucket with theoretical arrival time `tat_us` still allows at `now`."""
        now_us = microseconds(now)
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

    def _ends(self, session: Any) -> tuple[datetime | None, datetime | None, datetime | None]:
        return (
            session.last_activity_at + self.idle if self.idle else None,
            session.created_at + self.absolute if self.absolute else None,
            session.expires_at,
        )


class Slots(msgspec.Struct, frozen=True):
    """How many of something may be open at once. 0 = no limit."""

    size: int

    def allowance(self, name: str, used: int) -> Allowance | None:
        if not self.size:
            return None
        return Allowance(name, self.size, used, max(0, self.size - used))


class Budget(msgspec.Struct, frozen=True):
    """How much may be used in a day or a month (UTC). 0 = no limit."""

    size: int
    window: str

    def since(self, now: datetime) -> datetime:
        start = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        return start if self.window == "day" else start.replace(day=1)

    def until(self, now: datetime) -> datetime:
        start = self.since(now)
        return start + timedelta(days=1) if self.window == "day" else (start + timedelta(days=32)).replace(day=1)

    def allowance(self, name: str, used: int, now: datetime) -> Allowance | None:
        """`used` counts what is spent and what running turns hold."""
        if not self.size:
            return None
        window = self.until(now) - self.since(now)
        return Allowance(name, self.size, used, max(0, self.size - used), self.until(now), int(window.total_seconds()))


class Policies(msgspec.Struct, frozen=True):
    """All limits of one group."""

    sessions_created: Rate
    turns: Rate
    switches: Rate
    concurrent_turns: Slots
    open_sessions: Slots
    tokens_per_day: Budget
    #: in nano-money
    money_per_month: Budget
    lifetime: Lifetime

    @classmethod
    def parse(cls, rules: Mapping[str, str]) -> "Policies":
        """Build from limit_rule rows {name: value}; what is missing has the default of `user`. Raises ValueError."""
        rules = {**DEFAULT_LIMITS["user"], **rules}
        return cls(
            Rate.parse(rules["sessions_created"]),
            Rate.parse(rules["turns"]),
            Rate.parse(rules["switches"]),
            Slots(parse_count(rules["concurrent_turns"])),
            Slots(parse_count(rules["open_sessions"])),
            Budget(parse_count(rules["tokens_per_day"]), "day"),
            Budget(nanos(rules["money_per_month"]), "month"),
            Lifetime(parse_span(rules["idle"]), parse_span(rules["absolute"])),
        )


DEFAULT_LIMITS: dict[str, dict[str, str]] = {
    "user": {
        "sessions_created": "10/min burst 5",
        "turns": "30/min burst 10",
        "switches": "30/min burst 10",
        "concurrent_turns": "3",
        "open_sessions": "500",
        "tokens_per_day": "0",
        "money_per_month": "0",
        "idle": "30d",
        "absolute": "0",
    },
    "guest": {"concurrent_turns": "2", "open_sessions": "50", "idle": "30min", "absolute": "24h"},
    "admin": {"switches": "0", "concurrent_turns": "10"},
    # The instance as a whole.
    "*": {"concurrent_turns": "0"},
}


def check_rule(name: str, value: str) -> None:
    """Raise ValueError unless `value` is a legal text for the limit `name`."""
    if name not in DEFAULT_LIMITS["user"]:
        raise ValueError(f"there is no limit {name!r}; there are {', '.join(DEFAULT_LIMITS['user'])}")
    Policies.parse({name: value})


def parse_count(text: str) -> int:
    """Read a whole number ≥ 0. Raises ValueError."""
    if not text.strip().isdecimal():
        raise ValueError(f"a count is a whole number, not {text!r}")
    return int(text)


def parse_span(text: str) -> timedelta:
    """Read `30d`, `12h`, `30min`, `45s` or `0`. Raises ValueError."""
    found = re.fullmatch(r"\s*(\d+)\s*([a-z]*)\s*", text)
    if not found or (found[2] not in _SPAN and found[1] != "0"):
        raise ValueError(f"a span is written like '30d', '12h' or '30min', not {text!r}")
    span = int(found[1]) * _SPAN.get(found[2], 0)
    if span > LONGEST_DAYS * 86400:
        raise ValueError(f"a span is at most {LONGEST_DAYS} days, not {text!r}; 0 is no end at all")
    return timedelta(seconds=span)


def nanos(money: str | float) -> int:
    """Money as written → nano-money. Raises ValueError."""
    amount = float(money)
    if not 0 <= amount < 1e9:
        raise ValueError(f"an amount of money is a number from 0 to a billion, not {money!r}")
    return round(amount * 1_000_000_000)


def microseconds(at: datetime) -> int:
    """Microseconds since 1970, exactly."""
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def instant(us: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)

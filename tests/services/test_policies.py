"""Frozen values that judge facts: Rate, Lifetime, Slots, Budget, Policies; nothing here needs a database."""

import re
from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.policies import (
    BUDGETS,
    DEFAULT_LIMITS,
    KINDS,
    Allowance,
    Budget,
    Lifetime,
    Policies,
    Rate,
    Slots,
    check_rule,
    instant,
    microseconds,
    nanos,
    parse_count,
    parse_span,
    parse_zone,
    tightest_first,
)

NOON = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
SECOND = 1_000_000


# ---------------------------------------------------------------- Rate


@pytest.mark.parametrize(
    ("text", "count", "seconds", "burst"),
    [
        ("10/min burst 5", 10, 60, 5),
        ("30/min", 30, 60, 30),
        ("1/s", 1, 1, 1),
        ("1/sec", 1, 1, 1),
        ("3 / 10 min  burst 2", 3, 600, 2),
        ("  100/2h ", 100, 7200, 100),
        ("7/day burst 1", 7, 86400, 1),
        ("7/hour", 7, 3600, 7),
    ],
)
def test_a_rate_is_read_as_it_is_written(text: str, count: int, seconds: int, burst: int) -> None:
    assert Rate.parse(text) == Rate(count, timedelta(seconds=seconds), burst)


def test_a_rate_of_nothing_is_no_limit() -> None:
    assert Rate.parse(" 0 ").count == 0


@pytest.mark.parametrize(
    "text",
    [
        "", "fast", "10", "10/", "/min", "10/fortnight", "0/min", "10/min burst 0", "10/min burst", "10/0min", "-1/min",
        "1.5/min", "10/min burst -1", "10/min 5", "10/min burst 00", "10/00min", "00/min", "5000000/s",
        "1/99999999999d", "1/min burst 99999999999999999999", "10/MIN",
    ],
)  # fmt: skip
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="rate"):
        Rate.parse(text)


class Bucket:
    """GCRA as the one SQL statement does it."""

    def __init__(self, rate: Rate) -> None:
        self.rate, self.tat = rate, 0

    def take(self, at: datetime) -> bool:
        now = microseconds(at)
        if self.tat > now + (self.rate.burst - 1) * self.rate.interval_us:
            return False
        self.tat = max(self.tat, now) + self.rate.interval_us
        return True

    def allowance(self, at: datetime) -> Allowance:
        return self.rate.allowance("turns", self.tat, at)


def test_an_unused_rate_is_whole() -> None:
    assert Rate.parse("6/min burst 3").allowance("turns", 0, NOON) == Allowance(
        "turns", 3, 0, 3, NOON, 30, pace="6 per minute"
    )


def test_a_rate_counts_down_and_grows_back() -> None:
    bucket = Bucket(Rate.parse("6/min burst 3"))
    seen = []
    for seconds in (0, 1, 2, 2, 10, 11, 60):
        at = NOON + timedelta(seconds=seconds)
        admitted = bucket.take(at)
        told = bucket.allowance(at)
        assert told.resets_at is not None
        seen.append((admitted, told.remaining, (told.resets_at - NOON).total_seconds()))
    assert seen == [
        (True, 2, 10),
        (True, 1, 20),
        (True, 0, 10),
        (False, 0, 10),
        (True, 0, 20),
        (False, 0, 20),
        (True, 2, 70),
    ]


def test_a_rate_admits_no_more_than_burst_plus_rate() -> None:
    bucket = Bucket(Rate.parse("20/min burst 5"))
    admitted = sum(bucket.take(NOON + timedelta(seconds=second)) for second in range(60))
    assert admitted == 5 + 19


RATES = st.builds(
    Rate, st.integers(1, 1000), st.integers(1, 86400).map(lambda s: timedelta(seconds=s)), st.integers(1, 20)
)


@given(RATES, st.lists(st.integers(0, 100 * SECOND), max_size=60))
def test_L5_what_is_told_is_what_happens(rate: Rate, gaps: list[int]) -> None:
    bucket, at = Bucket(rate), NOON
    for gap in gaps:
        at += timedelta(microseconds=gap)
        before = bucket.allowance(at)
        assert before.size == rate.burst == before.used + before.remaining
        admitted = bucket.take(at)
        assert admitted == (before.remaining > 0)
        if admitted:
            assert bucket.allowance(at).remaining == before.remaining - 1
        else:
            wait = timedelta(seconds=before.retry_after_seconds(at))
            retried = Bucket(rate)
            retried.tat = bucket.tat
            assert before.resets_at is not None
            assert not retried.take(before.resets_at - timedelta(microseconds=1))
            assert retried.take(at + wait)
            assert wait < before.resets_at - at + timedelta(seconds=1)


def test_a_wait_is_whole_seconds_and_never_none() -> None:
    for microsecond, seconds in ((0, 1), (1, 1), (SECOND, 1), (SECOND + 1, 2), (90 * SECOND, 90)):
        resets_at = NOON + timedelta(microseconds=microsecond)
        assert Allowance("turns", 1, 1, 0, resets_at).retry_after_seconds(NOON) == seconds
    assert Allowance("concurrent_turns", 1, 1, 0).retry_after_seconds(NOON) == 5


# ---------------------------------------------------------------- Lifetime


def a_session(active: int = 0, created: int = 0, expires: int | None = None) -> SimpleNamespace:
    """A session's times, in hours from noon."""
    return SimpleNamespace(
        last_activity_at=NOON + timedelta(hours=active),
        created_at=NOON + timedelta(hours=created),
        expires_at=None if expires is None else NOON + timedelta(hours=expires),
    )


def lifetime(idle: int = 0, absolute: int = 0) -> Lifetime:
    return Lifetime(timedelta(hours=idle), timedelta(hours=absolute))


@pytest.mark.parametrize(
    ("life", "session", "hours"),
    [
        (lifetime(), a_session(), None),
        (lifetime(idle=2), a_session(active=5), 7),
        (lifetime(absolute=24), a_session(active=5), 24),
        (lifetime(idle=2, absolute=24), a_session(active=5), 7),
        (lifetime(idle=2, absolute=24), a_session(active=23), 24),
        (lifetime(), a_session(expires=3), 3),
        (lifetime(idle=2, absolute=24), a_session(active=5, expires=6), 6),
        (lifetime(idle=2, absolute=24), a_session(active=5, expires=99), 7),
    ],
)
def test_E1_the_earliest_end_counts(life: Lifetime, session: SimpleNamespace, hours: int | None) -> None:
    assert life.deadline(session) == (None if hours is None else NOON + timedelta(hours=hours))


def test_E2_over_from_the_deadline_on() -> None:
    end = NOON + timedelta(hours=2)
    assert not lifetime(idle=2).over(a_session(), end - timedelta(microseconds=1))
    assert lifetime(idle=2).over(a_session(), end)
    assert not lifetime().over(a_session(), NOON + timedelta(days=9999))


def test_E7_only_what_idled_out_comes_back() -> None:
    later = NOON + timedelta(hours=24)
    assert lifetime(idle=2).only_idled_out(a_session(), later)
    assert lifetime(idle=2, absolute=25).only_idled_out(a_session(), later)
    assert not lifetime(idle=2, absolute=24).only_idled_out(a_session(), later)
    assert not lifetime(idle=2).only_idled_out(a_session(expires=24), later)


# ---------------------------------------------------------------- Slots and Budget


def test_slots_are_counted() -> None:
    assert Slots(3).allowance("concurrent_turns", 1) == Allowance("concurrent_turns", 3, 1, 2)
    assert Slots(3).allowance("concurrent_turns", 5) == Allowance("concurrent_turns", 3, 5, 0)
    told = Slots(3).allowance("concurrent_turns_of_model", 1, "fast")
    assert (told.model, told.noun) == ("fast", "replies at once of fast")


@pytest.mark.parametrize(
    ("window", "now", "since", "until"),
    [
        ("day", NOON, datetime(2026, 5, 4, tzinfo=UTC), datetime(2026, 5, 5, tzinfo=UTC)),
        ("day", datetime(2026, 5, 5, tzinfo=UTC), datetime(2026, 5, 5, tzinfo=UTC), datetime(2026, 5, 6, tzinfo=UTC)),
        ("month", NOON, datetime(2026, 5, 1, tzinfo=UTC), datetime(2026, 6, 1, tzinfo=UTC)),
        ("month", datetime(2026, 1, 31, 23, 59, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC),
         datetime(2026, 2, 1, tzinfo=UTC)),
        ("month", datetime(2026, 12, 31, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC),
         datetime(2027, 1, 1, tzinfo=UTC)),
        ("day", datetime(2026, 5, 4, 1, 0, tzinfo=timezone(timedelta(hours=2))), datetime(2026, 5, 3, tzinfo=UTC),
         datetime(2026, 5, 4, tzinfo=UTC)),
    ],
)  # fmt: skip
def test_a_budget_has_the_days_and_months_of_UTC(window: str, now: datetime, since: datetime, until: datetime) -> None:
    budget = Budget(100, window)
    assert (budget.since(now), budget.until(now)) == (since, until)


def test_a_budget_tells_what_remains_and_when_it_is_new() -> None:
    midnight = datetime(2026, 5, 5, tzinfo=UTC)
    assert Budget(100, "day").allowance("tokens_per_day", 30, NOON) == Allowance(
        "tokens_per_day", 100, 30, 70, midnight, 86400
    )
    told = Budget(100, "day").allowance("tokens_per_day", 130, NOON)
    assert (told.used, told.remaining) == (130, 0)
    assert Budget(100, "month").allowance("money_per_month", 0, NOON).window_seconds == 31 * 86400


NEW_YORK, KOLKATA = ZoneInfo("America/New_York"), ZoneInfo("Asia/Kolkata")


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("zone", "window", "now", "since", "until", "hours"),
    [
        (KOLKATA, "day", utc(2026, 5, 4, 18, 29), utc(2026, 5, 3, 18, 30), utc(2026, 5, 4, 18, 30), 24),
        (KOLKATA, "day", utc(2026, 5, 4, 18, 30), utc(2026, 5, 4, 18, 30), utc(2026, 5, 5, 18, 30), 24),
        (NEW_YORK, "day", utc(2026, 5, 4, 3, 59), utc(2026, 5, 3, 4), utc(2026, 5, 4, 4), 24),
        # The clocks of New York jump on 8 March and fall back on 1 November.
        (NEW_YORK, "day", utc(2026, 3, 8, 12), utc(2026, 3, 8, 5), utc(2026, 3, 9, 4), 23),
        (NEW_YORK, "day", utc(2026, 11, 1, 12), utc(2026, 11, 1, 4), utc(2026, 11, 2, 5), 25),
        (NEW_YORK, "month", utc(2026, 3, 31, 23), utc(2026, 3, 1, 5), utc(2026, 4, 1, 4), 31 * 24 - 1),
        (NEW_YORK, "month", utc(2026, 12, 1, 2), utc(2026, 11, 1, 4), utc(2026, 12, 1, 5), 30 * 24 + 1),
        (NEW_YORK, "month", utc(2026, 12, 31, 12), utc(2026, 12, 1, 5), utc(2027, 1, 1, 5), 31 * 24),
        # Clocks that jump over midnight, that come back to it, and that leave out a whole day.
        (ZoneInfo("Africa/Cairo"), "day", utc(2024, 4, 26, 12), utc(2024, 4, 25, 22), utc(2024, 4, 26, 21), 23),
        (ZoneInfo("America/Havana"), "day", utc(2024, 11, 3, 5, 30), utc(2024, 11, 3, 4), utc(2024, 11, 4, 5), 25),
        (ZoneInfo("Pacific/Apia"), "day", utc(2011, 12, 30, 9), utc(2011, 12, 29, 10), utc(2011, 12, 30, 10), 24),
        (ZoneInfo("Pacific/Apia"), "day", utc(2011, 12, 30, 10), utc(2011, 12, 30, 10), utc(2011, 12, 31, 10), 24),
    ],
)  # fmt: skip
def test_L4_a_budget_has_the_days_and_months_of_its_zone(
    zone: ZoneInfo, window: str, now: datetime, since: datetime, until: datetime, hours: int
) -> None:
    budget = Budget(100, window, zone)
    assert (budget.since(now), budget.until(now)) == (since, until)
    assert budget.since(now) <= now < budget.until(now)
    assert budget.allowance("tokens_per_day", 0, now).window_seconds == hours * 3600


@pytest.mark.parametrize("name", ["America/New_York", "Africa/Cairo", "America/Havana", "Pacific/Apia", "Asia/Kolkata"])
@pytest.mark.parametrize("window", ["day", "month"])
def test_L4_windows_follow_each_other_without_a_gap(name: str, window: str) -> None:
    budget, now, days = Budget(1, window, ZoneInfo(name)), utc(2011, 1, 15, 12), []
    while now < utc(2013, 1, 1):
        until = budget.until(now)
        assert budget.since(until) == until
        assert budget.first_day(until - timedelta(microseconds=1)) == budget.first_day(now) < budget.first_day(until)
        days.append(budget.first_day(now))
        now = until
    assert len(days) > 20


# ---------------------------------------------------------------- what a group is given


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30d", 30 * 86400), ("12h", 43200), ("30min", 1800), ("45s", 45), ("0", 0), (" 2 day ", 172800), ("0d", 0)],
)
def test_a_span_is_read_as_it_is_written(text: str, seconds: int) -> None:
    assert parse_span(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1.5h", "30 fortnights", "99999999999d", "4000000d", "1d 2h"])
def test_what_is_no_span_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="span"):
        parse_span(text)


@pytest.mark.parametrize("text", ["", "-1", "1.5", "many", "1e3", "+1"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="count"):
        parse_count(text)


def test_money_is_counted_in_billionths() -> None:
    assert [nanos(text) for text in ("0", "1", "0.15", 0.000_000_001)] == [0, 10**9, 150_000_000, 1]


@pytest.mark.parametrize("text", ["", "much", "-1", "nan", "inf", "1e99"])
def test_what_is_no_money_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        nanos(text)


def test_E8_the_defaults_of_each_group() -> None:
    user, guest, admin = (Policies.parse(DEFAULT_LIMITS[name]) for name in ("user", "guest", "admin"))
    assert user.lifetime == admin.lifetime == Lifetime(timedelta(days=30), timedelta(0))
    assert guest.lifetime == Lifetime(timedelta(minutes=30), timedelta(hours=24))
    assert user.sessions_created == guest.sessions_created == Rate(10, timedelta(minutes=1), 5)
    assert user.turns == Rate(30, timedelta(minutes=1), 10)
    assert (user.switches.count, admin.switches.count) == (30, 0)
    assert [one.concurrent_turns.size for one in (user, guest, admin)] == [3, 2, 10]
    assert [one.open_sessions.size for one in (user, guest, admin)] == [500, 50, 500]
    assert user.budgets == guest.budgets == admin.budgets == {}


def test_a_group_sets_some_limits_and_has_the_rest_of_a_user() -> None:
    team = Policies.parse({"turns": "1/h", "money_per_month": "2.5"})
    assert team.turns == Rate(1, timedelta(hours=1), 1)
    assert team.budgets == {"money_per_month": Budget(2_500_000_000, "month")}
    assert team.lifetime.idle == timedelta(days=30)


def test_a_rule_is_checked_before_it_is_stored() -> None:
    check_rule("turns", "1/h")
    for name, value in (("turns", "1"), ("idle", "soon"), ("concurrent_turns", "-1"), ("tokens_per_day", "1.5")):
        with pytest.raises(ValueError):
            check_rule(name, value)
    with pytest.raises(ValueError, match="there is no limit"):
        check_rule("speed", "1")


def test_the_instance_has_rules_of_its_own() -> None:
    check_rule("concurrent_turns", "3", "*")
    check_rule("time_zone", "Asia/Kolkata", "*")
    for name, value in (("turns", "1/h"), ("time_zone", "Europe/Berlim"), ("concurrent_turns", "-1")):
        with pytest.raises(ValueError):
            check_rule(name, value, "*")
    with pytest.raises(ValueError, match="there is no limit"):
        check_rule("time_zone", "UTC", "user")


@pytest.mark.parametrize(
    "name", ["", "Berlin", "europe/", "America", "../UTC", "/etc/localtime", "a\0b", "UTC ", "x" * 999]
)
def test_what_is_no_time_zone_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="time zone"):
        parse_zone(name)


def test_UTC_needs_no_database_of_zones() -> None:
    assert parse_zone("UTC") is UTC


# ---------------------------------------------------------------- how limits are told


def test_L5_money_is_told_in_money_and_never_more_than_there_is() -> None:
    told = Allowance("money_per_month", 435_999, 218_000, 217_999)
    assert told.units == (435, 218, 217)
    assert told.figures == (0.000_435, 0.000_218, 0.000_217)
    spent = Allowance("money_per_day", 2_000_000_000, 2_500_000_400, 0)
    assert (spent.figures, spent.words) == ((2.0, 2.5, 0.0), ("2.00", "2.50", "0.00"))
    assert Allowance("money_per_day", 1_500_000_000_000, 1, 1_499_999_999_999).words == (
        "1,500.00",
        "0.000001",
        "1,499.99",
    )
    assert Allowance("money_per_day", 10**9 * 10**9 - 1, 0, 0).units.size < 10**15
    assert Allowance("tokens_per_day", 20_000, 1_500, 18_500).words == ("20,000", "1,500", "18,500")


def test_L5_the_tightest_is_told_first() -> None:
    half, third = Allowance("turns", 4, 2, 2, NOON), Allowance("concurrent_turns", 3, 2, 1)
    longer = Allowance("tokens_per_day", 1000, 500, 500, NOON + timedelta(hours=12))
    assert tightest_first([half, longer, third]) == (third, longer, half)


def test_every_limit_has_a_name_for_people_and_a_unit() -> None:
    rates, counts = ("turns", "switches", "sessions_created"), ("concurrent_turns", "open_sessions")
    assert {*rates, *counts, *BUDGETS} == DEFAULT_LIMITS["user"].keys() - {"idle", "absolute"}
    assert set(KINDS) >= {*rates, *counts, *BUDGETS}
    assert all(re.fullmatch(r"[a-z-]+", kind.unit) for kind in KINDS.values())


def test_instants_are_exact_to_the_microsecond() -> None:
    at = datetime(2026, 5, 4, 12, 0, 0, 123_457, tzinfo=UTC)
    assert instant(microseconds(at)) == at
    assert microseconds(datetime(1970, 1, 1, tzinfo=UTC)) == 0

"""The list under the days of whoever reads it, and an end that is told before it comes."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from web.answer import zone_of
from web.templating import heading, soon, wait

NOW = datetime(2026, 3, 1, 22, 30, tzinfo=UTC)
TOKYO, HAWAII = timezone(timedelta(hours=9)), timezone(timedelta(hours=-10))


class Stopped(datetime):
    @classmethod
    def now(cls, tz=None):  # type: ignore[no-untyped-def]
        return NOW.astimezone(tz)


@pytest.mark.parametrize(
    ("at", "zone", "name"),
    [
        (NOW, UTC, "Today"),
        (NOW, TOKYO, "Today"),
        (NOW - timedelta(hours=8), TOKYO, "Yesterday"),
        (NOW - timedelta(hours=8), UTC, "Today"),
        (NOW - timedelta(hours=23), UTC, "Yesterday"),
        (NOW - timedelta(hours=11), HAWAII, "Today"),
        (NOW - timedelta(days=6), UTC, "Previous 7 days"),
        (NOW - timedelta(days=7), UTC, "February"),
        (datetime(2025, 12, 31, 23, tzinfo=UTC), UTC, "December 2025"),
        (datetime(2025, 12, 31, 23, tzinfo=UTC), TOKYO, "January"),
        (NOW + timedelta(hours=3), UTC, "Today"),
    ],
)
def test_days_are_those_of_the_reader(at: datetime, zone: timezone, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("web.templating.datetime", Stopped)
    assert heading(at, zone) == name


@pytest.mark.parametrize("cookie", ["", "x", "--5", "-", "99999", "1e3", "５", "-9999", "0x10", "60; path=/", "+60"])
def test_a_strange_time_zone_is_none(cookie: str) -> None:
    assert zone_of(cookie) == UTC


def test_the_time_zone_is_what_the_browser_says() -> None:
    assert zone_of("-540") == TOKYO
    assert zone_of("600") == HAWAII
    assert zone_of("0") == UTC
    assert zone_of("999") == timezone(timedelta(minutes=-999))


def test_an_end_is_told_three_days_before() -> None:
    now = datetime.now(UTC)
    assert [soon(now + timedelta(hours=hours)) for hours in (1, 71, 73, 1000)] == [True, True, False, False]
    assert not soon(None)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (1, "1 s"),
        (125, "2 min 5 s"),
        (3600, "1 h 0 min"),
        (86_400, "24 h 0 min"),
        (172_800, "2 days"),
        (2_656_380, "30 days"),
    ],
)
def test_a_wait_is_told_in_what_people_count_it_in(seconds: int, told: str) -> None:
    assert wait(seconds) == told

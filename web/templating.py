"""Jinja, and the few functions templates call: asset(), dom_id(), typed(), ago(), left(), new_key()."""

import hashlib
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_context
from jinja2.runtime import Context

from db.schema import number
from db.version import version
from services.policies import instant, tightest_first
from services.search import has_words
from web.markdown_rules.scripts import direction_of_plain

HERE = Path(__file__).parent
STATIC = HERE.parent / "static"
#: before its end a session says so
SOON = timedelta(days=3)


@cache
def environment() -> Environment:
    """The one Jinja environment; an unknown name is an error, and everything is escaped."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(asset=asset, dom_id=dom_id, now=lambda: datetime.now(UTC), new_key=lambda: uuid4().hex)
    made.globals.update(typed=typed, sent=sent, refused=None, changed=None, version=version, schema=number)
    for filter in (age, ago, by_day, day, day_of_cursor, left, soon, spent, tokens, wait, words):
        made.filters[filter.__name__] = filter
    made.tests["searchable"] = has_words
    made.filters["tightest"] = tightest_first
    made.filters["direction"] = direction_of_plain
    return made


def render(name: str, /, **context: Any) -> str:
    """A template as text."""
    return environment().get_template(name).render(**context)


@cache
def asset(path: str) -> str:
    """The URL of a static file, named by its content so that it may be cached for ever."""
    digest = hashlib.sha256((STATIC / path).read_bytes()).hexdigest()[:12]
    return f"/static/{path}?v={digest}"


@pass_context
def typed(context: Context, action: str, field: str, default: str = "") -> str:
    """What somebody typed into a field of a form that was refused, for the page that shows the form again."""
    refused = context.get("refused")
    return default if refused is None else refused.given(action, field, default)


@pass_context
def sent(context: Context, action: str, **fields: Any) -> dict[str, str]:
    """What somebody typed into a form that was refused, told apart from others to the same URL by `fields`; or {}."""
    refused = context.get("refused")
    return {} if refused is None else refused.sent(action, fields)


def dom_id(kind: str, id: UUID | str, part: str = "") -> str:
    """The id of an element: `session-<id>`, `turn-<id>-reply`."""
    return f"{kind}-{id}-{part}" if part else f"{kind}-{id}"


def ago(at: datetime) -> str:
    """How long ago, in a word or two."""
    return "just now" if (seconds := (datetime.now(UTC) - at).total_seconds()) < 45 else f"{_span(seconds)} ago"


def by_day(sessions: Iterable[Any], zone: tzinfo) -> list[tuple[str, list[Any]]]:
    """Sessions, newest activity first, under Today, Yesterday, the week and the months, as days are in a time zone."""
    return [(name, list(ones)) for name, ones in groupby(sessions, lambda one: heading(one.last_activity_at, zone))]


def heading(at: datetime, zone: tzinfo) -> str:
    """Today, Yesterday, Previous 7 days, or a month."""
    today, then = datetime.now(zone).date(), at.astimezone(zone).date()
    days = (today - then).days
    if days < 7:
        return "Today" if days < 1 else "Yesterday" if days < 2 else "Previous 7 days"
    return f"{then:%B}" if then.year == today.year else f"{then:%B %Y}"


def day_of_cursor(cursor: str, zone: tzinfo) -> str:
    """The day of the session behind which a page begins; empty for the first page, and for no day there is."""
    number = cursor.partition("-")[0]
    try:
        return heading(instant(int(number)), zone) if number.isdigit() else ""
    except OverflowError:
        return ""


def soon(at: datetime | None) -> bool:
    """Whether an end is so near that it is told without being asked for."""
    return at is not None and at - datetime.now(UTC) < SOON


def day(one: date | str) -> str:
    """A day for people: Wed 25 Nov."""
    return f"{date.fromisoformat(str(one)):%a %-d %b}"


def age(at: datetime) -> str:
    """How old, in a word or two; it does not count seconds."""
    return "under a minute" if (seconds := (datetime.now(UTC) - at).total_seconds()) < 60 else _span(seconds)


def left(at: datetime) -> str:
    """How long until then, in a word or two."""
    seconds = (at - datetime.now(UTC)).total_seconds()
    return _span(seconds) if seconds > 0 else "no time"


def _span(seconds: float) -> str:
    for size, name in ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= 1.5 * size or size == 1:
            count = max(1, round(seconds / size))
            return f"{count} {name}{'s' if count != 1 else ''}"
    raise AssertionError


def tokens(count: int) -> str:
    """A count of tokens for people: 950, 8k, 128k."""
    return str(count) if count < 10_000 else f"{count / 1000:,.0f}k"


def spent(seconds: float) -> str:
    """How long something took: 0.4 s, 12 s, 2 min 5 s."""
    if seconds < 9.95:
        return f"{max(seconds, 0.1):.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def wait(seconds: int) -> str:
    """How long to wait, as the countdown in page.js goes on with it: 42 s, 2 min 5 s, 13 h 5 min, 30 days."""
    minutes, rest = divmod(seconds, 60)
    if minutes >= 2 * 24 * 60:
        return f"{minutes // (24 * 60)} days"
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def words(name: str) -> str:
    """An identifier as words: `sessions_created` → sessions created."""
    return name.replace("_", " ")

"""Jinja, and the few functions templates call: asset(), dom_id(), ago(), left(), money(), new_key()."""

import hashlib
from collections.abc import Iterable
from datetime import UTC, date, datetime
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from services.policies import tightest_first

HERE = Path(__file__).parent
STATIC = HERE.parent / "static"


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
    made.filters.update(age=age, ago=ago, by_day=by_day, day=day, left=left, spent=spent, tightest=tightest_first)
    made.filters.update(tokens=tokens, words=words)
    return made


def render(name: str, **context: Any) -> str:
    """A template as text."""
    return environment().get_template(name).render(**context)


@cache
def asset(path: str) -> str:
    """The URL of a static file, named by its content so that it may be cached for ever."""
    digest = hashlib.sha256((STATIC / path).read_bytes()).hexdigest()[:12]
    return f"/static/{path}?v={digest}"


def dom_id(kind: str, id: UUID | str, part: str = "") -> str:
    """The id of an element: `session-<id>`, `turn-<id>-reply`."""
    return f"{kind}-{id}-{part}" if part else f"{kind}-{id}"


def ago(at: datetime) -> str:
    """How long ago, in a word or two."""
    return "just now" if (seconds := (datetime.now(UTC) - at).total_seconds()) < 45 else f"{_span(seconds)} ago"


def by_day(sessions: Iterable[Any]) -> list[tuple[str, list[Any]]]:
    """Sessions, newest activity first, under Today, Yesterday and so on; days are those of UTC."""
    today = datetime.now(UTC).date()

    def day(one: Any) -> str:
        days = (today - one.last_activity_at.date()).days
        spans = ((1, "Today"), (2, "Yesterday"), (7, "The last seven days"), (30, "The last thirty days"))
        return next((name for end, name in spans if days < end), "Earlier")

    return [(name, list(ones)) for name, ones in groupby(sessions, day)]


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


def words(name: str) -> str:
    """An identifier as words: `sessions_created` → sessions created."""
    return name.replace("_", " ")

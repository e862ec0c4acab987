"""Looking for what was said: the sessions that hold every word, newest match first, and where in them it stands.

A session is found once, by the newest of its turns (or its title) that holds all the words. What is looked through for
one page is bounded; where that was not enough, the page says from where to go on.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any
from uuid import UUID

from db.db_session import DbSession
from db.tables import Session
from db.words import Asked, composed, joined
from services.errors import InvalidRequest
from services.outcomes import Found

#: hits that are read at once at most, and how often for one page
HITS, LOOKS = 500, 20
#: sessions that one page comes to, to show them or to pass them over
SESSIONS = 1_000
#: above every number of a hit
END = 2**63 - 1
#: characters of a prompt, and of a reply, in which the place is looked for
TEXT_CHARACTERS = 100_000
#: turns that are read together; what one page reads in all, in characters; and of each text where that was not enough
READ_TURNS, PAGE_CHARACTERS, FEW_CHARACTERS = 10, 1_000_000, 2_000
#: characters shown before the first match, and in all
BEFORE, EXCERPT = 40, 180

#: whoever looks through long texts waits for whoever does already: the threads are for everybody
_READING = asyncio.Semaphore(1)

#: the hit behind which the next page begins, and once more: a turn, or the session whose title it is. Its number would
#: tell how much everybody says
Place = tuple[UUID, UUID]


def has_words(q: str) -> bool:
    """Whether anything in it can be looked for: punctuation alone is no word."""
    return bool(Asked(q))


async def look(
    q: str, db_session: DbSession, *, owner_id: UUID, limit: int, after: Place | None = None, **which: Any
) -> tuple[list[Session], dict[UUID, Found], Place | None]:
    """One owner's sessions that hold what is looked for, where it stands, and behind which hit to go on.

    Raises InvalidRequest where the hit to go on behind is no longer there.
    """
    asked = Asked(q)
    before = await db_session.find_hit(after[0], owner_id) if after is not None else END
    if before is None:
        raise InvalidRequest("This cursor is not one of ours, or no longer.", field="cursor")
    shown: list[tuple[Session, UUID | None]] = []
    last = await _look(asked, shown, db_session, owner_id, limit, before, which) if asked else None
    found = await _told(shown, asked, db_session)
    return [session for session, _ in shown], found, (last, last) if last is not None else None


async def _look(
    asked: Asked,
    shown: list[tuple[Session, UUID | None]],
    db_session: DbSession,
    owner_id: UUID,
    limit: int,
    before: int,
    which: dict[str, Any],
) -> UUID | None:
    """Fill `shown` with what is numbered below `before`; behind which hit to go on."""
    passed: set[UUID] = set()
    last, lowest, some = None, before, limit + 1
    for _ in range(LOOKS):
        # As many as are shown, if each is in another session; then more and more at once.
        some = min(some, HITS)
        hits = await db_session.list_hits(asked, owner_id, lowest, some)
        new = {id for _, id, _ in hits} - passed
        rows = await db_session.pick_sessions(list(new), owner_id=owner_id, **which) if new else {}
        for no, id, turn_id in hits:
            if len(passed) == SESSIONS:
                return last
            last, lowest = turn_id or id, no
            if id in passed:
                continue
            passed.add(id)
            # One of the pages before has shown what was found by a later hit.
            if id not in rows or (before != END and await db_session.has_later_hit(asked, id, before - 1)):
                continue
            if len(shown) == limit:
                session, place = shown[-1]
                return place or session.id
            shown.append((rows[id], turn_id))
        if len(hits) < some:
            return None
        some *= 2
    return last


async def _told(shown: Sequence[tuple[Session, UUID | None]], asked: Asked, db_session: DbSession) -> dict[UUID, Found]:
    """{session: the place that was found in it}."""
    found, left = dict[UUID, Found](), PAGE_CHARACTERS
    for start in range(0, len(shown), READ_TURNS):
        some = shown[start : start + READ_TURNS]
        turn_ids = [turn_id for _, turn_id in some if turn_id is not None]
        async with _READING:
            texts = await db_session.list_texts(turn_ids, TEXT_CHARACTERS if left > 0 else FEW_CHARACTERS)
            left -= sum(map(len, chain(*texts.values())))
            # Beside the loop: long texts take their time.
            found |= await asyncio.to_thread(_places, some, texts, asked)
    return found


def _places(
    shown: Sequence[tuple[Session, UUID | None]], texts: Mapping[UUID, tuple[str, str]], asked: Asked
) -> dict[UUID, Found]:
    """The same of some sessions, whose turns hold these texts."""
    found = {}
    for session, turn_id in shown:
        said = texts.get(turn_id, ()) if turn_id is not None else (session.title,)
        excerpts = [excerpt(text, asked) for text in said]
        text, marks = next((one for one in excerpts if one[1]), excerpts[0] if excerpts else ("", ()))
        found[session.id] = Found(turn_id, text, marks)
    return found


def excerpt(text: str, asked: Asked) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The part of a text around the first match, on one line, and from where to where the words stand in it."""
    text, first = composed(text), 0
    spans: list[tuple[int, int]] = []
    for start, end in asked.spans(text):
        if not spans:
            first = _beginning(text, start)
        if end > first + EXCERPT:
            break
        spans.append((start, end))
    part = re.sub(r"\s", " ", text[first : first + EXCERPT])
    before, behind = "…" if first else "", "…" if first + EXCERPT < len(text) else ""
    moved = len(before) - first
    return (
        f"{before}{part}{behind}",
        tuple((start + moved, end + moved) for start, end in joined(spans)),
    )


def _beginning(text: str, start: int) -> int:
    """Where an excerpt begins whose first match stands at `start`: with a word."""
    if start <= BEFORE:
        return 0
    space = re.compile(r"\s").search(text, start - BEFORE, start)
    return space.end() if space is not None else start

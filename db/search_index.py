"""The index of what was said: a row for each turn and each title given by hand, found by its words.

SQLite keeps the words in FTS5 and PostgreSQL in a GIN index. The mark of the owner is a word of every row, so one
owner's search never walks through what others said; the rows are numbered as they were said, or came in as copies, so
the newest come first without sorting. Triggers and foreign keys take away what is deleted, in its transaction.
"""

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from db.engine import Engine
from db.words import Asked, mark_of, words_of

#: a row of the index: session, turn (None for its title), owner, text
Text = tuple[UUID, UUID | None, UUID, str]
#: (number, session, turn) of something that was found
Hit = tuple[int, UUID, UUID | None]
#: more than this is cut into words beside the loop
LONG_CHARACTERS = 20_000


def text_of(prompt: str, reply: str | None) -> str:
    """What of a turn is looked through."""
    return f"{prompt}\n{reply or ''}"


async def put(engine: Engine, texts: Sequence[Text]) -> None:
    """Write rows, or the words of a turn anew under its number."""
    if sum(len(text) for *_, text in texts) > LONG_CHARACTERS:
        told = await asyncio.to_thread(_told, texts)
    else:
        told = _told(texts)
    postgres, values, rows = engine.engine_type == "postgres", list[Any](), []
    for (session_id, turn_id, owner_id, _), words in zip(texts, told, strict=True):
        first = len(values)
        values += [session_id, turn_id, owner_id, words]
        rows.append(
            f"(${first + 1}, ${first + 2}, ${first + 3}, array_to_tsvector(string_to_array(${first + 4}, ' ')))"
            if postgres
            else "(?, ?, ?, ?)"
        )
    await engine.run(
        f"INSERT INTO said (session_id, turn_id, owner_id, words) VALUES {', '.join(rows)} "  # noqa: S608
        "ON CONFLICT (turn_id) DO UPDATE SET words = excluded.words WHERE said.words <> excluded.words",
        values,
    )


async def renew_title(engine: Engine, session_id: UUID, owner_id: UUID, title: str) -> None:
    """Write the words of a title anew under its number, where they changed."""
    (words,) = _told([(session_id, None, owner_id, title)])
    told = ("array_to_tsvector(string_to_array($1, ' '))", "$2") if engine.engine_type == "postgres" else ("?1", "?2")
    await engine.run(
        f"UPDATE said SET words = {told[0]} WHERE session_id = {told[1]} AND turn_id IS NULL AND words <> {told[0]}",  # noqa: S608
        [words, session_id],
    )


def _told(texts: Sequence[Text]) -> list[str]:
    return [words_of(text, owner_id, session_id) for session_id, _, owner_id, text in texts]


async def give(engine: Engine, session_ids: Sequence[UUID], owner_id: UUID, new_owner_id: UUID) -> None:
    """Let what was said in these sessions be found by another owner, and no longer by this one."""
    if engine.engine_type == "postgres":
        words = "array_to_tsvector(array_replace(tsvector_to_array(words), $1, $2))"
        marks = "$3", ", ".join(f"${place}" for place in range(4, 4 + len(session_ids)))
    else:
        words, marks = "replace(words, ?, ?)", ("?", ", ".join("?" * len(session_ids)))
    await engine.run(
        f"UPDATE said SET words = {words}, owner_id = {marks[0]} WHERE session_id IN ({marks[1]})",  # noqa: S608
        [mark_of(owner_id), mark_of(new_owner_id), new_owner_id, *session_ids],
    )


async def find(engine: Engine, asked: Asked, owner_id: UUID, before: int, limit: int) -> list[Hit]:
    """The newest rows of one owner that hold every word, of those numbered below `before`."""
    if engine.engine_type == "postgres":
        rows = await engine.run(
            "SELECT no, session_id, turn_id FROM said WHERE owner_id = $1 AND words @@ $2::tsquery AND no < $3 "
            "ORDER BY no DESC LIMIT $4",
            [owner_id, asked.for_postgres(owner_id), before, limit],
        )
    else:
        rows = await engine.run(
            "SELECT said.no, said.session_id, said.turn_id FROM said_words JOIN said ON said.no = said_words.rowid "
            "WHERE said_words MATCH ? AND said_words.rowid < ? ORDER BY said_words.rowid DESC LIMIT ?",
            [asked.for_sqlite(owner_id), before, limit],
        )
    return [(row["no"], row["session_id"], row["turn_id"]) for row in rows]


async def holds_later(engine: Engine, asked: Asked, session_id: UUID, after: int) -> bool:
    """Whether a session holds every word in a row numbered above `after`, too."""
    if engine.engine_type == "postgres":
        told = "SELECT 1 AS one FROM said WHERE session_id = $1 AND words @@ $2::tsquery AND no > $3 LIMIT 1"
        return bool(await engine.run(told, [session_id, asked.for_postgres(session_id), after]))
    told = "SELECT 1 AS one FROM said_words WHERE said_words MATCH ? AND rowid > ? LIMIT 1"
    return bool(await engine.run(told, [asked.for_sqlite(session_id), after]))

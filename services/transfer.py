"""Export and import: sessions as a file that nothing is missing from, or as one to read.

The file is JSON and written piece by piece, however long a session is. What the journal says is not in it: it belongs
to the place where it was decided. Nor is what only holds there: end, lock, version. Its owner's name is, where an
operator has written the file, so that each session can be given back.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, cast
from uuid import UUID

import msgspec

from db.db_session import DbSession, Written
from db.tables import Turn
from services.actor import SYSTEM, Actor
from services.brought import Brought, BroughtTurn
from services.errors import InvalidRequest, LimitReached, NotFound, Refusal, SessionQuota
from services.markdown_file import heading, plain, quoted
from services.outcomes import LiveSession, Origin, State
from services.reads import require_owner
from services.session_service import SessionService
from services.text import normalized_lines

FORMAT = "turnkeeper-sessions/1"
#: turns that are read at once: long ones are held in memory for as long as a reader takes none of them
PAGE_TURNS = 20
PAGE_SESSIONS = 200
#: in one file, the latest ones
MOST_SESSIONS = 100_000
#: instants beyond these are no times of a conversation, and some databases know none
FIRST_YEAR, LAST_YEAR = 1970, 9000

#: which sessions go out; those that come one by one are looked at as they come
Chosen = Iterable[UUID] | AsyncIterable[UUID]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Instant = Annotated[datetime, msgspec.Meta(tz=True)]
Name = Annotated[str, msgspec.Meta(max_length=200)]


class TurnRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One turn in a file; behind the one it follows."""

    id: UUID
    parent_id: UUID | None
    prompt: str
    #: what was written so far where it still ran
    reply: str
    model: Name
    state: Literal["running", "done", "stopped", "failed", "interrupted"]
    error_code: Name | None
    error_detail: Annotated[str, msgspec.Meta(max_length=2000)] | None
    prompt_tokens: Count
    reply_tokens: Count
    estimated: bool
    cost_nanos: Annotated[int, msgspec.Meta(ge=0, le=2**62)]
    context_left_out: Count
    created_at: Instant
    first_text_at: Instant | None
    ended_at: Instant | None
    #: the turn it was a copy of already
    copied_from: UUID | None
    # What files did not hold from the beginning.
    #: what the model thought aloud before the reply
    reasoning: str = ""
    first_reply_at: Instant | None = None
    #: why that model, as a word and as a sentence
    model_source: Literal["", "session", "default", "replacement", "fallback", "asked"] = ""
    model_reason: Annotated[str, msgspec.Meta(max_length=2000)] = ""

    @classmethod
    def of(cls, turn: Turn, written: Written) -> "TurnRecord":
        """`written` is what a running turn has written so far."""
        facts = {name: getattr(turn, name) for name in cls.__struct_fields__}
        return cls(**facts | (written._asdict() if turn.reply is None else {}))


class SessionRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One session in a file."""

    id: UUID
    title: str
    opening: str
    instructions: str
    origin: Origin
    state: State
    last_model: Name | None
    created_at: Instant
    last_activity_at: Instant
    #: the last turn of the transcript shown
    head_id: UUID | None
    turns: list[TurnRecord]
    #: its account's name, where an operator has written the file; whoever imports it becomes the owner all the same
    owner: Name | msgspec.UnsetType = msgspec.UNSET

    @classmethod
    def of(cls, live: LiveSession, owner: str | msgspec.UnsetType = msgspec.UNSET) -> "SessionRecord":
        """The session without its turns."""
        row = live.row
        return cls(
            row.id,
            row.title,
            row.opening,
            row.instructions,
            cast(Origin, row.origin),
            live.state,
            row.last_model,
            row.created_at,
            row.last_activity_at,
            row.head_id,
            [],
            owner,
        )

    def brought(self) -> Brought:
        """What becomes of it here. Raises InvalidRequest."""
        places: dict[UUID, int] = {}
        turns: list[BroughtTurn] = []
        for turn in self.turns:
            if turn.id in places or (turn.parent_id is not None and turn.parent_id not in places):
                raise InvalidRequest("A turn of the file is there twice, or before the one it follows.", field="turns")
            places[turn.id] = len(turns)
            turns.append(_brought(turn, places[turn.parent_id] if turn.parent_id is not None else None))
        if self.head_id is not None and self.head_id not in places:
            raise InvalidRequest("The last turn of the file's transcript is not in it.", field="head_id")
        return Brought(
            turns=tuple(turns),
            head=places[self.head_id] if self.head_id is not None else None,
            title=self.title,
            opening=self.opening,
            instructions=normalized_lines(self.instructions),
            model=self.last_model,
        )


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole file."""

    format: Literal["turnkeeper-sessions/1"]
    exported_at: Instant
    sessions: list[SessionRecord]


def by_owner(document: Document) -> dict[str, Document]:
    """{owner: the part of a file that is theirs}, in its order; without a name where the file has none."""
    parts: dict[str, list[SessionRecord]] = {}
    for record in document.sessions:
        parts.setdefault(record.owner or "", []).append(record)
    return {name: msgspec.structs.replace(document, sessions=records) for name, records in parts.items()}


class Taken(msgspec.Struct, frozen=True):
    """How far an import is: so many sessions of so many, the latest of them, or why it goes no further."""

    done: int
    of: int
    session: LiveSession | None
    refusal: Refusal | None = None


class Transfer:
    """Sessions on their way out and in."""

    def __init__(self, sessions: SessionService) -> None:
        self._sessions = sessions

    # ------------------------------------------------------------ out: writes nothing

    async def require(self, session_id: UUID, db_session: DbSession, *, actor: Actor) -> LiveSession:
        """A session that the actor may take along: its own; of the system one that it has opened.

        Raises NotFound, Forbidden.
        """
        live = await self._sessions.get_session(session_id, db_session, actor=actor)
        if (actor.kind, actor.id) != (SYSTEM.kind, SYSTEM.id) or not await self._sessions.inspection.is_open(
            session_id, db_session, actor=actor
        ):
            require_owner(live, actor)
        return live

    async def choose(self, db_session: DbSession, *, actor: Actor, q: str = "", **wanted: Any) -> list[UUID]:
        """The sessions that a list would show of whom it is asked for, to its end; the latest first.

        What was deleted is in no file.
        """
        began, chosen = self._sessions.now(), dict[UUID, None]()

        async def look(since: datetime | None) -> None:
            after = None
            while len(chosen) < MOST_SESSIONS:
                page = await self._sessions.list_sessions(
                    db_session, actor=actor, limit=PAGE_SESSIONS, after=after, q=q, **wanted
                )
                chosen.update(dict.fromkeys(live.row.id for live in page.sessions))
                if (after := page.next) is None or (since is not None and not q and after[0] < since):
                    return

        await look(None)
        await look(began)  # what was used meanwhile has gone to the front, past this look
        return list(chosen)

    async def as_json(self, session_ids: Chosen, db_session: DbSession, *, actor: Actor) -> AsyncIterator[bytes]:
        """The file, piece by piece; each turn is a line. What is deleted meanwhile is left out."""
        empty = Document(FORMAT, self._sessions.now(), [])  # type: ignore[arg-type]
        yield msgspec.json.encode(empty).removesuffix(b"]}")
        first = True
        async for live in self._each(session_ids, db_session, actor):
            record = SessionRecord.of(live, live.owner.name if actor.kind == "system" else msgspec.UNSET)
            head, turns_of, tail = msgspec.json.encode(record).partition(b'"turns":[')
            yield (b"\n" if first else b",\n") + head + turns_of
            first, before = False, b"\n"
            async for turns in self._all_turns(live, db_session):
                for turn in turns:
                    yield before + msgspec.json.encode(turn)
                    before = b",\n"
            yield tail
        yield b"\n]}\n"

    async def as_markdown(self, session_ids: Chosen, db_session: DbSession, *, actor: Actor) -> AsyncIterator[bytes]:
        """The transcripts to read, without reasoning; branches that are not shown are left out, and said to be.

        Everything that somebody said is quoted, line by line, so that nothing in it can pass for what is around it.
        """
        first = True
        async for live in self._each(session_ids, db_session, actor):
            told = [] if first else ["\n---\n\n"]
            first = False
            told += [heading(1, plain(live.title or "New chat")), _about(live, named=actor.kind == "system")]
            if live.row.instructions:
                told += [heading(2, "Instructions"), quoted(live.row.instructions)]
            yield "".join(told).encode()
            shown = 0
            async for turns in self._transcript(live, db_session):
                shown += len(turns)
                for turn in turns:
                    yield _read(turn).encode()
            if branches := live.row.turn_count - shown:
                yield f"\nLeft out: {branches} on other branches.\n".encode()

    # ------------------------------------------------------------ in

    async def take(
        self, document: Document, db_session: DbSession, *, actor: Actor, key: str | None = None
    ) -> AsyncIterator[Taken]:
        """Make each session of a file anew, one transaction for each; a limit ends it and is told last.

        With a key, what was made under it before is not made again, so the same file under the same key goes on.
        Raises InvalidRequest before anything is made, and whatever refuses the first session.
        """
        brought = await asyncio.to_thread(_checked, document)
        done = 0
        for place, one in enumerate(brought):
            try:
                with suppress(NotFound):  # made under this key and deleted since
                    own = hashlib.sha256(f"{key}/{place}".encode("utf-8", "replace")).hexdigest() if key else None
                    live = await self._sessions.import_session(one, db_session, actor=actor, key=own)
                    done += 1
                    yield Taken(done, len(brought), live)
            except (LimitReached, SessionQuota) as refusal:
                if not done:
                    raise
                yield Taken(done, len(brought), None, refusal)
                return

    # ------------------------------------------------------------ parts

    async def _each(self, session_ids: Chosen, db_session: DbSession, actor: Actor) -> AsyncIterator[LiveSession]:
        async for session_id in _one_by_one(session_ids):
            with suppress(NotFound):
                yield await self.require(session_id, db_session, actor=actor)

    async def _all_turns(self, live: LiveSession, db_session: DbSession) -> AsyncIterator[list[TurnRecord]]:
        """Every turn of a session, oldest first, some at a time."""
        after: UUID | None = None
        while turns := await db_session.list_all_turns(live.row.id, after, PAGE_TURNS):
            after = turns[-1].id
            yield [await _record(turn, db_session) for turn in turns]

    async def _transcript(self, live: LiveSession, db_session: DbSession) -> AsyncIterator[list[TurnRecord]]:
        """The turns of the transcript shown, oldest first, some at a time."""
        ends: list[UUID] = []
        last: UUID | None = live.row.head_id
        while last is not None:
            ends.append(last)
            path = await db_session.list_path(last, PAGE_TURNS)
            last = path[0].parent_id if path else None
        for end in reversed(ends):
            path = await db_session.list_path(end, PAGE_TURNS)
            yield [await _record(turn, db_session) for turn in path]


async def _one_by_one(session_ids: Chosen) -> AsyncIterator[UUID]:
    if isinstance(session_ids, AsyncIterable):
        async for session_id in session_ids:
            yield session_id
    else:
        for session_id in session_ids:
            yield session_id


async def _record(turn: Turn, db_session: DbSession) -> TurnRecord:
    """A turn with its text; one that ends while it is looked at, with all of it."""
    if turn.reply is not None:
        return TurnRecord.of(turn, Written())
    written = await db_session.text_of(turn.id)
    return TurnRecord.of(await db_session.find_turn(turn.id) or turn, written)


def _checked(document: Document) -> list[Brought]:
    """What becomes of a file. Raises InvalidRequest."""
    brought = [record.brought() for record in document.sessions]
    for one in brought:
        one.check()
    return brought


def _brought(turn: TurnRecord, after: int | None) -> BroughtTurn:
    """A turn of a file as it becomes one here; one that ran has ended without us."""
    ran = turn.state == "running"
    return BroughtTurn(
        prompt=normalized_lines(turn.prompt),
        reply=turn.reply,
        reasoning=turn.reasoning,
        after=after,
        model=turn.model,
        model_source=turn.model_source,
        model_reason=turn.model_reason,
        state="interrupted" if turn.state == "running" else turn.state,
        error_code="interrupted" if ran else turn.error_code,
        error_detail="It was still being written when the session was exported." if ran else turn.error_detail,
        prompt_tokens=turn.prompt_tokens,
        reply_tokens=turn.reply_tokens,
        estimated=turn.estimated,
        cost_nanos=turn.cost_nanos,
        context_left_out=turn.context_left_out,
        created_at=_instant(turn.created_at),
        first_text_at=_instant(turn.first_text_at),
        first_reply_at=_instant(turn.first_reply_at),
        ended_at=_instant(turn.ended_at),
        copied_from=turn.copied_from or turn.id,
    )


def _instant(at: datetime | None) -> datetime | None:
    """A time in UTC that every database can hold. Raises InvalidRequest."""
    if at is not None and not FIRST_YEAR <= at.year <= LAST_YEAR:
        raise InvalidRequest(f"A time lies between the years {FIRST_YEAR} and {LAST_YEAR}.")
    return at.astimezone(UTC) if at is not None else None


def _about(live: LiveSession, *, named: bool) -> str:
    """What stands below the title; `named`: whose it is, too."""
    row, count = live.row, live.row.turn_count
    model = f" · model {plain(row.last_model)}" if row.last_model else ""
    owner = f"{plain(live.owner.name)} · " if named else ""
    return f"{owner}{count} turn{'s' if count != 1 else ''}{model} · begun {_time(row.created_at)} · session {row.id}\n"


def _read(turn: TurnRecord) -> str:
    state = f" · {turn.state}" if turn.state != "done" else ""
    fault = f"\n{plain(turn.error_detail)}\n" if turn.error_detail else ""
    said = heading(2, f"You · {_time(turn.created_at)}") + quoted(turn.prompt)
    return said + heading(2, f"{plain(turn.model) or 'Told by a script'}{state}") + quoted(turn.reply) + fault


def _time(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"

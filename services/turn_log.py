"""Follows a session live: what its rows say since a position, then what the hints bring, without gap or double.

A reader holds a `Position`; the event bus only wakes it. Text whose offset fits is passed on as it comes (it was
committed before it was published); at any gap, and when a heartbeat shows that something was missed, the rows are read
again.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from uuid import UUID

import msgspec

from db.db_session import DatabaseUnavailable, DbSession, Written
from db.tables import Turn
from services.accounts import Credentials
from services.actor import Actor
from services.errors import NotFound, Unauthenticated
from services.event_bus import EventBus, Hint
from services.outcomes import Glance, LiveSession
from services.readers import Readers, Seat, Still, everybody
from services.session_service import SessionService

#: an offset that no reply reaches
MOST = 2**31 - 1
#: how many turns a reader that was away long is shown again
CATCH_UP_TURNS = 50
#: pieces of a long reply that are read, and told, together
PIECES = 250
#: characters that are told at once: whoever never reads them makes the server hold no more
TOLD_CHARACTERS = 30_000
#: streams at once, where nobody says how many there may be
ROOM = 10_000


class Begun(msgspec.Struct, frozen=True):
    """A turn the reader has not seen yet."""

    turn: Turn


class Delta(msgspec.Struct, frozen=True):
    """Text of a turn, `offset` characters into its reply."""

    turn_id: UUID
    offset: int
    text: str
    #: where the reader stands after it
    place: str


class Thought(msgspec.Struct, frozen=True):
    """The same of its reasoning, which is told before the reply where both are there."""

    turn_id: UUID
    offset: int
    text: str
    place: str


class Ended(msgspec.Struct, frozen=True):
    """A turn with its whole text."""

    turn: Turn


class Changed(msgspec.Struct, frozen=True):
    """The session is another than before: model, lock, title, state."""

    session: LiveSession


class Beat(msgspec.Struct, frozen=True):
    """Nothing happened for a while; the session's version tells a reader that missed something."""

    version: int


class Gone(msgspec.Struct, frozen=True):
    """The session is no longer there for this reader."""


class Ousted(msgspec.Struct, frozen=True):
    """The reader has opened so many streams that this one gives way; it may come back later."""


Event = Begun | Delta | Thought | Ended | Changed | Beat | Gone | Ousted


class Position(msgspec.Struct):
    """Where a reader stands: everything of earlier turns, and of this one so many characters.

    Of its reply they are `offset`, of its reasoning `thought`: the two are counted apart.
    """

    turn_id: UUID | None = None
    offset: int = 0
    thought: int = 0
    #: the end of the turn has been shown too
    ended: bool = False
    #: the version the reader has seen; None for whatever it is now
    version: int | None = None

    def __str__(self) -> str:
        if self.turn_id is None:
            return ""
        thought = f":{self.thought}" if self.thought else ""
        return f"{self.turn_id}:{'end' if self.ended else f'{self.offset}{thought}'}"

    @classmethod
    def parse(cls, text: str) -> "Position":
        """Read `<turn>:<offset>`, perhaps with `:<thought>`, or `<turn>:end`; what is neither is the beginning."""
        turn, _, place = text.partition(":")
        try:
            if place == "end":
                return cls(UUID(turn), ended=True)
            offset, _, thought = place.partition(":")
            return cls(UUID(turn), _count(offset), _count(thought))
        except ValueError:
            return cls()

    @classmethod
    def after(cls, turns: Sequence[Turn], written: Written) -> "Position":
        """Behind a transcript that was shown, its running turn as far as it has written."""
        if not turns:
            return cls()
        if turns[-1].reply is not None:
            return cls(turns[-1].id, ended=True)
        return cls(turns[-1].id, len(written.reply), len(written.reasoning))


#: the beginning of everything
START = Position()


class TurnLog:
    """Readers of live sessions."""

    def __init__(
        self,
        sessions: SessionService,
        bus: EventBus,
        open_session: Callable[[], DbSession],
        drained: asyncio.Event,
        still: Still = everybody,
        room: int = ROOM,
    ) -> None:
        self._sessions = sessions
        self._bus = bus
        self._open_session = open_session
        #: set when the server stops and its turns have ended: streams end too
        self._drained = drained
        #: what is replayed is read one page after another, so that whoever asks for something else need not queue
        self._replaying = asyncio.Semaphore(1)
        self.readers = Readers(sessions, open_session, still, drained, room)

    def require_room(self) -> None:
        """Whether there is room for one more stream. Raises TooManyStreams."""
        self.readers.require_room()

    async def follow_turn(
        self,
        turn: Turn,
        actor: Actor,
        proof: Credentials | None = None,
        *,
        after: Position = START,
        gives_way: bool = True,
    ) -> AsyncGenerator[Event, None]:
        """One turn from a position to its end, which is told in any case, as long as the reader may.

        What answers the one who began it does not give way to the reader's other streams.
        """
        yield Begun(turn)
        position = Position(turn.id)
        if after.turn_id == turn.id:
            seen = (MOST, MOST) if after.ended else (after.offset, after.thought)
            position = Position(turn.id, *seen)
        reader = _Reader(
            self._sessions, self._open_session, turn.session_id, position, actor, self._replaying, only=turn.id
        )
        async with aclosing(self._follow(reader, actor, proof, gives_way)) as events:
            async for event in events:
                yield event
                if isinstance(event, Ended):
                    return

    async def await_end(self, turn: Turn, actor: Actor, proof: Credentials | None = None) -> None:
        """Wait until a turn has ended or the server stops. Raises Unauthenticated once the reader may not read it."""
        async with aclosing(self.follow_turn(turn, actor, proof, gives_way=False)) as events:
            async for event in events:
                if isinstance(event, Gone) and not await self.readers.may_still(actor, proof):
                    raise Unauthenticated()

    async def follow_session(
        self, session_id: UUID, position: Position, actor: Actor, proof: Credentials | None = None
    ) -> AsyncGenerator[Event, None]:
        """Everything live in a session from `position` on, as long as the reader may, until the server stops."""
        reader = _Reader(self._sessions, self._open_session, session_id, position, actor, self._replaying)
        async with aclosing(self._follow(reader, actor, proof)) as events:
            async for event in events:
                yield event

    async def _follow(
        self, reader: "_Reader", actor: Actor, proof: Credentials | None, gives_way: bool = True
    ) -> AsyncGenerator[Event, None]:
        with (
            self._bus.subscribe(reader.session_id) as subscription,
            self.readers.seated(reader.session_id, actor, proof, subscription, gives_way=gives_way) as seat,
        ):
            news = reader.begin()
            while True:
                try:
                    async for event in news:
                        if seat.gone or seat.ousted:
                            break
                        yield event
                        if isinstance(event, Gone):
                            return
                except DatabaseUnavailable:
                    seat.look_again()
                if seat.gone or seat.ousted:
                    yield Gone() if seat.gone else Ousted()
                    return
                # What was said before the server stopped is told.
                if self._drained.is_set() and not subscription.hints:
                    return
                await subscription.woken.wait()
                news = reader.read(subscription.take(), seat)


class _Reader:
    """One reader's way through a session."""

    def __init__(
        self,
        sessions: SessionService,
        open_session: Callable[[], DbSession],
        session_id: UUID,
        position: Position,
        actor: Actor,
        replaying: asyncio.Semaphore,
        *,
        only: UUID | None = None,
    ) -> None:
        self._sessions, self._open_session, self._replaying = sessions, open_session, replaying
        self.session_id, self._at, self._actor = session_id, position, actor
        #: the one turn to follow; None for the whole session
        self._only = only
        #: how the session stood when it was last read
        self._seen: Glance | None = None

    async def begin(self) -> AsyncIterator[Event]:
        """What was there before the first hint."""
        if self._only is None:
            glance = await self._glance()
            if glance is not None and self._at.version in (None, glance.version) and self._is_at_the_end(glance):
                self._seen, self._at.version = glance, glance.version
                return
        async for event in self._turns() if self._only is not None else self._all():
            yield event

    async def read(self, hints: list[Hint], seat: Seat) -> AsyncIterator[Event]:
        """What the hints say; where one does not join, what the rows say, once for all of them. Then the heartbeat."""
        seen = set()
        for hint in hints:
            if self._joins(hint):
                for news in self._news(hint.offset, hint.text, reasoning=hint.kind == "reasoning"):
                    yield news
                continue
            if hint.kind == "missed":
                continue
            session_too = self._only is None or hint.kind == "session"
            if session_too in seen:
                continue
            seen.add(session_too)
            async for event in self._all(told=hint.kind == "session") if session_too else self._turns():
                yield event
        if any(hint.kind == "missed" for hint in hints):
            seat.look()
        if seat.due:
            seat.due = False
            async for event in self._look(seat.glance):
                yield event
            if (known := seat.glance or self._seen) is not None:
                yield Beat(known.version)

    async def _glance(self) -> Glance | None:
        """How the session stands, for its owner alone."""
        (glance,) = await self._sessions.glances([(self.session_id, self._actor.id)], self._open_session())
        return glance

    async def _look(self, glance: Glance | None) -> AsyncIterator[Event]:
        """What has changed although no hint told it, if how the session stands shows that."""
        if glance is not None and not (glance == self._seen and self._is_at_the_end(glance)):
            async for event in self._all():
                yield event

    def _is_at_the_end(self, glance: Glance) -> bool:
        """Whether every turn has been shown to its end."""
        return glance.head_id == self._at.turn_id and (self._at.ended or glance.head_id is None)

    def _joins(self, hint: Hint) -> bool:
        seen = {"text": self._at.offset, "reasoning": self._at.thought}.get(hint.kind, -1)
        return hint.turn_id == self._at.turn_id and hint.offset <= seen

    def _news(self, start: int, text: str, *, reasoning: bool) -> Iterator[Delta | Thought]:
        """The part of a text that is new to this reader, as much at a time as is told at once."""
        seen = self._at.thought if reasoning else self._at.offset
        if self._at.ended or self._at.turn_id is None or start > seen:
            return
        for place in range(seen - start, len(text), TOLD_CHARACTERS):
            told = text[place : place + TOLD_CHARACTERS]
            if reasoning:
                self._at.thought += len(told)
            else:
                self._at.offset += len(told)
            kind = Thought if reasoning else Delta
            yield kind(self._at.turn_id, start + place, told, str(self._at))

    async def _all(self, *, told: bool = False) -> AsyncIterator[Event]:
        """What the rows say since the position: turns, and the session itself; `told` that it has changed."""
        try:
            session = await self._sessions.get_session(self.session_id, self._open_session(), actor=self._actor)
        except NotFound:
            yield Gone()
            return
        async for event in self._turns(session.row.head_id):
            yield event
        before, self._seen = self._seen, Glance.of(session)
        version, self._at.version = self._at.version, session.row.version
        missed = version is not None and version != session.row.version
        if missed or (before is not None and _changed(before, self._seen)) or (told and version is None):
            yield Changed(session)

    async def _turns(self, head_id: UUID | None = None) -> AsyncIterator[Event]:
        db_session = self._open_session()
        for turn_id in await self._unseen(head_id, db_session):
            # Each when it is told: a reader that takes nothing holds one of them and not all.
            if (turn := await db_session.find_turn(turn_id)) is None:
                continue
            if turn.id != self._at.turn_id:
                self._at = Position(turn.id, version=self._at.version)
                yield Begun(turn)
            for reasoning in (True, False):
                async for news in self._written(turn, db_session, reasoning=reasoning):
                    yield news
            if turn.reply is not None and not self._at.ended:
                self._at.ended = True
                yield Ended(turn)

    async def _written(self, turn: Turn, db_session: DbSession, *, reasoning: bool) -> AsyncIterator[Delta | Thought]:
        """What a turn has written of its reasoning, or of its reply, since the position."""
        if turn.reply is not None:
            for news in self._news(0, turn.reasoning if reasoning else turn.reply, reasoning=reasoning):
                yield news
        while turn.reply is None:
            seen = self._at.thought if reasoning else self._at.offset
            async with self._replaying:
                pieces = await db_session.list_pieces(turn.id, seen, PIECES, reasoning=reasoning)
            if pieces:
                for news in self._news(pieces[0][0], "".join(text for _, text in pieces), reasoning=reasoning):
                    yield news
            if len(pieces) < 2:
                break

    async def _unseen(self, head_id: UUID | None, db_session: DbSession) -> list[UUID]:
        """The turns from the position on, oldest first; all that fit where the position is not on the path."""
        if self._only is not None:
            return [self._only]
        if head_id is None or head_id == self._at.turn_id:
            return [] if head_id is None or self._at.ended else [head_id]
        path = await db_session.list_path_ids(head_id, CATCH_UP_TURNS)
        return path[path.index(self._at.turn_id) + self._at.ended :] if self._at.turn_id in path else path


def _count(text: str) -> int:
    """A number of characters. Raises ValueError."""
    return max(0, min(int(text or 0), MOST))


def _changed(before: Glance, now: Glance) -> bool:
    """Whether the session itself is another; turns are told by themselves."""
    return msgspec.structs.replace(before, head_id=now.head_id) != now

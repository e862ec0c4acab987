"""The open streams of this process: one clock for all of them, and an end to how many there are.

An idle stream waits to be woken and does nothing else. One task ticks for all: those whose turn it is are asked for
together whether they still may read, and how their sessions stand, in a statement or two.
"""

import asyncio
import contextvars
import logging
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar
from uuid import UUID

from db.db_session import DatabaseUnavailable, DbSession
from services.accounts import Credentials
from services.actor import Actor
from services.errors import TooManyStreams
from services.event_bus import Subscription
from services.outages import tell
from services.outcomes import Glance
from services.session_service import SessionService

log = logging.getLogger(__name__)

#: between two looks at whose turn it is
TICK_SECONDS = 0.25
#: a stream is told something at least this often
HEARTBEAT_SECONDS = 15.0
#: how often it is asked whether a stream's reader still may
ASK_SECONDS = 3.0
#: what one actor may hold open in one process; then the oldest gives way
STREAMS_PER_ACTOR = 256
#: readers that are asked for in one statement
TOGETHER = 250

#: which of these may still read, in their order
Still = Callable[[Sequence[tuple[Credentials, Actor]], DbSession], Awaitable[list[bool]]]
Item = TypeVar("Item")


async def everybody(readers: Sequence[tuple[Credentials, Actor]], db_session: DbSession) -> list[bool]:
    """Whoever reads may go on reading."""
    return [True] * len(readers)


class Seat:
    """One stream's place: who reads what, and what the clock has found out for it."""

    __slots__ = (
        "_subscription",
        "actor",
        "asked_at",
        "beaten_at",
        "due",
        "gives_way",
        "glance",
        "gone",
        "ousted",
        "proof",
        "session_id",
    )

    def __init__(
        self,
        session_id: UUID | None,
        actor: Actor,
        proof: Credentials | None,
        subscription: Subscription,
        now: float,
        *,
        gives_way: bool,
    ) -> None:
        #: None for who watches more than one
        self.session_id = session_id
        self.actor, self.gives_way = actor, gives_way
        #: what the reader proved to be the actor with; None for one who is not asked again
        self.proof = proof
        #: the reader has lost the right to it, or it is no longer there
        self.gone = False
        #: another stream of the actor's has taken the place
        self.ousted = False
        #: a heartbeat is due; how the session stands, unless the database would not tell
        self.due = False
        self.glance: Glance | None = None
        # Streams often come back all at once; from then on they take turns.
        self.asked_at = now - random.random() * ASK_SECONDS  # noqa: S311 - nothing to guess
        self.beaten_at = now - random.random() * HEARTBEAT_SECONDS / 2  # noqa: S311
        self._subscription = subscription

    def wake(self) -> None:
        """Let the stream look at its place."""
        self._subscription.woken.set()

    def beat(self, glance: Glance | None) -> None:
        self.due, self.glance = True, glance
        self.wake()

    def look(self) -> None:
        """Something may have been missed: a heartbeat comes with the next tick, and finds out."""
        self.beaten_at -= HEARTBEAT_SECONDS

    def look_again(self) -> None:
        """The rows could not be read: a heartbeat comes soon and finds what was missed."""
        self.beaten_at -= HEARTBEAT_SECONDS - ASK_SECONDS


class Readers:
    """Everybody who reads a stream in this process."""

    def __init__(
        self,
        sessions: SessionService,
        open_session: Callable[[], DbSession],
        still: Still,
        drained: asyncio.Event,
        room: int,
    ) -> None:
        self._sessions, self._open_session, self._still, self._drained = sessions, open_session, still, drained
        #: streams that the process can hold
        self._room = room
        #: in the order in which they came
        self._seats: dict[Seat, None] = {}
        #: how many of them each actor has
        self._counts: dict[str, int] = {}
        self._clock: asyncio.Task[None] | None = None
        self._cut_off = False

    @property
    def is_over(self) -> bool:
        """The server stops."""
        return self._drained.is_set()

    def __len__(self) -> int:
        return len(self._seats)

    def require_room(self) -> None:
        """Raises TooManyStreams."""
        if len(self._seats) >= self._room:
            raise TooManyStreams()

    async def may_still(self, actor: Actor, proof: Credentials | None) -> bool:
        """Whether a reader still is who it has proved to be."""
        return proof is None or (await self._still([(proof, actor)], self._open_session()))[0]

    @contextmanager
    def seated(
        self,
        session_id: UUID | None,
        actor: Actor,
        proof: Credentials | None,
        subscription: Subscription,
        *,
        gives_way: bool = True,
    ) -> Iterator[Seat]:
        """A place for one stream until the block ends.

        What answers the one who began a turn does not give way: there are no more of those than turns at once.
        """
        now = asyncio.get_running_loop().time()
        seat = Seat(session_id, actor, proof, subscription, now, gives_way=gives_way)
        if gives_way:
            self._make_way(actor)
            self._counts[actor.rate_key] = self._counts.get(actor.rate_key, 0) + 1
        self._seats[seat] = None
        if self._clock is None or self._clock.done():
            # A clean context: the caller's may hold a transaction.
            self._clock = asyncio.create_task(self._tick(), context=contextvars.Context())
        try:
            yield seat
        finally:
            del self._seats[seat]
            if gives_way and not seat.ousted:
                self._give_up(actor)
            if not self._seats and self._clock is not None:
                self._clock.cancel()
                self._clock = None

    def _make_way(self, actor: Actor) -> None:
        """Where an actor has all the streams it may have, the oldest ends: it is the likeliest to be dead.

        A refusal would hit the page that comes back, while what it left behind still holds its place.
        """
        if self._counts.get(actor.rate_key, 0) < STREAMS_PER_ACTOR:
            return
        oldest = next(
            seat for seat in self._seats if seat.gives_way and not seat.ousted and seat.actor.rate_key == actor.rate_key
        )
        oldest.ousted = True
        oldest.wake()
        self._give_up(actor)

    def _give_up(self, actor: Actor) -> None:
        self._counts[actor.rate_key] -= 1
        if not self._counts[actor.rate_key]:
            del self._counts[actor.rate_key]

    # ------------------------------------------------------------ the clock

    async def _tick(self) -> None:
        """Until the server stops, or the last stream ends."""
        while not self._drained.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await self._drained.wait()
            now = asyncio.get_running_loop().time()
            try:
                if await self._open_session().changed_elsewhere():
                    # A command beside this process sends no hints.
                    for seat in self._seats:
                        seat.look()
                if await self._ask(now) + await self._beat(now):
                    self._cut_off = False
            except DatabaseUnavailable as error:
                self._unanswered(now, error)
            except Exception as error:
                tell(log, "readers could not be looked after; trying again", error)
        for seat in self._seats:
            seat.wake()

    async def _ask(self, now: float) -> int:
        """End the streams of those who have lost the right to them. How many were asked for."""
        due = [seat for seat in self._seats if seat.proof is not None and now - seat.asked_at >= ASK_SECONDS]
        for some in _batches(due):
            asked = [(seat.proof, seat.actor) for seat in some if seat.proof is not None]
            for seat, may in zip(some, await self._still(asked, self._open_session()), strict=True):
                seat.asked_at = now
                if not may:
                    self._end(seat)
        return len(due)

    async def _beat(self, now: float) -> int:
        """Tell those who have heard nothing for a while how their sessions stand. How many those are."""
        due = [seat for seat in self._seats if seat.session_id and now - seat.beaten_at >= HEARTBEAT_SECONDS]
        for some in _batches(due):
            watched = [(seat.session_id, seat.actor.id) for seat in some if seat.session_id is not None]
            for seat, glance in zip(some, await self._sessions.glances(watched, self._open_session()), strict=True):
                seat.beaten_at = now
                if glance is None:
                    self._end(seat)
                else:
                    seat.beat(glance)
        return len(due)

    def _unanswered(self, now: float, error: Exception) -> None:
        """No one is sent away because the database is; nothing new can be shown meanwhile, and a reader is kept."""
        if not self._cut_off:
            tell(log, "readers are asked again later", error)
        self._cut_off = True
        for seat in self._seats:
            if now - seat.beaten_at >= HEARTBEAT_SECONDS:
                seat.beaten_at = now
                seat.look_again()
                seat.beat(None)

    def _end(self, seat: Seat) -> None:
        seat.gone = True
        seat.wake()


def _batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), TOGETHER):
        yield items[start : start + TOGETHER]

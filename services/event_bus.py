"""Live hints; the row in the database is the truth.

A subscriber that falls behind loses hints, never facts: it is woken, finds a gap, and reads the rows. Here are the
hints of one process; `shared_bus` carries them between several.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol
from uuid import UUID

import msgspec

#: hints a slow subscriber may lag behind before the oldest are dropped
BACKLOG = 256


class Hint(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """Something was committed in a session."""

    session_id: UUID
    #: session · turn_begun · text · reasoning · turn_ended · more (text too long to carry) · missed (hints were lost);
    #: of a provider, whose id is in `text`: up · down
    kind: str
    turn_id: UUID | None = None
    #: characters of the reply, or of the reasoning, before `text`; of a provider when it was found out, in microseconds
    #: since 1970
    offset: int = 0
    text: str = ""

    @property
    def is_repeated(self) -> bool:
        """Whether it is told again by itself where it may have been lost."""
        return self.kind in ("up", "down")


class Subscription:
    """The hints of one session since the subscription began."""

    def __init__(self) -> None:
        self.hints: deque[Hint] = deque(maxlen=BACKLOG)
        self.woken = asyncio.Event()

    def put(self, hint: Hint) -> None:
        self.hints.append(hint)
        self.woken.set()

    def take(self) -> list[Hint]:
        """All hints that have come, oldest first."""
        hints = list(self.hints)
        self.hints.clear()
        self.woken.clear()
        return hints


class EventBus(Protocol):
    """Carries hints from whoever committed to whoever watches the session."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    def publish(self, hint: Hint) -> None: ...

    def subscribe(self, session_id: UUID) -> AbstractContextManager[Subscription]: ...


class MemoryEventBus:
    """Hints inside this process."""

    def __init__(self) -> None:
        self._subscriptions: dict[UUID, set[Subscription]] = defaultdict(set)

    async def open(self) -> None:
        """Nothing has to be connected."""

    async def close(self) -> None:
        """Nothing is left to send."""

    def publish(self, hint: Hint) -> None:
        for subscription in self._subscriptions.get(hint.session_id, ()):
            subscription.put(hint)

    @contextmanager
    def subscribe(self, session_id: UUID) -> Iterator[Subscription]:
        """Watch one session; subscribe before reading its rows, so that nothing falls between."""
        subscription = Subscription()
        self._subscriptions[session_id].add(subscription)
        try:
            yield subscription
        finally:
            watching = self._subscriptions[session_id]
            watching.discard(subscription)
            if not watching:
                del self._subscriptions[session_id]

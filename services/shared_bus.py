"""Hints between processes, over one wire that may break at any time.

Hints of this process reach its own readers through memory. What others have to hear goes out in one message for all
that was committed since the last one. While the wire is broken, readers are told again and again to look at the rows
themselves. Once it carries again they are told once more, and so are those of the other processes if there was anything
that they have not heard.
"""

import asyncio
import contextvars
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from typing import Protocol
from uuid import UUID

import msgspec

from db.wire import PostgresWire
from services.event_bus import EventBus, Hint, MemoryEventBus
from services.redis_wire import RedisWire

log = logging.getLogger(__name__)

#: hints that may wait to be sent; when there are more, the others are told to look
OUTGOING = 5000
#: how long a message may take to be handed over; a connection may take twice as long to be made
SEND_SECONDS = 5.0
#: a silent wire is asked this often whether it still carries anything
PULSE_SECONDS = 5.0
#: between two attempts to connect: at least, and at most
PAUSE_SECONDS = (0.05, 5.0)
#: how often readers look for themselves while the wire is broken, if there are no more than LOOKS_A_SECOND of them
LOOK_SECONDS = 1.0
LOOKS_A_SECOND = 1000
#: how long the last hints of a process that stops may take
LAST_SECONDS = 1.0
EVERYBODY = UUID(int=0)
MISSED = Hint(EVERYBODY, "missed")

Send = Callable[[Sequence[str]], Awaitable[None]]
_HINTS = msgspec.json.Decoder(list[Hint])


class Wire(Protocol):
    """Carries short texts from each process to all of them, the sender included, while it is connected."""

    #: the longest text it carries
    most_bytes: int

    def connect(self, receive: Callable[[str], None], lost: Callable[[], None]) -> AbstractAsyncContextManager[Send]:
        """A connection on which everything is received from now on; `lost` is called when it breaks."""
        ...


class Broken(Exception):
    """The wire carries nothing any more."""


def wire_for(database_url: str, redis_url: str) -> Wire | None:
    """What carries hints between the processes on a database; None for SQLite, which serves one."""
    if database_url.startswith("sqlite:"):
        return None
    return RedisWire(redis_url) if redis_url else PostgresWire(database_url)


def bus_for(database_url: str, redis_url: str) -> EventBus:
    """What carries hints within a process, and to the others where there can be some."""
    wire = wire_for(database_url, redis_url)
    return MemoryEventBus() if wire is None else SharedEventBus(wire)


async def try_out(wire: Wire) -> None:
    """Send something and wait until it comes back. Raises whatever is wrong with the wire."""
    came = asyncio.Event()
    try:
        async with asyncio.timeout(SEND_SECONDS), wire.connect(lambda _: came.set(), lambda: None) as send:
            await send([f"{secrets.token_hex(8)}[]"])
            await came.wait()
    except TimeoutError as error:
        raise Broken("nothing comes through") from error


class SharedEventBus(MemoryEventBus):
    """Hints of all processes."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire = wire
        #: how every message of this process begins
        self._name = secrets.token_hex(8)
        self._outgoing: list[Hint] = []
        self._due = asyncio.Event()
        self._connected = asyncio.Event()
        #: the first attempt to connect is over
        self._tried = asyncio.Event()
        self._lost = self._closing = False
        #: the others have not heard everything
        self._withheld = False
        self._heard = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    def publish(self, hint: Hint) -> None:
        """Tell the readers here at once, and the other processes soon; never fails and never waits."""
        super().publish(hint)
        if not self._connected.is_set():
            self._withheld = self._withheld or not hint.is_repeated
            return
        if len(self._outgoing) >= OUTGOING:
            self._outgoing = [MISSED]
        self._outgoing.append(hint)
        self._due.set()

    # ------------------------------------------------------------ the process's life

    async def open(self) -> None:
        """Connect; where that fails, go on without and try again."""
        self._tasks = [
            asyncio.create_task(self._keep_connected(), context=contextvars.Context()),
            asyncio.create_task(self._look_while_broken(), context=contextvars.Context()),
        ]
        with suppress(TimeoutError):
            async with asyncio.timeout(SEND_SECONDS):
                await self._tried.wait()

    async def close(self) -> None:
        """Send what is left, if that can be done soon."""
        self._closing = True
        self._due.set()
        if self._connected.is_set():
            await asyncio.wait(self._tasks[:1], timeout=LAST_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ------------------------------------------------------------ the wire

    async def _keep_connected(self) -> None:
        clock, (first, most) = asyncio.get_running_loop().time, PAUSE_SECONDS
        pause, told = first, False
        while True:
            begun = clock()
            try:
                self._lost = False
                async with AsyncExitStack() as stack:
                    async with asyncio.timeout(2 * SEND_SECONDS):
                        send = await stack.enter_async_context(self._wire.connect(self._receive, self._break))
                    if told:
                        log.warning("live events from other processes come again")
                        told = False
                    await self._carry(send)
                    return
            except Exception as error:
                if not told:
                    why = (str(error) or "no answer").splitlines()[0]
                    log.warning("live events from other processes come late: %s", why)
                told = True
            finally:
                self._connected.clear()
                self._tried.set()
                self._withheld = self._withheld or bool(self._outgoing)
            # One that broke soon after it was made does not count as a fresh start.
            pause = first if clock() - begun > 2 * most else min(2 * pause, most)
            await asyncio.sleep(pause)

    async def _carry(self, send: Send) -> None:
        """Send what is due, to the last when this process stops. Raises Broken."""
        clock = asyncio.get_running_loop().time
        self._heard = clock()
        self._outgoing, self._withheld = [MISSED] if self._withheld else [], False
        self._connected.set()
        self._tried.set()
        self._wake_everybody()
        while True:
            hints, self._outgoing = self._outgoing, []
            self._due.clear()
            try:
                async with asyncio.timeout(SEND_SECONDS):
                    await send(list(self._messages(hints)))
            except BaseException:
                self._withheld = self._withheld or bool(hints)
                raise
            if not self._outgoing:
                if self._closing:
                    return
                with suppress(TimeoutError):
                    async with asyncio.timeout(PULSE_SECONDS):
                        await self._due.wait()
            if self._lost:
                raise Broken("the connection was lost")
            # Each message comes back here, so a wire that carries anything is never silent for long.
            if clock() - self._heard > PULSE_SECONDS + SEND_SECONDS:
                raise Broken("nothing comes through")

    def _break(self) -> None:
        self._lost = True
        self._due.set()

    def _messages(self, hints: Sequence[Hint]) -> Iterator[str]:
        """As few as the wire allows; without hints one that says nothing."""
        most, size = self._wire.most_bytes, 0
        parts: list[bytes] = []
        for hint in hints:
            part = msgspec.json.encode(hint)
            if len(part) + len(self._name) + 2 > most:
                part = msgspec.json.encode(Hint(hint.session_id, "more", hint.turn_id))
            if parts and size + len(part) + 1 > most:
                yield self._message(parts)
                parts, size = [], 0
            size = size + len(part) + 1 if parts else len(self._name) + 2 + len(part)
            parts.append(part)
        yield self._message(parts)

    def _message(self, parts: Sequence[bytes]) -> str:
        return f"{self._name}[{b','.join(parts).decode()}]"

    def _receive(self, message: str) -> None:
        """Pass on what another process says, as far as anybody here watches."""
        self._heard = asyncio.get_running_loop().time()
        if not self._subscriptions or message.startswith(self._name):
            return
        try:
            hints = _HINTS.decode(message[len(self._name) :])
        except msgspec.DecodeError:
            return  # no message of ours
        for hint in hints:
            if hint.session_id == EVERYBODY:
                self._wake_everybody()
            else:
                super().publish(hint)

    # ------------------------------------------------------------ without it

    async def _look_while_broken(self) -> None:
        while True:
            await asyncio.sleep(max(LOOK_SECONDS, self._watching / LOOKS_A_SECOND))
            if not self._connected.is_set():
                self._wake_everybody()

    @property
    def _watching(self) -> int:
        return sum(map(len, self._subscriptions.values()))

    def _wake_everybody(self) -> None:
        """Let every reader look at its rows."""
        for subscriptions in self._subscriptions.values():
            for subscription in subscriptions:
                subscription.put(MISSED)

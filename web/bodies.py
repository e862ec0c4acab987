"""Bodies while they arrive: how many fields they may have, and how much of all of them is held at once.

A body takes no place, lock or thread before it is whole. Where those that are arriving hold too much together, the one
that has been arriving longest gives way: a client that sends slowly keeps nobody else out.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from litestar.exceptions import HTTPException
from litestar.types import Message, Receive, Send

#: fields of a form, parts of a multipart form, and fields of a query
FIELDS = 1_000
#: values of a JSON body with all that is nested in it
VALUES = 10_000
#: a body of this size always has room; larger ones share the room of this process
SMALL_BYTES, SHARED_BYTES = 65_536, 128_000_000
TOO_MANY_FIELDS = f"A form has at most {FIELDS:,} fields, and a JSON body at most {VALUES:,} values."


class BodyRefused(HTTPException):
    """A body that is not read any further."""

    def __init__(self, status: int, code: str, told: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status_code=status, detail=told, headers=headers)
        self.code, self.told = code, told


def too_large(cap: int) -> BodyRefused:
    return BodyRefused(413, "too_large", f"A body has at most {cap:,} bytes here.")


def too_many_fields() -> BodyRefused:
    return BodyRefused(413, "too_many_fields", TOO_MANY_FIELDS)


def check_values(body: bytes) -> None:
    """Raise BodyRefused for JSON that holds too many values, without making any of them."""
    if _commas(body) <= VALUES:
        return
    # Those inside of strings do not count: what stands between every second pair of quotes is outside.
    body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if body.count(b'"') > 4 * VALUES or _commas(b"".join(body.split(b'"')[::2])) > VALUES:
        raise too_many_fields()


def _commas(text: bytes) -> int:
    return text.count(b",") + text.count(b"[") + text.count(b"{")


class Body:
    """One body that is arriving."""

    def __init__(self, bodies: "Bodies", cap: int, is_form: bool) -> None:
        self._bodies, self._cap, self._is_form = bodies, cap, is_form
        self._size = self._fields = 0
        #: what of it counts to the shared room
        self.held = 0
        self.given_up = asyncio.Event()

    def reading(self, receive: Receive) -> Receive:
        """What reads it, as far as it may be read."""

        async def read() -> Any:
            message: Any = await (self._next(receive) if self._size > SMALL_BYTES else receive())
            if message["type"] == "http.request":
                self._take(message.get("body", b""))
                if not message.get("more_body", False):
                    self._bodies.has_come(self)
            return message

        return read

    def answering(self, send: Send) -> Send:
        """What answers it: from there on its room is free."""

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._bodies.release(self)
            await send(message)

        return answer

    async def _next(self, receive: Callable[[], Awaitable[Any]]) -> Any:
        """The next message, or that this body gives way."""
        coming, giving_way = asyncio.ensure_future(receive()), asyncio.ensure_future(self.given_up.wait())
        try:
            await asyncio.wait((coming, giving_way), return_when=asyncio.FIRST_COMPLETED)
            if self.given_up.is_set():
                raise BodyRefused(503, "too_busy", "Too much is being sent at once.", {"Retry-After": "5"})
            return await coming
        finally:
            for one in (coming, giving_way):
                one.cancel()

    def _take(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._cap:
            raise too_large(self._cap)
        if self._is_form:
            self._fields += part.count(b"&")
            if self._fields >= FIELDS:
                raise too_many_fields()
        if self._size > SMALL_BYTES:
            self._bodies.hold(self, self._size)


class Bodies:
    """All bodies of this process that hold more than a little."""

    def __init__(self) -> None:
        self.held = 0
        #: those still arriving, the longest first
        self._arriving: dict[Body, None] = {}

    def hold(self, body: Body, size: int) -> None:
        """Note how much a body holds; make room where that is too much."""
        self._arriving.setdefault(body)
        self.held += size - body.held
        body.held = size
        while self.held > SHARED_BYTES and self._arriving:
            first = next(iter(self._arriving))
            self.release(first)
            first.given_up.set()

    def has_come(self, body: Body) -> None:
        """A body that is whole stays until it is answered."""
        self._arriving.pop(body, None)

    def release(self, body: Body) -> None:
        self._arriving.pop(body, None)
        self.held -= body.held
        body.held = 0

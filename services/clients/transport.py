"""HTTP/1.1 to one provider, made for long streams of small pieces: each costs a third of what it does through httpx2.

Bytes go from the socket through llhttp into a list, and whoever reads takes all that has come. Proxies, HTTP/2 and more
than one host are not its business: those are left to the transport httpx2 brings.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from weakref import WeakSet

import httptools
import httpx2

#: head and trailers of an answer, and whatever else is not body
MAX_HEAD_BYTES = 64 << 10
#: read ahead of a slow reader before the socket is left alone
MAX_AHEAD_BYTES = 256 << 10
#: connections kept for the next request
MAX_IDLE_CONNECTIONS = 64
#: less than the 5 s after which uvicorn, Node and llama.cpp close theirs, so that none dies under a request
IDLE_SECONDS = 2.0
#: a request and the end of its connection may cross on their way; what is lost later has been heard, and may cost
CROSSING_SECONDS = 1.0


class Crossed(httpx2.ReadError):
    """The connection ended with a request just sent on it, before a byte of an answer: most likely nobody heard it."""


class Connection(asyncio.Protocol):
    """One connection with one exchange at a time; the callbacks of asyncio come first, those of llhttp after."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._arrival: asyncio.Future[None] | None = None
        self._failure: httpx2.TransportError | None = None
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._pieces: list[bytes] = []
        self._ahead_bytes = self._head_bytes = 0
        #: the answer ends where the connection does
        self._until_closed = False
        self._is_complete = self._may_stay = False

    @property
    def is_reusable(self) -> bool:
        """Whether the exchange has ended in a way that lets another follow."""
        return self._is_complete and self._may_stay and not self._transport.is_closing()

    async def exchange(self, request: bytes) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Send a request; status and headers of its answer. Raises Crossed, httpx2.TransportError."""
        now = asyncio.get_running_loop().time
        self._parser = httptools.HttpResponseParser(self)
        self._status, self._headers, self._pieces = 0, [], []
        self._ahead_bytes = self._head_bytes = 0
        self._until_closed = self._is_complete = False
        self._transport.resume_reading()
        self._transport.write(request)
        sent_at = now()
        try:
            while not self._status:
                await self._something()
        except httpx2.ReadError as error:
            if self._head_bytes or now() - sent_at >= CROSSING_SECONDS:
                raise
            raise Crossed("connection lost under a request") from error
        return self._status, self._headers

    async def read(self) -> bytes:
        """All of the body that came since the last read; empty at its end. Raises httpx2.TransportError."""
        while not self._pieces:
            if self._is_complete:
                return b""
            await self._something()
        pieces, self._pieces, self._ahead_bytes = self._pieces, [], 0
        self._transport.resume_reading()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def abort(self) -> None:
        """Close now; what is unsent or unread is dropped."""
        self._fail(httpx2.CloseError("closed here"))

    async def _something(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._arrival = asyncio.get_running_loop().create_future()
        try:
            await self._arrival
        finally:
            self._arrival = None

    def _fail(self, failure: httpx2.TransportError) -> None:
        self._failure = self._failure or failure
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail(httpx2.RemoteProtocolError("not HTTP"))
        if self._head_bytes > MAX_HEAD_BYTES:
            self._fail(httpx2.RemoteProtocolError("endless head"))
        if self._ahead_bytes > MAX_AHEAD_BYTES:
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._until_closed and exc is None and self._failure is None:
            self._is_complete = True
        self._failure = self._failure or httpx2.ReadError("connection lost")
        self._wake()

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def on_message_begin(self) -> None:
        self._may_stay = False  # also after the end of the answer: nobody asked for another

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._status:  # later ones are trailers
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            self._headers.clear()
        elif not self._status:
            self._status = status
            self._until_closed = not {name for name, _ in self._headers} & {b"content-length", b"transfer-encoding"}

    def on_body(self, piece: bytes) -> None:
        if not self._is_complete:
            self._pieces.append(piece)
            self._ahead_bytes += len(piece)
            self._head_bytes = 0

    def on_message_complete(self) -> None:
        if self._status and not self._is_complete:
            self._is_complete = True
            self._may_stay = self._parser.should_keep_alive()


class Transport(httpx2.AsyncBaseTransport):
    """The connections to the one provider at `base_url`. Raises httpx2.UnsupportedProtocol, httpx2.InvalidURL."""

    def __init__(self, base_url: str, *, connect_seconds: float) -> None:
        url = httpx2.URL(base_url)
        if url.scheme not in ("http", "https") or not url.host:
            raise httpx2.UnsupportedProtocol("The address needs http:// or https:// and a host.")
        self._host = url.raw_host.decode("ascii")
        self._port = url.port or {"http": 80, "https": 443}[url.scheme]
        self._tls = httpx2.create_ssl_context() if url.scheme == "https" else None
        self._connect_seconds = connect_seconds
        self._open: WeakSet[Connection] = WeakSet()
        self._idle: dict[Connection, asyncio.TimerHandle] = {}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Returns when the head of the answer is here. Raises httpx2.TransportError."""
        fields = request.headers.raw
        head = b"%b %b HTTP/1.1\r\n" % (request.method.encode("ascii"), request.url.raw_path)
        head += b"".join(b"%b: %b\r\n" % field for field in fields)
        if len(head.splitlines()) != 1 + len(fields):
            raise httpx2.LocalProtocolError("a line end in a header")
        message = head + b"\r\n" + await request.aread()
        if (rested := self._rested()) is not None:
            # Some servers promise to keep a connection, and close it right after their answer.
            with suppress(Crossed):
                return await self._answer(rested, message)
        return await self._answer(await self._connected(), message)

    async def aclose(self) -> None:
        for connection in list(self._open):
            connection.abort()

    async def _answer(self, connection: Connection, request: bytes) -> httpx2.Response:
        try:
            status, headers = await connection.exchange(request)
        except BaseException:
            connection.abort()
            raise
        return httpx2.Response(status, headers=headers, stream=_Body(connection, self))

    def rest(self, connection: Connection) -> None:
        """Keep a connection for the next request where it can serve one; else close it."""
        if connection.is_reusable and len(self._idle) < MAX_IDLE_CONNECTIONS:
            self._idle[connection] = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._drop, connection)
        else:
            connection.abort()

    def _drop(self, connection: Connection) -> None:
        del self._idle[connection]
        connection.abort()

    def _rested(self) -> Connection | None:
        while self._idle:
            connection, timer = self._idle.popitem()
            timer.cancel()
            # Not after its time, even where a busy loop is late to drop it: the server may be closing it now.
            if connection.is_reusable and asyncio.get_running_loop().time() < timer.when():
                return connection
            connection.abort()
        return None

    async def _connected(self) -> Connection:
        try:
            async with asyncio.timeout(self._connect_seconds):
                _, connection = await asyncio.get_running_loop().create_connection(
                    Connection, self._host, self._port, ssl=self._tls, happy_eyeballs_delay=0.25
                )
        except TimeoutError as error:
            raise httpx2.ConnectTimeout("no connection in time") from error
        except (OSError, ValueError) as error:  # ValueError: a host name that is none
            raise httpx2.ConnectError("no connection") from error
        self._open.add(connection)
        return connection


class _Body(httpx2.AsyncByteStream):
    """The body of one answer; closing it gives its connection back."""

    def __init__(self, connection: Connection, transport: Transport) -> None:
        self._connection: Connection | None = connection
        self._transport = transport

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self._connection is not None and (piece := await self._connection.read()):
            yield piece

    async def aclose(self) -> None:
        if self._connection is not None:
            self._transport.rest(self._connection)
            self._connection = None

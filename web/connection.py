"""One HTTP connection as uvicorn keeps it, with an end to its patience and to the memory it takes.

Who connects and says nothing would hold an open file for ever; a request that does not arrive whole and a reader that
does not take what is sent would hold their handler too, and a server that is told to stop would wait for them. A head
that does not end would fill the memory before anybody knows who asks.
"""

import asyncio
import logging
from contextvars import Context
from uuid import uuid4

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from services.counts import Counts
from web.descriptors import MOST
from web.guard import refusal
from web.logs import REQUEST_ID, log_access
from web.occasionally import Occasionally

log = logging.getLogger(__name__)

#: how long somebody may be connected before a request begins; between two requests uvicorn waits less
SILENT_SECONDS = 10.0
#: how long a request may take from its first byte to its last
REQUEST_SECONDS = 30.0
#: how long a reader may leave a full buffer untouched
READER_SECONDS = 30.0
#: the same once the server stops
LAST_SECONDS = 2.0
#: how long a client that was refused may go on sending, so that it gets to read why; and how much
LINGER_SECONDS, LINGER_BYTES = 2.0, 4_000_000
#: refused clients that are listened to at once; each holds an open file of those that are kept
MOST_LINGERING = 16

#: the URL with its query
LINE_BYTES = 8_192
#: the request line and all headers, or the trailers of a body
HEAD_BYTES = 65_536
HEADERS = 100
#: requests that wait on one connection until the one before them is answered
PIPELINED = 16
#: bytes that the parser is given at a time, so that it is stopped soon behind a limit
SLICE_BYTES = 1_024
#: chunks that a body may have, and one more for each so many bytes of it: each chunk is handled by itself
CHUNKS, CHUNK_BYTES = 1_000, 64
#: a head of this size always has room; what goes beyond it shares the room for all large heads of this process
SMALL_HEAD_BYTES, LARGE_HEADS_BYTES = 8_192, 32_000_000

#: {code: its status and what it tells}
TOLD = {
    "invalid_request": (400, "The request is malformed."),
    "too_many_chunks": (
        413,
        f"A body has at most {CHUNKS:,} chunks here, and one more for each {CHUNK_BYTES} bytes. Send larger ones.",
    ),
    "uri_too_long": (414, f"A URL has at most {LINE_BYTES:,} bytes here."),
    "headers_too_large": (431, f"The headers of a request have at most {HEAD_BYTES:,} bytes and {HEADERS} fields."),
    "too_busy": (503, "Too much is being sent at once. Try again in a moment."),
    "no_room": (503, "As many clients are connected as there is room for. Try again in a moment."),
}
RETRY_SECONDS = 5
MALFORMED = Occasionally(log, "a malformed request was refused")
FULL = Occasionally(log, "a connection was refused: there are no open files left for it")


class Connection(HttpToolsProtocol):
    """Gives up on whoever stands still; lets nobody in whom there is no room for, or once the server stops."""

    #: bytes of large heads that are arriving on all connections, beyond the small part of each
    large_heads = 0
    #: refused clients that are still listened to
    lingering = 0

    _arriving: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None
    #: what was asked, one behind the other, and is not answered yet
    _asked: tuple[RequestResponseCycle, ...] = ()
    #: bytes that were read and have become neither a request nor part of a body yet
    _unread = 0
    #: of the body that arrives
    _chunks = _body_bytes = 0
    #: whether a request has begun whose head is not complete
    _in_head = False
    #: why nothing more is read from here
    _refused = ""
    #: what may still be sent by a client that was refused; None before
    _ignored: int | None = None

    @staticmethod
    def stopping() -> bool:
        """Whether the server stops; whoever serves says so."""
        return False

    @staticmethod
    def room() -> int:
        """How many may be connected at once; whoever serves says so."""
        return MOST

    @staticmethod
    def counts() -> Counts:
        """Where refusals are counted; whoever serves says so."""
        return Counts()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.stopping():
            # Taken in at the last moment, it would go on asking for as long as the server waits for the others.
            transport.close()
        elif len(self.connections) > self.room():
            # It would take the file that the database or a provider needs.
            FULL.tell()
            self._refuse("no_room")
            return
        self._wait_for_it(SILENT_SECONDS)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._ignore(len(data))
            return
        self._unset_keepalive_if_required()
        self._feed(data)
        # Empty lines before a request end uvicorn's patience with the connection, and begin nothing.
        if self._arriving is None and not self._refused and self._is_idle:
            self._wait_for_it(SILENT_SECONDS)

    def _feed(self, data: bytes) -> None:
        """Parse what has come, a little at a time, and no further than a limit allows."""
        view, place = memoryview(data), 0
        while place < len(data):
            part = view[place : place + SLICE_BYTES * (16 if self._in_body else 1)]
            place += len(part)
            self._charge(self._unread + len(part))
            try:
                self.parser.feed_data(part)
            except httptools.HttpParserUpgrade:
                # An upgrade may be offered and need not be taken (RFC 9110 §7.8).
                return
            except httptools.HttpParserError:
                MALFORMED.tell()
                self._refused = self._refused or "invalid_request"
            if self._unread > HEAD_BYTES:
                self._refused = self._refused or "headers_too_large"
            elif Connection.large_heads > LARGE_HEADS_BYTES and self._unread > SMALL_HEAD_BYTES:
                self._refused = self._refused or "too_busy"
            if self._refused:
                self._refuse(self._refused)
                self._ignore(len(data) - place)
                return

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._chunks = self._body_bytes = 0
        self._wait_for_it(REQUEST_SECONDS)

    def on_url(self, url: bytes) -> None:
        if len(self.url) + len(url) > LINE_BYTES:
            self._refused = self._refused or "uri_too_long"
        if not self._refused:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        # What follows a body would come to stand among the headers that were judged before it: nobody here asks for it.
        if self._refused or not self._in_head:
            return
        if len(self.headers) >= HEADERS:
            self._refused = "headers_too_large"
            return
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        if not self._refused and len(self.pipeline) >= PIPELINED:
            self._refused = "too_busy"
        if self._refused:
            return
        super().on_headers_complete()
        self._charge(0)
        asked = (*self._asked, self.cycle)
        self._asked = tuple(cycle for cycle in asked if cycle is not None and not cycle.response_complete)

    def on_chunk_header(self) -> None:
        self._chunks += 1
        if self._chunks > CHUNKS + self._body_bytes // CHUNK_BYTES:
            self._refused = self._refused or "too_many_chunks"

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            self._charge(0)
            self._body_bytes += len(body)
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._refused:
            return
        self._charge(0)
        self._forget_arriving()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._refused and self._is_idle and self._ignored is None and not self.transport.is_closing():
            self._refuse(self._refused)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(READER_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._forget_stuck()
        super().resume_writing()

    def shutdown(self) -> None:
        """The server stops: what has not been asked whole is not waited for, nor long who does not read the answer."""
        super().shutdown()
        if self._arriving is not None:
            self.transport.abort()
        elif self._stuck is not None:
            self._forget_stuck()
            self._stuck = self.loop.call_later(LAST_SECONDS, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_arriving()
        self._forget_stuck()
        self._charge(0)
        if self._ignored is not None:
            self._ignored = None
            Connection.lingering -= 1
        super().connection_lost(exc)
        # uvicorn tells it to the last of them alone, and the others would go on for nobody.
        for cycle in self._asked:
            cycle.disconnected = not cycle.response_complete
            cycle.message_event.set()

    @property
    def _is_idle(self) -> bool:
        """Whether everything that was asked is answered."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def _in_body(self) -> bool:
        return self.cycle is not None and self.cycle.more_body and not self._in_head

    def _charge(self, unread: int) -> None:
        """Note how much is held that has become nothing yet."""
        before, now = (max(0, held - SMALL_HEAD_BYTES) for held in (self._unread, unread))
        Connection.large_heads += now - before
        self._unread = unread

    def _refuse(self, code: str) -> None:
        """Read nothing more; answer why, once what was asked before is answered, and close."""
        self._refused = code
        if not self._is_idle and not self._gives_up_the_body():
            self._forget_arriving()
            return
        self.connections.discard(self)
        status, detail = TOLD[code]
        request_id = uuid4().hex[:16]
        counts = self.counts()
        counts.refusals[code] += 1
        counts.answers[status] += 1
        Context().run(self._log_access, status, request_id)
        headers, body = refusal(status, code, detail, request_id)
        headers = [*self.server_state.default_headers, *headers, (b"content-length", str(len(body)).encode())]
        if status == 503:
            headers.append((b"retry-after", str(RETRY_SECONDS).encode()))
        lines = [b"%s: %s\r\n" % header for header in (*headers, (b"connection", b"close"))]
        self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", body]))
        self._unset_keepalive_if_required()
        self._charge(0)
        self._ignored = LINGER_BYTES
        Connection.lingering += 1
        # Closed with bytes unread, the connection would be reset, and the answer lost on its way.
        if Connection.lingering <= MOST_LINGERING and self.transport.can_write_eof():
            self.transport.write_eof()
            self._wait_for_it(LINGER_SECONDS)
        else:
            self.transport.close()

    def _log_access(self, status: int, request_id: str) -> None:
        REQUEST_ID.set(request_id)
        log_access("-", None, status, 0.0)

    def _gives_up_the_body(self) -> bool:
        """Whether the request that is being handled ends here, since its body cannot be read; its answer may not."""
        if not self.cycle.more_body or self.pipeline:
            return False
        if self.cycle.response_started:
            self.transport.abort()
            return False
        self.cycle.disconnected = True
        self.cycle.message_event.set()
        return True

    def _ignore(self, size: int) -> None:
        """Read on without a use for it, so that the answer arrives; not for long."""
        if self._ignored is not None:
            self._ignored -= size
            if self._ignored < 0:
                self.transport.abort()

    def _wait_for_it(self, seconds: float) -> None:
        """For a request, which may take so long from now on."""
        self._forget_arriving()
        self._arriving = self.loop.call_later(seconds, self.transport.abort)

    def _forget_arriving(self) -> None:
        if self._arriving is not None:
            self._arriving.cancel()
            self._arriving = None

    def _forget_stuck(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

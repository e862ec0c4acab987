"""One HTTP connection as uvicorn keeps it, with an end to its patience.

Who connects and says nothing would hold an open file for ever; a request that does not arrive whole and a reader that
does not take what is sent would hold their handler too, and a server that is told to stop would wait for them.
"""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from web.descriptors import MOST

#: how long somebody may be connected before a request begins; between two requests uvicorn waits less
SILENT_SECONDS = 10.0
#: how long a request may take from its first byte to its last
REQUEST_SECONDS = 30.0
#: how long a reader may leave a full buffer untouched
READER_SECONDS = 30.0
#: the same once the server stops
LAST_SECONDS = 2.0


class Connection(HttpToolsProtocol):
    """Gives up on whoever stands still; lets nobody in whom there is no room for, or once the server stops."""

    _arriving: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None
    #: what was asked, one behind the other, and is not answered yet
    _asked: tuple[RequestResponseCycle, ...] = ()

    @staticmethod
    def stopping() -> bool:
        """Whether the server stops; whoever serves says so."""
        return False

    @staticmethod
    def room() -> int:
        """How many may be connected at once; whoever serves says so."""
        return MOST

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Taken in at the last moment, it would go on asking for as long as the server waits for the others.
        # One too many would take the file that the database or a provider needs.
        if self.stopping() or len(self.connections) > self.room():
            transport.close()
        self._wait_for_it(SILENT_SECONDS)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # Empty lines before a request end uvicorn's patience with the connection, and begin nothing.
        if self._arriving is None and (self.cycle is None or self.cycle.response_complete):
            self._wait_for_it(SILENT_SECONDS)

    def _unsupported_upgrade_warning(self) -> None:
        """An upgrade may be offered and need not be taken (RFC 9110 §7.8): no line of the log for each."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._wait_for_it(REQUEST_SECONDS)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        asked = (*self._asked, self.cycle)
        self._asked = tuple(cycle for cycle in asked if cycle is not None and not cycle.response_complete)

    def on_message_complete(self) -> None:
        self._forget_arriving()
        super().on_message_complete()

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
        super().connection_lost(exc)
        # uvicorn tells it to the last of them alone, and the others would go on for nobody.
        for cycle in self._asked:
            cycle.disconnected = not cycle.response_complete
            cycle.message_event.set()

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

"""Serving: one process, or several workers on one socket under a parent that keeps them running."""

import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from types import FrameType
from uuid import UUID, uuid4

from services.counts import Counts
from web.settings import Settings
from web.welcome import Models

log = logging.getLogger(__name__)

#: a worker that lives as long has started well, and its successor need not wait
WELL_SECONDS = 10.0
#: how long a successor waits after a worker that died young: at first, and at most
PAUSE_SECONDS = (0.5, 10.0)
#: how long workers may take to stop before they are killed
STOP_SECONDS = 15.0
#: connections that are let in together; four times as many may be on their way in and out again, each with a file,
#: and there must be room for them beside `room_for_connections`
AT_ONCE = 8
#: how many may wait to be let in
QUEUE = 2048

#: not forked: what the parent has opened and imported stays its own
_processes = multiprocessing.get_context("spawn")


class NoneStarted(Exception):
    """The first workers ended before any of them was ready; they have said why."""


def serve(
    settings: Settings,
    models: Models,
    listener: socket.socket,
    ready: Callable[[], None],
    *,
    worker: UUID | None = None,
    dead: Sequence[UUID] = (),
) -> None:
    """Serve in this process until a signal comes."""
    import uvicorn

    from web.app import create_app
    from web.connection import Connection
    from web.descriptors import raise_open_files, room_for_connections

    class UntilItStops(Connection):
        @staticmethod
        def stopping() -> bool:
            return server.should_exit

        @staticmethod
        def room() -> int:
            return room

        @staticmethod
        def counts() -> Counts:
            counts: Counts = app.state.counts
            return counts

    class Listening(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            # As many may wait as before: how many are let in at a time is another thing than the length of the queue.
            listener.listen(QUEUE)

    raise_open_files()
    room = room_for_connections()
    app = create_app(settings, models, ready, worker=worker, dead=dead)
    server = Listening(
        uvicorn.Config(
            app,
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=settings.trusted_proxies or None,
            server_header=False,
            access_log=False,
            log_level="warning",
            http=UntilItStops,
            ws="none",
            backlog=AT_ONCE,
            timeout_graceful_shutdown=10,
        )
    )
    # uvicorn hands a signal on once it has shut down; what was asked for is done then, and the exit code is 0.
    signal.signal(signal.SIGTERM, lambda *_: None if server.started else sys.exit())
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listener])


class Workers:
    """Several processes that serve, and their successors."""

    def __init__(
        self, number: int, settings: Settings, models: Models, listener: socket.socket, ready: Callable[[], None]
    ) -> None:
        self._places = [_Place(settings, models, listener) for _ in range(number)]
        #: told once, when the first worker serves
        self._ready: Callable[[], None] | None = ready
        self._stopping = False

    def serve(self) -> None:
        """Serve until a signal comes. Raises NoneStarted."""
        with self._signals() as signalled:
            try:
                while not self._stopping:
                    for place in self._places:
                        place.fill()
                    wait([signalled, *(one for place in self._places for one in place.news)], self._pause())
                    for place in self._places:
                        self._look_at(place)
            finally:
                self._stop()

    def _look_at(self, place: "_Place") -> None:
        if place.has_begun() and self._ready is not None:
            self._ready()
            self._ready = None
        if place.has_ended() and self._ready is not None and not self._stopping:
            raise NoneStarted

    def _pause(self) -> float | None:
        """How long until the next successor may start; None where nobody waits for that."""
        waiting = [place.again_at - time.monotonic() for place in self._places if place.process is None]
        return max(0.0, min(waiting)) if waiting else None

    def _stop(self) -> None:
        """Let the workers end their replies and streams; kill who does not come to an end."""
        running = [place.process for place in self._places if place.process is not None]
        for process in running:
            process.terminate()
        give_up = time.monotonic() + STOP_SECONDS
        for process in running:
            process.join(max(0.0, give_up - time.monotonic()))
            if process.exitcode is None:
                log.warning("worker %s does not stop and is killed", process.pid)
                process.kill()
                process.join()

    @contextmanager
    def _signals(self) -> Iterator[socket.socket]:
        """What becomes readable when a signal has come that ends the serving."""

        def stop(number: int, frame: FrameType | None) -> None:
            self._stopping = True

        heard, told = socket.socketpair()
        with heard, told:
            told.setblocking(False)
            signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
            for name in (signal.SIGTERM, signal.SIGINT):
                signal.signal(name, stop)
            yield heard
            signal.set_wakeup_fd(-1)


class _Place:
    """Where one worker is, and its successor once it has ended."""

    def __init__(self, settings: Settings, models: Models, listener: socket.socket) -> None:
        self._work = (settings, models, listener)
        self.process: multiprocessing.process.BaseProcess | None = None
        #: on which the worker says that it serves; None once it has
        self._word: Connection | None = None
        self._begun_at = 0.0
        #: when the next one may start
        self.again_at = 0.0
        self._died_young = 0
        #: under which name it holds turns, and those before it whose turns nobody has freed yet
        self._worker = uuid4()
        self._dead: list[UUID] = []

    def fill(self) -> None:
        """Start a worker where there is none, once its time has come."""
        if self.process is not None or time.monotonic() < self.again_at:
            return
        self._word, word = _processes.Pipe(duplex=False)
        self._worker = uuid4()
        told = (*self._work, word, self._worker, tuple(self._dead))
        self.process = _processes.Process(target=_work, args=told, daemon=True)
        self.process.start()
        word.close()
        self._begun_at = time.monotonic()

    @property
    def news(self) -> list[int | Connection]:
        """What becomes readable when something has happened to the worker."""
        return [
            *([self.process.sentinel] if self.process is not None else []),
            *([self._word] if self._word is not None else []),
        ]

    def has_begun(self) -> bool:
        """Whether the worker says just now that it serves."""
        if self._word is None or not self._word.poll():
            return False
        begun = False
        with suppress(EOFError):
            begun = self._word.recv_bytes() == b"ready"
        self._word.close()
        self._word = None
        if begun:
            self._dead.clear()
        return begun

    def has_ended(self) -> bool:
        """Whether the worker has ended just now; then its place is free."""
        if self.process is None or self.process.exitcode is None:
            return False
        first, most = PAUSE_SECONDS
        lived = time.monotonic() - self._begun_at
        self._died_young = self._died_young + 1 if lived < WELL_SECONDS else 0
        pause = min(first * 2 ** (self._died_young - 1), most) if self._died_young else 0.0
        self.again_at = time.monotonic() + pause
        log.warning("worker %s has ended (%s); another takes its place", self.process.pid, self.process.exitcode)
        self.process.close()
        self.process = None
        self._dead.append(self._worker)
        return True


def _work(
    settings: Settings, models: Models, listener: socket.socket, word: Connection, worker: UUID, dead: Sequence[UUID]
) -> None:
    """What a worker does."""
    # Ctrl-C reaches the whole group; the parent hands on what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()

    def ready() -> None:
        with suppress(OSError), word:
            word.send_bytes(b"ready")

    serve(settings, models, listener, ready, worker=worker, dead=dead)


def _end_with_the_parent() -> None:
    """Stop when the parent is gone, however it went: nobody else would stop this worker."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)

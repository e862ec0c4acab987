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
from web.logs import set_up
from web.redaction import redacted
from web.settings import Settings
from web.signals import deaf, outlive
from web.systemd import SILENT, Notifier
from web.welcome import Models

log = logging.getLogger(__name__)

#: a worker that lives as long has started well, and its successor need not wait
WELL_SECONDS = 10.0
#: how long a successor waits after a worker that died young: at first, and at most
PAUSE_SECONDS = (0.5, 10.0)
#: how many starts of each worker may fail one after the other; once none serves, that is the end
STARTS = 5
#: how long workers may take to stop before they are killed
STOP_SECONDS = 15.0
#: how often a worker says that its loop goes round, and how often the parent looks whether it has
BEAT_SECONDS = 1.0
#: a loop that does not go round for so long is told in the log
SLOW_SECONDS = 2.0
#: how long a worker that is given up may take to write what it is doing
STACK_SECONDS = 1.0
#: what a worker says to its parent, a byte each
READY, BEAT, STOPPING = b"r", b"b", b"s"
#: connections that are let in together; four times as many may be on their way in and out again, each with a file,
#: and there must be room for them beside `room_for_connections`
AT_ONCE = 8
#: how many may wait to be let in
QUEUE = 2048

#: not forked: what the parent has opened and imported stays its own
_processes = multiprocessing.get_context("spawn")


class NoneStarted(Exception):
    """No worker serves, and those that were started ended before they were ready; they have said why."""


def serve(
    settings: Settings,
    models: Models,
    listener: socket.socket,
    ready: Callable[[], None],
    *,
    beat: Callable[[], None] = lambda: None,
    stops: Callable[[], None] = lambda: None,
    worker: UUID | None = None,
    dead: Sequence[UUID] = (),
) -> None:
    """Serve in this process until a signal comes. The loop calls `beat` several times a second, as long as it goes.

    Raises DatabaseUnavailable where it cannot start on the database as it is.
    """
    import uvicorn

    from db.schema import require
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
            # Where another program has brought it up to date meanwhile, this worker's parent has not looked.
            await require(app.state.engine)
            await super().startup(sockets=sockets)
            # As many may wait as before: how many are let in at a time is another thing than the length of the queue.
            listener.listen(QUEUE)

        async def on_tick(self, counter: int) -> bool:
            beat()
            lag.look()
            return await super().on_tick(counter)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            stops()
            await super().shutdown(sockets=sockets)

    raise_open_files()
    lag = Lag()
    room = room_for_connections()
    app = create_app(settings, models, ready, worker=worker, dead=dead)
    server = Listening(
        uvicorn.Config(
            app,
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=settings.trusted_proxies or None,
            server_header=False,
            access_log=False,
            log_config=None,
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


class Lag:
    """Tells in the log when the loop has not gone round for a while, so that nobody was answered meanwhile."""

    def __init__(self) -> None:
        self._looked_at = time.monotonic()
        self._used = time.process_time()

    def look(self) -> None:
        """Call it several times a second."""
        now, used = time.monotonic(), time.process_time()
        if (seconds := now - self._looked_at) > SLOW_SECONDS:
            busy = used - self._used
            log.warning("nobody was answered for %.1f seconds, of which this process computed for %.1f", seconds, busy)
        self._looked_at, self._used = now, used


class Workers:
    """Several processes that serve, and their successors."""

    def __init__(
        self,
        number: int,
        settings: Settings,
        models: Models,
        listener: socket.socket,
        ready: Callable[[], None],
        notifier: Notifier = SILENT,
    ) -> None:
        self._places = [_Place(settings, models, listener) for _ in range(number)]
        #: told once, when the first worker serves
        self._ready: Callable[[], None] | None = ready
        self._notifier = notifier
        self._patience_seconds = settings.worker_timeout_seconds or float("inf")
        self._stopping = False

    def serve(self) -> None:
        """Serve until a signal comes. Raises NoneStarted."""
        with self._signals() as signalled:
            looked_at = time.monotonic()
            try:
                while not self._stopping:
                    for place in self._places:
                        place.fill()
                    wait([signalled, *(one for place in self._places for one in place.news)], self._pause())
                    with suppress(BlockingIOError):
                        signalled.recv(4096)
                    looked_at, before = time.monotonic(), looked_at
                    for place in self._places:
                        self._look_at(place)
                        place.wait_for_a_beat(passed(before, looked_at), self._patience_seconds)
                    self._notifier.alive()
            finally:
                self._notifier.stopping()
                self._stop()

    def _look_at(self, place: "_Place") -> None:
        if place.has_begun() and self._ready is not None:
            self._ready()
            self._ready = None
        if place.has_ended() and not self._stopping and (self._ready is not None or self._none_can_start()):
            raise NoneStarted

    def _none_can_start(self) -> bool:
        return all(place.failed_starts >= STARTS for place in self._places)

    def _pause(self) -> float:
        """How long until something is to be done: a look at the workers, a successor, a word to the watchdog."""
        waiting = [place.again_at - time.monotonic() for place in self._places if place.process is None]
        return max(0.0, min([BEAT_SECONDS, self._notifier.every_seconds or BEAT_SECONDS, *waiting]))

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
            heard.setblocking(False)
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
        #: on which the worker says how it is, and where it writes what it is doing
        self._word: Connection | None = None
        self._stacks: Connection | None = None
        self._begun_at = 0.0
        #: how long the worker has not said that it still goes; None where it need not: before it serves
        self._silent_seconds: float | None = None
        #: when the next one may start
        self.again_at = 0.0
        self._died_young = 0
        #: whether the worker has ever said that it serves, and how many before it ended without having said so
        self._served = False
        self.failed_starts = 0
        #: under which name it holds turns, and those before it whose turns nobody has freed yet
        self._worker = uuid4()
        self._dead: list[UUID] = []

    def fill(self) -> None:
        """Start a worker where there is none, once its time has come."""
        if self.process is not None or time.monotonic() < self.again_at:
            return
        self._word, word = _processes.Pipe(duplex=False)
        self._stacks, stacks = _processes.Pipe(duplex=False)
        for reader in (self._word, self._stacks):
            os.set_blocking(reader.fileno(), False)
        self._worker, self._silent_seconds, self._served = uuid4(), None, False
        told = (*self._work, word, stacks, self._worker, tuple(self._dead))
        self.process = _processes.Process(target=_work, args=told, daemon=True)
        with deaf():
            self.process.start()
        word.close()
        stacks.close()
        self._begun_at = time.monotonic()

    @property
    def news(self) -> list[int | Connection]:
        """What becomes readable when something has happened to the worker."""
        return [
            *([self.process.sentinel] if self.process is not None else []),
            *(one for one in (self._word, self._stacks) if one is not None),
        ]

    def has_begun(self) -> bool:
        """Whether the worker says just now that it serves."""
        said, self._word = _read(self._word)
        if said:
            # One that stops is waited for as long as it may take, and judged anew by nobody but who stops it.
            self._silent_seconds = -STOP_SECONDS if STOPPING in said else 0.0
        if READY in said:
            self._served, self.failed_starts = True, 0
            self._dead.clear()
        self._tell_stacks()
        return READY in said

    def wait_for_a_beat(self, passed: float, patience: float) -> None:
        """Kill a worker that serves and has said nothing for too long; its place is free once it has ended."""
        if self.process is None or self._silent_seconds is None:
            return
        self._silent_seconds += passed
        if self._silent_seconds < patience or self.process.pid is None:
            return
        pid = self.process.pid
        log.error("worker %s has not answered for %.0f seconds and is killed", pid, patience)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR1)
        if self._stacks is not None and self._stacks.poll(STACK_SECONDS):
            time.sleep(0.1)  # for the rest of it
            self._tell_stacks()
        self.process.kill()
        self._silent_seconds = None

    def _tell_stacks(self) -> None:
        said, self._stacks = _read(self._stacks)
        if said and self.process is not None:
            stack = said.decode(errors="replace").strip()
            log.warning("worker %s was doing this", self.process.pid, extra={"stack": stack})

    def has_ended(self) -> bool:
        """Whether the worker has ended just now; then its place is free."""
        if self.process is None or self.process.exitcode is None:
            return False
        self.failed_starts += not self._served
        first, most = PAUSE_SECONDS
        lived = time.monotonic() - self._begun_at
        self._died_young = self._died_young + 1 if lived < WELL_SECONDS else 0
        pause = min(first * 2 ** (self._died_young - 1), most) if self._died_young else 0.0
        self.again_at = time.monotonic() + pause
        log.warning("worker %s has ended (%s); another takes its place", self.process.pid, self.process.exitcode)
        self.process.close()
        self.process = None
        for way in (self._word, self._stacks):
            if way is not None:
                way.close()
        self._word = self._stacks = None
        self._dead.append(self._worker)
        return True


def passed(before: float, now: float) -> float:
    """For how long a worker may have been silent between two looks.

    Where the parent was stopped itself, or the whole machine slept, no more than a beat or two are missing.
    """
    return min(now - before, 2 * BEAT_SECONDS)


def _read(way: Connection | None) -> tuple[bytes, Connection | None]:
    """What has come on a pipe, and the pipe as long as something may still come."""
    if way is None:
        return b"", None
    try:
        said = os.read(way.fileno(), 65_536)
    except BlockingIOError:
        return b"", way
    if said:
        return said, way
    way.close()
    return b"", None


def _work(
    settings: Settings,
    models: Models,
    listener: socket.socket,
    word: Connection,
    stacks: Connection,
    worker: UUID,
    dead: Sequence[UUID],
) -> None:
    """What a worker does."""
    # Ctrl-C reaches the whole group; the parent hands on what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_up(settings.log_format, access_log=settings.access_log)
    outlive(stacks=stacks.fileno())
    os.set_blocking(word.fileno(), False)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    from db.db_session import DatabaseUnavailable

    said_at = 0.0

    def say(what: bytes) -> None:
        with suppress(OSError):  # nobody reads it any more, or not at the moment
            os.write(word.fileno(), what)

    def beat() -> None:
        nonlocal said_at
        if (now := time.monotonic()) - said_at >= BEAT_SECONDS:
            said_at = now
            say(BEAT)

    try:
        serve(
            settings,
            models,
            listener,
            lambda: say(READY),
            beat=beat,
            stops=lambda: say(STOPPING),
            worker=worker,
            dead=dead,
        )
    except DatabaseUnavailable as error:
        log.error("the database cannot be used: %s", redacted(str(error), settings))
        sys.exit(1)


def _end_with_the_parent() -> None:
    """Stop when the parent is gone, however it went: nobody else would stop this worker."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)

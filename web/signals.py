"""Signals that would end the server without a word."""

import faulthandler
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)

IGNORED = {
    signal.SIGHUP: "settings are read at the start; to apply them, restart the servers one after the other",
    signal.SIGUSR2: "it means nothing here",
}


def outlive(*, stacks: int | None = None) -> None:
    """Take what would end this process silently; on SIGUSR1 write what every thread is doing.

    `stacks` is the file that a worker writes it to; default: standard error.
    """
    # The hang-up of the terminal it runs in ends it as Ctrl-C does: nobody would know that it still runs.
    on_terminal = sys.stdin is not None and sys.stdin.isatty()
    for number, why in IGNORED.items():
        if signal.getsignal(number) == signal.SIG_IGN and stacks is None:  # `nohup` has seen to it
            continue
        signal.signal(number, _hung_up if on_terminal and number == signal.SIGHUP else _ignored(why))
    faulthandler.register(signal.SIGUSR1, file=2 if stacks is None else stacks, all_threads=True)


@contextmanager
def deaf() -> Iterator[None]:
    """A process that is started in here outlives these signals too, before it can say so itself."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in IGNORED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _hung_up(number: int, frame: FrameType | None) -> None:
    log.info("the terminal has gone; the server stops")
    signal.raise_signal(signal.SIGTERM)


def _ignored(why: str) -> Callable[[int, FrameType | None], None]:
    def ignore(number: int, frame: FrameType | None) -> None:
        log.info("%s is ignored: %s", signal.Signals(number).name, why)

    return ignore

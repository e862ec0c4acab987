"""A process that renders texts for a server, one after another, under limits that the kernel enforces.

The server (`web.rendering`) starts it by its file and speaks to it over stdin and stdout. It reads no settings, has no
environment and opens none of the server's files, and it ends when the server does. A text or a block of code that takes
longer than its limit ends the process: no pattern of a lexer and no loop of a parser can go on after that.
"""

import hashlib
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

#: CPU time that a text may take without its colours, a block of code for its own, and all blocks of a text together
TEXT_SECONDS, BLOCK_SECONDS, COLOURS_SECONDS = 6.0, 0.5, 2.0
#: CPU time of a text that is being written: no stream waits for it any longer
GROWING_SECONDS = 2.0
#: address space, in bytes
MEMORY = 1 << 30
#: the longest answer, in bytes
ANSWER = 32_000_000
#: HTML of coloured code that is kept, in characters
COLOURED_CHARACTERS = 4_000_000
#: memory after which it makes room for a fresh process once it has answered, in bytes
GROWN = 400_000_000
#: the exit code where memory was not enough, or the answer would be too long
NO_MEMORY = 3
LENGTH_BYTES = 4


class Job(msgspec.Struct, array_like=True, frozen=True):
    """A text to render: whole, or as far as it is written."""

    text: str
    grows: bool = False
    #: whether lines came since it was rendered last
    lines: bool = False
    #: what the part before it has told, see `web.markdown_rules.order`
    known: tuple[tuple[str, str, str], ...] = ()
    colours: bool = True


class Ask(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """Which of these blocks of code stay plain?"""

    digests: list[str]


class Colouring(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """It colours this block now; empty: none any more."""

    digest: str


class Done(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """The HTML of a text; of one that is being written, the finished part of it and where that ends."""

    html: str
    finished: str = ""
    end: int = 0
    #: what is known after that part
    known: tuple[tuple[str, str, str], ...] = ()
    #: the process has grown and takes no further text
    last: bool = False


Message = Ask | Colouring | Done


def digest_of(kind: str, text: str) -> str:
    """The name by which a text is remembered; `kind` is the language of a block of code, else empty."""
    return hashlib.sha256(f"{kind}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()


def frame(message: msgspec.Struct | Sequence[str]) -> bytes:
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def main() -> None:
    """Render until the server closes the pipe."""
    _limit_itself()
    sys.path[:0] = [str(Path(__file__).resolve().parents[1])]
    worker = _Worker(sys.stdin.buffer, sys.stdout.buffer)
    try:
        while (body := worker.receive()) is not None:
            worker.work(msgspec.msgpack.decode(body, type=Job))
    except MemoryError:
        os._exit(NO_MEMORY)
    except BrokenPipeError:  # the server is gone
        os._exit(0)


def _limit_itself() -> None:
    # What stops the server is told to the whole group; this process stays until the server needs it no more.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    limits = {resource.RLIMIT_AS: MEMORY, resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}
    for limit, most in limits.items():
        with suppress(ValueError, OSError):  # not every system has all of them
            resource.setrlimit(limit, (most, most))
    with suppress(OSError):
        os.nice(5)  # who is answered by the server comes first


def _memory() -> int:
    """Resident memory in bytes; 0 without /proc. Not `ru_maxrss`: that starts at the server's peak, even after exec."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, ValueError):
        return 0


def _allow(seconds: float) -> float:
    """Let the process end after so much more CPU time; 0 for no limit. Returns what was left of the limit before."""
    return signal.setitimer(signal.ITIMER_PROF, seconds)[0]


class _Worker:
    def __init__(self, incoming: BinaryIO, outgoing: BinaryIO) -> None:
        from web.kept import Kept

        self._incoming, self._outgoing = incoming, outgoing
        self._coloured: Kept[str] = Kept(COLOURED_CHARACTERS, len)

    def receive(self) -> bytes | None:
        """The next message; None where the server has gone."""
        head = self._incoming.read(LENGTH_BYTES)
        body = self._incoming.read(int.from_bytes(head, "big"))
        return body if len(head) == LENGTH_BYTES else None

    def _send(self, message: msgspec.Struct) -> None:
        framed = frame(message)
        if len(framed) > ANSWER:
            os._exit(NO_MEMORY)
        self._outgoing.write(framed)
        self._outgoing.flush()

    def work(self, job: Job) -> None:
        from web.markdown import grow, render

        colouring = self._colour if job.colours else None
        _allow(GROWING_SECONDS if job.grows else TEXT_SECONDS)
        if job.grows:
            grown = grow(job.text, lines=job.lines, known=job.known, colouring=colouring)
            done = Done(grown.open, grown.finished, grown.end, grown.known)
        else:
            done = Done(render(job.text, colouring))
        _allow(0)
        self._send(msgspec.structs.replace(done, last=_memory() > GROWN))

    def _colour(self, blocks: list[tuple[str, str]]) -> dict[tuple[str, str], str]:
        from web.highlighting import coloured, lexer_for

        digests = {digest_of(language, code): (language, code) for language, code in blocks}
        found = {block: html for digest, block in digests.items() if (html := self._coloured.get(digest)) is not None}
        rest = {digest: block for digest, block in digests.items() if block not in found}
        if not rest:
            return found
        self._send(Ask(list(rest)))
        plain = set(msgspec.msgpack.decode(self.receive() or b"\x90", type=list[str]))
        spent = 0.0
        for digest, (language, code) in rest.items():
            if digest in plain or spent > COLOURS_SECONDS:
                continue
            lexer_for(language)  # reading it is no fault of the block's
            self._send(Colouring(digest))
            left, before = _allow(BLOCK_SECONDS), time.process_time()
            html = coloured(code, language)
            spent += time.process_time() - before
            _allow(max(left, 0.01))
            if html is not None:
                self._coloured.put(digest, html)
                found[language, code] = html
        self._send(Colouring(""))
        return found


if __name__ == "__main__":
    main()

"""Texts as HTML without holding the event loop: short ones here, the others in processes with limits of their own.

No text that people or models write can keep the server from answering. What takes too long is shown as it is written:
a block of code without colours, a text without Markdown. That is remembered, so that it is not tried again. Nobody has
more than one process at a time, so that nobody's texts keep those of others waiting.
"""

import asyncio
import logging
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Collection, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from contextvars import Context
from functools import partial
from typing import Any, Protocol, TypeVar
from uuid import UUID
from weakref import WeakValueDictionary

import msgspec
from markupsafe import Markup

from web import render_worker
from web.kept import Kept
from web.markdown import Block, Colours, Growing, Grown, Growth, grow, normal, render, written
from web.markdown_rules.order import Known
from web.render_worker import LENGTH_BYTES, NO_MEMORY, Ask, Colouring, Done, Job, Message, digest_of, frame

log = logging.getLogger(__name__)
T = TypeVar("T")

#: a longer text leaves the loop; the dearest of this length takes about 15 ms
LOOP_CHARACTERS = 1_000
#: cells that a table of this length may be filled up to
LOOP_CELLS = 1_000
#: processes that one server process may start
PROCESSES = 2
#: texts that may wait for one of them, in all and of one person; of the next ones none is rendered
QUEUE, QUEUE_OF_ONE = 200, 20
#: how long a page waits for its texts in all, and a stream for a piece; what is late is shown as it is written
PAGE_SECONDS, PIECE_SECONDS = 10.0, 2.0
#: how long a process may take for a text by the clock on the wall, whatever it does
STUCK_SECONDS = 60.0
#: how often one text may end a process before its code stays plain
DEATHS = 3
#: HTML of ended and of growing texts that is kept, in characters
KEPT_CHARACTERS, GROWN_CHARACTERS = 8_000_000, 1_000_000
#: HTML after which the other long texts of a page are shown as they are written, in characters
PAGE_CHARACTERS = 32_000_000
#: how a process ends that met one of its limits, or a fault that will be there again
LIMITS = {
    -signal.SIGPROF,
    -signal.SIGXCPU,
    -signal.SIGSEGV,
    -signal.SIGBUS,
    -signal.SIGABRT,
    NO_MEMORY,
}

_HTML: Kept[str] = Kept(KEPT_CHARACTERS, len)
_GROWN: Kept[Grown] = Kept(GROWN_CHARACTERS, lambda grown: len(grown.finished) + len(grown.open or grown.text))


class Timeouts(Protocol):
    """Where texts that took too long are remembered."""

    async def known(self, digests: Collection[str]) -> set[str]: ...

    async def remember(self, digest: str) -> None: ...


def html_of(text: str) -> Markup:
    """How an ended reply is shown; a long one as it is written unless it was made `shown`."""
    text = normal(text)
    if (html := _HTML.get(text)) is None:
        html = render(text) if _is_short(text) else written(text)
    return Markup(html)  # noqa: S704


def begun(text: str) -> Grown:
    """A reply as far as it is written; a long one as it is written unless it was made `shown`."""
    if (grown := _GROWN.get(text)) is not None:
        return grown
    return Growing().add(text) if _is_short(text) else Grown(Markup(), Markup(written(text)))  # noqa: S704


def _is_short(text: str) -> bool:
    """Whether a text takes a few milliseconds at most. A table is filled up: its rows count as often as its columns."""
    return len(text) <= LOOP_CHARACTERS and (
        "|" not in text or max(line.count("|") for line in text.split("\n")) * (text.count("\n") + 1) <= LOOP_CELLS
    )


def _has_formulas(text: str) -> bool:
    return "$" in text or "\\(" in text or "\\[" in text


class Renderer:
    """The rendering processes of one server process, started when there is something for them to do."""

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._places = asyncio.Semaphore(PROCESSES)
        #: held by who has a place or is the next to get one: people take turns at the places
        self._shares: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()
        self._waiting: Counter[UUID] = Counter()
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        #: texts that are being rendered for somebody, in case another of their pages shows them too
        self._whole_texts: dict[tuple[UUID, str], asyncio.Task[str | None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def close(self) -> None:
        """End the processes; texts that are asked for later are shown as they are written."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(process.end() for process in list(self._all)))

    @property
    def processes(self) -> list[int]:
        """The ids of the processes that run."""
        return [process.id for process in self._all]

    @asynccontextmanager
    async def shown(self, who: UUID, texts: Iterable[str], growing: Iterable[str] = ()) -> AsyncIterator[None]:
        """Render what a page will show to somebody: ended texts, and such as are being written.

        One after another, so that a long page leaves room for others.
        """
        until = _after(PAGE_SECONDS)
        html, grown, characters = [], [], 0
        try:
            for text in map(normal, texts):
                if characters > PAGE_CHARACTERS:
                    break
                _HTML.hold(text, made := await self._html(who, text, until))
                html.append(text)
                characters += len(made)
                if len(text) > LOOP_CHARACTERS:
                    await asyncio.sleep(0)
            for text in growing:
                _GROWN.hold(text, await self._begun(who, text))
                grown.append(text)
            yield
        finally:
            for text in html:
                _HTML.release(text)
            for text in grown:
                _GROWN.release(text)

    async def grow(self, who: UUID, text: str, lines: bool, known: Known) -> Growth | None:
        """As `web.markdown.grow`; None where it takes too long now."""
        if _is_short(text) and not _has_formulas(text):
            blocks: list[Block] = []
            grown = grow(text, lines=lines, known=known, colouring=_noting(blocks))
            if not blocks:
                return grown
        job, until = Job(text, grows=True, lines=lines, known=known), _after(PIECE_SECONDS)
        made = await _in_time(self._spawn(self._do(who, job, until)), until)
        return None if made is None else Growth(made[0].end, made[0].finished, made[0].html, made[0].known)

    async def _begun(self, who: UUID, text: str) -> Grown:
        if (grown := _GROWN.get(text)) is None:
            grown = await Growing().take(text, partial(self.grow, who))
            if grown.open is None:
                return Grown(Markup(), Markup(written(text)))  # noqa: S704
            _GROWN.put(text, grown)
        return grown

    async def _html(self, who: UUID, text: str, until: float) -> str:
        if (html := _HTML.get(text)) is not None:
            return html
        for_now = None
        if _is_short(text) and not _has_formulas(text):
            blocks: list[Block] = []
            for_now = render(text, _noting(blocks))
            await asyncio.sleep(0)
            if not blocks:
                _HTML.put(text, for_now)
                return for_now
        if (task := self._whole_texts.get((who, text))) is None:
            task = self._whole_texts[who, text] = self._spawn(self._whole(who, text, until))
            task.add_done_callback(lambda _: self._whole_texts.pop((who, text), None))
        html = await _in_time(task, until)
        return html if html is not None else html_of(text) if for_now is None else for_now

    async def _whole(self, who: UUID, text: str, until: float) -> str | None:
        """The HTML of an ended text, which is kept; None where it cannot be had now."""
        digest = digest_of("", text)
        if await self._timeouts.known([digest]):
            html = written(text)
        else:
            made = await self._do(who, Job(text), until, digest)
            if made is None:
                return None
            html = made[0].html
            if not made[1]:
                return html
        _HTML.put(text, html)
        return html

    async def _do(self, who: UUID, job: Job, until: float, digest: str = "") -> tuple[Done, bool] | None:
        """Let a process render; whether it will always look so. None where none is free by then or can be started."""
        if self._closed or self._waiting.total() >= QUEUE or self._waiting[who] >= QUEUE_OF_ONE:
            return None
        async with AsyncExitStack() as place:
            if not await self._got(place, who, until):
                return None
            try:
                return await self._done(job, digest)
            except OSError as error:
                log.warning("no process can be started that renders texts: %s", error)
                return None

    async def _got(self, place: AsyncExitStack, who: UUID, until: float) -> bool:
        """Wait for a place until nobody waits for the text any more; whether there was one."""
        share = self._shares.setdefault(who, asyncio.Lock())
        self._waiting[who] += 1
        try:
            async with asyncio.timeout_at(until):
                await place.enter_async_context(share)
                await place.enter_async_context(self._places)
        except TimeoutError:
            return False
        finally:
            self._waiting[who] -= 1
            if not self._waiting[who]:
                del self._waiting[who]
        return True

    async def _done(self, job: Job, digest: str) -> tuple[Done, bool] | None:
        deaths, final = 0, True
        while True:
            try:
                return await self._by_a_process(job), final
            except _Died as died:
                if died.limit and died.block:
                    log.warning("a block of code took too long to colour and stays plain (%s)", died.block[:12])
                    await self._timeouts.remember(died.block)
                    deaths += 1
                    if deaths == DEATHS:
                        job = msgspec.structs.replace(job, colours=False)
                elif died.limit:
                    log.warning("a text of %d characters took too long to render and stays as it is", len(job.text))
                    if not digest:
                        return None
                    await self._timeouts.remember(digest)
                    return Done(written(job.text)), True
                elif job.colours and not self._closed:
                    log.warning("a process that renders texts has ended (%s); another takes its place", died.code)
                    job, final = msgspec.structs.replace(job, colours=False), False
                else:
                    return None

    async def _by_a_process(self, job: Job) -> Done:
        """Raises _Died; OSError where none can be started."""
        process = self._idle.pop() if self._idle else None
        while process is not None and process.has_ended:
            process = self._idle.pop() if self._idle else None
        if process is None:
            process = await _Process.start(self._all)
        try:
            done = await process.work(job, self._timeouts)
        except BaseException:
            await asyncio.shield(process.end())
            raise
        if done.last:
            await asyncio.shield(process.end())
        else:
            self._idle.append(process)
        return done

    def _spawn(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Go on with it whoever asked for it; not in the transaction of who did."""
        task = asyncio.get_running_loop().create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Died(Exception):
    """A process ended while it rendered: with which code, and which block it was colouring."""

    def __init__(self, code: int, block: str) -> None:
        super().__init__(code)
        self.code, self.block, self.limit = code, block, code in LIMITS


class _Process:
    """One rendering process."""

    def __init__(self, process: asyncio.subprocess.Process, all: "set[_Process]") -> None:
        self._process, self._all = process, all
        assert process.stdin is not None and process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout
        all.add(self)

    @classmethod
    async def start(cls, all: "set[_Process]") -> "_Process":
        """Raises OSError. It gets nothing of this process: no environment, no files, no output."""
        made = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            render_worker.__file__,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={},
            cwd="/",
        )
        return cls(made, all)

    @property
    def id(self) -> int:
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._process.returncode is not None or self._stdout.at_eof()

    async def work(self, job: Job, timeouts: Timeouts) -> Done:
        """Raises _Died."""
        block = ""
        try:
            async with asyncio.timeout(STUCK_SECONDS):
                await self._send(job)
                while True:
                    match await self._receive():
                        case Done() as done:
                            return done
                        case Ask(digests):
                            await self._send(sorted(await timeouts.known(digests)))
                        case Colouring(digest):
                            block = digest
        except (EOFError, ConnectionError):
            code = await self.end(kill=False)
            raise _Died(code, block) from None
        except TimeoutError:
            raise _Died(await self.end(), block) from None

    async def _send(self, message: msgspec.Struct | list[str]) -> None:
        self._stdin.write(frame(message))
        await self._stdin.drain()

    async def _receive(self) -> Message:
        length = int.from_bytes(await self._stdout.readexactly(LENGTH_BYTES), "big")
        return msgspec.msgpack.decode(await self._stdout.readexactly(length), type=Message)

    async def end(self, *, kill: bool = True) -> int:
        """Its exit code, once it has ended."""
        self._all.discard(self)
        with suppress(ProcessLookupError):
            if kill:
                self._process.kill()
        self._stdin.close()
        return await self._process.wait()


def _noting(blocks: list[Block]) -> Colours:
    """Colours nothing, and notes what there is to colour."""

    def note(found: list[Block]) -> dict[Block, str]:
        blocks.extend(found)
        return {}

    return note


def _after(seconds: float) -> float:
    """The time of the loop in so many seconds."""
    return asyncio.get_running_loop().time() + seconds


async def _in_time(task: "asyncio.Task[T | None]", until: float) -> T | None:
    """The outcome of a task, which goes on where it takes longer; None then."""
    await asyncio.wait({task}, timeout=max(0.0, until - _after(0)))
    return task.result() if task.done() and not task.cancelled() else None

"""Runs begun turns to their end, outside any request.

Each turn is a task that asks the client and collects text. One ticker commits the text of all running turns together:
the first piece of a reply at once, later ones about every 50 ms. Nobody is shown what is not committed.
"""

import asyncio
import contextvars
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from uuid import UUID

from db.db_session import DatabaseUnavailable, DbSession, Piece
from services.client_pool import ClientPool
from services.clients import ClientError, Reasoning, Text, Usage
from services.errors import NotFound, StorageUnavailable
from services.outages import tell
from services.outcomes import End, TurnOrder
from services.session_service import SessionService
from services.turns import INTERRUPTED, LEASE

log = logging.getLogger(__name__)

#: seconds between two commits of the text of all running turns
TICK_SECONDS = 0.05
#: between two looks for what time has ended
SWEEP_SECONDS = 2.0
#: between two looks for turns that another process has ended
LOOK_SECONDS = 0.5
#: between two looks for a turn whose commit nobody acknowledged
SEEK_SECONDS = 0.5
#: until what failed is tried again
AGAIN_SECONDS = 0.5
#: how long running turns may take to write their ends when the process stops
CLOSE_SECONDS = 8.0
#: what a provider may send that a database cannot hold
_UNSTORABLE = {0: "\ufffd"} | dict.fromkeys(range(0xD800, 0xE000), "\ufffd")


class Strand:
    """The end of a running turn's reply, or of its reasoning, that is not committed yet."""

    def __init__(self) -> None:
        self.start = 0
        self.parts: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self.parts)


class Draft:
    """The text of one running turn that is not committed yet."""

    def __init__(self, order: TurnOrder) -> None:
        self.order = order
        self.reply, self.reasoning = Strand(), Strand()

    def add(self, said: Text | Reasoning) -> bool:
        """Take in what the model said; whether it is the first of its kind, which must not wait."""
        text, strand = said.text, self._strand(isinstance(said, Reasoning))
        if not text.isascii() or "\0" in text:
            text = text.translate(_UNSTORABLE)
        if text:
            strand.parts.append(text)
        return not strand.start

    @property
    def is_empty(self) -> bool:
        return not (self.reply.parts or self.reasoning.parts)

    def take(self) -> list[Piece]:
        """What has come since the last time."""
        pieces = []
        for reasoning in (True, False):
            strand = self._strand(reasoning)
            if text := strand.text:
                pieces.append(Piece(self.order.session_id, self.order.turn_id, strand.start, text, reasoning))
                strand.parts.clear()
                strand.start += len(text)
        return pieces

    def put_back(self, pieces: Sequence[Piece]) -> None:
        """Undo a `take` whose commit failed."""
        for piece in pieces:
            strand = self._strand(piece.reasoning)
            strand.start = piece.start
            strand.parts.insert(0, piece.text)

    def _strand(self, reasoning: bool) -> Strand:
        return self.reasoning if reasoning else self.reply


class TurnRunner:
    """The running turns of this process."""

    def __init__(self, sessions: SessionService, pool: ClientPool, open_session: Callable[[], DbSession]) -> None:
        self._sessions = sessions
        self._pool = pool
        self._open_session = open_session
        self._tasks: dict[UUID, asyncio.Task[None]] = {}
        self._drafts: dict[UUID, Draft] = {}
        #: tasks that write a turn's end; no longer stoppable
        self._endings: dict[asyncio.Task[None], UUID] = {}
        #: tasks that look for a turn which may not have been begun
        self._seeking: dict[asyncio.Task[None], TurnOrder] = {}
        self._due = asyncio.Event()
        self._hurry = asyncio.Event()
        self._committing = asyncio.Lock()
        self._upkeep: list[asyncio.Task[None]] = []
        self._closed = False

    # ------------------------------------------------------------ from the service, after a commit

    def start(self, order: TurnOrder) -> None:
        """Run a begun turn; one that comes when the process is ending ends at once."""
        if self._closed:
            self._write_end(Draft(order), "interrupted", None, INTERRUPTED)
            return
        # A clean context: the caller's holds its open transaction.
        task = asyncio.create_task(self._run(order), context=contextvars.Context())
        self._tasks[order.turn_id] = task

    def seek(self, order: TurnOrder) -> None:
        """Run a turn if it is there once the database answers again; nobody knows whether its commit came through."""
        seeking = asyncio.create_task(self._seek(order), context=contextvars.Context())
        self._seeking[seeking] = order
        seeking.add_done_callback(self._seeking.pop)

    def stop(self, turn_id: UUID) -> None:
        """Close the provider's connection of a turn that has ended in the database."""
        if (task := self._tasks.pop(turn_id, None)) is not None:
            self._drafts.pop(turn_id, None)
            task.cancel()

    # ------------------------------------------------------------ the process's life

    async def open(self) -> None:
        """Begin committing and renewing leases."""
        upkeep = (self._tick, self._renew, self._sweep, self._look)
        self._upkeep = [asyncio.create_task(each(), context=contextvars.Context()) for each in upkeep]

    async def close(self, within: float = CLOSE_SECONDS) -> None:
        """End every running turn as interrupted, with all its text; what takes longer than `within` seconds is left.

        The text comes first, of all of them at once, so that it is safe whatever becomes of the ends.
        """
        give_up = time.monotonic() + within
        self._closed = True
        await asyncio.sleep(0)  # a task that has not begun would be cancelled before it could write its end
        try:
            await self._commit()
        except Exception as error:
            tell(log, "the last text could not be committed at once", error)
        for seeking, order in list(self._seeking.items()):
            seeking.cancel()
            self._write_end(Draft(order), "interrupted", None, INTERRUPTED)
        running, self._tasks = self._tasks, {}
        for task in running.values():
            task.cancel()
        while (writing := [*running.values(), *self._endings]) and (left := give_up - time.monotonic()) > 0:
            # Which, unlike a time-out, cancels nothing of it.
            _, pending = await asyncio.wait(writing, timeout=left)
            if not pending and not self._endings:
                break
        if self._endings:
            log.warning("%d replies could not be ended in time; the next start does", len(self._endings))
        for task in self._upkeep:
            task.cancel()
        await asyncio.gather(*self._upkeep, return_exceptions=True)

    @property
    def running(self) -> int:
        """How many turns run here."""
        return len(self._tasks)

    # ------------------------------------------------------------ one turn

    async def _seek(self, order: TurnOrder) -> None:
        give_up = time.monotonic() + LEASE.total_seconds()
        while time.monotonic() < give_up:
            with suppress(DatabaseUnavailable):
                if await self._sessions.held_turns([order.turn_id], self._open_session()):
                    self.start(order)
                    return
            await asyncio.sleep(SEEK_SECONDS)

    async def _run(self, order: TurnOrder) -> None:
        draft = self._drafts[order.turn_id] = Draft(order)
        usage: Usage | None = None
        state: End = "done"
        error: tuple[str, str] | None = None
        try:
            client = self._pool.client_of(order.provider)
            async with aclosing(client.stream(order.ask)) as events:
                async for event in events:
                    if isinstance(event, Usage):
                        usage = event
                        continue
                    first = draft.add(event)
                    if not draft.is_empty:
                        self._due.set()
                        if first:
                            self._hurry.set()
            self._pool.note(order.provider, True)
        except ClientError as failure:
            state, error = "failed", (failure.code, failure.detail)
            if failure.code == "provider_unreachable":
                self._pool.note(order.provider, False)
        except asyncio.CancelledError:
            if order.turn_id not in self._drafts:
                return  # stopped: its end is written already
            state, error = "interrupted", INTERRUPTED
        except Exception:
            log.exception("a turn failed unexpectedly")
            state, error = "failed", ("internal", "Something went wrong here; the log says more.")
        self._tasks.pop(order.turn_id, None)
        await asyncio.shield(self._write_end(draft, state, usage, error))

    def _write_end(
        self, draft: Draft, state: End, usage: Usage | None, error: tuple[str, str] | None
    ) -> asyncio.Task[None]:
        """A task of its own, which no stop cancels."""
        ending = asyncio.create_task(self._end(draft, state, usage, error), context=contextvars.Context())
        self._endings[ending] = draft.order.turn_id
        ending.add_done_callback(self._endings.pop)
        return ending

    async def _end(self, draft: Draft, state: End, usage: Usage | None, error: tuple[str, str] | None) -> None:
        """Write the end; while the database is away, try again as long as the lease lives."""
        # Not between a tick's taking of text and its commit.
        async with self._committing:
            self._drafts.pop(draft.order.turn_id, None)
        give_up = time.monotonic() + LEASE.total_seconds()
        while True:
            try:
                await self._sessions.finish_turn(
                    draft.order.turn_id,
                    self._open_session(),
                    state=state,
                    usage=usage,
                    error=error,
                    tail=draft.reply.text,
                    start=draft.reply.start,
                    thought=draft.reasoning.text,
                    thought_start=draft.reasoning.start,
                )
                return
            except NotFound:
                return
            except StorageUnavailable:
                if time.monotonic() > give_up:
                    log.error("the end of turn %s could not be written", draft.order.turn_id)
                    return
                await asyncio.sleep(AGAIN_SECONDS)
            except Exception:
                log.exception("the end of turn %s could not be written", draft.order.turn_id)
                return

    # ------------------------------------------------------------ all turns

    async def _tick(self) -> None:
        while True:
            await self._due.wait()
            if not self._hurry.is_set():
                try:
                    async with asyncio.timeout(TICK_SECONDS):
                        await self._hurry.wait()
                except TimeoutError:
                    pass
            self._due.clear()
            self._hurry.clear()
            try:
                await self._commit()
            except Exception as error:
                tell(log, "text could not be committed; trying again", error)
                self._due.set()
                await asyncio.sleep(AGAIN_SECONDS)

    async def _commit(self) -> None:
        async with self._committing:
            taken = [draft for draft in self._drafts.values() if not draft.is_empty]
            try:
                lost = await self._append(taken)
            except StorageUnavailable:
                raise
            except Exception as error:
                tell(log, "text was refused; trying that of each turn alone", error)
                lost = await self._append_each(taken)
        for turn_id in lost:
            self.stop(turn_id)

    async def _append(self, drafts: Sequence[Draft]) -> set[UUID]:
        """Commit the text of several turns; those of them that this process has lost."""
        taken = [draft.take() for draft in drafts]
        if not any(taken):
            return set()
        try:
            held = await self._sessions.append([*itertools.chain(*taken)], self._open_session())
        except BaseException:
            for draft, pieces in zip(drafts, taken, strict=True):
                draft.put_back(pieces)
            raise
        return {draft.order.turn_id for draft in drafts} - held

    async def _append_each(self, drafts: Sequence[Draft]) -> set[UUID]:
        """The same one by one: what the database refuses for good of one turn must not hold up the others."""
        lost = set()
        for draft in drafts:
            try:
                lost |= await self._append([draft])
            except StorageUnavailable:
                raise
            except Exception:
                log.exception("turn %s cannot be stored and is given up", draft.order.turn_id)
                lost.add(draft.order.turn_id)
        return lost

    async def _renew(self) -> None:
        pause = LEASE.total_seconds() / 3
        while True:
            await asyncio.sleep(pause)
            pause = LEASE.total_seconds() / 3
            try:
                if held := [*self._tasks, *self._endings.values()]:
                    await self._sessions.heartbeat(held, self._open_session())
            except Exception as error:
                tell(log, "leases could not be renewed; trying again", error)
                pause = AGAIN_SECONDS

    async def _look(self) -> None:
        """Stop what another process has ended or this one has lost: a provider that says nothing shows neither."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if not (running := list(self._tasks)):
                continue
            try:
                held = await self._sessions.held_turns(running, self._open_session())
            except Exception as error:
                tell(log, "running turns could not be looked after; trying again", error)
                continue
            for turn_id in running:
                if turn_id not in held:
                    self.stop(turn_id)

    async def _sweep(self) -> None:
        for round in itertools.count():
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                await self._sessions.sweep(self._open_session(), thorough=round % 30 == 0)
            except Exception as error:
                tell(log, "what has ended could not be written down; trying again", error)

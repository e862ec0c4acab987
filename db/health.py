"""Whether a database can be worked with: it answers, has the schema that is expected, and can be written to."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Literal, NamedTuple

from db import schema
from db.engine import Conflict, DatabaseUnavailable, Engine, SqliteEngine

log = logging.getLogger(__name__)

Check = Literal["database", "schema", "writing"]
#: how long the answer to each check holds, when it was good and when it was not
GOOD_SECONDS: dict[Check, float] = {"database": 0.0, "schema": 60.0, "writing": 5.0}
BAD_SECONDS = 3.0
#: how long whoever asks waits for a check; one that takes longer goes on, and the answer before holds until it ends
ASK_SECONDS = 2.0
ROOM_BYTES = 1_000_000
AWAY = "The database does not answer."
UNWRITABLE = "The database cannot be written to: its disk is full, it is read-only, or others lock it."


class _Known(NamedTuple):
    fault: str
    at: float


class Health:
    """The checks of one database, each made as seldom as is enough, however often it is asked for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[Check, _Known] = {}
        self._running: dict[Check, asyncio.Task[str]] = {}
        self._checks: dict[Check, Callable[[], Awaitable[str]]] = {
            "database": self._answers,
            "schema": self._schema,
            "writing": self._writes,
        }

    async def faults(self) -> dict[Check, str]:
        """{check that failed: what is wrong}; empty where none did. None can be made without those before it."""
        for check in self._checks:
            if fault := await self._fault(check):
                return {check: fault}
        return {}

    async def _fault(self, check: Check) -> str:
        now, known = asyncio.get_running_loop().time(), self._known.get(check)
        if known is not None and now - known.at < (BAD_SECONDS if known.fault else GOOD_SECONDS[check]):
            return known.fault
        # One at a time: those who ask meanwhile share its answer.
        task = self._running.get(check)
        if task is None:
            task = self._running[check] = asyncio.create_task(self._look(check))
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return await asyncio.shield(task)
        except TimeoutError:
            unknown = AWAY if check == "database" else ""
            return known.fault if known is not None else unknown

    async def _look(self, check: Check) -> str:
        try:
            fault = await self._checks[check]()
            before = self._known.get(check, _Known("", 0.0)).fault
            if fault != before:
                log.warning("%s", fault or f"the check of {check} is passed again")
            self._known[check] = _Known(fault, asyncio.get_running_loop().time())
            return fault
        finally:
            del self._running[check]

    async def _answers(self) -> str:
        try:
            await schema.is_there(self._engine)
        except DatabaseUnavailable:
            return AWAY
        return ""

    async def _schema(self) -> str:
        try:
            return await schema.fault(self._engine)
        except DatabaseUnavailable:
            return AWAY

    async def _writes(self) -> str:
        """Write one row, always the same. SQLite may find room for it where there is hardly any left."""
        if isinstance(self._engine, SqliteEngine) and await asyncio.to_thread(_is_full, self._engine.path):
            return UNWRITABLE
        try:
            await self._engine.run(
                "INSERT INTO write_probe (id, written_at) VALUES (1, CURRENT_TIMESTAMP) "
                "ON CONFLICT (id) DO UPDATE SET written_at = excluded.written_at"
            )
        except (DatabaseUnavailable, Conflict):
            return UNWRITABLE
        return ""


def _is_full(path: str) -> bool:
    """Whether the disk of a file has less room than a few messages take."""
    try:
        disk = os.statvfs(os.path.dirname(path) or ".")
    except OSError:
        return False
    return disk.f_blocks > 0 and disk.f_bavail * disk.f_frsize < ROOM_BYTES

"""One process of several on one database, as a worker is: its own engine, service and worker id.

`python -m tests.services.process URL`. A job is one line of JSON on standard input, what became of each of its calls
one line on standard output. The clock stands where the job says, so that several processes agree about it.
"""

import asyncio
import random
import sys
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from db import engine as engines
from db.db_session import DbSession
from db.engine import Engine, open_engine
from services.accounts import Accounts
from services.actor import Actor
from services.client_pool import ClientPool, Provider
from services.clients import Usage
from services.errors import Refusal
from services.event_bus import MemoryEventBus
from services.outcomes import End
from services.session_service import SessionService

#: how long a crowd of writers may wait for one another before the database counts as unavailable: they are to be
#: counted exactly, on a machine that does other things too. Tests of that time-out set their own
PATIENT_SECONDS = 120.0


class Job(msgspec.Struct, frozen=True):
    """Calls of one kind, made at once."""

    #: a method of Process
    what: str
    now: datetime
    actor: Actor
    #: the arguments of each call
    calls: list[dict[str, Any]]
    #: how many callers share the calls out
    at_once: int = 50


class Told(msgspec.Struct, frozen=True):
    """What became of one call: what it did, or the code of its refusal, or an error that must not be."""

    done: str = ""
    refused: str = ""
    broke: str = ""


class Process:
    """A worker that does as it is told."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.sessions = SessionService(
            ClientPool([Provider("builtin", "builtin")]), MemoryEventBus(), now=lambda: self.job.now
        )

    async def do(self, job: Job) -> list[Told]:
        self.job = job
        told: list[Told] = [Told()] * len(job.calls)
        waiting = iter(enumerate(job.calls))

        async def caller() -> None:
            for number, arguments in waiting:
                try:
                    told[number] = Told(done=await getattr(self, job.what)(DbSession(self.engine), **arguments))
                except Refusal as refusal:
                    told[number] = Told(refused=refusal.code)
                except Exception as error:
                    told[number] = Told(broke=repr(error))

        await asyncio.gather(*(caller() for _ in range(job.at_once)))
        return told

    async def create(self, db_session: DbSession, key: str | None = None) -> str:
        """The new session."""
        return str((await self.sessions.create_session(db_session, actor=self.job.actor, key=key)).row.id)

    async def begin(
        self, db_session: DbSession, session: str | None = None, model: str | None = None, key: str | None = None
    ) -> str:
        """The new turn, left running."""
        begun = await self.sessions.begin_turn(
            UUID(session) if session else None, "Hello", db_session, actor=self.job.actor, model=model, key=key
        )
        return str(begun.turn.id)

    async def switch(
        self,
        db_session: DbSession,
        session: str,
        model: str,
        expected_version: int | None = None,
        key: str | None = None,
    ) -> str:
        """The version and whether this call has changed it."""
        switch = await self.sessions.switch_model(
            UUID(session), model, db_session, actor=self.job.actor, expected_version=expected_version, key=key
        )
        return f"{switch.session.row.version} {'changed' if switch.changed else 'same'}"

    async def spend(self, db_session: DbSession, session: str, prompt_tokens: int, reply_tokens: int) -> str:
        """A whole turn of known cost."""
        turn = await self.begin(db_session, session)
        await asyncio.sleep(random.uniform(0, 0.05))
        usage = Usage(prompt_tokens, reply_tokens)
        await self.sessions.finish_turn(UUID(turn), db_session, state="done", usage=usage)
        return turn

    async def end(self, db_session: DbSession, session: str, ways: list[str]) -> str:
        """Begin a turn and end it in several ways at once; without any it is left to its lease."""
        turn = await self.begin(db_session, session)
        await asyncio.gather(*(self.end_by(way, UUID(turn)) for way in ways))
        return turn

    async def end_by(self, way: str, turn_id: UUID) -> None:
        db_session = DbSession(self.engine)
        if way == "stop":
            await self.sessions.stop_turn(turn_id, db_session, actor=self.job.actor)
        elif way == "sweep":
            await self.sweep(db_session)
        else:
            state: End = "done" if way == "finish" else "failed"
            await self.sessions.finish_turn(turn_id, db_session, state=state, usage=Usage(2, 3))

    async def stop(self, db_session: DbSession, turn: str) -> str:
        """The state in which the turn ended."""
        return str((await self.sessions.stop_turn(UUID(turn), db_session, actor=self.job.actor)).state)

    @property
    def accounts(self) -> Accounts:
        return Accounts(b"a secret", guests=True, now=lambda: self.job.now)

    async def guess(self, db_session: DbSession, name: str, address: str) -> str:
        """Try a wrong password."""
        stranger = self.accounts.nobody(address, "")
        return (await self.accounts.sign_in(name, "a wrong guess", db_session, actor=stranger)).cookie

    async def name(self, db_session: DbSession, name: str) -> str:
        """The new account."""
        return str((await self.accounts.create_account(name, "correct horse", db_session)).id)

    async def sweep(self, db_session: DbSession) -> str:
        """How much time has ended."""
        return str(await self.sessions.sweep(db_session, thorough=False))


async def main(url: str) -> None:
    engines.BUSY_SECONDS = PATIENT_SECONDS
    engine = open_engine(url)
    await engine.start()
    process = Process(engine)
    loop = asyncio.get_running_loop()
    print("ready", flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.buffer.readline):
        told = await process.do(msgspec.json.decode(line, type=Job))
        sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n")
        sys.stdout.buffer.flush()
    await engine.stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))

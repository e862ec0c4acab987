"""What an admission costs: with more and more rows of the same owner, and in several processes at once.

`python -m benchmarks.admission`. A limit must not get slower as what it protects grows. Read the ratios: the
milliseconds are this machine's, at that moment.
"""

import asyncio
import inspect
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import msgspec

from db.db_session import DbSession, new_id
from db.engine import Engine, migrate, open_engine
from db.tables import TABLES
from services.actor import Actor
from services.catalogue import ModelConfig
from services.client_pool import ClientPool, Provider
from services.configuration import GroupConfig, apply_config
from services.errors import LimitReached
from services.event_bus import MemoryEventBus
from services.session_service import SessionService
from tests.db.crowd import crowd
from tests.servers import postgres_url
from tests.services.process import Job

ROOT = Path(__file__).parents[1]
ROWS = (100, 10_000, 100_000)
PROCESSES = (1, 2, 4)
#: measured calls of each verb, in batches that take turns; the best one's median counts: others use this machine too
BATCHES, CALLS = 6, 25
#: switches that the processes share out, by callers of each at once
SWITCHES, CALLERS = 800, 10
#: every limit there is, out of reach
LIMITS = GroupConfig(
    sessions_created="1000000/s", turns="1000000/s", switches="1000000/s", concurrent_turns=50, open_sessions=100_000,
    tokens_per_day=10**12, money_per_month=10**6, idle="30d", absolute="300d",
)  # fmt: skip


Fresh = Callable[[], Awaitable[str]]


def an_actor(group: str) -> Actor:
    id = new_id()
    return Actor(kind="user", id=id, name=f"{group} {id}", group=group, rate_key=f"account:{id}")


async def prepared(url: str) -> tuple[Engine, SessionService]:
    """An empty database with two models, a group `within` its limits and one `beyond` them."""
    engine = open_engine(url)
    await engine.start()
    await migrate(engine)
    models = [ModelConfig(id=name, provider="builtin", upstream="echo", concurrent_turns=50) for name in ("a", "b")]
    beyond = msgspec.structs.replace(LIMITS, turns="1/h")
    groups = {"within": LIMITS, "beyond": beyond, "*": GroupConfig(concurrent_turns=100)}
    await apply_config(models, groups, "a", datetime.now(UTC), DbSession(engine))
    return engine, SessionService(ClientPool([Provider("builtin", "builtin")]), MemoryEventBus())


async def costs_of_verbs(url: str, rows: int) -> AsyncGenerator[dict[str, float], None]:
    """Median milliseconds of each verb in a batch, where the actor owns that many sessions, turns and journal rows."""
    engine, sessions = await prepared(url)
    db_session, actor = DbSession(engine), an_actor("within")
    session_id = (await sessions.create_session(db_session, actor=actor)).row.id
    await crowd(rows, session_id, sessions, actor, engine)
    if engine.engine_type == "postgres":
        await engine.run("ANALYZE")
    limited = msgspec.structs.replace(actor, group="beyond", rate_key="limited")
    begun = await sessions.begin_turn(session_id, "Hello", db_session, actor=limited)
    await sessions.finish_turn(begun.turn.id, db_session, state="done")
    models = iter(range(10**9))

    async def begin() -> Callable[[], Awaitable[Any]]:
        turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=actor)).turn
        return lambda: sessions.finish_turn(turn.id, db_session, state="done")

    async def refused() -> None:
        with suppress(LimitReached):
            await sessions.begin_turn(session_id, "Hello", db_session, actor=limited)
            raise AssertionError("it was not refused")

    async def create() -> Callable[[], Awaitable[Any]]:
        made = await sessions.create_session(db_session, actor=actor)
        return lambda: sessions.close_session(made.row.id, db_session, actor=actor)

    async def switch() -> None:
        await sessions.switch_model(session_id, "ab"[next(models) % 2], db_session, actor=actor)

    verbs: dict[str, Callable[[], Awaitable[Any]]] = {
        "create": create, "begin": begin, "switch": switch, "refused": refused
    }  # fmt: skip
    try:
        while True:
            for table in TABLES:  # another engine was made since
                table._meta._db = engine
            yield {name: await median_ms(verb) for name, verb in verbs.items()}
    finally:
        await engine.stop()


async def median_ms(verb: Callable[[], Awaitable[Any]]) -> float:
    """Of some calls, one after the other; what undoes one is not counted."""
    taken = []
    for _ in range(CALLS):
        before = time.perf_counter()
        undo = await verb()
        taken.append((time.perf_counter() - before) * 1000)
        if undo is not None:
            await undo()
    return statistics.median(taken)


async def throughput(url: str, processes: int) -> float:
    """Switches a second of that many processes together, each with sessions of its own."""
    engine, sessions = await prepared(url)
    db_session = DbSession(engine)
    jobs = []
    for _ in range(processes):
        actor = an_actor("within")
        own = [str((await sessions.create_session(db_session, actor=actor)).row.id) for _ in range(CALLERS)]
        calls = [
            {"session": own[number % CALLERS], "model": "ab"[number // CALLERS % 2]}
            for number in range(SWITCHES // processes)
        ]
        jobs.append(msgspec.json.encode(Job("switch", datetime.now(UTC), actor, calls, CALLERS)) + b"\n")
    await engine.stop()
    return await asyncio.to_thread(run_jobs, url, jobs)


def run_jobs(url: str, jobs: list[bytes]) -> float:
    command = [sys.executable, "-m", "tests.services.process", url]
    workers = [subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in jobs]
    for worker in workers:
        assert worker.stdout is not None
        worker.stdout.readline()
    begun, done = time.perf_counter(), 0
    for worker, job in zip(workers, jobs, strict=True):
        assert worker.stdin is not None
        worker.stdin.write(job)
        worker.stdin.flush()
    for worker in workers:
        assert worker.stdout is not None
        done += sum(bool(one["done"]) for one in json.loads(worker.stdout.readline()))
    seconds = time.perf_counter() - begun
    for worker in workers:
        worker.communicate()
    assert done == sum(len(json.loads(job)["calls"]) for job in jobs)
    return done / seconds


async def measure(name: str, fresh: Fresh) -> None:
    """One database: a line for each number of rows, and one for each number of processes."""
    print(f"\n{name}: an admission beside rows of the same owner, as a ratio to {ROWS[0]} rows")
    print(f"{'rows':>10} " + "".join(f"{verb:>20}" for verb in ("create", "begin", "switch", "refused")))
    measured = [costs_of_verbs(await fresh(), rows) for rows in ROWS]
    batches = [[await anext(costs) for costs in measured] for _ in range(BATCHES)]
    for costs_of_some in measured:
        await costs_of_some.aclose()
    least = {verb: min(batch[0][verb] for batch in batches) for verb in batches[0][0]}
    for place, rows in enumerate(ROWS):
        costs = {verb: min(batch[place][verb] for batch in batches) for verb in least}
        line = "".join(f"{costs[verb] / least[verb]:>9.2f} ({costs[verb]:5.2f} ms)" for verb in costs)
        print(f"{rows:>10,} {line}", flush=True)
    print(f"\n{name}: switches of several processes at once, as a ratio to one")
    one = 0.0
    for processes in PROCESSES:
        rate = await throughput(await fresh(), processes)
        one = one or rate
        print(
            f"{processes:>10} {rate / one:>9.2f} together {rate / one / processes:>9.2f} each ({rate:.0f}/s)",
            flush=True,
        )


@contextmanager
def fresh_databases() -> Iterator[tuple[Fresh, Fresh]]:
    """Makers of empty databases: of SQLite, and of PostgreSQL."""
    with tempfile.TemporaryDirectory() as folder, contextmanager(inspect.unwrap(postgres_url))() as server:
        numbers = iter(range(100))

        async def file() -> str:
            return f"sqlite:///{folder}/{next(numbers)}/turnkeeper.db"

        async def database() -> str:
            name = f"bench_{next(numbers)}"
            connection = await asyncpg.connect(server)
            await connection.execute(f"CREATE DATABASE {name}")
            await connection.close()
            return str(server.rsplit("/", 1)[0]) + f"/{name}"

        yield file, database


def on_both(measure: Callable[[str, Fresh], Awaitable[None]]) -> None:
    """The same on either database."""
    with fresh_databases() as (file, database):
        asyncio.run(measure("SQLite", file))
        asyncio.run(measure("PostgreSQL", database))


if __name__ == "__main__":
    on_both(measure)

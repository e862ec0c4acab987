"""The schema of a database against the one that this program works with: brought up to date, compared, refused.

A migration is a file in `migrations/`. Beside `forwards()` it may have `NEEDS`, the id of the first migration that a
program must know to work with the schema from then on (without it, older programs go on working), and `afterwards`,
which is run behind the schema's transaction (`db.backfill`). docs/decisions/migrations.md says what it may not do.
"""

import asyncio
import hashlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, redirect_stdout
from functools import cache
from importlib import import_module
from io import StringIO
from pathlib import Path

import asyncpg
from piccolo.apps.migrations.commands.forwards import run_forwards
from piccolo.apps.migrations.tables import Migration

from db.engine import MIGRATION_SECONDS, DatabaseUnavailable, Engine, PooledPostgresEngine
from db.piccolo_app import APP_CONFIG
from db.tables import TABLES
from db.version import version

log = logging.getLogger(__name__)

#: how long a migration stands at a lock, with everybody who comes later behind it; less than PostgreSQL waits before
#: it looks for a deadlock, so that no request is ever chosen to end one
LOCK_MS = 500
#: how long it is tried again while others hold those locks, and the longest pause between two attempts
PATIENCE_SECONDS, PAUSE_SECONDS = 300.0, 5.0
#: pause between two attempts to take the AFTERWARDS lock
AGAIN_SECONDS = 0.2
#: names the lock that only one process migrates under, and the one under which it does what comes afterwards
MIGRATING, AFTERWARDS = 7307199, 7307200
#: the last migration that may rewrite whole tables; those after it leave big tables alone (tests/db/test_released.py)
LAST_REWRITING = "turnkeeper_0011_indexed"
#: tables that are none of `TABLES`
OWN_TABLES = ("applied_migration", "write_probe")


class WrongSchema(DatabaseUnavailable):
    """This program does not work with the schema that the database has; the text says why, and what to do."""


def known() -> dict[str, str]:
    """{id: SHA-256 of its file} of the migrations of this program, in their order."""
    return _in_folder(Path(APP_CONFIG.migrations_folder_path))


@cache  # what this process was started with, whatever is installed over it meanwhile
def _in_folder(folder: Path) -> dict[str, str]:
    files = sorted(folder.glob("turnkeeper_*.py"))
    return {file.stem: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def newest() -> str:
    """The id of the last migration that this program knows."""
    return list(known())[-1]


def number(name: str = "") -> str:
    """“0015” of “turnkeeper_0015_applied”: the version of a schema; without a name, of the one this program makes."""
    parts = (name or newest()).split("_")
    return parts[1] if len(parts) > 1 else name


async def migrate(engine: Engine) -> list[str]:
    """Bring the schema up to date in one transaction, also when several start at once; the migrations that ran.

    On PostgreSQL others may go on meanwhile: where they hold what it needs, it steps back and tries again. Raises
    WrongSchema.
    """
    ran = await _patiently(lambda: _bring_up(engine))
    await _finish(engine)
    return ran


async def _bring_up(engine: Engine) -> list[str]:
    postgres = engine.engine_type == "postgres"
    async with engine.transaction() as transaction:
        if postgres:
            transaction.seconds = MIGRATION_SECONDS
            await transaction.run("SET LOCAL lock_timeout = 0")
            await transaction.run("SET LOCAL statement_timeout = 0")
            await transaction.run(f"SELECT pg_advisory_xact_lock({MIGRATING})")
        before = await _ran(engine)
        if later := sorted(before - known().keys()):
            raise WrongSchema(await _from_later(engine, later[-1]))
        missing = [name for name in known() if name not in before]
        if postgres and missing:
            await _take_what_it_needs(engine, missing)
        with redirect_stdout(StringIO()) as said:
            result = await run_forwards("turnkeeper")
        if not result.success:
            raise RuntimeError(f"the migration failed: {said.getvalue()}")
        ran = sorted(await _ran(engine) - before)
        if await _has(engine, "applied_migration"):
            for name in ran:
                await _note(engine, name)
        return ran


async def _take_what_it_needs(engine: Engine, missing: list[str]) -> None:
    """Stand at no lock for long, and take those of a migration that rewrites tables before it has changed anything."""
    await engine.run(f"SET LOCAL lock_timeout = {LOCK_MS}")
    if missing[0] > LAST_REWRITING:
        return
    there = [table._meta.tablename for table in TABLES if await _has(engine, table._meta.tablename)]
    if there:
        await engine.run(f"LOCK TABLE {', '.join(there)} IN ACCESS EXCLUSIVE MODE")


async def _patiently(attempt: Callable[[], Awaitable[list[str]]]) -> list[str]:
    """Try it until nobody else holds what it needs, with pauses that grow. Raises DatabaseUnavailable."""
    clock = asyncio.get_running_loop().time
    give_up, pause, told = clock() + PATIENCE_SECONDS, 0.1, False
    while True:
        try:
            return await attempt()
        except DatabaseUnavailable as error:
            if not isinstance(error.__cause__, (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError)):
                raise
            if clock() > give_up:
                raise DatabaseUnavailable(
                    f"the schema cannot be changed: others have held a table of it for {PATIENCE_SECONDS:.0f} seconds. "
                    "End long transactions, such as a dump, and start again."
                ) from error
        if not told:
            log.warning("the schema has to change, and others hold a table of it; trying again")
            told = True
        await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - only so that two do not keep step
        pause = min(pause * 2, PAUSE_SECONDS)


async def _note(engine: Engine, name: str) -> None:
    """Store what a migration was when it ran."""
    module = import_module(name)
    later, values = getattr(module, "afterwards", None), (name, known()[name], getattr(module, "NEEDS", ""))
    marks = "$1, $2, $3, $4, $5" if engine.engine_type == "postgres" else "?, ?, ?, ?, ?"
    await engine.run(
        f"INSERT INTO applied_migration (name, sha256, needs, program, finished) VALUES ({marks})",  # noqa: S608
        [*values, version(), later is None],
    )


async def _finish(engine: Engine) -> None:
    """Do what migrations left for after their transaction; one process at a time, and again where it was broken off."""
    if not await _unfinished(engine):
        return
    async with _one_at_a_time(engine):
        for name in await _unfinished(engine):
            await import_module(name).afterwards(engine)
            mark = "$1" if engine.engine_type == "postgres" else "?"
            await engine.run(f"UPDATE applied_migration SET finished = TRUE WHERE name = {mark}", [name])  # noqa: S608


@asynccontextmanager
async def _one_at_a_time(engine: Engine) -> AsyncIterator[None]:
    """Hold the AFTERWARDS lock, outside of any transaction: CREATE INDEX CONCURRENTLY waits for every open one.

    It also waits for a statement that is blocked on a lock, so the lock is polled and never waited for.
    """
    if not isinstance(engine, PooledPostgresEngine):  # SQLite serves one process
        yield
        return
    pool = await engine.started_pool()
    async with pool.acquire() as connection:  # which gives back its locks with itself
        while not await connection.fetchval(f"SELECT pg_try_advisory_lock({AFTERWARDS})"):  # noqa: ASYNC110
            await asyncio.sleep(AGAIN_SECONDS)
        yield


async def _unfinished(engine: Engine) -> list[str]:
    if not await _has(engine, "applied_migration"):
        return []
    rows = await engine.run("SELECT name FROM applied_migration WHERE NOT finished ORDER BY name")
    return [row["name"] for row in rows if row["name"] in known()]


# ---------------------------------------------------------------- compared


async def is_there(engine: Engine) -> bool:
    """Whether the database has a schema of ours, of whichever version."""
    return await _has(engine, Migration._meta.tablename)


async def fault(engine: Engine) -> str:
    """Why this program cannot work with the schema as it is; empty where it can.

    A schema that a later program has added to is none: while servers are replaced one by one, old ones go on with it.
    """
    ran = await _ran(engine)
    if missing := [name for name in known() if name not in ran]:
        return f"The database lacks the migration {missing[0]}; run “turnkeeper migrate”."
    for table in OWN_TABLES:
        if not await _has(engine, table):
            return f"The database lacks the table {table}: it was taken away after its migration had run here."
    applied = await engine.run("SELECT name, sha256, needs FROM applied_migration")
    if (needed := max((row["needs"] for row in applied), default="")) > newest():
        return await _from_later(engine, max(ran - known().keys(), default=needed))
    if lacking := await _lacking(engine):
        return f"The database lacks {lacking}: a migration was changed after it had run here."
    for row in applied:
        if row["sha256"] != known().get(row["name"], row["sha256"]):
            return f"The migration {row['name']} was changed after it had run here."
    return ""


async def start_fault(engine: Engine) -> str:
    """Why this program does not begin to work with the schema as it is: it may also be a later program's."""
    later = sorted(await _ran(engine) - known().keys())
    return await _from_later(engine, later[-1]) if later else await fault(engine)


async def require(engine: Engine) -> None:
    """Raise WrongSchema where this program cannot work with the schema as it is."""
    if said := await fault(engine):
        raise WrongSchema(said)


async def _from_later(engine: Engine, last: str) -> str:
    """Both versions, and what to do; `last` is the newest migration of the database."""
    program = ""
    if await _has(engine, "applied_migration"):
        mark = "$1" if engine.engine_type == "postgres" else "?"
        rows = await engine.run(f"SELECT program FROM applied_migration WHERE name = {mark}", [last])  # noqa: S608
        program = "".join(f" {row['program']}" for row in rows if row["program"] != version())
    return (
        f"The database has the schema {number(last)} of a later Turnkeeper{program}, and this is Turnkeeper "
        f"{version()} with the schema {number()}. Start that version, or restore a backup from before it."
    )


async def _lacking(engine: Engine) -> str:
    """A column that this program reads and the database has not."""
    if engine.engine_type == "postgres":
        sql = (
            "SELECT c.relname AS table_name, a.attname AS column_name FROM pg_attribute a "
            "JOIN pg_class c ON c.oid = a.attrelid WHERE c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped "
            "AND pg_table_is_visible(c.oid)"
        )
    else:
        sql = (
            "SELECT m.name AS table_name, p.name AS column_name FROM sqlite_master m "
            "JOIN pragma_table_info(m.name) p WHERE m.type = 'table'"
        )
    there = {(row["table_name"], row["column_name"]) for row in await engine.run(sql)}
    for table in TABLES:
        for column in table._meta.columns:
            if (table._meta.tablename, column._meta.name) not in there:
                return f"the column {table._meta.tablename}.{column._meta.name}"
    return ""


# ---------------------------------------------------------------- parts


async def _ran(engine: Engine) -> set[str]:
    return set(await Migration.get_migrations_which_ran()) if await is_there(engine) else set()


async def _has(engine: Engine, table: str) -> bool:
    if engine.engine_type == "sqlite":
        found = await engine.run("SELECT 1 AS one FROM sqlite_master WHERE type = 'table' AND name = ?", [table])
    else:
        found = await engine.run("SELECT 1 AS one WHERE to_regclass($1) IS NOT NULL", [table])
    return bool(found)

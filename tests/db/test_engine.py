"""What both engines promise: no lock errors, safe cancellation, nothing leaked."""

import asyncio
import gc
import os
import shutil
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

import db.engine
from db.db_session import DbSession
from db.engine import Conflict, DatabaseUnavailable, Engine, SqliteEngine, migrate, open_engine
from db.tables import RateBucket


async def write(engine: Engine, key: str) -> None:
    await RateBucket.insert(RateBucket(key=key, tat_us=1))


async def keys() -> set[str]:
    return {row["key"] for row in await RateBucket.select()}


async def test_fifty_tasks_write_twenty_times_each_without_an_error(engine: Engine) -> None:
    async def task(number: int) -> None:
        for place in range(20):
            async with engine.transaction():
                before = await RateBucket.count()
                await write(engine, f"{number}-{place}")
                assert await RateBucket.count() == before + 1 or engine.engine_type == "postgres"

    async with asyncio.timeout(120):
        await asyncio.gather(*(task(number) for number in range(50)))
    assert await RateBucket.count() == 1000


async def test_a_transaction_is_all_or_nothing(engine: Engine) -> None:
    with pytest.raises(ZeroDivisionError):
        async with engine.transaction():
            await write(engine, "lost")
            raise ZeroDivisionError
    assert await keys() == set()


async def test_a_nested_transaction_joins_the_outer_one(db_session: DbSession) -> None:
    with pytest.raises(ZeroDivisionError):
        async with db_session.transaction():
            async with db_session.transaction():
                await write(db_session.engine, "inner")
            raise ZeroDivisionError
    assert await keys() == set()


async def test_a_child_task_is_outside_its_parents_transaction(engine: Engine) -> None:
    async with engine.transaction():
        await write(engine, "parent")
        assert await asyncio.create_task(keys()) == set()
    assert await keys() == {"parent"}


async def test_a_caller_cancelled_anywhere_leaves_all_or_nothing_and_no_lock(engine: Engine) -> None:
    async def pair(number: int) -> None:
        async with engine.transaction():
            await write(engine, f"{number}-a")
            await write(engine, f"{number}-b")

    for number in range(60):
        task = asyncio.create_task(pair(number))
        for _ in range(number):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(60):
        await write(engine, "after")
    found = await keys()
    for number in range(60):
        assert (f"{number}-a" in found) == (f"{number}-b" in found)


async def test_a_cancelled_transaction_gives_its_connection_back(engine: Engine) -> None:
    async def hold() -> None:
        async with engine.transaction():
            await write(engine, "held")
            await asyncio.sleep(60)

    for _ in range(25):
        task = asyncio.create_task(hold())
        await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(60):
        await write(engine, "after")
    assert await keys() == {"after"}


async def test_a_reader_cancelled_anywhere_leaves_nothing_behind(database_url: str) -> None:
    """Also while its connection is being made, as when a page goes away."""
    complaints: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    try:
        for hops in range(0, 40, 2):
            engine = open_engine(database_url)
            await engine.start()
            readers = [asyncio.create_task(engine.run("SELECT 1")) for _ in range(4)]
            for _ in range(hops):
                await asyncio.sleep(0)
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
            assert len(await engine.run("SELECT 1")) == 1
            async with asyncio.timeout(60):
                await engine.stop()
        gc.collect()
        await asyncio.sleep(0)
    finally:
        loop.set_exception_handler(None)
    assert complaints == []


async def test_a_connection_that_is_lost_while_it_is_given_back_is_no_error(
    empty_postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was committed on it is committed, and the next one is made anew."""
    engine = open_engine(empty_postgres)
    await engine.start()
    commit = asyncpg.transaction.Transaction.commit

    async def end_backend(pid: int) -> None:
        other = await asyncpg.connect(empty_postgres)
        await other.execute("SELECT pg_terminate_backend($1, 10000)", pid)
        await other.close()

    async def committed_and_lost(transaction: asyncpg.transaction.Transaction) -> None:
        await commit(transaction)
        # In a thread that is waited for, so that this loop has heard nothing of it when the connection goes back.
        ending = threading.Thread(target=asyncio.run, args=[end_backend(backend["pid"])])
        ending.start()
        ending.join()

    async with engine.transaction() as open:
        await write(engine, "kept")
        (backend,) = await open.run("SELECT pg_backend_pid() AS pid")
        monkeypatch.setattr(asyncpg.transaction.Transaction, "commit", committed_and_lost)
    monkeypatch.undo()
    assert await keys() == {"kept"}
    await write(engine, "after")
    await engine.stop()


async def test_a_connection_that_breaks_in_the_middle_of_being_given_back_is_no_error_either(
    empty_postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a crash leaves of it, the driver calls a connection that is still busy with something else."""
    engine = open_engine(empty_postgres)
    await engine.start()

    async def busy(*_: object, **__: object) -> None:
        raise asyncpg.InternalClientError("cannot switch to state 15; another operation (2) is in progress")

    for key in ("kept", "kept too"):
        async with engine.transaction():
            await write(engine, key)
            monkeypatch.setattr(asyncpg.Connection, "reset", busy)
        monkeypatch.undo()
    assert await keys() == {"kept", "kept too"}
    await engine.stop()


async def test_callbacks_run_after_the_commit_and_only_then(db_session: DbSession) -> None:
    seen: list[str] = []
    async with db_session.transaction():
        db_session.after_commit(lambda: seen.append("committed"))
        assert seen == []
    assert seen == ["committed"]
    with pytest.raises(ZeroDivisionError):
        async with db_session.transaction():
            db_session.after_commit(lambda: seen.append("never"))
            raise ZeroDivisionError
    assert seen == ["committed"]


async def test_a_taken_key_is_a_conflict(engine: Engine) -> None:
    await write(engine, "one")
    with pytest.raises(Conflict):
        await write(engine, "one")


async def test_migrating_twice_changes_nothing(engine: Engine) -> None:
    assert await migrate(engine) == []


async def test_four_processes_that_migrate_at_once_apply_each_migration_once(postgres_url: str, tmp_path: Path) -> None:
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("CREATE DATABASE fresh")
    fresh = postgres_url.rsplit("/", 1)[0] + "/fresh"
    for url in (fresh, f"sqlite:///{tmp_path / 'fresh.db'}"):
        command = [sys.executable, "-m", "turnkeeper", "migrate"]
        environment = {**os.environ, "TURNKEEPER_DATABASE_URL": url}
        running = [
            await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.PIPE)
            for _ in range(4)
        ]
        told = [(await one.communicate())[0].decode() for one in running]
        assert [one.returncode for one in running] == [0, 0, 0, 0]
        assert sum("applied" in text for text in told) == 1, told
    await connection.execute("DROP DATABASE fresh WITH (FORCE)")
    await connection.close()


async def test_a_database_that_is_not_there_is_unavailable() -> None:
    for url in ("postgresql://nobody@127.0.0.1:9/none", "sqlite:////proc/turnkeeper/none.db"):
        engine = open_engine(url)
        with pytest.raises((DatabaseUnavailable, OSError)):
            await engine.start()
        await engine.stop()


# ---------------------------------------------------------------- several writers on one SQLite file


@pytest.fixture
async def two(sqlite_template: Path, tmp_path: Path) -> AsyncIterator[list[SqliteEngine]]:
    """Two engines on one file, as two processes have; neither knows of the other."""
    engines = [SqliteEngine(shutil.copy(sqlite_template, tmp_path / "turnkeeper.db")) for _ in range(2)]
    yield engines
    for engine in engines:
        await engine.stop()


async def add(engine: SqliteEngine, key: str) -> None:
    await engine.run("INSERT INTO rate_bucket (key, tat_us) VALUES (?, 1)", [key])


async def test_what_another_process_commits_is_noticed_once_and_from_the_first_moment_on(
    two: list[SqliteEngine],
) -> None:
    here, there = two
    await here.start()
    # Else every open stream would look at its rows for nothing.
    assert not await here.changed_elsewhere()
    for number in range(3):
        await add(there, f"there {number}")
        assert await here.changed_elsewhere()
        await add(here, f"here {number}")
        assert not await here.changed_elsewhere()


async def test_a_busy_process_lets_another_one_write_after_the_transaction_it_is_in(two: list[SqliteEngine]) -> None:
    busy, other = two
    done = 0

    async def keep_writing(number: int) -> None:
        nonlocal done
        for place in range(1000):
            async with busy.transaction() as transaction:
                await transaction.run("INSERT INTO rate_bucket (key, tat_us) VALUES (?, 1)", [f"{number}-{place}"])
                await asyncio.sleep(0.004)
            done += 1

    writers = [asyncio.create_task(keep_writing(number)) for number in range(20)]
    waited = []
    for number in range(30):
        await asyncio.sleep(0.01)
        before = done
        await add(other, f"other-{number}")
        waited.append(done - before)
    assert done > 30
    assert sum(waited) < 3 * len(waited), waited
    for writer in writers:
        writer.cancel()
    await asyncio.gather(*writers, return_exceptions=True)


async def test_a_lock_that_another_program_holds_is_waited_for_and_then_told(
    two: list[SqliteEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = two
    program = sqlite3.connect(engine.path, isolation_level=None)
    program.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(add(engine, "patient"))
    await asyncio.sleep(0.3)
    program.execute("COMMIT")
    await waiting
    program.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(db.engine, "BUSY_SECONDS", 0.2)
    with pytest.raises(DatabaseUnavailable):
        await add(engine, "impatient")
    program.execute("COMMIT")
    await add(engine, "later")
    assert [row["key"] for row in await engine.run("SELECT key FROM rate_bucket ORDER BY key")] == ["later", "patient"]
    program.close()


async def test_behind_a_lock_that_stays_nobody_waits_for_those_in_front_of_him(
    two: list[SqliteEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits as long as one may, all at the same time, and a place in the queue is not lost by it."""
    engine, _ = two
    program = sqlite3.connect(engine.path, isolation_level=None)
    program.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(db.engine, "BUSY_SECONDS", 0.5)
    async with asyncio.timeout(15):  # one after the other they would take 20 s
        results = await asyncio.gather(*(add(engine, f"never-{place}") for place in range(40)), return_exceptions=True)
    assert {type(result) for result in results} == {DatabaseUnavailable}
    assert not engine.writing.locked()
    program.execute("COMMIT")
    program.close()
    await add(engine, "after")
    assert [row["key"] for row in await engine.run("SELECT key FROM rate_bucket")] == ["after"]


async def test_a_caller_cancelled_while_it_waits_gives_its_place_back(two: list[SqliteEngine]) -> None:
    first, second = two
    program = sqlite3.connect(first.path, isolation_level=None)
    for number in range(20):
        program.execute("BEGIN IMMEDIATE")
        waiting = [asyncio.create_task(add(engine, f"never-{number}")) for engine in two]
        await asyncio.sleep(number / 1000)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        program.execute("COMMIT")
        async with asyncio.timeout(60):
            await add(second, f"{number}-b")
            await add(first, f"{number}-a")
    assert len(await first.run("SELECT key FROM rate_bucket WHERE key NOT LIKE 'never%'")) == 40
    program.close()

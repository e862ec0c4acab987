"""A program looks at the schema before it works with it: too old, too new, edited, or in use by others."""

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import asyncpg
import pytest
from piccolo.apps.migrations.commands.forwards import run_forwards

from db import schema
from db.db_session import DatabaseUnavailable
from db.engine import Engine, migrate, open_engine
from db.health import Health
from db.piccolo_app import APP_CONFIG
from db.schema import WrongSchema, fault, require, start_fault
from db.version import version

Folder = Callable[..., Path]
LATER = '''
from db.portable import in_sql
ID = "{name}"
NEEDS = "{needs}"

async def forwards():
    return in_sql(ID, "", """{statements}""")
'''
AFTERWARDS = """

async def afterwards(engine):
    from db.backfill import build_index, in_batches
    {first}
    some = "SELECT name FROM mark WHERE colour = '' LIMIT 2"
    await in_batches(engine, f"UPDATE mark SET colour = 'green' WHERE name IN ({{some}}) RETURNING 1 AS one")
    await build_index(engine, "mark_by_colour", "ON mark (colour)")
    await build_index(engine, "mark_by_colour", "ON mark (colour)")
"""


@pytest.fixture(params=["sqlite", "postgres"])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Engine]:
    """A database of its own, since its schema changes."""
    url = f"sqlite:///{tmp_path / 'own.db'}"
    if request.param == "postgres":
        server = str(request.getfixturevalue("postgres_url"))
        url = f"{server.rsplit('/', 1)[0]}/of_schema"
        maker = await asyncpg.connect(server)
        await maker.execute("DROP DATABASE IF EXISTS of_schema WITH (FORCE)")
        await maker.execute("CREATE DATABASE of_schema")
    engine = open_engine(url)
    await engine.start()
    yield engine
    await engine.stop()
    if request.param == "postgres":
        await maker.execute("DROP DATABASE of_schema WITH (FORCE)")
        await maker.close()


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """Become the program whose migrations are ours and these."""
    ours, made = Path(APP_CONFIG.migrations_folder_path), []

    def become(**migrations: str) -> Path:
        folder = tmp_path / f"migrations{len(made)}"
        made.append(folder)
        shutil.copytree(ours, folder)
        for name, text in migrations.items():
            (folder / f"turnkeeper_{name}.py").write_text(text)
            sys.modules.pop(f"turnkeeper_{name}", None)
        monkeypatch.setattr(APP_CONFIG, "migrations_folder_path", str(folder))
        monkeypatch.syspath_prepend(str(folder))
        return folder

    return become


def later(name: str, statements: str = "CREATE TABLE mark (name TEXT)", needs: str = "") -> dict[str, str]:
    return {name: LATER.format(name=f"turnkeeper_{name}", needs=needs, statements=statements)}


async def test_a_program_refuses_to_start_on_the_schema_of_a_later_one_and_names_both(
    engine: Engine, program: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(schema, "version", lambda: "7.1")
        program(**later("0901_marks"))
        assert "turnkeeper_0901_marks" in await migrate(engine)
    program()
    with pytest.raises(WrongSchema, match=f"0901 of a later Turnkeeper 7.1, .* {version()} with the schema 00") as told:
        await migrate(engine)
    assert "backup" in str(told.value)
    assert isinstance(told.value, DatabaseUnavailable)


async def test_one_that_runs_already_goes_on_with_what_a_later_one_has_added(engine: Engine, program: Folder) -> None:
    program(**later("0902_added"))
    await migrate(engine)
    program()
    await require(engine)
    assert await fault(engine) == ""


async def test_but_not_where_the_later_one_says_that_it_must_not(engine: Engine, program: Folder) -> None:
    program(**later("0903_other", needs="turnkeeper_0903_other"))
    await migrate(engine)
    assert await fault(engine) == ""
    program()
    assert "0903 of a later Turnkeeper" in await fault(engine)
    with pytest.raises(WrongSchema):
        await require(engine)


async def test_what_is_missing_is_named(engine: Engine, program: Folder) -> None:
    assert "lacks the migration turnkeeper_0001_first" in await fault(engine)
    await migrate(engine)
    assert await fault(engine) == ""
    program(**later("0904_more"))
    assert "lacks the migration turnkeeper_0904_more" in await fault(engine)
    await engine.run_ddl("ALTER TABLE session DROP COLUMN opening")
    program()
    assert "session.opening" in await fault(engine)


@pytest.mark.parametrize("table", ["write_probe", "applied_migration", "turn_piece"])
async def test_a_table_that_is_missing_is_named_by_every_check(engine: Engine, table: str) -> None:
    await migrate(engine)
    await engine.run_ddl(f"DROP TABLE {table}")
    assert table in await fault(engine)
    found = await Health(engine).faults()
    assert found.keys() == {"schema"} and table in found["schema"]


async def test_one_version_is_not_named_twice(engine: Engine, program: Folder) -> None:
    program(**later("0907_more", needs="turnkeeper_0907_more"))
    await migrate(engine)
    program()
    for told in (await start_fault(engine), await fault(engine)):
        assert told.count(version()) == 1 and "0907 of a later Turnkeeper, and" in told
    await engine.run_ddl("DELETE FROM migration WHERE name = 'turnkeeper_0907_more'")
    assert "0907 of a later Turnkeeper, and" in await fault(engine)


async def test_a_migration_that_was_edited_after_it_ran_is_noticed(engine: Engine, program: Folder) -> None:
    program(**later("0905_edited"))
    await migrate(engine)
    program(**later("0905_edited", "CREATE TABLE mark (name TEXT, colour TEXT)"))
    assert await migrate(engine) == []
    assert "turnkeeper_0905_edited was changed" in await fault(engine)


async def test_what_a_migration_leaves_for_later_is_done_in_batches_and_again_where_it_was_broken_off(
    engine: Engine, program: Folder
) -> None:
    text = later("0906_batches", "CREATE TABLE mark (name TEXT, colour TEXT NOT NULL DEFAULT '')")["0906_batches"]
    program(**{"0906_batches": text + AFTERWARDS.format(first="raise EOFError")})
    with pytest.raises(EOFError):
        await migrate(engine)
    for name in "abcde":
        await engine.run_ddl(f"INSERT INTO mark (name) VALUES ('{name}')")
    program(**{"0906_batches": text + AFTERWARDS.format(first="pass")})
    assert await migrate(engine) == []
    assert [row["colour"] for row in await engine.run("SELECT DISTINCT colour FROM mark")] == ["green"]
    await engine.run_ddl("UPDATE mark SET colour = ''")
    assert await migrate(engine) == []  # it is finished
    assert [row["colour"] for row in await engine.run("SELECT DISTINCT colour FROM mark")] == [""]


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_those_who_start_at_once_do_not_keep_each_other_from_what_comes_afterwards(
    engine: Engine, program: Folder
) -> None:
    """An index that is built beside the others' work waits for each statement that had begun, for ever if need be."""
    text = later("0906_batches", "CREATE TABLE mark (name TEXT, colour TEXT NOT NULL DEFAULT '')")["0906_batches"]
    program(**{"0906_batches": text + AFTERWARDS.format(first="import asyncio; await asyncio.sleep(0.5)")})
    async with asyncio.timeout(60):
        ran = await asyncio.gather(*(migrate(engine) for _ in range(3)))
    assert sorted(map(len, ran))[:2] == [0, 0]
    assert await fault(engine) == ""


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_a_migration_steps_back_from_a_table_that_others_hold_and_lets_them_go_on(
    engine: Engine, program: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that hold what the other waits for: it was the request that failed, or the start with “deadlock detected”."""
    await migrate(engine)
    monkeypatch.setattr(schema, "LOCK_MS", 50)
    two = "ALTER TABLE login ADD COLUMN colour TEXT; ALTER TABLE draft ADD COLUMN colour TEXT"
    program(**later("0907_two", two))
    attempts = 0
    bring_up = schema._bring_up

    async def counted(engine: Engine) -> list[str]:
        nonlocal attempts
        attempts += 1
        return await bring_up(engine)

    monkeypatch.setattr(schema, "_bring_up", counted)
    async with engine.transaction():
        await engine.run("LOCK TABLE draft IN ROW EXCLUSIVE MODE")
        migrating = asyncio.create_task(migrate(engine))
        while attempts < 3:
            await asyncio.sleep(0.01)
        # What the migration would have locked first is free again and again.
        await engine.run("SELECT count(*) FROM login")
        await engine.run("LOCK TABLE login IN ROW EXCLUSIVE MODE")
    assert await migrating == ["turnkeeper_0907_two"]


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_a_migration_that_finds_no_way_in_says_so(
    engine: Engine, program: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate(engine)
    monkeypatch.setattr(schema, "LOCK_MS", 50)
    monkeypatch.setattr(schema, "PATIENCE_SECONDS", 0.0)
    program(**later("0908_held", "ALTER TABLE draft ADD COLUMN colour TEXT"))
    async with engine.transaction():
        await engine.run("SELECT count(*) FROM draft")
        with pytest.raises(DatabaseUnavailable, match="End long transactions"):
            await asyncio.create_task(migrate(engine))
    assert await migrate(engine) == ["turnkeeper_0908_held"]


@pytest.mark.parametrize("engine", ["postgres"], indirect=True)
async def test_what_was_released_before_locks_all_it_rewrites_at_once_and_no_request_dies_of_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request holds a session and comes to its turn; the migration had changed the turns and came to the session."""
    async with engine.transaction():
        with redirect_stdout(StringIO()):
            assert (await run_forwards("turnkeeper", "turnkeeper_0007_instructions")).success
    monkeypatch.setattr(schema, "LOCK_MS", 50)
    attempts, bring_up = 0, schema._bring_up

    async def counted(engine: Engine) -> list[str]:
        nonlocal attempts
        attempts += 1
        return await bring_up(engine)

    monkeypatch.setattr(schema, "_bring_up", counted)
    async with engine.transaction():
        await engine.run("UPDATE session SET version = version")
        await engine.run("LOCK TABLE session IN ROW EXCLUSIVE MODE")
        migrating = asyncio.create_task(migrate(engine))
        while attempts < 3:
            await asyncio.sleep(0.01)
        await engine.run("LOCK TABLE turn IN ROW EXCLUSIVE MODE")
        await engine.run("LOCK TABLE turn_piece IN ROW EXCLUSIVE MODE")
    assert (await migrating)[0] == "turnkeeper_0008_thoughts"
    assert await fault(engine) == ""

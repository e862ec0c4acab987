"""The schema comes up from every earlier one with its rows, and a migration that is killed has never been."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import asyncpg
import pytest
from piccolo.apps.migrations.commands.forwards import run_forwards

import db.engine
from db.db_session import DbSession
from db.engine import Engine, migrate, open_engine
from db.piccolo_app import APP_CONFIG
from db.tables import TABLES
from services.actor import Actor
from services.catalogue import ModelConfig
from services.client_pool import ClientPool, Provider
from services.configuration import apply_config
from services.event_bus import MemoryEventBus
from services.reads import Reads
from services.session_service import SessionService
from tests.conftest import BEGINNING, an_actor

MIGRATIONS = sorted(path.stem for path in Path(APP_CONFIG.migrations_folder_path).glob("turnkeeper_*.py"))
Fresh = Callable[[], Awaitable[str]]


@pytest.fixture(params=["sqlite", "postgres"])
async def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Fresh]:
    """Makes empty databases."""
    made: list[str] = []
    server = str(request.getfixturevalue("postgres_url")) if request.param == "postgres" else ""

    async def on_server(statement: str) -> None:
        connection = await asyncpg.connect(server)
        await connection.execute(statement)
        await connection.close()

    async def make() -> str:
        made.append(f"migrating_{len(made)}")
        if not server:
            return f"sqlite:///{tmp_path / made[-1]}.db"
        await on_server(f"CREATE DATABASE {made[-1]}")
        return f"{server.rsplit('/', 1)[0]}/{made[-1]}"

    yield make
    for name in made if server else []:
        await on_server(f"DROP DATABASE {name} WITH (FORCE)")


async def tables_of(engine: Engine) -> set[str]:
    catalogue = "sqlite_master" if engine.engine_type == "sqlite" else "pg_catalog.pg_tables"
    name = "name" if engine.engine_type == "sqlite" else "tablename"
    rows = await engine.run(f"SELECT {name} AS name FROM {catalogue}")
    return {row["name"] for row in rows} & {"migration", *(table._meta.tablename for table in TABLES)}


#: what the first schema could hold: a session of ann's with two turns, one of them running when the server was stopped
ROWS = """
INSERT INTO account (id, name, role, group_name, created_at) VALUES ('{ann}', 'ann', 'user', 'user', '{at}');
INSERT INTO session
    (id, owner_id, title, origin, last_model, locked, state, version, created_at, last_activity_at, head_id, turn_count)
    VALUES ('{session}', '{ann}', 'How it began', 'page', 'fast', FALSE, 'active', 1, '{at}', '{at}', '{second}', 2);
INSERT INTO turn
    (id, session_id, owner_id, parent_id, prompt, reply, model, state, prompt_tokens, reply_tokens, estimated,
     cost_nanos, reserved_tokens, reserved_nanos, context_left_out, lease_owner, lease_until, created_at, ended_at)
    VALUES ('{first}', '{session}', '{ann}', NULL, 'Hello', '<think>
  Hm? </think>

Hi there', 'fast', 'done', 1, 2, TRUE, 0, 0, 0, 0, '{ann}',
            '{at}', '{at}', '{at}'),
           ('{second}', '{session}', '{ann}', '{first}', 'And?', NULL, 'fast', 'running', 1, 0, TRUE, 0, 9, 0, 0,
            '{ann}', '{at}', '{at}', NULL);
INSERT INTO turn_piece (turn_id, start, text) VALUES ('{second}', 0, 'shown ');
INSERT INTO journal
    (id, at, actor_kind, actor_name, owner_id, session_id, what, outcome, reason, to_value, version, request_id)
    VALUES ('{first}', '{at}', 'user', 'ann', '{ann}', '{session}', 'model_switched', 'done', '', 'fast', 1, '');
INSERT INTO login (id, account_id, token_hash, created_at, expires_at)
    VALUES ('{first}', '{ann}', 'a hash', '{at}', '2100-01-01 00:00:00+00:00');
UPDATE turn SET cost_nanos = 77 WHERE id = '{first}';
INSERT INTO usage (owner_id, day, tokens, cost_nanos) VALUES ('{ann}', '2026-05-04', 3, 77)
"""
IDS = {
    name: f"01890000-0000-7000-8000-00000000000{number}" for number, name in enumerate(("session", "first", "second"))
}


async def test_45_every_earlier_schema_comes_up_with_its_rows(fresh: Fresh) -> None:
    assert len(MIGRATIONS) > 4
    for earlier in range(1, len(MIGRATIONS) + 1):
        engine, ann = open_engine(await fresh()), an_actor("ann")
        await engine.start()
        async with engine.transaction():
            with redirect_stdout(StringIO()):
                assert (await run_forwards("turnkeeper", MIGRATIONS[0])).success
        for statement in ROWS.format(ann=ann.id, at=str(BEGINNING), **IDS).split(";"):
            await engine.run_ddl(statement)
        async with engine.transaction():
            with redirect_stdout(StringIO()):
                assert (await run_forwards("turnkeeper", MIGRATIONS[earlier - 1])).success
        assert await migrate(engine) == MIGRATIONS[earlier:]
        await whole(engine, ann)
        await engine.stop()


async def whole(engine: Engine, ann: Actor) -> None:
    """The rows of the first schema work under the present one."""
    db_session, now = DbSession(engine), BEGINNING
    pool = ClientPool([Provider(id="builtin", kind="builtin")])
    sessions = SessionService(pool, MemoryEventBus(), now=lambda: now)
    await apply_config([ModelConfig(id="fast", provider="builtin", upstream="echo")], {}, "fast", now, db_session)
    await sessions.sweep(db_session)
    (live,) = (await sessions.list_sessions(db_session, actor=ann)).sessions
    assert (live.title, live.row.last_model, live.state) == ("How it began", "fast", "active")
    found = await Reads(sessions).transcript(live, db_session, actor=ann)
    assert [(turn.prompt, turn.reasoning, turn.reply, turn.state, turn.depth) for turn in found.turns] == [
        ("Hello", "Hm? ", "Hi there", "done", 1),
        ("And?", "", "shown ", "interrupted", 2),
    ]
    # What was used before models were told apart is kept as such; what the sweep has ended came to it.
    used = await db_session.sum_usage("model", now.date(), now.date(), limit=9)
    assert {model: (turns, cost) for model, turns, _, cost in used} == {"": (0, 77), "fast": (1, 0)}
    assert live.row.cost_nanos == 77
    begun = await sessions.begin_turn(live.row.id, "Then?", db_session, actor=ann)
    assert begun.turn.depth == 3
    assert len(await db_session.logins_of(["a hash"], now, BEGINNING.replace(year=2000))) == 1
    await pool.aclose()


KILLED = """
import asyncio, os, sys
from db.engine import migrate, open_engine

async def main():
    engine, calls = open_engine(sys.argv[1]), int(sys.argv[2])
    await engine.start()
    run = engine.run

    async def deadly(sql, args=()):
        nonlocal calls
        found = await run(sql, args)
        calls -= sql.lstrip().startswith(("CREATE", "ALTER"))
        if calls == 0:
            os.kill(os.getpid(), 9)
        return found

    engine.run = deadly
    await migrate(engine)
    await engine.stop()

asyncio.run(main())
"""


async def test_45_a_migration_that_is_killed_has_never_been_and_the_next_one_goes_through(fresh: Fresh) -> None:
    url = await fresh()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for calls in (3, 30):
        killed = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, url, str(calls), env=environment)
        assert await killed.wait() == -9
        engine = open_engine(url)
        await engine.start()
        assert await tables_of(engine) == set()
        await engine.stop()
    engine = open_engine(url)
    await engine.start()
    assert await migrate(engine) == MIGRATIONS
    assert await tables_of(engine) == {"migration", *(table._meta.tablename for table in TABLES)}
    await engine.stop()


@pytest.mark.parametrize("fresh", ["postgres"], indirect=True)
async def test_45_a_migration_takes_as_long_as_it_takes(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that waited for another one's, or a statement over very many rows, was given up after half a minute."""
    url = await fresh()
    monkeypatch.setattr(db.engine, "COMMAND_SECONDS", 2.0)
    other, engine = await asyncpg.connect(url), open_engine(url)
    await other.execute("SELECT pg_advisory_lock(7307199)")
    await engine.start()
    migrating = asyncio.create_task(migrate(engine))
    await asyncio.sleep(3)
    assert not migrating.done()
    await other.close()
    assert await migrating == MIGRATIONS
    await engine.stop()

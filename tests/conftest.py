"""The cast, the clock, and the same storage twice: SQLite and PostgreSQL."""

import asyncio
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import wraps
from inspect import isawaitable, iscoroutinefunction
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import pytest
from piccolo.table import Table

import db.engine
import services.upkeep
from db.db_session import DbSession, new_id
from db.engine import Engine, SqliteEngine, migrate, open_engine
from db.tables import TABLES, Account, AccountGroup, Journal, LimitRule, Model, RefusalCount
from services.actor import Actor
from services.catalogue import ModelConfig
from services.client_pool import ClientPool, Provider
from services.configuration import GroupConfig, apply_config
from services.errors import LimitReached, Refusal
from services.event_bus import Hint, MemoryEventBus
from services.outcomes import TurnOrder
from services.session_service import SessionService
from tests.services.process import PATIENT_SECONDS

pytest_plugins = ["tests.servers", "tests.peers.llama_cpp", "tests.web.running"]

#: the files that take longest: they are begun first, so that no process is left with one of them at the end
LONGEST = (
    "services/test_faults.py",
    "services/test_invariants.py",
    "test_chaos.py",
    "browser/test_axe.py",
    "browser/test_journeys.py",
    "web/test_workers.py",
    "web/test_serve.py",
    "web/test_upgrade.py",
    "web/test_outages.py",
    "services/test_processes.py",
    "web/test_security.py",
    "web/test_fuzz.py",
    "web/test_markdown.py",
    "web/test_command_line.py",
    "test_soak.py",
    "test_canary.py",
    "services/test_turn_runner.py",
    "services/test_moves.py",
)
#: after them, what waits most and starts most programs; what is left at the end is quick
KINDS = ("web/", "browser/", "test_", "peers/", "db/", "services/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent

    def place(item: pytest.Item) -> tuple[int, int]:
        file = item.path.relative_to(tests).as_posix()
        kind = [file.startswith(kind) for kind in KINDS].index(True)
        return LONGEST.index(file) if file in LONGEST else len(LONGEST), kind

    if not os.environ.get("LONG_TESTS"):
        items[:] = [item for item in items if item.get_closest_marker("long") is None]
    items.sort(key=place)


def limit(item: pytest.Function, seconds: float) -> None:
    """Let a test fail that takes longer. A time-out around its fixtures would end the task that all tests share."""
    test = item.obj
    if iscoroutinefunction(test):

        @wraps(test)
        async def in_time(**asked: Any) -> None:
            async with asyncio.timeout(seconds):
                await test(**asked)

        item.obj = in_time


BEGINNING = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.at = BEGINNING

    def __call__(self) -> datetime:
        return self.at

    def pass_(self, **span: float) -> datetime:
        """Let time pass, in the words of timedelta."""
        self.at += timedelta(**span)
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


# ---------------------------------------------------------------- storage


@pytest.fixture(scope="session", autouse=True)
def patient_database() -> Iterator[None]:
    """Writers wait for one another as long as a slow machine makes them. Tests of that time-out set their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(db.engine, "BUSY_SECONDS", PATIENT_SECONDS)
        yield


@pytest.fixture(scope="session")
async def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty SQLite file to copy."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    engine = open_engine(f"sqlite:///{path}")
    await engine.start()
    await migrate(engine)
    await engine.stop()
    return path


@pytest.fixture(scope="session")
async def migrated_postgres(postgres_url: str) -> str:
    """A migrated PostgreSQL database."""
    engine = open_engine(postgres_url)
    await engine.start()
    await migrate(engine)
    await engine.stop()
    return postgres_url


@pytest.fixture(scope="session")
async def tidying(migrated_postgres: str) -> AsyncIterator[asyncpg.Connection]:
    """The connection on which the rows of every test are deleted."""
    connection = await asyncpg.connect(migrated_postgres)
    yield connection
    await connection.close()


@pytest.fixture
async def empty_postgres(migrated_postgres: str, tidying: asyncpg.Connection) -> str:
    """The migrated PostgreSQL database without a row."""
    # Not TRUNCATE, which makes new files: a hundred times slower for a few rows.
    await tidying.execute("; ".join(f"DELETE FROM {table._meta.tablename}" for table in reversed(TABLES)))
    return migrated_postgres


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty, migrated database: every test that asks for one runs on both."""
    if request.param == "postgres":
        return str(request.getfixturevalue("empty_postgres"))
    shutil.copy(request.getfixturevalue("sqlite_template"), tmp_path / "turnkeeper.db")
    return f"sqlite:///{tmp_path / 'turnkeeper.db'}"


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[Engine]:
    engine = open_engine(database_url)
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture
def db_session(engine: Engine) -> DbSession:
    return DbSession(engine)


Everything = Callable[[], Awaitable[dict[str, list[dict[str, Any]]]]]


@pytest.fixture
def everything(engine: Engine) -> Everything:
    """All rows of all tables but the bookkeeping of refusals, to show that a refusal left them as they were."""

    async def rows() -> dict[str, list[dict[str, Any]]]:
        names = [table._meta.tablename for table in TABLES if table is not RefusalCount]
        found = {name: sorted(map(dict, await engine.run(f"SELECT * FROM {name}")), key=repr) for name in names}
        found["journal"] = [row for row in found["journal"] if not row["what"].startswith("refus")]
        return found

    return rows


# ---------------------------------------------------------------- the cast


def an_actor(name: str, role: str = "user", group: str = "") -> Actor:
    id = new_id()
    return Actor(kind=role, id=id, name=name, group=group or role, rate_key=f"account:{id}", role=role)  # type: ignore[arg-type]


@pytest.fixture
def ann() -> Actor:
    """Owns the session in question."""
    return an_actor("ann")


@pytest.fixture
def bob() -> Actor:
    """Another user."""
    return an_actor("bob")


@pytest.fixture
def ada() -> Actor:
    """The admin."""
    return an_actor("ada", "admin")


@pytest.fixture
def guest() -> Actor:
    """A browser without an account."""
    id = new_id()
    return Actor(kind="guest", id=id, name=f"guest-{id.hex[-12:]}", group="guest", rate_key="address:1", role="guest")


@pytest.fixture
def script(ann: Actor) -> Actor:
    """Ann's token."""
    return Actor(
        kind="token", id=ann.id, name="ann", group="user", rate_key=ann.rate_key, scopes=frozenset({"read", "chat"})
    )


# ---------------------------------------------------------------- the service

MODELS = [
    ModelConfig(
        id="fast", provider="builtin", upstream="echo", label="Fast", aliases=["quick"], price_in=1, price_out=2
    ),
    ModelConfig(id="smart", provider="builtin", upstream="echo", label="Smart"),
    ModelConfig(id="hidden", provider="builtin", upstream="echo", label="Hidden", groups=["admin"]),
    ModelConfig(id="off", provider="builtin", upstream="echo", label="Off", state="disabled"),
    ModelConfig(id="old", provider="builtin", upstream="echo", label="Old", state="retired", replacement="smart"),
    ModelConfig(id="aging", provider="builtin", upstream="echo", label="Aging", state="deprecated", replacement="fast"),
    ModelConfig(id="far", provider="down", upstream="far", label="Far"),
    ModelConfig(id="small", provider="builtin", upstream="echo", label="Small", context_tokens=80, max_reply_tokens=8),
]


@pytest.fixture
async def pool() -> AsyncIterator[ClientPool]:
    """The built-in models, and a provider that is down."""
    pool = ClientPool(
        [Provider(id="builtin", kind="builtin"), Provider(id="down", kind="openai", base_url="http://127.0.0.1:9/v1")]
    )
    pool.note("down", False)
    yield pool
    await pool.aclose()


class Orders:
    """Takes down what the service hands to the runner; the tests run turns themselves."""

    def __init__(self) -> None:
        self.started: list[TurnOrder] = []
        self.sought: list[TurnOrder] = []
        self.stopped: list[UUID] = []

    def start(self, order: TurnOrder) -> None:
        self.started.append(order)

    def seek(self, order: TurnOrder) -> None:
        self.sought.append(order)

    def stop(self, turn_id: UUID) -> None:
        self.stopped.append(turn_id)


@pytest.fixture
def orders() -> Orders:
    return Orders()


@pytest.fixture
def bus() -> MemoryEventBus:
    return MemoryEventBus()


@pytest.fixture
def published(bus: MemoryEventBus) -> list[Hint]:
    """Every hint that goes out during the test."""
    seen: list[Hint] = []
    publish = bus.publish

    def noted(hint: Hint) -> None:
        seen.append(hint)
        publish(hint)

    bus.publish = noted  # type: ignore[method-assign]
    return seen


class Configuration:
    """What `turnkeeper.toml` would say, changed bit by bit and applied as a whole."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine, self._clock = engine, clock
        self.models = {model.id: model for model in MODELS}
        self.groups: dict[str, GroupConfig] = {}
        self.default: str | None = "fast"

    async def apply(self) -> None:
        await apply_config(
            list(self.models.values()), self.groups, self.default, self._clock(), DbSession(self._engine)
        )

    async def begin(self) -> None:
        """The first application, to an empty database: always the same rows, so only the first test works them out."""
        if not _FIRST_ROWS:
            await self.apply()
            for table in (Model, AccountGroup, LimitRule, Journal):
                rows = [_plain(row) for row in await table.select()]
                # What the test did before is not part of it.
                _FIRST_ROWS[table] = [row for row in rows if row.get("what", "") in ("", *NOT_OF_SESSIONS)]
        else:
            async with self._engine.transaction():
                for table, rows in _FIRST_ROWS.items():
                    await table.insert(*(table(**row) for row in rows))


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row that the other database takes too: each driver has ids of its own kind."""
    return {name: UUID(str(value)) if isinstance(value, UUID) else value for name, value in row.items()}


_FIRST_ROWS: dict[type[Table], list[dict[str, Any]]] = {}


@pytest.fixture
def configuration(engine: Engine, clock: Clock) -> Configuration:
    return Configuration(engine, clock)


Configure = Callable[..., Awaitable[None]]


@pytest.fixture
def configure(configuration: Configuration) -> Configure:
    """Change a group: `await configure("user", turns="1/min")`."""

    async def change(group: str, **settings: Any) -> None:
        before = configuration.groups.get(group, GroupConfig())
        configuration.groups[group] = msgspec.structs.replace(before, **settings)
        await configuration.apply()

    return change


Offer = Callable[..., Awaitable[None]]


@pytest.fixture
def offer(configuration: Configuration) -> Offer:
    """Change, add or (None) remove models: `await offer(fast={"state": "disabled"}, new={}, smart=None)`."""

    async def change(*, default: str | None = "fast", **models: dict[str, Any] | None) -> None:
        configuration.default = default
        for name, settings in models.items():
            if settings is None:
                del configuration.models[name]
            else:
                known = ModelConfig(id=name, provider="builtin", upstream="echo", label=name.title())
                known = configuration.models.get(name, known)
                configuration.models[name] = msgspec.structs.replace(known, **settings)
        await configuration.apply()

    return change


@pytest.fixture
async def sessions(
    engine: Engine,
    pool: ClientPool,
    bus: MemoryEventBus,
    orders: Orders,
    clock: Clock,
    configuration: Configuration,
    ann: Actor,
    bob: Actor,
    ada: Actor,
) -> SessionService:
    """The service on a catalogue with every state of a model, with ann, bob and ada as accounts."""
    service = SessionService(pool, bus, now=clock)
    service.runner = orders
    db_session = DbSession(engine)
    await configuration.begin()
    for actor in (ann, bob, ada):
        await db_session.add(
            Account(id=actor.id, name=actor.name, role=actor.role, group_name=actor.group, created_at=clock())
        )
    return service


#: what the journal tells of the rules themselves, and of refusals
NOT_OF_SESSIONS = ["configuration_applied", "model_changed", "group_changed", "limit_changed", "refused"]
JournalRows = Callable[..., Awaitable[list[Journal]]]


@pytest.fixture
def journal(engine: Engine) -> JournalRows:
    """The journal's rows of one kind, oldest first; without a kind, all but the configuration's and the refusals."""

    async def rows(what: str = "") -> list[Journal]:
        query = Journal.objects().order_by(Journal.id)
        return await query.where(Journal.what == what if what else Journal.what.not_in(NOT_OF_SESSIONS))

    return rows


@pytest.fixture
def a_copy_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is forked or imported one turn is found at once, and one more after each transaction of a sweep."""
    monkeypatch.setattr(services.upkeep, "INDEXED_TURNS", 1)


#: what the journal tells of a session's model: its first one, and each switch
MODEL_DECISIONS = ["model_chosen", "model_switched"]
Chain = Callable[[UUID], Awaitable[list[str]]]


@pytest.fixture
def chain(engine: Engine) -> Chain:
    """The models a session was put on, in order; fails unless they form one chain that ends at its model (I3).

    The first is chosen, and every other is switched to (S0).
    """

    async def models(session_id: UUID) -> list[str]:
        rows = await Journal.objects().where(Journal.session_id == session_id, Journal.what.is_in(MODEL_DECISIONS))
        assert [row.what == "model_chosen" for row in rows] == [row.from_value is None for row in rows]
        links = [(row.from_value, row.to_value) for row in sorted(rows, key=lambda row: row.version)]
        following = [to for _, to in links]
        assert [before for before, _ in links] == [None, *following][: len(links)]
        session = await DbSession(engine).find_session(session_id, None)
        assert session is not None
        assert session.last_model == (following[-1] if following else None)
        return following

    return models


@pytest.fixture
def other_worker(pool: ClientPool, bus: MemoryEventBus, clock: Clock, orders: Orders) -> SessionService:
    """The service as another process runs it."""
    service = SessionService(pool, bus, now=clock)
    service.runner = orders
    return service


@pytest.fixture
async def session_id(sessions: SessionService, db_session: DbSession, ann: Actor) -> UUID:
    """A session of ann's in which nothing has happened yet."""
    return (await sessions.create_session(db_session, actor=ann)).row.id


class Together:
    """What became of many calls at once."""

    def __init__(self, results: list[Any]) -> None:
        self.done = [result for result in results if not isinstance(result, Refusal)]
        self.refusals = [result for result in results if isinstance(result, Refusal)]
        self.codes = sorted(refusal.code for refusal in self.refusals)


AtOnce = Callable[[int, Callable[[int, DbSession], Awaitable[Any]]], Awaitable[Together]]


@pytest.fixture
def at_once(engine: Engine) -> AtOnce:
    """Do something many times at once, each time with a DbSession of its own."""

    async def together(times: int, do: Callable[[int, DbSession], Awaitable[Any]]) -> Together:
        calls = (do(number, DbSession(engine)) for number in range(times))
        results = await asyncio.gather(*calls, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, Refusal):
                raise result
        return Together(list(results))

    return together


class Told:
    """What a refused caller is told."""

    refusal: Refusal

    @property
    def facts(self) -> dict[str, Any]:
        return self.refusal.facts

    @property
    def wait(self) -> timedelta:
        """How long a refused caller is asked to wait."""
        assert isinstance(self.refusal, LimitReached)
        return timedelta(seconds=self.refusal.retry_after_seconds)


Refused = Callable[[str], AbstractAsyncContextManager[Told]]


@pytest.fixture
def refused(everything: Everything, published: list[Hint], orders: Orders) -> Refused:
    """What follows is refused with a code, and changes no row, publishes no hint and orders nothing."""

    @asynccontextmanager
    async def refused(code: str) -> AsyncIterator[Told]:
        before, hints, ordered = await everything(), list(published), (list(orders.started), list(orders.stopped))
        told = Told()
        with pytest.raises(Refusal) as raised:
            yield told
        told.refusal = raised.value
        assert raised.value.code == code, raised.value
        assert await everything() == before
        assert published == hints
        assert (orders.started, orders.stopped) == ordered

    return refused


Until = Callable[[Callable[[], Any]], Awaitable[None]]


@pytest.fixture
def until() -> Until:
    """Wait until something holds; what comes in between is real."""

    async def wait(holds: Callable[[], Any]) -> None:
        async with asyncio.timeout(60):
            while not (await result if isawaitable(result := holds()) else result):
                await asyncio.sleep(0.002)

    return wait


Waits = Callable[[], Awaitable[None]]


@pytest.fixture
def waits(engine: Engine, until: Until) -> Waits:
    """Wait until somebody waits for what another transaction holds."""

    async def one_does() -> bool:
        if isinstance(engine, SqliteEngine):
            return bool(engine.writing._waiters)
        sql = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        return bool(await engine.run(sql))

    return lambda: until(one_does)


StorageFails = Callable[[str], AbstractAsyncContextManager[None]]


@pytest.fixture
def storage_fails(engine: Engine) -> StorageFails:
    """The real database fails meanwhile: at an INSERT into a table, as a full disk does, or at "commit"."""

    @asynccontextmanager
    async def sqlite(place: str) -> AsyncIterator[None]:
        def judge(action: int, first: str | None, *_: object) -> int:
            inserts = action == sqlite3.SQLITE_INSERT and first == place
            commits = action == sqlite3.SQLITE_TRANSACTION and first == "COMMIT" and place == "commit"
            return sqlite3.SQLITE_DENY if inserts or commits else sqlite3.SQLITE_OK

        assert isinstance(engine, SqliteEngine)
        writer = await engine.writer()
        await writer.set_authorizer(judge)
        try:
            yield
        finally:
            await writer.set_authorizer(None)

    @asynccontextmanager
    async def postgres(place: str) -> AsyncIterator[None]:
        table = "journal" if place == "commit" else place
        await engine.run_ddl(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'the disk is full' USING ERRCODE = 'disk_full'; END $$"
        )
        deferred = "DEFERRABLE INITIALLY DEFERRED" if place == "commit" else "NOT DEFERRABLE"
        await engine.run_ddl(
            f"CREATE CONSTRAINT TRIGGER fail AFTER INSERT ON {table} {deferred} FOR EACH ROW EXECUTE FUNCTION fail()"
        )
        try:
            yield
        finally:
            await engine.run_ddl("DROP FUNCTION fail CASCADE")

    return sqlite if engine.engine_type == "sqlite" else postgres


@pytest.fixture(autouse=True)
def no_leftover_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Settings of the machine must not leak into a test."""
    import os

    for name in list(os.environ):
        if name.startswith("TURNKEEPER_") or name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
            monkeypatch.delenv(name)
    yield

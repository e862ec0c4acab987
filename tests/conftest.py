"""The cast, the clock, and the same storage twice: SQLite and PostgreSQL."""

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from db.db_session import DbSession, new_id
from db.engine import Engine, migrate, open_engine
from db.tables import TABLES, Account, Journal
from services.actor import Actor
from services.catalogue import ModelConfig
from services.client_pool import ClientPool, Provider
from services.event_bus import Hint, MemoryEventBus
from services.rules import GroupConfig, apply_config
from services.outcomes import TurnOrder
from services.session_service import SessionService

pytest_plugins = ["tests.servers", "tests.peers.llama_cpp", "tests.web.running"]

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


@pytest.fixture
async def empty_postgres(migrated_postgres: str) -> str:
    """The migrated PostgreSQL database without a row."""
    connection = await asyncpg.connect(migrated_postgres)
    await connection.execute(f"TRUNCATE {', '.join(table._meta.tablename for table in TABLES)}")
    await connection.close()
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


@pytest.fixture
def everything(engine: Engine) -> Callable[[], Awaitable[dict[str, list[dict[str, Any]]]]]:
    """All rows of all tables, to show that a refusal left them as they were."""

    async def rows() -> dict[str, list[dict[str, Any]]]:
        return {
            table._meta.tablename: sorted((dict(row) for row in await table.select()), key=repr) for table in TABLES
        }

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
    ModelConfig(id="small", provider="builtin", upstream="echo", label="Small", context_tokens=40, max_reply_tokens=8),
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
        self.stopped: list[UUID] = []

    def start(self, order: TurnOrder) -> None:
        self.started.append(order)

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


@pytest.fixture
async def sessions(
    engine: Engine,
    pool: ClientPool,
    bus: MemoryEventBus,
    orders: Orders,
    clock: Clock,
    ann: Actor,
    bob: Actor,
    ada: Actor,
) -> SessionService:
    """The service on a catalogue with every state of a model, with ann, bob and ada as accounts."""
    service = SessionService(pool, bus, now=clock)
    service.runner = orders
    db_session = DbSession(engine)
    await apply_config(MODELS, {}, "fast", db_session)
    for actor in (ann, bob, ada):
        await db_session.add(
            Account(id=actor.id, name=actor.name, role=actor.role, group_name=actor.group, created_at=clock())
        )
    return service


Configure = Callable[..., Awaitable[None]]


@pytest.fixture
def configure(engine: Engine) -> Configure:
    """Change the limits of a group: `await configure("user", turns="1/min")`."""

    async def change(group: str, **limits: Any) -> None:
        await apply_config(MODELS, {group: GroupConfig(**limits)}, "fast", DbSession(engine))

    return change


@pytest.fixture
def journal(engine: Engine) -> Callable[..., Awaitable[list[Journal]]]:
    """The journal's rows of one kind, oldest first."""

    async def rows(what: str = "") -> list[Journal]:
        query = Journal.objects().order_by(Journal.id)
        return await (query.where(Journal.what == what) if what else query)

    return rows


@pytest.fixture(autouse=True)
def no_leftover_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Settings of the machine must not leak into a test."""
    import os

    for name in list(os.environ):
        if name.startswith("TURNKEEPER_") or name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
            monkeypatch.delenv(name)
    yield

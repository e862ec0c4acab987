"""Who visits: browsers without an account, scripts with a token; and a second server, whose limits are tight."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count

import asyncpg
import httpx
import pytest

from tests.web.running import AGING, Server, a_server
from tests.web.wire import BROWSER, JSON

#: a closed port of ours: whoever asks there is refused at once
NOBODY = "http://127.0.0.1:9/v1"

GOVERNED = f"""
default_model = "fast"

[[providers]]
id = "down"
kind = "openai"
base_url = "{NOBODY}"
api_key = "sk-canary-of-the-provider"

[[models]]
id = "fast"
provider = "builtin"
upstream = "echo"
label = "Fast"
aliases = ["quick"]
price_in = 1.0
price_out = 2.0

[[models]]
id = "smart"
provider = "builtin"
upstream = "echo"
label = "Smart"

[[models]]
id = "hidden"
provider = "builtin"
upstream = "echo"
label = "Hidden"
groups = ["admin"]

[[models]]
id = "off"
provider = "builtin"
upstream = "echo"
label = "Off"
state = "disabled"
replacement = "fast"

[[models]]
id = "old"
provider = "builtin"
upstream = "echo"
label = "Old"
state = "retired"
replacement = "smart"

{AGING}
[[models]]
id = "far"
provider = "down"

[[models]]
id = "small"
provider = "builtin"
upstream = "echo"
context_tokens = 40
max_reply_tokens = 8

[groups.guest]
sessions_created = "2/min burst 3"
turns = "2/min burst 2"
switches = "2/min burst 2"
concurrent_turns = 1
open_sessions = 3

[groups.user]
sessions_created = "6000/min burst 1000"
turns = "6000/min burst 1000"
switches = "6000/min burst 1000"

[groups.brief]
idle = "2s"

[groups.capped]
idle = "1h"
absolute = "1h"

[groups.poor]
tokens_per_day = 5000
"""


# ---------------------------------------------------------------- on the server that everything shares


@pytest.fixture
def guest(server: Server) -> Iterator[httpx.Client]:
    """A browser without an account that asks for JSON, as the scripts of a page would."""
    with server.guest(Accept=JSON) as client:
        yield client


@pytest.fixture
def stranger(server: Server) -> Iterator[httpx.Client]:
    """Another guest, who knows his own name too."""
    with server.guest(Accept=JSON) as client:
        client.get("/models")
        yield client


@pytest.fixture
def visitor(server: Server) -> Iterator[httpx.Client]:
    """A browser without an account that shows pages."""
    with server.guest(Accept=BROWSER) as client:
        yield client


@pytest.fixture
def ann(server: Server, ann_token: str) -> Iterator[httpx.Client]:
    """A script of the user ann."""
    with server.script(ann_token) as client:
        yield client


@pytest.fixture
def ada(server: Server, admin_token: str) -> Iterator[httpx.Client]:
    """A script of the admin ada."""
    with server.script(admin_token) as client:
        yield client


# ---------------------------------------------------------------- on the server with tight limits


@pytest.fixture(scope="session")
def governed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with every kind of model and tight limits; a test may say which address it comes from."""
    with a_server(tmp_path_factory.mktemp("governed"), GOVERNED, TURNKEEPER_TRUSTED_PROXIES="127.0.0.1") as running:
        yield running


_addresses = count(1)


@pytest.fixture
def newcomer(governed: Server) -> Iterator[Callable[..., httpx.Client]]:
    """Makes browsers on `governed`; each comes from an address of its own, so each has fresh limits."""
    made: list[httpx.Client] = []

    def come(accept: str = JSON, address: str = "", **headers: str) -> httpx.Client:
        number = next(_addresses)
        address = address or f"10.1.{number // 250}.{number % 250 + 1}"
        made.append(governed.guest(Accept=accept, **{"X-Forwarded-For": address, **headers}))
        return made[-1]

    yield come
    for client in made:
        client.close()


@pytest.fixture
def pass_(governed: Server) -> Callable[[float], None]:
    """Let so many seconds pass for everybody's rates on `governed`: no machine is too slow to be too fast meanwhile."""

    def pass_seconds(seconds: float) -> None:
        with closing(sqlite3.connect(governed.folder / "var" / "turnkeeper.db", timeout=60)) as database, database:
            database.execute("UPDATE rate_bucket SET tat_us = tat_us - ?", [int(seconds * 1_000_000)])

    return pass_seconds


@pytest.fixture(scope="session")
def tokens(governed: Server) -> dict[str, str]:
    """A token of everybody who has an account on `governed`; all have the same password."""
    return governed.people("bob", "boss:admin", "brie::brief", "cap::capped", "pia::poor", "kim", "liz", "ola")


@pytest.fixture
def bob(governed: Server, tokens: dict[str, str]) -> Iterator[httpx.Client]:
    """A script of the user bob on `governed`."""
    with governed.script(tokens["bob"]) as client:
        yield client


@pytest.fixture
def boss(governed: Server, tokens: dict[str, str]) -> Iterator[httpx.Client]:
    """A script of the admin of `governed`."""
    with governed.script(tokens["boss"]) as client:
        yield client


# ---------------------------------------------------------------- on PostgreSQL


@pytest.fixture(scope="session")
def postgres_server(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on an empty PostgreSQL database of its own, which it migrates."""

    def run(statement: str) -> None:
        async def whole() -> None:
            connection = await asyncpg.connect(postgres_url)
            await connection.execute(statement)
            await connection.close()

        asyncio.run(whole())

    run("CREATE DATABASE serving")
    url = postgres_url.rsplit("/", 1)[0] + "/serving"
    with a_server(tmp_path_factory.mktemp("postgres"), TURNKEEPER_DATABASE_URL=url) as running:
        yield running
    run("DROP DATABASE serving WITH (FORCE)")

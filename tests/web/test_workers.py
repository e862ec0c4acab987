"""Several processes on one PostgreSQL: two workers under one parent, and a server of its own, as on another machine."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from textwrap import dedent
from typing import Any

import asyncpg
import httpx
import pytest
from redis.asyncio import Redis

from tests.servers import free_port
from tests.web import wire
from tests.web.people import PASSWORD
from tests.web.running import PLAIN, SETTINGS, Server
from tests.web.wire import (
    BROWSER,
    HTMX,
    JSON,
    SENT_AWAY_SECONDS,
    SOON,
    begin,
    chat,
    create,
    ended,
    follow,
    session_of,
    streaming,
    text_of,
    turn_of,
    within,
)

LONG = bool(os.environ.get("LONG_TESTS"))
SECRET = "a secret that both machines share, long enough"


class Upstream(ThreadingHTTPServer):
    """A provider that answers whatever it is asked with nothing, until it is gone."""

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), self.Answering)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def go(self) -> None:
        self.shutdown()
        self.server_close()


class Cluster:
    """One database, the servers on it, and a provider that both can reach."""

    def __init__(self, url: str, redis: str, folder: Path) -> None:
        self.url, self.redis = url, redis
        self.upstream = Upstream()
        self.first, self.second = (self._server(folder / name) for name in ("first", "second"))
        self.first.arguments = ("--workers", "2")
        self.both = (self.first, self.second)

    def _server(self, folder: Path) -> Server:
        folder.mkdir()
        settings = {"DATABASE_URL": self.url, "REDIS_URL": self.redis, "SECRET_KEY": SECRET}
        near = f"""
            [[providers]]
            id = "near"
            kind = "openai"
            base_url = "http://127.0.0.1:{self.upstream.server_port}/v1"
            [[models]]
            id = "far"
            provider = "near"
        """
        known = {f"TURNKEEPER_{name}": value for name, value in settings.items()}
        server = Server(folder, SETTINGS + dedent(near), **known)
        server.forked = False
        return server

    def rows(self, statement: str, *values: Any) -> list[Any]:
        """Straight from the database."""
        return rows(self.url, statement, *values)

    @property
    def workers(self) -> list[int]:
        """The processes that serve under the first one's parent."""
        assert self.first.process is not None
        return children(self.first.process.pid)


def rows(url: str, statement: str, *values: Any) -> list[Any]:
    async def whole() -> list[Any]:
        connection = await asyncpg.connect(url)
        try:
            return list(await connection.fetch(statement, *values))
        finally:
            await connection.close()

    # In a thread of its own: the async tests have a loop in this one.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(whole())).result()


def children(parent: int) -> list[int]:
    """The workers among a process's children; Python's own keeper of resources is another one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, stat = (folder / "cmdline").read_bytes(), (folder / "stat").read_text()
        except OSError:
            continue  # it has just ended
        if b"spawn_main" in command and int(stat.rpartition(")")[2].split()[1]) == parent:
            found.append(int(folder.name))
    return sorted(found)


def alive(pid: int) -> bool:
    """Whether a process still runs; one that only waits to be buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(holds: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.02)


@pytest.fixture(scope="module", params=["postgres", *(["redis"] if LONG else [])])
def started(
    request: pytest.FixtureRequest, postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """The servers, which these tests stop, kill and start again."""
    rows(postgres_url, "CREATE DATABASE several")
    redis = request.getfixturevalue("redis_url") if request.param == "redis" else ""
    cluster = Cluster(postgres_url.rsplit("/", 1)[0] + "/several", redis, tmp_path_factory.mktemp("cluster"))
    try:
        with ThreadPoolExecutor(2) as pool:  # both at once: both migrate, and both configure
            list(pool.map(Server.start, cluster.both))
        yield cluster
    finally:
        for server in cluster.both:
            if server.process is not None and server.process.poll() is None:
                server.stop()
        cluster.upstream.go()
        rows(postgres_url, "DROP DATABASE several WITH (FORCE)")
    for server in cluster.both:
        if server.noise:
            pytest.fail(f"the server complained:\n{server.output}", pytrace=False)


@pytest.fixture
def cluster(started: Cluster) -> Cluster:
    """All of them, running."""
    for server in started.both:
        if server.process is None or server.process.poll() is not None:
            server.start()
    wait_until(lambda: len(started.workers) == 2)
    return started


@pytest.fixture
def ann(cluster: Cluster) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """A guest with one cookie, at the first server and at the second."""
    with cluster.first.guest(Accept=JSON) as here, cluster.second.guest(Accept=JSON) as there:
        create(here)
        there.cookies.update(here.cookies)
        yield here, there


@pytest.fixture(scope="module")
def tokens(started: Cluster) -> dict[str, str]:
    """Of ann and bob, who are known to both servers."""
    return started.first.people("ann", "bob")


class Watcher(threading.Thread):
    """Somebody who follows a session, and when what was shown."""

    def __init__(self, client: httpx.Client, url: str, *, page: bool = False, after: str = "") -> None:
        super().__init__(daemon=True)
        self._client, self.url, self._page, self._after = client, url, page, after
        self.shown: list[tuple[float, str, str]] = []
        self.text, self.broken, self.port = "", False, 0
        self.attached = threading.Event()

    def run(self) -> None:
        try:
            headers = HTMX if self._page else {}
            with streaming(self._client, self.url, headers=headers, after=self._after) as stream:
                network = stream.response.extensions["network_stream"]
                self.port = network.get_extra_info("client_addr")[1]
                self.attached.set()
                for event in stream:
                    if event.name == "delta":
                        self.text += event.json["text"]
                    self.shown.append((time.monotonic(), event.name, event.data))
                    if event.name == "end":
                        break
        except httpx.TransportError:
            self.broken = True

    def when(self, what: str) -> float | None:
        """When something was shown first."""
        return next((at for at, name, data in self.shown if what in f"{name} {data}"), None)


@contextmanager
def watching(*watchers: Watcher) -> Iterator[None]:
    """From the moment on when all of them are let in; at the end all of them have ended."""
    for watcher in watchers:
        watcher.start()
    for watcher in watchers:
        assert watcher.attached.wait(20)
    yield
    for watcher in watchers:
        watcher.join(20)
        assert not watcher.is_alive()


# ---------------------------------------------------------------- start


def test_several_start_at_once_and_each_greets_once(cluster: Cluster) -> None:
    for server in cluster.both:
        assert server.output.count("Turnkeeper is at") == 1
        assert server.output.count("/setup/") == 1
    assert len(set(cluster.workers)) == 2
    assert len(cluster.rows("SELECT 1 FROM journal WHERE what = 'configuration_applied'")) == 1
    # One socket: whoever connects reaches one of them, and over time all of them.
    told: set[int | None] = set()
    wait_until(lambda: told.add(served_by(cluster)) or len(told) == 2)
    assert told == set(cluster.workers)


def served_by(cluster: Cluster) -> int | None:
    """The process that took a new connection, as the kernel sees it."""
    with socket.create_connection(("127.0.0.1", cluster.first.port)) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        return taken(cluster).get(connection.getsockname()[1])


def taken(cluster: Cluster) -> dict[int, int]:
    """{port of who has connected to the first server: the process that serves it}."""
    ends = re.compile(rf"0100007F:{cluster.first.port:04X} 0100007F:([0-9A-F]{{4}}) 01 ")
    sockets = {
        line.split()[9]: int(found[1], 16)
        for line in Path("/proc/net/tcp").read_text().splitlines()
        if (found := ends.search(line))
    }
    served = {}
    for pid in cluster.workers:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                inode = str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]")
                if inode in sockets:
                    served[sockets[inode]] = pid
    return served


def test_workers_of_whom_none_can_start_are_not_started_for_ever(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import socket\n"
        "from web.settings import Settings\nfrom web.welcome import Models\nfrom web.workers import *\n"
        "if __name__ == '__main__':\n"
        f"    settings = Settings(database_url='postgresql://127.0.0.1:{free_port()}/x', secret_key='x' * 32)\n"
        "    listener = socket.create_server(('127.0.0.1', 0))\n"
        "    try:\n"
        "        Workers(1, settings, Models([], [], None, []), listener, lambda: print('ready')).serve()\n"
        "    except NoneStarted:\n"
        "        print('none started')\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "none started\n", done.stdout + done.stderr
    assert done.returncode == 0


#: a parent with its log counted; `break_schema` lets no worker start any more
PARENT = """
import asyncio, logging, os, signal, socket, threading
import asyncpg, web.workers
from db.engine import migrate, open_engine
from web.settings import Settings
from web.welcome import Models

URL = {url!r}
web.workers.STARTS, web.workers.PAUSE_SECONDS = 2, (0.05, 0.05)
ended = []

class Counting(logging.Handler):
    def emit(self, record):
        if "has ended" in record.getMessage():
            ended.append(record.args[0])
            one_ended(len(ended))

def kill(place):
    os.kill(parent._places[place].process.pid, signal.SIGKILL)

def run(statement):
    async def whole():
        connection = await asyncpg.connect(URL)
        await connection.execute(statement)
        await connection.close()
    asyncio.run(whole())

def break_schema():
    run("INSERT INTO migration (name, app_name) VALUES ('turnkeeper_9999_later', 'turnkeeper')")
    run("INSERT INTO applied_migration (name, sha256, needs, program, finished)"
        " VALUES ('turnkeeper_9999_later', '', 'turnkeeper_9999_later', '9.0', TRUE)")

def mend_schema():
    run("DELETE FROM applied_migration WHERE name = 'turnkeeper_9999_later'")
    run("DELETE FROM migration WHERE name = 'turnkeeper_9999_later'")

async def prepare():
    engine = open_engine(URL)
    await engine.start()
    await migrate(engine)
    await engine.stop()

{story}

if __name__ == "__main__":
    asyncio.run(prepare())
    logging.getLogger("web.workers").addHandler(Counting())
    settings = Settings(database_url=URL, secret_key="x" * 32)
    listener = socket.create_server(("127.0.0.1", 0))
    parent = web.workers.Workers({number}, settings, Models([], [], None, []), listener, ready)
    try:
        parent.serve()
        print("stopped", len(ended))
    except web.workers.NoneStarted:
        print("none started", len(ended))
"""


def told_by_a_parent(postgres_url: str, folder: Path, number: int, story: str) -> str:
    """What a parent of so many workers says at its end."""
    rows(postgres_url, "CREATE DATABASE unstartable")
    program = folder / "program.py"
    program.write_text(
        PARENT.format(url=postgres_url.rsplit("/", 1)[0] + "/unstartable", number=number, story=dedent(story))
    )
    try:
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
        assert "the database cannot be used: The database has the schema 9999 of a later" in done.stderr
        return done.stdout
    finally:
        rows(postgres_url, "DROP DATABASE unstartable WITH (FORCE)")


def test_a_parent_ends_when_no_worker_can_start_any_more_and_not_while_one_serves(
    postgres_url: str, tmp_path: Path
) -> None:
    story = """
    def ready():
        threading.Thread(target=break_once_both_serve).start()

    def break_once_both_serve():
        while not all(place._served for place in parent._places):
            threading.Event().wait(0.02)
        break_schema()
        kill(0)

    def one_ended(number):
        if number == 4:  # the one that was killed, and three of its successors
            print("one serves")
            kill(1)
    """
    told = told_by_a_parent(postgres_url, tmp_path, 2, story)
    assert told.startswith("one serves\nnone started"), told


def test_a_worker_that_can_start_again_in_time_keeps_the_parent(postgres_url: str, tmp_path: Path) -> None:
    story = """
    def ready():
        break_schema()
        kill(0)

    def one_ended(number):
        if number == 2:
            mend_schema()
            threading.Thread(target=stop_once_it_serves).start()

    def stop_once_it_serves():
        while not parent._places[0]._served:
            threading.Event().wait(0.02)
        print("failed", parent._places[0].failed_starts)
        os.kill(os.getpid(), signal.SIGTERM)
    """
    assert told_by_a_parent(postgres_url, tmp_path, 1, story) == "failed 0\nstopped 2\n"


# ---------------------------------------------------------------- in step


def test_S12_two_tabs_two_browsers_and_a_script_on_different_workers_stay_in_step(
    cluster: Cluster, ann: tuple[httpx.Client, httpx.Client]
) -> None:
    here, there = ann
    session_id = create(here, title="first")["id"]
    url = f"/session/{session_id}/events"
    pages = [Watcher(client, url, page=True) for client in (here, here, here, there, there)]
    scripts = [Watcher(client, url) for client in (here, there)]
    with watching(*pages, *scripts):
        turn = begin(here, "/tokens 5000 /delay 10ms", session_id=session_id)
        everybody: list[Watcher] = [*pages, *scripts]
        wait_until(lambda: all(watcher.when("tok1") for watcher in everybody))
        for client, path, body, shown in (
            (there, "/models/switch", {"session_id": session_id, "model": "smart"}, "mart"),
            (here, f"/session/{session_id}/rename", {"title": "second"}, "second"),
            (there, f"/session/{session_id}/rename", {"title": "third"}, "third"),
        ):
            began = time.monotonic()
            client.post(path, json=body).raise_for_status()
            wait_until(lambda: all(watcher.when(shown) for watcher in everybody))  # noqa: B023
            late = [(watcher.when(shown) or 0) - began for watcher in everybody]
            assert max(late) < SOON, (shown, late)
            print(f"{shown}: {max(late) * 1000:.0f} ms after it was asked for")
        wait_until(lambda: all(watcher.when("tok59") for watcher in everybody))
        # The scripts leave at the end of the reply, so it is written until here.
        there.post(f"/chat/{turn['id']}/stop", json={}).raise_for_status()
        kept = turn_of(here, turn["id"])
        wait_until(lambda: all(watcher.when("end ") for watcher in scripts))
        began = time.monotonic()
        there.post(f"/session/{session_id}/delete", json={}).raise_for_status()
        wait_until(lambda: all(watcher.when("gone") for watcher in pages))
        assert time.monotonic() - began < SOON
    assert kept["state"] == "stopped"
    assert scripts[0].text == scripts[1].text == kept["reply"]


def test_G7_a_stop_from_another_process_ends_a_silent_turn(
    cluster: Cluster, ann: tuple[httpx.Client, httpx.Client]
) -> None:
    here, there = ann
    for writing, stopping in ((here, there), (there, here)):
        turn = begin(writing, "/hang after 2")
        watchers = [Watcher(client, f"/chat/{turn['id']}/events") for client in ann]
        with watching(*watchers):
            wait_until(lambda: all(watcher.when("tok1") or watcher.text for watcher in watchers))  # noqa: B023
            stopping.post(f"/chat/{turn['id']}/stop", json={}).raise_for_status()
        for client in ann:
            assert turn_of(client, turn["id"])["state"] == "stopped"
        assert {watcher.text for watcher in watchers} == {turn_of(here, turn["id"])["reply"]}
        # Its place is free at once, wherever one asks.
        assert chat(writing, "and on", session_id=turn["session_id"])["state"] == "done"


@contextmanager
def wires_cut(cluster: Cluster) -> Iterator[None]:
    """Meanwhile no connection that carries live events lasts."""
    over = threading.Event()

    async def postgres() -> None:
        connection = await asyncpg.connect(cluster.url)
        while not over.is_set():
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'turnkeeper events' AND datname = current_database()"
            )
            await asyncio.sleep(0.01)
        await connection.close()

    async def redis() -> None:
        async with Redis.from_url(cluster.redis) as client:
            while not over.is_set():
                await client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                await asyncio.sleep(0.01)

    cutting = threading.Thread(target=lambda: asyncio.run(redis() if cluster.redis else postgres()), daemon=True)
    cutting.start()
    yield
    over.set()
    cutting.join()


def test_with_the_bus_dead_everything_arrives_and_only_later(
    cluster: Cluster, ann: tuple[httpx.Client, httpx.Client]
) -> None:
    here, there = ann
    session_id = create(here)["id"]
    url = f"/session/{session_id}/events"
    watchers = [Watcher(client, url) for client in (here, here, there)]
    with wires_cut(cluster), watching(*watchers):
        turn = begin(there, "/tokens 1000 /delay 30ms", session_id=session_id)
        wait_until(lambda: all(watcher.text for watcher in watchers))
        began = time.monotonic()
        here.post("/models/switch", json={"session_id": session_id, "model": "smart"}).raise_for_status()
        wait_until(lambda: all(watcher.when('"last_model":"smart"') for watcher in watchers))
        assert time.monotonic() - began < 3 * SOON
        here.post(f"/chat/{turn['id']}/stop", json={}).raise_for_status()
    kept = turn_of(here, turn["id"])
    assert kept["state"] == "stopped"
    assert {watcher.text for watcher in watchers} == {kept["reply"]}
    assert "come late" in cluster.second.output
    wait_until(lambda: "come again" in cluster.second.output)


def test_O4_who_loses_the_right_is_refused_and_its_streams_end_in_every_process(cluster: Cluster) -> None:
    """SECURITY 7: an account disabled, a role changed, a token revoked, a login ended by its owner and by an admin."""
    tokens = cluster.first.people("root:admin", "dan", "eva:admin", "fay", "gus", "hal")
    lost = {}
    with ExitStack() as stack:
        everywhere = {
            name: [stack.enter_context(server.guest(Accept=JSON)) for server in cluster.both]
            for name in ("dan", "eva", "gus", "hal")
        }
        for name, (here, there) in everywhere.items():
            assert here.post("/login", data={"name": name, "password": PASSWORD}).status_code == 303
            there.cookies.update(here.cookies)
            here.cookies.delete("tk_guest")
            there.cookies.delete("tk_guest")
        everywhere["fay"] = [stack.enter_context(server.script(tokens["fay"])) for server in cluster.both]
        root = stack.enter_context(cluster.first.script(tokens["root"]))
        watchers = []
        for name, clients in everywhere.items():
            session_id = create(clients[0])["id"]
            urls = [f"/session/{session_id}/events", *(["/admin/events"] if name == "eva" else [])]
            watchers += [Watcher(client, url) for client in clients for url in urls]
        dans = watchers[0].url
        ids = {account["name"]: account["id"] for account in root.get("/admin/accounts").json()["accounts"]}
        fays = root.get(f"/admin/accounts/{ids['fay']}").json()["tokens"][0]["id"]
        with watching(*watchers):
            while {taken(cluster).get(watcher.port) for watcher in watchers} < {*cluster.workers, None}:
                watchers.append(Watcher(everywhere["dan"][0], dans))
                stack.enter_context(watching(watchers[-1]))
            with within(SENT_AWAY_SECONDS, *cluster.both):
                for url, fields in (
                    ("/admin/accounts/change", {"account_id": ids["dan"], "disabled": True, "reason": "r"}),
                    ("/admin/accounts/change", {"account_id": ids["eva"], "role": "user"}),
                    ("/account/tokens/revoke", {"token_id": fays, "reason": "r"}),
                    ("/account/logins/revoke", {"account_id": ids["hal"], "reason": "r"}),
                ):
                    root.post(url, json=fields).raise_for_status()
                everywhere["gus"][1].post("/logout", json={})
                for name, clients in everywhere.items():
                    url = "/admin" if name == "eva" else "/account"
                    lost[name] = {client.get(url).status_code for client in clients for _ in range(4)}
                wait_until(lambda: all(watcher.when("gone") for watcher in watchers))
    assert lost == {"dan": {401}, "eva": {403}, "fay": {401}, "gus": {401}, "hal": {401}}


@pytest.mark.usefixtures("tokens")
def test_who_signs_in_at_one_is_known_at_the_other_until_signed_out(cluster: Cluster) -> None:
    with cluster.first.guest(Accept=JSON) as here, cluster.second.guest(Accept=JSON) as there:
        here.post("/login", data={"name": "bob", "password": PASSWORD})
        there.cookies.update(here.cookies)
        assert create(there)["owner"]["name"] == "bob"
        there.post("/logout", json={})
        assert create(here)["owner"]["name"] != "bob"


def test_M8_a_provider_that_one_process_cannot_reach_is_down_in_all(
    cluster: Cluster, ann: tuple[httpx.Client, httpx.Client]
) -> None:
    here, there = ann

    def up(client: httpx.Client) -> bool | None:
        models = {model["id"]: model for model in client.get("/models").json()["models"]}
        found: bool | None = models["far"]["provider_up"]
        return found

    wait_until(lambda: {up(client) for client in ann for _ in range(8)} == {True})
    cluster.upstream.go()
    told = there.post("/chat", json={"prompt": "x", "model": "far"}).json()
    # A probe of any of them may have found out just before.
    assert (told.get("error") or told)["code"] in ("provider_unreachable", "model_unavailable")
    wait_until(lambda: {up(client) for client in ann for _ in range(8)} == {False}, SOON)
    for _ in range(8):
        refusal = here.post("/chat", json={"prompt": "x", "model": "far"})
        assert (refusal.status_code, refusal.json()["code"]) == (503, "model_unavailable")


def test_sessions_go_on_wherever_they_are_asked_for(cluster: Cluster, ann: tuple[httpx.Client, httpx.Client]) -> None:
    here, there = ann
    session_id = create(here)["id"]
    before: str | None = None
    for number, client in enumerate((here, there, there, here)):
        turn = chat(client, f"{number}", session_id=session_id)
        assert turn["parent_id"] == before
        before = turn["id"]
    assert session_of(here, session_id) == session_of(there, session_id)
    with httpx.Client(verify=PLAIN) as anybody:
        for server in cluster.both:
            assert anybody.get(f"{server.url}/readyz").status_code == 200


def test_53_what_took_one_process_too_long_to_render_is_tried_by_no_other(
    cluster: Cluster, ann: tuple[httpx.Client, httpx.Client]
) -> None:
    here, there = ann
    session_id = create(here)["id"]
    chat(here, f"```c\na{' ' * 15_000}\n```\n\n```python\ndef good(): pass\n```", session_id=session_id)
    pages = []
    for client in (here, there, there, here):
        with client.stream("GET", f"/session/{session_id}", headers={"Accept": BROWSER, "Connection": "close"}) as page:
            pages.append(page.read().decode())
    for page in pages:
        assert page.count('<div class="code">') == 2
        assert page.count('class="hl-keyword"') == 2, "def and pass"
    said = "".join(server.output for server in cluster.both)
    assert said.count("a block of code took too long") == 1


# ---------------------------------------------------------------- death


def test_G5_a_worker_that_is_killed_is_replaced_and_its_turns_are_free_at_once(
    cluster: Cluster, ann: tuple[httpx.Client, httpx.Client]
) -> None:
    here, there = ann
    turns = [begin(here, "/tokens 5000 /delay 10ms") for _ in range(4)]
    watchers = [Watcher(there, f"/chat/{turn['id']}/events") for turn in turns]
    with watching(*watchers):
        wait_until(lambda: all(len(watcher.text) > 50 for watcher in watchers))
        before = cluster.workers
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        # Long before their leases lapse.
        wait_until(lambda: all(watcher.when("end ") for watcher in watchers), 20)
    wait_until(lambda: len(set(cluster.workers) - set(before)) == 2)
    for turn, watcher in zip(turns, watchers, strict=True):
        kept = turn_of(there, turn["id"])
        assert (kept["state"], kept["error"]["code"]) == ("interrupted", "interrupted")
        assert kept["reply"] == watcher.text
        assert "".join(f"tok{number} " for number in range(5000)).startswith(kept["reply"])
        events = follow(there, turn["id"], f"{turn['id']}:7")
        assert text_of(events) == kept["reply"][7:]
    with cluster.first.guest(Accept=JSON) as client:
        client.cookies.update(here.cookies)
        assert chat(client, "and on", session_id=turns[0]["session_id"])["parent_id"] == turns[0]["id"]
    assert cluster.first.output.count("Turnkeeper is at") == cluster.first.output.count("/setup/")


def test_G6_a_paused_worker_that_wakes_cannot_write_and_its_readers_are_told(
    cluster: Cluster, ann: tuple[httpx.Client, httpx.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = ann
    monkeypatch.setattr(wire, "STREAM_SECONDS", 120)
    there.timeout = httpx.Timeout(60)  # longer than the pause
    paused = cluster.second.process
    assert paused is not None
    turn = begin(there, "/tokens 5000 /delay 10ms")
    url = f"/chat/{turn['id']}/events"
    elsewhere, beside = Watcher(here, url), Watcher(there, url)
    with watching(elsewhere, beside):
        wait_until(lambda: len(elsewhere.text) > 50 and len(beside.text) > 50)
        paused.send_signal(signal.SIGSTOP)
        try:
            if LONG:
                time.sleep(30)
            else:  # what time would do
                cluster.rows("UPDATE turn SET lease_until = now() WHERE id = $1 AND state = 'running'", turn["id"])
            swept = ended(here, turn["id"])
            wait_until(lambda: elsewhere.when("end "))
        finally:
            paused.send_signal(signal.SIGCONT)
        wait_until(lambda: beside.when("end "))
    assert swept["state"] == "interrupted"
    assert elsewhere.text == beside.text == swept["reply"]
    # It writes for other turns again, and to this one never.
    assert chat(there, "one two")["reply"] == "one two"
    assert turn_of(there, turn["id"]) == swept
    assert cluster.rows("SELECT 1 FROM turn_piece WHERE turn_id = $1", turn["id"]) == []


# ---------------------------------------------------------------- stop


def test_42_a_stop_of_several_ends_streams_and_turns_and_leaves_nothing(
    cluster: Cluster, ann: tuple[httpx.Client, httpx.Client]
) -> None:
    here, there = ann
    quiet = create(here)["id"]
    turns = [begin(here, "/tokens 5000 /delay 10ms") for _ in range(4)]
    watchers = [Watcher(client, f"/chat/{turn['id']}/events") for turn in turns for client in ann]
    idle = [Watcher(here, f"/session/{quiet}/events", page=page) for page in (True, False, True)]
    parent, workers = cluster.first.process, cluster.workers
    assert parent is not None
    with watching(*watchers, *idle):
        wait_until(lambda: all(len(watcher.text) > 50 for watcher in watchers))
        began = time.monotonic()
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(60) == 0
        assert time.monotonic() - began < 3 * SOON
    assert not any(map(alive, workers))
    assert not any(watcher.broken for watcher in (*watchers, *idle)), "a stream was torn instead of ended"
    assert cluster.rows("SELECT count(*) FROM turn WHERE state = 'running'")[0][0] == 0
    for turn, beside, elsewhere in zip(turns, watchers[::2], watchers[1::2], strict=True):
        kept = turn_of(there, turn["id"])
        assert kept["state"] == "interrupted"
        assert kept["reply"].startswith(beside.text)
        assert elsewhere.text == kept["reply"], "who read at another process is not told the end"
    assert "is killed" not in cluster.first.output


def test_42_a_rolling_restart_loses_no_accepted_prompt(
    cluster: Cluster, ann: tuple[httpx.Client, httpx.Client]
) -> None:
    """Who is turned away, or hears nothing, asks the other one with the same key."""
    over = threading.Event()
    accepted: list[tuple[str, dict[str, Any]]] = []

    def ask(number: int) -> None:
        with ExitStack() as stack:
            clients = [stack.enter_context(server.guest(Accept=JSON)) for server in cluster.both]
            for client in clients:
                client.cookies.update(ann[0].cookies)
            for round in range(10_000):
                if over.is_set():
                    return
                prompt = f"/text {number} asks for the {round} time /delay 3ms"
                key, tries = f"roll-{number}-{round}", 0
                while True:
                    tries += 1
                    assert tries < 200, "neither of them answers"
                    try:
                        answer = clients[(number + tries) % 2].post(
                            "/chat", json={"prompt": prompt}, headers={"Idempotency-Key": key}
                        )
                    except httpx.TransportError:
                        time.sleep(0.05)
                        continue
                    if answer.status_code == 200:
                        accepted.append((prompt, answer.json()))
                        break
                    assert answer.status_code == 503, answer.text
                    time.sleep(0.05)

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask, number) for number in range(3)]
        try:
            for server in (cluster.second, cluster.first):
                before = len(accepted)
                assert server.stop() == 0
                wait_until(lambda: len(accepted) > before + 4)  # noqa: B023
                server.start()
                before = len(accepted)
                wait_until(lambda: len(accepted) > before + 4)  # noqa: B023
        finally:
            over.set()
        for one in asking:
            one.result(60)
    here, _ = ann
    assert len({answer["id"] for _, answer in accepted}) == len(accepted) > 16
    for prompt, answer in accepted:
        kept = ended(here, answer["id"])
        assert (kept["prompt"], kept["reply"]) == (prompt, answer["reply"])
        assert kept["state"] in ("done", "interrupted")
    asked = cluster.rows("SELECT prompt, count(*) FROM turn WHERE prompt LIKE '/text%' GROUP BY prompt")
    assert sorted(row["prompt"] for row in asked) == sorted(prompt for prompt, _ in accepted)
    assert all(row["count"] == 1 for row in asked)
    assert cluster.rows("SELECT count(*) FROM turn WHERE state = 'running'")[0][0] == 0


def test_G5_no_worker_outlives_a_parent_that_is_killed(
    cluster: Cluster, ann: tuple[httpx.Client, httpx.Client]
) -> None:
    here, there = ann
    turn = begin(here, "/tokens 5000 /delay 10ms")
    workers, parent = cluster.workers, cluster.first.process
    assert parent is not None
    parent.kill()
    parent.wait(60)
    wait_until(lambda: not any(map(alive, workers)))
    kept = ended(there, turn["id"])
    assert kept["state"] == "interrupted"

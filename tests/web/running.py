"""A real server: `python -m turnkeeper serve` in a process of its own, on a loopback port, with its own database.

Most are forked from a process that has read all modules already; where a test is about starting, Python starts anew.
"""

import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.servers import free_port
from tests.web import forked

ROOT = Path(__file__).parents[2]
START_SECONDS = 150

NOISE = re.compile(
    r"Traceback|Warning|\bERROR\b|\w(Error|Exception)\b|never (awaited|retrieved)|was destroyed|raised exception"
    r"| failed$"
)

#: no certificate is ever looked at, and reading those of the machine takes longer than most tests
PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

#: a model that is going away
AGING = """[[models]]
id = "aging"
provider = "builtin"
upstream = "echo"
label = "Aging"
state = "deprecated"
replacement = "fast"
"""
SETTINGS = """
default_model = "fast"

[[models]]
id = "fast"
provider = "builtin"
upstream = "echo"
label = "Fast"

[[models]]
id = "smart"
provider = "builtin"
upstream = "echo"
label = "Smart"

[[models]]
id = "guide"
provider = "builtin"

[groups.guest]
sessions_created = "6000/min burst 2000"
turns = "6000/min burst 2000"
switches = "6000/min burst 2000"
# all tests share one network, and some leave replies running
concurrent_turns = 200
open_sessions = 20000

[groups.user]
sessions_created = "6000/min burst 2000"
turns = "6000/min burst 2000"
switches = "6000/min burst 2000"
concurrent_turns = 20
open_sessions = 2000
"""


class Server:
    """One running Turnkeeper."""

    #: neither the server nor the commands beside it start Python anew
    forked = True

    def __init__(self, folder: Path, settings: str = SETTINGS, **environment: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        (folder / "turnkeeper.toml").write_text(settings)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TURNKEEPER_")}
        self.environment = clean | {
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
            "TURNKEEPER_PORT": str(self.port),
            **environment,
        }
        self.command = [sys.executable, "-m", "turnkeeper"]
        #: the module that serves
        self.program = "turnkeeper"
        #: what it is told besides its settings
        self.arguments: tuple[str, ...] = ()
        #: how long a start may take
        self.start_seconds: float = START_SECONDS
        self.output = ""
        self.process: subprocess.Popen[str] | forked.Forked | None = None

    def launch(self) -> None:
        """Start it and do not wait."""
        arguments = ["serve", *self.arguments]
        if self.forked:
            self.process = forked.Forked(self.program, arguments, self.folder, self.environment)
        else:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error::DeprecationWarning", "-m", self.program, *arguments],
                cwd=self.folder,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        threading.Thread(target=self._listen, args=(self.process,), daemon=True).start()

    def start(self) -> None:
        """Start it and wait until it is ready."""
        self.launch()
        assert self.process is not None
        deadline = time.monotonic() + self.start_seconds
        while True:
            try:
                if httpx.get(f"{self.url}/readyz", timeout=1, verify=PLAIN).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop(signal.SIGABRT)  # whereupon it says what it was doing
                pytest.fail(f"the server did not start:\n{self.output}", pytrace=False)
            time.sleep(0.05)

    def _listen(self, process: "subprocess.Popen[str] | forked.Forked") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.output += line

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it and wait; its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                pytest.fail(f"the server did not stop:\n{self.output}", pytrace=False)
        return self.process.returncode

    def run(self, *arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        """Run a command of the command line beside it, on the same settings."""
        if self.forked:
            return forked.run("turnkeeper", arguments, self.folder, self.environment, stdin)
        return subprocess.run(
            [*self.command, *arguments],
            cwd=self.folder,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def people(self, *people: str) -> dict[str, str]:
        """Accounts, written `name:role:group`, and a token for each; the password is `tests.web.people.PASSWORD`."""
        done = forked.run("tests.web.people", people, self.folder, self.environment)
        assert done.returncode == 0, done.stderr
        return dict(zip((person.partition(":")[0] for person in people), done.stdout.split(), strict=True))

    @property
    def noise(self) -> list[str]:
        """The lines of the output that should never be there: a warning or a traceback is a bug."""
        return [line for line in self.output.splitlines() if NOISE.search(line)]

    @property
    def setup_url(self) -> str:
        """The one-time link the start printed."""
        # What a process has written may take a moment to be read here.
        deadline = time.monotonic() + START_SECONDS
        while not (found := re.search(r"http://\S+/setup/\S+", self.output)):
            assert time.monotonic() < deadline, self.output
            time.sleep(0.05)
        return found[0]

    def guest(self, address: str = "127.0.0.1", **headers: str) -> httpx.Client:
        """A browser without an account, with its own cookies."""
        way = httpx.HTTPTransport(local_address=address, verify=PLAIN)
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, transport=way)

    def script(self, token: str) -> httpx.Client:
        return self.guest(Authorization=f"Bearer {token}")


@contextmanager
def a_server(folder: Path, settings: str = SETTINGS, *, forked: bool = True, **environment: str) -> Iterator[Server]:
    """A server for one block; whatever it complained about in between fails the test."""
    server = Server(folder, settings, **environment)
    server.forked = forked
    server.start()
    try:
        yield server
    finally:
        if server.process is not None and server.process.poll() is None:
            server.stop()
    if server.noise:
        pytest.fail(f"the server complained:\n{server.output}", pytrace=False)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server on SQLite that many tests share; its admins may read chats, if they say why."""
    with a_server(tmp_path_factory.mktemp("server"), TURNKEEPER_ADMINS_READ="true") as running:
        yield running


@pytest.fixture(scope="session")
def admin_token(server: Server) -> str:
    """A token of the admin ada."""
    made = server.run("account", "create", "ada", "--role", "admin", "--permanent", stdin="correct horse battery\n")
    assert made.returncode == 0, made.stderr
    return _token(server, "ada", "admin")


@pytest.fixture(scope="session")
def ann_token(server: Server) -> str:
    """A token of the user ann."""
    made = server.run("account", "create", "ann", "--permanent", stdin="correct horse battery\n")
    assert made.returncode == 0, made.stderr
    return _token(server, "ann", "chat")


def _token(server: Server, account: str, scope: str) -> str:
    made = server.run("token", "create", "--account", account, "--name", "test", "--scope", scope)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()

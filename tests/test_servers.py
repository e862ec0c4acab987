"""What tests.servers gives is real, and tests of every kind get along in one run."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import asyncpg
import pytest
from playwright.sync_api import Page, expect
from redis.asyncio import Redis

from tests.servers import find_chromium, leashed


class Greeting(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"<!doctype html><title>Hello</title><h1>Good morning</h1>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def greeting_url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Greeting) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def greeted(page: Page, greeting_url: str) -> Iterator[Page]:
    page.goto(greeting_url)
    yield page
    assert page.title() == "Hello"


@pytest.fixture(scope="session")
async def connection(postgres_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(postgres_url)
    yield connection
    await connection.close()


async def test_postgres_answers_a_query(connection: asyncpg.Connection) -> None:
    assert (await connection.fetchval("SHOW server_version_num")).isdigit()
    assert await connection.fetchval("SELECT lower('Ärger')") == "ärger"
    assert await connection.fetchval("SHOW max_connections") == "200"


def test_a_page_is_rendered_in_chromium(page: Page, greeting_url: str) -> None:
    page.goto(greeting_url)
    heading = page.get_by_role("heading", name="Good morning")
    expect(heading).to_be_visible()
    box = heading.bounding_box()
    assert box is not None and box["height"] > 10, "there is no font"


async def test_redis_answers_a_ping(redis_url: str) -> None:
    async with Redis.from_url(redis_url) as redis:
        assert await redis.ping()


def test_a_fixture_may_be_made_from_the_page(greeted: Page) -> None:
    expect(greeted).to_have_title("Hello")
    assert threading.current_thread() is not threading.main_thread()


async def test_an_async_test_after_a_browser_keeps_its_loop(connection: asyncpg.Connection) -> None:
    assert asyncio.get_running_loop().is_running()
    assert await connection.fetchval("SELECT 1") == 1
    assert threading.current_thread() is threading.main_thread()


def test_a_failure_in_the_browser_thread_reaches_the_test(page: Page) -> None:
    with pytest.raises(AssertionError, match="Locator expected to be visible"):
        expect(page.get_by_role("heading")).to_be_visible(timeout=50)


def test_a_browser_that_is_named_but_missing_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMIUM", "/nowhere/chromium")
    assert find_chromium() is None


def test_a_server_that_cannot_start_fails_with_what_it_said() -> None:
    folder = Path(tempfile.mkdtemp())
    command = ["sh", "-c", "echo no such luck; exit 3"]
    with pytest.raises(pytest.fail.Exception, match="no such luck"), leashed(command, folder, lambda: False):
        pass
    assert not folder.exists()


def test_a_server_ends_with_the_run_even_when_the_run_is_killed() -> None:
    folder = Path(tempfile.mkdtemp())
    run = subprocess.Popen(
        [sys.executable, "-c", KILLED_RUN, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert run.stdout is not None
    server = int(run.stdout.readline())
    os.kill(server, 0)
    run.send_signal(signal.SIGKILL)
    run.wait()
    for _ in range(200):
        if not folder.exists():
            break
        threading.Event().wait(0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)


KILLED_RUN = """
import sys, time
from pathlib import Path
from tests.servers import leashed
folder = Path(sys.argv[1])
pid = folder / "pid"
with leashed(["sh", "-c", "echo $$ >pid.new; mv pid.new pid; exec sleep 60"], folder, pid.exists):
    print(pid.read_text().strip(), flush=True)
    time.sleep(60)
"""

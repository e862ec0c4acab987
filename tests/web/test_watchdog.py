"""Workers that do not answer, signals that would end a server silently, and systemd: with real processes."""

import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from tests.web.running import PLAIN, SETTINGS, Server, a_server
from tests.web.test_workers import alive, children, rows, wait_until
from tests.web.wire import BROWSER, JSON
from web.systemd import Notifier
from web.workers import BEAT_SECONDS, Lag, _Place, passed

#: as long as a worker of these tests may be silent
PATIENCE_SECONDS = 6


class Listener:
    """What systemd would be told."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.setblocking(False)
        self.lines: list[str] = []

    def heard(self, line: str) -> bool:
        with suppress(BlockingIOError):
            while True:
                self.lines += self.socket.recv(4096).decode().split("\n")
        return line in self.lines


@pytest.fixture(scope="module")
def systemd(tmp_path_factory: pytest.TempPathFactory) -> Listener:
    return Listener(str(tmp_path_factory.mktemp("systemd") / "notify"))


@pytest.fixture(scope="module")
def several(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory, systemd: Listener
) -> Iterator[tuple[Server, Listener]]:
    """Two workers, one of which may be made to spin, under a parent that tells systemd."""
    rows(postgres_url, "CREATE DATABASE watchdog")
    server = Server(
        tmp_path_factory.mktemp("watchdog"),
        SETTINGS,
        TURNKEEPER_DATABASE_URL=postgres_url.rsplit("/", 1)[0] + "/watchdog",
        TURNKEEPER_WORKER_TIMEOUT_SECONDS=str(PATIENCE_SECONDS),
        NOTIFY_SOCKET=systemd.socket.getsockname(),
        WATCHDOG_USEC="2000000",
    )
    server.forked, server.arguments, server.program = False, ("--workers", "2"), "tests.web.spinning"
    server.start()
    yield server, systemd
    if server.process is not None and server.process.poll() is None:
        server.stop()
    rows(postgres_url, "DROP DATABASE watchdog WITH (FORCE)")


def answers(server: Server) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{server.url}/healthz", timeout=60, verify=PLAIN).status_code == 200
    return False


def workers_of(server: Server) -> list[int]:
    assert server.process is not None
    return children(server.process.pid)


def test_53_a_worker_whose_interpreter_is_held_is_killed_and_replaced_while_the_other_answers(
    several: tuple[Server, Listener],
) -> None:
    server, _ = several
    wait_until(lambda: len(workers_of(server)) == 2)
    before = workers_of(server)
    with socket.create_connection(("127.0.0.1", server.port)) as asking:
        asking.sendall(b"GET /spin HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        wait_until(lambda: answers(server) and "has not answered" in server.output)
    (pid,) = re.findall(r"ERROR \d+ \[-\] web.workers: worker (\d+) has not answered for 6 seconds", server.output)
    wait_until(lambda: len(workers_of(server)) == 2 and int(pid) not in workers_of(server))
    assert int(pid) in before
    wait_until(lambda: not alive(int(pid)))
    assert len(set(before) & set(workers_of(server))) == 1, "the other one was left alone"
    wait_until(lambda: "another takes its place" in server.output)
    # It says what it was doing, no line of which can be taken for another event.
    assert re.search(r'^  \|   File ".*spinning.py", line \d+ in spin$', server.output, re.M), server.output
    assert answers(server)


def renderers_of(worker: int) -> list[int]:
    """The rendering processes among a worker's children."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == worker and b"render_worker" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def test_53_a_worker_that_is_stopped_is_replaced_too_and_leaves_no_process_behind(
    several: tuple[Server, Listener],
) -> None:
    server, _ = several
    wait_until(lambda: len(workers_of(server)) == 2)
    stopped = workers_of(server)[0]
    with server.guest() as guest:
        long = "so it goes on\n\n" * 200 + "```python\nx = 1\n```"
        turn = guest.post("/chat", json={"prompt": long}, headers={"Accept": JSON}).json()
        page = {"headers": {"Accept": BROWSER, "Connection": "close"}, "cookies": dict(guest.cookies)}
        url = f"{server.url}/session/{turn['session_id']}"
        # A new connection each time: it may reach the other one.
        wait_until(lambda: httpx.get(url, verify=PLAIN, timeout=60, **page) and renderers_of(stopped))
    rendering = renderers_of(stopped)
    os.kill(stopped, signal.SIGSTOP)
    wait_until(lambda: not alive(stopped))
    wait_until(lambda: not any(map(alive, rendering)))
    wait_until(lambda: len(workers_of(server)) == 2)
    assert f"worker {stopped} has not answered" in server.output
    wait_until(lambda: answers(server))


def test_signals_that_mean_nothing_end_nothing_and_are_told(several: tuple[Server, Listener]) -> None:
    server, _ = several
    wait_until(lambda: len(workers_of(server)) == 2)
    workers, parent = workers_of(server), server.process
    assert parent is not None

    def told(pid: int, number: signal.Signals) -> bool:
        os.kill(pid, number)  # again and again: a worker that has only just been started says nothing yet
        return bool(re.search(rf"INFO {pid} .*{number.name} is ignored", server.output))

    for pid in (parent.pid, *workers):
        wait_until(lambda pid=pid: told(pid, signal.SIGHUP) and told(pid, signal.SIGUSR2))  # type: ignore[misc]
    for pid in (parent.pid, *workers):
        os.kill(pid, signal.SIGUSR1)
    wait_until(lambda: all(f"worker {pid} was doing this" in server.output for pid in workers))
    assert workers_of(server) == workers and parent.poll() is None
    assert answers(server)


@pytest.mark.long
def test_a_parent_that_was_stopped_itself_judges_no_worker_by_that_time(several: tuple[Server, Listener]) -> None:
    server, _ = several
    wait_until(lambda: len(workers_of(server)) == 2)
    workers, told, parent = workers_of(server), server.output.count("has not answered"), server.process
    assert parent is not None
    # The workers are stopped as well, as by a machine that sleeps: no beat lies in a pipe that would excuse them.
    for pid in (parent.pid, *workers):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(PATIENCE_SECONDS + 2 * BEAT_SECONDS)
    for pid in (parent.pid, *workers):
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: answers(server))
    assert workers_of(server) == workers
    assert server.output.count("has not answered") == told


def test_systemd_is_told_when_it_is_ready_that_it_works_and_that_it_stops(several: tuple[Server, Listener]) -> None:
    server, systemd = several
    assert systemd.heard("READY=1")
    systemd.lines.clear()
    wait_until(lambda: systemd.heard("WATCHDOG=1"))
    assert not systemd.heard("STOPPING=1")
    assert server.stop() == 0
    assert systemd.heard("STOPPING=1")
    assert not workers_of(server)


def test_one_process_tells_systemd_from_its_loop_and_outlives_the_same_signals(tmp_path: Path) -> None:
    """Through a socket that is no file; and each line of its log is an object."""
    name = f"@turnkeeper-{uuid4().hex}"
    systemd = Listener(name)
    environment = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1000000", "TURNKEEPER_LOG_FORMAT": "json"}
    with a_server(tmp_path, **environment) as server:
        assert server.process is not None
        wait_until(lambda: systemd.heard("READY=1") and systemd.heard("WATCHDOG=1"))
        os.kill(server.process.pid, signal.SIGHUP)
        wait_until(lambda: "SIGHUP is ignored" in server.output)
        assert answers(server)
        assert server.stop() == 0
        assert systemd.heard("STOPPING=1")
    events = [json.loads(line) for line in server.output.splitlines()]
    assert all(event["time"] and event["process"] for event in events)
    # Where the machine has much else to do, the server says that it was late.
    assert {event["level"] for event in events} <= {"info", "warning"}
    assert any("/setup/" in event["message"] for event in events)


def test_the_watchdog_of_another_process_is_not_fed() -> None:
    environ = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1", "PATH": "/bin"}
    assert Notifier(environ).every_seconds is None
    assert environ == {"PATH": "/bin"}, "no child speaks for the service"
    assert Notifier({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "2000000"}).every_seconds == 1.0
    assert Notifier({"WATCHDOG_USEC": "2000000"}).every_seconds is None
    Notifier({"NOTIFY_SOCKET": "/nowhere/to/be/found"}).ready("nobody listens")


def test_a_loop_that_does_not_go_round_is_told_and_whether_it_computed(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, used = 100.0, 5.0
    monkeypatch.setattr("web.workers.time.monotonic", lambda: now)
    monkeypatch.setattr("web.workers.time.process_time", lambda: used)
    lag = Lag()
    now += 1
    lag.look()
    assert not caplog.records
    now, used = now + 3, used + 2.5
    lag.look()
    lag.look()
    (line,) = caplog.records
    assert line.getMessage() == "nobody was answered for 3.0 seconds, of which this process computed for 2.5"


def test_time_in_which_the_parent_did_not_run_counts_little() -> None:
    assert passed(0.0, 0.5) == 0.5
    assert passed(0.0, 3600.0) == 2 * BEAT_SECONDS < PATIENCE_SECONDS


def test_a_worker_that_has_not_begun_to_serve_may_take_its_time() -> None:
    place = _Place.__new__(_Place)
    place.process, place._silent_seconds = object(), None  # type: ignore[assignment]
    place.wait_for_a_beat(1000.0, 10.0)
    assert place._silent_seconds is None

"""`turnkeeper serve` as a process: how it starts, stops, is killed, and starts again on what it left."""

import os
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.servers import free_port
from tests.web.people import PASSWORD
from tests.web.running import Server, a_server
from tests.web.wire import (
    HTMX,
    JSON,
    SOON,
    Stream,
    assert_turn,
    begin,
    chat,
    create,
    ended,
    follow,
    session_of,
    streaming,
    text_of,
    turn_of,
)

LONG = "/tokens 5000 /delay 10ms"
#: seconds in which a server has stopped: less than the ten after which it is killed
STOPPED = 9.5


class Reader(threading.Thread):
    """Reads a turn's stream until it ends, however it ends."""

    def __init__(self, client: httpx.Client, url: str, after: str = "") -> None:
        super().__init__(daemon=True)
        self._client, self._url, self._after = client, url, after
        #: what it was shown
        self.text, self.names, self.broken = "", [], False
        self.enough = threading.Event()

    def run(self) -> None:
        try:
            with streaming(self._client, self._url, after=self._after) as stream:
                for event in stream:
                    self.names.append(event.name)
                    if event.name == "delta":
                        self.text += event.json["text"]
                    if len(self.text) > 150:
                        self.enough.set()
        except httpx.TransportError:
            self.broken = True


@contextmanager
def reading(*readers: Reader) -> Iterator[None]:
    """From the moment on when all of them have seen some text; at the end all of them have ended."""
    for reader in readers:
        reader.start()
    for reader in readers:
        assert reader.enough.wait(60), "no text comes"
    yield
    for reader in readers:
        reader.join(60)
        assert not reader.is_alive()


@pytest.fixture(scope="module")
def restarted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that these tests stop, kill and start again."""
    with a_server(tmp_path_factory.mktemp("serve"), forked=False) as running:
        yield running


@pytest.fixture
def own(restarted: Server) -> Server:
    """That server, running."""
    if restarted.process is None or restarted.process.poll() is not None:
        restarted.start()
    return restarted


def running_turns(server: Server) -> int:
    """Straight from the file."""
    with sqlite3.connect(server.folder / "var" / "turnkeeper.db") as database:
        return int(database.execute("SELECT COUNT(*) FROM turn WHERE state = 'running'").fetchone()[0])


# ---------------------------------------------------------------- start


def test_the_start_says_where_it_is_what_there_is_and_how_to_become_the_admin(own: Server) -> None:
    assert own.url in own.output
    for model in ("fast", "smart", "guide"):
        assert model in own.output
    assert own.setup_url.startswith(f"{own.url}/setup/")
    assert "guest" in own.output
    with own.guest() as client:
        assert client.get("/readyz").json() == {"status": "ready"}
        assert client.get("/healthz").json() == {"status": "ok"}
    key = own.folder / "var" / "secret.key"
    assert key.stat().st_mode & 0o077 == 0, "others can read the secret key"


def test_a_database_that_cannot_be_written_to_is_not_ready_and_then_it_is_again(own: Server) -> None:
    refuses = "CREATE TRIGGER refuses BEFORE INSERT ON write_probe BEGIN SELECT RAISE(ABORT, 'no'); END"

    def change(*statements: str) -> None:
        with sqlite3.connect(own.folder / "var" / "turnkeeper.db", timeout=60) as database:
            for statement in statements:
                database.execute(statement)

    with own.guest() as client:

        def answers(status: int) -> dict[str, Any]:
            deadline = time.monotonic() + 60
            while (answer := client.get("/readyz")).status_code != status:
                assert time.monotonic() < deadline, answer.text
                time.sleep(0.2)
            found: dict[str, Any] = answer.json()
            return found

        change(refuses)
        told = answers(503)
        assert told["status"] == "not ready" and "cannot be written to" in told["failed"]["writing"]
        assert client.get("/healthz").status_code == 200
        change("DROP TRIGGER refuses")
        assert answers(200) == {"status": "ready"}


def test_a_second_server_on_the_same_file_is_refused(own: Server) -> None:
    """Called by its name, by a link to it, or through a link to its folder: taken in, it would end what is running."""
    (own.folder / "through").symlink_to("var")
    (own.folder / "other").mkdir()
    (own.folder / "other" / "link.db").symlink_to("../var/turnkeeper.db")
    with own.guest(Accept=JSON) as client:
        turn = begin(client, "/hang after 3")
        for name in ("var/turnkeeper.db", "through/turnkeeper.db", "other/link.db"):
            second = subprocess.run(
                [*own.command, "serve", "--port", str(free_port())],
                cwd=own.folder,
                env=own.environment | {"TURNKEEPER_DATABASE_URL": f"sqlite:///{name}"},
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert second.returncode == 1
            assert "another server already uses" in second.stderr
            assert "Traceback" not in second.stderr
            assert turn_of(client, turn["id"])["state"] == "running"
        client.post(f"/chat/{turn['id']}/stop").raise_for_status()


def refused(folder: Path, settings: str = "", **environment: str) -> str:
    """What a start that must fail says."""
    server = Server(folder, settings, **environment)
    server.forked = False
    done = server.run("serve")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr.strip()


def test_an_address_in_use_is_told_in_a_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = refused(tmp_path, TURNKEEPER_PORT=str(port))
    assert str(port) in told
    assert "in use" in told
    assert "/setup/" not in told, "greets as if it were there"


def test_a_wrong_file_and_a_wrong_variable_stop_the_start_and_are_named(tmp_path: Path) -> None:
    told = refused(tmp_path, "[groups.user]\nturns = 'often'")
    assert "$.groups.user.turns: " in told
    assert len(told.splitlines()) == 1
    told = refused(tmp_path, TURNKEEPER_PROT="8000")
    assert "TURNKEEPER_PROT: " in told
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "var").exists()


def test_a_database_that_cannot_be_is_told_in_a_sentence(tmp_path: Path) -> None:
    told = refused(tmp_path, TURNKEEPER_DATABASE_URL="sqlite:///turnkeeper.toml/x.db")
    assert len(told.splitlines()) == 1


def test_a_file_that_is_no_database_is_told_in_a_sentence_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("not a database " * 100)
    told = refused(tmp_path, TURNKEEPER_DATABASE_URL="sqlite:///precious.txt")
    assert len(told.splitlines()) == 1
    assert (tmp_path / "precious.txt").read_text() == "not a database " * 100


def test_a_secret_key_that_is_too_short_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "secret.key").write_text("short")
    told = refused(tmp_path)
    assert "secret" in told
    assert len(told.splitlines()) == 1


# ---------------------------------------------------------------- stop


def test_a_stop_ends_the_streams_keeps_the_text_and_exits_with_0(own: Server) -> None:
    assert own.process is not None
    with own.guest(Accept=JSON) as client, own.guest(Accept=JSON) as idle, own.guest(Accept=JSON) as waiter:
        quiet = create(idle)["id"]
        turn = begin(client, LONG)
        url = f"/chat/{turn['id']}/events"
        readers = [Reader(client, url), Reader(client, url), Reader(client, f"/session/{turn['session_id']}/events")]
        waited: list[httpx.Response] = []

        def wait() -> None:
            waited.append(waiter.post("/chat", json={"prompt": LONG}))

        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        with (
            streaming(idle, f"/session/{quiet}/events") as silent,
            streaming(idle, f"/session/{quiet}/events", headers=HTMX) as page,
            reading(*readers),
        ):
            began = time.monotonic()
            own.process.send_signal(signal.SIGTERM)
            assert silent.rest() == []
            assert page.rest() == []
        assert own.process.wait(60) == 0
        assert time.monotonic() - began < STOPPED
        waiting.join(60)
        for reader in readers:
            assert not reader.broken, "the stream was torn instead of ended"
        # A script that waits for the whole reply is not told that it is there.
        assert waited, "a script that waited was hung up on"
        if waited[0].status_code == 200:
            assert assert_turn(waited[0].json())["state"] == "interrupted"
        else:
            assert waited[0].status_code == 503
        assert running_turns(own) == 0

        own.start()
        kept = turn_of(client, turn["id"])
        assert kept["state"] == "interrupted"
        assert kept["error"]["code"] == "interrupted"
        for reader in readers:
            assert kept["reply"].startswith(reader.text)
        assert chat(client, "and on", session_id=turn["session_id"])["parent_id"] == turn["id"]


def test_an_interrupt_from_the_keyboard_is_a_stop_too(own: Server) -> None:
    with own.guest(Accept=JSON) as client:
        turn = begin(client, LONG)
        with streaming(client, f"/chat/{turn['id']}/events") as stream:
            stream.next("delta")
            assert own.stop(signal.SIGINT) in (0, 130)
            stream.rest()
    assert running_turns(own) == 0


def test_a_stop_while_nothing_happens_is_quick(own: Server) -> None:
    began = time.monotonic()
    assert own.stop() == 0
    assert time.monotonic() - began < STOPPED


def test_two_signals_stop_it_too(own: Server) -> None:
    assert own.process is not None
    with own.guest(Accept=JSON) as client:
        begin(client, "/hang")
        own.process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
        own.process.send_signal(signal.SIGTERM)
        own.process.wait(60)
    own.start()
    assert running_turns(own) == 0


def a_deaf_reader(server: Server, client: httpx.Client, session_id: str) -> socket.socket:
    """Somebody who follows a session and takes nothing of what is sent."""
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect(("127.0.0.1", server.port))
    deaf.sendall(
        (
            f"GET /session/{session_id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Accept: text/event-stream\r\nCookie: tk_guest={client.cookies['tk_guest']}\r\n\r\n"
        ).encode()
    )
    return deaf


def test_neither_a_body_that_never_comes_nor_a_reader_that_never_reads_holds_up_a_stop(own: Server) -> None:
    """Whoever runs it in a container has ten seconds before the kill."""
    with own.guest(Accept=JSON) as client:
        session_id = chat(client, "x" * 50_000)["session_id"]
        for number in range(5):
            chat(client, f"{number} " + "z" * 90_000, session_id=session_id)
        with (
            a_deaf_reader(own, client, session_id),
            socket.create_connection(("127.0.0.1", own.port)) as half,
        ):
            head = "POST /chat HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            half.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            time.sleep(0.3)
            assert client.get("/healthz").status_code == 200
            began = time.monotonic()
            assert own.stop() == 0
            assert time.monotonic() - began < STOPPED
    assert not own.noise


# ---------------------------------------------------------------- kill


def test_after_a_kill_every_character_that_was_shown_is_there_and_the_session_goes_on(own: Server) -> None:
    with own.guest(Accept=JSON) as client:
        before = chat(client, "said before")
        sessions = [before["session_id"], *(create(client, title=f"{number}")["id"] for number in range(3))]
        for round in range(2):
            turns = [
                begin(client, f"/tokens 5000 /delay {3 + 4 * number}ms", session_id=id)
                for number, id in enumerate(sessions)
            ]
            readers = [Reader(client, f"/chat/{turn['id']}/events") for turn in (*turns, turns[0])]
            with reading(*readers):
                time.sleep(0.05 * round)
                assert own.process is not None
                own.process.kill()
                own.process.wait(60)
            own.start()
            for reader, turn in zip(readers, (*turns, turns[0]), strict=True):
                kept = turn_of(client, turn["id"])
                assert kept["state"] == "interrupted"
                assert len(reader.text) > 150
                assert kept["reply"].startswith(reader.text), "somebody was shown what is not there"
                assert kept["reply"] == "".join(f"tok{number} " for number in range(5000))[: len(kept["reply"])]
                session = session_of(client, turn["session_id"])
                assert (session["state"], session["running_turn"]) == ("active", None)
                # A reader that comes back with what it had gets the rest and the end.
                events = follow(client, turn["id"], f"{turn['id']}:{len(reader.text)}")
                assert reader.text + text_of(events) == kept["reply"]
                assert events[-1].name == "end"
        after = chat(client, "said after", session_id=sessions[0])
        assert (after["state"], after["parent_id"]) == ("done", turns[0]["id"])
        assert turn_of(client, before["id"]) == before
        limits = {one["name"]: one["used"] for one in client.get("/limits").json()["limits"]}
        assert limits["concurrent_turns"] == 0
        rows = client.get(f"/session/{sessions[0]}/journal").json()["journal"]
        assert [row["outcome"] for row in rows if row["what"] == "turn_ended"].count("interrupted") == 2


def test_after_a_kill_every_thought_that_was_shown_is_there(own: Server) -> None:
    thoughts = " ".join(f"step{number}" for number in range(3000))
    with own.guest(Accept=JSON) as client:
        with streaming(client, "/chat", method="POST", json={"prompt": f"/delay 3ms /reason {thoughts}"}) as stream:
            turn, seen = stream.next("turn").json, [stream.next("reasoning") for _ in range(5)]
            assert own.process is not None
            own.process.kill()
            own.process.wait(60)
        own.start()
        shown, kept = text_of(seen, "reasoning"), ended(client, turn["id"])
        assert (kept["state"], kept["reply"]) == ("interrupted", "")
        assert thoughts.startswith(kept["reasoning"]) and kept["reasoning"].startswith(shown) and len(shown) > 5
        # A reader that comes back in the middle of the reasoning gets the rest of it and the end.
        assert seen[-1].id == f"{turn['id']}:0:{len(shown)}"
        rest = follow(client, turn["id"], seen[-1].id)
        assert shown + text_of(rest, "reasoning") == kept["reasoning"]
        assert rest[-1].name == "end" and rest[-1].json == kept
        # Nothing of it is told to the model, and the session goes on.
        after = chat(client, "said after", session_id=turn["session_id"])
        assert (after["reply"], after["prompt_tokens"]) == ("said after", 2)


def test_who_one_is_outlives_a_restart(own: Server) -> None:
    token = own.people("ann")["ann"]
    with own.guest(Accept=JSON) as guest, own.guest() as person, own.script(token) as script:
        session = create(guest)
        person.post("/login", data={"name": "ann", "password": PASSWORD})
        hers = create(script)
        assert own.process is not None
        own.process.kill()
        own.process.wait(60)
        own.start()
        assert session_of(guest, session["id"]) == session
        assert session_of(script, hers["id"]) == hers
        assert session_of(person, hers["id"]) == hers


def test_commands_work_beside_a_server(own: Server) -> None:
    with own.guest(Accept=JSON) as client:
        turn = begin(client, "/tokens 100 /delay 10ms")
        for arguments in (("migrate",), ("check",), ("config", "show")):
            done = own.run(*arguments)
            assert done.returncode == 0, done.stdout + done.stderr
        with streaming(client, f"/chat/{turn['id']}/events") as stream:
            assert stream.rest()[-1].json["state"] == "done"


# ---------------------------------------------------------------- many readers


def test_an_answer_waits_for_no_acknowledgement(server: Server) -> None:
    """Without TCP_NODELAY each answer on a kept connection comes 40 ms late, also the quickest."""
    with server.guest() as client:
        times = []
        for _ in range(100):
            began = time.perf_counter()
            client.get("/healthz").raise_for_status()
            times.append(time.perf_counter() - began)
    assert min(times[20:]) < 0.03


def test_many_silent_streams_cost_others_nothing(server: Server) -> None:
    """Two hundred pages stay open; a chat beside them is as quick as before, and all of them are told."""
    with server.guest(Accept=JSON) as client:
        session = create(client, model="fast")
        began = time.monotonic()
        for _ in range(3):
            chat(client, "alone", session_id=session["id"])
        alone = time.monotonic() - began
        last = session_of(client, session["id"])
        sockets = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(200)]
        try:
            request = (
                f"GET /session/{session['id']}/events?version={last['version']} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                f"Accept: text/event-stream\r\nCookie: tk_guest={client.cookies['tk_guest']}\r\n\r\n"
            ).encode()
            for one in sockets:
                one.sendall(request)
            for one in sockets:
                assert b"200 OK" in one.recv(4096)
            began = time.monotonic()
            with server.guest(Accept=JSON) as other:
                for _ in range(3):
                    chat(other, "beside them")
            assert time.monotonic() - began < 3 * alone + SOON
            renamed = client.post(f"/session/{session['id']}/rename", json={"title": "told to all"})
            assert renamed.status_code == 200
            for one in sockets:
                got = b""
                while b"told to all" not in got:
                    piece = one.recv(65536)
                    assert piece
                    got += piece
        finally:
            for one in sockets:
                one.close()


def test_a_reader_that_never_reads_holds_up_nobody(server: Server) -> None:
    with server.guest(Accept=JSON) as client:
        turn = chat(client, "x" * 60_000)
        with a_deaf_reader(server, client, turn["session_id"]):
            for number in range(5):
                began = time.monotonic()
                assert chat(client, f"{number} " + "z" * 50_000, session_id=turn["session_id"])["state"] == "done"
                assert time.monotonic() - began < 20  # the one who never reads is borne for 30 s


def test_descriptors_are_given_back(server: Server) -> None:
    assert server.process is not None
    folder = Path(f"/proc/{server.process.pid}/fd")
    if not folder.exists():
        pytest.skip("no /proc here")
    with server.guest(Accept=JSON) as client:
        turn = chat(client, "hello")

    def settled() -> int:
        lowest = 10**6
        for _ in range(15):
            lowest = min(lowest, len(os.listdir(folder)))
            time.sleep(0.03)
        return lowest

    before = settled()
    for _ in range(30):
        with server.guest(Accept=JSON) as client:
            with streaming(client, "/chat", method="POST", json={"prompt": "/tokens 5"}) as stream:
                assert isinstance(stream, Stream)
                stream.next("turn")
            client.get(f"/chat/{turn['id']}")
    deadline = time.monotonic() + 60
    while settled() > before + 5:
        assert time.monotonic() < deadline

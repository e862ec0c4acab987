"""Bodies and queries that would cost much before anybody decides anything: refused while they are read."""

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import product
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest

from tests.web.running import Server
from tests.web.test_transfer import EMPTY_FILE
from tests.web.wire import BROWSER, JSON, STREAM, create, problem
from web import bodies
from web.bodies import FIELDS, VALUES, Bodies, Body, BodyRefused
from web.cookies import only_ours
from web.routes import ROUTES

URLENCODED = "application/x-www-form-urlencoded"
PARTS = "multipart/form-data; boundary=x"


def parts(count: int) -> bytes:
    each = b'--x\r\nContent-Disposition: form-data; name="a%d"\r\n\r\n\r\n'
    return b"".join(each % number for number in range(count)) + b"--x--\r\n"


def many(count: int) -> dict[str, tuple[str, bytes]]:
    """Bodies of so many fields."""
    return {
        "urlencoded": (URLENCODED, b"&".join(b"a%d=" % number for number in range(count))),
        "multipart": (PARTS, parts(count)),
        "json": (JSON, msgspec.json.encode({f"a{number}": 0 for number in range(count)})),
        "json lists": (JSON, b'{"name": [' + b"[]," * count + b"[]]}"),
        "json depth": (JSON, b'{"name": ' + b"[" * count + b"]" * count + b"}"),
    }


@pytest.mark.parametrize("kind", many(0))
@pytest.mark.parametrize("url", ["/login", "/chat", "/v1/chat/completions"])
def test_a_form_of_too_many_fields_is_refused(server: Server, guest: httpx.Client, url: str, kind: str) -> None:
    content_type, body = many(VALUES + 1 if kind.startswith("json") else FIELDS + 1)[kind]
    answer = guest.post(url, content=body, headers={"Content-Type": content_type})
    assert answer.status_code == 413, answer.text[:300]
    assert "1,000 fields" in answer.text


def test_it_is_refused_before_the_rest_has_come(server: Server) -> None:
    body = many(2 * FIELDS)["urlencoded"][1]
    head = f"POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: {URLENCODED}\r\nContent-Length: 1000000\r\n\r\n"
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=60)) as connection:
        connection.sendall(head.replace("Host: x", "Host: 127.0.0.1").encode() + body)
        assert connection.recv(20).startswith(b"HTTP/1.1 413")


def test_fields_and_values_within_the_limit_are_taken(guest: httpx.Client) -> None:
    prose = 'so, and [so], and {so} "quoted", \\ and on; ' * 2_000
    assert prose.count(",") > VALUES / 3
    answer = guest.post("/chat", json={"prompt": prose + "," * VALUES}, headers={"Accept": JSON})
    assert answer.status_code == 200, answer.text[:300]
    problem(guest.post("/session/create", content=b"&".join([b"title=x"] + [b"a="] * 500), headers={
        "Content-Type": URLENCODED, "Accept": JSON,
    }), 400, "invalid_request")  # fmt: skip


@pytest.mark.parametrize(
    ("ask", "possible"),
    [
        (("GET", "/session?show=foo"), "all, pinned, archived, deleted"),
        (("GET", f"/session/{UUID(int=0)}/export?format=pdf"), "json, md"),
        (("POST", "/models/switch", "when"), "next_turn, stop, idle"),
    ],
)
def test_a_value_that_is_not_possible_is_told_those_that_are(
    guest: httpx.Client, ask: tuple[str, ...], possible: str
) -> None:
    method, url, *field = ask
    body = {"json": {"session_id": create(guest)["id"], "model": "fast", field[0]: "foo"}} if field else {}
    answer = guest.request(method, url, **body)
    assert problem(answer, 400, "invalid_request")["detail"] == f"Possible are {possible}."


def test_a_query_of_too_many_fields_is_refused(guest: httpx.Client) -> None:
    assert guest.get("/session?" + "a&" * FIELDS).status_code == 414
    assert guest.get("/session?" + "a&" * (FIELDS // 2), headers={"Accept": JSON}).status_code == 200


# ---------------------------------------------------------------- queries that no database can be asked

QUERIED = [
    (path.replace(":uuid", ""), field.encode_name)
    for handler in ROUTES
    for path in handler.paths
    if "GET" in handler.http_methods and "asked" in (handler.dependencies or {})
    for field in msgspec.structs.fields(handler.dependencies["asked"].dependency.struct)  # type: ignore
]


#: {value: whether it must be refused}
QUERIES = {"a%00b": True, "%ED%A0%80": False, "9" * 5000: False}


def test_there_are_queries_to_try() -> None:
    assert {("/admin/events", "q"), ("/session", "q"), ("/admin/journal", "account")} <= set(QUERIED)
    assert len(QUERIED) > 40


@pytest.mark.parametrize("database", ["server", "postgres_server"])
def test_54_a_query_that_cannot_be_asked_is_refused_before_an_answer_begins(
    database: str, request: pytest.FixtureRequest
) -> None:
    """A stream would end in its midst with a traceback, and come back for ever."""
    running: Server = request.getfixturevalue(database)
    token = running.people(f"{database}-queries:admin")[f"{database}-queries"]
    before = len(running.output)
    with running.script(token) as ada:
        session = ada.post("/session/create", json={}).json()["id"]
        said = {"prompt": "x", "session_id": session}
        turn = ada.post("/chat", json=said, headers={"Accept": JSON}).json()["id"]
        account = ada.get("/account", headers={"Accept": JSON}).json()["id"]
        ids = {"session_id": session, "turn_id": turn, "account_id": account}
        tried = [(path.format(**ids), *rest) for path, *rest in QUERIED]
        for (path, field), (value, refused), accept in product(tried, QUERIES.items(), (STREAM, BROWSER)):
            with ada.stream("GET", f"{path}?{field}={value}", headers={"Accept": accept}) as answer:
                told = (path, field, value[:20], accept, answer.status_code)
                assert answer.status_code == 400 if refused else answer.status_code < 500, told
    assert "Traceback" not in running.output[before:]


@pytest.mark.parametrize("position", ["%00", "\x7f", "x" * 3000, ":" * 100, "9" * 4000, "-1", "\ud800"])
def test_a_stream_takes_any_place_to_go_on_from(server: Server, guest: httpx.Client, position: str) -> None:
    before = len(server.output)
    session = guest.post("/session/create", json={}, headers={"Accept": JSON}).json()["id"]
    turn = guest.post("/chat", json={"prompt": "x", "session_id": session}, headers={"Accept": JSON}).json()["id"]
    for url in (f"/session/{session}/events", f"/chat/{turn}/events"):
        headers = {"Accept": STREAM, "Last-Event-ID": position.encode("utf-8", "surrogatepass")}
        with guest.stream("GET", url, headers=headers) as answer:  # type: ignore[arg-type]
            assert answer.status_code < 500
    assert "Traceback" not in server.output[before:]


# ---------------------------------------------------------------- headers that are dear to parse


def test_only_our_cookies_are_left_to_parse_and_they_as_they_were() -> None:
    ours = b"tk_login=abc-_.=; __Host-tk_guest=x.y; tz=-120; tk_device=a b"
    others = b'; a="' + b"\\" * 1_000 + b'"; xtk_login=no; tk_guest="quoted"; tk_login=' + b"x" * 2_000 + b";;  ;=;tz"
    kept = [(b"host", b"x"), (b"cookie", ours)]
    assert only_ours([(b"host", b"x"), (b"cookie", ours + others)]) == kept
    assert only_ours([(b"cookie", others[2:] + b"; " + ours)]) == kept[1:]
    assert only_ours([(b"cookie", b"")]) == [(b"cookie", b"")]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Cookie", 'a="' + "\\" * 60_000 + '"'),
        ("Cookie", 'tk_login="' + "\\" * 60_000 + '"'),
        ("Cookie", ";=" * 30_000),
        ("Cookie", "tz=" + "1" * 60_000),
        ("Cookie", "tk_login" * 7_500),
        ("Accept", "," * 60_000),
        ("Accept", "text/html;" + "q=1;" * 15_000),
        ("Content-Type", "multipart/form-data; " + 'a="' * 20_000),
        ("Content-Type", "application/x-www-form-urlencoded; charset=" + "x" * 60_000),
        ("Authorization", "Bearer " + "x" * 60_000),
        ("Last-Event-ID", "9" * 60_000),
        ("Origin", "http://" + "[" * 60_000),
        ("Accept-Encoding", "gzip;q=0," * 7_000),
        ("User-Agent", "Firefox/" * 7_500),
        ("If-None-Match", '"a", ' * 12_000 + "x"),
        ("Range", "bytes=" + "0-0," * 14_000),
        ("Idempotency-Key", "k" * 60_000),
        ("X-Forwarded-For", "127.0.0.1," * 6_000),
    ],
)
def test_no_header_costs_more_than_a_few_answers(server: Server, name: str, value: str) -> None:
    """One of them held everybody up for ten seconds."""

    def seconds_of(count: int, **headers: str) -> float:
        began = cpu_of(server)
        with server.guest() as client:
            for _ in range(count):
                for method, url in (("GET", "/limits"), ("POST", "/login"), ("GET", "/static/icon.svg")):
                    assert client.request(method, url, headers=headers).status_code < 500
        return cpu_of(server) - began

    seconds_of(2)
    assert seconds_of(5, **{name: value}) < 10 * (seconds_of(5) + 0.02)


def cpu_of(server: Server) -> float:
    """The processor time that the server has used, in seconds."""
    assert server.process is not None
    used = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, used)) / os.sysconf("SC_CLK_TCK")


# ---------------------------------------------------------------- slow uploads


def upload(server: Server, who: str, length: int) -> socket.socket:
    """A connection on which an upload has begun and does not go on."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    head = f"POST /session/import HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {who}\r\n"
    connection.sendall(f"{head}Content-Type: {JSON}\r\nContent-Length: {length}\r\n\r\n".encode() + b"[" * 10)
    return connection


def test_54_slow_uploads_keep_nobody_else_from_importing(server: Server) -> None:
    """More than there are places: of several actors, and of the one who imports meanwhile."""
    tokens = server.people(*(f"drip{number}" for number in range(6)), "brisk")
    brisk = tokens.pop("brisk")
    with ExitStack() as open_until_the_end:
        for who in (*tokens.values(), *tokens.values(), brisk, brisk):
            open_until_the_end.enter_context(closing(upload(server, who, 1_000_000)))
        with server.script(brisk) as client:
            for _ in range(3):
                answer = client.post("/session/import", content=EMPTY_FILE, headers={"Content-Type": JSON})
                assert answer.status_code == 201, answer.text


# ---------------------------------------------------------------- what all of them hold together


@pytest.fixture
def small_room(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(bodies, "SMALL_BYTES", 10)
    monkeypatch.setattr(bodies, "SHARED_BYTES", 100)
    return


class Client:
    """Sends the parts of a body one by one."""

    def __init__(self, room: Bodies) -> None:
        self.body = Body(room, 1_000, False)
        self._parts: asyncio.Queue[Any] = asyncio.Queue()
        self.read = self.body.reading(self._parts.get)

    def sends(self, size: int, more: bool = True) -> None:
        self._parts.put_nowait({"type": "http.request", "body": b"x" * size, "more_body": more})


@pytest.mark.usefixtures("small_room")
async def test_where_bodies_hold_too_much_the_one_that_has_come_longest_gives_way() -> None:
    room = Bodies()
    slow, quick, whole = Client(room), Client(room), Client(room)
    whole.sends(30, more=False)
    await whole.read()
    slow.sends(40)
    await slow.read()
    waiting = asyncio.ensure_future(slow.read())  # type: ignore[arg-type]
    await asyncio.sleep(0)
    quick.sends(25)
    await quick.read()
    assert room.held == 95
    quick.sends(20)
    await quick.read()
    with pytest.raises(BodyRefused) as refused:
        await waiting
    assert (refused.value.status_code, refused.value.code) == (503, "too_busy")
    assert room.held == 30 + 45, "one that is whole is not given up"
    for client in (whole, quick, slow):
        room.release(client.body)
    assert room.held == 0


@pytest.mark.usefixtures("small_room")
async def test_one_that_was_given_up_between_two_reads_is_not_read_on() -> None:
    room = Bodies()
    slow, quick = Client(room), Client(room)
    slow.sends(60)
    await slow.read()
    quick.sends(60)
    await quick.read()
    slow.sends(1)
    with pytest.raises(BodyRefused):
        await slow.read()
    assert room.held == 60


@pytest.mark.usefixtures("small_room")
async def test_a_body_holds_room_until_its_answer_begins() -> None:
    room = Bodies()
    client = Client(room)
    client.sends(50, more=False)
    await client.read()
    assert room.held == 50

    async def sent(message: object) -> None:
        pass

    await client.body.answering(sent)({"type": "http.response.start", "status": 200, "headers": []})
    assert room.held == 0

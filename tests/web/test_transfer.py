"""Sessions as files over the wire: what is downloaded goes in again, from scripts and from plain forms."""

import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import httpx
import pytest

from services.readers import ASK_SECONDS
from tests.web.running import Server, a_server
from tests.web.wire import (
    ABSENT,
    BROWSER,
    JSON,
    STREAM,
    assert_session,
    chat,
    create,
    hidden_fields,
    is_page,
    problem,
    streaming,
)
from web.guard import BODY_BYTES, FILE_BYTES

EMPTY_FILE = b'{"format": "turnkeeper-sessions/1", "exported_at": "2026-05-04T12:00:00Z", "sessions": []}'
HOSTILE = "=1+1\n# x\r<b> \u2028 🦊 ```"


def turns_of(client: httpx.Client, session_id: str) -> list[tuple[str, str, str]]:
    found = client.get(f"/session/{session_id}/turns", headers={"Accept": JSON}).json()["turns"]
    return [(turn["prompt"], turn["reply"], turn["model"]) for turn in found]


def test_a_session_goes_out_as_a_file_and_in_again(guest: httpx.Client, stranger: httpx.Client) -> None:
    turn = chat(guest, HOSTILE, model="smart")
    chat(guest, "and on", session_id=turn["session_id"])
    file = guest.get(f"/session/{turn['session_id']}/export")
    assert file.headers["content-type"] == JSON
    assert file.headers["content-disposition"] == (
        f'attachment; filename="turnkeeper-session-{turn["session_id"]}.json"'
    )
    assert file.headers["x-turnkeeper-sessions"] == "1"
    taken = stranger.post("/session/import", content=file.content, headers={"Content-Type": JSON})
    assert taken.status_code == 201, taken.text
    assert set(taken.json()) == {"sessions", "left", "refusal"}
    (session,) = taken.json()["sessions"]
    assert_session(session)
    assert turns_of(stranger, session["id"]) == turns_of(guest, turn["session_id"])
    assert session["last_model"] == "smart"
    journal = stranger.get(f"/session/{session['id']}/journal").json()["journal"]
    assert [(row["what"], row["reason"]) for row in journal][-1] == ("session_created", "import")


def test_a_transcript_is_a_file_to_read(guest: httpx.Client) -> None:
    turn = chat(guest, HOSTILE)
    file = guest.get(f"/session/{turn['session_id']}/export?format=md", headers={"Accept": BROWSER})
    assert file.headers["content-type"] == "text/markdown; charset=utf-8"
    assert file.headers["content-disposition"].endswith('.md"')
    assert file.headers["x-content-type-options"] == "nosniff"
    assert "\n> =1+1\n> # x\n> <b> \u2028 🦊 ```\n" in file.content.decode()


def test_all_sessions_are_one_file(guest: httpx.Client, stranger: httpx.Client) -> None:
    for place in range(3):
        create(guest, title=f"number {place}")
    create(stranger, title="number of a stranger")
    file = guest.get("/session/export")
    assert [session["title"] for session in file.json()["sessions"]] == ["number 2", "number 1", "number 0"]
    assert file.headers["x-turnkeeper-sessions"] == "3"
    some = guest.get("/session/export?q=number 1&state=active")
    assert [session["title"] for session in some.json()["sessions"]] == ["number 1"]
    assert "stranger" not in guest.get("/session/export?format=md").text
    taken = guest.post("/session/import", json=file.json()).json()
    assert [session["title"] for session in taken["sessions"]] == ["number 2", "number 1", "number 0"]
    assert (taken["left"], taken["refusal"]) == (0, None)


def test_a_byte_order_mark_is_taken_at_every_door_and_utf_16_is_named(guest: httpx.Client) -> None:
    id = create(guest, title="marked")["id"]
    file = guest.get(f"/session/{id}/export").text
    marked = file.encode("utf-8-sig")
    in_json = {"headers": {"Content-Type": JSON}}
    assert guest.post("/session/import", content=marked, **in_json).status_code == 201
    assert guest.post("/session/import", files={"file": ("x.json", marked, JSON)}).status_code == 201
    body = '{"title": "named"}'
    assert guest.post(f"/session/{id}/rename", content=body.encode("utf-8-sig"), **in_json).json()["title"] == "named"
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        for answer in (
            guest.post("/session/import", content=file.encode(encoding), **in_json),
            guest.post(
                "/session/import", files={"file": ("x.json", file.encode(encoding), JSON)}, headers={"Accept": JSON}
            ),
            guest.post(f"/session/{id}/rename", content=body.encode(encoding), **in_json),
        ):
            assert "UTF-16" in problem(answer, 400, "invalid_request")["detail"]


def test_an_import_can_be_followed(guest: httpx.Client) -> None:
    for place in range(3):
        create(guest, title=str(place))
    file = guest.get("/session/export").json()
    with streaming(guest, "/session/import", method="POST", json=file) as stream:
        events = stream.rest()
    assert [event.name for event in events] == ["progress"] * 3 + ["end"]
    assert [(event.json["done"], event.json["of"]) for event in events[:3]] == [(1, 3), (2, 3), (3, 3)]
    assert [session["title"] for session in events[-1].json["sessions"]] == ["2", "1", "0"]
    answer = guest.post("/session/import", json={}, headers={"Accept": STREAM})
    problem(answer, 400, "invalid_request")


def test_a_plain_form_takes_a_file(server: Server) -> None:
    with server.guest(Accept=BROWSER) as visitor:
        made = visitor.post("/session/create", data={"title": "by hand"}, headers={"Accept": JSON})
        session_id = made.json()["id"]
        page = visitor.get("/session")
        assert 'href="/session/export?q=&amp;show=all"' in page.text
        assert f"/session/{session_id}/export" in visitor.get(f"/session/{session_id}").text
        fields = hidden_fields(page.text, "/session/import")
        file = {"file": ("x.json", visitor.get("/session/export").content, JSON)}
        answers = [visitor.post("/session/import", data=fields, files=file) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [303, 303]
        assert answers[0].headers["location"] == answers[1].headers["location"] != f"/session/{session_id}"
        assert "by hand" in visitor.get(answers[0].headers["location"]).text


@pytest.mark.parametrize("accept", [JSON, BROWSER, STREAM])
def test_a_limit_ends_an_import_and_says_how_it_goes_on(newcomer: Callable[..., httpx.Client], accept: str) -> None:
    """Three sessions may be open there, and three be made at once."""
    client = newcomer()
    create(client, title="first")
    file = client.get("/session/export").json()
    file["sessions"] *= 4
    headers = {"Accept": accept, "Idempotency-Key": "k"}
    if accept == STREAM:
        with streaming(client, "/session/import", method="POST", json=file, headers=headers) as stream:
            found: Any = stream.rest()[-1].json
    else:
        answer = client.post("/session/import", json=file, headers=headers)
        assert answer.status_code == 201
        if accept == BROWSER:
            assert is_page(answer) and "2 sessions came in, and 2 did not." in answer.text
            assert hidden_fields(answer.text, "/session/import") == {"idempotency_key": "k"}
        found = answer.json() if accept == JSON else {}
    if found:
        assert (len(found["sessions"]), found["left"], found["refusal"]["code"]) == (2, 2, "session_quota")
    full = client.post("/session/import", json=file)
    problem(full, 409, "session_quota")
    one = client.get("/session").json()["sessions"][-1]
    client.post(f"/session/{one['id']}/close", json={}).raise_for_status()
    on = client.post("/session/import", json=file, headers={"Idempotency-Key": "k"})
    assert on.status_code == 201
    # The place is free, and the rate may not be yet.
    assert (on.json()["left"], on.json()["refusal"]["code"]) in ((1, "session_quota"), (2, "rate_limited"))
    ids = [session["id"] for session in on.json()["sessions"]]
    assert len(set(ids)) == len(ids) == 4 - on.json()["left"]
    if found:
        assert ids[:2] == [session["id"] for session in found["sessions"]]


# ---------------------------------------------------------------- what is refused


def test_a_file_may_be_larger_than_other_bodies_and_not_endless(guest: httpx.Client) -> None:
    session_id = create(guest, title="large")["id"]
    file = guest.get(f"/session/{session_id}/export").json()
    file["sessions"][0]["turns"] = [
        {
            "id": ABSENT[:-6] + f"{place:06x}", "parent_id": None, "prompt": "p" * 90_000, "reply": "r" * 900_000,
            "model": "m", "state": "done", "error_code": None, "error_detail": None, "prompt_tokens": 0,
            "reply_tokens": 0, "estimated": True, "cost_nanos": 0, "context_left_out": 0,
            "created_at": "2026-05-04T12:00:00Z", "first_text_at": None, "ended_at": "2026-05-04T12:00:00Z",
            "copied_from": None,
        }
        for place in range(1, 6)
    ]  # fmt: skip
    body = json.dumps(file).encode()
    assert BODY_BYTES < len(body) < FILE_BYTES
    taken = guest.post("/session/import", content=body, headers={"Content-Type": JSON})
    assert taken.status_code == 201, taken.text
    assert taken.json()["sessions"][0]["turn_count"] == 5
    for url, size in (("/session/import", FILE_BYTES), ("/chat", BODY_BYTES)):
        problem(guest.post(url, content=b" " * (size + 1), headers={"Content-Type": JSON}), 413, "too_large")

    def endless() -> Any:
        for _ in range(FILE_BYTES // 2**20 + 2):
            yield b" " * 2**20

    problem(guest.post("/session/import", content=endless(), headers={"Content-Type": JSON}), 413, "too_large")


def test_nobody_unknown_sends_a_large_body(server: Server) -> None:
    with server.script("tk_wrong") as nobody:
        answer = nobody.post("/session/import", content=b" " * (FILE_BYTES - 1), headers={"Content-Type": JSON})
        problem(answer, 401, "unauthenticated")


@pytest.mark.parametrize(
    "request_",
    [
        {"json": {}},
        {"json": []},
        {"content": b"{", "headers": {"Content-Type": JSON}},
        {"content": b"\xff\xfe", "headers": {"Content-Type": JSON}},
        {"content": b"[" * 100_000, "headers": {"Content-Type": JSON}},
        {"content": b"", "headers": {"Content-Type": JSON}},
        {"content": b"x", "headers": {"Content-Type": "text/plain"}},
        {"data": {"file": "{}"}},
        {"files": {"file": b"no json"}},
        {"files": {"file": b""}},
        {"files": {"other": b"{}"}},
        {"files": {"file": b"{}"}, "data": {"more": "x"}},
        {"files": [("file", b"{}"), ("file", b"{}")]},
        {"files": {"idempotency_key": b"x", "file": b"{}"}},
        {"content": b"--x\r\nbroken", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        {"content": b"--x--", "headers": {"Content-Type": "multipart/form-data"}},
        {"files": {"file": EMPTY_FILE, "idempotency_key": (None, b"x", "text/plain; charset=klingon")}},
        {"files": [("file", EMPTY_FILE), ("file", EMPTY_FILE)]},
    ],
    ids=lambda request: str(request)[:60],
)
def test_what_is_no_file_is_a_400(guest: httpx.Client, request_: dict[str, Any]) -> None:
    problem(guest.post("/session/import", **request_), 400, "invalid_request")
    page = guest.post("/session/import", **request_ | {"headers": {**request_.get("headers", {}), "Accept": BROWSER}})
    assert page.status_code == 400 and is_page(page)


def test_an_admin_takes_nobody_elses_session_along(guest: httpx.Client, ada: httpx.Client) -> None:
    turn = chat(guest, "canary-of-the-owner")
    for kind in ("json", "md"):
        problem(ada.get(f"/session/{turn['session_id']}/export?format={kind}"), 403, "forbidden")
        assert "canary-of-the-owner" not in ada.get(f"/session/export?format={kind}").text
    problem(guest.get(f"/session/{turn['session_id']}/export?format=pdf"), 400, "invalid_request")


def test_a_script_that_only_reads_exports_and_imports_nothing(server: Server, ann: httpx.Client) -> None:
    create(ann, title="for the reader")
    made = server.run("token", "create", "--account", "ann", "--name", "reader", "--scope", "read")
    with server.script(made.stdout.strip()) as reader:
        file = reader.get("/session/export?q=for the reader")
        assert len(file.json()["sessions"]) >= 1
        problem(reader.post("/session/import", json=file.json()), 403, "forbidden")


def long_file(turns: int) -> dict[str, Any]:
    """A file of one session with so many turns, each of 100 KB."""
    turn = {
        "id": ABSENT, "parent_id": None, "prompt": "x", "reply": "y" * 100_000, "model": "fast", "state": "done",
        "error_code": None, "error_detail": None, "prompt_tokens": 1, "reply_tokens": 1, "estimated": True,
        "cost_nanos": 0, "context_left_out": 0, "created_at": "2026-05-04T12:00:00Z", "first_text_at": None,
        "ended_at": "2026-05-04T12:00:01Z", "copied_from": None,
    }  # fmt: skip
    ids = [str(uuid4()) for _ in range(turns)]
    session = {
        "id": ABSENT, "title": "long", "opening": "", "instructions": "", "origin": "page", "state": "active",
        "last_model": None, "created_at": "2026-05-04T12:00:00Z", "last_activity_at": "2026-05-04T12:00:00Z",
        "head_id": ids[-1],
        "turns": [turn | {"id": id, "parent_id": parent} for id, parent in zip(ids, [None, *ids], strict=False)],
    }  # fmt: skip
    return {"format": "turnkeeper-sessions/1", "exported_at": "2026-05-04T12:00:00Z", "sessions": [session]}


@contextmanager
def slow_reader(server: Server, url: str, who: str) -> Iterator[socket.socket]:
    """Somebody who asks and has hardly any room for the answer."""
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(("127.0.0.1", server.port))
        reader.sendall(f"GET {url} HTTP/1.1\r\nHost: 127.0.0.1\r\n{who}\r\nConnection: close\r\n\r\n".encode())
        yield reader


def test_an_export_that_nobody_takes_holds_up_nobody(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The reader goes after the first bytes; the server says nothing of it, and stops in time all the same."""
    with a_server(tmp_path_factory.mktemp("export")) as running, running.guest(Accept=JSON) as client:
        assert client.post("/session/import", json=long_file(40)).status_code == 201
        for kind in ("json", "md") * 3:
            with slow_reader(
                running, f"/session/export?format={kind}", f"Cookie: tk_guest={client.cookies['tk_guest']}"
            ) as reader:
                assert reader.recv(12).endswith(b" 200")
                while b"yyy" not in (told := reader.recv(1000)):  # in the midst of the turns that were read at once
                    assert told
                reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert chat(client, "still there")["state"] == "done"


def test_O4_an_export_ends_with_the_right_of_who_reads_it(server: Server, ada: httpx.Client) -> None:
    name = f"reader-{uuid4().hex[:8]}"
    made = ada.post("/admin/accounts", json={"name": name, "service": True})
    assert made.status_code == 201
    kept, lost = (ada.post("/account/tokens", json={"name": "export", "account": name}).json() for _ in range(2))
    with server.script(kept["token"]) as script:
        assert script.post("/session/import", json=long_file(150)).status_code == 201
        whole = len(script.get("/session/export").content)
        assert whole > 15_000_000  # more than the kernel keeps for a reader who does not read

    def read(token: str, meanwhile: Callable[[], object] = bool) -> int:
        """How much a slow reader gets."""
        with slow_reader(server, "/session/export", f"Authorization: Bearer {token}") as reader:
            got = len(reader.recv(1000))
            meanwhile()
            time.sleep(ASK_SECONDS)
            while piece := reader.recv(1_000_000):
                got += len(piece)
            return got

    revoked = {"token_id": lost["tokens"][0]["id"], "reason": "r"}
    with ThreadPoolExecutor(1) as pool:
        all_of_it = pool.submit(read, kept["token"])
        assert read(lost["token"], lambda: ada.post("/account/tokens/revoke", json=revoked).raise_for_status()) < whole
        assert all_of_it.result() > whole

"""Somebody else's is the same as not there: for every route with an id, whoever asks, byte for byte."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import pytest
from litestar.handlers import HTTPRouteHandler

from tests.web.running import Server, a_server
from tests.web.wire import (
    ABSENT,
    BROWSER,
    HTMX,
    JSON,
    STREAM,
    begin,
    chat,
    create,
    problem,
    refused,
    session_of,
    streaming,
    turn_of,
)
from web.routes import ROUTES

SECRET = "canary-7f3a-of-the-owner"
#: what a verb needs besides its URL, by the URL's last word or two
FIELDS: dict[str, dict[str, Any]] = {
    "rename": {"title": "Taken over"},
    "read": {"reason": "x"},
    "chat": {"prompt": "x"},
    "edit": {"prompt": "x"},
    "switch": {"session_id": ABSENT, "model": "smart"},
    "models/change": {"model": "smart"},
    "models/restore": {"model": "smart"},
    "models/test": {"model": "smart"},
    "groups/change": {"group": "user"},
    "groups/restore": {"group": "user"},
    "limit": {"group": "user", "limit": "turns"},
    "moves": {"from": "fast", "to": "smart", "reason": "x"},
    "moves/stop": {"move_id": ABSENT},
    "act": {"session_ids": [ABSENT], "deed": "stop"},
    "completions": {"model": "fast", "messages": [{"role": "user", "content": "x"}]},
    "account/password": {"old": "correct horse", "new": "battery staple"},
    "account/tokens": {"name": "x"},
    "tokens/revoke": {"token_id": ABSENT},
    "admin/accounts": {"name": "x", "password": "correct horse"},
    "accounts/change": {"account_id": ABSENT},
    "accounts/password": {"account_id": ABSENT, "password": "correct horse"},
}
#: what differs between two answers anyway
OWN = ("x-request-id", "date", "content-length", "set-cookie")


@dataclass(frozen=True)
class Case:
    method: str
    path: str
    name: str

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def cases() -> list[Case]:
    """Every route whose path has the id of a session or a turn."""

    def methods(handler: HTTPRouteHandler) -> list[str]:
        return sorted(handler.http_methods - {"OPTIONS", "HEAD"})

    return [
        Case(method, path, handler.fn.__name__)
        for handler in ROUTES
        for path in sorted(handler.paths)
        if "{session_id" in path or "{turn_id" in path
        for method in methods(handler)
    ]


CASES = cases()
WHO = ("another guest", "a user", "a read-only token", "nobody")


@dataclass(frozen=True)
class Owned:
    """What the owner has: a session with an ended turn and one with a running turn."""

    session_id: str
    turn_id: str
    busy_session_id: str
    running_turn_id: str


@pytest.fixture(scope="module")
def owner(server: Server) -> Iterator[httpx.Client]:
    with server.guest(Accept=JSON) as client:
        yield client


@pytest.fixture(scope="module")
def owned(owner: httpx.Client) -> Owned:
    session = create(owner, title=f"Title {SECRET}")
    turn = chat(owner, f"Prompt {SECRET}", session_id=session["id"])
    running = begin(owner, f"/tokens 3000 /delay 100ms {SECRET}")
    return Owned(session["id"], turn["id"], running["session_id"], running["id"])


@pytest.fixture(scope="module")
def others(server: Server) -> Iterator[dict[str, httpx.Client]]:
    """Who else may ask. Their pages list no chats, whose times would pass between two requests."""
    token = server.people("stranger")["stranger"]
    read = server.run("token", "create", "--account", "stranger", "--name", "reads", "--scope", "read")
    assert read.returncode == 0, read.stderr
    clients = {
        "another guest": server.guest(Accept=JSON),
        "a user": server.script(token),
        "a read-only token": server.script(read.stdout.strip()),
        "nobody": server.guest(Accept=JSON),
    }
    clients["another guest"].get("/models")
    yield clients
    for client in clients.values():
        client.close()


def filled(path: str, session_id: str, turn_id: str) -> str:
    path = path.replace("{session_id:uuid}", session_id).replace("{turn_id:uuid}", turn_id)
    path = path.replace("{account_id:uuid}", ABSENT).replace("{model:path}", "none")
    assert "{" not in path
    return path


def needs(url: str) -> dict[str, Any]:
    """What a verb needs, by the last two words of its URL or the last one."""
    words = url.split("/")
    return FIELDS.get("/".join(words[-2:])) or FIELDS.get(words[-1], {})


def asked(client: httpx.Client, case: Case, url: str, accept: str, **headers: str) -> httpx.Response:
    if accept != JSON:
        body = {"data": needs(url)} if case.method == "POST" else {}
    else:
        body = {"json": needs(url)} if case.method == "POST" else {}
    return client.request(case.method, url, headers={"Accept": accept, **headers}, **body)  # type: ignore[arg-type]


def told(answer: httpx.Response, *ids: str) -> tuple[int, str, dict[str, str]]:
    """Everything an answer tells, without what differs for every request."""
    body = answer.text
    if answer.headers.get("x-request-id"):
        body = body.replace(answer.headers["x-request-id"], "REQUEST")
    body = re.sub(r'"request_id":"\w*"', "", body)
    # An address that was asked for may be told back; a key of a form is new each time.
    for id in ids:
        body = body.replace(id, "ID")
    body = re.sub(r'(name="idempotency_key"[^>]*value=")\w+', r"\1KEY", body)
    return answer.status_code, body, {name: value for name, value in answer.headers.items() if name not in OWN}


def test_there_are_routes_to_walk() -> None:
    assert len(CASES) >= 12
    assert {case.method for case in CASES} == {"GET", "POST"}


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_I11_what_is_somebody_elses_answers_like_what_is_not_there(
    owned: Owned, others: dict[str, httpx.Client], case: Case, who: str
) -> None:
    for accept in (JSON, BROWSER, STREAM):
        absent = asked(others[who], case, filled(case.path, ABSENT, ABSENT), accept)
        for session_id, turn_id in (
            (owned.session_id, owned.turn_id),
            (owned.busy_session_id, owned.running_turn_id),
        ):
            foreign = asked(others[who], case, filled(case.path, session_id, turn_id), accept)
            assert told(foreign, session_id, turn_id) == told(absent, ABSENT)
            assert foreign.status_code == (403 if who == "a read-only token" and case.method == "POST" else 404)
            assert SECRET not in foreign.text


@pytest.mark.parametrize("case", CASES, ids=str)
def test_I11_htmx_is_told_no_more(owned: Owned, others: dict[str, httpx.Client], case: Case) -> None:
    for client in others.values():
        foreign = asked(client, case, filled(case.path, owned.session_id, owned.turn_id), "text/html", **HTMX)
        absent = asked(client, case, filled(case.path, ABSENT, ABSENT), "text/html", **HTMX)
        assert told(foreign, owned.session_id, owned.turn_id) == told(absent, ABSENT)
        assert foreign.status_code in (403, 404)


@pytest.mark.parametrize("who", WHO[:2])
@pytest.mark.parametrize("accept", [JSON, STREAM, BROWSER])
def test_I11_an_id_in_a_body_is_walked_too(
    owned: Owned, others: dict[str, httpx.Client], who: str, accept: str
) -> None:
    for url, fields in (
        ("/chat", {"prompt": "x"}),
        ("/chat", {"prompt": "x", "model": "smart"}),
        ("/chat", {"prompt": "x", "model": "none"}),
        ("/chat", {"prompt": "x", "expected_version": 7}),
        ("/models/switch", {"model": "smart"}),
        ("/models/switch", {"model": "none"}),
        ("/models/switch", {"model": "smart", "expected_version": 7}),
        ("/models/switch", {"model": "smart", "when": "idle"}),
        ("/models/switch", {"model": "smart", "lock": True}),
    ):
        for session_id in (owned.session_id, owned.busy_session_id):
            foreign = others[who].post(url, json=fields | {"session_id": session_id}, headers={"Accept": accept})
            absent = others[who].post(url, json=fields | {"session_id": ABSENT}, headers={"Accept": accept})
            assert told(foreign, session_id) == told(absent, ABSENT), fields
            assert foreign.status_code == 404
            assert SECRET not in foreign.text


@pytest.mark.parametrize("who", WHO[:2])
def test_I11_an_id_for_an_openai_client_is_walked_too(owned: Owned, others: dict[str, httpx.Client], who: str) -> None:
    def asked(session_id: str, **fields: Any) -> list[httpx.Response]:
        body, url = FIELDS["completions"] | fields, "/v1/chat/completions"
        return [
            others[who].post(url, json=body, headers={"X-Turnkeeper-Session": session_id}),
            others[who].post(url, json=body | {"metadata": {"session_id": session_id}}),
        ]

    for fields in ({}, {"model": "none"}, {"stream": True}, {"messages": [{"role": "system", "content": SECRET}]}):
        if "messages" in fields:
            fields = {"messages": [*fields["messages"], *FIELDS["completions"]["messages"]]}
        for session_id in (owned.session_id, owned.busy_session_id):
            for foreign, absent in zip(asked(session_id, **fields), asked(ABSENT, **fields), strict=True):
                assert told(foreign, session_id) == told(absent, ABSENT)
                assert foreign.status_code == 404
                assert SECRET not in foreign.text


def test_the_turn_of_somebody_else_is_no_place_in_ones_own_session(
    owned: Owned, others: dict[str, httpx.Client]
) -> None:
    client = others["another guest"]
    mine = chat(client, "mine")["session_id"]
    for turn_id in (owned.turn_id, owned.running_turn_id):
        for url in (
            f"/session/{mine}/turns?cursor=TURN",
            f"/session/{mine}/turns?all=true&cursor=TURN",
            f"/session/{mine}?before=TURN",
        ):
            for accept in (JSON, BROWSER):
                foreign = client.get(url.replace("TURN", turn_id), headers={"Accept": accept})
                # A later id than every turn here, so that an order by id cannot tell them apart either.
                absent = client.get(
                    url.replace("TURN", str(turn_id[:-12] + uuid4().hex[:12])), headers={"Accept": accept}
                )
                assert foreign.status_code == absent.status_code
                assert SECRET not in foreign.text


def test_a_position_of_somebody_else_opens_nothing(owned: Owned, others: dict[str, httpx.Client]) -> None:
    client = others["another guest"]
    session = create(client)
    mine = chat(client, "only mine", session_id=session["id"])
    for position in (f"{owned.turn_id}:0", f"{owned.running_turn_id}:0"):
        for url in (f"/session/{session['id']}/events", f"/chat/{mine['id']}/events"):
            with streaming(client, url, after=position) as stream:
                events = [stream.next("turn"), stream.next("end")]
            assert [event.json["id"] for event in events] == [mine["id"], mine["id"]]
            assert SECRET not in stream.frames.raw.decode()


@pytest.mark.parametrize("who", [*WHO, "the admin"])
def test_nobody_elses_title_or_text_is_on_any_page(
    owned: Owned, others: dict[str, httpx.Client], ada: httpx.Client, who: str
) -> None:
    client = others.get(who, ada)
    for path in ("/", "/session", "/session?limit=200", f"/session?q={SECRET}", "/models", "/limits", "/login"):
        for accept in (JSON, BROWSER):
            answer = client.get(path, headers={"Accept": accept})
            assert answer.status_code == 200
            assert SECRET not in answer.text.replace(f'value="{SECRET}"', "")
            assert owned.session_id not in answer.text


def test_a_stream_that_runs_is_nobody_elses(owned: Owned, others: dict[str, httpx.Client]) -> None:
    for client in others.values():
        for url in (f"/chat/{owned.running_turn_id}/events", f"/session/{owned.busy_session_id}/events"):
            problem(client.get(url, headers={"Accept": STREAM}), 404, "session_not_found")


def test_after_all_of_this_everything_is_as_it_was(owner: httpx.Client, owned: Owned) -> None:
    session = session_of(owner, owned.session_id)
    assert session["title"] == f"Title {SECRET}"
    assert (session["state"], session["turn_count"], session["last_model"]) == ("active", 1, "fast")
    assert turn_of(owner, owned.running_turn_id)["state"] == "running"
    rows = owner.get(f"/session/{owned.session_id}/journal").json()["journal"]
    assert {row["actor"] for row in rows} <= {session["owner"]["name"], "system"}
    owner.post(f"/chat/{owned.running_turn_id}/stop", json={}).raise_for_status()


# ---------------------------------------------------------------- one person, several ways in


def test_a_guest_is_the_same_in_another_window(server: Server, owner: httpx.Client, owned: Owned) -> None:
    with server.guest(Accept=JSON) as window:
        window.cookies = owner.cookies
        assert window.get(f"/session/{owned.session_id}").status_code == 200


def test_a_token_acts_for_its_account_and_a_second_one_too(server: Server, ann: httpx.Client) -> None:
    session = create(ann, title="by the first token")
    made = server.run("token", "create", "--account", "ann", "--name", "second", "--scope", "chat")
    with server.script(made.stdout.strip()) as second:
        assert session_of(second, session["id"])["title"] == "by the first token"


def test_a_read_only_token_reads_and_writes_nothing(server: Server, ann: httpx.Client) -> None:
    made = server.run("token", "create", "--account", "ann", "--name", "reader", "--scope", "read")
    turn = chat(ann, "for the reader")
    with server.script(made.stdout.strip()) as reader:
        for path in (f"/session/{turn['session_id']}", f"/chat/{turn['id']}", "/session", "/models", "/limits"):
            assert reader.get(path).status_code == 200
        with streaming(reader, f"/chat/{turn['id']}/events") as stream:
            assert stream.rest()[-1].name == "end"
        before = session_of(ann, turn["session_id"])
        for url, fields in (
            ("/chat", {"prompt": "x"}),
            ("/session/create", {}),
            ("/models/switch", {"session_id": turn["session_id"], "model": "smart"}),
            *(
                (f"/session/{turn['session_id']}/{verb}", FIELDS.get(verb, {}))
                for verb in ("rename", "close", "delete")
            ),
            (f"/chat/{turn['id']}/stop", {}),
        ):
            problem(reader.post(url, json=fields), 403, "forbidden")
        problem(reader.get("/admin"), 403, "forbidden")
    assert session_of(ann, turn["session_id"]) == before


# ---------------------------------------------------------------- where only accounts may come in

OPEN = {
    "/metrics",
    "/healthz",
    "/readyz",
    "/openapi.json",
    "/login",
    "/login/password",
    "/logout",
    "/setup/{secret:str}",
}


def test_without_guests_every_route_wants_an_account(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("accounts")
    with a_server(folder, TURNKEEPER_ACCESS="accounts") as closed, closed.guest(Accept=JSON) as nobody:
        walked = 0
        for handler in ROUTES:
            for path in handler.paths:
                if path in OPEN:
                    continue
                for method in handler.http_methods - {"OPTIONS", "HEAD"}:
                    case = Case(method, path, handler.fn.__name__)
                    answer = asked(nobody, case, filled(path, ABSENT, ABSENT), JSON)
                    refused(answer, 401, "unauthenticated")
                    assert answer.headers["www-authenticate"].startswith("Bearer")
                    assert "set-cookie" not in answer.headers
                    walked += 1
        assert walked > 15
        page = nobody.get(f"/session/{ABSENT}", headers={"Accept": BROWSER})
        assert page.status_code == 401
        assert f'name="next" value="/session/{ABSENT}"' in page.text
        typed = nobody.post("/chat", data={"prompt": "typed while signed out"}, headers={"Accept": BROWSER})
        assert typed.status_code == 401
        assert typed.text.count("typed while signed out</textarea>") == 1
        made = closed.run("account", "create", "ann", "--permanent", stdin="correct horse battery\n")
        assert made.returncode == 0, made.stderr
        signed_in = nobody.post("/login", data={"name": "ann", "password": "correct horse battery"})
        assert signed_in.status_code == 303
        assert chat(nobody, "let in")["state"] == "done"
        nobody.post("/logout", data={})
        problem(nobody.get("/session"), 401, "unauthenticated")

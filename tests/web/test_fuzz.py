"""No request that the description allows, or nearly allows, ever makes the server fail, whoever sends it.

`make fuzz` does the same at length, with a fuzzer that others have written.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.web.people import PASSWORD
from tests.web.running import Server, a_server
from tests.web.test_openapi import assert_described
from tests.web.test_workers import rows
from tests.web.wire import ABSENT, BROWSER, HTMX, JSON, PROBLEM_KEYS, STREAM, begin, chat, create

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(2**80), max_value=2**80),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=40),
    st.sampled_from(["", "\0", "\ud800".encode("utf-8", "surrogatepass").decode("utf-8", "replace"), ABSENT, "fast"]),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)
#: where something is made, and what asks for it
MADE = {
    "/session/create": "session_id", "/session/{session_id}/fork": "session_id", "/chat": "turn_id",
    "/chat/{turn_id}/retry": "turn_id", "/chat/{turn_id}/edit": "turn_id", "/admin/accounts": "account_id",
    "/admin/moves": "move_id", "/account/tokens": "token_id",
}  # fmt: skip
MOST_KNOWN = 30
#: streams that go on, and what nobody is given an answer to twice
NEVER = ("/events", "/setup/{secret}")
FEW = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module", params=["sqlite", *(["postgres"] if os.environ.get("LONG_TESTS") else [])])
def attacked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of its own: what is done to it is done to everybody on it."""
    settings = {"TURNKEEPER_ADMINS_READ": "true"}
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
        rows(url, "CREATE DATABASE fuzzed")
        settings["TURNKEEPER_DATABASE_URL"] = url.rsplit("/", 1)[0] + "/fuzzed"
    with a_server(tmp_path_factory.mktemp("fuzzed"), **settings) as server:
        yield server
    if request.param == "postgres":
        rows(url, "DROP DATABASE fuzzed WITH (FORCE)")


class World(NamedTuple):
    """Everybody who asks, what there is to ask for, and what is said about it."""

    clients: dict[str, httpx.Client]
    #: {name of a field: what it may hold}; answers add to it
    found: dict[str, list[str]]
    #: what would make a caller somebody else
    spared: set[str]
    description: dict[str, Any]


@pytest.fixture(scope="module")
def world(attacked: Server) -> Iterator[World]:
    """A guest, a user, an admin and a script that only reads, each with an ended turn and a running one."""
    tokens = attacked.people("ada:admin", "ann", "cat")
    clients = {name: attacked.script(tokens[name]) for name in ("ada", "ann")}
    with attacked.guest(Accept=JSON) as browser:
        browser.post("/login", data={"name": "ann", "password": PASSWORD})
        reads = browser.post("/account/tokens", json={"name": "reads", "scope": "read"}).json()
    (cat,) = clients["ada"].get("/admin/accounts", params={"q": "cat"}).json()["accounts"]
    cat = clients["ada"].get(f"/admin/accounts/{cat['id']}").json()
    found: dict[str, list[str]] = {"token_id": [cat["tokens"][0]["id"]], "account_id": [cat["id"]]}
    found |= {"move_id": [ABSENT], "login_id": [ABSENT], "session_id": [ABSENT], "turn_id": [ABSENT]}
    found |= {"group": ["fuzz", "none"], "model": ["fast", "smart", "session", "none", ""]}
    clients["a guest"] = attacked.guest(Accept=JSON)
    for client in clients.values():
        session = create(client, title="fuzzed")
        running = begin(client, "/tokens 9000 /delay 50ms")
        found["session_id"] += [session["id"], running["session_id"]]
        found["turn_id"] += [chat(client, "hello", session_id=session["id"])["id"], running["id"]]
    spared = set()
    for client in (clients["ada"], clients["ann"]):
        own = client.get("/account").json()
        spared |= {own["id"], *(token["id"] for token in own["tokens"])}
    clients["a reader"] = attacked.script(reads["token"])
    yield World(clients, found, spared, clients["ann"].get("/openapi.json").json())
    for client in clients.values():
        client.close()


def resolved(schema: dict[str, Any], description: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = description["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    return schema


def known(name: str, world: World) -> st.SearchStrategy[str]:
    """One of what has been found so far: the same numbers are drawn, however much that is."""
    return st.integers(0, MOST_KNOWN - 1).map(lambda number: world.found[name][number % len(world.found[name])])


def plausible(name: str, schema: dict[str, Any], world: World) -> st.SearchStrategy[Any]:
    """Values that a field asks for."""
    if name in ("from", "to"):
        name = "model"
    if name == "session_ids":
        return st.lists(known("session_id", world), max_size=3)
    if name in world.found:
        return known(name, world)
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if name == "messages":
        role = st.sampled_from(["system", "user", "assistant", "developer", "tool", ""])
        content = st.one_of(st.text(max_size=9), st.just([{"type": "text", "text": "x"}]), ODD)
        message = st.fixed_dictionaries({"role": role, "content": content})
        return st.lists(message, max_size=4).map(lambda said: [*said, {"role": "user", "content": "x"}])
    kinds = json.dumps(schema)
    options: list[st.SearchStrategy[Any]] = [st.text(max_size=30)]
    if '"integer"' in kinds:
        options = [st.integers(-1, 5)]
    if '"boolean"' in kinds:
        options = [st.booleans()]
    return st.one_of(*options, st.none()) if '"null"' in kinds else st.one_of(*options)


def operations(description: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method, path, operation)
        for path, item in sorted(description["paths"].items())
        for method, operation in sorted(item.items())
        if not path.endswith(NEVER)
    ]


def drawn(data: st.DataObject, path: str, operation: dict[str, Any], world: World) -> tuple[str, dict[str, Any]]:
    """A URL and a request that an operation allows, or nearly allows."""
    if path.startswith("/admin/models"):  # not those that the others need
        world = world._replace(found=world.found | {"model": ["guide", "none"]})
    url = re.sub(r"{(\w+)}", lambda name: str(data.draw(known(name[1], world))) or "none", path)
    query, headers = {}, {"Accept": data.draw(st.sampled_from([JSON, JSON, BROWSER, STREAM, "text/plain", "*/*"]))}
    headers |= data.draw(st.sampled_from([{}, {}, HTMX]))
    for parameter in operation["parameters"]:
        if parameter["in"] == "query" and data.draw(st.booleans()):
            value = data.draw(st.one_of(plausible(parameter["name"], parameter["schema"], world), ODD))
            query[parameter["name"]] = str(value)
        if parameter["in"] == "header" and data.draw(st.booleans()):
            headers[parameter["name"]] = data.draw(st.text(st.characters(codec="ascii", categories=["L"]), max_size=9))
    request: dict[str, Any] = {"params": query, "headers": headers}
    if "requestBody" in operation:
        schema = resolved(operation["requestBody"]["content"][JSON]["schema"], world.description)
        fields = {
            name: data.draw(st.one_of(plausible(name, one, world), ODD))
            for name, one in schema.get("properties", {}).items()
            if name in schema.get("required", []) or data.draw(st.booleans())
        }
        if path.endswith(("/delete", "/close", "/stop")):
            fields["surprise"] = True  # what the others need must stay
        if data.draw(st.booleans()):
            request["json"] = fields
        else:
            request["data"] = {name: str(value) for name, value in fields.items()}
    return url, request


def remember(answer: httpx.Response, path: str, world: World) -> None:
    """What was made is there to be asked for."""
    made = answer.request.method == "POST" and answer.status_code in (200, 201)
    if made and path in MADE and answer.headers["content-type"].startswith(JSON):
        told = answer.json()
        ids = [token["id"] for token in told["tokens"]] if path == "/account/tokens" else [told["id"]]
        there = world.found[MADE[path]]
        there += [id for id in ids if id not in {*there, *world.spared} and len(there) < MOST_KNOWN]


def test_nothing_in_the_description_breaks_the_server(world: World) -> None:
    asked, tried, answered = operations(world.description), set(), Counter[int]()
    assert len(asked) > 20

    @settings(FEW, max_examples=100 if os.environ.get("LONG_TESTS") else 5)
    @given(data=st.data())
    def send(method: str, path: str, operation: dict[str, Any], data: st.DataObject) -> None:
        who = data.draw(st.sampled_from(sorted(world.clients)))
        url, request = drawn(data, path, operation, world)
        answer = world.clients[who].request(method.upper(), url, **request)
        assert answer.status_code < 500, (who, method, url, request, answer.text)
        assert_described(answer, world.description, path)
        if answer.headers.get("content-type", "").startswith("application/problem+json"):
            assert set(answer.json()) >= PROBLEM_KEYS
            assert answer.json()["status"] == answer.status_code
        remember(answer, path, world)
        tried.add((who, method, path))
        answered[answer.status_code] += 1

    for one in asked:
        send(*one)
    # Nobody has become somebody else, and there was something to be found.
    for who, client in world.clients.items():
        assert client.get("/session").status_code == 200, who
    assert chat(world.clients["ann"], "still there")["state"] == "done"
    assert {who for who, _, _ in tried} == set(world.clients)
    assert answered[200] > 0.1 * answered.total(), answered


@pytest.mark.parametrize("url", ["/session/create", "/chat", "/models/switch"])
def test_bytes_that_are_no_request_break_nothing(newcomer: Callable[..., httpx.Client], url: str) -> None:
    client = newcomer()

    @FEW
    @given(
        st.binary(max_size=200),
        st.sampled_from(
            [JSON, "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "text/plain"]
        ),
    )
    def send(body: bytes, kind: str) -> None:
        answer = client.post(url, content=body, headers={"Content-Type": kind} if kind else {})
        assert answer.status_code < 500, (body, kind, answer.text)

    send()

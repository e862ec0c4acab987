"""No request that the description allows, or nearly allows, ever makes the server fail."""

import json
import os
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.web.running import Server
from tests.web.test_openapi import assert_described
from tests.web.wire import ABSENT, BROWSER, HTMX, JSON, PROBLEM_KEYS, begin, chat, create

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
NEVER = ("/events", "/login", "/setup/{secret}")
FEW = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def world(server: Server) -> dict[str, Any]:
    """A guest with a session, an ended turn and a running one; and the description of everything."""
    client = server.guest(Accept=JSON)
    session = create(client, title="fuzzed")
    turn = chat(client, "hello", session_id=session["id"])
    running = begin(client, "/tokens 9000 /delay 50ms")
    return {
        "client": client,
        "session_id": [session["id"], running["session_id"], ABSENT],
        "turn_id": [turn["id"], running["id"], ABSENT],
        "description": client.get("/openapi.json").json(),
    }


def resolved(schema: dict[str, Any], description: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = description["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    return schema


def plausible(name: str, schema: dict[str, Any], world: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a field asks for."""
    if name in world:
        return st.sampled_from(world[name])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if name == "messages":
        role = st.sampled_from(["system", "user", "assistant", "developer", "tool", ""])
        content = st.one_of(st.text(max_size=9), st.just([{"type": "text", "text": "x"}]), ODD)
        message = st.fixed_dictionaries({"role": role, "content": content})
        return st.lists(message, max_size=4).map(lambda said: [*said, {"role": "user", "content": "x"}])
    if name == "model":
        return st.sampled_from(["fast", "smart", "none", ""])
    kinds = json.dumps(schema)
    options: list[st.SearchStrategy[Any]] = [st.text(max_size=30)]
    if '"integer"' in kinds:
        options = [st.integers(-1, 5)]
    if '"boolean"' in kinds:
        options = [st.booleans()]
    return st.one_of(*options, st.none()) if '"null"' in kinds else st.one_of(*options)


def operations(world: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method, path, operation)
        for path, item in sorted(world["description"]["paths"].items())
        for method, operation in sorted(item.items())
        if not path.endswith(NEVER)
    ]


def test_nothing_in_the_description_breaks_the_server(world: dict[str, Any]) -> None:
    client: httpx.Client = world["client"]
    asked = operations(world)
    assert len(asked) > 20

    @settings(FEW, max_examples=6000 if os.environ.get("LONG_TESTS") else 250)
    @given(st.data())
    def send(data: st.DataObject) -> None:
        method, path, operation = data.draw(st.sampled_from(asked))
        operation_path = path
        for name in ("session_id", "turn_id"):
            path = path.replace(f"{{{name}}}", data.draw(st.sampled_from(world[name])) if name in path else "")
        query, headers = {}, dict(data.draw(st.sampled_from([{}, {"Accept": BROWSER}, HTMX, {"Accept": "text/plain"}])))
        for parameter in operation["parameters"]:
            if parameter["in"] == "query" and data.draw(st.booleans()):
                value = data.draw(st.one_of(plausible(parameter["name"], parameter["schema"], world), ODD))
                query[parameter["name"]] = str(value)
            if parameter["in"] == "header" and data.draw(st.booleans()):
                headers[parameter["name"]] = data.draw(
                    st.text(st.characters(codec="ascii", categories=["L"]), max_size=9)
                )
        body: dict[str, Any] = {}
        if "requestBody" in operation:
            schema = resolved(operation["requestBody"]["content"][JSON]["schema"], world["description"])
            fields = {
                name: data.draw(st.one_of(plausible(name, one, world), ODD))
                for name, one in schema.get("properties", {}).items()
                if name in schema.get("required", []) or data.draw(st.booleans())
            }
            if path.endswith(("/delete", "/close", "/stop")):
                fields["surprise"] = True  # what the others need must stay
            if data.draw(st.booleans()):
                body = {"json": fields}
            else:
                body = {"data": {name: str(value) for name, value in fields.items()}}
        answer = client.request(method.upper(), path, params=query, headers=headers, **body)
        assert answer.status_code < 500, (method, path, query, headers, body, answer.text)
        assert_described(answer, world["description"], operation_path)
        if answer.headers.get("content-type", "").startswith("application/problem+json"):
            assert set(answer.json()) >= PROBLEM_KEYS
            assert answer.json()["status"] == answer.status_code

    send()
    client.post(f"/chat/{world['turn_id'][1]}/stop", json={})
    assert chat(client, "still there")["state"] == "done"


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

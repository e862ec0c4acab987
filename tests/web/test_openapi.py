"""/openapi.json: whole, valid, and true: what the server answers matches what it says it answers."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
from litestar.handlers import HTTPRouteHandler

from db.version import version
from tests.web.people import PASSWORD
from tests.web.running import Server
from tests.web.wire import ABSENT, BROWSER, JSON, PROBLEM, begin, chat, create, follow, streaming
from web.routes import ROUTES

Node = dict[str, Any]
FORM, MULTIPART = "application/x-www-form-urlencoded", "multipart/form-data"


@pytest.fixture(scope="module")
def description(server: Server) -> Node:
    with server.guest(Accept=JSON) as client:
        answer = client.get("/openapi.json")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(JSON)
    found: Node = answer.json()
    return found


def declared() -> dict[tuple[str, str], HTTPRouteHandler]:
    """{(method, path as OpenAPI writes it): handler} of the site map."""
    return {
        (method.lower(), re.sub(r"{(\w+):\w+}", r"{\1}", path)): handler
        for handler in ROUTES
        for path in handler.paths
        for method in handler.http_methods - {"OPTIONS", "HEAD"}
    }


def operations(description: Node) -> dict[tuple[str, str], Node]:
    return {
        (method, path): operation for path, item in description["paths"].items() for method, operation in item.items()
    }


def struct_of(handler: HTTPRouteHandler, name: str) -> type[msgspec.Struct] | None:
    dependency = (handler.dependencies or {}).get(name)
    return getattr(getattr(dependency, "dependency", None), "struct", None)


def resolved(node: Node, description: Node) -> Node:
    while "$ref" in node:
        found: Any = description
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        node = found
    return node


# ---------------------------------------------------------------- the document


def test_it_is_openapi_3_1_with_a_name_and_the_right_version(description: Node) -> None:
    assert description["openapi"].startswith("3.1.")
    assert description["info"]["title"]
    assert description["info"]["version"] == version()


def test_it_lists_every_route_and_no_other(description: Node) -> None:
    assert set(operations(description)) == set(declared())


def test_operation_ids_are_unique_and_speak(description: Node) -> None:
    ids = [operation["operationId"] for operation in operations(description).values()]
    assert len(ids) == len(set(ids)) > 20
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", id) for id in ids)
    assert all(operation["summary"].endswith((".", "…")) for operation in operations(description).values())


def test_every_reference_leads_somewhere(description: Node) -> None:
    references = re.findall(r'"\$ref":\s*"([^"]+)"', json.dumps(description))
    assert references
    for reference in references:
        assert resolved({"$ref": reference}, description)


def test_there_is_a_security_scheme_for_tokens(description: Node) -> None:
    schemes = description["components"]["securitySchemes"]
    assert any(scheme["type"] == "http" and scheme["scheme"] == "bearer" for scheme in schemes.values())
    assert all(name in schemes for one in description["security"] for name in one)


# ---------------------------------------------------------------- what goes in


def test_both_forms_of_a_body_are_described_with_every_field(description: Node) -> None:
    described = 0
    for key, handler in declared().items():
        form = struct_of(handler, "form")
        operation = operations(description)[key]
        if form is None:
            assert "requestBody" not in operation
            continue
        body = operation["requestBody"]
        required = {field.encode_name for field in msgspec.structs.fields(form) if field.required}
        assert body["required"] == bool(required)
        kinds = {"/v1/chat/completions": {JSON}, "/session/import": {JSON, MULTIPART}}
        assert set(body["content"]) == kinds.get(key[1], {JSON, FORM})
        for kind, content in body["content"].items():
            if kind == MULTIPART:
                assert content["schema"]["required"] == ["file"]
                continue
            schema = resolved(content["schema"], description)
            names = {field.encode_name for field in msgspec.structs.fields(form)}
            assert set(schema["properties"]) - {"idempotency_key"} == names
            assert set(schema.get("required", [])) == required
            assert schema["additionalProperties"] is False
        described += 1
    assert described > 10


def test_path_and_query_parameters_are_described(description: Node) -> None:
    queries = 0
    for (method, path), handler in declared().items():
        parameters = operations(description)[method, path]["parameters"]
        in_path = {one["name"] for one in parameters if one["in"] == "path"}
        assert in_path == set(re.findall(r"{(\w+)}", path))
        assert all(one["required"] is True for one in parameters if one["in"] == "path")
        query = struct_of(handler, "asked")
        names = {field.encode_name for field in msgspec.structs.fields(query)} if query else set()
        assert {one["name"] for one in parameters if one["in"] == "query"} == names
        queries += bool(names)
        headers = {one["name"].lower() for one in parameters if one["in"] == "header"}
        assert ("idempotency-key" in headers) == (method == "post")
        assert ("last-event-id" in headers) == path.endswith("/events")
        assert len({(one["in"], one["name"]) for one in parameters}) == len(parameters)
    assert queries > 3


# ---------------------------------------------------------------- what comes out


def is_a(kind: str, value: Any) -> bool:
    """Whether a value is of a JSON type; True and False are no numbers."""
    if isinstance(value, bool) or value is None:
        return kind == ("null" if value is None else "boolean")
    types = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float)}
    return kind in types and isinstance(value, types[kind])  # type: ignore[arg-type]


def wrong(value: Any, schema: Node, description: Node, where: str = "$") -> Iterator[str]:
    """Where a value does not match its schema: the part of JSON Schema that is used here, and no keyword besides."""
    schema = resolved(schema, description)
    known = {
        "type", "properties", "required", "additionalProperties", "items", "anyOf", "enum", "const", "format", "title",
        "description", "default", "prefixItems", "minItems", "maxItems", "minimum", "maximum", "contentEncoding",
        "maxLength",
    }  # fmt: skip
    assert set(schema) <= known, f"{where}: {set(schema) - known}"
    if "anyOf" in schema:
        if all(list(wrong(value, one, description, where)) for one in schema["anyOf"]):
            yield f"{where}: {value!r} is none of them"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where}: {value!r} is not one of {schema['enum']}"
    if "const" in schema and value != schema["const"]:
        yield f"{where}: {value!r} is not {schema['const']!r}"
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(is_a(kind, value) for kind in kinds):
        yield f"{where}: {value!r} is no {kinds}"
        return
    if isinstance(value, str) and len(value) > schema.get("maxLength", len(value)):
        yield f"{where}: {value!r} is too long"
    if isinstance(value, str) and schema.get("format") == "uuid" and not re.fullmatch(r"[0-9a-f-]{36}", value):
        yield f"{where}: {value!r} is no uuid"
    if isinstance(value, str) and schema.get("format") == "date-time" and not re.match(r"\d{4}-\d\d-\d\dT", value):
        yield f"{where}: {value!r} is no instant"
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        for name in schema.get("required", []):
            if name not in value:
                yield f"{where}.{name}: missing"
        for name, one in value.items():
            if name in properties:
                yield from wrong(one, properties[name], description, f"{where}.{name}")
            elif properties and schema.get("additionalProperties") in (None, False):
                yield f"{where}.{name}: not described"
    if isinstance(value, list):
        for place, one in enumerate(value):
            if "prefixItems" in schema and place < len(schema["prefixItems"]):
                yield from wrong(one, schema["prefixItems"][place], description, f"{where}[{place}]")
            elif isinstance(schema.get("items"), dict):
                yield from wrong(one, schema["items"], description, f"{where}[{place}]")


def assert_described(answer: httpx.Response, description: Node, path: str) -> None:
    """The answer is one that its operation describes: status, media type and every field."""
    operation = operations(description)[answer.request.method.lower(), path]
    name = f"{answer.request.method} {path}"
    assert str(answer.status_code) in operation["responses"], f"{name} does not say {answer.status_code}"
    content = resolved(operation["responses"][str(answer.status_code)], description).get("content", {})
    if answer.status_code in (204, 303):
        assert not answer.content
        return
    kind = answer.headers["content-type"].partition(";")[0]
    assert kind in content, f"{name} does not say {kind} for {answer.status_code}, but {list(content)}"
    if kind.endswith("json"):
        assert not list(wrong(answer.json(), content[kind]["schema"], description)), name


def test_the_check_finds_what_is_wrong(description: Node) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    assert not list(wrong({"a": 1}, schema, description))
    for value in ({}, {"a": "1"}, {"a": True}, {"a": 1, "b": 2}, [], None):
        assert list(wrong(value, schema, description)), value


def test_real_answers_match_their_description(description: Node, guest: httpx.Client, ada: httpx.Client) -> None:
    session = create(guest, title="described")
    id = session["id"]
    turn = chat(guest, "hello", session_id=id)
    failed = chat(guest, "/tokens 3 /error 500 after 2", session_id=id)
    running = begin(guest, "/tokens 1000 /delay 20ms")
    at = {"session_id": id, "turn_id": turn["id"]}
    seen = set()

    def check(answer: httpx.Response, path: str) -> None:
        assert_described(answer, description, path)
        seen.add((answer.request.method.lower(), path))

    for path in (
        "/session/{session_id}", "/session/{session_id}/turns", "/session/{session_id}/journal", "/chat/{turn_id}",
        "/session", "/models", "/limits", "/healthz", "/readyz", "/openapi.json", "/docs", "/metrics", "/", "/login",
    ):  # fmt: skip
        check(guest.get(path.format(**at)), path)
    check(guest.get(f"/chat/{failed['id']}"), "/chat/{turn_id}")
    check(guest.get(f"/chat/{running['id']}"), "/chat/{turn_id}")
    for path in (
        "/admin",
        "/admin/models",
        "/admin/groups",
        "/admin/moves",
        "/admin/accounts",
        "/account",
        "/account/activity",
        "/admin/usage",
        "/admin/usage/export",
        "/admin/journal",
        "/admin/journal/export",
    ):
        check(ada.get(path), path)
    fields = {"session_ids": [id], "deed": "switch", "model": "smart", "reason": "described"}
    check(ada.post("/admin/act", json=fields), "/admin/act")
    made = ada.post("/admin/accounts", json={"name": f"described-{id[-12:]}", "password": PASSWORD})
    check(made, "/admin/accounts")
    account_id = made.json()["id"]
    check(ada.get(f"/admin/accounts/{account_id}"), "/admin/accounts/{account_id}")
    check(ada.post("/admin/accounts/change", json={"account_id": account_id}), "/admin/accounts/change")
    fields = {"account_id": account_id, "password": PASSWORD[::-1]}
    check(ada.post("/admin/accounts/password", json=fields), "/admin/accounts/password")
    robot = ada.post("/admin/accounts", json={"name": f"robot-{id[-12:]}", "service": True}).json()["name"]
    token = ada.post("/account/tokens", json={"name": "described", "account": robot})
    check(token, "/account/tokens")
    token_id = token.json()["tokens"][0]["id"]
    check(ada.post("/account/tokens/revoke", json={"token_id": token_id, "reason": "x"}), "/account/tokens/revoke")
    check(ada.post("/account/logins/revoke", json={"account_id": account_id, "reason": "x"}), "/account/logins/revoke")
    check(ada.post("/account/password", json={"old": PASSWORD, "new": PASSWORD}), "/account/password")
    check(ada.get("/admin/moves/preview?from=fast&to=smart"), "/admin/moves/preview")
    move = ada.post("/admin/moves", json={"from": "guide", "to": "fast", "reason": "described"})
    check(move, "/admin/moves")
    for path, fields in (
        ("/admin/models/change", {"model": "guide", "state_reason": None}),
        ("/admin/models/restore", {"model": "guide"}),
        ("/admin/models/test", {"model": "fast"}),
        ("/admin/groups/change", {"group": "described", "default_model": "fast"}),
        ("/admin/groups/limit", {"group": "described", "limit": "turns", "value": "9/min"}),
        ("/admin/groups/limit", {"group": "described", "limit": "turns"}),
        ("/admin/groups/restore", {"group": "described"}),
        ("/admin/moves/stop", {"move_id": move.json()["id"]}),
    ):
        check(ada.post(path, json=fields), path)
    check(guest.post("/session/create", json={"model": "smart"}), "/session/create")
    check(guest.post("/models/switch", json={"session_id": id, "model": "smart"}), "/models/switch")
    check(guest.post("/models/switch", json={"session_id": id, "model": "smart"}), "/models/switch")
    check(guest.post("/chat", json={"prompt": "x", "session_id": id}), "/chat")
    check(guest.get("/v1/models"), "/v1/models")
    check(guest.get("/v1/models/fast"), "/v1/models/{model}")
    check(guest.get("/v1/models/none"), "/v1/models/{model}")
    hello = {"model": "session", "messages": [{"role": "user", "content": "hello"}]}
    for asked in (hello, hello | {"messages": []}, hello | {"model": "none"}):
        check(guest.post("/v1/chat/completions", json=asked), "/v1/chat/completions")
    for prompt, stream in (("/error 500", False), ("x", True)):
        asked = hello | {"messages": [{"role": "user", "content": prompt}], "stream": stream}
        check(guest.post("/v1/chat/completions", json=asked), "/v1/chat/completions")
    check(guest.post(f"/chat/{running['id']}/stop", json={}), "/chat/{turn_id}/stop")
    check(guest.post(f"/chat/{turn['id']}/retry", json={"model": "fast"}), "/chat/{turn_id}/retry")
    check(guest.post(f"/chat/{turn['id']}/edit", json={"prompt": "again"}), "/chat/{turn_id}/edit")
    check(guest.post(f"/chat/{turn['id']}/choose", json={}), "/chat/{turn_id}/choose")
    check(guest.post(f"/session/{id}/draft", json={"prompt": "half"}), "/session/{session_id}/draft")
    for url, path in (
        (f"/session/{id}/export", "/session/{session_id}/export"),
        (f"/session/{id}/export?format=md", "/session/{session_id}/export"),
        ("/session/export?q=described", "/session/export"),
    ):
        check(guest.get(url), path)
    exported = guest.get(f"/session/{id}/export").json()
    for file in (exported, exported | {"sessions": []}, {}):
        check(guest.post("/session/import", json=file), "/session/import")
    check(guest.post("/session/import", files={"file": json.dumps(exported)}), "/session/import")
    for verb, fields in (
        ("rename", {"title": "x"}), ("extend", {}), ("fork", {}), ("pin", {}), ("unpin", {}), ("archive", {}),
        ("unarchive", {}), ("close", {}), ("delete", {}), ("restore", {"back": "list"}), ("delete", {"for_good": True}),
    ):  # fmt: skip
        check(guest.post(f"/session/{id}/{verb}", json=fields), f"/session/{{session_id}}/{verb}")
    reopened = create(guest)
    check(guest.post(f"/session/{reopened['id']}/reopen", json={}), "/session/{session_id}/reopen")
    check(guest.post("/logout", json={}), "/logout")
    for url, path in (("/chat/{}/events", "/chat/{turn_id}/events"),):
        with streaming(guest, url.format(running["id"])) as stream:
            content = operations(description)["get", path]["responses"]["200"]["content"]
            assert stream.response.headers["content-type"].partition(";")[0] in content
        seen.add(("get", path))
    missing = set(declared()) - seen
    assert missing <= {
        ("get", "/session/{session_id}/events"), ("post", "/session/{session_id}/read"),
        ("get", "/admin/events"), ("get", "/setup/{secret}"),
        ("post", "/setup/{secret}"), ("post", "/login"), ("post", "/login/password"),
    }, missing  # fmt: skip


def test_pages_are_described_where_a_url_has_them(description: Node, guest: httpx.Client) -> None:
    id = create(guest)["id"]
    for url, path in (
        ("/session", "/session"),
        (f"/session/{id}", "/session/{session_id}"),
        ("/models", "/models"),
        ("/", "/"),
    ):
        assert_described(guest.get(url, headers={"Accept": BROWSER}), description, path)
    for url, path, fields in (("/session/create", "/session/create", {}), ("/chat", "/chat", {"prompt": "x"})):
        assert_described(guest.post(url, data=fields, headers={"Accept": BROWSER}), description, path)


def test_problems_match_their_description(
    description: Node, guest: httpx.Client, stranger: httpx.Client, ann: httpx.Client, server: Server
) -> None:
    foreign = create(stranger)["id"]
    closed = create(guest)["id"]
    guest.post(f"/session/{closed}/close", json={}).raise_for_status()
    running = begin(guest, "/tokens 1000 /delay 20ms")
    busy = running["session_id"]
    codes = set()
    for answer, path in (
        (guest.post("/chat", json={"prompt": ""}), "/chat"),
        (guest.post("/chat", json={"prompt": "x", "session_id": foreign}), "/chat"),
        (guest.post("/chat", json={"prompt": "x", "session_id": closed}), "/chat"),
        (guest.post("/chat", json={"prompt": "x", "session_id": busy}), "/chat"),
        (guest.post("/chat", json={"prompt": "x", "session_id": busy, "model": "none"}), "/chat"),
        (guest.post("/chat", json={"prompt": "x" * 100_001}), "/chat"),
        (guest.post("/chat", json={"prompt": "x", "session_id": busy, "expected_version": 99}), "/chat"),
        (guest.get(f"/session/{ABSENT}"), "/session/{session_id}"),
        (guest.get("/admin"), "/admin"),
        (ann.get("/session", headers={"Authorization": "Bearer x"}), "/session"),
    ):
        assert answer.headers["content-type"] == PROBLEM
        assert_described(answer, description, path)
        codes.add(answer.json()["code"])
    guest.post(f"/chat/{running['id']}/stop", json={}).raise_for_status()
    assert len(codes) >= 8


def test_every_limit_and_every_fact_of_a_problem_is_described(
    description: Node, newcomer: Any, governed: Server
) -> None:
    """On the server with tight limits: quota, rates, unusable models, a full window."""
    client = newcomer()
    first = create(client)
    codes = set()
    answers = [
        *(client.post("/chat", json={"prompt": "x", "model": model}) for model in ("off", "old")),
        *(client.post("/chat", json={"prompt": "x", "session_id": first["id"]}) for _ in range(3)),
        *(client.post("/session/create", json={}) for _ in range(4)),
    ]
    client.headers["x-forwarded-for"] = "10.3.3.3"
    answers += [client.post("/session/create", json={}) for _ in range(3)]
    for answer in answers:
        path = "/chat" if answer.request.url.path == "/chat" else "/session/create"
        assert_described(answer, description, path)
        codes.add(answer.json().get("code"))
    assert codes >= {"model_disabled", "model_retired", "rate_limited", "session_quota"}


def test_the_events_of_a_stream_match_the_forms_of_the_description(description: Node, guest: httpx.Client) -> None:
    turn = chat(guest, "hello there")
    schema = operations(description)["get", "/chat/{turn_id}"]["responses"]["200"]["content"][JSON]["schema"]
    for event in follow(guest, turn["id"]):
        if event.name in ("turn", "end"):
            assert not list(wrong(event.json, schema, description))

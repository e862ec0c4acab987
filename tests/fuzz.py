"""`make fuzz`: schemathesis reads /openapi.json and tries to get an answer out of the server that is not described.

`python -m tests.fuzz`; EXAMPLES=, SEED= and DATABASE=sqlite|postgresql in the environment say how often each operation
is tried, by which dice, and on what. Everybody who may call at all does so: an admin's token, a user's, one that only
reads, a guest's cookie and a login's, as a script and as a page. An answer fails that is a 5xx, or whose status, type
or body the description does not have. `tests/web/test_fuzz.py` does the same in small, and in our own words.
"""

import copy
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from tests.servers import postgres_url
from tests.web.people import PASSWORD
from tests.web.running import Server, a_server
from tests.web.wire import ABSENT, BROWSER, JSON, begin, chat, create

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
#: streams that do not end by themselves
ENDLESS = "/events$"
PATIENCE_SECONDS = 60
#: what a caller must not do: it would be somebody else afterwards
NOT_BY = {"a login": ("/logout", "/account/password")}


class Caller(NamedTuple):
    """Somebody who asks, and the headers that say who."""

    name: str
    headers: dict[str, str]


def callers(server: Server, tokens: dict[str, str], ids: dict[str, list[str]]) -> list[Caller]:
    """Everybody, each with something to lose; what there is to find is added to `ids`."""
    found = [Caller("an admin's token", bearer(tokens["ada"])), Caller("a user's token", bearer(tokens["ann"]))]
    with server.script(tokens["ada"]) as ada, server.script(tokens["bob"]) as bob:
        with server.guest(Accept=JSON) as browser:
            browser.post("/login", data={"name": "ann", "password": PASSWORD})
            reads = browser.post("/account/tokens", json={"name": "reads", "scope": "read"}).json()
        found.append(Caller("a token that reads", bearer(reads["token"])))
        for client in (ada, bob):
            fill(client, ids)
        (cat,) = ada.get("/admin/accounts", params={"q": "cat"}).json()["accounts"]
        account = ada.get(f"/admin/accounts/{cat['id']}").json()
        ids["account_id"].append(account["id"])
        ids["token_id"].append(account["tokens"][0]["id"])
        move = ada.post("/admin/moves", json={"from": "guide", "to": "fast", "reason": "fuzz"}).json()
        ids["move_id"].append(move["id"])
    with server.script(tokens["ann"]) as ann:
        fill(ann, ids)
    for name in ("a guest", "a login"):
        with server.guest(Accept=JSON) as client:
            client.get("/limits")
            if name == "a login":
                assert client.post("/login", data={"name": "cat", "password": PASSWORD}).status_code == 303
            fill(client, ids)
            cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in client.cookies.jar)
        found.append(Caller(name, {"Cookie": cookies, "Sec-Fetch-Site": "same-origin"}))
    return found


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def fill(client: httpx.Client, ids: dict[str, list[str]]) -> None:
    """Sessions and turns to find: one that is over, one that is being written, one that was closed."""
    session, ended = create(client, title="fuzz")["id"], create(client, title="closed")["id"]
    turn = chat(client, "hello", session_id=session)
    # It may be sent again, and is waited for then.
    running = begin(client, "/tokens 50 /delay 20ms")
    client.post(f"/session/{ended}/close", json={}).raise_for_status()
    ids["session_id"] += [session, running["session_id"], ended]
    ids["turn_id"] += [turn["id"], running["id"]]


def pointed(description: dict[str, Any], ids: dict[str, list[str]]) -> dict[str, Any]:
    """The description, telling which ids and names there are; what is answered is described as before."""
    told = copy.deepcopy(description)
    asked = {
        **ids,
        "parent_id": ids["turn_id"],
        "model": ["fast", "smart", "session", "none"],
        "group": ["fuzz", "none"],
    }

    def point(properties: dict[str, Any]) -> None:
        for name, schema in properties.items():
            values = asked.get(name)
            if values and "enum" not in json.dumps(schema):
                absent = [None] if '"null"' in json.dumps(schema) else []
                properties[name] = {"enum": [*values, *absent]}

    schemas = told["components"]["schemas"]
    bodies: set[str] = set()
    for item in told["paths"].values():
        for operation in item.values():
            for parameter in operation["parameters"]:
                if values := asked.get(parameter["name"]):
                    parameter["schema"] = {"enum": values}
            for content in operation.get("requestBody", {}).get("content", {}).values():
                if reference := content["schema"].get("$ref"):
                    bodies.add(reference.rsplit("/", 1)[1])
    answers = json.dumps([item.get("responses") for path in told["paths"].values() for item in path.values()])
    for name in bodies:
        if f'"#/components/schemas/{name}"' not in answers:
            point(schemas[name].get("properties", {}))
    return told


def attack(
    server: Server, caller: Caller, accept: str, description: Path, examples: int, seed: int
) -> "subprocess.CompletedProcess[str]":
    """One whole run as one caller."""
    headers = {**caller.headers, "Accept": accept}
    program = [
        str(Path(sys.executable).with_name("schemathesis")), "run", str(description), "--url", server.url,
        "--phases", "coverage,fuzzing,stateful", "--checks", CHECKS, "--max-examples", str(examples),
        "--seed", str(seed), "--request-timeout", str(PATIENCE_SECONDS), "--max-redirects", "0",
        "--continue-on-failure", "--exclude-path-regex", ENDLESS, "--no-color",
    ]  # fmt: skip
    for name, value in headers.items():
        program += ["--header", f"{name}: {value}"]
    for path in NOT_BY.get(caller.name, ()):
        program += ["--exclude-path", path]
    return subprocess.run(program, cwd=server.folder, capture_output=True, text=True)


def run(folder: Path, examples: int, seed: int, database_url: str, tell: Callable[[str], None]) -> int:
    """How many callers got an answer that is not described."""
    environment = {"TURNKEEPER_DATABASE_URL": database_url} if database_url else {}
    failed = 0
    with a_server(folder, TURNKEEPER_ADMINS_READ="true", **environment) as server:
        ids: dict[str, list[str]] = {name: [ABSENT] for name in ("session_id", "turn_id", "account_id", "token_id")}
        ids |= {"move_id": [ABSENT], "login_id": [ABSENT]}
        everybody = callers(server, server.people("ada:admin", "ann", "bob", "cat"), ids)
        told = httpx.get(f"{server.url}/openapi.json").json()
        description = folder / "openapi.json"
        description.write_text(json.dumps(pointed(told, ids)))
        for caller in everybody:
            for kind, accept in (("JSON", JSON), ("pages", BROWSER)):
                began = time.monotonic()
                done = attack(server, caller, accept, description, examples, seed)
                cases = next((found[0] for found in re.finditer(r"\d+ generated, .*", done.stdout)), "")
                tell(f"{caller.name}, {kind}: {cases} ({time.monotonic() - began:.0f} s)")
                if done.returncode or not cases:
                    failed += 1
                    tell(done.stdout + done.stderr)
    return failed


def main() -> None:
    examples, seed = int(os.environ.get("EXAMPLES") or 50), int(os.environ.get("SEED") or 1)
    tell, failed = partial(print, flush=True), 0
    chosen = os.environ.get("DATABASE")
    for database in [chosen] if chosen else ["sqlite", "postgresql"]:
        tell(f"{examples} examples of each operation on {database}, SEED={seed}")
        with tempfile.TemporaryDirectory() as folder:
            if database == "sqlite":
                failed += run(Path(folder), examples, seed, "", tell)
            else:
                with contextmanager(inspect.unwrap(postgres_url))() as url:
                    failed += run(Path(folder), examples, seed, url, tell)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

"""Rule J3, from outside: whoever does whatever with marked words, they turn up only where they belong.

Everything a server printed, stored and told somebody else is searched, also for the words in base64 and in hex.
"""

import asyncio
import base64
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote

import asyncpg
import httpx
import pytest

from tests.web.running import Server, a_server
from tests.web.wire import BROWSER, HTMX, JSON, STREAM

Rows = dict[str, list[dict[str, Any]]]

#: what somebody says; it belongs to its owner
TEXTS = {
    name: f"canary-{name}-5e1f" for name in ("prompt", "edited", "guest", "typed", "query", "model", "field", "system")
}
#: what proves somebody, or tells where they are; nobody is told any of it
SECRETS = {name: f"canary-{name}-9c0d" for name in ("password", "wrong", "bearer", "cookie", "agent", "referer", "api")}
#: documentation addresses that nobody here has (RFC 5737, RFC 3849)
ADDRESSES = {"v4": "203.0.113.77", "v6": "2001:db8:ca1e:77::9"}
TITLE, REASON, KEY = "canary-title-31aa", "canary-reason-31aa", "canary-key-31aa"

#: where each may be stored; whatever is not here may be nowhere
BELONGS = {
    TEXTS["prompt"]: {"turn.prompt", "turn.reply", "turn.reasoning", "turn_piece.text", "session.opening"},
    TEXTS["edited"]: {"turn.prompt", "turn.reply", "turn_piece.text"},
    TEXTS["guest"]: {"turn.prompt", "turn.reply", "turn.reasoning", "turn_piece.text", "session.opening"},
    TEXTS["system"]: {"session.instructions"},
    TITLE: {"session.title"},
    REASON: {"journal.reason"},
    KEY: {"idempotency.key"},
}

SETTINGS = """
default_model = "echo"

[[providers]]
id = "parrot"
kind = "openai"
base_url = "{url}/v1"
api_key = "$CANARY_API"

[[models]]
id = "echo"
provider = "builtin"

[[models]]
id = "parrot"
provider = "parrot"

[groups.guest]
sessions_created = "6000/min burst 100"
turns = "6000/min burst 100"
open_sessions = 100

[groups.user]
sessions_created = "6000/min burst 100"
turns = "6000/min burst 100"
switches = "6000/min burst 100"
concurrent_turns = 1
"""


class Parrot(BaseHTTPRequestHandler):
    """A provider that refuses and tells back everything it was sent, the key too."""

    def do_GET(self) -> None:
        self._tell(200, b'{"data": []}')

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        self._tell(400, f'{{"error": {{"message": {str(self.headers) + sent.decode()!r}}}}}'.encode())

    def _tell(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Key", self.headers.get("Authorization", ""))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def parrot() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Parrot) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@cache
def disguises(word: str) -> frozenset[str]:
    """A word as it may stand in a text: as it is, in an address, in hex, or at any place inside base64."""
    shifted = (base64.b64encode(b"x" * place + word.encode()).decode() for place in range(3))
    return frozenset({word, quote(word, safe=""), word.encode().hex(), *(text[4:-4] for text in shifted)})


def found(words: Iterable[str], text: str) -> list[str]:
    """Those of the words that stand in a text, disguised or not."""
    return [word for word in words if any(disguise in text for disguise in disguises(word))]


@dataclass(frozen=True)
class Told:
    """One answer."""

    who: str
    url: str
    body: str
    headers: str
    cookies: str


class Person:
    """A client that keeps what it was told."""

    def __init__(self, server: Server, told: list[Told], name: str, **headers: str) -> None:
        known = {"User-Agent": SECRETS["agent"], "Referer": f"{server.url}/{SECRETS['referer']}"}
        self.client = server.guest(**known, **headers)
        self.name, self.told = name, told

    def ask(self, method: str, url: str, accept: str = JSON, **request: Any) -> httpx.Response:
        headers = {"Accept": accept, **request.pop("headers", {})}
        answer = self.client.request(method, url, headers=headers, **request)
        rest = {name: value for name, value in answer.headers.items() if name != "set-cookie"}
        cookies = answer.headers.get("set-cookie", "")
        self.told.append(Told(self.name, f"{method} {url}", answer.text, repr(rest), cookies))
        return answer

    def post(self, url: str, accept: str = JSON, **fields: Any) -> httpx.Response:
        return self.ask("POST", url, accept, json=fields)


def everything_a_person_can_do(person: Person, word: str) -> dict[str, str]:
    """Each verb, done and refused, with marked words; returns the ids of what was made."""
    session = person.post("/session/create", title=TITLE).json()["id"]
    turn = person.ask(
        "POST", "/chat", json={"session_id": session, "prompt": word}, headers={"Idempotency-Key": KEY}
    ).json()
    assert turn["reply"] == word
    streamed = person.post("/chat", STREAM, prompt=word)  # in a session that nobody named
    assert word in streamed.text
    person.ask("POST", "/chat", "text/html", data={"session_id": session, "prompt": word}, headers=HTMX)
    person.post(f"/chat/{turn['id']}/retry", model="echo")
    edited = person.post(f"/chat/{turn['id']}/edit", prompt=TEXTS["edited"]).json()
    person.post("/chat", session_id=session, prompt="next", parent_id=turn["id"])
    assert person.post("/chat", session_id=session, prompt=f"/reason {word}").json()["reasoning"] == word
    failed = person.post("/chat", session_id=session, prompt=word, model="parrot").json()
    assert failed["state"] == "failed" and not found(SECRETS.values(), repr(failed))
    person.post("/models/switch", session_id=session, model="echo")
    fork = person.post(f"/session/{session}/fork").json()["id"]
    told = [("system", TEXTS["system"]), ("user", word), ("assistant", word), ("user", word)]
    messages = [{"role": role, "content": text} for role, text in told]
    completed = person.post("/v1/chat/completions", model="echo", messages=messages)
    assert completed.json()["choices"][0]["message"]["content"] == word
    person.post("/v1/chat/completions", model=TEXTS["model"], messages=messages)
    person.post("/v1/chat/completions", model="echo", messages=messages, **{TEXTS["field"]: TEXTS["field"]})
    file = person.ask("GET", "/session/export")
    assert word in file.text and TEXTS["system"] in file.text
    person.ask("GET", "/session/export?format=md")
    person.ask("POST", "/session/import", content=file.text.encode(), headers={"Content-Type": JSON})
    person.ask("POST", "/session/import", content=file.text[:-9].encode(), headers={"Content-Type": JSON})
    # What is refused, with marked words in every place that a caller fills.
    person.post("/models/switch", session_id=session, model=TEXTS["model"])
    person.post("/session/create", **{TEXTS["field"]: TEXTS["field"]})
    person.ask("POST", "/chat", content=f'{{"prompt": "{TEXTS["typed"]}'.encode(), headers={"Content-Type": JSON})
    person.ask("POST", "/chat", BROWSER, data={"session_id": session, "prompt": TEXTS["typed"], "model": "none"})
    person.ask("POST", "/chat", json={"prompt": TEXTS["typed"]}, headers={"Idempotency-Key": KEY})
    person.ask(
        "POST", "/chat", json={"prompt": TEXTS["typed"], "model": "none"}, headers={"Origin": "http://x.example"}
    )
    person.ask("POST", "/chat", json={"prompt": TEXTS["typed"] * 10_000})
    person.ask("GET", f"/session?q={TEXTS['query']}")
    person.ask("GET", f"/session?{TEXTS['field']}={TEXTS['query']}")
    person.ask("GET", f"/{TEXTS['query']}?token={SECRETS['bearer']}")
    person.ask("GET", f"/chat/{turn['id']}/events", STREAM, headers={"Last-Event-ID": TEXTS["field"]})
    for url in (f"/session/{session}", f"/session/{session}/turns?all=true", f"/session/{session}/journal", "/session"):
        for accept in (JSON, BROWSER):
            person.ask("GET", url, accept)
    closed = person.post("/session/create", title=TITLE).json()["id"]
    person.post(f"/session/{closed}/close", reason=REASON)
    person.post("/chat", session_id=closed, prompt=TEXTS["typed"])
    deleted = person.post("/chat", prompt=word, session_id=fork).json()["session_id"]
    person.post(f"/session/{deleted}/delete")
    return {"session": session, "turn": turn["id"], "edited": edited["id"], "closed": closed}


def everything_else_there_is(person: Person, ids: dict[str, str]) -> None:
    """What somebody may look at, and may not."""
    session, turn = ids["session"], ids["turn"]
    urls = ["/", "/session", "/admin", "/models", "/limits", "/login", "/openapi.json", "/metrics", "/healthz"]
    urls += [f"/session/{session}{part}" for part in ("", "/turns", "/turns?all=true", "/journal", "/export")]
    urls += [f"/session/{ids['closed']}", f"/chat/{turn}", f"/chat/{ids['edited']}", "/admin/journal", "/admin/usage"]
    for url in urls:
        for accept in (JSON, BROWSER):
            person.ask("GET", url, accept)
    person.ask("GET", f"/chat/{turn}/events", STREAM)
    for url in (f"/chat/{turn}/retry", f"/chat/{turn}/stop", f"/session/{session}/fork"):
        person.post(url)


@contextmanager
def sqlite_url(tmp_path: Path, _: pytest.FixtureRequest) -> Iterator[str]:
    yield f"sqlite:///{tmp_path / 'canary.db'}"


@contextmanager
def postgres_url(_: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    url: str = request.getfixturevalue("postgres_url")

    async def run(statement: str) -> None:
        connection = await asyncpg.connect(url)
        await connection.execute(statement)
        await connection.close()

    asyncio.run(run("CREATE DATABASE canary"))
    yield url.rsplit("/", 1)[0] + "/canary"
    asyncio.run(run("DROP DATABASE canary WITH (FORCE)"))


def stored(url: str) -> Rows:
    """All rows of all tables, those of the search too."""
    if url.startswith("sqlite"):
        with sqlite3.connect(url.removeprefix("sqlite:///")) as database:
            database.row_factory = sqlite3.Row
            names = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            return {name: [dict(row) for row in database.execute(f'SELECT * FROM "{name}"')] for name in names}

    async def read() -> Rows:
        connection = await asyncpg.connect(url)
        names = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        rows = {row[0]: [dict(one) for one in await connection.fetch(f'SELECT * FROM "{row[0]}"')] for row in names}
        await connection.close()
        return rows

    return asyncio.run(read())


def misplaced(words: list[str], rows: Rows) -> set[tuple[str, str]]:
    """(word, table.column) of every word that stands where it does not belong."""
    return {
        (word, f"{table}.{column}")
        for table, all_rows in rows.items()
        for row in all_rows
        for column, value in row.items()
        for word in found(words, value.decode("latin-1") if isinstance(value, bytes) else str(value))
        if f"{table}.{column}" not in BELONGS.get(word, set())
    }


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_J3_marked_words_turn_up_only_where_they_belong(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place: Callable[[Path, pytest.FixtureRequest], Any] = {"sqlite": sqlite_url, "postgres": postgres_url}[database]
    settings = {"TURNKEEPER_TRUSTED_PROXIES": "127.0.0.1", "CANARY_API": SECRETS["api"]}
    settings["TURNKEEPER_ACCESS_LOG"] = "true"
    told: list[Told] = []
    with (
        place(tmp_path, request) as url,
        parrot() as provider,
        a_server(tmp_path, SETTINGS.format(url=provider), TURNKEEPER_DATABASE_URL=url, **settings) as server,
    ):
        setup = server.setup_url
        forwarded = {name: {"X-Forwarded-For": address} for name, address in ADDRESSES.items()}
        made = server.run("account", "create", "ann", "--permanent", stdin=f"{SECRETS['password']}\n")
        assert made.returncode == 0, made.stderr
        token = server.run("token", "create", "--account", "ann", "--name", "script").stdout.strip()
        people = {
            "admin": Person(server, told, "admin", **forwarded["v4"]),
            "ann": Person(server, told, "ann", Authorization=f"Bearer {token}", **forwarded["v6"]),
            "guest": Person(server, told, "guest", **forwarded["v6"]),
            "stranger": Person(server, told, "stranger", **forwarded["v4"]),
        }
        # The admin comes by the one-time link, the guest becomes ann at the end.
        admin, guest, stranger = people["admin"], people["guest"], people["stranger"]
        admin.ask("GET", setup.removeprefix(server.url), BROWSER)
        password = {"name": "ada", "password": SECRETS["password"] + "-of-ada"}
        assert admin.ask("POST", setup.removeprefix(server.url), BROWSER, data=password).status_code == 303
        stranger.client.cookies.set("tk_login", SECRETS["cookie"])
        stranger.ask("GET", "/session")
        stranger.client.cookies.clear()
        stranger.ask("GET", "/session", headers={"Authorization": f"Bearer tk_{SECRETS['bearer']}"})
        for name in ("ann", TEXTS["typed"]):
            stranger.ask("POST", "/login", BROWSER, data={"name": name, "password": SECRETS["wrong"]})
        of_ann = everything_a_person_can_do(people["ann"], TEXTS["prompt"])
        of_guest = everything_a_person_can_do(guest, TEXTS["guest"])
        reason = {"reason": REASON, "lock": True}
        for ids in (of_ann, of_guest):
            for other in (admin, stranger):
                everything_else_there_is(other, ids)
        steered = admin.post("/models/switch", session_id=of_ann["session"], model="parrot", **reason)
        assert steered.status_code == 200
        signed_in = {"name": "ann", "password": SECRETS["password"]}
        cookies = [*guest.client.cookies.values(), *admin.client.cookies.values()]
        assert guest.ask("POST", "/login", BROWSER, data=signed_in).status_code == 303
        assert guest.ask("GET", f"/session/{of_guest['session']}").json()["owner"]["name"] == "ann"
        cookies += guest.client.cookies.values()
        # One is being written while we look, and another was when the server stopped.
        people["ann"].client.cookies.clear()
        with people["ann"].client.stream(
            "POST", "/chat", json={"prompt": f"/delay 300ms /reason {TEXTS['prompt']} and more, word by word"},
            headers={"Accept": STREAM},
        ) as stream:  # fmt: skip
            any(b"event: reasoning" in chunk for chunk in stream.iter_raw())
            while_written = stored(url)
        for person in people.values():
            person.client.close()
        server.stop()
        rows = stored(url)

    secrets = [*SECRETS.values(), *ADDRESSES.values(), token, token.removeprefix("tk_"), *cookies]
    words = [*TEXTS.values(), TITLE, REASON, KEY, *secrets]
    assert len(cookies) > 3 and all(len(cookie) > 30 for cookie in cookies)

    # In the database.
    assert misplaced([*words, setup.rsplit("/", 1)[1]], rows) == set()
    assert misplaced(words, while_written) == set()
    assert server.output.count(" web.access: ") > 100
    # In what the server printed; the one-time link is printed once, at the start.
    assert found(words, server.output) == []
    assert server.output.count(setup.rsplit("/", 1)[1]) == 1
    # In what anybody was told: no secret to anyone, and what somebody said to nobody else.
    said = [TEXTS["prompt"], TEXTS["edited"], TEXTS["guest"], TEXTS["system"]]
    foreign = {"admin": said, "stranger": [*said, TITLE, REASON]}
    for one in told:
        assert found([*secrets, *foreign.get(one.who, [])], one.body + one.headers) == [], one
        assert found([word for word in secrets if word not in cookies], one.cookies) == [], one

    # The detector finds what is there.
    every = {(word, where) for word in BELONGS for where in BELONGS[word]}
    seen = {
        (word, f"{table}.{column}")
        for table, column in {tuple(where.split(".")) for _, where in every}
        for row in [*rows[table], *while_written[table]]
        for word in found(list(BELONGS), str(row[column]))
    }
    assert {where for _, where in seen} == {where for _, where in every}
    assert len(rows["journal"]) > 40
    assert {row["what"] for row in rows["journal"]} >= {"session_created", "turn_ended", "model_locked", "refused"}
    for word in words:
        for disguise in disguises(word):
            assert found([word], f"before {disguise} after") == [word]
    forged = {"journal": [rows["journal"][0] | {"reason": f"said {TEXTS['prompt']}"}]}
    assert misplaced(words, forged) == {(TEXTS["prompt"], "journal.reason")}
    assert any(one.who == "admin" and TITLE in one.body for one in told)
    assert any(one.who == "ann" and TEXTS["prompt"] in one.body for one in told)
    assert any(found(cookies, one.cookies) for one in told)

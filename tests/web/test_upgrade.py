"""One release beside the next: servers on PostgreSQL are replaced one by one, and each goes on beside the other."""

import asyncio
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from tests.web.running import ROOT, Server, a_server
from tests.web.wire import BROWSER, JSON, STREAM, Frames, text_of

RELEASES = sorted((ROOT / "tests" / "releases").glob("turnkeeper-*.tar.xz"))
PASSWORD = "correct horse battery"
PAGES = (
    "/", "/session", "/session?q=words", "/models", "/limits", "/account", "/docs", "/admin", "/admin/models",
    "/admin/groups", "/admin/accounts", "/admin/usage", "/admin/journal", "/admin/moves", "/metrics", "/readyz",
)  # fmt: skip


@pytest.fixture
def database(postgres_url: str) -> Iterator[str]:
    """An empty PostgreSQL database."""

    def run(statement: str) -> None:
        asyncio.run(on(postgres_url, statement))

    run("CREATE DATABASE upgraded")
    yield postgres_url.rsplit("/", 1)[0] + "/upgraded"
    run("DROP DATABASE upgraded WITH (FORCE)")


async def on(url: str, *statements: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(url)
    rows = [await connection.fetch(statement) for statement in statements]
    await connection.close()
    return rows[-1]


class OldServer(Server):
    """The last release, unpacked; it runs with what the present one has installed."""

    forked = False

    def __init__(self, folder: Path, unpacked: Path, **environment: str) -> None:
        super().__init__(folder, **environment)
        with tarfile.open(RELEASES[-1]) as archive:
            archive.extractall(unpacked, filter="data")
        self.environment["PYTHONPATH"] = str(unpacked)


class Traffic:
    """Somebody who does a thing again and again until told to end; each answer's status."""

    def __init__(self, server: Server, do: Callable[[httpx.Client, int], httpx.Response], **headers: str) -> None:
        self.statuses: list[int] = []
        self.lost: list[str] = []
        self._server, self._do, self._headers = server, do, headers
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with self._server.guest(**self._headers) as client:
            number = 0
            while not self._over.is_set():
                number += 1
                try:
                    self.statuses.append(self._do(client, number).status_code)
                except httpx.HTTPError as error:
                    self.lost.append(repr(error))

    def go_on(self, times: int = 3) -> None:
        """Wait until as many more have been answered."""
        before, deadline = len(self.statuses), time.monotonic() + 120
        while len(self.statuses) < before + times:
            assert time.monotonic() < deadline, (self.statuses, self.lost)
            time.sleep(0.02)

    def end(self) -> None:
        self._over.set()
        self._thread.join(60)
        assert self.lost == []
        assert self.statuses and not [status for status in self.statuses if status >= 400], self.statuses


# Not those of tests/web/wire.py: they expect the forms of this release, and the last one has its own.


def create(client: httpx.Client, **fields: str) -> dict[str, Any]:
    made: dict[str, Any] = client.post("/session/create", json=fields).raise_for_status().json()
    return made


def chat(client: httpx.Client, prompt: str, session_id: str) -> dict[str, Any]:
    turn: dict[str, Any] = (
        client.post("/chat", json={"prompt": prompt, "session_id": session_id}).raise_for_status().json()
    )
    return turn


def a_page(client: httpx.Client, number: int) -> httpx.Response:
    return client.get(("/", "/session", "/models", "/limits")[number % 4])


def a_message(client: httpx.Client, number: int) -> httpx.Response:
    asked = {"prompt": f"message {number}", **({"session_id": client.params["at"]} if "at" in client.params else {})}
    answer = client.post("/chat", json=asked, params={})
    client.params = client.params.set("at", answer.json()["session_id"]) if number % 5 else httpx.QueryParams()
    return answer


def a_switch(client: httpx.Client, number: int) -> httpx.Response:
    session = create(client, model="fast")
    return client.post("/models/switch", json={"session_id": session["id"], "model": "smart"})


def live(client: httpx.Client) -> str:
    """A small life: every page, and every verb that people use; the session it was in."""
    assert client.get("/models").status_code == 200
    session = create(client, title="A title")
    id = session["id"]
    first = chat(client, "some words", session_id=id)
    assert (first["state"], first["reply"]) == ("done", "some words")
    asked = {"prompt": "streamed words", "session_id": id}
    streamed = client.post("/chat", json=asked, headers={"Accept": STREAM}).raise_for_status()
    assert text_of(list(Frames().feed(streamed.content))) == "streamed words"
    client.post("/models/switch", json={"session_id": id, "model": "smart", "reason": "why not"}).raise_for_status()
    for path, body in (
        (f"/chat/{first['id']}/retry", {"model": "fast"}),
        (f"/chat/{first['id']}/edit", {"prompt": "other words"}),
        (f"/chat/{first['id']}/choose", {}),
        (f"/session/{id}/rename", {"title": "Another title"}),
        (f"/session/{id}/draft", {"prompt": "half a"}),
        (f"/session/{id}/pin", {}),
        (f"/session/{id}/archive", {}),
        (f"/session/{id}/fork", {}),
        (f"/session/{id}/delete", {}),
        (f"/session/{id}/restore", {}),
        ("/admin/act", {"session_ids": [id], "deed": "lock", "reason": "for a while"}),
        ("/admin/act", {"session_ids": [id], "deed": "unlock", "reason": ""}),
        ("/admin/models/change", {"model": "guide", "state": "disabled", "state_reason": "a test", "reason": "a test"}),
        ("/admin/models/restore", {"model": "guide"}),
        ("/admin/groups/limit", {"group": "guest", "limit": "concurrent_turns", "value": "19"}),
        ("/admin/groups/limit", {"group": "guest", "limit": "concurrent_turns"}),
        ("/admin/moves", {"from": "aging", "to": "fast", "reason": "a test"}),
    ):
        answer = client.post(path, json=body)
        assert answer.status_code < 500, (path, answer.text)
        assert answer.is_success or path == "/admin/moves", (path, answer.text)
    client.post(f"/session/{create(client)['id']}/close", json={"reason": "done"}).raise_for_status()
    document = client.get(f"/session/{id}/export").raise_for_status()
    client.post("/session/import", content=document.content, headers={"Content-Type": JSON}).raise_for_status()
    look(client, id)
    return str(id)


def look(client: httpx.Client, id: str) -> None:
    """Every page and list is answered, with this session in the list."""
    assert any(one["id"] == id for one in client.get("/session", params={"show": "all"}).json()["sessions"])
    assert client.get("/session", params={"q": "streamed", "show": "all"}).json()["sessions"]
    for path in (*PAGES, f"/session/{id}", f"/session/{id}/turns", f"/session/{id}/journal"):
        for accept in (BROWSER, JSON):
            answer = client.get(path, headers={"Accept": accept}, follow_redirects=True)
            assert answer.status_code == 200, (path, accept, answer.status_code, answer.text[:500])


def sign_in(server: Server) -> httpx.Client:
    browser = server.guest()
    assert browser.post("/login", data={"name": "ada", "password": PASSWORD}).status_code == 303
    return browser


def test_the_last_release_goes_on_while_this_one_migrates_and_serves_beside_it(database: str, tmp_path: Path) -> None:
    folder, environment = tmp_path / "both", {"TURNKEEPER_DATABASE_URL": database}
    folder.mkdir()
    old, new = OldServer(folder, tmp_path / "old", **environment), Server(folder, **environment)
    new.forked = False
    with ExitStack() as stack:
        old.start()
        stack.callback(old.stop)
        assert old.run("account", "create", "ada", "--role", "admin", stdin=f"{PASSWORD}\n").returncode == 0
        made = old.run("token", "create", "--account", "ada", "--name", "test", "--scope", "admin")
        assert made.returncode == 0, made.stderr
        token = made.stdout.strip()
        before = asyncio.run(on(database, "SELECT name FROM migration ORDER BY name"))
        ours, theirs = stack.enter_context(new.script(token)), stack.enter_context(old.script(token))
        signed_in = sign_in(old)
        from_before = live(theirs)
        traffic = [Traffic(old, do, Accept=JSON) for do in (a_page, a_message, a_switch)]
        with theirs.stream(
            "POST", "/chat", json={"prompt": "/tokens 200 /delay 20ms"}, headers={"Accept": STREAM}
        ) as reply:
            lines = reply.iter_lines()
            next(lines)
            new.start()
            stack.callback(new.stop)
            after = asyncio.run(on(database, "SELECT name FROM migration ORDER BY name"))
            assert len(after) > len(before), "this release has no migration, so the test shows nothing"
            traffic += [Traffic(new, do, Accept=JSON) for do in (a_page, a_message, a_switch)]
            for one in traffic:
                one.go_on()
            told = list(lines)
        assert "event: end" in told
        for one in traffic:
            one.end()
        # Each sees what the other has made, before and after, and serves everything there is.
        look(ours, from_before)
        by_new, by_old = live(ours), live(theirs)
        look(theirs, by_new)
        look(ours, by_old)
        for session_id, here in ((by_new, theirs), (by_old, ours)):
            assert chat(here, "and on", session_id=session_id)["state"] == "done"
            assert here.get(f"/session/{session_id}").json()["title"] == "Another title"
        # A login holds at both.
        browser = sign_in(new)
        for server in (old, new):
            for one in (browser, signed_in):
                account = httpx.get(f"{server.url}/account", cookies=one.cookies, headers={"Accept": JSON})
                assert account.json()["name"] == "ada", (server.url, account.text)
        assert old.stop() == 0
        look(ours, by_old)
        assert new.stop() == 0
    assert old.noise == [] and new.noise == []


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_columns_that_a_later_release_has_added_are_in_nobodys_way(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Another server of this release goes on, from reading a row to copying it."""
    environment = {"TURNKEEPER_DATABASE_URL": request.getfixturevalue("database")} if kind == "postgres" else {}
    with a_server(tmp_path, **environment) as server:
        token = server.people("ada:admin")["ada"]
        with server.script(token) as ada:
            live(ada)
            add_a_column_everywhere(server, environment)
            live(ada)
            assert sign_in(server).get("/account", headers={"Accept": JSON}).json()["name"] == "ada"
        assert server.run("session", "list", "--json").returncode == 0


def add_a_column_everywhere(server: Server, environment: dict[str, str]) -> None:
    import sqlite3

    from db.tables import TABLES

    added = [f"ALTER TABLE {table._meta.tablename} ADD COLUMN of_later TEXT" for table in TABLES]
    if environment:
        asyncio.run(on(environment["TURNKEEPER_DATABASE_URL"], *added))
        return
    with sqlite3.connect(server.folder / "var" / "turnkeeper.db", timeout=30) as connection:
        for statement in added:
            connection.execute(statement)
    connection.close()

"""/login, /logout and /setup: once for each key, and what a guest takes along (D1, J1, J2, O3)."""

import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.web.people import PASSWORD
from tests.web.running import Server, a_server
from tests.web.wire import BROWSER, JSON, begin, chat, create, ended, hidden_fields, problem, session_of, streaming

FORM = {"Accept": BROWSER}
KEY = "0123456789abcdef-of-a-form"

Come = Callable[..., httpx.Client]


@pytest.fixture(autouse=True)
def accounts(tokens: dict[str, str]) -> dict[str, str]:
    """Everybody has an account because everybody has a token."""
    return tokens


def sign_in(client: httpx.Client, name: str = "kim", key: str = "", **fields: str) -> httpx.Response:
    """Send the form of the login page."""
    fields = {"name": name, "password": PASSWORD, **fields} | ({"idempotency_key": key} if key else {})
    return client.post("/login", data=fields, headers=FORM)


def login_of(answer: httpx.Response) -> str:
    """The login that an answer sets."""
    assert answer.status_code == 303, answer.text
    return str(answer.cookies["tk_login"])


def name_of(server: Server, login: str) -> str:
    """Whom a login's cookie proves."""
    with server.guest(Accept=JSON, Cookie=f"tk_login={login}") as client:
        return str(client.post("/session/create", json={}).json()["owner"]["name"])


def at_once(times: int, do: Callable[[], httpx.Response]) -> list[httpx.Response]:
    with ThreadPoolExecutor(times) as pool:
        return [done.result() for done in [pool.submit(do) for _ in range(times)]]


def rows_of(folder: Path, query: str, *values: Any) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(folder / "var" / "turnkeeper.db", timeout=60)) as database:
        return database.execute(query, values).fetchall()


def journal_of(client: httpx.Client, session_id: str, what: str) -> list[dict[str, Any]]:
    rows = client.get(f"/session/{session_id}/journal", headers={"Accept": JSON}).json()["journal"]
    return [row for row in rows if row["what"] == what]


# ---------------------------------------------------------------- one key, one login


def test_D1_a_double_click_on_sign_in_is_one_login(newcomer: Come, governed: Server) -> None:
    client = newcomer(BROWSER)
    key = hidden_fields(client.get("/login").text, "/login")["idempotency_key"]
    answers = at_once(2, lambda: sign_in(newcomer(BROWSER), key=key))
    answers.append(sign_in(client, key=key))
    assert {answer.headers["location"] for answer in answers} == {"/"}
    (login,) = {login_of(answer) for answer in answers}
    assert name_of(governed, login) == "kim"
    assert hidden_fields(client.get("/login").text, "/login")["idempotency_key"] != key


def test_D1_a_script_may_send_its_key_as_a_header(newcomer: Come) -> None:
    body, headers = {"name": "kim", "password": PASSWORD}, {"Idempotency-Key": "key-of-a-script"}
    logins = {login_of(newcomer().post("/login", json=body, headers=headers)) for _ in range(2)}
    assert len(logins) == 1
    assert login_of(newcomer().post("/login", json=body)) not in logins


def test_D1_a_form_sent_again_after_signing_out_revives_nothing(newcomer: Come, governed: Server) -> None:
    client = newcomer(BROWSER)
    old = login_of(sign_in(client, key="signed-out"))
    for _ in range(2):
        out = client.post("/logout", data={"idempotency_key": "out"}, headers=FORM)
        assert (out.status_code, out.headers["location"]) == (303, "/")
    new = login_of(sign_in(client, key="signed-out"))
    assert new != old
    assert name_of(governed, old).startswith("guest-")
    assert name_of(governed, new) == "kim"


def test_a_sign_out_sent_again_ends_the_login_that_there_is_now(newcomer: Come, governed: Server) -> None:
    """Who asks to be signed out is signed out: a key that was used never leaves a login open."""
    client = newcomer(BROWSER)
    for _ in range(2):
        login = login_of(sign_in(client))
        client.post("/logout", data={"idempotency_key": "one-for-both"}, headers=FORM)
        assert "tk_login" not in client.cookies
        assert name_of(governed, login).startswith("guest-")


def test_D1_the_same_key_signs_nobody_else_in_and_tells_nothing_without_a_password(newcomer: Come) -> None:
    login_of(sign_in(newcomer(BROWSER), key="of-kim"))
    client = newcomer()
    body = {"name": "liz", "password": PASSWORD, "idempotency_key": "of-kim"}
    problem(client.post("/login", json=body), 422, "idempotency_key_reused")
    told = [
        problem(client.post("/login", json={"name": name, "password": "wrong", "idempotency_key": key}), 401, code)
        for name, key, code in (
            ("kim", "of-kim", "unauthenticated"),
            ("kim", "unused", "unauthenticated"),
            ("nobody", "of-kim", "unauthenticated"),
        )
    ]
    assert len({json.dumps({**one, "request_id": ""}) for one in told}) == 1
    assert "tk_login" not in client.cookies


def test_after_a_wrong_password_the_form_comes_with_a_key_that_works(newcomer: Come) -> None:
    client = newcomer(BROWSER)
    page = sign_in(client, password="wrong", key="mistyped")
    assert page.status_code == 401
    login_of(sign_in(client, key=hidden_fields(page.text, "/login")["idempotency_key"]))
    login_of(sign_in(newcomer(BROWSER), key="mistyped"))


# ---------------------------------------------------------------- the first admin


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without an admin."""
    with a_server(tmp_path_factory.mktemp("unclaimed")) as running:
        yield running


def test_D1_O3_who_double_clicks_the_set_up_form_becomes_the_admin_and_takes_the_guests_sessions(fresh: Server) -> None:
    path = fresh.setup_url.removeprefix(fresh.url)
    with fresh.guest(Accept=JSON) as browser:
        session = create(browser, title="Before there was an admin")
        guest = browser.cookies["tk_guest"]
        fields = {"name": "ada", "password": PASSWORD, **hidden_fields(browser.get(path, headers=FORM).text, path)}

        def become() -> httpx.Response:
            with fresh.guest(Accept=BROWSER, Cookie=f"tk_guest={guest}") as same:
                return same.post(path, data=fields)

        answers = at_once(2, become)
        answers.append(become())
        assert {answer.headers["location"] for answer in answers} == {"/admin"}
        (login,) = {login_of(answer) for answer in answers}
        told = browser.post(path, json={**fields, "name": "eve"})
        problem(told, 422, "idempotency_key_reused")
        told = browser.post(path, json={**fields, "password": "wrong password"})
        problem(told, 401, "unauthenticated")
        told = browser.post(path, json={**fields, "idempotency_key": "other"})
        problem(told, 403, "forbidden")
    with fresh.guest(Accept=JSON, Cookie=f"tk_login={login}") as ada:
        assert ada.get("/admin", headers=FORM).status_code == 200
        assert session_of(ada, session["id"])["owner"]["name"] == "ada"
        assert len(journal_of(ada, session["id"], "session_adopted")) == 1
    counts = "SELECT COUNT(*) FROM account WHERE role = 'admin' UNION ALL SELECT COUNT(*) FROM login"
    assert rows_of(fresh.folder, counts) == [(1,), (1,)]


# ---------------------------------------------------------------- what a guest takes along


def used_of(client: httpx.Client, name: str) -> int:
    limits = client.get("/limits", headers={"Accept": JSON}).json()["limits"]
    return next(int(limit["used"]) for limit in limits if limit["name"] == name)


def test_O3_a_guest_who_signs_in_takes_the_sessions_along_once(newcomer: Come) -> None:
    browser = newcomer()
    turn = chat(browser, "Before signing in")
    session = session_of(browser, turn["session_id"])
    was, guest = browser.cookies["tk_guest"], session["owner"]["name"]
    other = newcomer()
    login_of(sign_in(other))
    before = used_of(other, "open_sessions")
    login_of(sign_in(browser))
    mine = session_of(browser, session["id"])
    assert (mine["owner"]["name"], mine["title"], mine["turn_count"]) == ("kim", session["title"], 1)
    assert session_of(other, session["id"]) == mine, "it is the account's, not the browser's"
    assert used_of(browser, "open_sessions") == before + 1
    assert "Before signing in" in browser.get(f"/session/{session['id']}", headers=FORM).text
    (row,) = journal_of(browser, session["id"], "session_adopted")
    assert (row["actor"], row["from"], row["to"]) == ("kim", guest, "kim")
    chat(browser, "After signing in", session_id=session["id"])

    # Nobody finds it by the guest's cookie any more: not who signs out, not who kept the old cookie.
    now = browser.cookies["tk_guest"]
    assert now != was
    login_of(sign_in(browser))
    assert len(journal_of(browser, session["id"], "session_adopted")) == 1
    browser.post("/logout", data={}, headers=FORM)
    for cookie in (was, browser.cookies["tk_guest"]):
        left = newcomer(Cookie=f"tk_guest={cookie}")
        problem(left.get(f"/session/{session['id']}"), 404, "session_not_found")
        assert left.get("/session").json()["sessions"] == []


def test_O3_the_next_account_on_the_same_browser_gets_nothing_of_it(newcomer: Come) -> None:
    browser = newcomer()
    session = create(browser, title="Of the first")
    kept = browser.cookies["tk_guest"]
    login_of(sign_in(browser, "kim"))
    browser.post("/logout", data={}, headers=FORM)
    for cookie in ("", kept):
        if cookie:
            browser.cookies.set("tk_guest", cookie)
        login_of(sign_in(browser, "liz"))
        problem(browser.get(f"/session/{session['id']}"), 404, "session_not_found")
        browser.post("/logout", data={}, headers=FORM)


def test_O3_of_two_accounts_at_once_one_takes_each_session_whole(
    newcomer: Come, governed: Server, tokens: dict[str, str]
) -> None:
    browser = newcomer()
    ids = [create(browser)["id"] for _ in range(2)]
    cookie = browser.cookies["tk_guest"]
    people = {name: newcomer(Cookie=f"tk_guest={cookie}") for name in ("kim", "liz")}
    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(sign_in, people[name], name) for name in ("kim", "liz") * 2]
    for one in done:
        login_of(one.result())
    for session_id in ids:
        owners = []
        for name in people:
            with governed.script(tokens[name]) as reader:
                if reader.get(f"/session/{session_id}").status_code == 200:
                    owners.append(name)
                    (row,) = journal_of(reader, session_id, "session_adopted")
                    assert row["to"] == name
        assert len(owners) == 1


def test_O3_a_running_reply_goes_on_and_the_guests_stream_ends(newcomer: Come) -> None:
    browser = newcomer()
    turn = begin(browser, "/tokens 60 /delay 20ms")
    tab = newcomer(Cookie=f"tk_guest={browser.cookies['tk_guest']}")
    with streaming(tab, f"/session/{turn['session_id']}/events") as stream:
        stream.next("delta")
        login_of(sign_in(browser))
        for last in stream:  # noqa: B007
            pass
        assert last.name == "gone", "the tab still shows what is not the guest's any more"
    whole = ended(browser, turn["id"])
    assert (whole["state"], bool(whole["reply"])) == ("done", True)


def test_O3_a_sign_in_stands_where_the_sessions_cannot_be_taken_along(newcomer: Come, governed: Server) -> None:
    browser = newcomer()
    session = create(browser)
    guest = browser.cookies["tk_guest"]
    database = sqlite3.connect(governed.folder / "var" / "turnkeeper.db", timeout=60)
    with closing(database):
        database.execute(
            "CREATE TRIGGER fail BEFORE UPDATE OF owner_id ON session "
            f"WHEN NEW.id = '{session['id']}' BEGIN SELECT json('a full disk'); END"
        )
        database.commit()
        try:
            login_of(sign_in(browser))
        finally:
            database.execute("DROP TRIGGER fail")
            database.commit()
    assert create(browser)["owner"]["name"] == "kim"
    problem(browser.get(f"/session/{session['id']}"), 404, "session_not_found")
    assert browser.cookies["tk_guest"] == guest, "kept, so that the next sign-in finds them"
    login_of(sign_in(browser))
    assert session_of(browser, session["id"])["owner"]["name"] == "kim"
    assert browser.cookies["tk_guest"] != guest


def test_O3_a_failed_sign_in_takes_nothing_along(newcomer: Come) -> None:
    browser = newcomer()
    session, guest = create(browser), browser.cookies["tk_guest"]
    assert sign_in(browser, password="wrong").status_code == 401
    assert browser.cookies["tk_guest"] == guest
    assert session_of(browser, session["id"])["owner"]["name"].startswith("guest-")


# ---------------------------------------------------------------- the journal


def test_J1_what_a_token_does_is_told_as_the_tokens_on_behalf_of_its_account(
    governed: Server, bob: httpx.Client
) -> None:
    session = create(bob)
    (row,) = rows_of(
        governed.folder,
        "SELECT actor_kind, api_token.id IS NOT NULL, account.name, actor_name FROM journal "
        "LEFT JOIN api_token ON api_token.id = actor_id LEFT JOIN account ON account.id = on_behalf_of "
        "WHERE session_id = ? AND what = 'session_created'",
        session["id"],
    )
    assert row == ("token", 1, "bob", "bob")


def test_J2_what_a_token_lacks_the_scope_for_is_noted(newcomer: Come, governed: Server) -> None:
    name = f"reader-{uuid4().hex[:8]}"
    governed.people(name)
    made = governed.run("token", "create", "--account", name, "--name", "looks", "--scope", "read")
    with governed.script(made.stdout.strip()) as script:
        assert script.post("/session/create", json={}).status_code == 403
        assert script.get("/session").status_code == 200
    query = "SELECT what, outcome, reason, actor_kind FROM journal WHERE actor_name = ? AND what = 'refused'"
    assert rows_of(governed.folder, query, name) == [("refused", "forbidden", "create_session", "token")]


def test_J1_J2_signing_in_and_failing_to_are_told_without_a_secret(newcomer: Come, governed: Server) -> None:
    client = newcomer(address="203.0.113.77")
    typed = {"name": "canary-password-as-name", "password": "canary-password"}
    for _ in range(3):
        problem(client.post("/login", json=typed), 401, "unauthenticated")
    answer = sign_in(client, key=KEY)
    login = login_of(answer)
    columns = "actor_kind, actor_name, what, outcome, reason, owner_id IS NULL"
    found = rows_of(
        governed.folder,
        f"SELECT {columns} FROM journal WHERE request_id = ?",
        answer.headers["x-request-id"],
    )
    assert found == [("user", "kim", "signed_in", "done", "", 0)]
    refused = rows_of(
        governed.folder,
        f"SELECT {columns} FROM journal WHERE what = 'refused' AND reason = 'sign_in' AND outcome = 'unauthenticated'",
    )
    # Of whom it is told where the name is somebody's; what else was typed is told nowhere.
    assert {row[:5] for row in refused} == {("guest", "", "refused", "unauthenticated", "sign_in")}
    assert 1 in {row[5] for row in refused}
    with closing(sqlite3.connect(governed.folder / "var" / "turnkeeper.db")) as database:
        dump = "\n".join(database.iterdump())
    for secret in (*typed.values(), login, KEY, PASSWORD, "203.0.113.77"):
        assert secret not in dump
        assert secret not in governed.output


def test_a_refused_set_up_keeps_its_form_and_name_and_says_what_is_wrong_at_the_field(tmp_path: Path) -> None:
    with a_server(tmp_path) as fresh, fresh.guest(Accept=BROWSER) as browser:
        path = fresh.setup_url.removeprefix(fresh.url)
        for headers in ({}, {"Referer": fresh.setup_url}):
            wrong = browser.post(path, data={"name": "root", "password": "short"}, headers=headers)
            assert wrong.status_code == 400 and "Create the admin account" in wrong.text
            assert 'value="root"' in wrong.text and "short" not in wrong.text
            assert re.search(r'name="password"[^>]*aria-invalid="true"', wrong.text)
        named = browser.post(path, data={"name": "ro\u200bot", "password": PASSWORD})
        assert re.search(r'name="name"[^>]*aria-invalid="true"', named.text)
        assert browser.post(path, data={"name": "root", "password": PASSWORD}).headers["location"] == "/admin"
        # A page of the same URL comes back as well, with the name that was typed.
        again = browser.post("/admin/accounts", data={"name": "Root", "password": PASSWORD})
        assert again.status_code == 400 and "looks like" in again.text
        assert "New account" in again.text and 'value="Root"' in again.text

"""/account and /admin/accounts: passwords, logins and tokens, and who may change whose; O4 by the admin's own hand."""

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from uuid import uuid4

import httpx
import pytest

from tests.web.people import PASSWORD
from tests.web.running import Server
from tests.web.wire import (
    ABSENT,
    BROWSER,
    HTMX,
    JSON,
    SENT_AWAY_SECONDS,
    begin,
    create,
    hidden_fields,
    is_page,
    problem,
    streaming,
    within,
)

FORM = {"Accept": BROWSER}
OTHER, TEMPORARY = "battery staple horse", "a temporary horse"
REPLACE = "password_change_required"
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:150.0) Gecko/20100101 Firefox/150.0"

Come = Callable[..., httpx.Client]


@pytest.fixture
def name(boss: httpx.Client, newcomer: Come) -> str:
    """Somebody who has an account since just now, with a password of their own."""
    name = f"eve-{uuid4().hex[:8]}"
    made = boss.post("/admin/accounts", json={"name": name, "password": TEMPORARY})
    assert made.status_code == 201, made.text
    assert made.json()["role"] == made.json()["group"] == "user"
    assert made.json()["temporary_password"]["set_by"] == "boss"
    asked = problem(newcomer().post("/login", json={"name": name, "password": TEMPORARY}), 403, REPLACE)
    browser = newcomer()
    replaced = browser.post("/login/password", json={"ticket": asked["ticket"], "new": PASSWORD})
    assert replaced.status_code == 303
    browser.post("/logout", json={})
    return name


@pytest.fixture
def account_id(name: str, boss: httpx.Client) -> str:
    (account,) = boss.get("/admin/accounts", params={"q": name}).json()["accounts"]
    return str(account["id"])


SignsIn = Callable[..., httpx.Client]


@pytest.fixture
def signs_in(newcomer: Come, name: str) -> SignsIn:
    """A browser that has just signed in as somebody."""

    def sign_in(who: str = "", password: str = PASSWORD, **headers: str) -> httpx.Client:
        client = newcomer(BROWSER, **headers)
        answer = client.post("/login", data={"name": who or name, "password": password})
        assert answer.status_code == 303, answer.text
        client.headers["accept"] = JSON
        return client

    return sign_in


def test_the_page_tells_who_one_is_and_where_one_is_signed_in(signs_in: SignsIn, name: str) -> None:
    first, second = signs_in(**{"User-Agent": FIREFOX}), signs_in()
    account = first.get("/account").json()
    assert (account["name"], account["role"], account["group"]) == (name, "user", "user")
    assert [one["browser"] for one in account["logins"]] == ["A browser", "Firefox on Linux"]
    assert [one["current"] for one in account["logins"]] == [False, True]
    page = first.get("/account", headers=FORM)
    assert is_page(page) and "Firefox on Linux" in page.text
    form = hidden_fields(page.text, "/account/logins/revoke")
    assert (
        first.post("/account/logins/revoke", data=form, headers=FORM).headers["location"]
        == "/account?done=signed-out#logins"
    )
    problem(second.get("/account"), 401, "unauthenticated")
    assert [one["current"] for one in first.get("/account").json()["logins"]] == [True]


def test_who_has_no_account_is_asked_to_sign_in(newcomer: Come) -> None:
    guest = newcomer()
    problem(guest.get("/account"), 401, "unauthenticated")
    page = guest.get("/account", headers=FORM)
    assert page.status_code == 401 and 'name="next" value="/account"' in page.text
    for url, fields in (
        ("/account/password", {"old": PASSWORD, "new": OTHER}),
        ("/account/logins/revoke", {}),
        ("/account/tokens", {"name": "x"}),
        ("/account/tokens/revoke", {"token_id": ABSENT}),
    ):
        problem(guest.post(url, json=fields), 401, "unauthenticated")


def test_a_password_is_changed_by_the_form_and_every_other_browser_is_out(signs_in: SignsIn, name: str) -> None:
    client, other = signs_in(), signs_in()
    form = hidden_fields(client.get("/account", headers=FORM).text, "/account/password")
    wrong = client.post("/account/password", data={**form, "old": "wrong horse", "new": OTHER}, headers=FORM)
    assert wrong.status_code == 400 and "This is not your current password." in wrong.text
    assert wrong.text.index('aria-invalid="true"') and wrong.text.count("Please sign in") == 0
    assert "wrong horse" not in wrong.text and OTHER not in wrong.text
    for _ in range(2):  # the second is a double click
        done = client.post("/account/password", data={**form, "old": PASSWORD, "new": OTHER}, headers=FORM)
        assert (done.status_code, done.headers.get("location")) == (303, "/account")
    problem(other.get("/account"), 401, "unauthenticated")
    assert client.get("/account").status_code == 200
    assert signs_in(password=OTHER).get("/account").json()["name"] == name


def test_a_token_is_shown_once_works_in_its_scope_and_is_revoked(
    signs_in: SignsIn, governed: Server, name: str
) -> None:
    client = signs_in()
    form = hidden_fields(client.get("/account", headers=FORM).text, "/account/tokens")
    made = client.post("/account/tokens", data={**form, "name": "nightly", "scope": "read"}, headers=FORM)
    assert made.status_code == 201 and is_page(made)
    (token,) = set(re.findall(r"tk_[\w-]{40,}", made.text))
    again = client.post("/account/tokens", data={**form, "name": "nightly", "scope": "read"}, headers=FORM)
    assert token in again.text, "a double click is one token"
    page, account = client.get("/account", headers=FORM).text, client.get("/account").json()
    assert "nightly" in page and token not in page and account["token"] is None
    assert [(one["name"], one["scopes"]) for one in account["tokens"]] == [("nightly", ["read"])]
    with governed.script(token) as script:
        assert script.get("/account").json()["name"] == name
        problem(script.post("/account/tokens", json={"name": "more"}), 403, "forbidden")
        form = hidden_fields(page, "/account/tokens/revoke")
        assert client.post("/account/tokens/revoke", data=form, headers=FORM).status_code == 303
        problem(script.get("/account"), 401, "unauthenticated")
    problem(client.post("/account/tokens", json={"name": "x", "scope": "admin"}), 403, "forbidden")
    problem(client.post("/account/tokens", json={"name": "x", "account": "boss"}), 403, "forbidden")


def test_a_token_ends_on_the_day_that_was_chosen(signs_in: SignsIn) -> None:
    client = signs_in()
    for day, ends in (("2099-01-31", "2099-01-31T00:00:00Z"), ("", None)):
        form = hidden_fields(client.get("/account", headers=FORM).text, "/account/tokens")
        asked = {**form, "name": f"until {day}", "expires_on": day}
        texts = [client.post("/account/tokens", data=asked, headers=FORM).text for _ in range(2)]
        assert len({token for text in texts for token in re.findall(r"tk_[\w-]{40,}", text)}) == 1
        assert client.get("/account").json()["tokens"][0]["expires_at"] == ends
    for day, status in (("2020-01-01", 400), ("someday", 400), ("0001-01-01", 400), ("9999-12-31", 201)):
        assert client.post("/account/tokens", json={"name": "x", "expires_on": day}).status_code == status


def test_an_admin_finds_makes_and_changes_accounts(boss: httpx.Client, name: str, account_id: str) -> None:
    pages = [boss.get(path, headers=FORM) for path in ("/admin/accounts", f"/admin/accounts/{account_id}")]
    assert all(is_page(page) for page in pages)
    again = boss.post("/admin/accounts", data={"name": name, "password": PASSWORD}, headers=HTMX)
    assert again.status_code == 400 and "already" in again.text and PASSWORD not in again.text
    changed = boss.post("/admin/accounts/change", json={"account_id": account_id, "group": "brief", "reason": "x"})
    assert (changed.json()["role"], changed.json()["group"]) == ("user", "brief")
    form = hidden_fields(pages[1].text, "/admin/accounts/change")
    plain = boss.post("/admin/accounts/change", data={**form, "role": "admin", "group": "admin"}, headers=FORM)
    assert (plain.status_code, plain.headers["location"]) == (303, f"/admin/accounts/{account_id}?done=saved")
    problem(
        boss.post("/admin/accounts/change", json={"account_id": account_id, "group": "none"}), 400, "invalid_request"
    )
    problem(boss.get(f"/admin/accounts/{ABSENT}"), 404, "session_not_found")
    problem(boss.post("/admin/accounts/change", json={"account_id": ABSENT}), 404, "session_not_found")


def test_a_list_of_accounts_goes_on_and_holds_no_guest(boss: httpx.Client, newcomer: Come, name: str) -> None:
    create(newcomer())
    seen, cursor = [], ""
    while True:
        found = boss.get("/admin/accounts", params={"limit": 3, "cursor": cursor}).json()
        seen += [one["name"] for one in found["accounts"]]
        if not (cursor := found["next_cursor"]):
            break
    assert len(seen) == len(set(seen)) and seen == sorted(seen) and {"bob", "boss", name} <= set(seen)
    assert not any(one.startswith("guest-") for one in seen)


def test_nobody_else_sees_or_changes_accounts(bob: httpx.Client, newcomer: Come, account_id: str) -> None:
    for client in (bob, newcomer()):
        problem(client.get("/admin/accounts"), 403, "forbidden")
        for url, fields in (
            ("/admin/accounts", {"name": "x", "password": PASSWORD}),
            ("/admin/accounts/change", {"account_id": account_id, "role": "admin"}),
            ("/admin/accounts/password", {"account_id": account_id, "password": PASSWORD}),
        ):
            problem(client.post(url, json=fields), 403, "forbidden")
    # Whether there is such an account is not told either.
    foreign, absent = (bob.get(f"/admin/accounts/{id}") for id in (account_id, ABSENT))
    assert (foreign.status_code, foreign.json()["detail"]) == (absent.status_code, absent.json()["detail"])


def test_O4_whoever_an_admin_takes_the_right_from_is_out_at_once_and_its_streams_end(
    boss: httpx.Client, governed: Server, newcomer: Come
) -> None:
    """By the pages of the admin, and by one's own: within five seconds, also what is open already."""
    people = {
        why: f"{why}-{uuid4().hex[:8]}" for why in ("disabled", "demoted", "token", "login", "logins", "password")
    }
    tokens = governed.people(*(f"{who}:{'admin' if why == 'demoted' else ''}" for why, who in people.items()))
    accounts = {
        why: boss.get("/admin/accounts", params={"q": who}).json()["accounts"][0]["id"] for why, who in people.items()
    }
    with ExitStack() as opened:
        clients, streams = {}, []
        for why, who in people.items():
            if why in ("disabled", "demoted", "token"):
                clients[why] = opened.enter_context(governed.script(tokens[who]))
            else:
                clients[why] = newcomer()
                signed_in = clients[why].post("/login", data={"name": who, "password": PASSWORD}, headers=FORM)
                assert signed_in.status_code == 303
            turn = begin(clients[why], "/tokens 3000 /delay 50ms")
            streams.append(opened.enter_context(streaming(clients[why], f"/chat/{turn['id']}/events")))
            streams[-1].next("delta")
        ids = {why: boss.get(f"/admin/accounts/{id}").json() for why, id in accounts.items()}
        for url, fields in (
            ("/admin/accounts/change", {"account_id": accounts["disabled"], "disabled": True, "reason": "r"}),
            ("/admin/accounts/change", {"account_id": accounts["demoted"], "role": "user"}),
            ("/account/tokens/revoke", {"token_id": ids["token"]["tokens"][0]["id"], "reason": "r"}),
            ("/account/logins/revoke", {"login_id": ids["login"]["logins"][0]["id"], "reason": "r"}),
            ("/account/logins/revoke", {"account_id": accounts["logins"], "reason": "r"}),
            ("/admin/accounts/password", {"account_id": accounts["password"], "password": OTHER}),
        ):
            answer = boss.post(url, json=fields)
            assert answer.status_code == 200, answer.text
        with within(SENT_AWAY_SECONDS, governed):
            for why, client in clients.items():
                answer = client.get("/admin" if why == "demoted" else "/account")
                assert answer.status_code == (403 if why == "demoted" else 401), why
            assert {stream.rest()[-1].name for stream in streams} == {"gone"}


def test_signing_out_beside_an_open_stream_and_a_slow_request_stays_so(signs_in: SignsIn) -> None:
    """SECURITY B 12: nothing that was under way brings the login back."""
    client = signs_in()
    login = client.cookies["tk_login"]
    turn = begin(client, "/tokens 3000 /delay 20ms")
    with streaming(client, f"/chat/{turn['id']}/events") as stream, ThreadPoolExecutor(1) as pool:
        stream.next("delta")
        slow = pool.submit(client.post, "/chat", json={"prompt": "/tokens 3000 /delay 20ms"})
        while sum(one["running_turn"] is not None for one in client.get("/session").json()["sessions"]) < 2:
            time.sleep(0.01)
        out = client.post("/logout", data={}, headers={**FORM, "Cookie": f"tk_login={login}"})
        assert out.status_code == 303
        problem(slow.result(60), 401, "unauthenticated")
        last = stream.next()
        for last in stream:  # noqa: B007
            pass
        assert last.name == "gone"
    client.cookies.clear()
    problem(client.get("/account", headers={"Cookie": f"tk_login={login}"}), 401, "unauthenticated")
    problem(client.get("/account", headers={"Cookie": f"tk_login={login}"}), 401, "unauthenticated")


def test_58_a_browser_that_signed_in_before_comes_in_whatever_strangers_try(
    signs_in: SignsIn, newcomer: Come, name: str
) -> None:
    address = "203.0.113.58"
    home = signs_in(**{"X-Forwarded-For": address})
    stranger = newcomer(**{"X-Forwarded-For": address})
    tried = [stranger.post("/login", json={"name": name, "password": "wrong"}).status_code for _ in range(11)]
    assert tried == [401] * 10 + [429]
    problem(stranger.post("/login", json={"name": name, "password": PASSWORD}), 429, "rate_limited")
    home.post("/logout", json={})
    assert home.post("/login", json={"name": name, "password": PASSWORD}).status_code == 303
    # A change of the password ends what other browsers had, and this one keeps its place.
    elsewhere = home.cookies["tk_device"]
    done = home.post("/account/password", json={"old": PASSWORD, "new": OTHER})
    assert done.status_code == 200 and home.cookies["tk_device"] != elsewhere
    home.post("/logout", json={})
    assert home.post("/login", json={"name": name, "password": OTHER}).status_code == 303
    stolen = newcomer(**{"X-Forwarded-For": address, "Cookie": f"tk_device={elsewhere}"})
    problem(stolen.post("/login", json={"name": name, "password": OTHER}), 429, "rate_limited")


def test_O5_what_was_done_to_an_account_goes_on_page_by_page(signs_in: SignsIn, boss: httpx.Client, name: str) -> None:
    client = signs_in()
    account = client.get("/account").json()
    boss.post("/admin/accounts/change", json={"account_id": account["id"], "group": "brief", "reason": "for now"})
    seen, cursor = [], ""
    while True:
        found = client.get("/account/activity", params={"limit": 2, "cursor": cursor}).json()
        seen += found["activity"]
        if not (cursor := found["next_cursor"]):
            break
    assert seen[0]["what"] == "account_changed"
    assert (seen[0]["actor"], seen[0]["yours"], seen[0]["reason"]) == ("boss", False, "for now")
    assert seen[0]["text"] == "boss (by an API token) changed role or group: user, group user → user, group brief"
    assert seen[-1]["text"] == "boss (by an API token) created this account: user"
    assert "Somebody who knew it replaced the temporary password" in [one["text"] for one in seen]
    assert client.get("/account").json()["activity"] == seen[:10]
    page = client.get("/account/activity", headers=FORM)
    assert is_page(page) and "by somebody else" in page.text
    theirs = boss.get(f"/admin/accounts/{account['id']}").json()["activity"]
    assert [one["id"] for one in theirs] == [one["id"] for one in seen[:10]]


def test_56_an_admins_token_for_somebody_else_is_refused_over_the_wire(
    boss: httpx.Client, bob: httpx.Client, ada: httpx.Client, ann: httpx.Client
) -> None:
    """On `governed` admins do not read chats; on the other server they do, with a reason."""
    for scope in ("read", "chat"):
        asked = {"account": "bob", "name": "x", "scope": scope, "reason": "I want to look."}
        told = problem(boss.post("/account/tokens", json=asked), 403, "forbidden")
        assert "service account" in told["detail"]
    assert not [one for one in bob.get("/account").json()["tokens"] if one["name"] == "x"]
    told = problem(ada.post("/account/tokens", json={"account": "ann", "name": "x"}), 400, "invalid_request")
    assert told["field"] == "reason"
    made = ada.post("/account/tokens", json={"account": "ann", "name": "x", "reason": "She is away."})
    assert made.status_code == 201
    ada.post("/account/tokens/revoke", json={"token_id": made.json()["tokens"][0]["id"], "reason": "Over."})
    seen = [one["text"] for one in ann.get("/account").json()["activity"]]
    assert seen[:2] == [
        "ada (by an API token) revoked the API token “x: Over.”",
        "ada (by an API token) created the API token “x: She is away.” (chat)",
    ]

"""Who may call which route at all: every route of the site map has an entry, and every kind of caller is tried.

SECURITY: route × scope. What is asked names nothing that is there, so whoever is let in gets no further than that.
"""

from collections.abc import Iterator

import httpx
import pytest

from tests.web.people import PASSWORD
from tests.web.running import Server
from tests.web.test_ownership import filled, needs
from tests.web.test_routes import ALL
from tests.web.wire import ABSENT, JSON

CALLERS = ("a guest", "ann reads", "ann chats", "ann", "ada reads", "ada chats", "ada as admin", "ada")
EVERYBODY = set(CALLERS)
READERS = EVERYBODY
WRITERS = EVERYBODY - {"ann reads", "ada reads"}
ACCOUNTS = EVERYBODY - {"a guest"}
#: who changes an account: somebody who has signed in, or a script with all of an admin's rights
PEOPLE = {"ann", "ada as admin", "ada"}
ADMINS = {"ada as admin", "ada"}

#: who is let in; a route that is not here fails
MAY: dict[str, set[str]] = {
    "GET /": READERS,
    "POST /session/create": WRITERS,
    "GET /session": READERS,
    "GET /session/{session_id:uuid}": READERS,
    "GET /session/{session_id:uuid}/turns": READERS,
    "GET /session/{session_id:uuid}/events": READERS,
    "GET /session/{session_id:uuid}/journal": READERS,
    "POST /session/{session_id:uuid}/read": WRITERS,
    "POST /session/{session_id:uuid}/rename": WRITERS,
    "POST /session/{session_id:uuid}/draft": WRITERS,
    "POST /session/{session_id:uuid}/extend": WRITERS,
    "POST /session/{session_id:uuid}/close": WRITERS,
    "POST /session/{session_id:uuid}/reopen": WRITERS,
    "POST /session/{session_id:uuid}/fork": WRITERS,
    "POST /session/{session_id:uuid}/delete": WRITERS,
    "POST /session/{session_id:uuid}/restore": WRITERS,
    "POST /session/{session_id:uuid}/pin": WRITERS,
    "POST /session/{session_id:uuid}/unpin": WRITERS,
    "POST /session/{session_id:uuid}/archive": WRITERS,
    "POST /session/{session_id:uuid}/unarchive": WRITERS,
    "GET /session/{session_id:uuid}/export": READERS,
    "GET /session/export": READERS,
    "POST /session/import": WRITERS,
    "GET /models": READERS,
    "POST /models/switch": WRITERS,
    "GET /limits": READERS,
    "GET /docs": READERS,
    "POST /chat": WRITERS,
    "GET /chat/{turn_id:uuid}": READERS,
    "GET /chat/{turn_id:uuid}/events": READERS,
    "POST /chat/{turn_id:uuid}/stop": WRITERS,
    "POST /chat/{turn_id:uuid}/retry": WRITERS,
    "POST /chat/{turn_id:uuid}/edit": WRITERS,
    "POST /chat/{turn_id:uuid}/choose": WRITERS,
    "GET /v1/models": READERS,
    "GET /v1/models/{model:path}": READERS,
    "POST /v1/chat/completions": WRITERS,
    "GET /account": ACCOUNTS,
    "GET /account/activity": ACCOUNTS,
    "POST /account/password": PEOPLE,
    "POST /account/logins/revoke": PEOPLE,
    "POST /account/tokens": PEOPLE,
    "POST /account/tokens/revoke": PEOPLE,
    **dict.fromkeys(
        (
            "GET /admin", "GET /admin/events", "POST /admin/act",
            "GET /admin/models", "POST /admin/models/change", "POST /admin/models/restore", "POST /admin/models/test",
            "GET /admin/groups", "POST /admin/groups/change", "POST /admin/groups/restore", "POST /admin/groups/limit",
            "GET /admin/moves", "GET /admin/moves/preview", "POST /admin/moves", "POST /admin/moves/stop",
            "GET /admin/accounts", "GET /admin/accounts/{account_id:uuid}", "POST /admin/accounts",
            "POST /admin/accounts/change", "POST /admin/accounts/password", "GET /admin/usage",
            "GET /admin/usage/export", "GET /admin/journal", "GET /admin/journal/export",
        ),
        ADMINS,
    ),
}  # fmt: skip
#: what proves who one is, and what machines ask: nobody is asked for anything first
OPEN = {
    "GET /login", "POST /login", "POST /login/password", "POST /logout",
    "GET /setup/{secret:str}", "POST /setup/{secret:str}",
    "GET /healthz", "GET /readyz", "GET /openapi.json",
    # From this machine; from elsewhere for admins alone, see test_metrics.py.
    "GET /metrics",
}  # fmt: skip
#: what a route needs so that it is not refused for its form
QUERIES = {"/admin/moves/preview": {"from": "fast", "to": "smart"}}


@pytest.fixture(scope="module")
def callers(server: Server, ann_token: str, admin_token: str) -> Iterator[dict[str, httpx.Client]]:
    """One client for each kind of caller."""
    made: dict[str, httpx.Client] = {"a guest": server.guest(Accept=JSON)}
    for name in ("ann", "ada"):
        made[name] = server.guest(Accept=JSON)
        assert made[name].post("/login", data={"name": name, "password": PASSWORD}).status_code == 303
    for name, verb, scope in (
        ("ann", "reads", "read"),
        ("ann", "chats", "chat"),
        ("ada", "reads", "read"),
        ("ada", "chats", "chat"),
        ("ada", "as admin", "admin"),
    ):
        token = made[name].post("/account/tokens", json={"name": f"{name} {verb}", "scope": scope}).json()
        made[f"{name} {verb}"] = server.script(token["token"])
    yield made
    for client in made.values():
        client.close()


def test_every_route_has_an_entry() -> None:
    declared = {f"{method} {path}" for method, path, _ in ALL}
    assert declared == set(MAY) | OPEN
    assert not set(MAY) & OPEN
    assert all(MAY.values()) and set().union(*MAY.values()) == EVERYBODY


@pytest.mark.parametrize("route", MAY)
def test_a_route_lets_in_whom_it_may_and_nobody_else(callers: dict[str, httpx.Client], route: str) -> None:
    method, path = route.split(" ")
    url = filled(path, ABSENT, ABSENT)
    let_in = set()
    for who, client in callers.items():
        fields = dict(needs(url))
        # Wrong on purpose, and told apart from being refused: the server is shared.
        fields |= {"old": "wrong horse"} if path == "/account/password" else {}
        fields |= {"login_id": ABSENT} if path == "/account/logins/revoke" else {}
        if path in ("/admin/accounts", "/chat", "/session/create"):
            fields = dict.fromkeys(fields, "") or {"model": "no-such-model"}
        if path in (
            "/admin/moves",
            "/admin/groups/limit",
            "/admin/models/change",
            "/admin/models/restore",
            "/admin/models/test",
        ):
            fields = dict.fromkeys(fields, "no-such")
        sent = {"json": fields} if method == "POST" else {"params": QUERIES.get(path, {})}
        # A stream goes on: what it begins with says enough.
        with client.stream(method, url, headers={"Accept": JSON}, **sent) as answer:  # type: ignore[arg-type]
            if answer.status_code != 200 or "event-stream" not in answer.headers["content-type"]:
                answer.read()
        assert answer.status_code < 500
        refused = answer.status_code in (401, 403) and "name or the password" not in answer.text
        if not refused:
            let_in.add(who)
    assert let_in == MAY[route]

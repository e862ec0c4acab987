"""/admin: the desk as page, JSON and stream; acting on many; and that every write of an admin is in the journal."""

import re
import time
from collections.abc import Callable
from uuid import uuid4

import httpx
import pytest

from tests.web.people import PASSWORD
from tests.web.running import Server
from tests.web.test_routes import POSTS
from tests.web.wire import (
    ABSENT,
    BROWSER,
    HTMX,
    STREAM,
    begin,
    chat,
    create,
    is_fragment,
    is_page,
    problem,
    session_of,
    soon,
    streaming,
)

FORM = {"Accept": BROWSER}


@pytest.fixture
def owner(ann: httpx.Client) -> str:
    """The name by which ann's sessions are found on the desk."""
    return "ann"


def test_the_desk_tells_who_what_how_fast_and_what_it_costs(ann: httpx.Client, ada: httpx.Client) -> None:
    spent = chat(ann, "hello there")
    turn = begin(ann, "/tokens 1000 /delay 20ms")
    with streaming(ann, f"/chat/{turn['id']}/events") as stream:
        for _ in range(20):
            stream.next("delta")
    found = {one["id"]: one for one in ada.get("/admin", params={"owner": "ann"}).json()["sessions"]}
    writing = found[turn["session_id"]]["writing"]
    assert writing["turn_id"] == turn["id"] and writing["model"] == turn["model"]
    assert writing["tokens"] > 0 and writing["tokens_per_second"] > 0
    assert (found[spent["session_id"]]["cost"], found[spent["session_id"]]["writing"]) == (spent["cost"], None)
    assert found[spent["session_id"]]["group"] == "user"
    only = ada.get("/admin", params={"owner": "ann", "running": "true"}).json()
    assert [one["id"] for one in only["sessions"]] == [turn["session_id"]] and only["running"] >= 1
    page = ada.get("/admin", params={"owner": "ann", "running": "true"}, headers=FORM).text
    assert "tokens/s" in page and f'id="desk-{turn["session_id"]}"' in page
    ann.post(f"/chat/{turn['id']}/stop", json={}).raise_for_status()


@pytest.mark.parametrize("sort", ["activity", "age", "cost", "turns"])
def test_every_order_goes_on_where_a_page_ended(ann: httpx.Client, ada: httpx.Client, sort: str) -> None:
    made = {create(ann, title=f"Sorted {sort} {number}")["id"] for number in range(5)}
    seen, cursor = [], ""
    while cursor is not None:
        asked = {"q": f"sorted {sort}", "sort": sort, "limit": 2, "cursor": cursor}
        found = ada.get("/admin", params=asked).json()
        seen += [one["id"] for one in found["sessions"]]
        cursor = found["next_cursor"]
    assert len(seen) == 5 and set(seen) == made
    # How many turns there are stands in 32 bits, and PostgreSQL compares it with nothing longer.
    beyond = 2**31 if sort == "turns" else 10**30
    for cursor in ("x", "1-x", f"{beyond}-{uuid4().hex}", "--"):
        problem(ada.get("/admin", params={"sort": sort, "cursor": cursor}), 400, "invalid_request")


def test_the_stream_tells_what_changes_and_nothing_else(ann: httpx.Client, ada: httpx.Client) -> None:
    title = f"Watched {uuid4().hex[:8]}"
    session = create(ann, title=title)
    with (
        streaming(ada, f"/admin/events?q={title}") as script,
        streaming(ada, f"/admin/events?q={title}", headers=HTMX) as page,
    ):
        first = script.next("desk").json
        assert [one["id"] for one in first["sessions"]] == [session["id"]]
        assert f'id="desk-{session["id"]}"' in page.next().data
        fields = {"session_id": session["id"], "model": "smart", "reason": "seen on the desk"}
        began = time.monotonic()
        with soon(lambda: ada.post("/models/switch", json=fields).raise_for_status()):
            while not (told := script.next("desk").json)["sessions"]:
                pass  # how many replies run elsewhere may change too
            assert time.monotonic() - began < 5
        assert told["sessions"][0]["last_model"] == "smart"
        while "seen on the desk" not in (shown := page.next().data):
            pass
        assert f'hx-target="#desk-{session["id"]}"' in shown
        with soon(lambda: ann.post(f"/session/{session['id']}/delete", json={}).raise_for_status()):
            while not (told := script.next("desk").json)["gone"]:
                pass
        assert told["gone"] == [session["id"]]


def test_the_stream_is_for_admins_and_ends_with_the_right(
    governed: Server, boss: httpx.Client, bob: httpx.Client
) -> None:
    for accept in (STREAM, BROWSER):
        assert bob.get("/admin/events", headers={"Accept": accept}).status_code == 403
    name = f"former-{uuid4().hex[:8]}"
    token = governed.people(f"{name}:admin")[name]
    (account,) = boss.get("/admin/accounts", params={"q": name}).json()["accounts"]
    with governed.script(token) as former, streaming(former, "/admin/events") as stream:
        stream.next("desk")
        boss.post("/admin/accounts/change", json={"account_id": account["id"], "role": "user"}).raise_for_status()
        began = time.monotonic()
        last = stream.next()
        for last in stream:  # noqa: B007
            assert time.monotonic() - began < 8
        assert last.name == "gone"


# ---------------------------------------------------------------- acting on many


def test_many_are_acted_on_by_a_form_without_javascript(ann: httpx.Client, ada: httpx.Client) -> None:
    made = [create(ann)["id"] for _ in range(3)]
    page = ada.get("/admin", headers=FORM).text
    for id in made:
        assert f'name="session_ids" value="{id}"' in page
    key = re.search(r'id="act-key" name="idempotency_key" autocomplete="off" value="(\w+)"', page)
    assert key
    fields = {"session_ids": [*made, ABSENT], "deed": "switch", "model": "smart", "reason": "all of them"}
    answer = ada.post("/admin/act", data={**fields, "idempotency_key": key[1]}, headers=FORM)
    assert answer.status_code == 200 and is_page(answer)
    assert "3 of 4 switched." in answer.text and ABSENT[-12:] in answer.text
    for id in made:
        assert session_of(ann, id)["current_model"]["reason"] == "Chosen by ada: all of them."
    fragment = ada.post("/admin/act", data={"session_ids": made, "deed": "extend"}, headers=HTMX)
    assert is_fragment(fragment) and 'id="act-key"' in fragment.text and "3 of 3 extended." in fragment.text


def test_an_order_is_told_one_by_one_and_repeated_once(ann: httpx.Client, ada: httpx.Client) -> None:
    mine, closed = create(ann)["id"], create(ann)["id"]
    ann.post(f"/session/{closed}/close", json={}).raise_for_status()
    fields = {"session_ids": [mine, closed], "deed": "lock", "reason": "exam"}
    for _ in range(2):
        told = ada.post("/admin/act", json=fields, headers={"Idempotency-Key": f"key-{mine}"}).json()
        assert (told["deed"], told["done"]) == ("lock", 1)
        assert [(one["session_id"], one["code"]) for one in told["outcomes"]] == [
            (mine, ""),
            (closed, "session_closed"),
        ]
    rows = ann.get(f"/session/{mine}/journal").json()["journal"]
    assert [row["what"] for row in rows].count("model_locked") == 1
    for wrong in ({"session_ids": []}, {"session_ids": [mine], "deed": "paint"}, {"session_ids": "x"}):
        problem(ada.post("/admin/act", json={**fields, **wrong}), 400, "invalid_request")


# ---------------------------------------------------------------- the journal tells of every write


def test_every_write_of_an_admin_is_in_the_journal(
    boss: httpx.Client, governed: Server, newcomer: Callable[..., httpx.Client]
) -> None:
    """Every POST below /admin and /account, and the verbs on a session that is somebody else's."""
    unique = uuid4().hex[:8]
    guest = newcomer()
    turn = begin(guest, "/tokens 3000 /delay 50ms")
    theirs = turn["session_id"]
    own = governed.people(f"own-{unique}:admin", f"x-{unique}")[f"own-{unique}"]
    (made,) = boss.get("/admin/accounts", params={"q": f"x-{unique}"}).json()["accounts"]
    person = newcomer()
    person.post("/login", data={"name": f"x-{unique}", "password": PASSWORD}, headers=FORM)
    theirs_to_end = boss.get(f"/admin/accounts/{made['id']}").json()
    login, token = theirs_to_end["logins"][0]["id"], theirs_to_end["tokens"][0]["id"]
    boss.post("/admin/accounts", json={"name": f"robot-{unique}", "service": True}).raise_for_status()
    move = boss.post("/admin/moves", json={"from": "off", "to": "smart", "reason": unique}).json()
    session = {"session_id": theirs}
    writes: list[tuple[str, dict[str, object], str]] = [
        ("/admin/act", {"session_ids": [theirs], "deed": "switch", "model": "smart", "reason": "x"}, "model_switched"),
        ("/models/switch", {**session, "model": "fast", "reason": "x", "lock": True}, "model_locked"),
        (f"/session/{theirs}/rename", {"title": "By an admin"}, "session_renamed"),
        (f"/session/{theirs}/extend", {}, "session_extended"),
        (f"/chat/{turn['id']}/stop", {}, "turn_ended"),
        (f"/session/{theirs}/close", {"reason": "x"}, "session_closed"),
        (f"/session/{theirs}/delete", {"reason": "x"}, "session_deleted"),
        ("/admin/models/change", {"model": "aging", "state_reason": unique}, "model_changed"),
        ("/admin/models/restore", {"model": "aging"}, "model_changed"),
        ("/admin/models/test", {"model": "fast"}, "model_tested"),
        ("/admin/groups/change", {"group": f"g-{unique}", "default_model": "fast"}, "group_changed"),
        ("/admin/groups/limit", {"group": f"g-{unique}", "limit": "turns", "value": "9/min"}, "limit_changed"),
        ("/admin/groups/limit", {"group": f"g-{unique}", "limit": "turns"}, "limit_changed"),
        ("/admin/groups/restore", {"group": f"g-{unique}"}, "group_changed"),
        ("/admin/moves", {"from": "off", "to": "fast", "reason": unique}, "move_ordered"),
        ("/admin/accounts", {"name": f"y-{unique}", "password": PASSWORD}, "account_created"),
        ("/admin/accounts/change", {"account_id": made["id"], "group": "brief"}, "account_changed"),
        ("/admin/accounts/change", {"account_id": made["id"], "disabled": False}, ""),
        ("/account/logins/revoke", {"login_id": login, "reason": "x"}, "login_revoked"),
        ("/account/tokens/revoke", {"token_id": token, "reason": "x"}, "token_revoked"),
        ("/account/tokens", {"name": unique, "account": f"robot-{unique}"}, "token_created"),
        ("/admin/accounts/password", {"account_id": made["id"], "password": PASSWORD[::-1]}, "password_changed"),
        ("/admin/accounts/change", {"account_id": made["id"], "disabled": True, "reason": "x"}, "account_disabled"),
    ]
    written = {re.sub(re.escape(theirs), "{session_id:uuid}", url) for url, _, _ in writes}
    declared = {path for _, path, _ in POSTS if path.startswith(("/admin", "/account"))}
    # A move may be over before it can be stopped, and one's own password needs one's own login.
    assert declared - written == {"/admin/moves/stop", "/account/password"}
    for url, fields, what in writes:
        before = {row["id"] for row in boss.get("/admin/journal?limit=200").json()["journal"]}
        answer = boss.post(url, json=fields)
        assert answer.status_code in (200, 201, 204), (url, answer.text)
        rows = [row for row in boss.get("/admin/journal?limit=200").json()["journal"] if row["id"] not in before]
        told = [row["what"] for row in rows if row["actor"] == "boss" and row["outcome"] in ("done", "stopped")]
        assert (what in told) if what else not told, (url, told)
    with governed.script(own) as admin:
        admin.post("/account/password", json={"old": PASSWORD, "new": PASSWORD[::-1]}).raise_for_status()
        stopped = admin.post("/admin/moves/stop", json={"move_id": move["id"]})
        rows = admin.get("/admin/journal", params={"account": f"own-{unique}"}).json()["journal"]
        assert "password_changed" in [row["what"] for row in rows]
        assert stopped.status_code == 200

"""/admin and /setup: the one who steers; what an admin may do to a session of somebody else, and what not."""

import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import httpx
import pytest

from tests.web.running import Server, a_server
from tests.web.wire import (
    BROWSER,
    HTMX,
    JSON,
    SOON,
    STREAM,
    assert_session,
    assert_turn,
    begin,
    chat,
    create,
    is_fragment,
    is_page,
    problem,
    session_of,
    soon,
    streaming,
    turn_of,
)

FORM = {"Accept": BROWSER}
SECRET = "canary-9c1d-in-a-prompt"
PASSWORD = "correct horse battery"


def switch(client: httpx.Client, session_id: str, model: str, **fields: object) -> httpx.Response:
    return client.post("/models/switch", json={"session_id": session_id, "model": model, **fields})


# ---------------------------------------------------------------- the first admin


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without an admin."""
    with a_server(tmp_path_factory.mktemp("fresh")) as running:
        yield running


def test_the_one_time_link_makes_one_admin_even_of_two_at_once(fresh: Server) -> None:
    path = fresh.setup_url.removeprefix(fresh.url)
    with fresh.guest(Accept=BROWSER) as visitor:
        problem(visitor.get("/setup/wrong", headers={"Accept": JSON}), 403, "forbidden")
        problem(
            visitor.post("/setup/wrong", json={"name": "eve", "password": PASSWORD}, headers={"Accept": JSON}),
            403,
            "forbidden",
        )
        page = visitor.get(path)
        assert page.status_code == 200
        assert is_page(page)
        weak = visitor.post(path, data={"name": "ada", "password": "short"})
        assert weak.status_code == 400
        assert visitor.get(path).status_code == 200, "a refusal spent the link"

        def become(number: int) -> httpx.Response:
            with fresh.guest(Accept=BROWSER) as one:
                answer = one.post(path, data={"name": f"ada{number}", "password": PASSWORD})
                if answer.status_code == 303:
                    assert one.get(answer.headers["location"]).status_code == 200
                return answer

        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(become, range(4)))
        assert sorted(answer.status_code for answer in answers) == [303, 403, 403, 403]
        won = next(answer for answer in answers if answer.status_code == 303)
        assert won.headers["location"] == "/admin"
        cookie = won.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=lax" in cookie and "Path=/" in cookie
        for answer in (visitor.get(path), visitor.post(path, data={"name": "eve", "password": PASSWORD})):
            assert answer.status_code == 403
            assert is_page(answer)


def test_a_restart_prints_no_link_where_there_is_an_admin(fresh: Server) -> None:
    test_has_an_admin = fresh.run("account", "create", "another", "--role", "admin", stdin=f"{PASSWORD}\n")
    assert test_has_an_admin.returncode == 0
    assert fresh.stop() == 0
    printed = len(fresh.output)
    fresh.start()
    assert "/setup/" not in fresh.output[printed:]


# ---------------------------------------------------------------- the desk


def test_the_desk_shows_everyones_sessions(guest: httpx.Client, ann: httpx.Client, ada: httpx.Client) -> None:
    theirs = create(guest, title="Of a guest")
    hers = create(ann, title="Of ann", model="smart")
    answer = ada.get("/admin")
    assert answer.status_code == 200
    assert set(answer.json()) == {"sessions", "next_cursor", "running"}
    found = {session["id"]: session for session in answer.json()["sessions"]}
    for session in found.values():
        assert_session({name: fact for name, fact in session.items() if name not in ("group", "cost", "writing")})
    assert found[theirs["id"]]["owner"] == theirs["owner"]
    assert found[hers["id"]]["owner"]["name"] == "ann"
    page = ada.get("/admin", headers=FORM)
    assert is_page(page)
    for session in (theirs, hers):
        assert f'id="desk-{session["id"]}"' in page.text
    assert "Of a guest" in page.text


def test_the_desk_is_filtered_and_paged(ann: httpx.Client, ada: httpx.Client) -> None:
    made = [create(ann, title=f"Desk filter {number}")["id"] for number in range(5)]
    seen, cursor = [], ""
    while cursor is not None:
        found = ada.get("/admin", params={"q": "desk filter", "limit": 2, "cursor": cursor}).json()
        assert len(found["sessions"]) <= 2
        seen += [session["id"] for session in found["sessions"]]
        cursor = found["next_cursor"]
    assert seen == made[::-1]


def test_a_reply_that_is_written_shows_on_the_desk(guest: httpx.Client, ada: httpx.Client) -> None:
    turn = begin(guest, "/tokens 1000 /delay 20ms")
    session = session_of(ada, turn["session_id"])
    assert session["running_turn"] == turn["id"]
    row = ada.get("/admin", headers=FORM).text.split(f'id="desk-{turn["session_id"]}"')[1].split("</tr>")[0]
    assert "writing" in row
    guest.post(f"/chat/{turn['id']}/stop", json={}).raise_for_status()


@pytest.mark.parametrize("accept", [JSON, BROWSER, STREAM])
def test_the_desk_is_for_admins(guest: httpx.Client, ann: httpx.Client, accept: str) -> None:
    for client in (guest, ann):
        answer = client.get("/admin", headers={"Accept": accept})
        assert answer.status_code == 403
    problem(guest.get("/admin"), 403, "forbidden")


def test_an_admins_token_without_the_scope_is_no_admin(server: Server, ada: httpx.Client, guest: httpx.Client) -> None:
    made = server.run("token", "create", "--account", "ada", "--name", "chat only", "--scope", "chat")
    session = create(guest)
    with server.script(made.stdout.strip()) as chatting:
        problem(chatting.get("/admin"), 403, "forbidden")
        problem(chatting.get(f"/session/{session['id']}"), 404, "session_not_found")
        problem(switch(chatting, session["id"], "smart", reason="because"), 404, "session_not_found")
    assert ada.get(f"/session/{session['id']}").status_code == 200


# ---------------------------------------------------------------- steering


def test_switching_somebody_elses_session_needs_a_reason(guest: httpx.Client, ada: httpx.Client) -> None:
    session = create(guest)
    for fields in ({}, {"reason": ""}, {"reason": "  "}):
        told = problem(switch(ada, session["id"], "smart", **fields), 400, "invalid_request")
        assert told["field"] == "reason"
    assert session_of(guest, session["id"]) == session
    form = ada.post("/models/switch", data={"session_id": session["id"], "model": "smart", "reason": ""}, headers=HTMX)
    assert form.status_code == 400
    assert is_fragment(form)


def test_the_owner_sees_by_whom_and_why(guest: httpx.Client, ada: httpx.Client) -> None:
    session = create(guest, model="fast")
    with (
        streaming(guest, f"/session/{session['id']}/events?version={session['version']}") as script,
        streaming(guest, f"/session/{session['id']}/events?version={session['version']}", headers=HTMX) as page,
    ):
        began = time.monotonic()
        with soon(lambda: switch(ada, session["id"], "smart", reason="fast is overloaded").raise_for_status()):
            told = assert_session(script.next("session").json)
            shown = page.next().data
            assert time.monotonic() - began < SOON
    assert told["current_model"]["id"] == "smart"
    assert told["version"] == session["version"] + 1
    for text in (told["current_model"]["reason"], shown, guest.get(f"/session/{session['id']}", headers=FORM).text):
        assert "ada" in text
        assert "fast is overloaded" in text
    assert session_of(guest, session["id"])["current_model"] == told["current_model"]
    row = guest.get(f"/session/{session['id']}/journal").json()["journal"][0]
    assert (row["actor"], row["what"], row["reason"]) == ("ada", "model_switched", "fast is overloaded")
    assert (row["from"], row["to"]) == ("fast", "smart")
    assert chat(guest, "hello", session_id=session["id"])["model"] == "smart"


def test_while_a_reply_runs_the_owner_is_told_it_counts_from_the_next(guest: httpx.Client, ada: httpx.Client) -> None:
    turn = begin(guest, "/hang after 3")
    told = switch(ada, turn["session_id"], "smart", reason="from the next reply on").json()
    assert told["effective"] == "next_turn"
    with streaming(guest, f"/chat/{turn['id']}/events") as stream:
        guest.post(f"/chat/{turn['id']}/stop", json={}).raise_for_status()
        assert stream.rest()[-1].json["model"] == "fast"


def test_a_locked_model_stays(guest: httpx.Client, ada: httpx.Client) -> None:
    session = create(guest)
    locked = switch(ada, session["id"], "smart", reason="for the exam", lock=True)
    assert locked.status_code == 200
    assert locked.json()["session"]["locked"] is True
    problem(switch(guest, session["id"], "fast"), 403, "model_locked")
    problem(
        guest.post("/chat", json={"session_id": session["id"], "prompt": "x", "model": "fast"}), 403, "model_locked"
    )
    assert session_of(guest, session["id"])["last_model"] == "smart"
    assert chat(guest, "hello", session_id=session["id"])["model"] == "smart"
    page = guest.get(f"/session/{session['id']}", headers=FORM).text
    assert 'action="/models/switch"' not in page
    assert "locked" in page
    htmx = guest.post("/models/switch", data={"session_id": session["id"], "model": "fast"}, headers=HTMX)
    assert (htmx.status_code, 'data-code="model_locked"' in htmx.text) == (403, True)
    switch(ada, session["id"], "smart", reason="it is over", lock=False).raise_for_status()
    assert switch(guest, session["id"], "fast").status_code == 200
    what = [row["what"] for row in guest.get(f"/session/{session['id']}/journal").json()["journal"]]
    assert what.count("model_locked") == what.count("model_unlocked") == 1


def test_a_lock_is_told_live(guest: httpx.Client, ada: httpx.Client) -> None:
    session = create(guest, model="fast")
    with (
        streaming(guest, f"/session/{session['id']}/events?version={session['version']}") as stream,
        soon(lambda: switch(ada, session["id"], "fast", reason="stays", lock=True).raise_for_status()),
    ):
        assert stream.next("session").json["locked"] is True


def test_an_admin_cannot_put_a_session_on_what_its_owner_may_not_use(bob: httpx.Client, boss: httpx.Client) -> None:
    session = create(bob)
    problem(switch(boss, session["id"], "hidden", reason="try it"), 403, "forbidden")
    assert session_of(bob, session["id"]) == session


def test_an_admin_closes_and_the_owner_is_told(guest: httpx.Client, ada: httpx.Client) -> None:
    session = create(guest)
    with (
        streaming(guest, f"/session/{session['id']}/events?version={session['version']}") as stream,
        soon(lambda: ada.post(f"/session/{session['id']}/close", json={"reason": "spring cleaning"})),
    ):
        assert stream.next("session").json["state"] == "closed"
    row = guest.get(f"/session/{session['id']}/journal").json()["journal"][0]
    assert (row["actor"], row["what"], row["reason"]) == ("ada", "session_closed", "spring cleaning")


# ---------------------------------------------------------------- not reading


@pytest.fixture
def foreign(guest: httpx.Client) -> dict[str, str]:
    """A turn of a guest, with something in it."""
    session = create(guest, title="A plain title")
    return chat(guest, f"read {SECRET} not", session_id=session["id"])


def test_an_admin_does_not_read_a_transcript(guest: httpx.Client, ada: httpx.Client, foreign: dict[str, str]) -> None:
    id, turn_id = foreign["session_id"], foreign["id"]
    for url in (
        f"/session/{id}/turns",
        f"/session/{id}/turns?all=true",
        f"/session/{id}/events",
        f"/chat/{turn_id}",
        f"/chat/{turn_id}/events",
    ):
        for accept in (JSON, STREAM):
            problem(ada.get(url, headers={"Accept": accept}), 403, "forbidden")
        page = ada.get(url, headers=FORM)
        assert (page.status_code, SECRET in page.text) == (403, False)
    for url in (f"/session/{id}", f"/session/{id}/journal", "/admin"):
        for accept in (JSON, BROWSER):
            answer = ada.get(url, headers={"Accept": accept})
            assert answer.status_code == 200
            assert SECRET not in answer.text


def test_an_admin_reads_with_a_reason_that_the_owner_sees_and_only_where_it_is_allowed(
    guest: httpx.Client, ada: httpx.Client, ann: httpx.Client, boss: httpx.Client, bob: httpx.Client
) -> None:
    turn = chat(guest, SECRET)
    url = f"/session/{turn['session_id']}"
    page = ada.get(url, headers=FORM).text
    assert SECRET not in page and f'action="{url}/read"' in page
    problem(ada.post(f"{url}/read", json={"reason": " "}), 400, "invalid_request")
    problem(ada.get(f"{url}/turns"), 403, "forbidden")
    opened = ada.post(f"{url}/read", data={"reason": "A complaint."}, headers=FORM)
    assert (opened.status_code, opened.headers["location"]) == (303, f"{url}/turns")
    assert SECRET in ada.get(f"{url}/turns", headers=FORM).text
    assert ada.get(f"{url}/turns").json()["turns"][0]["prompt"] == SECRET
    # Nothing else is opened: not the stream, not the file, not another admin, not another session.
    for path in (f"{url}/events", f"{url}/export", f"/chat/{turn['id']}"):
        assert SECRET not in ada.get(path).text
    (row,) = (row for row in guest.get(f"{url}/journal").json()["journal"] if row["what"] == "transcript_opened")
    assert (row["actor"], row["reason"]) == ("ada", "A complaint.")
    assert "A complaint." in guest.get(f"{url}/journal", headers=FORM).text
    problem(ann.post(f"{url}/read", json={"reason": "x"}), 404, "session_not_found")
    problem(guest.post(f"{url}/read", json={"reason": "x"}), 403, "forbidden")
    # Where the deployment does not say so, there is no such way.
    session = create(bob)
    problem(boss.post(f"/session/{session['id']}/read", json={"reason": "x"}), 403, "forbidden")
    assert "/read" not in boss.get(f"/session/{session['id']}", headers=FORM).text


def test_an_admin_does_not_read_by_acting(guest: httpx.Client, ada: httpx.Client) -> None:
    for accept in (JSON, BROWSER, "text/html"):
        session = create(guest, title="A plain title")
        turn = begin(guest, f"/tokens 1000 /delay 20ms {SECRET}", session_id=session["id"])
        headers = HTMX if accept == "text/html" else {"Accept": accept}
        switched = ada.post(
            "/models/switch",
            data={"session_id": session["id"], "model": "smart", "reason": "r", "when": "next_turn"},
            headers=headers,
        )
        stopped = ada.post(f"/chat/{turn['id']}/stop", data={}, headers=headers)
        closed = ada.post(f"/session/{session['id']}/close", data={"reason": "r"}, headers=headers)
        for answer in (switched, stopped, closed):
            assert answer.status_code in (200, 303), answer.text
            assert SECRET not in answer.text
            assert "tok0" not in answer.text
        assert turn_of(guest, turn["id"])["state"] == "stopped"


def test_an_admin_does_not_write_in_somebody_elses_session(ada: httpx.Client, foreign: dict[str, str]) -> None:
    problem(ada.post("/chat", json={"session_id": foreign["session_id"], "prompt": "it is me"}), 403, "forbidden")


def test_what_an_admin_stopped_is_the_owners_to_read(guest: httpx.Client, ada: httpx.Client) -> None:
    turn = begin(guest, "/tokens 1000 /delay 20ms")
    stopped = ada.post(f"/chat/{turn['id']}/stop", json={})
    assert stopped.status_code == 200
    assert_turn(stopped.json())
    assert turn_of(guest, turn["id"])["state"] == "stopped"
    row = guest.get(f"/session/{turn['session_id']}/journal").json()["journal"][0]
    assert (row["what"], row["actor"]) == ("turn_ended", "ada")


def test_a_session_that_was_steered_is_not_listed_as_ones_own(guest: httpx.Client, ada: httpx.Client) -> None:
    session = create(guest)
    switch(ada, session["id"], "smart", reason="r").raise_for_status()
    assert session["id"] not in {one["id"] for one in ada.get("/session", params={"limit": 200}).json()["sessions"]}


def test_the_page_of_a_foreign_session_is_for_steering(guest: httpx.Client, ada: httpx.Client) -> None:
    turn = chat(guest, "something")
    page = ada.get(f"/session/{turn['session_id']}", headers=FORM).text
    assert 'action="/models/switch"' in page
    assert 'name="reason"' in page
    assert 'action="/chat"' not in page
    assert re.search(r"hx-sse:connect", page) is None


# ---------------------------------------------------------------- the rules


def models_of(client: httpx.Client) -> dict[str, dict[str, object]]:
    return {model["id"]: model for model in client.get("/admin/models").json()["models"]}


def limits_of(client: httpx.Client, group: str) -> dict[str, dict[str, object]]:
    groups = {one["name"]: one for one in client.get("/admin/groups").json()["groups"]}
    return {limit["name"]: limit for limit in groups[group]["limits"]}


RULES = ("/admin/models", "/admin/groups", "/admin/moves", "/admin/moves/preview?from=fast&to=smart")


@pytest.fixture(scope="module")
def ruled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose rules may be changed; the others share theirs."""
    with a_server(tmp_path_factory.mktemp("ruled")) as running:
        yield running


@pytest.fixture(scope="module")
def admins(ruled: Server) -> Iterator[list[httpx.Client]]:
    tokens = ruled.people("ada:admin", "eve:admin")
    clients = [ruled.script(token) for token in tokens.values()]
    yield clients
    for client in clients:
        client.close()


@pytest.mark.parametrize("path", RULES)
def test_the_rules_are_for_admins_as_pages_and_as_json(
    guest: httpx.Client, ann: httpx.Client, ada: httpx.Client, path: str
) -> None:
    for client in (guest, ann):
        problem(client.get(path), 403, "forbidden")
    assert ada.get(path).status_code == 200
    page = ada.get(path, headers=FORM)
    assert is_page(page)
    assert 'aria-label="Admin"' in page.text


def test_nobody_else_changes_a_rule(guest: httpx.Client, ann: httpx.Client, ada: httpx.Client) -> None:
    before = [ada.get(path).json() for path in RULES[:3]]
    for client in (guest, ann):
        for url, fields in (
            ("/admin/models/change", {"model": "smart", "state": "disabled"}),
            ("/admin/models/restore", {"model": "smart"}),
            ("/admin/groups/change", {"group": "user", "default_model": "smart"}),
            ("/admin/groups/restore", {"group": "user"}),
            ("/admin/groups/limit", {"group": "user", "limit": "turns", "value": "1/h"}),
            ("/admin/moves", {"from": "fast", "to": "smart", "reason": "x"}),
            ("/admin/moves/stop", {"move_id": "01890000-0000-7000-8000-000000000000"}),
        ):
            problem(client.post(url, json=fields), 403, "forbidden")
    assert [ada.get(path).json() for path in RULES[:3]] == before


def test_a_model_that_is_switched_off_is_refused_at_the_next_call_and_says_why(
    ruled: Server, admins: list[httpx.Client]
) -> None:
    with ruled.guest(Accept=JSON) as visitor:
        session = create(visitor, model="smart")
        fields = {
            "model": "smart",
            "state": "retired",
            "replacement": "fast",
            "state_reason": "too dear",
            "reason": "r",
        }
        answer = admins[0].post("/admin/models/change", data=fields, headers=FORM)
        assert (answer.status_code, answer.headers["location"]) == (303, "/admin/models?done=saved#model-smart")
        smart = models_of(admins[0])["smart"]
        assert (smart["state"], smart["replacement"], smart["set_by"]) == ("retired", "fast", "ada")
        assert smart["since"] is not None
        assert session_of(visitor, session["id"])["current_model"]["id"] == "fast"
        page = visitor.get("/models", headers=FORM).text
        assert "too dear" in page and "since" in page and "use fast" in page
        change = admins[0].get("/admin/models").json()["changes"][0]
        assert (change["actor"], change["what"], change["reason"]) == ("ada", "model_changed", "r")
        assert (change["from"].split(",")[0], change["to"].split(",")[0]) == (
            "smart: state active",
            "smart: state retired",
        )
        assert admins[0].post("/admin/models/restore", json={"model": "smart"}).status_code == 200
        assert models_of(admins[0])["smart"] | {"since": None} == {
            **smart, "state": "active", "replacement": None, "state_reason": "", "set_by": None, "since": None,
        }  # fmt: skip


def test_an_empty_field_of_a_form_takes_away_and_a_missing_one_stays(admins: list[httpx.Client]) -> None:
    url, headers = "/admin/models/change", {"Accept": JSON}
    admins[0].post(url, json={"model": "guide", "groups": ["user", "admin"], "replacement": "fast"}).raise_for_status()
    admins[0].post(url, data={"model": "guide", "concurrent_turns": "7"}, headers=headers).raise_for_status()
    guide = models_of(admins[0])["guide"]
    assert (guide["groups"], guide["replacement"], guide["concurrent_turns"]) == (["user", "admin"], "fast", 7)
    admins[0].post(url, data={"model": "guide", "groups": "", "replacement": ""}, headers=headers).raise_for_status()
    guide = models_of(admins[0])["guide"]
    assert (guide["groups"], guide["replacement"], guide["concurrent_turns"]) == ([], None, 7)


def test_a_list_that_is_typed_is_read_as_it_is_printed(admins: list[httpx.Client]) -> None:
    url = "/admin/models/change"
    for typed in ("user, admin", "user,admin", " user  admin ", "user admin,", ",user,,admin"):
        for sent in ({"data": {"model": "guide", "groups": typed}}, {"json": {"model": "guide", "groups": typed}}):
            answer = admins[0].post(url, headers={"Accept": JSON}, **sent)  # type: ignore[arg-type]
            assert answer.status_code == 200, answer.text
            assert models_of(admins[0])["guide"]["groups"] == ["user", "admin"]
    page = admins[0].get("/admin/models", headers=FORM).text
    assert "<dd>user, admin</dd>" in page and 'name="groups" value="user, admin"' in page
    problem(admins[0].post("/admin/groups/change", json={"group": "one,two"}), 400, "invalid_request")
    admins[0].post(url, json={"model": "guide", "groups": None}).raise_for_status()


def test_a_wrong_rule_is_refused_and_names_the_field(admins: list[httpx.Client]) -> None:
    for url, fields, field in (
        ("/admin/models/change", {"model": "none", "state": "active"}, "model"),
        ("/admin/models/change", {"model": "fast", "replacement": "fast"}, "replacement"),
        ("/admin/models/change", {"model": "fast", "groups": "nobody"}, "groups"),
        ("/admin/models/change", {"model": "fast", "concurrent_turns": -1}, "concurrent_turns"),
        ("/admin/groups/change", {"group": "two words"}, "group"),
        ("/admin/groups/change", {"group": "user", "default_model": "none"}, "default_model"),
        ("/admin/groups/limit", {"group": "user", "limit": "turns", "value": "often"}, "value"),
        ("/admin/groups/limit", {"group": "user", "limit": "naps", "value": "1"}, "limit"),
        ("/admin/groups/limit", {"group": "nobody", "limit": "turns", "value": "1/h"}, "group"),
    ):
        assert problem(admins[0].post(url, json=fields), 400, "invalid_request")["field"] == field


def test_L6_a_limit_holds_from_the_next_call_over_a_restart_and_until_it_is_given_back(
    ruled: Server, admins: list[httpx.Client]
) -> None:
    url = "/admin/groups/limit"
    before = limits_of(admins[0], "guest")["open_sessions"]
    with ruled.guest(Accept=JSON) as visitor:  # guests at one address are counted together
        told = {one["name"]: one for one in visitor.get("/limits").json()["limits"]}
    value = str(int(told["open_sessions"]["used"]) + 1)
    set_ = admins[0].post(url, data={"group": "guest", "limit": "open_sessions", "value": value}, headers=HTMX)
    assert is_fragment(set_) and f"Open sessions of guest: {before['value']} → {value}." in set_.text
    with ruled.guest(Accept=JSON) as visitor:
        create(visitor)
        problem(visitor.post("/session/create", json={}), 409, "session_quota")
    ruled.stop()
    ruled.start()
    now = limits_of(admins[0], "guest")["open_sessions"]
    assert (now["value"], now["set_by"], now["configured"]) == (value, "ada", before["value"])
    admins[0].post(url, data={"group": "guest", "limit": "open_sessions", "value": ""}, headers=FORM)
    assert limits_of(admins[0], "guest")["open_sessions"] == before


def test_a_limit_of_users_tells_which_groups_follow_it_before_and_after(
    admins: list[httpx.Client], ruled: Server
) -> None:
    page = admins[0].get("/admin/groups", headers=FORM).text
    form = page.split('id="form-limit-user-tokens_per_month"')[1].split("</form>")[0]
    assert "inherit this limit and change with it" in form and "guest" in form and "admin" in form
    fields = {"group": "user", "limit": "tokens_per_month", "value": "7700"}
    shown = {"HX-Current-URL": f"{ruled.url}/admin/groups"}
    answer = admins[0].post("/admin/groups/limit", data=fields, headers=HTMX | shown)
    assert "Inherited by admin, guest." in answer.text or "Inherited by guest, admin." in answer.text
    for group in ("user", "guest", "admin"):
        assert f'id="limit-{group}-tokens_per_month" class="changed"' in answer.text
    assert limits_of(admins[0], "guest")["tokens_per_month"]["value"] == "7700"
    plain = admins[0].post("/admin/groups/limit", data=fields | {"value": ""}, headers=FORM)
    assert plain.headers["location"] == "/admin/groups?done=saved#limit-user-tokens_per_month"
    assert "Saved." in admins[0].get("/admin/groups?done=saved", headers=FORM).text


def test_a_refused_form_of_an_admin_is_the_page_with_what_was_typed(admins: list[httpx.Client], ruled: Server) -> None:
    for path, url, typed, told in (
        ("/admin/groups", "/admin/groups/limit", {"group": "user", "limit": "turns", "value": "often"}, "value"),
        ("/admin/groups", "/admin/groups/change", {"group": "two words"}, "group"),
        ("/admin/models", "/admin/models/change", {"model": "fast", "groups": "nobody", "state": "active"}, "groups"),
        ("/admin/accounts", "/admin/accounts", {"name": "eve <b>", "password": "short", "role": "admin"}, "name"),
    ):
        referer = {"Referer": ruled.url + path}
        answer = admins[0].post(url, data=typed | {"reason": "a <reason>"} if "name" not in typed else typed,
                                headers=FORM | referer)  # fmt: skip
        assert answer.status_code in (400, 422) and is_page(answer), (url, answer.text[:300])
        assert "short" not in answer.text
        assert not (url == "/admin/accounts" and "<option selected>admin" not in answer.text)
        value = typed[told].replace("<", "&lt;").replace(">", "&gt;")
        assert answer.text.count(f'value="{value}"') == 1, (url, value)
        told_at = [part.split("</p>")[0] for part in answer.text.split('<p class="wrong" id="')[1:]]
        assert len([part for part in told_at if part.split(">")[1]]) == 1
        # The same by htmx says it in the form alone, which keeps what was typed.
        again = admins[0].post(url, data=typed, headers=HTMX | {"HX-Source": "form#form-new-x"})
        assert again.status_code in (400, 422) and "[id='form-new-x-refusal']" in again.text
    hostile = {"HX-Source": "form#form-']><script>"}
    assert "script" not in admins[0].post("/admin/groups/change", data={"group": "a b"}, headers=HTMX | hostile).text


def test_one_key_is_one_change_and_two_admins_at_once_are_one_after_the_other(admins: list[httpx.Client]) -> None:
    key = {"Idempotency-Key": "one-limit"}
    body = {"group": "user", "limit": "tokens_per_day", "value": "900"}
    for _ in range(2):
        admins[0].post("/admin/groups/limit", json=body, headers=key).raise_for_status()
    problem(
        admins[0].post("/admin/groups/limit", json=body | {"value": "901"}, headers=key), 422, "idempotency_key_reused"
    )

    def change(number: int) -> httpx.Response:
        fields = {"group": "user", "limit": "tokens_per_day", "value": str(1000 + number)}
        return admins[number % 2].post("/admin/groups/limit", json=fields)

    with ThreadPoolExecutor(6) as pool:
        assert {answer.status_code for answer in pool.map(change, range(12))} == {200}
    changes = admins[0].get("/admin/groups").json()["changes"]
    ours = [row for row in changes if "tokens per day" in (row["to"] or "")]
    assert len(ours) == 13
    assert all(later["from"] == earlier["to"] for later, earlier in pairwise(ours))


def test_S14_a_move_is_counted_ordered_survives_a_kill_and_comes_to_its_end(
    ruled: Server, admins: list[httpx.Client]
) -> None:
    with ruled.guest(Accept=JSON) as visitor:
        made = [create(visitor, model="guide")["id"] for _ in range(120)]
        found = admins[0].get("/admin/moves/preview", params={"from": "guide", "to": "smart"}).json()
        assert (found["from"], found["to"], found["total"]) == ("guide", "smart", 120)
        assert all(set(one) == {"id", "owner", "locked", "last_activity_at"} for one in found["sample"])
        key = {"Idempotency-Key": "one-move"}
        body = {"from": "guide", "to": "smart", "reason": "the guide rests"}
        first = admins[0].post("/admin/moves", json=body, headers=key)
        ruled.stop(signal.SIGKILL)
        ruled.start()
        assert first.status_code == 201
        assert admins[0].post("/admin/moves", json=body, headers=key).json()["id"] == first.json()["id"]
        deadline = time.monotonic() + 60
        while (move := admins[0].get("/admin/moves").json()["moves"][0])["state"] == "running":
            assert time.monotonic() < deadline, move
            time.sleep(0.05)
        assert (move["state"], move["total"], move["moved"], move["skipped"]) == ("done", 120, 120, 0)
        for id in (made[0], made[60], made[-1]):
            rows = visitor.get(f"/session/{id}/journal").json()["journal"]
            models = [(row["from"], row["to"], row["reason"]) for row in rows if row["what"].startswith("model_")]
            assert models == [("guide", "smart", "the guide rests"), (None, "guide", "asked")]
        page = admins[0].get("/admin/moves", headers=FORM).text
        assert "120 of 120 moved" in page and "every 2s" not in page

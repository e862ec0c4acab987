"""/session: each verb in its three forms, lists page by page, and the same request twice."""

import re
import time
from uuid import uuid4

import httpx
import pytest

from tests.web.running import Server
from tests.web.wire import (
    ABSENT,
    BROWSER,
    HTMX,
    INSTANT,
    JSON,
    assert_session,
    assert_turn,
    begin,
    chat,
    create,
    ended,
    is_fragment,
    is_page,
    problem,
    session_of,
    streaming,
)

FORM = {"Accept": BROWSER}
VERBS = ("rename", "extend", "close", "reopen", "delete")
FIELDS = {"rename": {"title": "Renamed"}, "close": {"reason": "done with it"}}
NEEDS_FIELDS = [("rename", {})]


# ---------------------------------------------------------------- create


def test_a_json_body_makes_a_session_and_answers_it(guest: httpx.Client) -> None:
    answer = guest.post("/session/create", json={"title": "  Two   words ", "model": "smart"})
    assert answer.status_code == 201
    session = assert_session(answer.json())
    assert session["title"] == "Two words"
    assert session["last_model"] == "smart"
    assert session["current_model"] | {"reason": ""} == {
        "id": "smart",
        "source": "session",
        "usable": True,
        "reason": "",
        "wanted": None,
    }
    assert session["owner"]["name"].startswith("guest-")
    assert (session["state"], session["locked"], session["version"]) == ("active", False, 1)
    assert (session["turn_count"], session["running_turn"]) == (0, None)
    assert session["created_at"] == session["last_activity_at"]
    assert session_of(guest, session["id"]) == session


def test_a_session_without_a_model_follows_the_default(guest: httpx.Client) -> None:
    session = create(guest)
    assert session["last_model"] is None
    assert session["version"] == 0
    assert session["title"] == ""
    assert session["current_model"]["id"] == "fast"
    assert session["current_model"]["source"] == "default"
    assert session["current_model"]["reason"]


def test_ids_are_made_by_the_server_and_ordered_by_time(guest: httpx.Client) -> None:
    ids = [create(guest)["id"] for _ in range(5)]
    assert ids == sorted(ids)
    assert all(id[14] == "7" for id in ids)


def test_a_plain_form_is_sent_on_to_the_new_session(visitor: httpx.Client) -> None:
    answer = visitor.post("/session/create", data={"title": "From a form", "model": ""})
    assert answer.status_code == 303
    assert re.fullmatch(r"/session/[0-9a-f-]{36}", answer.headers["location"])
    page = visitor.get(answer.headers["location"])
    assert is_page(page)
    assert "From a form" in page.text


def test_htmx_is_sent_on_to_the_new_session(visitor: httpx.Client) -> None:
    answer = visitor.post("/session/create", data={"title": "x"}, headers=HTMX)
    assert answer.status_code == 200
    assert re.fullmatch(r"/session/[0-9a-f-]{36}", answer.headers["hx-redirect"])


def test_an_unknown_model_makes_no_session(guest: httpx.Client) -> None:
    problem(guest.post("/session/create", json={"model": "none"}), 422, "model_unknown")
    assert guest.get("/session").json() == {"sessions": [], "next_cursor": None}


def test_a_title_has_an_end(guest: httpx.Client) -> None:
    assert create(guest, title="x" * 120)["title"] == "x" * 120
    assert problem(guest.post("/session/create", json={"title": "x" * 121}), 400, "invalid_request")["field"] == "title"


@pytest.mark.parametrize("fields", [{"id": ABSENT}, {"session_id": ABSENT}, {"Title": "x"}, {"owner": "ann"}])
def test_a_field_nobody_knows_is_refused_and_named(guest: httpx.Client, fields: dict[str, str]) -> None:
    told = problem(guest.post("/session/create", json={"title": "x", **fields}), 400, "invalid_request")
    assert next(iter(fields)) in told["detail"]
    form = guest.post("/session/create", data={"title": "x", **fields}, headers={"Accept": JSON})
    assert problem(form, 400, "invalid_request")["detail"] == told["detail"]


# ---------------------------------------------------------------- read


def test_a_page_and_a_script_read_the_same_session(guest: httpx.Client) -> None:
    session = create(guest, title="Seen twice")
    page = guest.get(f"/session/{session['id']}", headers=FORM)
    assert is_page(page)
    assert "Seen twice" in page.text
    for part in ("head", "model", "composer", "limits", "send", "key"):
        assert f'id="session-{session["id"]}-{part}"' in page.text
    assert f'hx-sse:connect="/session/{session["id"]}/events' in page.text


def test_a_page_shows_the_transcript_with_an_id_for_each_part(guest: httpx.Client) -> None:
    turn = chat(guest, "what is shown here")
    page = guest.get(f"/session/{turn['session_id']}", headers=FORM).text
    for id in (f"turn-{turn['id']}", f"turn-{turn['id']}-reply", f"after-{turn['id']}"):
        assert page.count(f'id="{id}"') == 1
    assert f'data-state="{turn["state"]}"' in page
    alone = guest.get(f"/chat/{turn['id']}", headers=FORM)
    assert is_page(alone)
    assert f'id="turn-{turn["id"]}"' in alone.text


def test_an_absent_session_is_not_found(guest: httpx.Client) -> None:
    problem(guest.get(f"/session/{ABSENT}"), 404, "session_not_found")
    page = guest.get(f"/session/{ABSENT}", headers=FORM)
    assert page.status_code == 404
    assert is_page(page)


# ---------------------------------------------------------------- the verbs


def test_rename_in_three_forms(guest: httpx.Client) -> None:
    session = create(guest)
    url = f"/session/{session['id']}/rename"
    answer = guest.post(url, json={"title": "By a script"})
    assert answer.status_code == 200
    assert assert_session(answer.json())["title"] == "By a script"
    assert answer.json()["version"] == session["version"] + 1
    answer = guest.post(url, data={"title": "By a form"}, headers=FORM)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/session/{session['id']}")
    answer = guest.post(url, data={"title": "By htmx"}, headers=HTMX)
    assert answer.status_code == 200
    assert is_fragment(answer)
    assert f'hx-target="#session-{session["id"]}-head"' in answer.text
    assert "By htmx" in answer.text
    assert session_of(guest, session["id"])["title"] == "By htmx"


def test_extend_in_three_forms(guest: httpx.Client) -> None:
    session = create(guest)
    url = f"/session/{session['id']}/extend"
    time.sleep(0.01)
    answer = guest.post(url, json={})
    assert answer.status_code == 200
    assert set(answer.json()) == {"extended", "expires_at", "reason"}
    assert answer.json()["extended"] is True
    assert answer.json()["expires_at"] > session["expires_at"]
    assert INSTANT.fullmatch(answer.json()["expires_at"])
    answer = guest.post(url, data={}, headers=FORM)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/session/{session['id']}")
    answer = guest.post(url, data={}, headers=HTMX)
    assert is_fragment(answer)
    assert f'hx-target="#session-{session["id"]}-head"' in answer.text


def test_close_in_three_forms(guest: httpx.Client) -> None:
    session = create(guest)
    answer = guest.post(f"/session/{session['id']}/close", json={"reason": "finished"})
    assert answer.status_code == 200
    assert assert_session(answer.json())["state"] == "closed"
    session = create(guest)
    answer = guest.post(f"/session/{session['id']}/close", data={}, headers=FORM)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/session/{session['id']}")
    session = create(guest)
    answer = guest.post(f"/session/{session['id']}/close", data={}, headers=HTMX)
    assert is_fragment(answer)
    assert f'hx-target="#session-{session["id"]}-head"' in answer.text
    assert f'hx-target="#session-{session["id"]}-composer"' in answer.text


def test_fork_in_three_forms(guest: httpx.Client) -> None:
    first = chat(guest, "one")
    id = first["session_id"]
    chat(guest, "two", session_id=id)
    url = f"/session/{id}/fork"

    def said(session_id: str) -> list[str]:
        return [turn["reply"] for turn in guest.get(f"/session/{session_id}/turns").json()["turns"]]

    answer = guest.post(url, json={"turn_id": first["id"]})
    assert answer.status_code == 201
    fork = assert_session(answer.json())
    assert (said(fork["id"]), said(id), fork["turn_count"]) == (["one"], ["one", "two"], 1)
    assert {"ratelimit", "ratelimit-policy"} <= set(answer.headers)
    answer = guest.post(url, data={}, headers=FORM)
    assert answer.status_code == 303
    assert said(answer.headers["location"].rpartition("/")[2]) == ["one", "two"]
    answer = guest.post(url, data={}, headers=HTMX)
    assert (answer.status_code, answer.content) == (200, b"")
    assert said(answer.headers["hx-redirect"].rpartition("/")[2]) == ["one", "two"]
    problem(guest.post(url, json={"turn_id": fork["id"]}), 404, "session_not_found")


def test_a_closed_session_names_the_fork_and_can_be_forked(guest: httpx.Client) -> None:
    id = chat(guest, "one")["session_id"]
    guest.post(f"/session/{id}/close", json={}).raise_for_status()
    told = problem(guest.post("/chat", json={"session_id": id, "prompt": "two"}), 410, "session_closed")
    assert told["can_fork"] is True
    fork = guest.post(f"/session/{id}/fork", json={}).json()
    assert chat(guest, "two", session_id=fork["id"])["state"] == "done"


def test_delete_in_three_forms(guest: httpx.Client) -> None:
    session = create(guest)
    answer = guest.post(f"/session/{session['id']}/delete", json={})
    assert (answer.status_code, answer.content) == (204, b"")
    session = create(guest)
    answer = guest.post(f"/session/{session['id']}/delete", data={}, headers=FORM)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/session?deleted={session['id']}")
    session = create(guest)
    answer = guest.post(f"/session/{session['id']}/delete", data={}, headers=HTMX)
    assert (answer.status_code, answer.headers["hx-redirect"]) == (200, f"/session?deleted={session['id']}")
    problem(guest.get(f"/session/{session['id']}"), 404, "session_not_found")


def test_deleting_takes_the_turns_along(guest: httpx.Client) -> None:
    turn = chat(guest, "soon gone")
    guest.post(f"/session/{turn['session_id']}/delete", json={}).raise_for_status()
    problem(guest.get(f"/chat/{turn['id']}"), 404, "session_not_found")
    problem(guest.get(f"/chat/{turn['id']}/events"), 404, "session_not_found")


def test_deleting_stops_the_reply_that_is_written(guest: httpx.Client) -> None:
    turn = begin(guest, "/tokens 1000 /delay 20ms")
    guest.post(f"/session/{turn['session_id']}/delete", json={}).raise_for_status()
    assert guest.get("/limits").json()["limits"][3]["name"] == "concurrent_turns"
    assert guest.get("/limits").json()["limits"][3]["used"] == 0


def test_closing_stops_the_reply_and_keeps_its_text(guest: httpx.Client) -> None:
    with streaming(guest, "/chat", method="POST", json={"prompt": "/tokens 1000 /delay 20ms"}) as stream:
        turn = stream.next("turn").json
        shown = stream.next("delta").json["text"]
    guest.post(f"/session/{turn['session_id']}/close", json={}).raise_for_status()
    kept = ended(guest, turn["id"])
    assert kept["state"] == "stopped"
    assert kept["reply"].startswith(shown)


def test_a_closed_session_is_read_only(guest: httpx.Client) -> None:
    turn = chat(guest, "the last word")
    id = turn["session_id"]
    guest.post(f"/session/{id}/close", json={}).raise_for_status()
    before = session_of(guest, id)
    for verb in ("rename", "extend", "close", "reopen"):
        problem(guest.post(f"/session/{id}/{verb}", json=FIELDS.get(verb, {})), 410, "session_closed")
    problem(guest.post("/chat", json={"session_id": id, "prompt": "more"}), 410, "session_closed")
    problem(guest.post("/models/switch", json={"session_id": id, "model": "smart"}), 410, "session_closed")
    assert session_of(guest, id) == before
    assert guest.get(f"/session/{id}/turns").json()["turns"] == [turn]
    assert "the last word" in guest.get(f"/session/{id}", headers=FORM).text
    assert guest.post(f"/session/{id}/delete", json={}).status_code == 204


def test_an_expired_session_is_read_only_and_reopens(governed: Server, tokens: dict[str, str]) -> None:
    with governed.script(tokens["brie"]) as brie:
        turn = chat(brie, "kept")
        id = turn["session_id"]
        deadline = time.monotonic() + 60
        while session_of(brie, id)["state"] != "expired":
            assert time.monotonic() < deadline
            time.sleep(0.2)
        for verb, fields in (("extend", {}), ("rename", {"title": "x"})):
            told = problem(brie.post(f"/session/{id}/{verb}", json=fields), 410, "session_expired")
            assert told["can_reopen"] is True
        problem(brie.post("/chat", json={"session_id": id, "prompt": "more"}), 410, "session_expired")
        problem(brie.post("/models/switch", json={"session_id": id, "model": "smart"}), 410, "session_expired")
        assert brie.get(f"/session/{id}/turns").json()["turns"] == [turn]
        page = brie.get(f"/session/{id}", headers=FORM).text
        assert "kept" in page
        assert f'action="/session/{id}/reopen"' in page
        reopened = brie.post(f"/session/{id}/reopen", json={})
        assert reopened.status_code == 200
        assert assert_session(reopened.json())["state"] == "active"
        assert "ratelimit" in reopened.headers
        assert chat(brie, "again", session_id=id)["parent_id"] == turn["id"]


def test_a_session_at_its_absolute_end_cannot_be_extended(governed: Server, tokens: dict[str, str]) -> None:
    with governed.script(tokens["cap"]) as cap:
        session = create(cap)
        answer = cap.post(f"/session/{session['id']}/extend", json={}).json()
        assert answer["extended"] is False
        assert answer["expires_at"] == session["expires_at"]
        assert answer["reason"]


def test_reopening_an_active_session_changes_nothing(guest: httpx.Client) -> None:
    session = create(guest)
    answer = guest.post(f"/session/{session['id']}/reopen", json={})
    assert answer.status_code == 200
    assert answer.json() == session


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_a_field_it_does_not_know(guest: httpx.Client, verb: str) -> None:
    session = create(guest)
    fields = FIELDS.get(verb, {}) | {"surprise": "x"}
    for body in ({"json": fields}, {"data": fields, "headers": {"Accept": JSON}}):
        told = problem(guest.post(f"/session/{session['id']}/{verb}", **body), 400, "invalid_request")  # type: ignore[arg-type]
        assert "surprise" in told["detail"]
    assert session_of(guest, session["id"]) == session


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_an_absent_session(guest: httpx.Client, verb: str) -> None:
    problem(guest.post(f"/session/{ABSENT}/{verb}", json=FIELDS.get(verb, {})), 404, "session_not_found")


@pytest.mark.parametrize("text", ["a\0b", "\ufdd0 \U0001fffe", "x\u202ey", "tab\there", "line\nbreak", "\u2028"])
def test_an_odd_title_is_one_line_or_refused(guest: httpx.Client, text: str) -> None:
    answer = guest.post("/session/create", json={"title": text})
    if "\0" in text:
        problem(answer, 400, "invalid_request")
    else:
        assert answer.json()["title"] == " ".join(text.split())
        assert "\n" not in answer.json()["title"]


@pytest.mark.parametrize("title", [5, None, ["x"], {"x": 1}, True])
def test_a_title_that_is_no_text_is_refused(guest: httpx.Client, title: object) -> None:
    session = create(guest)
    told = problem(guest.post(f"/session/{session['id']}/rename", json={"title": title}), 400, "invalid_request")
    assert told["field"] == "title"


# ---------------------------------------------------------------- lists


def test_the_list_pages_through_every_session_exactly_once(guest: httpx.Client) -> None:
    made = [create(guest, title=f"number {number}")["id"] for number in range(23)]
    for size in (1, 4, 23, 200):
        seen, cursor, pages = [], "", 0
        while True:
            found = guest.get("/session", params={"limit": size, "cursor": cursor}).json()
            assert set(found) == {"sessions", "next_cursor"}
            assert len(found["sessions"]) <= size
            seen += [assert_session(session)["id"] for session in found["sessions"]]
            cursor, pages = found["next_cursor"], pages + 1
            if cursor is None:
                break
            assert pages < 30
        assert seen == made[::-1]


def test_the_list_begins_with_the_latest_activity(guest: httpx.Client) -> None:
    first, second = create(guest), create(guest)
    chat(guest, "hello", session_id=first["id"])
    assert [one["id"] for one in guest.get("/session").json()["sessions"]] == [first["id"], second["id"]]


def test_a_session_made_while_paging_neither_hides_nor_repeats_another(guest: httpx.Client) -> None:
    made = [create(guest)["id"] for _ in range(4)]
    first = guest.get("/session", params={"limit": 2}).json()
    create(guest)
    second = guest.get("/session", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [one["id"] for one in first["sessions"] + second["sessions"]] == made[::-1]


def test_the_list_is_filtered_by_state_model_and_title(guest: httpx.Client) -> None:
    closed = create(guest, title="Closed 100% sure")
    smart = create(guest, title="Smart_one", model="smart")
    plain = create(guest, title="Plain one")
    guest.post(f"/session/{closed['id']}/close", json={}).raise_for_status()

    def found(**query: str) -> set[str]:
        return {one["id"] for one in guest.get("/session", params=query).json()["sessions"]}

    assert found(state="closed") == {closed["id"]}
    assert found(state="active") == {smart["id"], plain["id"]}
    assert found(model="smart") == {smart["id"]}
    assert found(q="ONE") == {smart["id"], plain["id"]}
    assert found(q="100%") == {closed["id"]}
    assert found(q="smart_on") == {smart["id"]}
    assert found(q="%") == set()
    assert found(q="nothing like it") == set()
    assert found(q="one", model="smart", state="active") == {smart["id"]}


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=201", "limit=x", "state=gone", "cursor=x", "cursor=1-2", "cursor=-"]
)
def test_a_wrong_query_is_refused_and_named(guest: httpx.Client, query: str) -> None:
    assert problem(guest.get(f"/session?{query}"), 400, "invalid_request")["field"] == query.partition("=")[0]


def test_the_list_is_a_page_too(guest: httpx.Client) -> None:
    create(guest, title="Listed here")
    page = guest.get("/session", headers=FORM)
    assert is_page(page)
    assert "Listed here" in page.text
    home = guest.get("/", headers=FORM)
    assert "Listed here" in home.text


def test_the_pages_of_the_list_are_linked(visitor: httpx.Client) -> None:
    for number in range(51):
        assert visitor.post("/session/create", json={"title": f"listed {number}."}).status_code == 303
    first = visitor.get("/session").text
    link = re.search(r'href="(/session\?cursor=[^"]+)"', first)
    assert link
    second = visitor.get(link[1].replace("&amp;", "&")).text
    assert "listed 50." in first and "listed 0." not in first
    assert "listed 0." in second


# ---------------------------------------------------------------- turns and journal


def test_the_turns_come_page_by_page(guest: httpx.Client) -> None:
    id = create(guest)["id"]
    made = [chat(guest, f"number {number}", session_id=id) for number in range(5)]
    assert [turn["parent_id"] for turn in made] == [None, *(turn["id"] for turn in made[:-1])]
    found = guest.get(f"/session/{id}/turns").json()
    assert found == {"turns": made, "next_cursor": None, "instructions": ""}
    back: list[dict[str, object]] = []
    cursor: str | None = ""
    while cursor is not None:
        page = guest.get(f"/session/{id}/turns", params={"limit": 2, "cursor": cursor}).json()
        back, cursor = page["turns"] + back, page["next_cursor"]
    assert back == made
    forth, cursor = [], ""
    while cursor is not None:
        page = guest.get(f"/session/{id}/turns", params={"limit": 2, "all": "true", "cursor": cursor}).json()
        forth, cursor = forth + page["turns"], page["next_cursor"]
    assert forth == made
    assert session_of(guest, id)["turn_count"] == 5


def test_the_turns_are_a_page_too(guest: httpx.Client) -> None:
    turn = chat(guest, "read me there")
    page = guest.get(f"/session/{turn['session_id']}/turns", headers=FORM)
    assert is_page(page)
    assert "read me there" in page.text


def test_a_running_turn_is_listed_with_what_it_has_written(guest: httpx.Client) -> None:
    with streaming(guest, "/chat", method="POST", json={"prompt": "/tokens 1000 /delay 20ms"}) as stream:
        turn = stream.next("turn").json
        shown = stream.next("delta").json["text"]
        listed = guest.get(f"/session/{turn['session_id']}/turns").json()["turns"]
        assert assert_turn(listed[0])["reply"].startswith(shown)
        assert session_of(guest, turn["session_id"])["running_turn"] == turn["id"]
    guest.post(f"/chat/{turn['id']}/stop", json={}).raise_for_status()


def test_the_journal_tells_what_was_decided_and_never_what_was_said(guest: httpx.Client) -> None:
    id = create(guest, title="A title of mine")["id"]
    chat(guest, "a prompt of mine", session_id=id)
    guest.post("/models/switch", json={"session_id": id, "model": "smart", "reason": "because"}).raise_for_status()
    guest.post(f"/session/{id}/rename", json={"title": "Another title"}).raise_for_status()
    guest.post(f"/session/{id}/close", json={"reason": "all said"}).raise_for_status()
    answer = guest.get(f"/session/{id}/journal")
    assert answer.status_code == 200
    rows = answer.json()["journal"]
    assert [row["what"] for row in rows] == [
        "session_closed",
        "session_renamed",
        "model_switched",
        "turn_ended",
        "turn_begun",
        "model_chosen",
        "session_created",
    ]
    assert (rows[2]["from"], rows[2]["to"], rows[2]["reason"]) == ("fast", "smart", "because")
    assert rows[0]["reason"] == "all said"
    assert rows[0]["at"] >= rows[-1]["at"]
    for said in ("A title of mine", "a prompt of mine", "Another title"):
        assert said not in answer.text
    page = guest.get(f"/session/{id}/journal", headers=FORM)
    assert is_page(page)
    assert "because" in page.text


# ---------------------------------------------------------------- which form an answer takes

NEGOTIATION = [
    # accept, with a JSON body, → what comes
    ("*/*", True, "json"),
    (None, True, "json"),
    ("*/*", False, "redirect"),
    (JSON, False, "json"),
    (JSON, True, "json"),
    (BROWSER, False, "redirect"),
    (BROWSER, True, "redirect"),
    ("text/html", True, "redirect"),
    ("application/json, text/html;q=0.5", False, "json"),
    ("text/html, application/json;q=0.9", True, "redirect"),
    ("application/json, text/plain, */*", False, "json"),
    ("APPLICATION/JSON", False, "json"),
    ("application/json;charset=utf-8", False, "json"),
    ("application/json;q=1.0;x=y, */*;q=0.1", False, "json"),
    ("text/html;q=banana, application/json", False, "json"),
    (",,,", True, "json"),
]


@pytest.mark.parametrize(("accept", "is_json", "form"), NEGOTIATION)
def test_a_post_is_answered_in_the_form_that_was_asked_for(
    server: Server, accept: str | None, is_json: bool, form: str
) -> None:
    with server.guest() as client:
        if accept is None:
            del client.headers["accept"]
        else:
            client.headers["accept"] = accept
        body = {"json": {"title": "x"}} if is_json else {"data": {"title": "x"}}
        answer = client.post("/session/create", **body)  # type: ignore[arg-type]
    if form == "json":
        assert answer.status_code == 201
        assert answer.headers["content-type"] == JSON
        assert_session(answer.json())
    else:
        assert answer.status_code == 303
        assert answer.content == b""


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("*/*", "page"),
        (BROWSER, "page"),
        (JSON, "json"),
        ("text/html;q=0.1, application/json", "json"),
        ("application/json;q=0.1, text/html", "page"),
        ("text/event-stream", "json"),
        ("application/json, text/event-stream", "json"),
        ("image/png", "json"),
        ("text/*", "page"),
        ("application/json;q=0, */*", "page"),
    ],
)
@pytest.mark.parametrize("path", ["/session", "/models", "/limits", "session"])
def test_a_get_is_answered_in_the_form_that_was_asked_for(
    guest: httpx.Client, path: str, accept: str, form: str
) -> None:
    if path == "session":
        path = f"/session/{create(guest)['id']}"
    answer = guest.get(path, headers={"Accept": accept})
    assert answer.status_code == 200, answer.text
    if form == "page":
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert is_page(answer)
    else:
        assert answer.headers["content-type"] == JSON
        assert isinstance(answer.json(), dict)


def test_answers_in_two_forms_say_that_they_vary(guest: httpx.Client) -> None:
    """RFC 9110 §12.5.5: a cache must not give the page of one to the script of another."""
    for path in ("/session", "/models", f"/session/{create(guest)['id']}"):
        answer = guest.get(path)
        assert "no-store" in answer.headers["cache-control"]


def test_a_bearer_without_an_accept_header_is_a_script(ann: httpx.Client) -> None:
    ann.headers["accept"] = "*/*"
    assert ann.get("/models").headers["content-type"] == JSON
    answer = ann.post("/session/create", data={"title": "by curl -d"})
    assert answer.status_code == 201
    assert_session(answer.json())


def test_json_is_read_whatever_follows_its_name(guest: httpx.Client) -> None:
    for kind in ("application/json", "application/json; charset=utf-8", "Application/JSON"):
        answer = guest.post("/session/create", content=b'{"title":"x"}', headers={"Content-Type": kind})
        assert answer.status_code == 201, answer.text


# ---------------------------------------------------------------- the same request twice


def test_one_key_makes_one_session(guest: httpx.Client) -> None:
    key = {"Idempotency-Key": uuid4().hex}
    first = guest.post("/session/create", json={"title": "once"}, headers=key)
    again = guest.post("/session/create", json={"title": "once"}, headers=key)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert len(guest.get("/session").json()["sessions"]) == 1


def test_a_key_used_for_something_else_is_refused(guest: httpx.Client) -> None:
    key = {"Idempotency-Key": uuid4().hex}
    guest.post("/session/create", json={"title": "once"}, headers=key).raise_for_status()
    problem(guest.post("/session/create", json={"title": "twice"}, headers=key), 422, "idempotency_key_reused")
    assert len(guest.get("/session").json()["sessions"]) == 1


def test_a_key_is_ones_own(guest: httpx.Client, stranger: httpx.Client) -> None:
    key = {"Idempotency-Key": uuid4().hex}
    mine = guest.post("/session/create", json={"title": "mine"}, headers=key).json()
    theirs = stranger.post("/session/create", json={"title": "theirs"}, headers=key).json()
    assert mine["id"] != theirs["id"]
    assert theirs["title"] == "theirs"


def test_a_key_in_a_hidden_field_works_without_javascript(visitor: httpx.Client) -> None:
    fields = {"title": "by form", "idempotency_key": uuid4().hex}
    first = visitor.post("/session/create", data=fields)
    again = visitor.post("/session/create", data=fields)
    assert first.status_code == again.status_code == 303
    assert first.headers["location"] == again.headers["location"]


def test_the_header_counts_where_there_are_two_keys(visitor: httpx.Client) -> None:
    key = {"Idempotency-Key": uuid4().hex}
    first = visitor.post("/session/create", data={"title": "x", "idempotency_key": "a"}, headers=key)
    again = visitor.post("/session/create", data={"title": "x", "idempotency_key": "b"}, headers=key)
    assert first.status_code == 303
    assert first.headers["location"] == again.headers["location"]


def test_a_refused_request_does_not_use_up_its_key(guest: httpx.Client) -> None:
    key = {"Idempotency-Key": uuid4().hex}
    problem(guest.post("/session/create", json={"model": "none"}, headers=key), 422, "model_unknown")
    assert guest.post("/session/create", json={"model": "fast"}, headers=key).status_code == 201


@pytest.mark.parametrize("key", ["x" * 201, 5, None, ["a"], {"a": 1}, 1.5, True])
def test_a_key_that_cannot_be_one_is_refused_or_left_out(guest: httpx.Client, key: object) -> None:
    answer = guest.post("/session/create", json={"title": "x", "idempotency_key": key})
    if key is None:
        assert answer.status_code == 201
    else:
        problem(answer, 400, "invalid_request")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_honours_a_key(guest: httpx.Client, verb: str) -> None:
    """`Idempotency-Key` is honoured on every POST: a retry whose answer was lost is not refused."""
    id = create(guest)["id"]
    key = {"Idempotency-Key": uuid4().hex}
    first = guest.post(f"/session/{id}/{verb}", json=FIELDS.get(verb, {}), headers=key)
    again = guest.post(f"/session/{id}/{verb}", json=FIELDS.get(verb, {}), headers=key)
    assert first.status_code < 300
    assert (again.status_code, again.content) == (first.status_code, first.content)


@pytest.mark.parametrize("verb", VERBS)
def test_a_key_is_for_one_session(guest: httpx.Client, verb: str) -> None:
    """The same key for another session is other content: it is neither done nor said to be done."""
    first, second = create(guest)["id"], create(guest)["id"]
    key = {"Idempotency-Key": uuid4().hex}
    assert guest.post(f"/session/{first}/{verb}", json=FIELDS.get(verb, {}), headers=key).status_code < 300
    before = session_of(guest, second)
    again = guest.post(f"/session/{second}/{verb}", json=FIELDS.get(verb, {}), headers=key)
    problem(again, 422, "idempotency_key_reused")
    assert session_of(guest, second) == before


def test_twenty_at_once_with_one_key_make_one_session(guest: httpx.Client) -> None:
    from concurrent.futures import ThreadPoolExecutor

    guest.get("/models")
    key = {"Idempotency-Key": uuid4().hex}
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: guest.post("/session/create", json={"title": "x"}, headers=key), range(20)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(guest.get("/session").json()["sessions"]) == 1


# ---------------------------------------------------------------- pages keep what was typed


def test_a_refused_form_is_a_page_that_gives_back_what_was_typed(guest: httpx.Client) -> None:
    id = create(guest)["id"]
    guest.post(f"/session/{id}/close", json={}).raise_for_status()
    answer = guest.post("/chat", data={"session_id": id, "prompt": "typed <b>& kept"}, headers=FORM)
    assert answer.status_code == 410
    assert is_page(answer)
    assert "typed &lt;b&gt;&amp; kept" in answer.text
    assert f'action="/session/{id}/fork"' in answer.text


def test_a_refused_htmx_request_is_a_notice_and_is_heard(guest: httpx.Client) -> None:
    answer = guest.post(f"/session/{ABSENT}/rename", data={"title": "x"}, headers=HTMX)
    assert answer.status_code == 404
    assert is_fragment(answer)
    assert 'hx-target="#notice"' in answer.text
    assert 'hx-target="#status" hx-swap="textContent">Not found. There is no such session.' in answer.text
    assert 'data-code="session_not_found"' in answer.text


def test_whoever_may_be_signed_out_is_told_where_to_sign_in_and_keeps_the_text(
    guest: httpx.Client, ann: httpx.Client
) -> None:
    sent = {"session_id": ABSENT, "prompt": "half a thought"}
    assert 'href="/login" target="_blank">' in guest.post("/chat", data=sent, headers=HTMX).text
    page = guest.post("/chat", data=sent, headers={"Accept": "text/html"}).text
    assert 'href="/login" target="_blank">' in page and "half a thought" in page
    assert (
        f'href="/login?next=/session/{ABSENT}"' in guest.get(f"/session/{ABSENT}", headers={"Accept": "text/html"}).text
    )
    assert 'target="_blank"' not in ann.post("/chat", data=sent, headers=HTMX).text

"""Bugs of the application before this one, each kept away by a test, from outside and on one server."""

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.web.running import Server
from tests.web.wire import (
    ABSENT,
    BROWSER,
    HTMX,
    JSON,
    STREAM,
    begin,
    chat,
    create,
    ended,
    hidden_fields,
    problem,
    session_of,
    streaming,
    text_of,
    turn_of,
)
from web.routes import ROUTES

Newcomer = Callable[..., httpx.Client]


def ids(client: httpx.Client) -> list[str]:
    """The sessions somebody has."""
    return [one["id"] for one in client.get("/session", headers={"Accept": JSON}).raise_for_status().json()["sessions"]]


@pytest.fixture(scope="module")
def brief(governed: Server, tokens: dict[str, str]) -> Iterator[httpx.Client]:
    """A script of brie's, whose sessions expire after two seconds."""
    with governed.script(tokens["brie"]) as client:
        yield client


@pytest.fixture(scope="module")
def expired(brief: httpx.Client) -> dict[str, Any]:
    """The one turn of a session of brie's that has expired."""
    turn = chat(brief, "what was said before")
    time.sleep(2.2)
    return turn


def by_json(client: httpx.Client) -> str:
    return str(create(client)["id"])


def by_form(client: httpx.Client) -> str:
    made = client.post("/session/create", data={}, headers={"Accept": BROWSER})
    assert made.status_code == 303
    return made.headers["location"].rpartition("/")[2]


def by_htmx(client: httpx.Client) -> str:
    assert client.post("/session/create", data={}, headers=HTMX).status_code < 300
    return ids(client)[0]


def by_the_first_message(client: httpx.Client) -> str:
    return str(chat(client, "hello")["session_id"])


def by_the_form_of_the_start_page(client: httpx.Client) -> str:
    fields = hidden_fields(client.get("/", headers={"Accept": BROWSER}).text, "/chat")
    sent = client.post("/chat", data=fields | {"prompt": "hello"}, headers={"Accept": BROWSER})
    assert sent.status_code == 303
    return re.split("[/#?]", sent.headers["location"])[2]


def by_a_streamed_message(client: httpx.Client) -> str:
    with streaming(client, "/chat", method="POST", json={"prompt": "hello"}) as stream:
        return str(stream.rest()[-1].json["session_id"])


def by_forking(client: httpx.Client) -> str:
    made = client.post(f"/session/{by_the_first_message(client)}/fork", json={})
    assert made.status_code == 201
    return str(made.json()["id"])


WAYS = [
    by_json, by_form, by_htmx, by_the_first_message, by_the_form_of_the_start_page, by_a_streamed_message, by_forking,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_make_a_session_leads_to_a_reply(newcomer: Newcomer, way: Callable[[httpx.Client], str]) -> None:
    client = newcomer()
    session_id = way(client)
    if (running := session_of(client, session_id)["running_turn"]) is not None:
        ended(client, running)
    turn = chat(client, "one two three", session_id=session_id)
    assert (turn["session_id"], turn["state"], turn["reply"]) == (session_id, "done", "one two three")
    shown = client.get(f"/session/{session_id}", headers={"Accept": BROWSER})
    assert "one two three" in shown.text


def test_switch_is_a_verb_and_never_the_name_of_a_model(bob: httpx.Client) -> None:
    before = bob.get("/models").json()
    session = create(bob)
    switched = bob.post("/models/switch", json={"session_id": session["id"], "model": "smart"}).json()
    assert (switched["to"], session_of(bob, session["id"])["last_model"]) == ("smart", "smart")
    problem(bob.post("/models/switch", json={"session_id": session["id"], "model": "switch"}), 422, "model_unknown")
    assert bob.get("/models").json() == before


def test_a_stale_id_on_a_stream_makes_no_session_and_loses_no_reply(bob: httpx.Client) -> None:
    deleted, closed, live = (create(bob, title=title)["id"] for title in ("deleted", "closed", "live"))
    bob.post(f"/session/{deleted}/delete", json={}).raise_for_status()
    bob.post(f"/session/{closed}/close", json={}).raise_for_status()
    before = ids(bob)
    for stale, status, code in (
        (deleted, 404, "session_not_found"),
        (ABSENT, 404, "session_not_found"),
        (closed, 410, "session_closed"),
    ):
        for url, method in (("/chat", "POST"), (f"/session/{stale}/events", "GET")):
            if url != "/chat" and stale == closed:
                continue  # what is closed can still be read
            body = {"json": {"session_id": stale, "prompt": "lost?"}} if method == "POST" else {}
            problem(bob.request(method, url, headers={"Accept": STREAM}, **body), status, code)  # type: ignore[arg-type]
    assert ids(bob) == before
    with streaming(bob, "/chat", method="POST", json={"session_id": live, "prompt": "kept words"}) as stream:
        events = stream.rest()
    assert {events[0].json["session_id"], events[-1].json["session_id"]} == {live}
    kept = bob.get(f"/session/{live}/turns").json()["turns"]
    assert [turn["reply"] for turn in kept] == [text_of(events)] == ["kept words"]


def test_each_reason_to_refuse_has_its_own_answer_and_none_makes_a_session(
    newcomer: Newcomer, brief: httpx.Client, expired: dict[str, Any]
) -> None:
    foreign, client = create(newcomer())["id"], newcomer()
    closed = chat(client, "hello")["session_id"]
    client.post(f"/session/{closed}/close", json={}).raise_for_status()
    limited = chat(client, "hello")["session_id"]
    for asker, session_id, status, code in (
        (client, ABSENT, 404, "session_not_found"),
        (client, foreign, 404, "session_not_found"),
        (client, closed, 410, "session_closed"),
        (client, limited, 429, "rate_limited"),
        (brief, expired["session_id"], 410, "session_expired"),
    ):
        before = ids(asker)
        problem(asker.post("/chat", json={"session_id": session_id, "prompt": "x"}), status, code)
        assert ids(asker) == before


def test_one_who_makes_too_many_sessions_blocks_nobody_else_and_gets_exactly_the_burst(newcomer: Newcomer) -> None:
    greedy, other = newcomer(), newcomer()
    greedy.get("/models")
    with ThreadPoolExecutor(10) as pool:
        statuses = list(pool.map(lambda _: greedy.post("/session/create", json={}).status_code, range(30)))
    # Three at once; the quota of three is full then, so no later place in the rate adds one.
    assert (statuses.count(201), len(ids(greedy))) == (3, 3)
    assert set(statuses) == {201, 409} | ({429} & set(statuses))
    assert create(other)["id"] not in ids(greedy)


def test_a_limit_refuses_who_is_too_fast_and_nobody_who_keeps_to_it(
    newcomer: Newcomer, pass_: Callable[[float], None]
) -> None:
    client = newcomer()
    session_id = chat(client, "one")["session_id"]
    chat(client, "two", session_id=session_id)
    body = {"session_id": session_id, "prompt": "three"}
    told = problem(client.post("/chat", json=body), 429, "rate_limited")
    for _ in range(2):  # at the pace that was told, every one is accepted
        pass_(told["retry_after_seconds"])
        assert client.post("/chat", json=body).status_code == 200
        told = problem(client.post("/chat", json=body), 429, "rate_limited")


def test_a_slot_is_held_until_the_reply_ends_and_not_until_a_response_is_made(newcomer: Newcomer) -> None:
    client = newcomer()
    other = create(client, title="other")["id"]
    turn = begin(client, "/tokens 500 /delay 20ms")  # whose stream is closed already
    body = {"session_id": other, "prompt": "x"}
    for _ in range(3):
        told = problem(client.post("/chat", json=body), 429, "concurrency_limited")
        assert told["limit"] == "concurrent_turns"
    assert turn_of(client, turn["id"])["state"] == "running"
    client.post(f"/chat/{turn['id']}/stop", json={}).raise_for_status()
    assert client.post("/chat", json=body).status_code == 200


@pytest.mark.parametrize("way", WAYS)
def test_who_makes_a_session_owns_it_in_every_way_of_asking(
    newcomer: Newcomer, bob: httpx.Client, way: Callable[[httpx.Client], str]
) -> None:
    guest = newcomer()
    for maker, other in ((guest, bob), (bob, guest)):
        id = way(maker)
        assert id in ids(maker) and id not in ids(other)
        for path in (f"/session/{id}", f"/session/{id}/turns", f"/session/{id}/journal"):
            for accept in (JSON, BROWSER):
                assert maker.get(path, headers={"Accept": accept}).status_code == 200
                assert other.get(path, headers={"Accept": accept}).status_code == 404
        assert maker.post(f"/session/{id}/rename", json={"title": "mine"}).status_code == 200
        assert other.post(f"/session/{id}/rename", json={"title": "mine"}).status_code == 404
        with streaming(maker, f"/session/{id}/events"):
            pass
        assert other.get(f"/session/{id}/events", headers={"Accept": STREAM}).status_code == 404
        maker.post(f"/session/{id}/delete", json={}).raise_for_status()


def test_a_model_that_is_not_there_is_never_switched_to(bob: httpx.Client) -> None:
    turn = chat(bob, "hello")
    before = session_of(bob, turn["session_id"])
    for model in ("no-such-model", "hidden", "FAST", "echo", "../fast"):
        asked = {"session_id": turn["session_id"], "model": model}
        problem(bob.post("/models/switch", json=asked), 422, "model_unknown")
        problem(bob.post("/chat", json=asked | {"prompt": "x"}), 422, "model_unknown")
        problem(bob.post("/session/create", json={"model": model}), 422, "model_unknown")
    assert session_of(bob, turn["session_id"]) == before


def test_no_limit_is_ever_a_500(newcomer: Newcomer, governed: Server, tokens: dict[str, str]) -> None:
    def first_refusal(act: Callable[[], httpx.Response]) -> dict[str, Any]:
        for _ in range(10):
            answer = act()
            if answer.status_code >= 400:
                return {"status": answer.status_code, **answer.json()}
        raise AssertionError("never refused")

    client = newcomer()
    id = create(client, title="one")["id"]
    models = iter(["smart", "fast"] * 5)
    refusals = [
        first_refusal(lambda: client.post("/models/switch", json={"session_id": id, "model": next(models)})),
        first_refusal(lambda: client.post("/chat", json={"session_id": id, "prompt": "x"})),
        first_refusal(lambda: client.post("/session/create", json={"title": "x"})),
    ]
    with governed.script(tokens["pia"]) as poor:
        refusals.append(first_refusal(lambda: poor.post("/chat", json={"prompt": "x" * 20_000})))
    told = [(one["status"], one["code"], one["limit"]) for one in refusals]
    assert told[:2] == [(429, "rate_limited", "switches"), (429, "rate_limited", "turns")]
    assert told[2] in ((409, "session_quota", "open_sessions"), (429, "rate_limited", "sessions_created"))
    assert told[3] == (422, "over_budget", "tokens_per_day")
    assert all(one["detail"] for one in refusals)


def test_what_expired_is_not_revived_by_extending(brief: httpx.Client, expired: dict[str, Any]) -> None:
    problem(brief.post(f"/session/{expired['session_id']}/extend", json={}), 410, "session_expired")
    assert session_of(brief, expired["session_id"])["state"] == "expired"


def test_what_expired_shows_its_whole_history(brief: httpx.Client, expired: dict[str, Any]) -> None:
    url = f"/session/{expired['session_id']}"
    assert brief.get(f"{url}/turns").json()["turns"] == [expired]
    page = brief.get(url, headers={"Accept": BROWSER})
    assert page.status_code == 200
    assert page.text.count("what was said before") >= 2  # the prompt and the reply
    with streaming(brief, f"{url}/events") as stream:
        assert stream.next("turn").json["reply"] == "what was said before"


def test_no_url_tells_a_providers_key(newcomer: Newcomer, bob: httpx.Client, boss: httpx.Client) -> None:
    guest = newcomer()
    session_id = chat(guest, "hello")["session_id"]
    turn_id = guest.get(f"/session/{session_id}/turns").json()["turns"][0]["id"]
    walked = 0
    for handler in ROUTES:
        for path in handler.paths:
            if "GET" not in handler.http_methods or path.endswith("/events"):
                continue
            path = path.replace("{session_id:uuid}", session_id).replace("{turn_id:uuid}", turn_id)
            path = re.sub(r"{\w+:\w+}", "fast", path)
            for client in (guest, bob, boss):
                for accept in (JSON, BROWSER):
                    answer = client.get(path, headers={"Accept": accept})
                    assert "sk-canary-of-the-provider" not in answer.text + repr(answer.headers)
                    walked += answer.status_code == 200
    assert walked > 30
    down = begin_failed(bob, session_id_of(bob))
    assert "sk-canary-of-the-provider" not in repr(down)


def session_id_of(client: httpx.Client) -> str:
    return str(create(client, model="far")["id"])


def begin_failed(client: httpx.Client, session_id: str) -> dict[str, Any]:
    """What is told when the provider does not answer: a refusal, or a turn that failed."""
    answer = client.post("/chat", json={"session_id": session_id, "prompt": "x"}, headers={"Accept": JSON})
    assert answer.status_code in (200, 503)
    found: dict[str, Any] = answer.json()
    assert found.get("code") == "model_unavailable" or found["state"] == "failed"
    return found


def test_what_is_refused_halfway_leaves_nothing_behind(newcomer: Newcomer) -> None:
    client = newcomer()
    session = create(client, title="other")
    turn = begin(client, "/tokens 500 /delay 20ms")
    before, used = ids(client), client.get("/limits").json()
    rows = client.get(f"/session/{session['id']}/journal").json()
    # Each would make a session, or switch one, before the slot turns out to be taken.
    for body in ({"prompt": "x"}, {"prompt": "x", "model": "smart"}):
        problem(client.post("/chat", json=body), 429, "concurrency_limited")
        problem(client.post("/chat", json=body | {"session_id": session["id"]}), 429, "concurrency_limited")
    assert ids(client) == before
    assert session_of(client, session["id"]) == session
    assert without_refusals(client.get(f"/session/{session['id']}/journal").json()) == without_refusals(rows)
    after = client.get("/limits").json()
    for one, other in zip(used["limits"], after["limits"], strict=True):
        assert other["remaining"] >= one["remaining"], one["name"]
    client.post(f"/chat/{turn['id']}/stop", json={}).raise_for_status()


def without_refusals(told: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in told["journal"] if row["what"] != "refused"]


def test_a_page_that_leaves_during_a_switch_cuts_no_reply(bob: httpx.Client) -> None:
    whole, slow = chat(bob, "/tokens 60"), "/tokens 60 /delay 40ms"
    with streaming(bob, "/chat", method="POST", json={"session_id": whole["session_id"], "prompt": slow}) as stream:
        turn = stream.next("delta").json
        switched = bob.post("/models/switch", json={"session_id": whole["session_id"], "model": "smart"}).json()
        assert (switched["changed"], switched["effective"]) == (True, "next_turn")
    # The stream is closed, as a page does that aborts its fetch; the reply is not.
    last = ended(bob, turn["turn_id"])
    assert (last["state"], last["model"]) == ("done", whole["model"])
    assert last["reply"] == whole["reply"] and len(last["reply"].split()) == 60
    slow = "/tokens 1000 /delay 20ms"
    with streaming(bob, "/chat", method="POST", json={"session_id": whole["session_id"], "prompt": slow}) as stream:
        turn = stream.next("delta").json
        stop = {"session_id": whole["session_id"], "model": "fast", "when": "stop"}
        assert bob.post("/models/switch", json=stop).json()["effective"] == "now"
        events = stream.rest()
    # What was cut says so, and is what was shown.
    cut = turn_of(bob, turn["turn_id"])
    assert (cut["state"], cut["model"]) == ("stopped", "smart")
    assert cut["reply"].startswith(turn["text"]) and cut["reply"].endswith(text_of(events))
    assert len(cut["reply"].split()) < 1000

"""Rules as they show from outside, on a real server on each database: streams, pages and time."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Thread

import httpx
import pytest

from tests.web.running import Server, a_server
from tests.web.wire import (
    ABSENT,
    BROWSER,
    JSON,
    SOON,
    STREAM,
    begin,
    chat,
    create,
    ended,
    follow,
    problem,
    session_of,
    streaming,
    text_of,
    turn_of,
)


@pytest.fixture(params=["server", "postgres_server"], ids=["sqlite", "postgres"])
def either(request: pytest.FixtureRequest) -> Server:
    """A server on each database."""
    found: Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def ann(either: Server) -> Iterator[httpx.Client]:
    """A browser without an account."""
    with either.guest(Accept=JSON) as client:
        yield client


@pytest.fixture
def bob(either: Server) -> Iterator[httpx.Client]:
    """Another one, who has been here before."""
    with either.guest(Accept=JSON) as client:
        client.get("/models")
        yield client


@pytest.fixture
def cy(either: Server) -> Iterator[httpx.Client]:
    """Somebody with an account, whose limits are nobody else's."""
    with either.guest(Accept=JSON, Authorization=f"Bearer {either.people('cy')['cy']}") as client:
        yield client


def test_A3_a_refusal_comes_before_the_first_byte_of_a_stream(cy: httpx.Client) -> None:
    turn = begin(cy, "/hang")
    for body, status, code in (
        ({"prompt": "x", "session_id": ABSENT}, 404, "session_not_found"),
        ({"prompt": "x", "model": "none"}, 422, "model_unknown"),
        ({"prompt": "x", "session_id": turn["session_id"]}, 409, "session_busy"),
    ):
        problem(cy.post("/chat", json=body, headers={"Accept": STREAM}), status, code)
    # Twenty at once is the limit; the next is no stream that begins well and then fails.
    running = [turn, *(begin(cy, "/hang") for _ in range(19))]
    told = problem(cy.post("/chat", json={"prompt": "x"}, headers={"Accept": STREAM}), 429, "concurrency_limited")
    assert told["limit"] == "concurrent_turns"
    for one in running:
        cy.post(f"/chat/{one['id']}/stop", json={}).raise_for_status()


def test_A4_attaching_again_and_again_makes_no_session(ann: httpx.Client) -> None:
    turn = chat(ann, "hello")
    before = ann.get("/session").json()
    for _ in range(50):
        problem(ann.get(f"/session/{ABSENT}/events", headers={"Accept": STREAM}), 404, "session_not_found")
        assert follow(ann, turn["id"])[-1].name == "end"
    assert ann.get("/session").json() == before


def test_A5_the_first_event_names_the_session_that_everything_after_is_in(ann: httpx.Client) -> None:
    with streaming(ann, "/chat", method="POST", json={"prompt": "kept words"}) as stream:
        first = stream.next()
        assert first.name == "turn"
        id = first.json["session_id"]
        rest = stream.rest()
    assert rest[-1].json["session_id"] == id
    kept = ann.get(f"/session/{id}/turns").json()["turns"]
    assert [(turn["id"], turn["reply"]) for turn in kept] == [(first.json["id"], text_of(rest))]
    assert chat(ann, "again", session_id=id)["parent_id"] == first.json["id"]


def test_I11_somebody_elses_is_absent_on_a_real_server_too(ann: httpx.Client, bob: httpx.Client) -> None:
    turn = chat(ann, "a secret")
    asked = (
        ("GET", f"/session/{turn['session_id']}", {}),
        ("GET", f"/chat/{turn['id']}/events", {}),
        ("POST", f"/session/{turn['session_id']}/fork", {}),
        ("POST", f"/chat/{turn['id']}/retry", {}),
        ("POST", "/chat", {"session_id": turn["session_id"], "prompt": "x"}),
    )
    for method, url, body in asked:
        foreign = bob.request(method, url, **({"json": body} if method == "POST" else {}))  # type: ignore[arg-type]
        problem(foreign, 404, "session_not_found")
        assert "a secret" not in foreign.text


def test_M5_pages_render_and_a_message_is_refused_where_nothing_is_usable(tmp_path: Path) -> None:
    settings = """
default_model = "theirs"
[[models]]
id = "theirs"
provider = "builtin"
upstream = "echo"
groups = ["admin"]
"""
    with a_server(tmp_path, settings) as server, server.guest(Accept=JSON) as client:
        session = create(client)
        current = session["current_model"]
        assert (current["id"], current["source"], current["usable"]) == (None, "none", False)
        for path in ("/", "/session", f"/session/{session['id']}", "/models", "/limits"):
            page = client.get(path, headers={"Accept": BROWSER})
            assert page.status_code == 200 and "theirs" not in page.text
        for body in ({"prompt": "x", "session_id": session["id"]}, {"prompt": "x"}):
            problem(client.post("/chat", json=body), 503, "no_model_available")
        problem(client.post("/chat", json={"prompt": "x", "model": "theirs"}), 422, "model_unknown")
        assert session_of(client, session["id"]) == session


def test_M8_page_json_stream_and_turn_give_the_same_answer(ann: httpx.Client) -> None:
    id = create(ann)["id"]
    for switch in (None, "smart", "guide"):
        if switch is not None:
            ann.post("/models/switch", json={"session_id": id, "model": switch}).raise_for_status()
        told = session_of(ann, id)
        current = told["current_model"]
        (listed,) = [one for one in ann.get("/session").json()["sessions"] if one["id"] == id]
        assert listed["current_model"] == current
        page = ann.get(f"/session/{id}", headers={"Accept": BROWSER}).text
        assert f"data-current-model>{current['id']}<" in page
        with streaming(ann, f"/session/{id}/events?version={told['version']}") as stream:
            renamed = ann.post(f"/session/{id}/rename", json={"title": f"about {switch}"}).json()
            seen = stream.next("session").json
            while seen["version"] < renamed["version"]:
                seen = stream.next("session").json
        assert seen["current_model"] == current
        assert chat(ann, "hello", session_id=id)["model"] == current["id"] == (switch or "fast")


def test_S12_every_open_page_shows_the_new_model_within_a_second(ann: httpx.Client) -> None:
    id = chat(ann, "hello")["session_id"]
    version = session_of(ann, id)["version"]
    heard: list[float] = []

    def watch(accept: str) -> None:
        with streaming(ann, f"/session/{id}/events?version={version}", accept=accept) as stream:
            ready.append(accept)
            for event in stream:
                if "smart" in event.data.lower() and switched:
                    heard.append(time.monotonic() - switched[0])
                    return

    ready: list[str] = []
    switched: list[float] = []
    watchers = [Thread(target=watch, args=(STREAM,), daemon=True) for _ in range(4)]
    for watcher in watchers:
        watcher.start()
    deadline = time.monotonic() + 60
    while len(ready) < len(watchers) and time.monotonic() < deadline:
        time.sleep(0.01)
    switched.append(time.monotonic())
    ann.post("/models/switch", json={"session_id": id, "model": "smart"}).raise_for_status()
    for watcher in watchers:
        watcher.join(60)
    assert len(heard) == len(watchers)
    assert max(heard) < SOON


def test_G4_nobody_who_leaves_ends_a_reply(ann: httpx.Client) -> None:
    turn = begin(ann, "/tokens 40 /delay 10ms")  # whose stream is closed at once
    for _ in range(3):
        with streaming(ann, f"/chat/{turn['id']}/events") as stream:
            stream.next("turn")
    last = ended(ann, turn["id"])
    assert (last["state"], len(last["reply"].split())) == ("done", 40)


def test_G7_a_stop_from_another_tab_ends_it_within_a_second_and_keeps_the_text(
    either: Server, ann: httpx.Client
) -> None:
    with either.guest(Accept=JSON) as tab, ExitStack() as open_streams:
        turn = begin(ann, "/tokens 2000 /delay 20ms")
        tab.cookies = ann.cookies
        stream = open_streams.enter_context(streaming(ann, f"/chat/{turn['id']}/events"))
        shown = stream.next("delta").json["text"]
        began = time.monotonic()
        assert tab.post(f"/chat/{turn['id']}/stop", json={}).json()["state"] == "stopped"
        events = stream.rest()
        assert time.monotonic() - began < SOON
    kept = turn_of(ann, turn["id"])
    assert events[-1].json == kept
    assert kept["reply"] == shown + text_of(events)
    assert session_of(ann, turn["session_id"])["running_turn"] is None


def test_G10_what_is_told_to_be_done_is_stored_whole(ann: httpx.Client) -> None:
    for _ in range(5):
        with streaming(ann, "/chat", method="POST", json={"prompt": "/tokens 30"}) as stream:
            events = stream.rest()
        assert events[-1].json == turn_of(ann, events[-1].json["id"])
        assert events[-1].json["reply"] == text_of(events)


def test_D1_a_form_carries_a_key_and_is_done_once(ann: httpx.Client) -> None:
    page = ann.get("/", headers={"Accept": BROWSER}).text
    key = page.partition('name="idempotency_key"')[2].partition('value="')[2].partition('"')[0]
    form = {"prompt": "once", "idempotency_key": key}
    assert len(key) > 16
    sent = [ann.post("/chat", data=form, headers={"Accept": BROWSER}) for _ in range(3)]
    assert {(answer.status_code, answer.headers["location"]) for answer in sent} == {(303, sent[0].headers["location"])}
    assert len(ann.get("/session").json()["sessions"]) == 1

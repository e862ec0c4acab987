"""Two tabs and a script on one session: what one of them does, the others show."""

from collections.abc import Callable, Iterator

import httpx
import pytest
from playwright.sync_api import Route, expect

from tests.browser.conftest import Chat
from tests.web.wire import JSON, begin, create, ended, session_of, streaming, text_of, turn_of
from tests.web.wire import chat as ask

SLOW = "/tokens 40 /delay 25ms"
WHOLE = " ".join(f"tok{number}" for number in range(40))


@pytest.fixture
def script(chat: Chat) -> Iterator[httpx.Client]:
    """A script that is the same guest as the browser."""
    chat.page.goto(chat.server.url)
    (cookie,) = (one["value"] for one in chat.page.context.cookies() if one["name"] == "tk_guest")
    with chat.server.guest(Accept=JSON, Cookie=f"tk_guest={cookie}", **{"Sec-Fetch-Site": "same-origin"}) as client:
        yield client


def test_turns_titles_models_and_limits_are_the_same_everywhere(
    chat: Chat, open_chat: Callable[..., Chat], script: httpx.Client, complaints: list[str]
) -> None:
    session = create(script)
    url = f"{chat.server.url}/session/{session['id']}"
    tabs = (chat, open_chat(beside=chat))
    for tab in tabs:
        tab.page.goto(url)
    with streaming(script, f"/session/{session['id']}/events", after="") as told:
        # The script begins, in a session that was empty: its first words are the title.
        first = begin(script, "/hang after 40", session_id=session["id"])
        for tab in tabs:
            tab.see("running")
            expect(tab.page.locator(".meters")).to_contain_text("replies at once")
            expect(tab.page.get_by_role("heading", level=1)).to_have_text(session_of(script, session["id"])["title"])
        # One tab is loaded again in the middle.
        tabs[0].page.reload()
        for tab in tabs:
            expect(tab.replies).to_have_text(WHOLE)
        script.post(f"/chat/{first['id']}/stop", json={}).raise_for_status()
        for tab in tabs:
            tab.see("stopped")
            expect(tab.replies).to_have_text(WHOLE)
        # A tab asks, the other tab and the script follow.
        tabs[1].say("and back")
        for tab in tabs:
            tab.see("stopped", "done")
            expect(tab.replies.last).to_have_text("and back")
            expect(tab.page.locator(".meters")).not_to_contain_text("replies at once")
        # The script renames and switches.
        script.post(f"/session/{session['id']}/rename", json={"title": "In <step>"}).raise_for_status()
        script.post("/models/switch", json={"session_id": session["id"], "model": "smart"}).raise_for_status()
        for tab in tabs:
            expect(tab.page.get_by_role("heading", level=1)).to_have_text("In <step>")
            expect(tab.page).to_have_title("In <step> · Turnkeeper")
            expect(tab.page.locator("[data-current-model]")).to_have_text("smart")
        last = ask(script, "the last word", session_id=session["id"])
        for tab in tabs:
            tab.see("stopped", "done", "done")
            expect(tab.page.locator(".reply-model")).to_have_text(["fast", "fast", "smart"])
        events = []
        for event in told:
            events.append(event)
            if event.name == "end" and event.json["id"] == last["id"]:
                break
    turns = script.get(f"/session/{session['id']}/turns").json()["turns"]
    assert turns[0] == ended(script, first["id"]) and turns[-1] == turn_of(script, last["id"])
    assert [event.json for event in events if event.name == "end"] == turns
    assert text_of(events) == "".join(turn["reply"] for turn in turns)
    assert [event.json["last_model"] for event in events if event.name == "session"][-1] == "smart"


@pytest.mark.parametrize("words", [["one"], ["one", "two"], ["one", "two", SLOW]])
def test_a_tab_that_was_away_shows_every_turn(chat: Chat, script: httpx.Client, words: list[str]) -> None:
    """Its stream hangs, as on a bad network, while a script makes turns that end, or one that goes on."""
    session, held = create(script), list[Route]()
    ask(script, "zero", session_id=session["id"])
    chat.page.route("**/events*", lambda route: held.append(route))
    chat.page.goto(f"{chat.server.url}/session/{session['id']}")
    chat.see("done")
    while not held:
        chat.page.wait_for_timeout(20)
    for word in words:
        (begin if word == SLOW else ask)(script, word, session_id=session["id"])
    held[0].continue_()
    chat.page.unroute("**/events*")
    expect(chat.turns).to_have_count(1 + len(words), timeout=30_000)
    expect(chat.turns.last).to_have_attribute("data-state", "done", timeout=30_000)
    expect(chat.replies).to_have_text(["zero", *(WHOLE if word == SLOW else word for word in words)])


def test_a_stream_that_could_not_be_opened_is_tried_again(chat: Chat, script: httpx.Client) -> None:
    session, tried = create(script), list[str]()
    ask(script, "zero", session_id=session["id"])

    def cut(route: Route) -> None:
        tried.append(route.request.url)
        if len(tried) < 3:
            route.abort()
        else:
            route.continue_()

    chat.page.route("**/events*", cut)
    chat.page.goto(f"{chat.server.url}/session/{session['id']}")
    chat.see("done")
    ask(script, "one", session_id=session["id"])
    expect(chat.turns).to_have_count(2, timeout=30_000)

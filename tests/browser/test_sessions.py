"""The list of sessions in a browser: search while typing, arrange, delete and undo, and ten thousand of them."""

import os
from collections.abc import Callable
from uuid import UUID

import pytest
from playwright.sync_api import Browser, Locator, expect

from tests.browser.conftest import Chat
from tests.browser.traces import styled_elements

#: sessions of one owner; ten thousand with LONG_TESTS=1
MANY = 10_000 if os.environ.get("LONG_TESTS") else 300


def test_what_was_said_is_found_while_one_types_and_by_key(chat: Chat, complaints: list[str]) -> None:
    chat.begin("Where is **Carthage**?")
    chat.see("done")
    first = chat.page.url
    chat.begin("Something else")
    chat.see("done")
    page = chat.page
    page.keyboard.press("Control+k")
    expect(page.locator("#q")).to_be_focused()
    page.keyboard.type("carth")
    expect(page.locator("#sessions mark").first).to_have_text("Carthage")
    expect(page.locator("#sessions .row")).to_have_count(1)
    page.keyboard.press("ArrowDown")
    expect(page.locator("a.row-line")).to_be_focused()
    page.keyboard.press("ArrowUp")
    expect(page.locator("#q")).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_url(f"{first}?turn=*")
    expect(chat.turns).to_have_count(1)
    expect(chat.box).to_be_visible()  # it is the end of the transcript, so one can go on
    page.locator("#q").fill("nowhere to be found")
    expect(page.locator("#sessions")).to_contain_text("Nothing holds these words.")
    page.locator("#q").fill("")
    expect(page.locator("#sessions .row")).to_have_count(2)
    expect(page.locator("aside [aria-current]")).to_have_attribute("href", first.removeprefix(chat.server.url))
    assert complaints == []


@pytest.mark.parametrize("javascript", [True, False])
def test_a_session_is_pinned_archived_deleted_and_had_back(open_chat: Callable[..., Chat], javascript: bool) -> None:
    chat = open_chat(java_script_enabled=javascript)
    for title in ("one", "two"):
        answer = chat.page.context.request.post(
            f"{chat.server.url}/session/create", data={"title": title}, headers={"Accept": "application/json"}
        )
        assert answer.ok
    page = chat.page
    page.goto(f"{chat.server.url}/session")

    def row(title: str) -> Locator:
        return page.locator(".row").filter(has_text=title)

    def do(title: str, act: str) -> None:
        if (menu := row(title).locator(".dots")).count():
            menu.click()
        with page.expect_response(lambda answer: answer.request.method == "POST" and answer.status < 400):
            row(title).get_by_role("button", name=act, exact=True).click()

    do("one", "Pin")
    page.goto(f"{chat.server.url}/session")
    expect(page.locator("#sessions > *").first).to_have_text("Pinned")
    expect(page.locator(".row").first).to_contain_text("one")
    do("one", "Archive")
    if javascript:
        expect(row("Archived")).to_have_count(1)
    page.goto(f"{chat.server.url}/session")
    expect(page.locator(".row")).to_have_count(1)
    do("two", "Delete")
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_text("two").first).to_be_visible()
    page.goto(f"{chat.server.url}/session")
    do("two", "Delete")
    expect(page.get_by_role("button", name="Undo")).to_be_visible()
    page.goto(f"{chat.server.url}/session?show=deleted")
    row("two").get_by_role("button", name="Delete forever", exact=True).click()
    with page.expect_response(lambda answer: answer.request.method == "POST" and answer.status < 400):
        page.get_by_role("button", name="Delete it forever").click()
    expect(page.get_by_role("button", name="Restore")).to_have_count(0)
    page.goto(f"{chat.server.url}/session?show=archived")
    do("one", "Unarchive")
    page.goto(f"{chat.server.url}/session")
    expect(page.locator(".row")).to_have_count(1)


def test_very_many_sessions_are_sent_by_the_screenful_and_answer_at_once(
    chat: Chat, browser: Browser, complaints: list[str]
) -> None:
    chat.begin("Hello")
    chat.see("done")
    page, api = chat.page, chat.page.context.request
    file = api.get(f"{page.url}/export").json()
    (session,) = file["sessions"]
    (turn,) = session["turns"]
    file["sessions"] = []
    for number in range(MANY):
        id = str(UUID(int=UUID(turn["id"]).int + number))
        said = turn | {"id": id, "prompt": f"number {number} {'rare' if number % 10 == 0 else ''}"}
        file["sessions"].append(session | {"turns": [said], "head_id": id, "opening": "", "title": ""})
    assert api.post(f"{chat.server.url}/session/import", data=file, timeout=600_000).status == 201
    with page.expect_response(f"{chat.server.url}/session") as answer:
        page.goto(f"{chat.server.url}/session")
    assert answer.value.request.sizes()["responseBodySize"] <= 60_000
    page.goto(chat.server.url)
    rows = page.locator(".row")
    expect(rows).to_have_count(30)
    page.locator(".side-scroll").evaluate("node => node.scrollTop = node.scrollHeight")
    expect(rows).to_have_count(80)
    # All of them, unless it was midnight just now.
    days = page.locator(".side-day").all_inner_texts()
    assert days and set(days) <= {"Today", "Yesterday"}

    def styled_by(act: Callable[[], None]) -> int:
        """How many elements the browser styles again until the frame after an input."""
        browser.start_tracing(page=page, categories=["devtools.timeline"])
        act()
        page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return max(styled_elements(browser.stop_tracing()), default=0)

    elements = page.evaluate("document.querySelectorAll('*').length")
    styled = {
        "opening": styled_by(lambda: page.keyboard.press("Control+k")),
        "typing": styled_by(lambda: page.keyboard.type("r")),
    }
    page.locator("#q").fill("rare")
    expect(page.locator("#sessions mark").first).to_have_text("rare")
    box = page.locator(".side-scroll").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 40, box["y"] + 80)
    styled["scrolling"] = styled_by(lambda: page.mouse.wheel(0, 300))
    # However many sessions there are, an input touches the few rows that change.
    assert 0 < max(styled.values()) < elements / 20, (elements, styled)


def test_the_list_at_the_side_moves_with_what_is_done_and_stays_on_every_page(
    chat: Chat, complaints: list[str]
) -> None:
    page = chat.page
    first = chat.begin("the first chat")
    chat.see("done")
    chat.begin("the second chat")
    chat.see("done")
    titles = page.locator(".side .side-title")
    expect(titles).to_have_text(["the second chat", "the first chat"])
    # A message moves its chat up; nothing is loaded for it.
    page.goto(first)
    chat.say("more")
    chat.see("done", "done")
    expect(titles).to_have_text(["the first chat", "the second chat"])
    expect(page.locator(".side [aria-current=page] .side-title")).to_have_text("the first chat")
    expect(chat.box).to_be_focused()
    # From the menu of the chat: the list shows it, and the page says it.
    page.get_by_label("More about this session").click()
    page.get_by_role("button", name="Pin", exact=True).click()
    expect(chat.notice).to_have_text("Pinned.")
    expect(page.locator("#side-pinned .side-title")).to_have_text("the first chat")
    expect(page.get_by_label("More about this session")).to_be_focused()
    # A pinned one stays where it is.
    chat.say("and more")
    chat.see("done", "done", "done")
    expect(titles).to_have_text(["the first chat", "the second chat"])
    # By the menu of its row, on another page.
    page.get_by_role("link", name="Limits").click()
    expect(titles).to_have_text(["the first chat", "the second chat"])
    row = page.locator(".side .row").first
    row.hover()
    row.get_by_label("More about").click()
    page.get_by_role("button", name="Unpin").click()
    expect(page.locator("#side-pinned")).to_have_count(0)
    expect(page.get_by_role("status")).to_have_text("Back in the list.")
    expect(page.locator(".side .row.moved .side-title")).to_have_text("the first chat")
    page.goto(first)
    page.get_by_label("More about this session").click()
    page.get_by_role("button", name="Archive").click()
    expect(chat.notice).to_contain_text("Archived.")
    expect(titles).to_have_text(["the second chat"])
    for path in ("/models", "/limits", f"{first[len(chat.server.url) :]}/journal"):
        page.goto(chat.server.url + path)
        expect(titles).to_have_text(["the second chat"])
    page.goto(f"{chat.server.url}/session")
    expect(page.locator(".side .row")).to_have_count(0)

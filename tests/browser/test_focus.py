"""The keyboard is never lost: what is swapped while it has the focus hands it on to what stands in its place."""

import pytest
from playwright.sync_api import Route, expect

from tests.browser.conftest import Chat


def test_what_is_swapped_hands_the_keyboard_on(chat: Chat, complaints: list[str]) -> None:
    page, keys = chat.page, chat.page.keyboard
    chat.begin("/hang after 3")
    expect(chat.replies).to_have_text("tok0 tok1 tok2")
    page.get_by_role("button", name="Stop", exact=True).focus()
    keys.press("Enter")
    chat.see("stopped")
    expect(chat.box).to_be_focused()

    page.get_by_role("button", name="Send").focus()
    chat.box.fill("by button")
    page.get_by_role("button", name="Send").focus()
    keys.press("Enter")
    chat.see("stopped", "done")
    expect(chat.box).to_be_focused()

    more = page.get_by_label("More about this session")
    more.focus()
    keys.press("Enter")
    page.get_by_label("Title").fill("By key")
    keys.press("Enter")
    expect(page.get_by_role("heading", name="By key")).to_be_visible()
    expect(more).to_be_focused()


def test_nobody_is_moved_who_is_elsewhere(chat: Chat) -> None:
    chat.begin("/hang after 3")
    chat.page.get_by_role("button", name="Stop", exact=True).focus()
    chat.page.get_by_role("searchbox").focus()
    turn = chat.turns.get_attribute("id")
    assert turn is not None
    stop = f"{chat.server.url}/chat/{turn.removeprefix('turn-')}/stop"
    assert chat.page.request.post(stop, headers={"Accept": "application/json"}, data={}).ok
    chat.see("stopped")
    expect(chat.page.get_by_role("searchbox")).to_be_focused()


@pytest.mark.parametrize("typed", ["half a thou", ""])
def test_a_chat_that_is_closed_while_one_types_keeps_the_text_and_presses_nothing(
    chat: Chat, complaints: list[str], typed: str
) -> None:
    page, url = chat.page, chat.begin("Hello")
    chat.see("done")
    page.keyboard.type(typed)
    assert page.request.post(f"{url}/close", headers={"Accept": "application/json"}, data={}).ok
    note, unsent = page.locator(".ended-note > p"), page.get_by_label("Not sent")
    expect(unsent if typed else note).to_be_focused()
    for key in ("Space", "Enter"):
        page.keyboard.press(key)
    page.reload()
    if not typed:
        expect(unsent).to_be_hidden()
    else:
        expect(unsent).to_have_value(typed)
    page.locator(".ended-note").get_by_role("button", name="Continue in a copy").click()
    page.wait_for_url(lambda now: now != url)
    expect(chat.box).to_have_value(typed)
    page.go_back()
    expect(note).to_be_visible()
    expect(unsent).to_be_hidden()


def test_what_was_typed_before_the_script_came_is_kept_and_the_keyboard_handed_on(chat: Chat) -> None:
    page = chat.page
    url = chat.begin("Hello")
    chat.see("done")
    held: list[Route] = []
    page.route("**/page*.js*", lambda route: held.append(route))
    page.reload(wait_until="commit")
    expect(chat.box).to_be_focused()
    page.keyboard.type("early")
    while not held:
        page.wait_for_timeout(10)
    held[0].continue_()
    page.wait_for_load_state()
    assert page.request.post(f"{url}/close", headers={"Accept": "application/json"}, data={}).ok
    expect(page.get_by_label("Not sent")).to_be_focused()
    expect(page.get_by_label("Not sent")).to_have_value("early")


def test_what_was_kept_in_a_chat_goes_along_without_javascript(plain: Chat) -> None:
    page, url = plain.page, plain.begin("Hello")
    plain.box.fill("for later")
    page.get_by_role("button", name="Keep for later").click()
    assert page.request.post(f"{url}/close", headers={"Accept": "application/json"}, data={}).ok
    page.goto(url)
    expect(page.get_by_label("Not sent")).to_have_value("for later")
    page.locator(".ended-note").get_by_role("button", name="Continue in a copy").click()
    page.wait_for_url(lambda now: now != url)
    expect(plain.box).to_have_value("for later")

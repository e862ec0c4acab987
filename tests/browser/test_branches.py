"""Asking again beside what was asked, and going on in a copy: here, in another tab, and without JavaScript."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import APIResponse, Route, expect

from tests.browser.conftest import Chat


@pytest.fixture(params=[True, False], ids=["with JavaScript", "without"])
def either(request: pytest.FixtureRequest, open_chat: Callable[..., Chat]) -> Chat:
    return open_chat(java_script_enabled=request.param)


def edit(chat: Chat, text: str) -> None:
    chat.turns.last.hover()
    chat.page.get_by_text("Edit", exact=True).last.click()
    chat.page.get_by_label("The message to ask instead").last.fill(text)
    chat.replacing(chat.turns.last, chat.page.get_by_role("button", name="Ask this instead").click)


def test_a_retry_and_an_edit_take_the_place_of_the_turn(either: Chat) -> None:
    either.begin("first")
    either.see("done")
    either.retry(either.turns.last)
    either.see("done")
    edit(either, "second")
    either.see("done")
    expect(either.replies).to_have_text("second")


def test_a_menu_can_be_reached_whole_wherever_its_reply_stands(either: Chat) -> None:
    page = either.page
    either.begin("one")
    either.see("done")
    either.box.fill("/tokens 600")
    page.get_by_role("button", name="Send").click()
    either.see("done", "done")
    # Wide, a phone, and a wide one four times as large.
    for width, height in ((1366, 768), (390, 844), (341, 192)):
        page.set_viewport_size({"width": width, "height": height})
        for turn in (either.turns.first, either.turns.last):
            turn.locator(".facts-line").click()
            expect(turn.locator(".facts")).to_be_in_viewport(ratio=1)
            page.keyboard.press("Escape")
            expect(turn.locator(".facts")).to_be_hidden()
        page.get_by_role("button", name="Retry with…").click()
        expect(page.get_by_role("button", name="Smart")).to_be_visible()
        expect(turn.locator(".menu.items")).to_be_in_viewport(ratio=1)
        page.keyboard.press("Escape")


def test_an_edit_is_taken_back(chat: Chat, complaints: list[str]) -> None:
    chat.begin("one")
    chat.see("done")
    field = chat.page.get_by_label("The message to ask instead")
    for back in (lambda: chat.page.get_by_text("Cancel", exact=True).click(), lambda: field.press("Escape")):
        chat.page.get_by_text("Edit", exact=True).click()
        expect(field).to_be_focused()
        back()
        expect(chat.page.locator(".prompt")).to_be_visible()


def test_another_tab_shows_the_version_that_is_chosen_here(
    chat: Chat, open_chat: Callable[..., Chat], complaints: list[str]
) -> None:
    url = chat.begin("one")
    chat.see("done")
    chat.say("two")
    chat.see("done", "done")
    chat.say("three")
    chat.see("done", "done", "done")
    other = open_chat(beside=chat)
    other.page.goto(url)
    other.box.fill("a draft")
    chat.retry(chat.turns.nth(1))
    other.page.bring_to_front()
    other.see("done", "done")
    chat.page.bring_to_front()
    chat.page.get_by_role("button", name="The reply before").click()
    chat.see("done", "done", "done")
    other.page.bring_to_front()
    other.see("done", "done", "done")
    expect(other.replies).to_have_text(["one", "two", "three"])
    expect(other.page.locator(".ways")).to_contain_text("1/2")
    expect(other.box).to_have_value("a draft")
    other.say("four")
    other.see("done", "done", "done", "done")


def test_the_arrows_stand_under_what_they_change_and_keep_the_keyboard(chat: Chat, complaints: list[str]) -> None:
    page = chat.page
    chat.begin("one")
    chat.see("done")
    chat.retry(chat.turns.last)
    chat.see("done")
    messages, replies = page.locator(".said .ways"), page.locator(".reply .ways")
    expect(replies).to_have_text(re.compile(r"2/2"))
    expect(messages).to_have_count(0)
    edit(chat, "two")
    chat.see("done")
    expect(messages).to_have_text(re.compile(r"2/2"))
    expect(replies).to_have_count(0)
    # By the keyboard, without a page that is loaded anew.
    page.evaluate("document.body.same = true")
    page.get_by_role("button", name="The version before").focus()
    page.keyboard.press("Enter")
    expect(chat.replies).to_have_text("one")
    expect(messages).to_have_text(re.compile(r"1/2"))
    expect(replies).to_have_text(re.compile(r"2/2"))
    expect(page.get_by_role("button", name="The version after")).to_be_focused()
    page.get_by_role("button", name="The reply before").focus()
    page.keyboard.press("Enter")
    expect(replies).to_have_text(re.compile(r"1/2"))
    expect(page.get_by_role("button", name="The reply after")).to_be_focused()
    assert page.evaluate("document.body.same")


@pytest.mark.parametrize("verb", ["retry", "edit", "send"])
def test_an_answer_that_comes_after_the_end_does_not_bring_the_stop_back(
    chat: Chat, complaints: list[str], verb: str
) -> None:
    """The live stream may be faster than the answer to the form: the page waited for a reply that had ended."""
    page, held = chat.page, list[tuple[Route, APIResponse]]()
    chat.begin("one")
    chat.see("done")
    page.route(f"**/{'chat' if verb == 'send' else verb}", lambda route: held.append((route, route.fetch())))
    before = chat.turns.last.get_attribute("id")
    if verb == "retry":
        chat.retry(chat.turns.last)
    elif verb == "edit":
        edit(chat, "two /delay 300ms")
    else:
        chat.say("two /delay 300ms")
    chat.see(*["done"] * (2 if verb == "send" else 1))
    expect(chat.turns.last).not_to_have_id(before or "")
    # What one reads by now stays open, though the form that was sent is no longer there.
    chat.turns.last.locator(".facts-line").click()
    with page.expect_response(held[0][0].request.url):
        held[0][0].fulfill(response=held[0][1])
    page.wait_for_timeout(300)
    expect(chat.turns.last.locator(".facts")).to_be_visible()
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.get_by_role("button", name="Stop", exact=True)).to_have_count(0)
    expect(page.locator(".meters")).not_to_contain_text("at once")
    expect(page.get_by_text("Edit", exact=True).last).to_be_visible()


def test_an_answer_to_a_stop_that_comes_during_the_next_reply_leaves_its_stop(
    chat: Chat, complaints: list[str]
) -> None:
    page, held = chat.page, list[tuple[Route, APIResponse]]()
    page.route("**/stop", lambda route: held.append((route, route.fetch())))
    chat.begin("/hang after 1")
    chat.see("running")
    page.get_by_role("button", name="Stop", exact=True).click()
    chat.see("stopped")
    chat.say("/hang after 1 and so on")
    chat.see("stopped", "running")
    stop = page.get_by_role("button", name="Stop", exact=True)
    expect(stop).to_be_visible()
    held[0][0].fulfill(response=held[0][1])
    page.wait_for_timeout(300)
    expect(stop).to_be_visible()
    chat.see("stopped", "running")


def test_going_on_from_the_middle_in_a_session_of_its_own(either: Chat) -> None:
    url = either.begin("one")
    either.see("done")
    either.box.fill("two")
    either.page.get_by_role("button", name="Send").click()
    either.see("done", "done")
    either.turns.first.hover()
    either.turns.first.get_by_role("button", name="Fork").click()
    either.page.wait_for_url(lambda at: at != url and "/session/" in at)
    either.see("done")


def test_another_tab_follows_to_the_new_branch(
    chat: Chat, open_chat: Callable[..., Chat], complaints: list[str]
) -> None:
    url = chat.begin("one")
    chat.see("done")
    chat.say("two")
    chat.see("done", "done")
    other = open_chat(beside=chat)
    other.page.goto(url)
    other.box.fill("a draft")
    edit(chat, "/tokens 20 /delay 20ms")
    chat.see("done", "done")
    other.page.bring_to_front()
    other.see("done", "done")
    tokens = " ".join(f"tok{number}" for number in range(20))
    expect(other.replies).to_have_text(["one", tokens])
    expect(other.box).to_have_value("a draft")
    other.say("three")
    other.see("done", "done", "done")
    chat.page.bring_to_front()
    chat.see("done", "done", "done")


def test_a_closed_session_goes_on_in_a_copy(either: Chat) -> None:
    url = either.begin("to be kept")
    either.see("done")
    either.page.get_by_label("More about this session").click()
    either.page.get_by_text("Close …").click()
    either.page.get_by_role("button", name="Close for good").click()
    expect(either.page.get_by_role("button", name="Retry", exact=True)).to_be_hidden()
    either.page.locator(".ended-note").get_by_role("button", name="Continue in a copy").click()
    either.page.wait_for_url(lambda at: at != url and "/session/" in at)
    expect(either.replies).to_have_text("to be kept")
    either.box.fill("and on")
    either.page.get_by_role("button", name="Send").click()
    either.see("done", "done")

"""Refusals: they say why, count down, and never take what was typed."""

import re
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Chat
from tests.web.running import SETTINGS, Server, a_server


@pytest.fixture(scope="module")
def strict_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that takes three prompts from this address, and the next in half an hour."""
    settings = re.sub(r"\nturns = .*", '\nturns = "2/h burst 3"', SETTINGS)
    with a_server(tmp_path_factory.mktemp("strict"), settings) as running:
        yield running


def test_a_prompt_over_the_limit_stays_in_the_box_and_on_the_page_without_javascript(
    chat: Chat, plain: Chat, strict_server: Server, complaints: list[str]
) -> None:
    chat.server = plain.server = strict_server
    chat.begin("one")
    chat.say("two")
    chat.see("done", "done")
    plain.begin("three")
    expect(plain.page.get_by_role("button", name="Send")).to_be_visible()

    chat.say("over\nthe limit")
    expect(chat.notice).to_have_attribute("data-code", "rate_limited")
    expect(chat.notice).to_contain_text("Too many messages")
    expect(chat.box).to_have_value("over\nthe limit")
    chat.see("done", "done")
    first = chat.page.locator("[data-countdown]").inner_text()
    expect(chat.page.locator("[data-countdown]")).not_to_have_text(first)

    plain.box.fill("also over\nthe <limit>")
    plain.page.get_by_role("button", name="Send").click()
    expect(plain.page.get_by_role("alert")).to_contain_text("Try again in")
    expect(plain.page.get_by_label("What you wrote is still here")).to_have_value("also over\nthe <limit>")
    plain.page.get_by_role("button", name="Send again").click()
    expect(plain.page.get_by_label("What you wrote is still here")).to_have_value("also over\nthe <limit>")
    plain.page.get_by_role("link", name="Back to the session").click()
    expect(plain.turns).to_have_count(1)


def test_a_prompt_sent_while_a_reply_runs_stays_in_the_box(chat: Chat, complaints: list[str]) -> None:
    chat.begin("/hang after 3")
    chat.say("too early")
    expect(chat.notice).to_have_attribute("data-code", "session_busy")
    expect(chat.box).to_have_value("too early")
    chat.page.get_by_role("button", name="Stop").click()
    chat.see("stopped")
    chat.page.get_by_role("button", name="Send").click()
    chat.see("stopped", "done")
    expect(chat.notice).to_be_empty()
    expect(chat.box).to_have_value("")


def test_a_prompt_refused_without_javascript_is_given_back_and_can_be_sent_again(
    plain: Chat, open_chat: Callable[..., Chat]
) -> None:
    url = plain.begin("Hello")
    expect(plain.page.get_by_role("button", name="Send")).to_be_visible()
    other = open_chat(beside=plain)
    other.page.goto(url)
    other.box.fill("/hang after 3")
    other.page.get_by_role("button", name="Send").click()
    expect(other.page.get_by_role("button", name="Stop")).to_be_visible()

    plain.box.fill("too early")
    plain.page.get_by_role("button", name="Send").click()
    kept = plain.page.get_by_label("What you wrote is still here")
    expect(kept).to_have_value("too early")
    other.page.get_by_role("button", name="Stop").click()
    expect(other.turns.last).to_have_attribute("data-state", "stopped")
    plain.page.get_by_role("button", name="Send again").click()
    expect(plain.page.locator(".prompt .text").last).to_have_text("too early")


def test_a_prompt_that_is_too_long_is_neither_cut_nor_sent(chat: Chat, plain: Chat, complaints: list[str]) -> None:
    asked: list[str] = []
    chat.begin("Hello")
    chat.see("done")
    chat.page.on("request", lambda request: asked.append(request.url))
    long = "x" * 100_001
    chat.say(long)
    expect(chat.box).to_have_value(long)
    assert chat.box.evaluate("node => node.validationMessage") == "Too long by 1."
    assert not [url for url in asked if url.endswith("/chat")]
    plain.begin("Hello")
    plain.box.fill(long)
    plain.page.get_by_role("button", name="Send").click()
    expect(plain.page.get_by_role("alert")).to_contain_text("100,000")
    expect(plain.page.get_by_label("What you wrote is still here")).to_have_value(long)


def test_an_error_page_of_a_proxy_is_told_and_takes_nothing(chat: Chat, complaints: list[str]) -> None:
    chat.begin("Hello")
    chat.see("done")
    chat.page.route("**/chat", lambda route: route.fulfill(status=413, body="<h1>Too large</h1>"))
    chat.say("a message")
    expect(chat.notice).to_contain_text("did not accept")
    expect(chat.box).to_have_value("a message")


def test_a_page_that_is_not_there_leads_back(chat: Chat, complaints: list[str]) -> None:
    chat.page.goto(f"{chat.server.url}/nowhere")
    expect(chat.page.get_by_role("heading", name="Not found")).to_be_visible()
    chat.page.get_by_role("link", name="Start a new chat").click()
    expect(chat.box).to_be_focused()


def test_a_closed_session_can_be_read_and_says_what_to_do_next(chat: Chat, complaints: list[str]) -> None:
    chat.begin("Hello")
    chat.see("done")
    chat.page.get_by_label("More about this session").click()
    chat.page.get_by_text("Close …").click()
    chat.page.get_by_role("button", name="Close for good").click()
    expect(chat.page.locator(".composer")).to_contain_text("This session is closed")
    chat.see("done")
    chat.page.get_by_role("button", name="Go on in a copy").last.click()
    expect(chat.box).to_be_focused()

"""Refusals: they say why, count down, and never take what was typed."""

import re
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Chat
from tests.web.conftest import GOVERNED
from tests.web.running import Server, a_server


def test_a_prompt_sent_while_a_reply_runs_stays_in_the_box(chat: Chat, complaints: list[str]) -> None:
    chat.begin("/hang after 3")
    chat.say("too early")
    expect(chat.notice).to_have_attribute("data-code", "session_busy")
    expect(chat.box).to_have_value("too early")
    chat.page.get_by_role("button", name="Stop", exact=True).click()
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
    expect(other.page.get_by_role("button", name="Stop", exact=True)).to_be_visible()

    plain.box.fill("too early")
    plain.page.get_by_role("button", name="Send").click()
    expect(plain.box).to_have_value("too early")
    expect(plain.notice).to_have_attribute("data-code", "session_busy")
    other.page.get_by_role("button", name="Stop", exact=True).click()
    expect(other.turns.last).to_have_attribute("data-state", "stopped")
    plain.page.get_by_role("button", name="Send").click()
    expect(plain.page.locator(".prompt .text").last).to_have_text("too early")


def test_a_prompt_that_is_too_long_is_neither_cut_nor_sent(chat: Chat, plain: Chat, complaints: list[str]) -> None:
    asked: list[str] = []
    chat.begin("Hello")
    chat.see("done")
    chat.page.on("request", lambda request: asked.append(request.url))
    long = "x" * 100_001
    chat.say(long)
    expect(chat.box).to_have_value(long)
    assert chat.box.evaluate("node => node.validationMessage") == "1 character over the 100,000 limit."
    assert not [url for url in asked if url.endswith("/chat")]
    plain.begin("Hello")
    plain.box.fill(long)
    plain.page.get_by_role("button", name="Send").click()
    expect(plain.page.get_by_role("alert")).to_contain_text("100,000")
    expect(plain.box).to_have_value(long)


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
    chat.page.get_by_role("button", name="Continue in a copy").last.click()
    expect(chat.box).to_be_focused()


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that takes two messages a minute, and one of whose providers is down."""
    with a_server(tmp_path_factory.mktemp("tight"), GOVERNED, TURNKEEPER_TRUSTED_PROXIES="127.0.0.1") as running:
        yield running


def test_a_refusal_leaves_the_page_and_the_text_and_offers_what_helps(
    open_chat: Callable[..., Chat], tight: Server
) -> None:
    chat = open_chat()
    chat.server, page = tight, chat.page
    chat.begin("one")
    chat.see("done")
    chat.say("two")
    chat.see("done", "done")
    page.evaluate("document.body.same = true")

    def refused(code: str, step: str) -> None:
        expect(chat.notice).to_have_attribute("data-code", code)
        expect(chat.notice.get_by_role("button", name=step)).to_be_visible()
        page.evaluate("document.querySelector('#notice').dataset.code = ''")
        chat.see("done", "done")
        assert page.evaluate("document.body.same")

    chat.turns.last.get_by_role("button", name="Retry", exact=True).click()
    refused("rate_limited", "Try again")
    page.get_by_role("button", name="Retry with…").click()
    page.get_by_role("button", name="Smart").click()
    expect(page.get_by_role("button", name="Smart")).to_be_hidden()
    refused("rate_limited", "Try again")
    chat.notice.get_by_role("button", name="Try again").click()
    refused("rate_limited", "Try again")
    chat.turns.first.hover()
    page.get_by_text("Edit", exact=True).first.click()
    field = page.get_by_label("The message to ask instead").first
    field.fill("another question")
    page.get_by_role("button", name="Ask this instead").first.click()
    expect(chat.notice).to_have_attribute("data-code", "rate_limited")
    expect(field).to_have_value("another question")
    page.get_by_text("Cancel", exact=True).first.click()
    # Three chats are all one may make here.
    for _ in range(2):
        chat.turns.first.hover()
        with page.expect_navigation():
            chat.turns.first.get_by_role("button", name="Fork").click()
    chat.turns.first.hover()
    chat.turns.first.get_by_role("button", name="Fork").click()
    expect(chat.notice).to_have_attribute("data-code", re.compile("rate_limited|session_quota"))
    chat.see("done")


@pytest.mark.parametrize("script", [True, False], ids=["with JavaScript", "without"])
def test_another_model_is_one_click_away_where_a_provider_is_down(
    open_chat: Callable[..., Chat], tight: Server, script: bool
) -> None:
    address = {"X-Forwarded-For": f"10.9.0.{2 + script}"}
    chat = open_chat(java_script_enabled=script, extra_http_headers=address)
    chat.server, page = tight, chat.page
    page.goto(tight.url)
    chat.box.fill("to somebody")
    page.get_by_label("Model").select_option("far")
    page.get_by_role("button", name="Send").click()
    expect(chat.notice).to_have_attribute("data-code", "model_unavailable")
    expect(chat.box).to_have_value("to somebody")
    expect(page.get_by_label("Model")).to_have_value("far")
    chat.notice.get_by_role("button", name="Send with smart").click()
    page.wait_for_url("**/session/*")
    expect(page.locator("[data-current-model]")).to_have_text("smart")
    expect(page.locator(".prompt .text")).to_have_text("to somebody")


def test_a_wrong_password_gives_the_name_back(plain: Chat) -> None:
    plain.page.goto(f"{plain.server.url}/login")
    plain.page.get_by_label("Name").fill("nobody")
    plain.page.get_by_label("Password").fill("wrong and wrong")
    plain.page.get_by_role("button", name="Sign in").click()
    expect(plain.page.get_by_role("alert")).to_be_visible()
    expect(plain.page.get_by_label("Name")).to_have_value("nobody")

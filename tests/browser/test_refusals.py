"""Refusals: they say why, count down, and never take what was typed."""

from collections.abc import Callable

from playwright.sync_api import expect

from tests.browser.conftest import Chat


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
    assert chat.box.evaluate("node => node.validationMessage") == "1 characters over the limit."
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


def test_a_wrong_password_gives_the_name_back(plain: Chat) -> None:
    plain.page.goto(f"{plain.server.url}/login")
    plain.page.get_by_label("Name").fill("nobody")
    plain.page.get_by_label("Password").fill("wrong and wrong")
    plain.page.get_by_role("button", name="Sign in").click()
    expect(plain.page.get_by_role("alert")).to_be_visible()
    expect(plain.page.get_by_label("Name")).to_have_value("nobody")

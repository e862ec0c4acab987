"""What the browser says is so: copied is copied, printed is all of it, typed and chosen is kept."""

import re
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Chat, long_session, sign_in
from tests.web.running import SETTINGS, Server, a_server

#: no name of this machine for a browser, so plain http is no secure context there; tests/servers.py maps it
LAN = "chat.test"
SELECTED = "() => getSelection().toString()"


@pytest.fixture(scope="module")
def lan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server under a name of the local network."""
    with a_server(tmp_path_factory.mktemp("lan"), SETTINGS, TURNKEEPER_ALLOWED_HOSTS=f"{LAN},127.0.0.1") as running:
        yield running


def paste(chat: Chat) -> str:
    """What the clipboard holds, by the keyboard."""
    chat.box.fill("")
    chat.box.press("Control+V")
    return chat.box.input_value()


def test_what_is_said_to_be_copied_is_copied_on_plain_http_too(
    open_chat: Callable[..., Chat], lan: Server, complaints: list[str]
) -> None:
    chat = open_chat()
    lan_url = lan.url.replace("127.0.0.1", LAN)
    page = chat.page
    page.goto(lan_url)
    assert page.evaluate("isSecureContext") is False and page.evaluate("navigator.clipboard") is None
    chat.box.fill("```python\nprint('a  b')\n```")
    page.get_by_role("button", name="Send").click()
    chat.see("done")
    status = page.get_by_role("status")
    for button, text in (
        (page.locator(".acts-line [data-copy]"), "```python\nprint('a  b')\n```"),
        (page.locator(".code .copy"), "print('a  b')\n"),
    ):
        button.click()
        expect(button).to_have_text(re.compile("Copied"))
        expect(status).to_have_text("Copied")
        expect(button).to_be_focused()
        assert paste(chat).rstrip("\n") == text.rstrip("\n")
        chat.box.fill("")
    # The whole transcript, from the menu.
    page.get_by_label("More about this session").click()
    page.get_by_role("button", name="Copy as Markdown").click()
    expect(status).to_have_text("Copied")
    page.keyboard.press("Escape")
    assert "print('a  b')" in paste(chat)


def test_what_cannot_be_copied_is_said_and_selected(chat: Chat) -> None:
    page = chat.page
    chat.begin("to be copied")
    chat.see("done")
    chat.box.fill("before")
    chat.box.press("Control+A")
    chat.box.press("Control+C")
    copy = page.locator(".acts-line [data-copy]")
    # Nobody there, no right to it, and a browser that allows no copying at all.
    page.context.set_offline(True)
    copy.click()
    expect(chat.notice).to_contain_text("Not copied. The server cannot be reached.")
    assert page.evaluate(SELECTED).strip() == "to be copied"
    page.context.set_offline(False)
    page.context.clear_cookies()
    copy.click()
    expect(chat.notice).to_contain_text("Not copied. It is no longer there, or no longer yours.")
    assert page.evaluate(SELECTED).strip() == "to be copied"
    expect(page.get_by_role("status")).to_contain_text("Not copied")
    # A proxy in front that wants another sign-in answers with a page of its own, or with something of its own as JSON.
    for kind, body in (("text/html", "<h1>Sign in</h1>"), ("application/json", '{"sign": "in"}'), ("", "Sign in")):
        headers = {"Content-Type": kind} if kind else {}
        page.route("**/chat/*", lambda route, _, headers=headers, body=body: route.fulfill(headers=headers, body=body))
        copy.click()
        expect(chat.notice).to_contain_text("Not copied. The server does not give the text.")
        page.unroute("**/chat/*")
        chat.notice.evaluate("one => one.replaceChildren()")
    expect(copy).to_have_text(re.compile("Copy"))
    assert paste(chat) == "before", "least of all the word undefined"


def test_a_browser_that_allows_no_copying_is_not_said_to_have_copied(chat: Chat, complaints: list[str]) -> None:
    chat.page.add_init_script(
        "Object.defineProperty(navigator, 'clipboard', {value: undefined}); document.execCommand = () => false"
    )
    chat.begin("```\nsome code\n```")
    chat.see("done")
    chat.page.locator(".code .copy").click()
    expect(chat.notice).to_contain_text("Not copied. Your browser does not allow it.")
    assert chat.page.evaluate(SELECTED).strip() == "some code"


def test_all_of_a_conversation_is_printed_and_no_controls(chat: Chat, complaints: list[str]) -> None:
    page = chat.page
    chat.begin("\n\n".join(f"Paragraph {number} of a text that is printed." for number in range(100)))
    chat.see("done")
    url = long_session(page, chat.server, 60)
    page.goto(url)
    expect(chat.turns).to_have_count(50)

    def pages() -> int:
        return len(re.findall(rb"/Type\s*/Page\b", page.pdf()))

    # What is on the page, and that not all of it is there.
    page.emulate_media(media="print")
    expect(page.get_by_text("The earlier messages are not on this page")).to_be_visible()
    for hidden in (".side", ".composer", ".acts-line", ".bar", ".picker", ".said-foot", ".earlier", "button"):
        assert not any(one.is_visible() for one in page.locator(hidden).all()), hidden
    expect(chat.turns.first).to_be_visible()
    assert page.evaluate("getComputedStyle(document.querySelector('.turn')).contentVisibility") == "visible"
    assert pages() > 50
    page.emulate_media(media="screen")

    page.get_by_label("More about this session").click()
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Print", exact=True).click()
    whole = Chat(opened.value, chat.server)
    expect(whole.turns).to_have_count(60)
    expect(whole.page.get_by_role("button", name="Print or save as PDF")).to_be_visible()
    shorter = pages()
    page = whole.page
    assert pages() > shorter
    page.emulate_media(media="print", color_scheme="dark")
    expect(page.get_by_role("button")).to_have_count(0)
    assert page.evaluate("getComputedStyle(document.body).colorScheme") == "light only"
    expect(page.get_by_text("Paragraph 99 of a text").last).to_be_visible()


MOVING = """() => [...document.querySelectorAll("*")].flatMap((one) => ["", "::before", "::after"].filter((part) => {
  const style = getComputedStyle(one, part);
  return style.animationName !== "none" || style.transitionDuration !== "0s";
}).map((part) => one.className + part))"""


def test_nothing_on_paper_is_still_on_its_way(open_chat: Callable[..., Chat], complaints: list[str]) -> None:
    """What begins to rise when the page is printed would be printed before it can be seen."""
    chat = open_chat(reduced_motion="no-preference")
    page = chat.page
    chat.begin("Hello")
    chat.see("done")
    url = long_session(page, chat.server, 60)
    for place in (url, f"{url}/turns?print=true", f"{chat.server.url}/session?done=saved"):
        page.emulate_media(media="screen")
        page.goto(place)
        assert page.evaluate(MOVING)
        page.emulate_media(media="print")
        assert page.evaluate(MOVING) == []


def test_what_is_typed_and_chosen_is_kept_until_it_is_sent(chat: Chat, complaints: list[str]) -> None:
    page = chat.page
    page.goto(chat.server.url)
    model = page.get_by_label("Model")
    chat.box.fill("half a thought")
    model.select_option("smart")

    def both() -> None:
        expect(chat.box).to_have_value("half a thought")
        expect(model).to_have_value("smart")

    page.reload()
    both()
    page.get_by_role("link", name="Limits").click()
    page.go_back()
    both()
    page.get_by_role("link", name="Limits").click()
    page.get_by_role("link", name="New chat", exact=True).click()
    both()
    page.get_by_role("button", name="Send").click()
    chat.see("done")
    expect(page.locator("[data-current-model]")).to_have_text("smart")
    url = page.url
    page.goto(chat.server.url)
    expect(chat.box).to_have_value("")
    expect(model).to_have_value("")

    # In a session: a title that is typed, a model that is chosen, an edit that is open.
    page.goto(url)
    page.get_by_label("More about this session").click()
    page.get_by_label("Title").fill("A title to be")
    page.keyboard.press("Escape")
    page.locator("button.model").click()
    page.get_by_role("radio", name="Fast").check()
    page.keyboard.press("Escape")
    chat.turns.last.hover()
    page.get_by_text("Edit", exact=True).click()
    edit = page.get_by_label("The message to ask instead")
    edit.fill("another thought")
    page.reload()
    expect(edit).to_be_visible()
    expect(edit).to_have_value("another thought")
    page.get_by_label("More about this session").click()
    expect(page.get_by_label("Title")).to_have_value("A title to be")
    page.get_by_role("button", name="Rename").click()
    expect(page.get_by_role("heading", name="A title to be")).to_be_visible()
    page.locator("button.model").click()
    expect(page.get_by_role("radio", name="Smart")).to_be_checked()
    page.keyboard.press("Escape")
    # An edit that is taken back stays so.
    page.get_by_text("Cancel", exact=True).click()
    page.reload()
    expect(edit).to_be_hidden()
    expect(chat.box).to_have_value("")


def test_what_an_account_typed_waits_for_it_and_is_shown_to_nobody_else(chat: Chat, complaints: list[str]) -> None:
    """A login that ended without a word, on a machine that several use."""
    chat.server.people("typist", "next one")
    page = chat.page

    def seen_by(name: str, text: str) -> None:
        sign_in(chat, name)
        page.goto(chat.server.url)
        expect(chat.box).to_have_value(text)

    page.goto(chat.server.url)
    chat.box.fill("before I sign in")
    seen_by("typist", "before I sign in")
    chat.box.fill("of the typist")
    page.context.clear_cookies()
    page.reload()
    expect(chat.box).to_have_value("before I sign in")
    chat.box.fill("")
    seen_by("next one", "")
    page.context.clear_cookies()
    seen_by("typist", "of the typist")
    page.get_by_role("button", name="Sign out").click()
    page.goto(chat.server.url)
    expect(chat.box).to_have_value("")


@pytest.mark.parametrize("runs_scripts", [True, False])
def test_nobody_goes_back_to_what_another_account_typed(open_chat: Callable[..., Chat], *, runs_scripts: bool) -> None:
    """Browsers bring back by themselves what stood in a field of the page that one goes back to."""
    chat = open_chat(java_script_enabled=runs_scripts)
    page, url = chat.page, f"{chat.server.url}/"
    leaving, coming = (f"{name}-{'with' if runs_scripts else 'without'}" for name in ("leaving", "coming"))
    chat.server.people(leaving, coming)
    sign_in(chat, leaving)
    page.goto(url)
    chat.box.fill("a secret of whoever leaves")
    page.goto(f"{url}account")
    page.go_back()
    expect(chat.box).to_have_value("a secret of whoever leaves")
    typed_at = page.evaluate("history.length") - 1 if runs_scripts else 0
    page.goto(f"{url}account")
    page.get_by_role("button", name="Sign out", exact=True).click()
    page.wait_for_url(url)
    if runs_scripts:
        sign_in(chat, coming)
        with page.expect_navigation():
            page.evaluate("at => history.go(at - history.length)", typed_at)
        assert page.url == url
    else:
        for _ in range(2):  # the account's page, and the one with the text
            page.go_back()
    expect(chat.box).to_have_value("")


def test_on_a_touch_screen_enter_is_a_new_line_and_the_button_sends(
    open_chat: Callable[..., Chat], complaints: list[str]
) -> None:
    phone = open_chat(has_touch=True, is_mobile=True, viewport={"width": 390, "height": 844})
    phone.begin("one")
    phone.see("done")
    phone.box.tap()
    phone.page.keyboard.type("first")
    phone.page.keyboard.press("Enter")
    phone.page.keyboard.type("second")
    expect(phone.box).to_have_value("first\nsecond")
    expect(phone.box).to_have_attribute("enterkeyhint", "enter")
    phone.page.get_by_role("button", name="Send").tap()
    phone.see("done", "done")
    expect(phone.page.locator(".prompt .text").last).to_have_text("first\nsecond")
    # A keyboard that is plugged in sends too.
    phone.box.fill("third")
    phone.box.press("Control+Enter")
    phone.see("done", "done", "done")

"""Chatting: sending, streaming, stopping, other tabs, lost connections."""

import re
from collections.abc import Callable

from playwright.sync_api import Route, expect

from tests.browser.conftest import Chat

ODD = (
    "two  spaces,\ttab\n\n\nthree breaks\n    four spaces <script>document.title = 'owned'</script> & &amp; &#60;"
    ' </div></hx-partial><hx-partial hx-target="#main"> data: no\n\nevent: gone\n id: 1'
    "\n\n- [x] **one**\n\n| a | b |\n|---|--:|\n| `1` | 2 |\n\n```js\nlet x = '<b>'\n```\n\n$$\nx^2\n$$\n\n"
    " 👩‍👩‍👧 é e\u0301 \u202eright\u202c \u2028 \u2029 {{ 7 * 7 }} " + "x" * 2000 + " last"
)


def test_a_suggested_question_is_answered_by_the_guide(chat: Chat, complaints: list[str]) -> None:
    chat.page.goto(chat.server.url)
    chat.page.get_by_role("button", name="reach a limit").click()
    chat.see("done")
    expect(chat.page.locator(".reply-model")).to_have_text("guide")


def test_streamed_text_is_the_text_a_reload_shows(chat: Chat, complaints: list[str]) -> None:
    def html() -> str:
        """What is shown of the reply, whether it is still written or not."""
        made = chat.replies.last.evaluate("node => node.innerHTML")
        return re.sub(r'<div class="tail" id="[^"]+">(.*)</div>\s*$', r"\1", made, flags=re.S).strip()

    chat.begin("Hello")
    chat.see("done")
    chat.say(f"/hang after 999 {ODD}")
    chat.see("done", "running")
    expect(chat.replies.last).to_contain_text(" last")
    streamed = html()
    assert "<table>" in streamed and "<math" in streamed
    chat.page.reload()
    assert html() == streamed
    chat.page.get_by_role("button", name="Stop", exact=True).click()
    chat.see("done", "stopped")
    assert html() == streamed
    chat.page.reload()
    assert html() == streamed
    assert "owned" not in chat.page.title()


def test_enter_in_an_empty_box_sends_nothing(chat: Chat, complaints: list[str]) -> None:
    chat.begin("Hello")
    chat.see("done")
    chat.say("   ")
    chat.say("Something")
    chat.see("done", "done")
    expect(chat.replies.last).to_have_text("Something")


def test_escape_closes_a_menu_first_and_then_stops_the_reply(chat: Chat, complaints: list[str]) -> None:
    chat.begin("/hang after 3")
    expect(chat.replies).to_have_text("tok0 tok1 tok2")
    more = chat.page.get_by_label("More about this session")
    more.click()
    expect(chat.page.get_by_label("Title")).to_be_visible()
    chat.page.keyboard.press("Escape")
    expect(chat.page.get_by_label("Title")).to_be_hidden()
    expect(more).to_be_focused()
    chat.see("running")
    chat.page.keyboard.press("Escape")
    chat.see("stopped")


def test_a_reply_that_fails_says_why_and_keeps_its_text(chat: Chat, complaints: list[str]) -> None:
    chat.begin("Hello")
    chat.see("done")
    chat.say("/error 429 after 2")
    chat.see("done", "failed")
    expect(chat.replies.last).to_have_text("tok0 tok1")
    expect(chat.page.locator(".fault")).to_contain_text("too many requests")


def test_a_second_tab_shows_the_same_turns_once(
    chat: Chat, open_chat: Callable[..., Chat], complaints: list[str]
) -> None:
    url = chat.begin("Hello")
    chat.see("done")
    other = open_chat(beside=chat)
    other.page.goto(url)
    chat.say("/tokens 20 /delay 20ms")
    for one in (chat, other):
        one.see("done", "done")
        expect(one.replies.last).to_have_text(" ".join(f"tok{number}" for number in range(20)))
    other.say("and back")
    for one in (chat, other):
        one.see("done", "done", "done")
        expect(one.replies.last).to_have_text("and back")


def test_what_is_typed_while_a_reply_runs_stays_and_can_be_sent_after_it(chat: Chat, complaints: list[str]) -> None:
    chat.begin("/tokens 20 /delay 20ms")
    chat.box.fill("next")
    chat.see("done")
    expect(chat.box).to_have_value("next")
    expect(chat.box).to_be_focused()
    chat.page.get_by_role("button", name="Send").click()
    chat.see("done", "done")


def test_a_draft_is_kept_on_the_server_until_it_is_sent(
    chat: Chat, open_chat: Callable[..., Chat], complaints: list[str]
) -> None:
    url = chat.begin("Hello")
    chat.see("done")
    with chat.page.expect_response("**/draft") as answer:
        chat.box.press_sequentially("half a thought")
    assert answer.value.status == 204
    expect(chat.box).to_have_value("half a thought")
    other = open_chat(storage_state=chat.page.context.storage_state())
    other.page.goto(url)
    expect(other.box).to_have_value("half a thought")
    chat.box.press("Enter")
    chat.see("done", "done")
    third = open_chat(storage_state=chat.page.context.storage_state())
    third.page.goto(url)
    expect(third.box).to_have_value("")


def test_enter_belongs_to_the_input_method_while_a_word_is_composed(chat: Chat, complaints: list[str]) -> None:
    chat.begin("Hello")
    chat.see("done")
    chat.box.fill("にほん")
    enter = """(field, more) => !field.dispatchEvent(
        new KeyboardEvent("keydown", {key: "Enter", bubbles: true, cancelable: true, ...more}))"""
    for composing in ({"isComposing": True}, {"keyCode": 229}):
        assert not chat.box.evaluate(enter, composing)
    chat.see("done")
    assert chat.box.evaluate(enter, {})
    chat.see("done", "done")


def test_the_box_grows_with_what_is_typed_up_to_a_part_of_the_window(chat: Chat, complaints: list[str]) -> None:
    chat.begin("Hello")
    chat.see("done")

    def height() -> float:
        box = chat.box.bounding_box()
        assert box is not None
        return box["height"]

    one = height()
    chat.box.fill("\n".join("abcd"))
    assert height() > 2 * one
    chat.box.fill("\n".join("line" for _ in range(200)))
    assert height() < chat.page.evaluate("innerHeight") * 0.6
    expect(chat.page.get_by_role("button", name="Send")).to_be_in_viewport()


def test_a_message_on_its_way_is_no_draft(chat: Chat, open_chat: Callable[..., Chat], complaints: list[str]) -> None:
    url = chat.begin("Hello")
    chat.see("done")
    held: list[Route] = []
    drafts: list[str] = []
    chat.page.on("request", lambda request: drafts.append(request.url) if request.url.endswith("/draft") else None)
    chat.page.route("**/chat", lambda route: held.append(route))
    chat.say("on its way")
    # Longer than a draft waits.
    chat.page.wait_for_timeout(1000)
    assert held and not drafts
    held[0].continue_()
    chat.see("done", "done")
    expect(chat.box).to_have_value("")
    other = open_chat(storage_state=chat.page.context.storage_state())
    other.page.goto(url)
    other.see("done", "done")
    expect(other.box).to_have_value("")


def test_a_draft_that_was_on_its_way_when_its_message_was_sent_does_not_come_back(
    chat: Chat, open_chat: Callable[..., Chat], complaints: list[str]
) -> None:
    url = chat.begin("Hello")
    chat.see("done")
    held: list[Route] = []
    chat.page.route("**/draft", lambda route: held.append(route))
    with chat.page.expect_request("**/draft"):
        chat.box.press_sequentially("half a thought")
    chat.say("a whole thought")
    chat.see("done", "done")
    with chat.page.expect_response("**/draft") as late:
        held[0].continue_()
    assert late.value.status == 204
    other = open_chat(storage_state=chat.page.context.storage_state())
    other.page.goto(url)
    other.see("done", "done")
    expect(other.box).to_have_value("")


def test_code_and_replies_are_copied_as_they_were_written(chat: Chat, complaints: list[str]) -> None:
    chat.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    chat.begin("Hello")
    chat.see("done")
    chat.say("**two**\n```py\nx = '<b>'\n```")
    chat.see("done", "done")
    chat.page.locator(".code .copy").click()
    expect(chat.page.locator(".code .copy")).to_have_text("Copied")
    assert chat.page.evaluate("navigator.clipboard.readText()") == "x = '<b>'\n"
    whole = chat.turns.last.locator(".foot [data-copy]")
    whole.click()
    expect(whole).to_have_text("Copied")
    assert chat.page.evaluate("navigator.clipboard.readText()") == "**two**\n```py\nx = '<b>'\n```"
    chat.page.get_by_label("More about this session").click()
    conversation = chat.page.locator(".head [data-copy]")
    conversation.click()
    expect(conversation).to_have_text("Copied")
    text = chat.page.evaluate("navigator.clipboard.readText()")
    assert text == chat.page.request.get(f"{chat.page.url}/export?format=md").text()
    assert "> **two**\n> ```py\n" in text
    expect(conversation).to_have_text("Copy as Markdown")


def test_reasoning_is_open_while_it_is_written_and_folds_once_the_reply_begins(
    chat: Chat, complaints: list[str]
) -> None:
    page = chat.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    fold, window = page.locator(".thoughts"), page.locator(".window")
    chat.begin("/hang\n/reason Let **me** see")
    expect(fold.locator("summary")).to_have_text("Reasoning …")
    expect(window.locator("strong")).to_have_text("me")
    expect(fold).to_have_attribute("open", "")
    for live in page.locator("[aria-live]:not([aria-live='off']), [role='status'], [role='alert']").all():
        assert "see" not in live.inner_text()
    # What the reader has folded stays so, also at the end.
    fold.locator("summary").press("Enter")
    expect(fold).not_to_have_attribute("open", "")
    page.keyboard.press("Escape")
    chat.see("stopped")
    expect(fold.locator("summary")).to_have_text(re.compile("Reasoned for"))
    expect(fold).not_to_have_attribute("open", "")
    # It folds by itself once the reply begins, and stays open where it was opened again.
    chat.say("/hang after 99\n/reason Now **this**\n/text It is forty-two")
    expect(chat.replies.last).to_contain_text("forty-two")
    expect(fold.last.locator("summary")).to_have_text(re.compile("Reasoned for"))
    expect(fold.last).not_to_have_attribute("open", "")
    fold.last.locator("summary").click()
    expect(window.last).to_be_visible()
    page.keyboard.press("Escape")
    chat.see("stopped", "stopped")
    expect(fold.last).to_have_attribute("open", "")
    # What was streamed is what a reload shows; a reply is copied without it.
    streamed = [one.inner_html().strip() for one in window.all()]
    page.reload()
    assert [one.inner_html().strip() for one in window.all()] == streamed
    expect(fold.last).not_to_have_attribute("open", "")
    chat.turns.last.locator(".foot [data-copy]").click()
    expect(chat.turns.last.locator(".foot [data-copy]")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "It is forty-two"


def test_a_reply_tells_which_model_wrote_it_and_why_without_javascript(plain: Chat) -> None:
    plain.begin("/reason Let me see\n/text It is forty-two", model="fast")
    plain.see("done")
    facts = plain.turns.last.locator(".facts")
    expect(facts).not_to_be_visible()
    plain.turns.last.locator(".facts-line").click()
    expect(facts).to_contain_text("fast")
    expect(facts).to_contain_text("Asked for with this message.")
    expect(facts).to_contain_text("out, with the reasoning")
    expect(facts).to_contain_text("First text")
    plain.page.keyboard.press("Escape")
    expect(facts).not_to_be_visible()
    fold = plain.turns.last.locator(".thoughts")
    fold.locator("summary").click()
    expect(fold.locator(".window")).to_have_text("Let me see")


def test_a_reload_in_the_middle_shows_everything_once_and_goes_on(chat: Chat, complaints: list[str]) -> None:
    whole = " ".join(f"tok{number}" for number in range(40))
    chat.begin("/tokens 40 /delay 25ms")
    expect(chat.replies).to_contain_text("tok3")
    chat.page.reload()
    expect(chat.replies).to_contain_text("tok12")
    assert whole.startswith(chat.replies.inner_text().strip())
    chat.see("done")
    expect(chat.replies).to_have_text(whole)


def test_a_lost_connection_is_told_and_the_reply_goes_on_after_it(chat: Chat) -> None:
    chat.begin("/tokens 60 /delay 25ms")
    expect(chat.replies).to_contain_text("tok3")
    chat.page.context.set_offline(True)
    chat.say("typed without a connection")
    expect(chat.notice).to_contain_text("cannot be reached")
    expect(chat.box).to_have_value("typed without a connection")
    chat.page.context.set_offline(False)
    chat.see("done")
    expect(chat.replies).to_have_text(" ".join(f"tok{number}" for number in range(60)))
    expect(chat.box).to_have_value("typed without a connection")
    expect(chat.notice).to_be_empty()


def test_the_page_stays_at_the_end_while_text_grows_and_where_the_reader_is_otherwise(chat: Chat) -> None:
    chat.begin("/tokens 1500")
    chat.see("done")
    scroller = chat.page.locator(".scroller")
    chat.say("/tokens 1500")
    chat.see("done", "done")
    assert scroller.evaluate("node => node.scrollTop") == 0
    expect(chat.page.locator(".foot").last).to_be_in_viewport()
    chat.say("/tokens 1000 /delay 20ms")
    chat.see("done", "done", "running")
    expect(chat.replies.last).to_contain_text("tok3")
    scroller.evaluate("node => { node.scrollTop = -500 }")
    before = chat.turns.nth(1).bounding_box()
    written = int(chat.replies.last.inner_text().split()[-1].removeprefix("tok"))
    expect(chat.replies.last).to_contain_text(f"tok{written + 30}")
    chat.page.get_by_role("button", name="Stop", exact=True).click()
    chat.see("done", "done", "stopped")
    after = chat.turns.nth(1).bounding_box()
    assert before is not None and after is not None
    assert abs(before["y"] - after["y"]) < 2

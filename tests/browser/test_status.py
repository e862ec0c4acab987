"""What happens is heard in one place, which is there from the beginning; text that grows or counts down is not."""

from collections.abc import Callable

import httpx
from playwright.sync_api import Route, expect

from tests.browser.conftest import Chat

#: keeps what is put into the one place from now on, and with which it was there before
LISTEN = """() => {
    const place = document.querySelector("[role=status]");
    window.heard = [];
    new MutationObserver(() => place.isConnected && window.heard.push(place.textContent.trim()))
        .observe(place, {childList: true, characterData: true, subtree: true});
}"""


def test_what_happens_is_heard_once(chat: Chat, admin_token: str, complaints: list[str]) -> None:
    page = chat.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    chat.begin("Another one")
    url = chat.begin("Hello")
    chat.see("done")
    page.reload()
    page.evaluate(LISTEN)

    def hears(*texts: str) -> None:
        expect(page.get_by_role("status")).to_contain_text(texts[-1])
        assert page.evaluate("heard.splice(0)") == list(texts)

    chat.say("/tokens 40 /delay 10ms")
    chat.see("done", "done")
    hears("fast is writing.", "The reply has ended.")
    chat.turns.last.get_by_role("button", name="Copy").click()
    hears("Copied")
    # The live stream tells of a switch before the answer to it has come.
    order, held = {"session_id": url.rsplit("/", 1)[1], "model": "smart"}, list[Route]()
    page.route("**/models/switch", lambda route: held.append(route))
    page.locator("button.model").click()
    page.locator(".picker [value=smart]").check()
    page.get_by_role("button", name="Switch", exact=True).click()
    assert page.context.request.post(f"{chat.server.url}/models/switch", data=order).ok
    expect(page.locator("[data-current-model]")).to_have_text("smart")
    held[0].continue_()
    hears("It already uses smart.")
    order |= {"model": "fast", "reason": "a test"}
    headers = {"Authorization": f"Bearer {admin_token}"}
    httpx.post(f"{chat.server.url}/models/switch", json=order, headers=headers).raise_for_status()
    hears("Model: fast. Chosen by ada: a test.")
    chat.say("/hang after 3")
    chat.see("done", "done", "running")
    hears("fast is writing.")
    chat.say("too early")
    hears("Not at the moment. A reply is still being written in this session.")
    page.get_by_role("button", name="Stop", exact=True).click()
    chat.see("done", "done", "stopped")
    hears("The reply has ended: stopped.")
    page.locator(".side .row", has_text="Another one").hover()
    row = page.locator(".side .row").nth(1)
    row.locator(".dots").click()
    row.get_by_role("button", name="Delete").click()
    expect(row.get_by_role("button", name="Undo")).to_be_focused()
    hears("Deleted. Undo stands in its place.")
    row.get_by_role("button", name="Undo").click()
    hears("Back in the list.")


def test_a_connection_that_is_lost_and_comes_back_is_heard(chat: Chat) -> None:
    chat.begin("Hello")
    chat.see("done")
    chat.page.route("**/events*", lambda route: route.abort())
    chat.page.reload()
    status = chat.page.get_by_role("status")
    expect(status).to_contain_text("The connection is lost.")
    chat.page.unroute("**/events*")
    expect(status).to_have_text("The connection is back.")


def test_what_was_deleted_elsewhere_is_heard_in_the_list(chat: Chat, open_chat: Callable[..., Chat]) -> None:
    chat.begin("Hello")
    chat.see("done")
    chat.page.get_by_label("More about this session").click()
    chat.page.get_by_role("button", name="Delete").last.click()
    expect(chat.page.get_by_role("status")).to_have_text("Deleted “Hello”.")

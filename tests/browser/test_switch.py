"""Switching the model: by the owner, and by an admin while the owner looks on."""

from collections.abc import Callable

from playwright.sync_api import expect

from tests.browser.conftest import Chat, sign_in
from tests.web.wire import SOON


def test_a_switch_by_an_admin_shows_on_the_owners_open_page_within_a_second(
    chat: Chat, open_chat: Callable[..., Chat], admin_token: str, complaints: list[str]
) -> None:
    url = chat.begin("Hello")
    chat.see("done")
    chat.box.fill("a draft that stays")
    admin = open_chat()
    sign_in(admin, "ada")
    admin.page.goto(f"{admin.server.url}/admin")
    row, order = admin.page.locator(f"#desk-{url.rsplit('/', 1)[1]}"), admin.page.locator("#act")
    row.get_by_role("checkbox").check()
    order.get_by_label("Reason").fill("budget <b>until</b> May")
    order.get_by_role("button", name="Switch model …").click()
    order.get_by_label("New model").select_option("smart")
    order.get_by_role("button", name="Switch model", exact=True).click()
    expect(chat.page.locator("[data-current-model]")).to_have_text("smart", timeout=SOON * 1000)
    expect(chat.page.locator("[data-model-reason]")).to_have_text("Chosen by ada: budget <b>until</b> May.")
    expect(chat.page.locator(".by-other")).to_be_visible()
    expect(chat.page.get_by_role("status").filter(has_text="Model: smart. Chosen by ada")).to_be_attached()
    expect(chat.box).to_have_value("a draft that stays")
    expect(chat.box).to_be_focused()
    expect(admin.notice).to_contain_text("1 of 1 switched.")
    expect(row).to_contain_text("Chosen by ada: budget")
    expect(row.get_by_role("checkbox")).not_to_be_checked()
    # A row that changes while it is chosen stays so.
    row.get_by_role("checkbox").check()
    chat.box.press("Enter")
    expect(row.locator("[data-label=Turns]")).to_have_text("2")
    expect(row.get_by_role("checkbox")).to_be_checked()


def test_a_lock_says_who_and_why_and_offers_nothing_that_is_refused(
    chat: Chat, open_chat: Callable[..., Chat], admin_token: str, complaints: list[str]
) -> None:
    url = chat.begin("Hello")
    chat.see("done")
    expect(chat.page.get_by_role("button", name="Retry with…")).to_be_visible()
    script = {"Authorization": f"Bearer {admin_token}", "Accept": "application/json"}
    order = {"session_id": url.rsplit("/", 1)[1], "model": "fast", "reason": "a <b>budget</b>", "lock": True}
    admin = chat.page.context.request
    assert admin.post(f"{chat.server.url}/models/switch", data=order, headers=script).ok
    lock = chat.page.locator("[data-model-lock]")
    expect(lock).to_have_text("Locked by ada: a <b>budget</b>")
    expect(chat.page.get_by_role("button", name="Retry with…")).to_be_hidden()
    expect(chat.page.locator("button.model")).to_have_count(0)
    chat.page.reload()
    expect(lock).to_have_text("Locked by ada: a <b>budget</b>")
    expect(chat.page.get_by_role("button", name="Retry with…")).to_have_count(0)
    # The page of before, in another tab: the refusal offers what is left.
    turn = admin.get(f"{url}/turns", headers={"Accept": "application/json"}).json()["turns"][0]["id"]
    told = admin.post(f"{chat.server.url}/chat/{turn}/retry", form={"model": "smart"}, headers={"HX-Request": "true"})
    assert told.status == 403 and "Retry without switching" in told.text()


def test_a_switch_while_a_reply_runs_waits_or_stops_it(chat: Chat, complaints: list[str]) -> None:
    chat.begin("/hang after 3")
    expect(chat.replies).to_have_text("tok0 tok1 tok2")
    place = chat.page.get_by_role("status").element_handle()
    chat.page.locator("button.model").click()
    chat.page.locator(".picker [value=smart]").check()
    chat.page.get_by_role("button", name="Switch", exact=True).click()
    expect(chat.notice).to_contain_text("smart from the next reply on.")
    # A place that was there before is listened to; one that comes with its text may be missed.
    assert place.evaluate("node => node.isConnected && node.textContent") == "smart from the next reply on."
    chat.see("running")
    chat.page.locator("button.model").click()
    chat.page.locator(".picker [value=fast]").check()
    chat.page.get_by_label("stop this reply").check()
    chat.page.get_by_role("button", name="Switch", exact=True).click()
    chat.see("stopped")
    expect(chat.page.locator("[data-current-model]")).to_have_text("fast")


def test_an_admin_steers_a_session_and_does_not_read_it(
    chat: Chat, open_chat: Callable[..., Chat], admin_token: str
) -> None:
    url = chat.begin("a secret of the owner's")
    chat.see("done")
    admin = open_chat()
    sign_in(admin, "ada")
    admin.page.goto(url)
    expect(admin.page.locator(".log")).to_contain_text("its text is not shown to you")
    expect(admin.turns).to_have_count(0)
    expect(admin.box).to_have_count(0)
    admin.page.locator("button.model").click()
    admin.page.locator(".picker [value=smart]").check()
    admin.page.locator(".picker").get_by_label("Reason, shown").fill("test")
    admin.page.get_by_role("button", name="Switch", exact=True).click()
    expect(chat.page.locator("[data-model-reason]")).to_have_text("Chosen by ada: test.")

"""The admin's pages: what cannot be undone asks first, what was done is seen, and one stays where one is."""

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import Chat, sign_in
from tests.web.running import SETTINGS, Server, a_server
from tests.web.wire import JSON, begin, create

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def ruled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose rules these tests change."""
    with a_server(tmp_path_factory.mktemp("ruled"), SETTINGS) as running:
        running.people("ada:admin", "ann")
        yield running


@pytest.fixture
def admin(browser: Browser, ruled: Server) -> Iterator[Open]:
    """Open a page as an admin."""
    contexts = []

    def open_one(path: str, **options: object) -> Page:
        context = browser.new_context(**options)  # type: ignore[arg-type]
        contexts.append(context)
        context.set_default_timeout(60_000)
        page = context.new_page()
        sign_in(Chat(page, ruled), "ada")
        page.goto(ruled.url + path)
        return page

    yield open_one
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scripted", [True, False], ids=["javascript", "plain"])
def test_what_cannot_be_undone_asks_first_and_wants_a_reason(admin: Open, ruled: Server, scripted: bool) -> None:
    with ruled.guest(Accept=JSON) as guest:
        ids = [create(guest, title=f"Plan {number}")["id"] for number in range(3)]
        page = admin("/admin", java_script_enabled=scripted)
        order = page.locator("#act")
        expect(order).to_be_hidden()
        for id in ids[:2]:
            page.locator(f"#desk-{id}").get_by_role("checkbox").check()
        sure = order.get_by_role("button", name="Close for good")
        expect(sure).to_be_hidden()
        order.get_by_role("button", name="Close …").click()
        expect(order.locator("#act-close")).to_contain_text("cannot be undone")
        sure.click()
        # Without a reason nothing is sent, and the field that misses it has the keyboard.
        expect(order.get_by_label("Reason")).to_be_focused()
        assert guest.get(f"/session/{ids[0]}").json()["state"] == "active"
        order.get_by_label("Reason").fill("spring cleaning")
        if not sure.is_visible():
            order.get_by_role("button", name="Close …").click()
        sure.click()
        expect(page.get_by_text("2 of 2 done.").first).to_be_visible()
        if scripted:
            expect(page.locator("#act-close")).to_be_hidden()
            expect(page.locator(f"#desk-{ids[0]}")).to_contain_text("closed")
        for id, state in zip(ids, ("closed", "closed", "active"), strict=True):
            assert guest.get(f"/session/{id}").json()["state"] == state
        told = guest.get(f"/session/{ids[0]}", headers={"Accept": "text/html"}).text
        assert "Closed by ada" in told and "<q>spring cleaning</q>" in told
        # A deed that takes nothing from anybody needs neither.
        page.goto(f"{ruled.url}/admin")
        page.locator(f"#desk-{ids[2]}").get_by_role("checkbox").check()
        order.get_by_role("button", name="Extend").click()
        expect(page.get_by_text("1 of 1 done.").first).to_be_visible()


def test_a_reply_is_stopped_and_a_session_deleted_by_an_admin_and_the_owner_is_told(
    admin: Open, ruled: Server, browser: Browser
) -> None:
    with ruled.guest(Accept=JSON) as guest:
        turn = begin(guest, "/hang after 3")
        id = turn["session_id"]
        page = admin("/admin")
        page.locator(f"#desk-{id}").get_by_role("checkbox").check()
        page.get_by_role("button", name="Stop replies …").click()
        page.get_by_role("button", name="Stop the replies").click()
        expect(page.locator("#notice")).to_contain_text("1 of 1 done.")
        assert guest.get(f"/chat/{turn['id']}").json()["state"] == "stopped"
        page.goto(f"{ruled.url}/session/{id}")
        page.get_by_label("More about this session").click()
        page.get_by_text("Delete …").click()
        page.get_by_role("button", name="Delete it").click()
        expect(page.locator("form[action$='/delete'] [name=reason]")).to_be_focused()
        page.locator("form[action$='/delete'] [name=reason]").fill("asked for by mail")
        page.get_by_role("button", name="Delete it").click()
        page.wait_for_url("**/admin*")
        context = browser.new_context()
        for name, value in guest.cookies.items():
            context.add_cookies([{"name": name, "value": value, "url": ruled.url}])
        theirs = context.new_page()
        theirs.goto(f"{ruled.url}/session?show=deleted")
        expect(theirs.locator(f"#row-{id}")).to_contain_text("Deleted by ada")
        expect(theirs.locator(f"#row-{id}")).to_contain_text("asked for by mail")
        theirs.get_by_role("button", name="Delete forever").click()
        expect(theirs.locator(f"#row-{id}-erase")).to_contain_text("Nobody can bring it back")
        theirs.get_by_role("button", name="Delete it forever").click()
        expect(theirs.locator(f"#row-{id}")).to_contain_text("Deleted")
        context.close()
        assert guest.get("/session?show=deleted").json()["sessions"] == []

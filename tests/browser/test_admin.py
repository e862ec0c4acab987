"""The admin's pages: what cannot be undone asks first, what was done is seen, and one stays where one is."""

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.browser.conftest import PASSWORD, Chat, sign_in
from tests.servers import new_context
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
        context = new_context(browser, **options)
        contexts.append(context)
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
        expect(page.get_by_text("2 of 2 closed.").first).to_be_visible()
        if scripted:
            expect(page.locator("#act-close")).to_be_hidden()
            # The next order begins anew, and the keyboard is where the outcome is told.
            expect(page.get_by_role("checkbox", checked=True)).to_have_count(0)
            expect(order.locator("[name=reason]")).to_have_value("")
            expect(page.locator("#notice")).to_be_focused()
            expect(page.locator(f"#desk-{ids[0]}")).to_contain_text("closed")
        for id, state in zip(ids, ("closed", "closed", "active"), strict=True):
            assert guest.get(f"/session/{id}").json()["state"] == state
        told = guest.get(f"/session/{ids[0]}", headers={"Accept": "text/html"}).text
        assert "Closed by ada" in told and "<q>spring cleaning</q>" in told
        # A deed that takes nothing from anybody needs neither.
        page.goto(f"{ruled.url}/admin")
        page.locator(f"#desk-{ids[2]}").get_by_role("checkbox").check()
        order.get_by_role("button", name="Extend").click()
        expect(page.get_by_text("1 of 1 extended.").first).to_be_visible()


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
        expect(page.locator("#notice")).to_contain_text("1 of 1 stopped.")
        assert guest.get(f"/chat/{turn['id']}").json()["state"] == "stopped"
        context = new_context(browser)
        for name, value in guest.cookies.items():
            context.add_cookies([{"name": name, "value": value, "url": ruled.url}])
        theirs = context.new_page()
        theirs.goto(f"{ruled.url}/session/{id}")
        expect(theirs.get_by_label("Your message")).to_be_visible()
        page.goto(f"{ruled.url}/session/{id}")
        page.get_by_label("More about this session").click()
        page.get_by_text("Delete …").click()
        page.get_by_role("button", name="Delete it").click()
        expect(page.locator("form[action$='/delete'] [name=reason]")).to_be_focused()
        page.locator("form[action$='/delete'] [name=reason]").fill("asked for by mail")
        page.get_by_role("button", name="Delete it").click()
        page.wait_for_url("**/admin*")
        expect(page.locator("#notice")).to_contain_text("Chat deleted. Its owner sees your name and your reason.")
        expect(theirs.locator("#notice")).to_contain_text(
            "ada deleted this chat, because: “asked for by mail”. You can"
        )
        expect(theirs.get_by_role("status")).to_contain_text("asked for by mail")
        theirs.locator("#notice").get_by_role("link", name="Recently deleted").click()
        expect(theirs.locator(f"#row-{id}")).to_contain_text("Deleted by ada")
        expect(theirs.locator(f"#row-{id}")).to_contain_text("asked for by mail")
        theirs.get_by_role("button", name="Delete forever").click()
        expect(theirs.locator(f"#row-{id}-erase")).to_contain_text("Nobody can bring it back")
        theirs.get_by_role("button", name="Delete it forever").click()
        expect(theirs.locator(f"#row-{id}")).to_contain_text("Deleted for good")
        context.close()
        assert guest.get("/session?show=deleted").json()["sessions"] == []


def test_a_change_is_seen_where_it_was_made_and_one_stays_there(admin: Open, ruled: Server) -> None:
    page = admin("/admin/groups")
    loads: list[str] = []
    page.on("framenavigated", lambda frame: loads.append(frame.url))
    row, status = page.locator("#limit-user-turns"), page.get_by_role("status")
    opener = row.get_by_role("button", name="Change")
    opener.scroll_into_view_if_needed()
    opener.focus()
    page.keyboard.press("Enter")
    form = page.locator("#form-limit-user-turns")
    expect(form).to_be_visible()
    # A refusal is told in the form, which keeps what was typed.
    form.get_by_label("Turns").fill("often")
    form.get_by_label("Reason").fill("a busy week")
    page.keyboard.press("Enter")
    expect(form.locator(".wrong")).not_to_be_empty()
    expect(form.get_by_label("Turns")).to_have_value("often")
    expect(form.get_by_label("Reason")).to_have_value("a busy week")
    form.get_by_label("Turns").fill("9/min")
    before = page.evaluate("scrollY")
    page.keyboard.press("Enter")
    expect(row).to_have_class("changed")
    expect(row).to_contain_text("9/min")
    expect(page.locator("#notice")).to_contain_text("Turns of user")
    expect(page.locator("#notice")).to_be_in_viewport()
    expect(status).to_contain_text("9/min")
    expect(form).to_be_hidden()
    expect(opener).to_be_focused()
    assert abs(page.evaluate("scrollY") - before) < 120  # no more than the notice is high
    page.goto(f"{ruled.url}/admin/accounts")
    loads.clear()
    for name, password, told in (("ann", PASSWORD, "already"), ("eve", PASSWORD, "")):
        page.get_by_label("Name", exact=True).fill(name)
        page.get_by_label("Temporary password").fill(password)
        page.get_by_role("button", name="Create account").click()
        if told:
            expect(page.locator("#form-new-account-refusal")).to_contain_text(told)
            expect(page.get_by_label("Name", exact=True)).to_have_value(name)
    expect(page.locator("tr.changed")).to_contain_text("eve")
    expect(status).to_have_text("Account eve created.")
    expect(page.get_by_label("Name", exact=True)).to_have_value("")
    page.locator("tr.changed a").click()
    expect(page.get_by_role("heading", name="Password and access")).to_be_visible()
    loads.clear()
    page.get_by_text("Disable account…").click()
    page.get_by_role("button", name="Disable eve").click()
    expect(page.locator("#form-disable [name=reason]")).to_be_focused()
    page.keyboard.type("left the team")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Re-enable account…")).to_be_visible()
    expect(page.locator("#notice")).to_have_text("Account disabled.")
    assert loads == []
    # A token of one's own: it asks first.
    page.goto(f"{ruled.url}/account")
    page.locator("form[action='/account/tokens'] [name=name]").fill("nightly")
    page.get_by_role("button", name="Create token").click()
    page.get_by_role("link", name="Done").click()
    # Wait for the next page: a click before it has loaded goes to the old one.
    expect(page.get_by_role("link", name="Done")).to_have_count(0)
    expect(page.get_by_role("button", name="Revoke nightly")).to_be_visible()
    loads.clear()
    page.get_by_role("button", name="Revoke nightly").click()
    expect(page.locator("form:popover-open")).to_contain_text("Programs that use it stop working")
    page.locator("form:popover-open").get_by_role("button", name="Revoke nightly").click()
    expect(page.locator("#notice")).to_have_text("Token revoked.")
    expect(page.get_by_role("button", name="Revoke nightly")).to_have_count(0)
    assert loads == []


def test_a_test_of_a_model_shows_that_it_works_and_what_came_of_it(admin: Open, ruled: Server) -> None:
    page = admin("/admin/models")
    card = page.locator("#model-fast")
    asked = []

    def slow(route: Route) -> None:
        asked.append(route)

    page.route("**/admin/models/test", slow)
    card.get_by_role("button", name="Test").click()
    expect(card.get_by_role("button", name="Testing …")).to_be_disabled()
    asked[0].continue_()
    expect(card.locator(".came")).to_contain_text("fast answers in")
    expect(card.get_by_role("button", name="Test fast")).to_be_enabled()
    expect(card.get_by_role("button", name="Test fast")).to_be_focused()
    expect(page.get_by_role("status")).to_contain_text("fast answers in")
    # To take a model out of use needs a word about it, told in its form.
    card.locator("summary").click()
    card.get_by_label("State").select_option("disabled")
    card.get_by_role("button", name="Save").click()
    expect(card.locator("#form-change-fast-refusal")).to_contain_text("Please give a reason")
    expect(card.get_by_label("State")).to_have_value("disabled")
    card.get_by_label("Groups, parted by commas").fill("user admin")
    card.get_by_label("State").select_option("active")
    card.get_by_role("button", name="Save").click()
    expect(card).to_have_class("card changed")
    expect(card).to_contain_text("user, admin")
    expect(card.locator("summary")).to_be_focused()


def test_without_javascript_a_refused_form_stands_open_on_its_page(admin: Open, ruled: Server) -> None:
    page = admin("/admin/groups", java_script_enabled=False)
    page.locator("#limit-user-turns").get_by_role("button", name="Change").click()
    form = page.locator("#form-limit-user-turns")
    form.get_by_label("Turns").fill("often")
    form.get_by_label("Reason").fill("a busy week")
    form.get_by_role("button", name="Set limit").click()
    expect(page.locator("#notice")).to_have_attribute("role", "alert")
    expect(form).to_be_visible()
    expect(form.locator(".wrong")).not_to_be_empty()
    expect(form.locator(".wrong")).to_be_focused()
    expect(form.locator(".wrong")).to_be_in_viewport()
    expect(form.get_by_label("Reason")).to_have_value("a busy week")
    form.get_by_label("Turns").fill("8/min")
    form.get_by_role("button", name="Set limit").click()
    expect(page.locator("#notice")).to_have_text("Saved.")
    expect(page.locator("#limit-user-turns:target")).to_contain_text("8/min")

"""Every control is a form: the whole journey in a browser that runs no script."""

from playwright.sync_api import expect

from tests.browser.conftest import Chat, sign_in


def test_the_whole_journey_works_without_javascript(plain: Chat, admin_token: str) -> None:
    page = plain.page
    plain.begin("/tokens 30 /delay 50ms")
    expect(plain.box).to_be_hidden()
    expect(plain.turns).to_have_attribute("data-state", "done")
    expect(plain.replies).to_have_text(" ".join(f"tok{number}" for number in range(30)))

    expect(page.get_by_role("button", name="Send")).to_be_visible()
    plain.box.fill("/hang after 3")
    page.get_by_role("button", name="Send").click()
    page.get_by_role("button", name="Stop").click()
    plain.see("done", "stopped")
    expect(plain.replies.last).to_have_text("tok0 tok1 tok2")

    page.locator("summary.model").click()
    page.locator(".picker [value=smart]").check()
    page.get_by_role("button", name="Switch").click()
    expect(page.locator("[data-current-model]")).to_have_text("smart")

    page.get_by_label("More about this session").click()
    page.get_by_label("Title").fill("A better title")
    page.get_by_role("button", name="Rename").click()
    expect(page.get_by_role("heading", name="A better title")).to_be_visible()
    page.get_by_label("More about this session").click()
    page.get_by_role("link", name="What was decided here").click()
    expect(page.get_by_role("row").filter(has_text="smart").first).to_contain_text("model switched")

    page.get_by_role("link", name="Sessions").click()
    page.get_by_label("Search in titles").fill("better")
    page.get_by_role("button", name="Search").click()
    page.get_by_role("main").get_by_role("link", name="A better title").click()
    page.get_by_label("More about this session").click()
    page.get_by_text("Delete …").click()
    page.get_by_role("button", name="Delete for good").click()
    expect(page.get_by_role("heading", name="What would you like to ask?")).to_be_visible()

    page.get_by_role("link", name="Models").click()
    expect(page.get_by_role("main")).to_contain_text("smart")
    page.get_by_role("link", name="Limits").click()
    expect(page.get_by_role("main").get_by_role("meter").first).to_be_visible()

    sign_in(plain, "ada")
    page.get_by_role("link", name="Admin").click()
    expect(page.get_by_role("heading", name="Sessions of everybody")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("link", name="Sign in")).to_be_visible()


def test_a_wrong_password_gives_the_name_back(plain: Chat) -> None:
    plain.page.goto(f"{plain.server.url}/login")
    plain.page.get_by_label("Name").fill("nobody")
    plain.page.get_by_label("Password").fill("wrong and wrong")
    plain.page.get_by_role("button", name="Sign in").click()
    expect(plain.page.get_by_role("alert")).to_be_visible()
    expect(plain.page.get_by_label("Name")).to_have_value("nobody")

"""The account page in a browser: a temporary password, a wrong one at its field, and what was done to the account."""

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import PASSWORD, Chat, sign_in

TEMPORARY = "a temporary horse"
WRONG = "This is not your current password."


@pytest.mark.parametrize("scripts", [True, False], ids=["with JavaScript", "without"])
def test_a_temporary_password_is_replaced_before_anything_is_shown_and_its_owner_sees_who_set_it(
    open_chat: Callable[..., Chat], admin_token: str, scripts: bool
) -> None:
    assert admin_token
    ada, ann = open_chat(), open_chat(java_script_enabled=scripts)
    name = f"newcomer{'js' if scripts else 'plain'}"
    sign_in(ada, "ada")
    ada.page.goto(f"{ada.server.url}/admin/accounts")
    form = ada.page.locator('form[action="/admin/accounts"]')
    form.get_by_label("Name").fill(name)
    form.get_by_label("Temporary password").fill(TEMPORARY)
    form.get_by_role("button", name="Create account").click()
    ada.page.locator("tr.changed a").click()
    expect(ada.page.get_by_text("has not replaced it yet")).to_be_visible()

    page = ann.page
    page.goto(f"{ann.server.url}/login?next=/account")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(TEMPORARY)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Choose your password")).to_be_visible()
    expect(page.get_by_role("button", name="Sign out")).to_have_count(0)
    page.get_by_label("New password").fill(TEMPORARY)
    page.get_by_role("button", name="Save and sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("Choose another one")
    expect(page.get_by_label("New password")).to_be_focused()
    page.get_by_label("New password").fill(PASSWORD)
    page.get_by_role("button", name="Save and sign in").click()
    page.wait_for_url("**/account")
    told = page.locator("section", has=page.get_by_role("heading", name="Security activity"))
    expect(told).to_contain_text("Somebody who knew it replaced the temporary password.")
    expect(told).to_contain_text("ada created this account: user.")
    page.get_by_role("link", name="Show all activity").click()
    expect(page.get_by_role("heading", name="Security activity")).to_be_visible()
    expect(page.locator("tbody tr").last).to_contain_text("ada created this account")


def test_a_wrong_current_password_is_told_at_its_field_and_the_new_one_stays(
    open_chat: Callable[..., Chat], admin_token: str
) -> None:
    assert admin_token
    chat = open_chat()
    sign_in(chat, "ada")
    page = chat.page
    page.goto(f"{chat.server.url}/account")
    old, new = page.get_by_label("Current password"), page.get_by_label("New password")
    old.fill("wrong horse battery")
    new.fill("another horse battery")
    page.get_by_role("button", name="Change password").click()
    expect(page.locator("#password-old")).to_contain_text(WRONG)
    expect(old).to_be_focused()
    expect(old).to_have_attribute("aria-invalid", "true")
    expect(new).to_have_value("another horse battery")
    expect(page.locator("#status")).to_have_text(WRONG)
    old.fill(PASSWORD)
    new.fill("short by a bit"[:7])
    new.evaluate("node => node.removeAttribute('minlength')")
    page.get_by_role("button", name="Change password").click()
    expect(page.locator("#password-new")).to_contain_text("8 to 1000 characters")
    expect(page.locator("#password-old")).not_to_contain_text(WRONG)
    expect(new).to_be_focused()
    expect(old).to_have_value(PASSWORD)
    expect(page.get_by_role("button", name="Sign out", exact=False).first).to_be_visible()


def test_without_javascript_it_is_told_there_too(open_chat: Callable[..., Chat], admin_token: str) -> None:
    assert admin_token
    plain = open_chat(java_script_enabled=False)
    sign_in(plain, "ada")
    page = plain.page
    page.goto(f"{plain.server.url}/account")
    page.get_by_label("Current password").fill("wrong horse battery")
    page.get_by_label("New password").fill("another horse battery")
    page.get_by_role("button", name="Change password").click()
    expect(page.locator("#password-old")).to_contain_text(WRONG)
    expect(page.get_by_label("Current password")).to_be_focused()
    expect(page.get_by_role("heading", name="API tokens")).to_be_visible()
    expect(page.get_by_text("Please sign in")).to_have_count(0)


def test_an_admin_is_offered_no_token_for_somebody_else_but_for_a_service_account(
    open_chat: Callable[..., Chat], admin_token: str
) -> None:
    assert admin_token
    chat = open_chat()
    sign_in(chat, "ada")
    page = chat.page
    page.goto(f"{chat.server.url}/admin/accounts")
    form = page.locator('form[action="/admin/accounts"]')
    form.get_by_label("Name").fill("robot")
    form.get_by_label("Service account").check()
    form.get_by_role("button", name="Create account").click()
    page.locator("tr.changed a").click()
    expect(page.locator("h1")).to_contain_text("service account")
    expect(page.get_by_label("Temporary password")).to_have_count(0)
    page.get_by_label("Name", exact=True).fill("nightly")
    page.get_by_role("button", name="Create token").click()
    expect(page.locator("#token")).to_contain_text("tk_")

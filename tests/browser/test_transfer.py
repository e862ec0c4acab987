"""Sessions as files in a browser that runs no script: saved by a link, taken in by a form."""

from pathlib import Path

from playwright.sync_api import expect

from tests.browser.conftest import Chat


def test_a_session_is_saved_and_taken_in_again(plain: Chat, tmp_path: Path) -> None:
    page = plain.page
    first = plain.begin("Quite an unusual question")
    plain.see("done")
    page.get_by_label("More about this session").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="JSON").click()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    assert file.suffix == ".json" and "Quite an unusual question" in file.read_text()

    page.goto(f"{plain.server.url}/session")
    page.get_by_text("Export and import").click()
    page.get_by_label("A file exported as JSON").set_input_files(file)
    page.get_by_role("button", name="Import").click()
    page.wait_for_url("**/session/*-*")
    assert page.url != first
    expect(plain.replies).to_have_text("Quite an unusual question")

    page.goto(f"{plain.server.url}/session")
    page.get_by_text("Export and import").click()
    page.get_by_label("A file exported as JSON").set_input_files(
        {"name": "x.json", "mimeType": "application/json", "buffer": b"{}"}
    )
    page.get_by_role("button", name="Import").click()
    expect(page.get_by_role("alert")).to_contain_text("missing required field")

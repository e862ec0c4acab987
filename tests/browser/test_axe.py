"""Every page in every state, looked at by axe: nothing serious, at any size, light and dark, twice as large."""

import json
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Chat, sign_in
from tests.web.running import SETTINGS, Server, a_server

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
SERIOUS = ("serious", "critical")
#: what a screen reader listens to
POLITE = ":is([role=status], [role=log], output, [aria-live]):not([aria-live=off])"
RICH = """# A title

- [x] done

| a | b |
|---|--:|
| 1 | 2 |

```python
def f(): return "a" # comment
```

$$
x^2
$$

> [!WARNING]
> Careful with `code` and https://example.org

> a quotation"""


def faults(page: Page) -> list[str]:
    """What axe finds serious: rule, and where."""
    session = page.context.new_cdp_session(page)
    # Past the policy that keeps scripts out of the page.
    session.send("Page.setBypassCSP", {"enabled": True})
    world = session.send(
        "Page.createIsolatedWorld", {"frameId": session.send("Page.getFrameTree")["frameTree"]["frame"]["id"]}
    )
    where = {"contextId": world["executionContextId"], "returnByValue": True, "awaitPromise": True}
    session.send("Runtime.evaluate", {"expression": AXE, **where})
    asked: dict[str, Any] = session.send(
        "Runtime.evaluate", {"expression": "axe.run({resultTypes: ['violations']}).then(JSON.stringify)", **where}
    )
    found = json.loads(asked["result"]["value"])
    session.detach()
    assert found["passes"]
    return [
        f"{fault['id']}: {node['html'][:160]} {node.get('failureSummary', '')[:300]}"
        for fault in found["violations"]
        if fault["impact"] in SERIOUS
        for node in fault["nodes"][:3]
    ]


class Looks:
    """Goes from state to state and keeps what axe finds in each, and whether one place is listened to."""

    def __init__(self, scheme: Any) -> None:
        self.scheme, self.found = scheme, dict[str, list[str]]()

    def __call__(self, page: Page, state: str, *also: Any) -> None:
        expect(page.locator(POLITE)).to_have_count(1)
        expect(page.locator(POLITE)).to_have_id("status")
        for scheme in (self.scheme, *also):
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            if seen := faults(page):
                self.found[f"{state}, {scheme}"] = seen
        if also:
            page.emulate_media(color_scheme=self.scheme)


@pytest.fixture(params=["light", "dark"] if os.environ.get("LONG_TESTS") else ["light"])
def looks(request: pytest.FixtureRequest) -> Iterator[Looks]:
    """A test that asks for it finds nothing serious."""
    looking = Looks(request.param)
    yield looking
    assert looking.found == {}


@pytest.fixture
def strict_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that takes two prompts from a guest, and whose admins may read."""
    settings = re.sub(r"\nturns = .*", '\nturns = "2/h burst 2"', SETTINGS, count=1)
    with a_server(tmp_path_factory.mktemp("axe"), settings, TURNKEEPER_ADMINS_READ="true") as running:
        yield running


def test_axe_finds_nothing_serious(chat: Chat, admin_token: str, looks: Looks) -> None:
    page = chat.page

    def look(state: str, *also: Any) -> None:
        looks(page, state, *also)

    page.goto(f"{chat.server.url}/login")
    look("signing in")
    page.goto(f"{chat.server.url}/session")
    look("no sessions yet")
    sign_in(chat, "ada")
    page.goto(chat.server.url)
    look("home")
    url = chat.begin(RICH)
    chat.see("done")
    look("a reply", "dark")
    chat.say("/hang after 3")
    chat.see("done", "running")
    look("a reply that is written")
    page.get_by_role("button", name="Stop", exact=True).click()
    chat.see("done", "stopped")
    look("a stopped reply", "dark")
    page.get_by_role("button", name="Retry", exact=True).last.click()
    # The arrows come with the end of the reply: no other version can be shown before.
    chat.see("done", "running")
    expect(page.locator(".ways")).to_have_count(0)
    page.get_by_role("button", name="Stop", exact=True).click()
    chat.see("done", "stopped")
    expect(page.locator(".ways")).to_contain_text("2/2")
    page.locator("button.model").click()
    look("the picker", "dark")
    page.locator(".picker [value=smart]").check()
    page.get_by_role("button", name="Switch", exact=True).click()
    expect(page.locator(".quiet-line")).to_be_visible()
    look("a switch")
    page.get_by_label("More about this session").click()
    look("the session's menu")
    page.keyboard.press("Escape")
    page.locator("h1").click()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    look("the keys")
    page.keyboard.press("Escape")
    chat.say("x" * 10)
    chat.see("done", "stopped", "done")
    page.set_viewport_size({"width": 390, "height": 844})
    look("a phone")
    page.set_viewport_size({"width": 683, "height": 384})
    look("twice as large")
    page.set_viewport_size({"width": 1366, "height": 768})
    for path in (
        "/session",
        "/models",
        "/limits",
        "/docs",
        "/account",
        "/admin",
        "/admin/models",
        "/admin/groups",
        "/admin/moves",
        "/admin/accounts",
        "/admin/usage",
        "/admin/journal",
        "/nowhere",
    ):
        page.goto(chat.server.url + path)
        look(path)
    for part in ("/journal", "/turns"):
        page.goto(url + part)
        look(part)
    page.goto(url)
    page.get_by_label("More about this session").click()
    page.get_by_text("Close …").click()
    page.get_by_role("button", name="Close for good").click()
    expect(page.locator(".ended-note")).to_be_visible()
    look("a closed session")


def test_axe_finds_nothing_serious_where_people_seldom_are(
    chat: Chat, open_chat: Callable[..., Chat], strict_server: Server, looks: Looks
) -> None:
    admin = open_chat()
    chat.server = admin.server = strict_server
    page, theirs, home = chat.page, admin.page, strict_server.url
    if found := re.search(r"http://\S+/setup/\S+", strict_server.output):
        theirs.goto(found[0])
        looks(theirs, "becoming the admin")
        strict_server.people("ada:admin")
    page.goto(f"{home}/login")
    page.get_by_label("Name").fill("nobody")
    page.get_by_label("Password").fill("wrong and wrong")
    page.get_by_role("button", name="Sign in").click()
    looks(page, "a wrong password", "dark")

    url = chat.begin("/hang after 3")
    expect(chat.replies).to_contain_text("tok2")
    sign_in(admin, "ada")
    theirs.goto(f"{home}/admin")
    expect(theirs.get_by_text("writing").first).to_be_visible()
    looks(theirs, "the desk while a reply is written")
    theirs.locator(f"#desk-{url.rsplit('/', 1)[1]}").get_by_role("checkbox").check()
    act = theirs.locator("#act")
    act.get_by_label("Reason").fill("an axe test")
    act.get_by_role("button", name="Close …").click()
    looks(theirs, "what asks before it closes", "dark")
    theirs.keyboard.press("Escape")
    act.get_by_role("button", name="Lock model", exact=True).click()
    expect(admin.notice).to_contain_text("1 of 1 locked.")
    looks(theirs, "what became of an act")
    expect(page.locator("main")).to_contain_text("locked")
    chat.say("too early")
    expect(chat.notice).to_have_attribute("data-code", "session_busy")
    looks(page, "a locked session and a refusal", "dark")
    page.get_by_role("button", name="Stop", exact=True).click()
    chat.see("stopped")
    chat.say("another")
    chat.see("stopped", "done")
    chat.say("one too many")
    expect(page.locator("[data-countdown]")).to_be_visible()
    expect(page.get_by_role("status")).to_contain_text("sending messages too quickly")
    looks(page, "a countdown")
    page.goto(home)
    chat.box.fill("one too many")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(chat.notice).to_have_attribute("data-code", "rate_limited")
    expect(chat.box).to_have_value("one too many")
    looks(page, "a refusal on the home page")

    theirs.goto(url)
    looks(theirs, "a session of somebody else's")
    theirs.get_by_label("Reason to read it").fill("an axe test")
    theirs.get_by_role("button", name="Read it").click()
    expect(theirs.locator("article.turn").first).to_be_visible()
    looks(theirs, "a session of somebody else's, read")
    theirs.goto(f"{home}/admin/accounts")
    theirs.get_by_role("link", name="ada", exact=True).click()
    expect(theirs.get_by_role("heading", name="Role and group")).to_be_visible()
    looks(theirs, "an account")
    for path in (f"{url[len(home) :]}/journal", "/session?q=nothing-like-it"):
        theirs.goto(home + path)
        looks(theirs, path)
    theirs.goto(f"{home}/account")
    theirs.get_by_label("Name", exact=True).fill("axe")
    theirs.get_by_role("button", name="Create token").click()
    expect(theirs.get_by_role("heading", name="A new token")).to_be_visible()
    looks(theirs, "a new token")

    with closing(sqlite3.connect(strict_server.folder / "var" / "turnkeeper.db", timeout=60)) as database, database:
        database.execute("UPDATE session SET expires_at = '2020-01-01 00:00:00+00:00'")
    page.goto(url)
    expect(page.locator(".ended-note")).to_contain_text("expired")
    looks(page, "an expired session", "dark")


def test_axe_sees_a_fault(chat: Chat) -> None:
    chat.page.goto(chat.server.url)
    chat.page.locator("main").evaluate("node => node.append(document.createElement('input'))")
    assert any(fault.startswith("label") for fault in faults(chat.page))

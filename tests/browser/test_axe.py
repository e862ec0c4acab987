"""Every page in every state, looked at by axe: nothing serious, at any size, light and dark, twice as large."""

import json
import os
from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Chat, sign_in

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
SERIOUS = ("serious", "critical")
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


@pytest.mark.parametrize("scheme", ["light", "dark"] if os.environ.get("LONG_TESTS") else ["light"])
def test_axe_finds_nothing_serious(chat: Chat, admin_token: str, scheme: Any) -> None:
    page = chat.page
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    found: dict[str, list[str]] = {}

    def look(state: str, *also: Any) -> None:
        for one in (scheme, *also):
            page.emulate_media(color_scheme=one)
            if seen := faults(page):
                found[f"{state}, {one}"] = seen
        page.emulate_media(color_scheme=scheme)

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
    page.get_by_role("button", name="Stop").click()
    chat.see("done", "stopped")
    look("a stopped reply", "dark")
    page.get_by_role("button", name="Retry").last.click()
    expect(page.locator(".ways")).to_contain_text("2/2")
    page.get_by_role("button", name="Stop").click()
    chat.see("done", "stopped")
    page.locator("summary.model").click()
    look("the picker", "dark")
    page.locator(".picker [value=smart]").check()
    page.get_by_role("button", name="Switch").click()
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
    assert found == {}


def test_axe_sees_a_fault(chat: Chat) -> None:
    chat.page.goto(chat.server.url)
    chat.page.locator("main").evaluate("node => node.append(document.createElement('input'))")
    assert any(fault.startswith("label") for fault in faults(chat.page))

"""make pictures: what the README shows, taken of the real application: a session and the admin's desk, light and dark.

The conversations come in as an import, and the switch is a switch.
"""

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from playwright.sync_api import Browser, Page, sync_playwright

from tests.servers import CHROMIUM_FLAGS, find_chromium
from tests.web.people import PASSWORD
from tests.web.running import ROOT, Server, a_server

PICTURES = ROOT / "docs/pictures"
WIDTH, HEIGHT = 1280, 800
SETTINGS = """
default_model = "swift"
[[models]]
id = "swift"
provider = "builtin"
upstream = "echo"
[[models]]
id = "atlas"
provider = "builtin"
upstream = "echo"
[groups.user]
tokens_per_day = 40000
"""
QUESTION = "Here is last month's export. Why did churn go up?"
ANSWER = """Nearly all of it comes from **one plan**, in the week after the price change:

| Plan | Customers | Left | Churn | Change |
|---|--:|--:|--:|--:|
| Starter | 1,204 | 71 | 5.9 % | +0.2 |
| Team | 862 | 23 | 2.7 % | −0.1 |
| Scale | 96 | 9 | **9.4 %** | **+6.3** |

I would call the remaining *Scale* customers before looking any further:

```sql
SELECT account, owner_email, seats FROM customers
WHERE plan = 'scale' AND cancelled_at IS NULL ORDER BY seats DESC;
```"""
TALKS = {
    "ann": (
        "Release notes for 2.4",
        "A name for the journal page",
        "How sure is a positive test?",
        "Retries that all come back at once",
        "Why did churn go up in March?",
    ),
    "bo": ("Onboarding mail, second draft", "Which index does this query need?"),
    "cleo": ("Terms of the new lease", "Interview questions for a designer"),
}
REASON = "Numbers for the board come from the larger model."


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        a_server(Path(folder), SETTINGS, forked=False) as server,
        sync_playwright() as play,
    ):
        tokens = server.people("ada:admin:admin", *(f"{name}:user:user" for name in TALKS))
        shown = {name: _talks(server.script(tokens[name]), titles) for name, titles in TALKS.items()}
        with server.script(tokens["ada"]) as ada:
            order = {"session_id": shown["ann"], "model": "atlas", "reason": REASON}
            ada.post("/models/switch", json=order).raise_for_status()
        with server.script(tokens["bo"]) as bo:
            asked = {"session_id": shown["bo"], "prompt": "/tokens 2000 /delay 30ms"}
            bo.post("/chat", data=asked, headers={"Accept": "text/html"})
            browser = play.chromium.launch(executable_path=find_chromium(), args=list(CHROMIUM_FLAGS))
            _take(browser, server, "ann", f"/session/{shown['ann']}", "session")
            _take(browser, server, "ada", "/admin", "desk")
            browser.close()


def _talks(script: httpx.Client, titles: tuple[str, ...]) -> str:
    """Bring in a session for each title; the id of the last one."""
    now = datetime.now(UTC).isoformat()
    file = {"format": "turnkeeper-sessions/1", "exported_at": now, "sessions": [_talk(title, now) for title in titles]}
    with script:
        made = script.post("/session/import", json=file)
        made.raise_for_status()
    return str(made.json()["sessions"][-1]["id"])


def _talk(title: str, now: str) -> dict[str, Any]:
    turn = {
        "id": str(uuid4()), "parent_id": None, "prompt": QUESTION, "reply": ANSWER, "model": "swift", "state": "done",
        "error_code": None, "error_detail": None, "prompt_tokens": 412, "reply_tokens": 187, "estimated": False,
        "cost_nanos": 173_000, "context_left_out": 0,
        "created_at": now, "first_text_at": now, "ended_at": now, "copied_from": None,
    }  # fmt: skip
    return {
        "id": str(uuid4()), "title": title, "opening": "", "instructions": "", "origin": "page", "state": "active",
        "last_model": "swift", "created_at": now, "last_activity_at": now, "head_id": turn["id"], "turns": [turn],
    }  # fmt: skip


def _take(browser: Browser, server: Server, name: str, path: str, picture: str) -> None:
    """Both pictures of one page, as somebody sees it."""
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, reduced_motion="reduce")
    _sign_in(page, server, name)
    for scheme, file in (("light", f"{picture}.png"), ("dark", f"{picture}-dark.png")):
        page.emulate_media(color_scheme=scheme)
        page.goto(server.url + path)
        page.locator("h1").wait_for()
        page.screenshot(path=PICTURES / file)
    page.close()


def _sign_in(page: Page, server: Server, name: str) -> None:
    page.goto(f"{server.url}/login")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name="Sign out").wait_for()


if __name__ == "__main__":
    main()

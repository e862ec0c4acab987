"""SECURITY D 25 in a real browser: whatever a text says, nothing runs, loads or acts; not without the policy either."""

from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Chat
from tests.web.running import SETTINGS, Server, a_server
from tests.web.test_markdown import ATTACKS

LABEL = "<img src=/loaded onerror=alert(1)>"
#: what may never stand within what a model or a person wrote
ACTS = (
    "script, img, iframe, object, embed, link, style, base, meta, form, input, svg, video, [onerror], [onload], [style]"
)


@pytest.fixture(scope="module")
def hostile_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One whose models carry attacks as their names."""
    settings = SETTINGS.replace('label = "Fast"', f'label = "{LABEL}"')
    with a_server(tmp_path_factory.mktemp("hostile"), settings) as running:
        yield running


class Watch:
    """Hears whatever runs or loads."""

    def __init__(self, chat: Chat) -> None:
        self.heard: list[str] = []
        chat.page.on("dialog", lambda dialog: (self.heard.append(f"dialog {dialog.message}"), dialog.dismiss()))
        chat.page.context.on("request", lambda request: self.hear(request.url, chat.server.url))

    def hear(self, url: str, home: str) -> None:
        if not url.startswith(home) or urlsplit(url).path in ("/loaded", "/logout"):
            self.heard.append(url)


@pytest.mark.parametrize("policy", [True, False], ids=["with the policy", "without"])
def test_25_nothing_in_a_text_acts_in_a_browser(
    open_chat: Callable[..., Chat], hostile_server: Server, policy: bool
) -> None:
    chat = open_chat(bypass_csp=not policy)
    chat.server = hostile_server
    watch = Watch(chat)
    chat.begin(LABEL)
    chat.see("done")
    text = "\n\n".join(attack for attack in ATTACKS if "\x01" not in attack)
    thoughts = " ".join(attack for attack in ATTACKS if not {"\n", "\r", "\x01"} & set(attack))
    chat.say(f"/reason {thoughts}\n/delay 1ms /hang after 9999 {text}")
    chat.see("done", "running")
    expect(chat.replies.last).to_contain_text("xml-stylesheet")
    expect(chat.page.locator(".window")).to_contain_text("onerror")

    def quiet() -> None:
        said = chat.page.locator(".text, .window")
        assert said.locator(f":is({ACTS}), [href^='javascript:' i], [hx-get]").count() == 0
        assert watch.heard == []

    quiet()
    chat.page.reload()
    quiet()
    chat.page.get_by_role("button", name="Stop", exact=True).click()
    chat.see("done", "stopped")
    quiet()
    chat.say(f"/error 500 after 2 {LABEL} {LABEL}")
    chat.see("done", "stopped", "failed")
    chat.page.get_by_label("More about this session").click()
    chat.page.get_by_label("Title").fill(LABEL)
    chat.page.get_by_role("button", name="Rename").click()
    expect(chat.page.get_by_role("heading", level=1)).to_have_text(LABEL)
    chat.page.locator("button.model").click()
    expect(chat.page.locator(".choice-name").first).to_have_text(LABEL)
    for path in ("/", "/models", "/session", "/session?q=" + LABEL):
        chat.page.goto(chat.server.url + path)
    quiet()


def test_25_the_watch_hears_what_runs_and_what_loads(open_chat: Callable[..., Chat]) -> None:
    chat = open_chat(bypass_csp=True)
    chat.page.goto(chat.server.url)
    watch = Watch(chat)
    with chat.page.expect_event("dialog"):
        chat.page.locator("main").evaluate(f"node => {{ node.innerHTML = {LABEL!r} }}")
    assert {"dialog 1", f"{chat.server.url}/loaded"} <= set(watch.heard)
    assert chat.page.locator(ACTS).count() > 0

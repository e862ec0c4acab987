"""A chat in a browser: the few moves every test makes, and an ear for what the console says."""

import re
from collections.abc import Callable, Iterator
from uuid import UUID

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Locator, Page, expect

from tests.servers import new_context
from tests.web.running import Server

PASSWORD = "correct horse battery"
#: a refused request is an error in Chromium's console, and no fault of the page's
EXPECTED = re.compile(r"Failed to load resource: the server responded with a status of 4\d\d")


class Chat:
    """One page on one server."""

    def __init__(self, page: Page, server: Server) -> None:
        self.page, self.server = page, server

    @property
    def turns(self) -> Locator:
        return self.page.locator("article.turn")

    @property
    def replies(self) -> Locator:
        return self.page.locator("article.turn .reply .text")

    @property
    def box(self) -> Locator:
        return self.page.get_by_label("Your message")

    @property
    def notice(self) -> Locator:
        return self.page.locator("#notice")

    def begin(self, prompt: str, model: str = "") -> str:
        """Ask something on the home page; the URL of the new session."""
        self.page.goto(self.server.url)
        if model:
            self.page.get_by_label("Model").select_option(model)
        self.box.fill(prompt)
        self.page.get_by_role("button", name="Send").click()
        self.page.wait_for_url("**/session/*")
        return self.page.url

    def say(self, prompt: str) -> None:
        """Write in the session that is open, and send it by key."""
        self.box.fill(prompt)
        self.box.press("Enter")

    def replacing(self, turn: Locator, act: Callable[[], None]) -> None:
        """Do what puts another version in the place of this turn, and wait until it is there."""
        before = self.page.locator(f"[id='{turn.get_attribute('id')}']")
        act()
        expect(before).to_have_count(0)

    def retry(self, turn: Locator) -> None:
        turn.hover()
        self.replacing(turn, turn.get_by_role("button", name="Retry", exact=True).click)

    def see(self, *states: str) -> None:
        """Wait until the transcript has exactly these turns."""
        expect(self.turns).to_have_count(len(states))
        for place, state in enumerate(states):
            expect(self.turns.nth(place)).to_have_attribute("data-state", state)


@pytest.fixture
def open_chat(browser: Browser, server: Server) -> Iterator[Callable[..., Chat]]:
    """Another browser, or with `beside` another tab of the same one."""
    contexts: list[BrowserContext] = []

    def open_one(*, beside: Chat | None = None, **options: object) -> Chat:
        if beside is None:
            contexts.append(new_context(browser, **options))
        return Chat((beside.page.context if beside else contexts[-1]).new_page(), server)

    yield open_one
    for context in contexts:
        context.close()


@pytest.fixture
def chat(open_chat: Callable[..., Chat]) -> Chat:
    """A guest's browser."""
    return open_chat()


@pytest.fixture
def plain(open_chat: Callable[..., Chat]) -> Chat:
    """A browser that runs no JavaScript."""
    return open_chat(java_script_enabled=False)


@pytest.fixture
def complaints(chat: Chat) -> Iterator[list[str]]:
    """What the guest's browser complains of: CSP violations, errors, warnings. A test that asks for it wants none."""
    heard: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not EXPECTED.match(message.text):
            heard.append(message.text)

    chat.page.context.on("console", hear)
    chat.page.context.on("weberror", lambda error: heard.append(str(error.error)))
    yield heard
    assert not heard


def long_session(page: Page, server: Server, turns: int) -> str:
    """A session of so many turns, each like the only one of the session the page shows; its URL."""
    api = page.context.request
    file = api.get(f"{page.url}/export").json()
    (session,) = file["sessions"]
    (one,) = session["turns"]
    ids = [str(UUID(int=UUID(one["id"]).int + number)) for number in range(turns)]
    session["turns"] = [one | {"id": id, "parent_id": before} for before, id in zip([None, *ids], ids, strict=False)]
    session["head_id"] = ids[-1]
    made = api.post(f"{server.url}/session/import", data=file, headers={"Accept": "application/json"}).json()
    return f"{server.url}/session/{made['sessions'][0]['id']}"


def sign_in(chat: Chat, name: str) -> None:
    chat.page.goto(f"{chat.server.url}/login")
    chat.page.get_by_label("Name").fill(name)
    chat.page.get_by_label("Password").fill(PASSWORD)
    chat.page.get_by_role("button", name="Sign in").click()
    expect(chat.page.get_by_role("button", name="Sign out")).to_be_visible()

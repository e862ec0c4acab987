"""Somebody at a browser, any browser: what one sees, presses and waits for, over WebDriver.

Nothing here runs a script in the page, so all of it works where the page may run none either.
"""

import time
from collections.abc import Callable
from typing import TypeVar

from selenium.common.exceptions import (
    ElementNotInteractableException,
    NoSuchElementException,
    StaleElementReferenceException,
    WebDriverException,
)
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement

from tests.servers import PAGE_TIMEOUT_SECONDS
from tests.web.running import Server

T = TypeVar("T")

KEYS = {"Control": Keys.CONTROL, "Shift": Keys.SHIFT, "Enter": Keys.ENTER, "Escape": Keys.ESCAPE, "Tab": Keys.TAB}
KEYS |= {"Up": Keys.ARROW_UP, "Down": Keys.ARROW_DOWN}

BOX = ".composer-text"
REPLIES = "article.turn .reply > .text"
#: something of every kind
TEXT = """A **paragraph** of some words.

- one
- two

| a | b |
|---|---|
| 1 | 2 |

```python
def f(): return 1
```

$$
x^2
$$

Another paragraph, and the end."""


def button(name: str) -> str:
    return f"//button[normalize-space(.)='{name}' or @aria-label='{name}']"


def link(name: str) -> str:
    return f"//a[normalize-space(.)='{name}']"


def field(label: str) -> str:
    """Whatever has a label that begins so."""
    named = f"//label[starts-with(normalize-space(.), '{label}')]"
    return f"{named}//*[self::input or self::textarea] | //*[@id={named}/@for] | //*[@aria-label='{label}']"


class Visit:
    """One window on one server. A place is a CSS selector or an XPath, looked up anew each time, for the page swaps."""

    def __init__(self, driver: WebDriver, server: Server) -> None:
        self.driver, self.server = driver, server

    # ------------------------------------------------------------ seeing

    def until(self, look: Callable[[], T]) -> T:
        """Wait until something is so."""
        deadline = time.monotonic() + PAGE_TIMEOUT_SECONDS
        while True:
            try:
                if found := look():
                    return found
                last: object = found
            # WebKit says “not interactable” of what is out of sight.
            except (NoSuchElementException, StaleElementReferenceException, ElementNotInteractableException) as gone:
                last = gone.msg
            assert time.monotonic() < deadline, f"{last!r} at {self.url}:\n{self._shown}"
            time.sleep(0.05)

    @property
    def _shown(self) -> str:
        return self.driver.find_element(By.TAG_NAME, "body").text[:2000]

    @property
    def url(self) -> str:
        return self.driver.current_url

    def all(self, place: str) -> list[WebElement]:
        return self.driver.find_elements(By.XPATH if "//" in place else By.CSS_SELECTOR, place)

    def texts(self, place: str) -> list[str]:
        """What is written there, seen or not: what a driver calls the visible text is another one in each browser."""
        return [" ".join(str(one.get_property("textContent")).split()) for one in self.all(place)]

    def reads(self, place: str, *texts: str) -> None:
        """Wait until exactly these texts stand there."""
        found: list[str] = []

        def look() -> bool:
            found[:] = self.texts(place)
            return found == list(texts)

        try:
            self.until(look)
        except AssertionError as late:
            raise AssertionError(f"{place} reads {found}, not {list(texts)}") from late

    def tells(self, place: str, part: str) -> None:
        """Wait until a text there has this part."""
        self.until(lambda: any(part in text for text in self.texts(place)))

    def shows(self, place: str, count: int = 1) -> WebElement:
        """Wait until so many can be seen there; the last of them."""

        def look() -> list[WebElement]:
            seen = [one for one in self.all(place) if one.is_displayed()]
            return seen if len(seen) == count else []

        return self.until(look)[-1]

    def gone(self, place: str) -> None:
        """Wait until nothing can be seen there."""
        self.until(lambda: not any(one.is_displayed() for one in self.all(place)))

    def states(self, *states: str) -> None:
        """Wait until the transcript has exactly these turns."""
        self.until(lambda: [one.get_dom_attribute("data-state") for one in self.all("article.turn")] == list(states))

    def holds(self, text: str, place: str = BOX) -> None:
        """Wait until a field has this in it."""
        self.until(lambda: self.all(place)[-1].get_property("value") == text if self.all(place) else False)

    def focused(self, place: str) -> None:
        """Wait until the keyboard is there."""
        self.until(lambda: self.driver.switch_to.active_element in self.all(place))

    # ------------------------------------------------------------ doing

    def open(self, path: str = "/") -> None:
        self.driver.get(path if path.startswith("http") else f"{self.server.url}{path}")

    def click(self, place: str) -> None:
        """Click the last thing there that can be clicked."""

        def press() -> bool:
            for one in reversed(self.all(place)):
                try:
                    one.click()
                    return True
                except StaleElementReferenceException:
                    raise
                except WebDriverException as hidden:
                    assert "interact" in str(hidden) or "intercept" in str(hidden) or "not clickable" in str(hidden)
            return False

        self.until(press)

    def fill(self, place: str, text: str) -> None:
        """Put a text where another may stand."""
        one = self.shows(place)
        one.clear()
        for number, line in enumerate(text.split("\n")):
            if number:
                self.press("Shift+Enter")
            if line:
                one.send_keys(line)

    def press(self, *chords: str) -> None:
        """Press keys, such as `Control+k`, wherever the keyboard is."""
        for chord in chords:
            *held, last = (KEYS.get(name, name) for name in chord.split("+"))
            keys = ActionChains(self.driver)
            for key in held:
                keys.key_down(key)
            keys.send_keys(last)
            for key in reversed(held):
                keys.key_up(key)
            keys.perform()

    def type(self, text: str) -> None:
        """Type a text wherever the keyboard is."""
        ActionChains(self.driver).send_keys(text).perform()

    # ------------------------------------------------------------ chatting

    def begin(self, prompt: str) -> str:
        """Ask something on the home page; the URL of the new session."""
        self.open()
        self.fill(BOX, prompt)
        self.click(button("Send"))
        self.until(lambda: "/session/" in self.url)
        return self.url

    def say(self, prompt: str) -> None:
        """Write in the session that is open, and send it by key."""
        self.fill(BOX, prompt)
        self.shows(BOX).send_keys(Keys.ENTER)

    def sign_in(self, name: str, password: str) -> None:
        """Fill in the form that is shown."""
        self.fill(field("Name"), name)
        self.fill(field("Password"), password)
        self.click(button("Sign in"))
        self.shows(button("Sign out"))

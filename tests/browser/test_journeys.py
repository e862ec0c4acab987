"""What people do most, in every browser: in Chromium by `make test`, in Firefox and WebKit too by `make browsers`."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from selenium.webdriver.remote.webdriver import WebDriver

from tests.browser.conftest import PASSWORD
from tests.browser.drivers import BROWSERS
from tests.browser.visit import BOX, REPLIES, Visit, button, field, link
from tests.web.running import AGING, SETTINGS, Server, a_server
from tests.web.wire import JSON
from tests.web.wire import chat as ask

RICH = """Some **words**

| a | b |
|---|--:|
| 1 | 2 |

```python
def f(): return 1
```

$$
x^2
$$

The end."""

MANY = f"""
[[models]]
id = "priced"
provider = "builtin"
upstream = "echo"
label = "Priced and small"
context_tokens = 4096
price_in = 0.15
price_out = 0.6

[[models]]
id = "gone"
provider = "builtin"
upstream = "echo"
label = "Priced and gone"
state = "retired"
replacement = "smart"

[[models]]
id = "off"
provider = "builtin"
upstream = "echo"
label = "Off"
state = "disabled"

{AGING}
[groups"""


@pytest.fixture(scope="module", params=os.environ.get("BROWSERS", "chromium").split())
def which(request: pytest.FixtureRequest) -> str:
    """The browser's name."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def idle(which: str) -> Iterator[Callable[[bool], list[WebDriver]]]:
    """Browsers that are open and that nobody uses, with or without JavaScript; there is always another one."""
    waiting: dict[bool, list[WebDriver]] = {True: [], False: []}
    with ExitStack() as all_of_them:

        def ones(javascript: bool) -> list[WebDriver]:
            if not waiting[javascript]:
                waiting[javascript].append(all_of_them.enter_context(BROWSERS[which](javascript)))
            return waiting[javascript]

        yield ones


@pytest.fixture
def come(idle: Callable[[bool], list[WebDriver]], server: Server) -> Iterator[Callable[..., Visit]]:
    """Another visitor, whom the server does not know yet."""
    taken: list[tuple[WebDriver, bool]] = []

    def visitor(*, javascript: bool = True, to: Server = server) -> Visit:
        driver = idle(javascript).pop()
        taken.append((driver, javascript))
        return Visit(driver, to)

    yield visitor
    for driver, javascript in taken:
        # What a tab remembers goes with it, and a browser's cookies are those of all tabs.
        driver.delete_all_cookies()
        old = driver.current_window_handle
        driver.switch_to.new_window("tab")
        new = driver.current_window_handle
        driver.switch_to.window(old)
        driver.close()
        driver.switch_to.window(new)
        idle(javascript).append(driver)


@pytest.fixture
def visit(come: Callable[..., Visit]) -> Visit:
    """A guest."""
    return come()


@pytest.fixture(scope="module")
def strict_server(which: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One without an admin, with many models, that takes two prompts from a guest's address and then none for long."""
    settings = re.sub(r"\nturns = .*", '\nturns = "2/h burst 2"', SETTINGS, count=1).replace("\n[groups", MANY, 1)
    with a_server(tmp_path_factory.mktemp(which), settings) as running:
        yield running


def test_whoever_has_the_link_becomes_the_admin(come: Callable[..., Visit], strict_server: Server) -> None:
    visit = come(to=strict_server)
    visit.open(strict_server.setup_url)
    visit.fill(field("Name"), "root")
    visit.fill(field("Password"), PASSWORD)
    visit.click(button("Create account"))
    visit.shows(button("Sign out"))
    visit.click(link("Admin"))
    visit.tells("h1", "Live sessions")
    visit.click(button("Sign out"))
    visit.shows(link("Sign in"))
    visit.open("/login")
    visit.sign_in("root", PASSWORD)


def test_a_newcomer_asks_and_sees_the_reply(visit: Visit) -> None:
    visit.begin("Hello there")
    visit.states("done")
    visit.reads(REPLIES, "Hello there")
    visit.reads("[data-current-model]", "fast")
    visit.tells("aside", "Hello there")
    visit.focused(BOX)
    visit.say("and again")
    visit.states("done", "done")
    visit.holds("")
    visit.focused(BOX)


def test_a_reply_with_code_a_table_and_a_formula_is_shown_while_it_is_written(visit: Visit) -> None:
    visit.begin("Hello")
    visit.states("done")
    visit.say(f"/hang after 99 {RICH}")
    visit.states("done", "running")
    visit.tells("[role=status]", "fast is writing.")
    visit.tells(REPLIES, "The end.")
    shown = visit.texts(REPLIES)
    for part in ("table", "pre code", "math", "strong"):
        visit.shows(f"article:last-of-type .reply {part}")
    visit.click(button("Stop"))
    visit.states("done", "stopped")
    visit.reads(REPLIES, *shown)
    visit.driver.refresh()
    visit.states("done", "stopped")
    visit.reads(REPLIES, *shown)


def test_a_stop_keeps_what_was_written(visit: Visit) -> None:
    visit.begin("/hang after 3")
    visit.reads(REPLIES, "tok0 tok1 tok2")
    visit.press("Escape")
    visit.states("stopped")
    visit.reads(REPLIES, "tok0 tok1 tok2")
    visit.shows(button("Send"))


def test_the_end_stays_in_sight_while_text_comes_and_the_place_where_one_reads_too(visit: Visit) -> None:
    url = visit.begin("/tokens 1500")
    visit.states("done")
    visit.say("/tokens 200 /delay 20ms")
    visit.states("done", "running")

    def under_the_reply() -> float:
        foot = visit.all("article .foot")[-1].rect
        return float(visit.shows(BOX).rect["y"] - (foot["y"] + foot["height"]))

    for word in ("tok30", "tok60", "tok90"):
        visit.tells("article:last-of-type .reply", word)
        assert 0 < under_the_reply() < 100
    visit.states("done", "done")
    assert 0 < under_the_reply() < 100

    visit.driver.execute_script("arguments[0].scrollTop = -900", visit.all(".scroller")[0])
    where = visit.all("article")[0].rect["y"]
    (cookie,) = (one["value"] for one in visit.driver.get_cookies() if one["name"] == "tk_guest")
    with visit.server.guest(Accept=JSON, Cookie=f"tk_guest={cookie}", **{"Sec-Fetch-Site": "same-origin"}) as script:
        ask(script, "/tokens 300", session_id=url.rsplit("/", 1)[1])
    visit.states("done", "done", "done")
    visit.until(lambda: abs(visit.all("article")[0].rect["y"] - where) < 2)


def test_the_versions_of_a_message_are_a_click_apart(visit: Visit) -> None:
    visit.begin("first")
    visit.states("done")
    for text in ("second", "third"):
        visit.click("details.edit > summary")
        visit.fill(field("The message to ask instead"), text)
        visit.click(button("Ask this instead"))
        visit.reads(REPLIES, text)
        visit.states("done")
    visit.tells(".ways", "3/3")
    visit.click(button("The version before"))
    visit.reads(REPLIES, "second")
    visit.tells(".ways", "2/3")
    visit.click(button("The version after"))
    visit.reads(REPLIES, "third")


def test_a_retry_may_be_answered_by_another_model(visit: Visit) -> None:
    visit.begin("first")
    visit.states("done")
    visit.click("//button[contains(., 'Retry with…')]")
    visit.click(button("Smart"))
    visit.reads(".reply-model", "smart")
    visit.states("done")
    visit.reads("[data-current-model]", "fast")


def test_the_owner_switches_the_model(visit: Visit) -> None:
    visit.begin("Hello")
    visit.states("done")
    visit.click("button.model")
    visit.click(".picker [value=smart]")
    visit.click(button("Switch"))
    visit.reads("[data-current-model]", "smart")
    visit.reads("[data-model-reason]", "Chosen by you.")
    visit.tells("#notice", "Now on smart.")
    visit.say("Who are you?")
    visit.states("done", "done")
    visit.reads(".reply-model", "fast", "smart")


def test_a_model_is_found_among_many_by_key(come: Callable[..., Visit], strict_server: Server) -> None:
    visit, choice = come(to=strict_server), ".choice:not([hidden])"
    strict_server.people("kim")
    visit.open("/login")
    visit.sign_in("kim", PASSWORD)
    visit.begin("Hello")
    visit.states("done")
    visit.press("Control+Shift+M")
    visit.focused("[data-filter]")
    visit.shows(".choice", 7)
    visit.type("priced")
    visit.shows(choice, 2)
    visit.tells(choice, "priced · 4096")
    visit.tells(choice, "0.15 in, 0.60 out per million")
    visit.tells(choice, "retired gone · free · use smart")
    assert [one.is_enabled() for one in visit.all(f"{choice} input")] == [True, False]
    visit.press("Escape")
    visit.gone(".picker .menu")
    visit.focused("button.model")
    visit.press("Control+Shift+M", "Enter")
    visit.reads("[data-current-model]", "priced")
    visit.reads("[data-model-reason]", "Chosen by you.")
    visit.focused("button.model")
    # The stream tells of the switch too, and puts the head of the page anew.
    visit.driver.refresh()
    visit.states("done")
    visit.press("Control+Shift+M")
    visit.focused("[data-filter]")
    visit.type("a")
    visit.press("Down")
    visit.focused(f"{choice} input")


def test_the_owner_sees_at_once_what_an_admin_switches(come: Callable[..., Visit], admin_token: str) -> None:
    owner, admin = come(), come()
    url = owner.begin("Hello")
    owner.states("done")
    owner.fill(BOX, "a draft that stays")
    admin.open("/login")
    admin.sign_in("ada", PASSWORD)
    admin.open(url)
    admin.click("button.model")
    admin.click(".picker [value=smart]")
    admin.fill(field("Reason, shown"), "budget <b>until</b> May")
    admin.click(button("Switch"))
    owner.reads("[data-current-model]", "smart")
    owner.reads("[data-model-reason]", "Chosen by ada: budget <b>until</b> May.")
    owner.holds("a draft that stays")
    owner.focused(BOX)


def test_a_refusal_says_when_to_try_again_and_keeps_the_text(come: Callable[..., Visit], strict_server: Server) -> None:
    visit, plain = come(to=strict_server), come(javascript=False, to=strict_server)
    visit.begin("one")
    visit.states("done")
    plain.begin("two")
    visit.say("over the limit")
    visit.tells("#notice", "sending messages too quickly")
    visit.holds("over the limit")
    visit.states("done")
    first = visit.texts("[data-countdown]")
    assert "Try again in" in first[0]
    visit.until(lambda: visit.texts("[data-countdown]") != first)

    plain.until(lambda: plain.all(button("Send")))
    plain.fill(BOX, "also <over> it")
    plain.click(button("Send"))
    plain.tells("[data-countdown]", "Try again in")
    plain.holds("also <over> it")
    plain.click(button("Send"))
    plain.tells("[data-countdown]", "Try again in")
    plain.holds("also <over> it")


def test_a_draft_outlives_a_reload_another_tab_and_signing_in_again(
    visit: Visit, ann_token: str, server: Server
) -> None:
    visit.open("/login")
    visit.sign_in("ann", PASSWORD)
    url = visit.begin("Hello")
    visit.states("done")
    visit.fill(BOX, "half a thought")
    visit.driver.refresh()
    visit.holds("half a thought")

    visit.driver.delete_all_cookies()
    visit.say("half a thought")
    visit.tells("#notice", "no such session")
    visit.tells("#notice", "Are you signed out? Sign in")
    visit.holds("half a thought")
    visit.open(f"/login?next=/session/{url.rsplit('/', 1)[1]}")
    visit.sign_in("ann", PASSWORD)
    assert visit.url == url
    visit.holds("half a thought")
    visit.say("a whole thought")
    visit.states("done", "done")
    visit.driver.refresh()
    visit.states("done", "done")
    visit.holds("")


def test_sessions_are_listed_and_found(visit: Visit) -> None:
    visit.begin("A question about giraffes")
    visit.states("done")
    visit.begin("Another about zebras")
    visit.states("done")
    visit.click("//aside//a[contains(., 'giraffes')]")
    visit.reads(REPLIES, "A question about giraffes")
    visit.fill("aside [type=search]", "zebras")
    visit.press("Enter")
    visit.until(lambda: "q=zebras" in visit.url)
    visit.tells("main", "Another about zebras")
    assert "giraffes" not in " ".join(visit.texts("main"))


def test_the_whole_journey_works_without_javascript(come: Callable[..., Visit], admin_token: str) -> None:
    visit = come(javascript=False)
    visit.begin("/tokens 30 /delay 50ms")
    visit.states("done")
    visit.reads(REPLIES, " ".join(f"tok{number}" for number in range(30)))

    visit.fill(BOX, "/hang after 3")
    visit.click(button("Send"))
    visit.click(button("Stop"))
    visit.states("done", "stopped")
    visit.tells(REPLIES, "tok0 tok1 tok2")

    visit.click("button.model")
    visit.click(".picker [value=smart]")
    visit.click(button("Switch"))
    visit.reads("[data-current-model]", "smart")

    visit.click("details.edit > summary")
    visit.fill(field("The message to ask instead"), "another way")
    visit.click(button("Ask this instead"))
    visit.tells(REPLIES, "another way")
    visit.states("done", "done")
    visit.click(button("The version before"))
    visit.tells(REPLIES, "tok0 tok1 tok2")

    visit.click(".head .dots")
    visit.fill(field("Title"), "A better title")
    visit.click(button("Rename"))
    visit.tells("h1", "A better title")
    visit.click(".head .dots")
    visit.click(link("What was decided here"))
    visit.tells("tr", "model switched")

    visit.open("/session?q=better")
    visit.click("//main//a[contains(., 'A better title')]")
    visit.click(".head .dots")
    visit.click("//header//button[.='Delete']")
    visit.tells(".undo", "A better title")
    visit.click(button("Undo"))
    visit.tells("h1", "A better title")

    visit.click(link("Models"))
    visit.tells("main", "smart")
    visit.click(link("Limits"))
    visit.until(lambda: visit.all("main meter"))

    visit.open("/login")
    visit.sign_in("ada", PASSWORD)
    visit.click(link("Admin"))
    visit.tells("h1", "Live sessions")
    visit.click(button("Sign out"))
    visit.shows(link("Sign in"))


def test_everything_can_be_done_by_key(visit: Visit) -> None:
    visit.begin("Hello")
    visit.states("done")
    visit.focused(BOX)
    visit.type("one")
    visit.press("Shift+Enter")
    visit.type("two?")
    visit.holds("one\ntwo?")
    visit.press("Enter")
    visit.states("done", "done")
    visit.holds("")
    visit.press("Control+Shift+M")
    visit.focused(".picker [value=fast]")
    visit.press("Down", "Enter")
    visit.reads("[data-current-model]", "smart")
    visit.press("Control+k")
    visit.focused("[type=search]")
    visit.press("Escape", "Tab")
    visit.press("?")
    visit.shows("#keys")
    visit.press("Escape")
    visit.gone("#keys")
    visit.press("/")
    visit.focused(BOX)
    visit.press("Control+Shift+O")
    visit.until(lambda: visit.url == f"{visit.server.url}/")
    visit.focused(BOX)

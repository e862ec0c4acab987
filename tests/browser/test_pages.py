"""Every page: quiet, small, within the window, and deaf to what text says."""

from collections.abc import Callable

from playwright.sync_api import expect

from tests.browser.conftest import Chat, sign_in

HOSTILE = (
    "<img src=/loaded onerror=\"document.title='owned'\"><script src=/loaded></script>"
    '<div hx-get=/loaded hx-trigger=load></div></div></article></textarea></title><base href="//example.org">'
)
WORD = "unbroken" * 40
SIZES = {"phone": (390, 844), "small phone": (320, 640), "laptop": (1366, 768), "wide": (1920, 1080)}


#: what sticks out
WIDER = """width => [...document.querySelectorAll("body *")].filter(node => node.getBoundingClientRect().right > width)
    .map(node => `${node.tagName} ${node.className} ${node.textContent.trim().slice(0, 40)}`).slice(0, 9)"""


#: tables of which a part can neither be seen nor be scrolled to
CUT = """() => [...document.querySelectorAll(".table")]
    .filter(node => node.scrollWidth > node.clientWidth && getComputedStyle(node).overflowX === "clip")
    .map(node => `${node.scrollWidth} of ${node.clientWidth}: ${node.textContent.trim().slice(0, 40)}`)"""


#: the height of the tallest session on the desk
TALLEST = """() => Math.max(...[...document.querySelectorAll("#desk-rows tr")].map(row => row.offsetHeight))"""


def test_every_page_fits_the_window_and_is_quiet(chat: Chat, admin_token: str, complaints: list[str]) -> None:
    sign_in(chat, "ada")
    session = chat.begin(f"{WORD} {'word ' * 200}")
    chat.see("done")
    turn = chat.turns.get_attribute("id")
    assert turn is not None
    paths = [
        "/",
        "/session",
        "/models",
        "/limits",
        "/docs",
        "/admin",
        "/admin/models",
        "/admin/groups",
        "/admin/moves",
        "/admin/accounts",
        "/admin/usage",
        "/admin/usage?by=account",
        "/admin/journal",
        "/account",
        "/nowhere",
        "/login",
        f"/chat/{turn[5:]}",
    ]
    for url in [chat.server.url + path for path in paths] + [session, f"{session}/journal", f"{session}/turns"]:
        chat.page.goto(url)
        expect(chat.page.get_by_role("heading", level=1)).to_be_visible()
        expect(chat.page.get_by_role("main")).to_have_count(1)
        for name, (width, height) in SIZES.items():
            chat.page.set_viewport_size({"width": width, "height": height})
            across = chat.page.evaluate("document.documentElement.scrollWidth")
            assert across <= width, f"{url} on a {name}: {across}, {chat.page.evaluate(WIDER, width)}"
            assert chat.page.evaluate(CUT) == [], f"{url} on a {name}"
            if url.endswith("/admin") and name == "phone":
                # Four sessions to a screen, below what stands above them.
                assert 0 < chat.page.evaluate(TALLEST) < 160


def test_the_composer_is_within_reach_on_a_phone(open_chat: Callable[..., Chat]) -> None:
    chat = open_chat(viewport={"width": 390, "height": 844})
    chat.begin("/tokens 2000")
    chat.see("done")
    expect(chat.box).to_be_in_viewport()
    expect(chat.page.get_by_role("button", name="Send")).to_be_in_viewport(ratio=1)
    expect(chat.page.locator("aside")).to_be_hidden()
    chat.page.get_by_role("button", name="Menu").click()
    chat.page.get_by_role("link", name="Sessions").click()
    expect(chat.page.get_by_role("heading", name="Your sessions")).to_be_visible()


def test_nothing_in_a_text_acts(
    chat: Chat, open_chat: Callable[..., Chat], admin_token: str, complaints: list[str]
) -> None:
    asked: list[str] = []
    chat.page.context.on("request", lambda request: asked.append(request.url))
    url = chat.begin("Hello")
    chat.see("done")
    chat.say(f"{HOSTILE} /error 500 after 99")
    chat.see("done", "failed")
    expect(chat.replies.last).to_contain_text("<img src=/loaded")
    chat.page.get_by_label("More about this session").click()
    chat.page.get_by_label("Title").fill(HOSTILE[:110])
    chat.page.get_by_role("button", name="Rename").click()
    expect(chat.page.get_by_role("heading", level=1)).to_have_text(HOSTILE[:110])
    expect(chat.page.locator("aside [aria-current]")).to_contain_text(HOSTILE[:110])
    admin = open_chat()
    sign_in(admin, "ada")
    admin.page.goto(url)
    admin.page.locator("button.model").click()
    admin.page.locator(".picker [value=smart]").check()
    admin.page.locator(".picker").get_by_label("Reason, shown").fill(HOSTILE)
    admin.page.get_by_role("button", name="Switch", exact=True).click()
    expect(chat.page.locator("[data-model-reason]")).to_contain_text("Chosen by ada: <img src=/loaded")
    for path in (
        url,
        f"{url}/journal",
        f"{url}/turns",
        f"{chat.server.url}/session",
        f"{chat.server.url}/session?q=%22%3E%3Cscript",
    ):
        chat.page.goto(path)
        expect(chat.page.locator("img[src='/loaded'], [hx-get='/loaded'], script[src='/loaded'], base")).to_have_count(
            0
        )
        assert chat.page.title() != "owned"
    assert not [one for one in asked if "loaded" in one]


def test_a_text_runs_the_way_its_script_does(chat: Chat, complaints: list[str]) -> None:
    chat.begin("سؤال عن الجدول\n\n- عنصر\n\n| أ | ب |\n|---|---|\n| 1 | 2 |\n\n```py\nx = 1\n```")
    chat.see("done")
    runs: dict[str, str] = chat.page.evaluate("""() => Object.fromEntries(
        ["h1", ".side-title", ".prompt .text", ".reply .text p", ".reply ul", ".reply table", ".reply pre", ".composer"]
            .map(place => [place, getComputedStyle(document.querySelector(place)).direction]))""")
    assert [place for place, way in runs.items() if way == "ltr"] == [".reply pre", ".composer"]
    chat.box.fill("وسؤال آخر")
    assert chat.box.evaluate("node => getComputedStyle(node).direction") == "rtl"


def test_the_keyboard_reaches_the_content_first(chat: Chat) -> None:
    chat.page.goto(f"{chat.server.url}/models")
    chat.page.keyboard.press("Tab")
    skip = chat.page.get_by_role("link", name="Skip to content")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    chat.page.keyboard.press("Enter")
    chat.page.wait_for_url("**#main")

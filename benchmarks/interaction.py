"""`python -m benchmarks.interaction`: from a key or a click to the next paint, in a long session beside a short one.

Chromium tells it by its Event Timing API: in steps of 8 ms, and only what took 16 ms or longer.
"""

import tempfile
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from playwright.sync_api import Page, expect, sync_playwright

from tests.browser.conftest import long_session
from tests.browser.visit import TEXT
from tests.servers import CHROMIUM_FLAGS, find_chromium
from tests.web.running import a_server

LENGTHS = (10, 1000)
#: so that two in a hundred is one
ROUNDS = 50
PAGES = 15
#: keeps what each interaction took
OBSERVE = """() => {
    window.took = [];
    new PerformanceObserver(list => {
        for (const entry of list.getEntries())
            if (entry.interactionId) window.took.push([entry.interactionId, entry.duration]);
    }).observe({type: "event", durationThreshold: 16});
}"""

#: after two frames and a little the entries are there
FRAMES = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 60))))"
#: from the click that left the page before, through the request and the redirect, to the first paint of this one
PAINTED = """() => new Promise(done => {
    const look = () => {
        const [paint] = performance.getEntriesByName("first-contentful-paint");
        paint ? done(paint.startTime) : setTimeout(look, 10);
    };
    look();
})"""


def slow(found: list[float]) -> float:
    """The 98th percentile, which is what Interaction to Next Paint tells of a page."""
    return quantiles(found, n=50, method="inclusive")[-1]


def measure(page: Page, url: str, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """The milliseconds of each interaction of each kind; under 16 counts as 8, which is what Chromium does not tell."""
    page.goto(url)
    page.evaluate(OBSERVE)
    # By selector: to look for a label is work in the page, and counts with what was pressed before.
    box, found = page.locator(".composer-text"), dict[str, list[float]]()

    def one(kind: str, act: Any) -> None:
        page.evaluate(FRAMES)
        page.evaluate("window.took = []")
        act()
        page.evaluate(FRAMES)
        took: list[list[float]] = page.evaluate("window.took")
        found.setdefault(kind, []).append(max((duration for _, duration in took), default=8))

    for number in range(rounds):
        box.click()
        one("type a letter", lambda: page.keyboard.press("a"))
        one("open the models", lambda: page.locator("button.model").click())
        page.keyboard.press("Escape")
        one("open the menu", lambda: page.locator(".head .dots").click())
        page.keyboard.press("Escape")
        box.fill(f"message {number}")
        ended = page.locator("article.turn[data-state=done]").count()
        one("send", lambda: box.press("Enter"))
        expect(page.locator("article.turn[data-state=done]")).to_have_count(ended + 1)
    page.get_by_role("button", name="Retry", exact=True).last.click()
    expect(page.locator(".ways").last).to_contain_text("2/2")
    for number in range(PAGES):
        way = "1/2" if number % 2 == 0 else "2/2"
        name = "The version before" if number % 2 == 0 else "The version after"
        page.get_by_role("button", name=name).last.click()
        expect(page.locator(".ways").last).to_contain_text(way)
        found.setdefault("another version: a page", []).append(page.evaluate(PAINTED))
    return found


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        a_server(Path(folder), forked=False) as server,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=CHROMIUM_FLAGS)
        page = browser.new_page()
        page.goto(server.url)
        page.get_by_label("Your message").fill(TEXT)
        page.get_by_role("button", name="Send").click()
        expect(page.locator("article.turn")).to_have_attribute("data-state", "done")
        first = page.url
        urls = []
        for turns in LENGTHS:
            page.goto(first)
            urls.append(long_session(page, server, turns))
        measure(page, urls[0], 5)  # warm
        page.goto(first)
        urls[0] = long_session(page, server, LENGTHS[0])
        short, long = (measure(page, url) for url in urls)
        print(f"{'ms: median, 98th, worst':>28} {LENGTHS[0]:>19} turns {LENGTHS[1]:>17} turns {'ratio':>6}")
        for kind in short:
            a, b = short[kind], long[kind]
            figures = " ".join(f"{median(one):>11.0f} {slow(one):>6.0f} {max(one):>6.0f}" for one in (a, b))
            print(f"{kind:>28} {figures} {median(b) / median(a):>6.1f}")
        browser.close()


if __name__ == "__main__":
    main()

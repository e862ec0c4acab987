"""Light: few requests and bytes, nothing that jumps while text comes, quick on a long session."""

import gzip
import json

from playwright.sync_api import Browser, expect

from tests.browser.conftest import Chat, long_session
from tests.browser.traces import styled_elements
from tests.browser.visit import TEXT
from tests.web.running import ROOT

#: how much of the page has moved, see the Layout Instability API; what had no size before has appeared, not moved
SHIFTS = """since => new Promise(done => {
    let sum = 0;
    new PerformanceObserver(list => {
        for (const {startTime, sources, value} of list.getEntries())
            if (startTime > since && sources.some(({previousRect}) => previousRect.height)) sum += value;
    }).observe({type: "layout-shift", buffered: true});
    setTimeout(() => done(sum), 100);
})"""
#: counts the elements that come into the conversation from now on
CHANGES = """() => {
    window.added = 0;
    new MutationObserver(changes => {
        for (const {addedNodes} of changes)
            for (const node of addedNodes)
                if (node.querySelectorAll) window.added += 1 + node.querySelectorAll("*").length;
    }).observe(document.querySelector("main"), {childList: true, subtree: true});
}"""
#: the blocks of the last turn that nothing is added to any more: of its reasoning, and of its reply
FINISHED = """() => {
    const turn = [...document.querySelectorAll("article.turn")].at(-1);
    window.finished = [turn.querySelector(".window p"), turn.querySelector(".text.rich > p")];
}"""


def test_an_event_that_a_trace_cuts_off_counts_nothing() -> None:
    whole = {"name": "UpdateLayoutTree", "ph": "X", "args": {"elementCount": 7}}
    cut: list[object] = [{"name": "UpdateLayoutTree", "ph": "B", "args": {}}, {"name": "UpdateLayoutTree", "ph": "X"}]
    trace = json.dumps({"traceEvents": [*cut, whole, {"name": "Paint", "args": {"elementCount": 9}}]}).encode()
    assert styled_elements(trace) == [7]


def test_our_own_script_is_small() -> None:
    scripts = list((ROOT / "static/js").glob("*.js"))
    assert scripts
    # As they go over the wire: names that say what they mean and comments cost little.
    assert sum(len(gzip.compress(path.read_bytes(), 6)) for path in scripts) <= 6_000


def test_the_first_page_is_six_requests_and_sixty_kilobytes(chat: Chat, complaints: list[str]) -> None:
    wire, urls, sizes = chat.page.context.new_cdp_session(chat.page), dict[str, str](), dict[str, int]()
    wire.send("Network.enable")
    wire.on("Network.requestWillBeSent", lambda event: urls.update({event["requestId"]: event["request"]["url"]}))
    wire.on("Network.loadingFinished", lambda event: sizes.update({event["requestId"]: event["encodedDataLength"]}))
    chat.page.goto(chat.server.url, wait_until="networkidle")
    # The browser tells of each end by itself, some of them after it calls the network idle.
    for _ in range(600):
        if urls.keys() <= sizes.keys():
            break
        chat.page.wait_for_timeout(50)
    # Headers too, and everything as it was packed for the way; the tab's icon is the page's and comes from its memory.
    found = [(url, sizes[id]) for id, url in urls.items() if sizes[id]]
    assert {url.rsplit(".", 1)[-1].partition("?")[0] for url, _ in found} >= {"css", "js", "svg"}
    assert len(found) <= 6, found
    assert 10_000 < sum(sizes.values()) <= 60_000, found


def test_nothing_jumps_while_a_reply_is_written(chat: Chat, complaints: list[str]) -> None:
    chat.begin("Hello")
    chat.see("done")
    chat.page.reload()
    thoughts = "Let **me** `see`. " * 15
    chat.say(f"/hang after 9999 /delay 20ms /reason {thoughts}\n{TEXT}")
    expect(chat.page.locator(".window")).to_contain_text("Let me see")
    expect(chat.box).to_have_value("")
    since = chat.page.evaluate("performance.now()")
    expect(chat.replies.last.locator("li")).to_have_count(2)
    # What is finished is sent once: these very elements stay while the rest is written.
    chat.page.evaluate(FINISHED)
    expect(chat.replies.last).to_contain_text("and the end.")
    assert chat.page.evaluate("finished.map(block => block.isConnected)") == [True, True]
    chat.page.keyboard.press("Escape")
    chat.see("done", "stopped")
    shift = chat.page.evaluate(SHIFTS, since)
    assert shift < 0.05, shift


def test_a_page_of_a_thousand_turns_has_no_more_on_it_than_one_of_sixty(
    chat: Chat, browser: Browser, complaints: list[str]
) -> None:
    first = chat.begin(TEXT)
    chat.see("done")
    found = {}
    for turns in (60, 1000):
        chat.page.goto(first)
        chat.page.goto(long_session(chat.page, chat.server, turns))
        expect(chat.turns).to_have_count(50)
        nodes = chat.page.evaluate("document.querySelectorAll('main *').length")
        chat.page.evaluate(CHANGES)
        browser.start_tracing(page=chat.page, categories=["devtools.timeline"])
        chat.say("one more")
        expect(chat.turns).to_have_count(51)
        expect(chat.turns.last).to_have_attribute("data-state", "done")
        expect(chat.box).to_have_value("")
        styled = styled_elements(browser.stop_tracing())
        found[turns] = nodes, chat.page.evaluate("window.added")
        # And what is out of sight is not even looked at.
        assert 0 < max(styled, default=0) < nodes / 3, (nodes, styled)
    (nodes, added), (more_nodes, more_added) = found.values()
    assert more_nodes == nodes > 1000
    # A message makes what belongs to it, in however many pieces its reply comes.
    assert 0 < added < 400 and 0 < more_added < 400, found
    chat.page.get_by_role("link", name="Earlier messages").click()
    expect(chat.page.get_by_role("link", name="Back to the newest messages")).to_be_visible()
    expect(chat.turns).to_have_count(50)

"""Light: few requests and bytes, nothing that jumps while text comes, quick on a long session."""

from uuid import UUID

from playwright.sync_api import Request, expect

from tests.browser.conftest import Chat
from tests.web.running import ROOT

SHIFTS = """since => new Promise(done => {
    let sum = 0;
    new PerformanceObserver(list => {
        for (const entry of list.getEntries()) if (entry.startTime > since) sum += entry.value;
    }).observe({type: "layout-shift", buffered: true});
    setTimeout(() => done(sum), 100);
})"""
#: from a press of a key to the frame after it, in milliseconds
NEXT_PAINT = """() => {
    const field = document.querySelector(".composer-text");
    field.focus();
    window.painted = new Promise(done => field.addEventListener("keydown", event =>
        requestAnimationFrame(() => setTimeout(() => done(performance.now() - event.timeStamp))), {once: true}));
}"""
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


def test_our_own_script_is_small() -> None:
    scripts = list((ROOT / "static/js").glob("*.js"))
    assert scripts
    assert sum(len(path.read_bytes()) for path in scripts) <= 10_000


def test_the_first_page_is_six_requests_and_sixty_kilobytes(chat: Chat, complaints: list[str]) -> None:
    seen: list[Request] = []
    chat.page.on("requestfinished", lambda request: seen.append(request))
    chat.page.goto(chat.server.url, wait_until="networkidle")
    # The icon of the tab and the one on the page are one and the same.
    sizes = {request.url: request.sizes()["responseBodySize"] for request in seen}
    assert len(sizes) <= 6, sizes
    assert 10_000 < sum(sizes.values()) <= 60_000, sizes


def test_nothing_jumps_while_a_reply_is_written(chat: Chat, complaints: list[str]) -> None:
    chat.begin("Hello")
    chat.see("done")
    chat.page.reload()
    chat.say(f"/delay 30ms {TEXT}")
    expect(chat.replies.last).to_contain_text("words")
    expect(chat.box).to_have_value("")
    since = chat.page.evaluate("performance.now()")
    chat.see("done", "done")
    shift = chat.page.evaluate(SHIFTS, since)
    assert shift < 0.05, shift


def test_a_session_of_a_thousand_turns_answers_a_key_at_once(chat: Chat, complaints: list[str]) -> None:
    chat.begin(TEXT)
    chat.see("done")
    api = chat.page.context.request
    file = api.get(f"{chat.page.url}/export").json()
    (session,) = file["sessions"]
    (one,) = session["turns"]
    ids = [str(UUID(int=UUID(one["id"]).int + number)) for number in range(1000)]
    session["turns"] = [one | {"id": id, "parent_id": before} for before, id in zip([None, *ids], ids, strict=False)]
    session["head_id"] = ids[-1]
    made = api.post(f"{chat.server.url}/session/import", data=file, headers={"Accept": "application/json"}).json()
    chat.page.goto(f"{chat.server.url}/session/{made['sessions'][0]['id']}")
    expect(chat.turns).to_have_count(50)
    times = []
    for letter in "abcde":
        chat.page.evaluate(NEXT_PAINT)
        chat.page.keyboard.press(letter)
        times.append(chat.page.evaluate("window.painted"))
    # The machine may be busy with something else, though not every time.
    assert min(times) <= 100, times
    expect(chat.box).to_have_value("abcde")

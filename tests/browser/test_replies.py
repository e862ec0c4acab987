"""How replies look in a browser: what is copied by selecting, tables on a phone, directions, deep lists, citations."""

from collections.abc import Callable

from playwright.sync_api import expect

from tests.browser.conftest import Chat

WIDE = """Prose before.

```python
x = 1
```

Prose after.

| Model | Window | Price | Released | Notes |
|--|--|--:|:-:|--|
| Alpha | 128,000 tokens | $1.25 in, $5.00 out | 2024-05-13 | Good at long documents, fails at sums with many digits |

"""
DEEP = "\n".join(f"{'  ' * level}- level {level} of the list" for level in range(18))
#: a sentence that begins with code, and where a browser that counts code as letters would put it
RIGHT_TO_LEFT = """`npm install` يثبّت الحزم

- `a` פריט
- Docker – כלי

| `שם` | ערך |
|--|--|
| אחד | 1 |

"""
CITED = """As [the page][1] says[^1].

[1]: https://example.org/page "title"

[^1]: Only in winter.
"""

SIDES = """(nodes) => nodes.map((node) => {
  const range = document.createRange();
  range.selectNodeContents(node);
  const text = range.getBoundingClientRect(), box = node.getBoundingClientRect();
  return text.left - box.left > box.right - text.right + 1 ? "right" : "left";
})"""


def test_a_reply_on_a_phone_is_read_whole(open_chat: Callable[..., Chat]) -> None:
    chat = open_chat(viewport={"width": 390, "height": 844})
    chat.begin(WIDE + DEEP)
    chat.see("done")
    chat.page.wait_for_function("() => document.querySelector('.reply table')")
    grid = chat.page.locator(".reply .grid")
    widths = grid.locator("th").evaluate_all("cells => cells.map((cell) => cell.offsetWidth)")
    assert grid.evaluate("node => node.scrollWidth > node.clientWidth"), "it scrolls"
    assert widths[-1] >= 180, widths
    room = chat.page.locator(".scroller").evaluate("node => [node.scrollWidth, node.clientWidth]")
    assert room[0] == room[1], "only the table does"
    deepest = chat.page.locator(".reply li").last
    assert deepest.evaluate("node => node.clientWidth") >= 90
    expect(deepest).to_contain_text("level 17 of the list")


def test_what_is_selected_across_code_holds_no_control(chat: Chat, complaints: list[str]) -> None:
    chat.begin(WIDE)
    chat.see("done")
    selected = chat.page.evaluate("""() => {
        getSelection().selectAllChildren(document.querySelector("article.turn .reply"));
        return getSelection().toString();
    }""")
    assert "x = 1" in selected and "Prose after." in selected and "many digits" in selected
    for control in ("Copy", "Retry", "python"):
        assert control not in selected, selected


def test_a_block_that_begins_with_code_runs_as_its_words_do(chat: Chat, complaints: list[str]) -> None:
    chat.begin(RIGHT_TO_LEFT + "`code` then English\n\n> English")
    chat.see("done")
    lines = chat.page.locator(".reply .text :is(p, li, th, td)")
    assert lines.evaluate_all(SIDES) == ["right"] * 7 + ["left"] * 2
    runs = chat.page.locator(".reply .text :is(ul, table, blockquote)")
    assert runs.evaluate_all("nodes => nodes.map((node) => getComputedStyle(node).direction)") == ["rtl", "rtl", "ltr"]
    assert chat.page.locator(".prompt .text").evaluate("node => getComputedStyle(node).direction") == "rtl"


def test_a_citation_is_a_link_once_the_reply_has_ended(chat: Chat, complaints: list[str]) -> None:
    chat.begin("Hello")
    chat.see("done")
    chat.say(f"/delay 1ms /hang after 9999 {CITED}")
    chat.see("done", "running")
    shown = chat.replies.last
    expect(shown.locator(".note")).to_contain_text("Only in winter.")
    expect(shown).to_contain_text("As [the page][1] says1.")
    chat.page.get_by_role("button", name="Stop", exact=True).click()
    chat.see("done", "stopped")
    link = shown.get_by_role("link", name="the page")
    expect(link).to_have_attribute("href", "https://example.org/page")
    expect(shown.locator("p sup.mark")).to_have_text("1")
    ended = shown.inner_html().strip()
    assert "]:" not in ended
    chat.page.reload()
    chat.see("done", "stopped")
    assert shown.inner_html().strip() == ended

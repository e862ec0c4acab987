"""What becomes of a model's text: markup that is wanted, nothing that acts, the same however it came (SECURITY D)."""

import os
import random
import re
import time
from html.parser import HTMLParser

import pytest

from web.markdown import AGAIN, AHEAD, RENDERED_CHARACTERS, Growing, normal, render
from web.rendering import html_of

LONG_TESTS = bool(os.environ.get("LONG_TESTS"))

WANTED = {
    "emphasis": ("*a* **b** ~~c~~ `d`", "<p><em>a</em> <strong>b</strong> <s>c</s> <code>d</code></p>\n"),
    "line breaks": ("one\ntwo", "<p>one<br>\ntwo</p>\n"),
    "headings stand below the page's own": ("# a\n###### b", "<h3>a</h3>\n<h6>b</h6>\n"),
    "a task": (
        "- [x] a",
        '<ul>\n<li class="task"><span class="tick" role="img" aria-label="done">☑</span> a</li>\n</ul>\n',
    ),
    "an address, without the full stop": (
        "See (https://example.org/a_(b)?c=d).",
        '<p>See (<a href="https://example.org/a_(b)?c=d" dir="ltr" target="_blank" rel="noopener noreferrer nofollow">'
        "https://example.org/a_(b)?c=d</a>).</p>\n",
    ),
    "a file is no address": ("main.py and example.org", "<p>main.py and example.org</p>\n"),
    "sums of money are no formula": ("$5 and $10, or $5-$10, US$5/US$6", "<p>$5 and $10, or $5-$10, US$5/US$6</p>\n"),
    "a formula": ("$x$", '<p><math display="inline"><mrow><mi>x</mi></mrow></math></p>\n'),
    "a formula in brackets": ("\\(x\\)", '<p><math display="inline"><mrow><mi>x</mi></mrow></math></p>\n'),
    "a formula by itself": (
        "text:\n$$\nx\n$$",
        '<p>text:</p>\n<div class="formula" tabindex="0"><math display="block"><mrow><mi>x</mi></mrow></math></div>\n',
    ),
    "a formula that is not closed": ("$$\nx\n\ny", "<p>$$<br>\nx</p>\n<p>y</p>\n"),
    "what is no formula": ("$\\begin{nothing}$", "<p><code>\\begin{nothing}</code></p>\n"),
    "an alert": (
        "> [!NOTE]\n> a",
        '<div class="alert alert-note">\n<p class="alert-title">Note</p>\n<p>a</p>\n</div>\n',
    ),
    "a picture waits to be clicked": (
        "![a *b*](https://example.org/p.png)",
        '<p><a href="https://example.org/p.png" target="_blank" rel="noopener noreferrer nofollow">'
        '<span class="picture">a b</span></a></p>\n',
    ),
    "tags of reasoning are text: they are split off where a provider is read": (
        "<think>*a*</think>",
        "<p>&lt;think&gt;<em>a</em>&lt;/think&gt;</p>\n",
    ),
    "a definition stays where it is": ("[a]\n\n[a]: /b", "<p>[a]</p>\n<p>[a]: /b</p>\n"),
}


@pytest.mark.parametrize(("text", "html"), WANTED.values(), ids=WANTED)
def test_what_is_wanted(text: str, html: str) -> None:
    assert html_of(text) == html


def test_code_is_coloured_once_it_is_closed() -> None:
    asked: list[tuple[str, str]] = []

    def colours(blocks: list[tuple[str, str]]) -> dict[tuple[str, str], str]:
        asked.extend(blocks)
        return dict.fromkeys(blocks, '<span class="hl-keyword">def</span> f(): pass\n')

    assert '<span class="hl-keyword">def</span>' in render("> ```Python x\n> def f(): pass\n> ```", colours)
    assert asked == [("python", "def f(): pass\n")]
    assert "hl-" not in render("```python\ndef f(): pass\n", colours)
    assert "hl-" not in render("```no-such-language\ndef f(): pass\n```", colours)
    assert '<pre tabindex="0"><code class="source">\n a &lt;b&gt;\n\n</code></pre>' in html_of("```\n\n a <b>\n\n```")


def test_a_table_aligns_its_columns_and_can_be_scrolled_by_key() -> None:
    html = html_of("| a | b | c |\n|---|:-:|--:|\n| 1 | 2 | 3 |")
    assert html.startswith('<div class="grid" role="group" aria-label="Table" tabindex="0"><table>')
    assert '<td>1</td>\n<td class="center">2</td>\n<td class="right">3</td>' in html


# ---------------------------------------------------------------- D 25: nothing acts

ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "<svg><script>alert&#40;1)</script>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    "<math><mi xlink:href='javascript:alert(1)'>x</mi></math>",
    "<a href=javascript:alert(1)>x</a>",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<form action=/session/create method=post><button>OK</button></form>",
    "<input autofocus onfocus=alert(1)>",
    "<body onload=alert(1)>",
    "<style>@import '/loaded'</style>",
    "<link rel=stylesheet href=/loaded>",
    "<meta http-equiv=refresh content='0;url=/loaded'>",
    "<base href=//example.org>",
    "<details open ontoggle=alert(1)>",
    "<think>\n<img src=x onerror=alert(1)>\n</think><img src=x onerror=alert(1)>",
    "<think onclick=alert(1)>\nx",
    "<video><source onerror=alert(1)>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<div hx-get=/loaded hx-trigger=load>x</div>",
    '<hx-partial hx-target="body">x</hx-partial>',
    "</hx-partial></div></article><script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](javascript&colon;alert(1))",
    "[x](\x01javascript:alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "[x](vbscript:x)",
    "[x](file:///etc/passwd)",
    "[x](/logout)",
    "[x](//example.org)",
    "[x](\\\\example.org)",
    "<javascript:alert(1)>",
    "<data:text/html,x>",
    '[x](https://example.org "\\" onmouseover=alert(1) x=\\"")',
    "[x](https://example.org'onmouseover='alert(1))",
    "![x](/loaded)",
    "![x](https://example.org/loaded?secret)",
    "![](data:image/svg+xml;base64,PHN2Zz4=)",
    '![x"onerror=alert(1)](https://example.org)',
    "[![x](/loaded)](javascript:alert(1))",
    "[x]: javascript:alert(1)\n\n[x]",
    '```"><img src=x onerror=alert(1)>\ncode\n```',
    "```html\n<img src=x onerror=alert(1)>\n```",
    "`<img src=x onerror=alert(1)>`",
    "| <img src=x onerror=alert(1)> |\n|---|\n| [x](javascript:alert(1)) |",
    "- [x] <img src=x onerror=alert(1)>",
    "> [!NOTE]<img src=x onerror=alert(1)>\n> x",
    "$\\href{javascript:alert(1)}{x}$",
    "$\\text{</math><img src=x onerror=alert(1)>}$",
    "$<img src=x onerror=alert(1)>$",
    "$$\n\\style{background:url(/loaded)}{x}\n$$",
    "$$\n\\includegraphics{/loaded}\n$$",
    "\\(\\unicode{<script>alert(1)</script>}\\)",
    "&lt;img src=x onerror=alert(1)&gt;",
    "&#60;script&#62;alert(1)&#60;/script&#62;",
    "\\<script>alert(1)\\</script>",
    "<<script>script>alert(1)<</script>/script>",
    "https://example.org/<script>alert(1)</script>",
    'https://example.org/"onmouseover="alert(1)',
    "javascript://example.org/%0aalert(1)",
    "xjavascript:https://example.org",
    "<!--><img src=x onerror=alert(1)>-->",
    "<![CDATA[><img src=x onerror=alert(1)>]]>",
    "<?xml-stylesheet href='/loaded'?>",
    "\u202e<script>alert(1)</script>\u2028",
]
#: tag → the attributes it may have; written down again here, apart from the sanitiser's list
HARMLESS: dict[str, set[str]] = {
    **{tag: set() for tag in ("br", "hr", "strong", "em", "s", "thead", "tbody", "tr")},
    **{tag: {"dir"} for tag in ("h3", "h4", "h5", "h6", "blockquote", "ul", "table")},
    **{tag: set() for tag in ("sub", "kbd")},
    "sup": {"class"},
    "a": {"href", "title", "target", "rel", "dir"},
    "ol": {"start", "dir"},
    "summary": set(),
    "details": {"class", "open"},
    **{tag: {"class", "dir"} for tag in ("p", "th", "td")},
    **{tag: {"class"} for tag in ("li", "code")},
    "div": {"class", "tabindex", "role", "aria-label", "dir"},
    "span": {"class", "role", "aria-label"},
    "pre": {"tabindex"},
    "button": {"class", "type"},
}
MATHML = re.compile(
    r"math|m(row|i|n|o|s|text|space|frac|sqrt|root|sub|sup|subsup|under|over|underover)|"
    r"m(table|tr|td|style|padded|phantom|enclose|fenced)"
)


class Strict(HTMLParser):
    """Fails at whatever is not known to be harmless; counts what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def handle_starttag(self, tag: str, given: list[tuple[str, str | None]]) -> None:
        self.seen += 1
        names = {name for name, _ in given}
        if MATHML.fullmatch(tag):
            assert not {name for name in names if re.search(r"href|src|^on|style$|action|class|^id", name)} - {
                "displaystyle"
            }, (tag, names)
            return
        assert tag in HARMLESS, tag
        assert names <= HARMLESS[tag], (tag, names)
        for name, value in given:
            if name == "href":
                assert re.match(r"(https?|mailto):", value or ""), value
            if name == "type":
                assert value == "button"
            if name == "dir":
                assert value in ("ltr", "rtl", "auto")


@pytest.mark.parametrize("text", ATTACKS)
def test_25_nothing_in_a_text_acts(text: str) -> None:
    reader = Strict()
    for attack in (
        text,
        f"a {text} b",
        f"> {text}",
        f"- {text}\n- {text}",
        f"# {text}",
        f"a\n\n{text}\n\nb",
        f"**{text}",
    ):
        reader.feed(str(html_of(attack)))
    reader.close()
    assert reader.seen > 5


def test_25_the_reader_of_this_test_knows_an_attack() -> None:
    for html in ("<img src=x>", "<p onclick=x>", '<a href="javascript:x">', "<script>", '<mi href="x">'):
        with pytest.raises(AssertionError):
            Strict().feed(html)


# ---------------------------------------------------------------- D 26, 27: cut anywhere

PIECES = (
    *("- a", "* b", "1. c", "2. d", "2", "# h", "text", "**b**", "$$", "\\[", "\\]", "x+1", "- [ ] t", "```", "```py"),
    *("~~~", "| a | b |", "|--|--|", "| 1 | 2 |", "> q", "> [!NOTE]", "    code", "  - n", "   on", "---", "===", ""),
    *("$x$ y", "\\(a\\)", "[a]: http://b", "[a]", "`c`", "+ e", "10) f", "\tt", "****", "___", "<div>", "&amp;"),
    *("http://x.y", " $$ ", "a $$", "   $$", "> $$", "- $$", "![", "](", ")", "\0", "\u2028", "<!--", "-->"),
    *("<think>", "</think>", "<think>a", "b</think> c", " <think>", "> <think>"),
    *("[^1]", "[^1]: n", "a[^b]", "[^b]: m", "    in", "[c]: https://c.d 't'", "> [c]", "- [c]: http://e", "```md"),
    *("**「か」**な", "~~い~~", "`c` ש", "- ש", "<br>", "<sub>2", "</sub>", "| a | b | c | d |"),
)
#: what counts in a whole text from its beginning on, and in one that grows from its line on
DEFINES = re.compile(r"\[[^\]]+\]:|\[\^|```md")


def grown(text: str, step: int) -> list[tuple[str, str]]:
    """A text that comes in steps: (what had come, what was shown)."""
    growing, finished, seen = Growing(), "", []
    for start in range(0, len(text), step):
        change = growing.add(text[start : start + step])
        assert change.open is not None
        finished += change.finished
        # A carriage return at the end may be half of a line break.
        seen.append((text[: start + step].removesuffix("\r"), finished + change.open))
    return seen


def at_once(text: str) -> str:
    """What a page shows that is opened when so much is written."""
    shown = Growing().add(text)
    assert shown.open is not None
    return shown.finished + shown.open


@pytest.mark.parametrize("seed", range(40 if LONG_TESTS else 2))
def test_27_cut_anywhere_it_looks_as_if_it_had_come_at_once(seed: int) -> None:
    chance = random.Random(seed)
    compared = 0
    while compared < 2000:
        parts = (chance.choice(PIECES) + chance.choice(("\n", "\n", "\n\n", "", " ", "\r\n", "\r")) for _ in range(12))
        text = "".join(parts)
        for step in (1, 3):
            for so_far, shown in grown(text, step):
                assert shown == at_once(so_far), (text, so_far)
                assert shown == render(normal(so_far)) or DEFINES.search(so_far), (text, so_far)
                compared += 1


@pytest.mark.parametrize("text", ATTACKS)
def test_26_an_attack_cut_anywhere_does_nothing_either(text: str) -> None:
    for so_far, shown in grown(f"{text}\n\n-", 1):
        reader = Strict()
        reader.feed(shown)
        assert shown == at_once(so_far)


# ---------------------------------------------------------------- D 28: what it costs

LONG = {
    "emphasis": "*a ",
    "underscores": "_a",
    "brackets": "[",
    "links": "[a](",
    "pictures": "![[",
    "quotes": "> ",
    "items": "- ",
    "backticks": "`a``b",
    "dollars": "$a ",
    "formulas": "$x^2$ ",
    "open formulas": "\\(a",
    "ampersands": "&",
    "entities": "&#x",
    "addresses": "http://a",
    "schemes": "://",
    "rows": "a|b\n",
    "definitions": "[a]: https://b\n",
    "references": "[a][1] ",
    "notes": "[^1]: a\n",
    "notes in notes": "[^1]: ",
    "marks": "[^1]",
    "documents": "```md\n```py\n```\n",
    "lowered": "<sub>a",
    "breaks": "<br",
    "stars of Japanese": "**「あ」**",
    "tildes": "~~a~ ",
    "escaped dollars": "$a\\$",
    "levels": "- - > ",
    "cells": "| a ",
    "directions": "> - ש ",
    "fences": "```\n",
    "open blocks of formulas": "$$\na\n",
    "tags": "<a ",
    "thoughts": "<think>",
    "thoughts in lines": "<think>\na\n",
    "lines": "a\n",
    "backslashes": "\\",
    "words": "tok1 ",
}


@pytest.mark.parametrize("unit", LONG.values(), ids=LONG)
def test_28_twice_the_text_takes_twice_the_time(unit: str) -> None:
    def seconds(characters: int) -> float:
        text = (unit * characters)[:characters]
        best = 9.0
        for turn in range(2):
            began = time.process_time()
            render(text + " " * turn)
            best = min(best, time.process_time() - began)
        return best

    assert seconds(8_000) < max(6 * seconds(4_000), 0.1)


@pytest.mark.parametrize("unit", ("- a\n", "tok1 ", "| a | b |\n"), ids=("one list", "one paragraph", "one table"))
def test_28_a_reply_that_is_one_block_costs_the_same_for_each_character(unit: str) -> None:
    """Its open block is rendered again less often the longer it is; what comes in between is shown as text."""
    growing, sent = Growing(), 0
    text = ("| a | b |\n|---|---|\n" if unit.startswith("|") else "") + unit * (10_000 // len(unit))
    for start in range(0, len(text), 50):
        change = growing.add(text[start : start + 50])
        sent += len(change.finished) + len(change.open if change.open is not None else change.text)
    assert sent < (len(text) * (AGAIN + 2) + AHEAD) * 8


def test_text_between_two_renderings_goes_where_the_open_block_is() -> None:
    growing = Growing()
    growing.add("```\n" + "x" * 10_000)
    times = 1
    while (change := growing.add("y")).open is not None:
        times += 1
    assert change.in_code and change.text == "y"
    closed = growing.add("\n```\n\n" + "z" * 4000 + "\n")
    assert closed.open == render("z" * 4000)
    assert closed.finished == render("```\n" + "x" * 10_000 + "y" * times + "\n```")


def test_of_an_endless_reply_the_rest_is_shown_as_it_is() -> None:
    html = render("*a* " * RENDERED_CHARACTERS)
    assert html.count("<em>") == RENDERED_CHARACTERS // 4
    assert '<div class="rest" dir="auto">*a* *a* ' in html

"""Nothing of a reply is missing from the page without a word: each word of a text can be read in what it becomes."""

import html
import random
import re
from collections.abc import Callable

import pytest

from tests.web.test_markdown import at_once
from web.markdown import render

SHOWN: dict[str, Callable[[str], str]] = {"ended": render, "growing": at_once}


def words(text: str) -> list[str]:
    """The words of a test text, each of which stands in it once."""
    return re.findall(r"word\d+e?", text)


def read(markup: str) -> list[str]:
    """The same, of what a page shows of it: no tag and no attribute."""
    return words(html.unescape(re.sub(r"<[^>]*>", "", markup)))


@pytest.mark.parametrize("shown", SHOWN.values(), ids=SHOWN)
@pytest.mark.parametrize("mark", ["- ", "1. ", "> ", "[^a]: ", "> - ", "- > ", "- [x] ", "> [!NOTE]\n> "])
def test_each_level_of_a_container_is_on_the_page(mark: str, shown: Callable[[str], str]) -> None:
    _, *more = mark.split("\n")
    for depth in (1, 9, 10, 11, 16, 17, 40):
        nested = "\n".join(f"{'    ' * level}{mark if not more else '> '}word{level}" for level in range(depth))
        inline = mark * depth + "word0" if not more else "> " * depth + "[!NOTE]\n" + "> " * depth + "word0"
        for text in (nested, inline, f"{inline}\n\nword1", f"a\n{inline}\n{inline.replace('word0', 'word1')}"):
            assert set(read(shown(text))) == set(words(text)), (depth, text)


def test_a_tenth_level_of_a_list_is_a_level_of_the_list() -> None:
    text = "\n".join(f"{'  ' * level}- word{level}" for level in range(12))
    assert render(text).count("<ul>") == 12


DEEP = {
    "a block of code": "```python\nword1 = 1\n\n  word2\n```",
    "a fence of tildes": "~~~\nword1\n~~~",
    "lines": "word1\n  word2\n\nword3",
    "a list": "- word1\n  - word2\n- word3",
}


@pytest.mark.parametrize("shown", SHOWN.values(), ids=SHOWN)
@pytest.mark.parametrize("lines", DEEP.values(), ids=DEEP)
@pytest.mark.parametrize("mark", ["- ", "1. ", "> "])
def test_what_stands_too_deep_keeps_its_lines(mark: str, lines: str, shown: Callable[[str], str]) -> None:
    """A fence that is read as text would make its closing fence open a block, and code of what follows."""
    indent = mark if mark == "> " else " " * len(mark)

    def within(depth: int) -> str:
        rest = [f"{indent * depth}{line}".rstrip() for line in lines.split("\n")[1:]]
        return "\n".join((mark * depth + lines.split("\n")[0], *rest))

    made = html.unescape(re.sub(r"<[^>]*>", "", shown(f"{within(17)}\n\nword9")))
    assert within(1) in made and made.endswith("\nword9\n")


@pytest.mark.parametrize(
    ("opening", "closing"),
    [("*", "*"), ("**", "**"), ("[", "](https://a.b)"), ("![", "](https://a.b)"), ("<sub>", "</sub>"), ("~~", "~~")],
)
def test_marks_within_a_line_lose_no_word_however_deep_they_are(opening: str, closing: str) -> None:
    for depth in (1, 2, 10, 50, 300):
        text = " ".join(f"{opening}word{n}" for n in range(depth)) + f"{closing} " * depth + "word9999"
        assert read(render(text)) == words(text), depth


NOT_LET_THROUGH = {
    "a file": ("[word1](docs/word2.md)", "[word1](docs/word2.md)"),
    "a path on this server": ("[word1](/word2)", "[word1](/word2)"),
    "a sandbox": ('[word1](sandbox:/word2.csv "word3")', '[word1](sandbox:/word2.csv "word3")'),
    "nothing": ("[word1]()", "[word1]()"),
    "a picture of a file": ("![word1](word2.png)", "![word1](word2.png)"),
    "a place within a page": ("[word1](#there)", "word1"),
    "another scheme": ("<ftp://word1>", "ftp://word1"),
}


@pytest.mark.parametrize(("text", "seen"), NOT_LET_THROUGH.values(), ids=NOT_LET_THROUGH)
def test_a_link_that_is_not_let_through_shows_where_it_led(text: str, seen: str) -> None:
    assert html.unescape(render(text)) == f"<p>{seen}</p>\n"


LOST = {
    "cells beyond the columns of a table": "| word1 | word2 |\n|--|--|\n| word3 | word4 | word5 || word6 |",
    "the rest of a fence's line": "```python title=word1 word2\nword3\n```",
    "code and marks in the name of a picture": "![word1 `word2` *word3* $word4$](https://a.b)",
    "a definition that nothing refers to": "word1\n\n[word2]: https://word3.org 'word4'",
    "a note that nothing refers to": "word1\n\n[^word2]: word3\n\n    word4",
    "tags": "<details><summary>word1</summary>word2</details><!-- word3 --><script>word4</script><style>word5</style>",
    "a tag in a line": "a <word1 word2='word3'> b </word4> <br word5>",
    "a formula that is none": "$\\word1{word2}$ and \\(word3 \\\\begin{word4}\\)",
}


@pytest.mark.parametrize("shown", SHOWN.values(), ids=SHOWN)
@pytest.mark.parametrize("text", LOST.values(), ids=LOST)
def test_parts_that_parsers_leave_out_are_there(text: str, shown: Callable[[str], str]) -> None:
    assert read(shown(text)) == words(text) or set(read(re.sub(r"</?m[a-z]+>", "", shown(text)))) == set(words(text))


@pytest.mark.parametrize("other", ["https://two.example/b", 'https://one.example/a "word9"'])
def test_of_two_definitions_with_one_label_the_one_that_lost_stays(other: str) -> None:
    """Models that number the sources of each section anew."""
    html_ = render(f"First [1].\n\n[1]: https://one.example/a\n\nSecond [1].\n\n[1]: {other}")
    assert html_.count('<a href="https://one.example/a"') == 2 + ("one" in other)
    assert "[1]: " in html_ and ("two.example/b</a>" in html_ or "word9" in html_)
    same = "First [1].\n\n[1]: https://one.example/a\n\nAgain [1].\n\n[1]: https://one.example/a"
    assert "[1]: " not in render(same)


CONTAINERS = ("- {}", "1. {}", "> {}", "* {}", "   - {}", "- [ ] {}", "[^{n}]: {}", "### {}", "| {} |\n|--|\n| {} |")
INLINE = (
    "{}",
    "*{}*",
    "**{}**",
    "~~{}~~",
    "`{}`",
    "[{}](https://a.b)",
    "![{}](https://a.b)",
    "<kbd>{}</kbd>",
    "__{}__",
)


@pytest.mark.parametrize("shown", SHOWN.values(), ids=SHOWN)
@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_nested_in_whatever_every_word_is_there(seed: int, shown: Callable[[str], str]) -> None:
    chance, told = random.Random(seed), 0

    def word() -> str:
        nonlocal told
        told += 1
        return f"word{told}e"

    for _ in range(150):
        lines = []
        for _ in range(chance.randrange(1, 14)):
            line = " ".join(chance.choice(INLINE).replace("{}", word()) for _ in range(2))
            for _ in range(chance.choice((0, 1, 1, 2, 3, 8, 25))):
                shape = chance.choice(CONTAINERS[:7])
                line = shape.replace("{n}", str(told)).replace("{}", line)
            if chance.random() < 0.1:
                line = chance.choice(CONTAINERS[7:]).replace("{}", word())
            lines.append(" " * chance.choice((0, 0, 1, 2, 3, 4, 6, 12)) + line)
            lines += [""] * chance.choice((0, 0, 1))
        text = "\n".join(lines)
        assert set(read(shown(text))) == set(words(text)), text

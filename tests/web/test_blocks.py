"""Blocks of replies: fences within fences, footnotes, link definitions, directions, diagrams."""

import re

import pytest

from tests.web.test_markdown import at_once, grown
from web.markdown import render

DOCUMENT = "```markdown\n# Title\n```python\nx = 1\n```\nend\n```\n\nafter"
WITHIN = {
    "a block in Markdown": DOCUMENT,
    "by its short name": DOCUMENT.replace("markdown", "md"),
    "with tildes": DOCUMENT.replace("```", "~~~"),
    "two blocks": DOCUMENT.replace("end\n", "```sh\ny\n```\nend\n"),
    "a document in a document": DOCUMENT.replace("x = 1", "```md\nz\n```"),
    "longer fences within": DOCUMENT.replace("```python\nx = 1\n```", "````python\n```\n````"),
    "longer fences around": "````markdown\n```python\nx\n```\n```\n```\n````\n\nafter",
    "a bare block": DOCUMENT.replace("```python", "\n```"),
    "a bare block at the end": DOCUMENT.replace("```python", "\n```").replace("end\n", ""),
    "two bare blocks": DOCUMENT.replace("```python", "\n```").replace("end\n", "\n```\ny\n```\nend\n"),
    "in an item of a list": "- " + DOCUMENT.replace("\n", "\n  ").replace("\n  \n  after", "\n\nafter"),
}


@pytest.mark.parametrize("text", WITHIN.values(), ids=WITHIN)
def test_a_document_holds_the_blocks_within_it(text: str) -> None:
    assert render(text).count('<div class="code">') == 1
    assert render(text).endswith("<p>after</p>\n")
    assert grown(text, 1)[-1][1] == grown(text, 7)[-1][1] == render(text)


def test_a_document_that_does_not_come_out_even_ends_at_its_first_bare_fence() -> None:
    text = "```markdown\n```python\nx\n```\n\nafter"
    assert render(text).endswith("<p>after</p>\n")
    assert "after" in at_once(text)
    assert render("```python\n```json\nx\n```\n\nafter").endswith("<p>after</p>\n")
    assert render("```markdown\nx\n\n```\nafter").endswith("<p>after</p>\n")


@pytest.mark.parametrize("between", ["\n\n", "\n\nso\n", "\n"])
def test_a_document_and_a_bare_block_behind_it_are_two(between: str) -> None:
    assert render(f"```markdown\nx\n```{between}```\ny\n```\n").count('<div class="code">') == 2


def test_a_reference_is_a_link_and_its_definition_is_gone() -> None:
    text = (
        'See [text][1], [1], [b] and [c][].\n\n[1]: https://example.org/page "title"\n[b]: <https://b.c>\n[C]: http://c'
    )
    html = render(text)
    assert '<a href="https://example.org/page" title="title" target="_blank"' in html
    assert ">text</a>" in html and ">[1]</a>" in html and ">b</a>" in html and ">c</a>" in html
    assert "]:" not in html


@pytest.mark.parametrize("between", ["\n\n", "\n", "\n\nSources:\n", "\n\n- ", "\n\n> "])
def test_definitions_are_found_where_models_put_them(between: str) -> None:
    html = render(f"See [a][1].{between}[1]: https://a.b")
    assert '<a href="https://a.b"' in html and "]:" not in html and "<li>" not in html and "<blockquote" not in html


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("- [1]: https://a.b\n- c", "<ul>\n<li>c</li>\n</ul>\n"),
        ("> - [1]: https://a.b\n>\n> c", "<blockquote>\n<p>c</p>\n</blockquote>\n"),
        ("> [1]: https://a.b\n>\n> [1]: https://a.b", ""),
        ("- [1]: https://a.b\n\n  > [1]: https://a.b", ""),
        ("-\n- c", "<ul>\n<li></li>\n<li>c</li>\n</ul>\n"),
    ],
)
def test_a_bullet_or_quotation_of_nothing_but_used_definitions_is_gone(text: str, left: str) -> None:
    definition = "" if "[1]" in text else "\n\n[1]: https://a.b"
    assert render(f"[1]\n\n{text}{definition}").split("</p>\n", 1)[1] == left


def test_in_a_numbered_list_a_used_definition_keeps_its_number() -> None:
    html = render("See [a][1].\n\n1. [1]: https://a.b\n2. c")
    assert html.count("<li>") == 2 and "[1]: <a " in html and ">a</a>" in html


@pytest.mark.parametrize(
    ("written", "title"),
    [('"say \\"hi\\""', "say &quot;hi&quot;"), ("'it\\'s'", "it's"), ("(a \\(b\\) c)", "a (b) c"), ('"a\\b"', "a\\b")],
)
def test_a_title_may_hold_its_own_quotation_marks(written: str, title: str) -> None:
    assert f'title="{title}"' in render(f"[a][1]\n\n[1]: https://a.b {written}")


@pytest.mark.parametrize("address", ["/logout", "javascript:alert(1)", "data:text/html,x", "file:///x", "//a.b"])
def test_a_definition_of_another_address_stays_text(address: str) -> None:
    html = render(f"[a]\n\n[a]: {address}")
    assert "<a" not in html and f"[a]: {address}" in html


def test_while_a_text_grows_a_reference_is_a_link_once_its_definition_has_come() -> None:
    text = "[a][1]\n\n[1]: https://a.b\n\n[c][1]\n\nend"
    shown = grown(text, 1)[-1][1]
    assert shown == at_once(text)
    assert "<p>[a][1]</p>" in shown and ">c</a>" in shown
    assert ">a</a>" in render(text) and ">c</a>" in render(text)


def test_a_footnote_is_a_mark_and_a_note() -> None:
    html = render("One[^1] two[^b].\n\n[^1]: The *note*.\n    goes on\n\n    - x\n[^b]: Other.\n\nend")
    assert 'One<sup class="mark">1</sup> two<sup class="mark">b</sup>.' in html
    assert '<div class="note"><sup class="mark">1</sup>\n<div>\n<p>The <em>note</em>.<br>\ngoes on</p>' in html
    assert html.count('<div class="note">') == 2 and html.endswith("<p>end</p>\n")


def test_a_mark_without_a_note_is_text() -> None:
    assert render("`[^a]` [^a-z] and [^1]") == "<p><code>[^a]</code> [^a-z] and [^1]</p>\n"
    assert at_once("[^a-z] and [^1]") == '<p>[^a-z] and <sup class="mark">1</sup></p>\n'


RTL = {
    "a paragraph": ("`npm i` שלום", '<p dir="rtl"><code>npm i</code> שלום</p>'),
    "after an address": ("https://a.b مرحبا", '<p dir="rtl">'),
    "after a formula": ("$x$ مرحبا", '<p dir="rtl">'),
    "a list": ("- `a` שלום\n- b", '<ul dir="rtl">\n<li><code>a</code> שלום</li>\n<li>b</li>'),
    "a numbered list": ("1. **`a`** שלום", '<ol dir="rtl">'),
    "a heading": ("# `a` שלום", '<h3 dir="rtl">'),
    "a quotation": ("> `a` שלום", '<blockquote dir="rtl">\n<p>'),
    "a table": ("| `a` | שלום |\n|--|--|\n| x | y |", '<table dir="rtl">'),
    "a cell": ("| a |\n|--|\n| `a` שלום |", '<td dir="rtl">'),
    "a note to the reader": ("> [!NOTE]\n> `a` שלום", '<div class="alert alert-note" dir="rtl">'),
    "a footnote": ("[^1]: `a` שלום", '<div class="note" dir="rtl">'),
    "English within": ("> שלום\n>\n> hello", '<blockquote dir="rtl">\n<p>שלום</p>\n<p dir="ltr">hello</p>'),
}


@pytest.mark.parametrize(("text", "begins"), RTL.values(), ids=RTL)
def test_a_block_runs_as_its_words_do(text: str, begins: str) -> None:
    assert begins in render(text)


def test_from_left_to_right_nothing_is_marked() -> None:
    text = "# a\n\nb `c`\n\n- d\n\n> e\n\n| f |\n|--|\n| 1 |\n\n[^1]: g\n\n`שלום` a\n\n1.\n"
    assert "dir=" not in render(text)


@pytest.mark.parametrize("language", ["mermaid", "Mermaid", "plantuml", "dot"])
def test_a_diagram_says_that_it_is_shown_as_its_source(language: str) -> None:
    html = render(f"```{language}\na --> b\n```")
    assert f"<span>{language} (source of a diagram)</span>" in html and "a --&gt; b" in re.sub("<[^>]+>", "", html)

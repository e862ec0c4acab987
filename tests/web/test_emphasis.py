"""Emphasis beside Chinese, Japanese and Korean, tildes, dollars, and the few tags that are marks."""

import html
import random

import pytest
from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline

from web.markdown import render
from web.markdown_rules.emphasis import flanks

SHOWN = {
    "a bracket within": ("これは**「重要」**な点", "これは<strong>「重要」</strong>な点"),
    "a colon at the end": ("**注意：**请看", "<strong>注意：</strong>请看"),
    "a full stop at the end": ("**終わり。**次", "<strong>終わり。</strong>次"),
    "quotation marks of both scripts": ("他说**“你好”**。然后", "他说<strong>“你好”</strong>。然后"),
    "a Korean particle": ("**중요(important)**는 말", "<strong>중요(important)</strong>는 말"),
    "a Korean particle after code": ("**`npm`**을 실행", "<strong><code>npm</code></strong>을 실행"),
    "one star": ("これは*「重要」*な点", "これは<em>「重要」</em>な点"),
    "underscores": ("これは__「重要」__な点", "これは<strong>「重要」</strong>な点"),
    "tildes": ("これは~~「重要」~~な点", "これは<s>「重要」</s>な点"),
    "half-width brackets": ("これは**(重要)**な点", "これは<strong>(重要)</strong>な点"),
    "a variant of a character": ("葛\U000e0100**(重要)**な点", "葛\U000e0100<strong>(重要)</strong>な点"),
    "Thai": ("นี่คือ**(สำคัญ)**มาก", "นี่คือ<strong>(สำคัญ)</strong>มาก"),
    "Thai with a colon": ("ข้อความ**สำคัญ:**ต่อไป", "ข้อความ<strong>สำคัญ:</strong>ต่อไป"),
    "Khmer": ("នេះ**“សំខាន់”**ណាស់", "នេះ<strong>“សំខាន់”</strong>ណាស់"),
    "Burmese": ("ခ**မြန်မာ။**စာ", "ခ<strong>မြန်မာ။</strong>စာ"),
    "Lao": ("ນີ້**(ສຳຄັນ)**ຫຼາຍ", "ນີ້<strong>(ສຳຄັນ)</strong>ຫຼາຍ"),
    "within a link": ("[**注意：**请](https://a.b)", None),
    "a name in snake_case": ("報告_2024_最終 と __init__は", "報告_2024_最終 と __init__は"),
    "Latin text is read as before": ("**Note:**text", "**Note:**text"),
    "an emoji is no letter of theirs": ("😀**(a)**b", "😀**(a)**b"),
    "one tilde": ("takes ~3~5 minutes, ~/a and ~/b", "takes ~3~5 minutes, ~/a and ~/b"),
    "two tildes": ("~~3~~5", "<s>3</s>5"),
    "three tildes": ("a ~~~b~~~ c", "a ~~~b~~~ c"),
    "a sum in a formula": (
        "$\\$0.60$",
        '<math display="inline"><mrow><mi>$</mi><mn>0.60</mn></mrow></math>',
    ),
    "sums": ("$5 and $6, $1,000–$2,000, US$5 or $6", "$5 and $6, $1,000–$2,000, US$5 or $6"),
    "a dollar in code closes nothing": ("$5 and $6, `$HOME` or $7", "$5 and $6, <code>$HOME</code> or $7"),
    "escaped dollars": ("\\$5 and \\$6 or $7 and \\$8", "$5 and $6 or $7 and $8"),
    "a formula in Chinese text": ("值$x$的", '值<math display="inline"><mrow><mi>x</mi></mrow></math>的'),
    "an address in Chinese text": (
        "见https://a.b/c。然后",
        '见<a href="https://a.b/c" dir="ltr" target="_blank" rel="noopener noreferrer nofollow">https://a.b/c</a>。然后',
    ),
    "a break": ("a<br>b<BR/>c<br />d", "a<br>\nb<br>\nc<br>\nd"),
    "raised and lowered": ("H<sub>2</sub>O x<sup>*n*</sup>", "H<sub>2</sub>O x<sup><em>n</em></sup>"),
    "keys": ("<kbd>Ctrl</kbd>", "<kbd>Ctrl</kbd>"),
    "tags that are not closed, or say more": (
        "<sub>2 <sup class=x>a</sup> <br x>",
        "&lt;sub&gt;2 &lt;sup class=x&gt;a&lt;/sup&gt; &lt;br x&gt;",
    ),
    "tags in code": ("`<br>`", "<code>&lt;br&gt;</code>"),
}


MADE = {
    "aligned": (r"\begin{aligned}[t] a&=b\\ c&=d \end{aligned}", 2),
    "aligned in a bracket": (r"\left\{\begin{aligned}a&=b\\c&=d\\e&=f\end{aligned}\right.", 3),
    "gathered": (r"\begin{gathered}a=b\\c=d\end{gathered}", 2),
    "gather": (r"\begin{gather*}a\\b\end{gather*}", 2),
    "cases of full size": (r"\begin{dcases}a & b\\ c & d\end{dcases}", 2),
    "a label": (r"\begin{align}\label{eq:a_b} a&=b \notag\end{align}", 1),
}
WORDS = {r"\text{\$5}": "$5", r"\text{5\,\%}": None, r"\textbf{a\_b \& \#1}": "a_b\xa0&amp;\xa0#1", r"\mbox{\$}": "$"}
NOT_MADE = (
    *(r"\ce{2H2 + O2 -> 2H2O}", r"\pu{5 kg}", r"\unknown{x}", r"x \\ y", r"a & b", r"\text{a $x$ b}", r"\text{\(x\)}"),
    *(r"\begin{alignedat}{2}a&b\end{alignedat}", r"\begin{multline}a\\b\end{multline}", r"\mathop{x}"),
)


@pytest.mark.parametrize(("source", "rows"), MADE.values(), ids=MADE)
def test_an_environment_has_its_rows(source: str, rows: int) -> None:
    made = render(f"$${source}$$")
    assert made.count("<mtr>") == rows and "&amp;" not in made and "label" not in made


@pytest.mark.parametrize(("source", "words"), WORDS.items())
def test_words_in_a_formula_are_without_backslashes(source: str, words: str | None) -> None:
    made = render(f"$${source}$$").replace("&nbsp;", "\xa0")
    assert f">{words}</mtext>" in made if words else "<code>" in made


@pytest.mark.parametrize("source", NOT_MADE)
def test_a_formula_that_cannot_be_shown_right_stands_as_it_was_written(source: str) -> None:
    made = html.unescape(render(f"$${source}$$"))
    assert f"<code>{source}</code>" in made and "<math" not in made


@pytest.mark.parametrize(("text", "shown"), SHOWN.values(), ids=SHOWN)
def test_a_line_is_shown_as_its_writer_expects(text: str, shown: str | None) -> None:
    if shown is None:
        assert "<strong>注意：</strong>请</a>" in render(text)
    else:
        assert render(text) == f"<p>{shown}</p>\n"


def test_a_break_in_a_cell_is_a_line_of_it() -> None:
    assert "<td>1<br>\n2</td>" in render("| a |\n|--|\n| 1<br>2 |")


def test_text_without_cjk_characters_is_scanned_as_commonmark_has_it() -> None:
    chance, parser = random.Random(1), MarkdownIt()
    for _ in range(20_000):
        around = "".join(chance.choice('ab1 .,"(“”é\u00a0😀—') for _ in range(2))
        mark = chance.choice("*_~")
        run = mark * chance.randrange(1, 4)
        text = chance.choice(("", around[0])) + run + chance.choice(("", around[1]))
        start = text.index(mark)
        scanned = StateInline(text, parser, {}, []).scanDelims(start, mark != "_")
        assert flanks(text, start, start + len(run), len(text)) == (scanned.can_open, scanned.can_close), text

"""LaTeX between dollars, \\( \\) or \\[ \\] as MathML; a formula is known by its lines, so that it can be streamed."""

import re
from functools import lru_cache

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

from web.markdown_rules.scripts import has_no_blanks

#: a longer formula is shown as it is written
FORMULA_CHARACTERS = 2_000
#: how a formula opens → how it closes
BLOCKS = {"$$": "$$", "\\[": "\\]"}
INLINE = {"$$": "$$", "\\[": "\\]", "\\(": "\\)", "$": "$"}

#: environments that the library does not know → one that looks the same
ENVIRONMENTS = {
    "aligned": "align*",
    "gathered": "matrix",
    "gather": "matrix",
    "gather*": "matrix",
    "dcases": "cases",
}
#: what shows nothing
_UNSEEN = re.compile(r"\\(?:label\{[^{}]*\}|(?:nonumber|notag)(?![A-Za-z]))|(?<=\\operatorname)\*")
#: words within a formula, and the characters in them that LaTeX wants escaped
_WORDS, _ESCAPED = re.compile(r"<mtext[^>]*>[^<]*</mtext>"), re.compile(r"\\([$%&#_{}])")
#: signs that the library has not understood: a command, LaTeX among words, a column or row outside of a table, nothing
_UNKNOWN = re.compile(
    r"<m[io][^>]*>[^<]*\\[^<]|<mtext[^>]*>(?:[^<\\$]|\\[$%&#_{}])*+[\\$]"
    r'|<mi>&</|linebreak="newline"|<mo ?/>|<mo><'
)


def add_math(parser: MarkdownIt) -> None:
    """Teach a parser formulas, in a line and as blocks of their own; their tokens are called `formula`."""
    parser.block.ruler.before("fence", "formula", _block, {"alt": ["paragraph", "blockquote", "list"]})
    parser.inline.ruler.before("escape", "formula", _inline)


@lru_cache(maxsize=512)
def mathml(source: str, *, display: bool) -> str | None:
    """A formula as MathML; None where it is not one."""
    from latex2mathml.converter import convert

    if len(source) > FORMULA_CHARACTERS:
        return None
    source = _UNSEEN.sub("", source)
    for name, same in ENVIRONMENTS.items():
        source = re.sub(rf"\\(begin|end){{{re.escape(name)}}}(?:\[[tcb]\])?", rf"\\\1{{{same}}}", source)
    try:
        made = str(convert(source, display="block" if display else "inline"))
    except Exception:  # whatever a model writes may be no LaTeX, and the library has many ways to say so
        return None
    if _UNKNOWN.search(made):
        return None
    return _WORDS.sub(lambda words: _ESCAPED.sub(r"\1", words[0]), made)


def _block(state: StateBlock, first: int, end: int, silent: bool) -> bool:
    """Lines from `$$` to `$$`, or `\\[` to `\\]`. A blank line ends it too; then it is a paragraph like any other."""
    if state.is_code_block(first):
        return False
    line = _line(state, first)
    closing = BLOCKS.get(line[:2])
    if closing is None:
        return False
    rest = line[2:].rstrip()
    whole = rest.endswith(closing) and bool(rest.removesuffix(closing).strip())
    if closing in rest and not (whole and rest.index(closing) == len(rest) - 2):
        return False  # within a line of text
    if silent:
        return True
    last, closed = first, whole
    while not closed and last + 1 < end:
        here = _line(state, last + 1)
        if not here.strip() or state.sCount[last + 1] < state.blkIndent:
            break
        last += 1
        closed = here.rstrip().endswith(closing)
    state.line = last + 1
    text = state.getLines(first, last + 1, state.blkIndent, False).strip()
    if closed:
        token = state.push("formula", "", 0)
        token.block, token.map, token.meta = True, [first, state.line], {"display": True}
        token.content = text[2:-2].strip()
        return True
    token = state.push("paragraph_open", "p", 1)
    token.map = [first, state.line]
    token = state.push("inline", "", 0)
    token.map, token.content, token.children = [first, state.line], text, []
    state.push("paragraph_close", "p", -1)
    return True


def _line(state: StateBlock, number: int) -> str:
    return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]]


def _inline(state: StateInline, silent: bool) -> bool:
    """`$x$`, `$$x$$`, `\\(x\\)` or `\\[x\\]` within a line; two sums of money are no formula."""
    source, at = state.src, state.pos
    opening = next((mark for mark in INLINE if source.startswith(mark, at)), "")
    if not opening:
        return False
    start, closing = at + len(opening), INLINE[opening]
    if source[start : start + 1].isspace() and opening == "$":
        return False
    stop = _end(source, closing, start, min(state.posMax, start + FORMULA_CHARACTERS))
    content = source[start:stop] if stop > 0 else ""
    if not content.strip():
        return False
    after = source[stop + len(closing) : stop + len(closing) + 1]
    if opening == "$" and (
        "`" in content  # the other dollar stands in code
        or content[-1].isspace()
        or after.isdigit()
        or (at > 0 and source[at - 1].isalnum() and not has_no_blanks(source[at - 1]))
    ):
        return False
    if not silent:
        token = state.push("formula", "", 0)
        token.content, token.meta = content, {"display": opening in BLOCKS}
    state.pos = stop + len(closing)
    return True


def _end(source: str, closing: str, start: int, most: int) -> int:
    """Where a formula ends, -1 if it does not; a dollar behind a backslash is one of its characters."""
    stop = source.find(closing, start, most)
    while stop > start and closing == "$" and source[stop - 1] == "\\":
        stop = source.find(closing, stop + 1, most)
    return stop

"""Footnotes: `[^1]` in the text is a raised mark, and `[^1]: …` a note with the same mark where it was written.

Nothing moves and nothing is counted anew, so that a text can be shown while it is written. A mark without a note is
text; while a text grows, a number counts as a mark before its note has come.
"""

import re
from collections.abc import Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from web.markdown_rules.containers import DEEPEST_QUOTATION

#: how far the lines of a note stand in
INDENT = 4
_MARK = re.compile(r"\[\^([^\s\[\]^]{1,40})\]")


def add_notes(parser: MarkdownIt) -> None:
    """Teach a parser footnotes."""
    parser.block.ruler.before("reference", "note", _block, {"alt": ["paragraph", "reference", "blockquote", "list"]})
    parser.inline.ruler.before("link", "mark", _inline)
    parser.add_render_rule("mark", _render_mark)
    parser.add_render_rule("note_open", _render_note)
    parser.add_render_rule("note_close", _render_end)


def _block(state: StateBlock, first: int, end: int, silent: bool) -> bool:
    """`[^1]: …` and the lines below it that stand in: blocks of their own."""
    start = state.bMarks[first] + state.tShift[first]
    found = _MARK.match(state.src, start, state.eMarks[first])
    if found is None or not state.src.startswith(":", found.end()):
        return False
    if state.is_code_block(first) or state.level >= DEEPEST_QUOTATION:
        return False
    if silent:
        return True
    after = found.end() + 1
    text = after
    while text < state.eMarks[first] and state.src[text] in " \t":
        text += 1
    before = state.bMarks[first], state.tShift[first], state.sCount[first], state.parentType
    token = state.push("note_open", "div", 1)
    token.map = lines = [first, 0]
    token.meta = {"note": found[1]}
    state.bMarks[first], state.tShift[first] = after, text - after
    state.blkIndent += INDENT
    state.sCount[first] = state.blkIndent
    state.parentType = "footnote"
    state.md.block.tokenize(state, first, end)
    state.blkIndent -= INDENT
    state.bMarks[first], state.tShift[first], state.sCount[first], state.parentType = before
    state.push("note_close", "div", -1)
    lines[1] = state.line
    return True


def _inline(state: StateInline, silent: bool) -> bool:
    if not state.src.startswith("[^", state.pos):
        return False
    found = _MARK.match(state.src, state.pos, state.posMax)
    if found is None:
        return False
    label = found[1]
    if label not in state.env["notes"] and not (state.env["growing"] and label.isdigit()):
        return False
    if not silent:
        state.push("mark", "", 0).content = label
    state.pos = found.end()
    return True


def _render_mark(self: Any, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    return f'<sup class="mark">{escapeHtml(tokens[at].content)}</sup>'


def _render_note(self: Any, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    attributes = self.renderAttrs(tokens[at])
    return f'<div class="note"{attributes}><sup class="mark">{escapeHtml(tokens[at].meta["note"])}</sup>\n<div>\n'


def _render_end(self: Any, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    return "</div></div>\n"

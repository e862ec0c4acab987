"""Blocks of code between fences; a text in Markdown may hold such blocks itself.

Models write a whole document between ```markdown and ``` and fence the code within it the same way. As CommonMark has
it, the first inner ``` ends the document. Here a fence that names a language opens a block within it, and the next bare
fence ends that one. A bare fence opens one too where a blank line stands above it and none below. Where they do not
come out even, it is read as CommonMark has it, once the reply is complete.
"""

from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock

#: languages whose text may hold fences
HOLD_FENCES = {"markdown", "md", "mdx", "text", "txt", "plaintext"}
#: so many documents of a text may turn out to be uneven; then none is looked through any more
UNEVEN = 3


class _Fence(NamedTuple):
    mark: str
    length: int
    info: str


def add_fences(parser: MarkdownIt) -> None:
    """Replace a parser's rule for fences."""
    alternatives = ["paragraph", "reference", "blockquote", "list"]
    parser.block.ruler.at("fence", _block, {"alt": alternatives})


def _fence(state: StateBlock, number: int) -> _Fence | None:
    """What a line opens or closes, if it is a fence."""
    start, end = state.bMarks[number] + state.tShift[number], state.eMarks[number]
    mark = state.src[start : start + 3]
    if mark not in ("```", "~~~") or state.is_code_block(number):
        return None
    after = start
    while after < end and state.src[after] == mark[0]:
        after += 1
    info = state.src[after:end]
    return None if mark == "```" and "`" in info else _Fence(mark[0], after - start, info)


def _begins_code(state: StateBlock, number: int, end: int) -> bool:
    """Whether a bare fence within a document rather opens a block: a blank line stands above it, and none below."""
    return state.isEmpty(number - 1) and number + 1 < end and not state.isEmpty(number + 1)


def _block(state: StateBlock, first: int, end: int, silent: bool) -> bool:
    opening = _fence(state, first)
    if opening is None or silent:
        return opening is not None
    words = opening.info.split()
    holds = bool(words) and words[0].lower() in HOLD_FENCES and state.env.get("uneven", 0) < UNEVEN
    open_fences, plain_end = [opening.length], 0
    line = first + 1
    while line < end:
        start = state.bMarks[line] + state.tShift[line]
        if start < state.eMarks[line] and state.sCount[line] < state.blkIndent:
            break  # the list it stands in has ended
        found = _fence(state, line)
        if found and found.mark == opening.mark:
            if found.info.strip():
                if holds and found.length >= opening.length:
                    open_fences.append(found.length)
            elif found.length >= opening.length:
                plain_end = plain_end or line
                if holds and len(open_fences) == 1 and _begins_code(state, line, end):
                    open_fences.append(found.length)
                elif found.length >= open_fences[-1]:
                    open_fences.pop()
                if not open_fences:
                    break
        line += 1
    closed = not open_fences
    if not closed and plain_end and not state.env.get("growing"):
        state.env["uneven"] = state.env.get("uneven", 0) + 1
        line, closed = plain_end, True
    state.line = line + closed
    token = state.push("fence", "code", 0)
    token.info = opening.info
    token.content = state.getLines(first + 1, line, state.sCount[first], True)
    token.markup = opening.mark * opening.length
    token.map = [first, state.line]
    token.meta = {"closed": closed}
    return True

"""How deep lists and quotations go: what is deeper stands there as it was written, and nothing is left out.

Without this the parser drops whatever is deeper than its limit.
"""

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, blockquote, list_block
from markdown_it.utils import OptionsDict

#: a list counts twice: itself and its item
DEEPEST_LIST, DEEPEST_QUOTATION = 32, 16
#: lines without “>” that may be scanned for all quotations of a text; once they are used up, one for each quotation
UNMARKED = 2_000


class _Options(OptionsDict):
    """Options whose limit for blocks is one that no container comes to; the one within a line stays as it is."""

    maxNesting = 64


def add_containers(parser: MarkdownIt) -> None:
    """Have a parser open no list and no quotation that is too deep."""
    parser.options = _Options(dict(parser.options))  # type: ignore[arg-type]
    ruler = parser.block.ruler
    ruler.at("list", _list, {"alt": ["paragraph", "reference", "blockquote"]})
    ruler.at("blockquote", _quotation, {"alt": ["paragraph", "reference", "blockquote", "list"]})


def _list(state: StateBlock, first: int, end: int, silent: bool) -> bool:
    if state.level < DEEPEST_LIST:
        return list_block(state, first, end, silent)
    return list_block(state, first, end, True) and (silent or _as_written(state, first, end))


def _quotation(state: StateBlock, first: int, end: int, silent: bool) -> bool:
    if state.level >= DEEPEST_QUOTATION:
        return blockquote(state, first, end, True) and (silent or _as_written(state, first, end))
    return blockquote(state, first, end if silent else _reach(state, first, end), silent)


def _as_written(state: StateBlock, first: int, end: int) -> bool:
    """What is too deep, up to the end of what holds it: all its lines as they are, fences and all."""
    line = last = first + 1
    while line < end and (state.isEmpty(line) or state.sCount[line] >= state.blkIndent):
        line += 1
        last = last if state.isEmpty(line - 1) else line
    token = state.push("code_block", "code", 0)
    token.content = state.getLines(first, last, state.blkIndent, False) + "\n"
    token.map = [first, last]
    state.line = last
    return True


def _reach(state: StateBlock, first: int, end: int) -> int:
    """The line up to which the parser may look for the end of this quotation.

    Without a limit it scans to the next blank line, again for each quotation: quadratic where most end early.
    """
    known, seen, line = state.env.get("unmarked", 0), 0, first
    while line < end and seen <= max(1, UNMARKED - known):
        at = state.bMarks[line] + state.tShift[line]
        if at >= state.eMarks[line]:
            break
        seen += state.src[at] != ">"
        line += 1
    state.env["unmarked"] = known + seen
    return max(line, first + 1)

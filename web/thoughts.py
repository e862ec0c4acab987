"""What a model thinks aloud between `<think>` and `</think>` before it answers: kept apart, folded once it is over."""

import re

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock

_BEGINS = re.compile(r"<think(?:ing)?>", re.IGNORECASE)
_ENDS = re.compile(r"</think(?:ing)?>", re.IGNORECASE)


def add_thoughts(parser: MarkdownIt) -> None:
    """Teach a parser thoughts; their tokens are `thoughts_open`, with whether they go on, and `thoughts_close`."""
    parser.block.ruler.before("fence", "thoughts", _block, {"alt": ["paragraph"]})


def _block(state: StateBlock, first: int, end: int, silent: bool) -> bool:
    """Lines up to the one that ends the thoughts; without one, all there are."""
    if state.level or state.env.get("thinking") or state.is_code_block(first):
        return False
    begins = _BEGINS.match(state.src, state.bMarks[first] + state.tShift[first])
    if begins is None:
        return False
    if silent:
        return True
    ends = _ENDS.search(state.src, begins.end(), state.eMarks[end - 1])
    last = first
    while last + 1 < end and (ends is None or state.eMarks[last] < ends.end()):
        last += 1
    state.line = last + 1
    within = state.src[begins.end() : ends.start() if ends is not None else state.eMarks[last]]
    opening = state.push("thoughts_open", "details", 1)
    opening.map, opening.meta = [first, state.line], {"on": ends is None}
    _add(state, within, first, 1)
    state.push("thoughts_close", "details", -1)
    if ends is not None:
        _add(state, state.src[ends.end() : state.eMarks[last]], first, 0)
    return True


def _add(state: StateBlock, text: str, first: int, deeper: int) -> None:
    """The blocks of a text; all of them stand where the thoughts began, for they can only be shown together."""
    before, state.env["thinking"] = len(state.tokens), True
    state.md.block.parse(text.strip("\n"), state.md, state.env, state.tokens)
    state.env["thinking"] = False
    for token in state.tokens[before:]:
        token.level += deeper
        if token.map is not None:
            token.map = [first, state.line]

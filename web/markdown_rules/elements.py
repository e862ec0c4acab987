"""The few tags that models write where Markdown has nothing: `<br>`, and `<sub>`, `<sup>`, `<kbd>` around some words.

They are read as marks without attributes. Any other tag is text.
"""

import re

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline

#: a longer text between two tags is shown with them
LONGEST = 200
_BREAK = re.compile(r"<br ?/?>", re.IGNORECASE)
_OPENING = re.compile(r"<(sub|sup|kbd)>", re.IGNORECASE)
_CLOSING = {tag: re.compile(f"</{tag}>", re.IGNORECASE) for tag in ("sub", "sup", "kbd")}


def add_elements(parser: MarkdownIt) -> None:
    """Teach a parser these tags."""
    parser.inline.ruler.before("autolink", "element", _element)


def _element(state: StateInline, silent: bool) -> bool:
    if state.src[state.pos] != "<":
        return False
    if found := _BREAK.match(state.src, state.pos, state.posMax):
        if not silent:
            state.push("hardbreak", "br", 0)
        state.pos = found.end()
        return True
    if not (found := _OPENING.match(state.src, state.pos, state.posMax)):
        return False
    tag, start, most = found[1].lower(), found.end(), state.posMax
    closing = _CLOSING[tag].search(state.src, start, min(most, start + LONGEST))
    if closing is None or closing.start() == start:
        return False
    if not silent:
        state.push(f"{tag}_open", tag, 1)
        state.pos, state.posMax = start, closing.start()
        state.md.inline.tokenize(state)
        state.push(f"{tag}_close", tag, -1)
    state.pos, state.posMax = closing.end(), most
    return True

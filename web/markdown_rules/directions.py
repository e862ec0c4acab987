"""The direction of each block, from its own words.

A browser takes it from the first letter, and counts code, formulas and addresses as letters from left to right; so an
Arabic sentence that begins with a command ran that way. Here they do not count. Only a block that differs from the one
around it is marked.
"""

from collections.abc import Sequence

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token

from web.markdown_rules.scripts import direction

#: what has a direction of its own; an item of a list has that of the list, which has its marks on one side
BLOCKS = {
    *("paragraph_open", "heading_open", "blockquote_open", "bullet_list_open", "ordered_list_open", "table_open"),
    *("th_open", "td_open", "alert_open", "note_open"),
}


def add_directions(parser: MarkdownIt) -> None:
    """Have a parser tell the direction of each block that differs from what is around it."""
    parser.core.ruler.after("text_join", "directions", _directions)


def _directions(state: StateCore) -> None:
    found: dict[int, str] = {}
    around: list[int] = []
    for at, token in enumerate(state.tokens):
        if token.type == "inline":
            if state.tokens[at - 1].type == "alert_title_open":
                continue  # our own word
            # A block that has its direction has given it to all that are around it.
            way = _of(token.children or ())
            for block in reversed(around if way else ()):
                if block in found:
                    break
                found[block] = way
        elif token.nesting > 0:
            around.append(at)
        elif token.nesting < 0:
            around.pop()
    ways = ["ltr"]
    for at, token in enumerate(state.tokens):
        if token.nesting > 0:
            way = found.get(at, ways[-1]) if token.type in BLOCKS else ways[-1]
            if way != ways[-1] and not token.hidden:
                token.attrSet("dir", way)
            ways.append(way)
        elif token.nesting < 0:
            ways.pop()


def _of(tokens: Sequence[Token]) -> str:
    """The direction of the words in a line, but for code, formulas and addresses."""
    in_address = False
    for token in tokens:
        if token.type == "link_open":
            in_address = token.attrGet("dir") == "ltr" or token.markup == "autolink"
        elif token.type == "link_close":
            in_address = False
        elif token.type in ("text", "image") and not in_address:
            way = _of(token.children) if token.children else direction(token.content)
            if way:
                return way
    return ""

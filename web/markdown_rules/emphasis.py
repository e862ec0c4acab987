"""Emphasis: beside text without blanks between words as its writers expect it; two tildes strike, one does not.

CommonMark finds the beginning and the end of emphasis by blanks and punctuation. Chinese, Japanese, Thai or Khmer text
then keeps its `**`, where a bracket or a full stop stands within. So punctuation of these scripts counts as a letter
here, and their characters count as a boundary beside other punctuation (CommonMark CJK-friendly Amendments). Text
without a character of these scripts is read as before.
"""

from markdown_it import MarkdownIt
from markdown_it.common.utils import isMdAsciiPunct, isPunctChar, isWhiteSpace
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.state_inline import Delimiter

from web.markdown_rules.scripts import has_no_blanks


def add_emphasis(parser: MarkdownIt) -> None:
    """Replace how a parser scans `*`, `_` and `~`; it pairs them as before."""
    parser.options["strikethrough_single_tilde"] = False
    parser.inline.ruler.at("emphasis", _emphasis)
    parser.inline.ruler.at("strikethrough", _strikethrough)


def flanks(text: str, start: int, end: int, most: int) -> tuple[bool, bool]:
    """Whether the marks from `start` to `end` can open and can close emphasis, in a text that ends at `most`."""
    marker = text[start]
    before = text[start - 1] if start else " "
    if start > 1 and "\ufe00" <= before <= "\ufe0e":
        before = text[start - 2]  # a variant of the character before it
    after = text[end] if end < most else " "
    joined_before, joined_after = has_no_blanks(before), has_no_blanks(after)
    blank_before, blank_after = isWhiteSpace(ord(before)), isWhiteSpace(ord(after))
    mark_before, mark_after = _is_mark(before), _is_mark(after)
    left = not blank_after and (not mark_after or joined_after or blank_before or mark_before or joined_before)
    right = not blank_before and (not mark_before or joined_before or blank_after or mark_after or joined_after)
    if marker != "_":
        return left, right
    if end - start > 1 and joined_before and joined_after:
        return left, right  # no name in snake_case
    return left and (not right or mark_before), right and (not left or mark_after)


def _is_mark(character: str) -> bool:
    return isMdAsciiPunct(ord(character)) or isPunctChar(character)


def _run(state: StateInline) -> int:
    """Where the marks that begin here end."""
    end, marker = state.pos, state.src[state.pos]
    while end < state.posMax and state.src[end] == marker:
        end += 1
    return end


def _push(state: StateInline, text: str, length: int, can: tuple[bool, bool]) -> None:
    state.push("text", "", 0).content = text
    at = len(state.tokens) - 1
    state.delimiters.append(Delimiter(ord(text[0]), length, at, -1, *can))


def _emphasis(state: StateInline, silent: bool) -> bool:
    marker = state.src[state.pos]
    if silent or marker not in "*_":
        return False
    end = _run(state)
    can = flanks(state.src, state.pos, end, state.posMax)
    for _ in range(end - state.pos):
        _push(state, marker, end - state.pos, can)
    state.pos = end
    return True


def _strikethrough(state: StateInline, silent: bool) -> bool:
    if silent or state.src[state.pos] != "~":
        return False
    end = _run(state)
    if end - state.pos == 2:
        _push(state, "~~", 0, flanks(state.src, state.pos, end, state.posMax))
    else:
        state.pending += state.src[state.pos : end]
    state.pos = end
    return True

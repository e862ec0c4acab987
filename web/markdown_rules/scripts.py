"""Characters by the script they belong to: those without blanks between words, and from right to left."""

import re
import unicodedata
from functools import lru_cache

#: Thai and Lao, Tibetan, Burmese, Khmer, and their neighbours that are written in the same way
_BLOCKS = (
    *((0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x1950, 0x19FF), (0x1A20, 0x1AAF)),
    *((0xA980, 0xA9FF), (0xAA60, 0xAADF)),
)


@lru_cache(maxsize=4096)
def has_no_blanks(character: str) -> bool:
    """Whether a character is of a script that puts no blanks between words, punctuation included."""
    code = ord(character)
    return any(first <= code <= last for first, last in _BLOCKS) or is_cjk(character)


@lru_cache(maxsize=4096)
def is_cjk(character: str) -> bool:
    """Whether a character is Chinese, Japanese or Korean, punctuation included.

    Wide characters, but for emoji, and Hangul, as in the CJK-friendly amendments to CommonMark (tats-u).
    """
    code = ord(character)
    if code < 0x1100:
        return False
    if 0x1100 <= code <= 0x11FF or 0xD7B0 <= code <= 0xD7FF or 0xE0100 <= code <= 0xE01EF:
        return True  # the parts of Hangul syllables, and the variants of ideographs
    if 0x2300 <= code <= 0x2E7F:
        return code in (0x2329, 0x232A)
    if 0x1F000 <= code <= 0x1FAFF:
        return 0x1F200 <= code <= 0x1F2FF
    return unicodedata.east_asian_width(character) in "WFH"


def direction(text: str) -> str:
    """`ltr` or `rtl`, as the first letter of a text; "" where it has none."""
    for character in text:
        match unicodedata.bidirectional(character):
            case "L":
                return "ltr"
            case "R" | "AL":
                return "rtl"
    return ""


#: of a longer text its beginning tells the direction
BEGINNING = 4_000
_NO_WORDS = re.compile(r"`+[^`]*`+|\$[^$\n]*\$|(?:https?://|www\.)\S+")


def direction_of_plain(text: str) -> str:
    """The direction of a text that is shown as it was typed; `auto` where only code and addresses have letters."""
    return direction(_NO_WORDS.sub(" ", text[:BEGINNING])) or "auto"

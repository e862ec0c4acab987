"""Characters by the script they belong to: Chinese, Japanese and Korean, and from right to left."""

import re
import unicodedata
from functools import lru_cache


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

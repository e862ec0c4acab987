"""Names of accounts and groups: what may be in one, and how one looks (UTS 39).

Two names that look alike have the same skeletons: `ada`, `Ada`, `аԁа` in Cyrillic letters and `ａｄａ` are one. A name
has two of them, since capital letters look like other letters than small ones do: `Ida` looks like `lda`, and is the
same name as `ida`.
"""

import hashlib
import re
import unicodedata
from functools import cache
from itertools import groupby
from pathlib import Path

from services.errors import InvalidRequest
from services.text import is_visible, storable

NAME_CHARACTERS = 80
#: of a longer skeleton its hash is kept: an index holds no row of any length
SKELETON_BYTES = 500
MARKS_IN_A_ROW = 4
VISIBLE = f"A name has 1 to {NAME_CHARACTERS} characters, all of them visible."
#: in these alphabets a letter with its mark mostly is a character of its own; beside it at most one of these accents is
#: written, as in Yoruba
_COMPOSED = {"LATIN", "GREEK", "CYRILLIC"}
_ACCENTS = set("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0323\u0327\u0328\u0331")
#: their letters are drawn alike, so a word has those of one alone
_ALIKE = ("LATIN", "GREEK", "CYRILLIC", "CHEROKEE", "COPTIC")


def checked_name(name: str, *, field: str = "name") -> str:
    """A name as it is kept, that people can tell from others by looking at it. Raises InvalidRequest."""
    name = unicodedata.normalize("NFC", re.sub(" +", " ", storable(name).strip()))
    if not 0 < len(name) <= NAME_CHARACTERS or not all(map(is_visible, name)) or _has_stray_marks(name):
        raise InvalidRequest(VISIBLE, field=field)
    for word in name.split():
        if len({alphabet for one in word if (alphabet := _alphabet(one)) in _ALIKE}) > 1:
            raise InvalidRequest(f"“{word}” mixes letters of several alphabets that look alike.", field=field)
    return name


def require_visible(text: str, *, field: str) -> str:
    """A line in which nothing is hidden and nothing turns the reading around. Raises InvalidRequest."""
    if not all(map(is_visible, text)):
        raise InvalidRequest(f"The {field} holds characters that cannot be seen.", field=field)
    return text


def skeletons(name: str) -> tuple[str, ...]:
    """What two names share that look alike: capitals as they are drawn, and as small letters."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    return _kept(f"seen:{_skeleton(name)}"), _kept(f"folded:{_skeleton(folded)}")


def look_alike(one: str, other: str) -> bool:
    return bool(set(skeletons(one)) & set(skeletons(other)))


def _skeleton(text: str) -> str:
    """UTS 39 §4, without what is drawn as nothing, and in small letters."""
    alike = _prototypes()
    decomposed = unicodedata.normalize("NFD", text)
    mapped = "".join(alike.get(one, one) for one in decomposed if is_visible(one))
    return unicodedata.normalize("NFD", mapped).casefold()


def _kept(skeleton: str) -> str:
    encoded = skeleton.encode("utf-8", "replace")
    return skeleton if len(encoded) <= SKELETON_BYTES else hashlib.sha256(encoded).hexdigest()


def _has_stray_marks(name: str) -> bool:
    """Whether a mark stands where nobody writes one: on no letter, across or around one, or many in a row."""
    base = " "
    for is_mark, run in groupby(name, key=lambda one: unicodedata.category(one) in ("Mn", "Me", "Mc")):
        marks = "".join(run)
        if not is_mark:
            base = marks[-1]
            continue
        enclosed = "Me" in map(unicodedata.category, marks)
        composed = _alphabet(base) in _COMPOSED
        if not base.isalpha() or len(marks) > MARKS_IN_A_ROW or enclosed or (composed and marks not in _ACCENTS):
            return True
    return False


def _alphabet(one: str) -> str:
    """The first word of a letter's name; empty for what is no letter."""
    return unicodedata.name(one, "").partition(" ")[0] if one.isalpha() else ""


@cache
def _prototypes() -> dict[str, str]:
    """{a character: what it looks like}"""
    found: dict[str, str] = {}
    for line in (Path(__file__).parent / "confusables.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            prototype, *sources = line.split()
            text = "".join(chr(int(code, 16)) for code in prototype.split("+"))
            found |= {chr(int(code, 16)): text for code in sources}
    return found

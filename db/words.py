"""The words of a text, as the search of both databases knows them: small letters, no accents, each word once.

Writing that puts no spaces between words (Chinese, Japanese, Thai and their neighbours) is cut into single characters
and pairs of them. A symbol such as 🦊 or € is a word of its own, and `C++` and `C#` are other words than `C`; they are
written in letters and digits. So no word holds anything else, and nothing that somebody types is ever an operator.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import islice
from operator import add
from uuid import UUID

#: of one turn, in characters: PostgreSQL holds no more than a megabyte of words for a row
MOST_CHARACTERS = 100_000
#: of one turn, in small letters: what stands behind them is not looked at
READ_CHARACTERS = 500_000
#: longer ones are cut
WORD_CHARACTERS = 64
#: of one search; the others are not looked for
ASKED_WORDS = 16
ASKED_CHARACTERS = 1_000
#: a shorter beginning of a word stands for too many
PREFIX_CHARACTERS = 2

#: words that are made small at once, which takes a tenth of the time
MADE_SMALL = 1_000
#: what is not seen in the middle of a word; and letters that are typed as an apostrophe, which parts two words
_UNSEEN = {0xAD: None, 0x200B: None, 0x2060: None, 0xFEFF: None, 0x02BB: "'", 0x02BC: "'"}
_WORD = re.compile(r"[^\W_]+")
#: a word, what belongs to its end (C++, C#), or something that is neither letter nor digit
_TOKEN = re.compile(r"([^\W_]+)(\+\+|#)?(?![^\W\d_])|([^\w\s\x00-\x7f])")
#: categories of Unicode whose characters are words: emoji, arrows, currencies, signs of mathematics
_SYMBOLS = ("So", "Sc", "Sm")
#: as much as is made small at once, cut where no word goes on
_PART = re.compile(r".{1,20000}(?:[\s。、，！？]|\Z)|.{20000}", re.DOTALL)
#: a word as it was written, with its accents and vowel signs and what belongs to its end; or a symbol. An endless one
#: is cut: some characters are eighteen small letters each
_WRITTEN = re.compile(
    "(?:[^\\W_\u02bb\u02bc]|[\u00ad\u200b\u2060\ufeff\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0900-\u0dff]){1,2000}(?:\\+\\+|#)?|[^\\w\\s\\x00-\\x7f]"
)
_ENDS = re.compile(r"(?:\+\+|#)\Z")
_LETTER_WITH_SIGN = re.compile("LATIN SMALL LETTER ([A-Z]) WITH .*")
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007"
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_RUN = re.compile(f"([{_UNSPACED}]+)|[^{_UNSPACED}]+")


def folded(text: str) -> str:
    """Small letters without accents; ł is l, đ is d and æ is ae, as people type them on another keyboard."""
    if text.isascii():
        return text.lower()
    # Without marks before it is taken apart: very many on one letter would be sorted, each past all the others.
    apart = unicodedata.normalize("NFKD", _unmarked(text.translate(_UNSEEN).casefold()))
    return unicodedata.normalize("NFKC", _unmarked(apart.casefold())).translate(_plain_letters())


@cache
def _plain_letters() -> dict[int, str]:
    """{a letter that Unicode does not take apart: the plain letters people type instead}."""
    plain = {"æ": "ae", "œ": "oe", "ð": "d", "þ": "th", "ŋ": "n", "ĸ": "k", "ı": "i", "ȷ": "j"}
    for code in (*range(0xC0, 0x2B0), *range(0x1D00, 0x1F00), *range(0x2C60, 0x2C80), *range(0xA720, 0xA800)):
        if with_sign := _LETTER_WITH_SIGN.fullmatch(unicodedata.name(chr(code), "")):
            plain.setdefault(chr(code), with_sign[1].lower())
    return {ord(letter): told for letter, told in plain.items() if unicodedata.normalize("NFKD", letter) == letter}


def _unmarked(text: str) -> str:
    return text.translate({ord(one): None for one in set(text) if unicodedata.category(one)[0] == "M"})


def composed(text: str) -> str:
    """Letters and their accents as one character each; of very many on one letter the first (UAX #15, D4)."""
    if marks := "".join(one for one in set(text) if unicodedata.combining(one)):
        text = re.sub(f"([{marks}]{{30}})[{marks}]+", r"\1", text)
    return unicodedata.normalize("NFC", text)


def _cut(words: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Each word as it is looked for, and whether it is one character or two of an unspaced writing."""
    for word in words:
        if word.isascii():
            yield word[:WORD_CHARACTERS], False
            continue
        for run in _RUN.finditer(word):
            if (unspaced := run[1]) is None:
                yield run[0][:WORD_CHARACTERS], False
            else:
                yield from ((pair, True) for pair in dict.fromkeys(map(add, unspaced, unspaced[1:])) or (unspaced,))


def _tokens(small: str) -> Iterator[str]:
    """Words in order, those with a sign at their end and symbols spelled out: `c_2b2b`, `u_1f98a`."""
    for word, end, symbol in _TOKEN.findall(small):
        if word:
            yield f"{word[:WORD_CHARACTERS]}_{end.encode().hex()}" if end else word
        elif unicodedata.category(symbol) in _SYMBOLS:
            yield f"u_{ord(symbol):x}"


def mark_of(id: UUID) -> str:
    """A word that no text holds: whose a row is, and of which session."""
    return f"_{id.hex}"


def words_of(text: str, *marks: UUID) -> str:
    """What the index is told of a text: the marks, and its words with single spaces between them."""
    found, read = dict[str, None](), 0
    for part in _PART.finditer(text):
        small = folded(part[0])
        for word, unspaced in _cut(dict.fromkeys(_WORD.findall(small))):
            found[word] = None
            if unspaced:
                found |= dict.fromkeys(word)
        if "#" in small or "++" in small or not small.isascii():
            found |= dict.fromkeys(word for word in _tokens(small) if "_" in word)
        read += len(small)
        if read > READ_CHARACTERS or 2 * len(found) > MOST_CHARACTERS:
            break
    told = " ".join([*map(mark_of, marks), *found])
    return told if len(told) <= MOST_CHARACTERS else told[:MOST_CHARACTERS].rpartition(" ")[0]


class Asked:
    """What is looked for: all of these words, the last of them as the beginning of one."""

    def __init__(self, q: str) -> None:
        found = dict(_cut(_tokens(folded(q[:ASKED_CHARACTERS]))))
        self.words = list(found)[:ASKED_WORDS]
        last = self.words[-1] if self.words else ""
        #: the last word is still being typed
        self.open = len(last) >= PREFIX_CHARACTERS and not (found[last] or "_" in last or q[-1:].isspace())

    def __bool__(self) -> bool:
        return bool(self.words)

    def for_sqlite(self, *marks: UUID) -> str:
        """As FTS5 reads it."""
        return self._joined(map(mark_of, marks), '"', " AND ", "*")

    def for_postgres(self, *marks: UUID) -> str:
        """As a tsquery is written."""
        return self._joined(map(mark_of, marks), "'", " & ", ":*")

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """From where to where one of the words stands in a text, in order."""
        known: dict[str, list[tuple[int, int]]] = {}
        matches = _WRITTEN.finditer(text)
        while some := list(islice(matches, MADE_SMALL)):
            new = {match[0] for match in some} - known.keys()
            known |= zip(new, map(self._within, new, folded("\n".join(new)).split("\n")), strict=False)
            for match in some:
                for start, end in known[match[0]]:
                    yield match.start() + start, match.start() + end

    def _within(self, written: str, small: str) -> list[tuple[int, int]]:
        """Where the words stand in one that was written, which is this one in small letters."""
        whole = 0, len(written)
        if any("_" in token and token in self.words for token in _tokens(small)):
            return [whole]
        if end := _ENDS.search(small):
            small, whole = small[: end.start()], (0, len(written) - len(end[0]))
        cut = small[:WORD_CHARACTERS]
        if cut in self.words or (self.open and cut.startswith(self.words[-1])):
            return [whole]
        if small.isascii():
            return []
        pieces = [word for word, _ in _cut(self.words) if not word.isascii() and word in small]
        found = [(at, at + len(piece)) for piece in pieces for at in _places(small, piece)]
        # Where small letters are more or fewer than the written ones, nobody can say which of them it is.
        return joined(found) if len(small) == len(written) else [whole] if found else []

    def _joined(self, marks: Iterable[str], quote: str, between: str, beginning: str) -> str:
        told = between.join(f"{quote}{word}{quote}" for word in [*marks, *self.words])
        return told + beginning if self.open else told


def _places(text: str, piece: str) -> Iterator[int]:
    at = text.find(piece)
    while at >= 0:
        yield at
        at = text.find(piece, at + 1)


def joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order, those that meet made one."""
    told: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if told and start <= told[-1][1]:
            told[-1] = told[-1][0], max(end, told[-1][1])
        else:
            told.append((start, end))
    return told

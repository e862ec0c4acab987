"""What text may come in, and how long it is counted."""

import codecs
import re
import unicodedata
from typing import get_args, get_type_hints

from services.errors import InvalidRequest, PromptTooLong

PROMPT_CHARACTERS = 100_000
TITLE_CHARACTERS = 120
REASON_CHARACTERS = 500
#: of a prompt, those that a title is made of
TITLED_CHARACTERS = 2_000
_CODE = re.compile(r"^ {0,3}(`{3,}|~{3,}).*?(?:^ {0,3}\1[`~]*\s*$|\Z)", re.S | re.M)
#: what is markup, and what is left of it
_MARKUP = (
    # headings, quotes, lists and tasks; rules and fences
    (re.compile(r"^[ \t]*(?:(?:#{1,6}|>|[-*+]|\d{1,9}[.)])[ \t]+)*(?:\[[ xX]\][ \t]+)?", re.M), ""),
    (re.compile(r"^[ \t]*(?:[-*_=]{3,}|(?:`{3,}|~{3,}).*)[ \t]*$", re.M), ""),
    (re.compile(r"!?\[([^\]\n]*)\]\([^)\n]*\)"), r"\1"),
    (re.compile(r"\*\*|__|~~|`|(?<!\w)[*_](?=\w)|(?<=\w)[*_](?!\w)"), ""),
)
#: a whole question or call at the beginning
_QUESTION = re.compile(r".{11,59}?(?:[?!](?=\s)|[？！。])")
#: what is drawn as nothing and is no control character: Default_Ignorable_Code_Point, and blanks
_NOTHING = (
    (0x034F, 0x034F), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x2800, 0x2800), (0x3164, 0x3164),
    (0xFE00, 0xFE0F), (0xFFA0, 0xFFA0), (0x1D159, 0x1D159), (0xE0000, 0xE0FFF),
)  # fmt: skip
UNSTORABLE = "The text holds characters that cannot be stored."


def normalized_lines(text: str) -> str:
    """A text whose lines end with \\n alone. A form sends \\r\\n for what a script sends as \\n."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def is_visible(one: str) -> bool:
    """Whether a character is drawn as something, or is a blank."""
    return one.isprintable() and not _is_nothing(one)


def is_blank(text: str) -> bool:
    """Whether nothing of a text is drawn."""
    return all(one.isspace() or unicodedata.category(one) == "Cf" or _is_nothing(one) for one in text)


def _is_nothing(one: str) -> bool:
    code = ord(one)
    return any(first <= code <= last for first, last in _NOTHING)


def utf8(content: bytes) -> bytes:
    """The bytes of a text file behind its byte-order mark, if it has one. Raises ValueError for UTF-16 and UTF-32."""
    first, second = (*content[:2], 1, 1)[:2]
    if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or (first == 0) != (second == 0):
        raise ValueError("The text is encoded as UTF-16 or UTF-32; save it as UTF-8")
    return content.removeprefix(codecs.BOM_UTF8)


def checked_prompt(prompt: str) -> str:
    """A prompt that may be stored, with normalized lines. Raises PromptTooLong, InvalidRequest."""
    prompt = normalized_lines(prompt)
    if len(prompt) > PROMPT_CHARACTERS:
        raise PromptTooLong(characters=len(prompt), limit=PROMPT_CHARACTERS)
    if is_blank(prompt):
        raise InvalidRequest("Please write something first.", field="prompt")
    return storable(prompt)


def checked_draft(text: str) -> str:
    """What may become a prompt, as far as it is typed, with normalized lines. Raises PromptTooLong, InvalidRequest."""
    text = normalized_lines(text)
    if len(text) > PROMPT_CHARACTERS:
        raise PromptTooLong(characters=len(text), limit=PROMPT_CHARACTERS)
    return "" if is_blank(text) else storable(text)


def checked_line(text: str, limit: int, field: str) -> str:
    """One line of at most `limit` characters, its white space folded. Raises InvalidRequest."""
    text = " ".join(text.split())
    if len(text) > limit:
        raise InvalidRequest(f"The {field} has at most {limit} characters.", field=field)
    return storable(text)


def listed(text: str) -> list[str]:
    """The words of a list as people type it: parted by commas, blanks or both."""
    return re.findall(r"[^\s,]+", text)


def title_of(prompt: str) -> str:
    """A title for a session that has none: how its first prompt begins, without its Markdown, cut behind a word."""
    text = prompt[:TITLED_CHARACTERS]
    # What is said around code tells more than the code.
    text = _CODE.sub(" ", text) if _CODE.sub("", text).strip() else text
    for marks, kept in _MARKUP:
        text = marks.sub(kept, text)
    line = " ".join(text.split()) or " ".join(prompt.split())
    if (question := _QUESTION.match(line)) is not None:
        return question[0]
    return line if len(line) <= 60 else line[:60].rsplit(" ", 1)[0] + "…"


def tokens_of(text: str) -> int:
    """An estimate where no provider has counted, rather too high than too low.

    Three characters of ASCII are one token. Any other character is as many as it has bytes in UTF-8 beyond the first:
    one in Greek or Cyrillic, two in Chinese, three for a symbol.
    """
    ascii_characters = len(text.encode("ascii", "ignore"))
    return -(-ascii_characters // 3) + len(text.encode("utf-8", "surrogatepass")) - len(text)


def storable(text: str) -> str:
    """Refuse what no database column can hold: NUL and lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(UNSTORABLE) from error
    if "\0" in text:
        raise InvalidRequest(UNSTORABLE)
    return text


def values_of(struct: type, field: str) -> list[str]:
    """The texts that a field of a struct may be but none, where it is one of few."""
    hint = get_type_hints(struct).get(field)
    found = [text for one in get_args(hint) for text in get_args(one) or (one,)]
    return [text for text in found if isinstance(text, str) and text]

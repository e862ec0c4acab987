"""What text may come in, and how long it is counted."""

from services.errors import InvalidRequest, PromptTooLong

PROMPT_CHARACTERS = 100_000
TITLE_CHARACTERS = 120
REASON_CHARACTERS = 500
UNSTORABLE = "The text holds characters that cannot be stored."


def checked_prompt(prompt: str) -> str:
    """A prompt that may be stored. Raises PromptTooLong, InvalidRequest."""
    if len(prompt) > PROMPT_CHARACTERS:
        raise PromptTooLong(characters=len(prompt), limit=PROMPT_CHARACTERS)
    if not prompt.strip():
        raise InvalidRequest("Please write something first.", field="prompt")
    return storable(prompt)


def checked_draft(text: str) -> str:
    """What may become a prompt, as far as it is typed. Raises PromptTooLong, InvalidRequest."""
    if len(text) > PROMPT_CHARACTERS:
        raise PromptTooLong(characters=len(text), limit=PROMPT_CHARACTERS)
    return storable(text) if text.strip() else ""


def checked_line(text: str, limit: int, field: str) -> str:
    """One line of at most `limit` characters, its white space folded. Raises InvalidRequest."""
    text = " ".join(text.split())
    if len(text) > limit:
        raise InvalidRequest(f"The {field} has at most {limit} characters.", field=field)
    return storable(text)


def title_of(prompt: str) -> str:
    """A title for a session that has none: how its first prompt begins."""
    line = " ".join(prompt.split())
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

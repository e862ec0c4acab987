"""Reasoning that a model writes into its reply, between `<think>` and `</think>` at the very beginning: split off.

Servers that do not part the two by themselves send it so. Anywhere else the tags are text like any other.
"""

import re

#: a beginning behind more blanks than this is none
_BLANKS = r"\s{0,64}"
_BEGINS = re.compile(rf"{_BLANKS}<think(?:ing)?>", re.IGNORECASE)
_ENDS = re.compile(r"</think(?:ing)?>", re.IGNORECASE)
#: what the next piece may still make one of them
_MAY_BEGIN = re.compile(rf"{_BLANKS}(?:<(?:t(?:h(?:i(?:n(?:k(?:i(?:ng?)?)?)?)?)?)?)?)?", re.IGNORECASE)
_MAY_END = re.compile(r"<(?:/(?:t(?:h(?:i(?:n(?:k(?:i(?:ng?)?)?)?)?)?)?)?)?\Z", re.IGNORECASE)


class Parting:
    """The way of one reply through its beginning; fed with its text as it comes, wherever that is cut."""

    def __init__(self) -> None:
        #: nothing but reply comes any more
        self.over = False
        self._inside = self._behind = False
        #: nothing but blanks has come since the last tag
        self._blank = True
        self._held = ""

    def feed(self, text: str) -> tuple[str, str]:
        """(reasoning, reply) as far as they are certain; what may be part of a tag is held back."""
        text, self._held = self._held + text, ""
        if not (self._inside or self._behind or self.over):
            if (begins := _BEGINS.match(text)) is not None:
                self._inside, text = True, text[begins.end() :]
            elif _MAY_BEGIN.fullmatch(text):
                self._held = text
                return "", ""
            else:
                self.over = True
        if self.over:
            return "", text
        reasoning = ""
        if self._inside:
            if (ends := _ENDS.search(text)) is None:
                may_end = _MAY_END.search(text)
                end = may_end.start() if may_end is not None else len(text)
                self._held = text[end:]
                return self._begun(text[:end]), ""
            reasoning, text = self._begun(text[: ends.start()]), text[ends.end() :]
            self._inside, self._behind, self._blank = False, True, True
        text = self._begun(text)
        self.over = bool(text)
        return reasoning, text

    def close(self) -> tuple[str, str]:
        """What was held back when no more comes."""
        text, self._held = self._held, ""
        return (text, "") if self._inside else ("", text)

    def _begun(self, text: str) -> str:
        """Without the blanks behind a tag."""
        if self._blank:
            text = text.lstrip()
            self._blank = not text
        return text

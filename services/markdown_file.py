"""Markdown as it is written to a file: headings, quotes, and text of which nothing is markup."""

import re

#: every mark that Markdown knows (CommonMark 0.31 §2.4)
_MARKS = re.compile(r"([!-/:-@\[-`{-~])")


def heading(level: int, text: str) -> str:
    return f"\n{'#' * level} {text}\n\n" if level > 1 else f"{'#' * level} {text}\n\n"


def plain(text: str) -> str:
    """One line of text that is nothing but text."""
    return _MARKS.sub(r"\\\1", " ".join(text.split()))


def quoted(text: str) -> str:
    """A text as a quote: `> ` before every line, and nothing changed or left out."""
    # Lines end with \r\n, \n or \r (§2.1). Not by a pattern: a million of them would keep others waiting.
    marked = text.replace("\n", "\n> ").replace("\r", "\r> ").replace("\r> \n> ", "\r\n> ")
    return f"> {marked}\n"

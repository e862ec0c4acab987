"""Markdown as it is written to a file: headings, quotes, and text of which nothing is markup."""

import re

#: every mark that Markdown knows (CommonMark 0.31 §2.4)
_MARKS = re.compile(r"([!-/:-@\[-`{-~])")
#: what ends a line in Markdown (§2.1)
_LINE_END = re.compile(r"(\r\n|\n|\r)")


def heading(level: int, text: str) -> str:
    return f"\n{'#' * level} {text}\n\n" if level > 1 else f"{'#' * level} {text}\n\n"


def plain(text: str) -> str:
    """One line of text that is nothing but text."""
    return _MARKS.sub(r"\\\1", " ".join(text.split()))


def quoted(text: str) -> str:
    """A text as a quote: `> ` before every line, and nothing changed or left out."""
    return "> " + _LINE_END.sub(r"\1> ", text) + "\n"

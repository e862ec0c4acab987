"""The built-in model `guide`: answers questions about Turnkeeper by quoting its documentation.

It searches and says so: it is no language model, and nothing leaves the machine.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path

from services.clients import Ask, Said, Text, Usage
from services.clients.docs_search import DocsSearch, Section, terms_of
from services.clients.echo import tokens_of

DOCS = Path(__file__).parents[2] / "docs"
#: so that a reply is seen to be written, and nobody waits for it
WORDS_PER_PIECE = 3
PACE_SECONDS = 0.015
#: a quote ends with the paragraph that reaches this
QUOTE_CHARACTERS = 1200

SUGGESTIONS = (
    "How long does a session live?",
    "How do I add a model server?",
    "What happens when I reach a limit?",
)
_FENCES = re.compile(r"^ {0,3}(?:```|~~~)", re.MULTILINE)
#: a line end inside a paragraph, which is the file's and not the reader's
_FOLD = re.compile(r"\n(?![ \t]*(?:[-*+] |\d+[.)] |\||>|#))[ \t]*")
#: what is said where nothing is asked
_SMALL_TALK = {
    *("hello", "hi", "hey", "hola", "moin", "good", "morning", "afternoon", "evening", "day"),
    *("guide", "help", "start", "test", "ok", "okay", "yes", "nice", "cool", "great"),
}


class GuideClient:
    """Reads the docs when the first question comes; `pace_seconds` is the pause between two pieces."""

    def __init__(self, docs: Path = DOCS, *, pace_seconds: float = PACE_SECONDS) -> None:
        self._docs = docs
        self._pace_seconds = pace_seconds
        self._reading = asyncio.Lock()
        self._search: DocsSearch | None = None

    async def stream(self, ask: Ask) -> AsyncGenerator[Said, None]:
        """Yield the reply a few words at a time; a token is a word."""
        async with self._reading:
            if self._search is None:
                self._search = await asyncio.to_thread(DocsSearch.of, self._docs)
        questions = [message.text for message in ask.messages if message.role == "user"]
        words = tokens_of(reply_to(questions, self._search))[: ask.max_reply_tokens or None]
        for start in range(0, len(words), WORDS_PER_PIECE):
            await asyncio.sleep(self._pace_seconds)
            yield Text("".join(words[start : start + WORDS_PER_PIECE]))
        yield Usage(sum(len(tokens_of(message.text)) for message in ask.messages), len(words))

    async def is_up(self) -> bool:
        return True

    async def models(self) -> tuple[str, ...]:
        return ("guide",)

    async def aclose(self) -> None:
        """Nothing is open."""


def reply_to(questions: Sequence[str], search: DocsSearch) -> str:
    """The answer to the last of these questions; one that says too little is read together with the one before."""
    question = questions[-1] if questions else ""
    if not search.sections:
        return "I answer from Turnkeeper's documentation, and it is not installed here."
    terms = terms_of(question)
    if all(term in _SMALL_TALK for term in terms):
        return _introduction(search)
    found = search.find(question)
    if not found and len(terms) == 1:
        found = search.find(" ".join(questions[-2:]))
    if not found:
        return _nothing(search)
    opening = "I looked this up in Turnkeeper's documentation; I am a search, not a language model.\n\n"
    return (opening if len(questions) == 1 else "") + _quote(found)


def _introduction(search: DocsSearch) -> str:
    return (
        "I am Turnkeeper's guide. I am not a language model: I search the documentation that came with this server and "
        f"quote what fits your question best. It covers {_listed(search.titles)}.\n\nYou could ask:\n\n"
        + "\n".join(f"- {suggestion}" for suggestion in SUGGESTIONS)
    )


def _nothing(search: DocsSearch) -> str:
    return (
        "I found nothing about that in Turnkeeper's documentation, and a search in it is all I am. "
        f"It covers {_listed(search.titles)}. Other words may help, or another model."
    )


def _quote(found: Sequence[Section]) -> str:
    best, *others = found
    also = _listed([f"`{section.source}`" for section in others[:2]])
    return f"From `{best.source}`:\n\n{_excerpt(best.body)}" + (f"\n\nSee also {also}." if also else "")


def _excerpt(body: str) -> str:
    """The first paragraphs; a list is not parted from the sentence that announces it."""
    taken: list[str] = []
    for block in _blocks_of(body):
        if taken and sum(map(len, taken)) + len(block) > QUOTE_CHARACTERS and not taken[-1].endswith(":"):
            taken.append("…")
            break
        taken.append(block if _FENCES.search(block) else _FOLD.sub(" ", block))
    return "\n\n".join(taken)


def _blocks_of(body: str) -> Iterator[str]:
    """Cut at blank lines, except inside a block of code."""
    block = ""
    for part in re.split(r"\n\s*\n", body):
        block = f"{block}\n\n{part}" if block else part
        if len(_FENCES.findall(block)) % 2 == 0:
            yield block
            block = ""
    if block:
        yield block


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))

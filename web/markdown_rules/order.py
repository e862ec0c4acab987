"""The order in which the lines of a text are read, with what its definitions and footnotes are called.

In a complete text a definition counts wherever it stands. In one that is still being written it counts from where it
stands on, so that no later line changes an earlier block.
"""

from collections.abc import Mapping
from itertools import chain, islice
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore

#: what the finished part of a growing text has told: label, address and title of a definition, `^` and label of a note
Known = tuple[tuple[str, str, str], ...]
#: so much of it is told on; what is beyond is known once the text has ended
TOLD = 100
#: characters that references may put on the page: so many, and for each character of the text so many more
ROOM, ROOM_FOR_EACH = 20_000, 4


class References(dict[str, Any]):
    """Link definitions by their label, and which of them something refers to.

    What they put on the page is in proportion to the text: a reference beyond that stays as it was written.
    """

    def __init__(self) -> None:
        super().__init__()
        self.used: set[str] = set()
        #: characters that may still be put on the page
        self.room = 0

    def get(self, label: str, default: Any = None) -> Any:
        found = super().get(label)
        if found is None:
            return default
        self.room -= len(found["href"]) + len(found["title"])
        if self.room < 0:
            return default
        self.used.add(label)
        return found


def environment(known: Known | None = None) -> dict[str, Any]:
    """For a parser: what is known before it reads a complete text, or the next part of one that grows."""
    references, notes = References(), dict[str, None]()
    for label, href, title in known or ():
        if label.startswith("^"):
            notes[label[1:]] = None
        else:
            references[label] = {"href": href, "title": title}
    return {"growing": known is not None, "references": references, "notes": notes}


def told(env: Mapping[str, Any]) -> Known:
    """What is known after a part of a growing text was read."""
    definitions = ((label, one["href"], one["title"]) for label, one in env["references"].items())
    return tuple(islice(chain(definitions, ((f"^{label}", "", "") for label in env["notes"])), TOLD))


def add_order(parser: MarkdownIt) -> None:
    """Have a parser learn definitions and footnotes before it reads the lines that may refer to them."""
    parser.core.ruler.at("inline", _read)


def _read(state: StateCore) -> None:
    growing = state.env["growing"]
    state.env["references"].room = ROOM + ROOM_FOR_EACH * len(state.src)
    if not growing:
        for token in state.tokens:
            _learn(state, token.meta)
    for token in state.tokens:
        if token.type == "inline":
            token.children = token.children or []
            state.md.inline.parse(token.content, state.md, state.env, token.children)
        elif growing:
            _learn(state, token.meta)


def _learn(state: StateCore, meta: Mapping[str, Any]) -> None:
    if not meta:
        return
    if "note" in meta:
        state.env["notes"][meta["note"]] = None
    for definition in meta.get("definitions", ()):
        state.env["references"].setdefault(definition.label, {"href": definition.href, "title": definition.title})

"""Full-text search in a folder of Markdown files: which section answers a question best.

An SQLite FTS5 table in memory, one row per heading, words reduced to their stems.
"""

import math
import re
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

#: read of a question
MAX_QUESTION_CHARACTERS = 2000
MAX_TERMS = 24
#: what a word counts in each column
_WEIGHTS = {"heading": 3, "title": 2, "body": 1}

_HEADING = re.compile(r"#{1,6}[ \t]+(.+?)[ \t]*#*$")
_FENCE = re.compile(r" {0,3}(```+|~~~+)")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_IMAGE = re.compile(r"!\[[^\]\n]*\]\([^)\n]*\)|<picture>.*?</picture>", re.DOTALL)
#: a link that leads elsewhere in the docs, which no chat page can follow
_INNER_LINK = re.compile(r"\[([^\]\n]+)\]\((?!https?://)[^)\n]*\)")
_WORD = re.compile(r"\w+")

#: Words that do not tell what is asked about.
_STOP_WORDS = """
    a about all also am an and any anything are aren as ask at be because been being but by can cannot could couldn
    describe did didn do does doesn doing don done explain for from get give go going got had has have having he her
    here him his how if in into is isn it its just know let like ll look may me mean might much must my need no not now
    of off on one only or other our out own please re really see shall she should show so some something tell than
    thank thanks that the their them then there these they thing things this those to too up us use used uses using ve
    very want was way we well were what when where whether which while who whom whose why will with won would you your
    turnkeeper
"""
_STOPPED = frozenset(_STOP_WORDS.split())


class Section(msgspec.Struct, frozen=True):
    """What stands under one heading."""

    #: as people find it: "docs/sessions.md"
    file: str
    #: the file's first heading
    title: str
    heading: str
    body: str

    @property
    def source(self) -> str:
        """Where it stands: "docs/sessions.md § Limits"."""
        return f"{self.file} § {self.heading}"


class DocsSearch:
    """A search over sections; they are read once."""

    def __init__(self, sections: Iterable[Section]) -> None:
        self.sections = tuple(sections)
        self._database = sqlite3.connect(":memory:", check_same_thread=False)
        self._database.execute(
            "CREATE VIRTUAL TABLE section USING fts5(heading, title, body, tokenize='porter unicode61')"
        )
        self._database.executemany(
            "INSERT INTO section (rowid, heading, title, body) VALUES (?, ?, ?, ?)",
            ((number, each.heading, each.title, each.body) for number, each in enumerate(self.sections)),
        )

    @classmethod
    def of(cls, docs: Path) -> "DocsSearch":
        """The README beside the folder `docs`, and the files right in it; none at all is an empty search."""
        files = [docs.parent / "README.md", *sorted(docs.glob("*.md"))]
        return cls(
            section
            for file in files
            if file.is_file()
            for section in sections_of(file.read_text("utf-8"), file.relative_to(docs.parent).as_posix())
        )

    @property
    def titles(self) -> tuple[str, ...]:
        """What the files are about."""
        return tuple(dict.fromkeys(section.title for section in self.sections))

    def find(self, question: str) -> list[Section]:
        """Sections that hold enough of what is asked, the best first; often none.

        A word weighs more the fewer sections hold it, and more in a heading; repeating it only decides ties.
        """
        terms = terms_of(question)
        weights: defaultdict[int, float] = defaultdict(float)
        held: Counter[int] = Counter()
        for term in map(_query_of, terms):
            places = {column: self._holding(f"{column} : {term}") for column in _WEIGHTS}
            holding = frozenset().union(*places.values())
            rarity = math.log(1 + len(self.sections) / len(holding)) if holding else 0.0
            for number in holding:
                held[number] += 1
                weights[number] += rarity * max(_WEIGHTS[column] for column in _WEIGHTS if number in places[column])
        enough = min(3, (len(terms) + 1) // 2)
        best_first = self._holding(" OR ".join(map(_query_of, terms))) if terms else ()
        return [
            self.sections[number]
            for number in sorted(best_first, key=weights.__getitem__, reverse=True)
            if held[number] >= enough
        ]

    def _holding(self, query: str) -> tuple[int, ...]:
        rows = self._database.execute("SELECT rowid FROM section WHERE section MATCH ? ORDER BY rank", (query,))
        return tuple(number for (number,) in rows)


def _query_of(term: str) -> str:
    """Quoted, any word is safe in an FTS query; a long one may go on: postgres, PostgreSQL."""
    return f'"{term}" *' if len(term) >= 5 else f'"{term}"'


def terms_of(question: str) -> list[str]:
    """The words of a question that tell what it is about, each once."""
    words = _WORD.findall(question[:MAX_QUESTION_CHARACTERS].lower())
    telling = (word for word in words if word not in _STOPPED and (len(word) > 1 or not word.isascii()))
    return list(dict.fromkeys(telling))[:MAX_TERMS]


def sections_of(markdown: str, file: str) -> Iterator[Section]:
    """Cut a file at its headings; what looks like one in a block of code is none. Empty sections are left out."""
    parts: list[tuple[str, list[str]]] = [("", [])]
    fence = ""
    for line in _COMMENT.sub("", markdown).splitlines():
        mark = _FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1].startswith(fence) and line.strip() == mark[1]:
            fence = ""
        heading = None if mark or fence else _HEADING.match(line)
        if heading:
            parts.append((_plain(heading[1]).replace("`", ""), []))
        else:
            parts[-1][1].append(line)
    title = next((name for name, _ in parts if name), file)
    for name, lines in parts:
        if body := _plain("\n".join(lines)).strip():
            yield Section(file, title, name or title, body)


def _plain(markdown: str) -> str:
    """Without pictures, and without links that lead nowhere from a chat."""
    return _INNER_LINK.sub(r"\1", _IMAGE.sub("", markdown))

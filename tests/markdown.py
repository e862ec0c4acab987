"""Reading our own documents the way people do: sections, tables, blocks of code, links."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
#: every page people read
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
_LINK = re.compile(r"(!?)\[[^\]]*\]\(([^)\s]+)\)")
_SOURCE = re.compile(r"\bsrc(?:set)?=\"([^\"]+)\"")


def read(name: str) -> str:
    """A page by its name below the root."""
    return (ROOT / name).read_text(encoding="utf-8")


def prose(text: str) -> str:
    """A text without its blocks of code."""
    return _FENCED.sub("", text)


def blocks(text: str, *languages: str) -> list[str]:
    """The blocks of code in one of these languages; "" for those that name none."""
    return [body for language, body in _FENCED.findall(text) if language in languages]


def spans(text: str) -> list[str]:
    """What stands between backticks within the prose."""
    return re.findall(r"`([^`\n]+)`", prose(text))


def headings(text: str, level: int = 2) -> list[str]:
    return [name for marks, name in _HEADING.findall(prose(text)) if len(marks) == level]


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its level or above; blocks of code keep their #-lines."""
    found = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
    assert found, f"there is no heading “{heading}”"
    rest = text[found.end() :]
    hidden = _FENCED.sub(lambda block: "x" * len(block[0]), rest)
    end = re.search(rf"^#{{1,{len(found[1])}}} ", hidden, re.MULTILINE)
    return rest[: end.start()] if end else rest


def table(text: str) -> list[list[str]]:
    """The rows of the first table of a text, without its head."""
    found = re.search(r"^\|.*?(?=\n[^|]|\n*\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, "there is no table"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in found[0].splitlines()]
    assert len(rows) > 2, "the table is empty"
    return rows[2:]


def bare(cell: str) -> str:
    """A cell without its backticks."""
    return cell.strip("`")


def links(text: str) -> list[tuple[bool, str]]:
    """Every link: whether it is a picture, and where it leads."""
    found = [(bool(mark), target) for mark, target in _LINK.findall(prose(text))]
    return found + [(True, target) for target in _SOURCE.findall(prose(text))]


def anchors(text: str) -> set[str]:
    """The names under which headings can be linked to."""
    names = (re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-") for _, name in _HEADING.findall(prose(text)))
    return set(names)

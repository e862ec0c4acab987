"""Link definitions, `[1]: https://example.org "title"`, as models cite; and links that lead nowhere from here.

A definition is one line with a whole address, no longer than what people write. One that nothing refers to stays on the
page as it was written. So does a link whose address would not be let through, or what it leads to would be gone.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml, normalizeReference, unescapeAll
from markdown_it.rules_block import StateBlock
from markdown_it.rules_core import StateCore
from markdown_it.token import Token

SCHEMES = ("http://", "https://", "mailto:")
CONTAINERS = ("blockquote_open", "bullet_list_open", "list_item_open")
_DEFINITION = re.compile(
    r"\[((?:[^\[\]\\^]|\\.)(?:[^\[\]\\]|\\.){0,200})\]:[ \t]*<?((?:https?://|mailto:)[^\s<>]{1,2000})>?"
    r"""(?:[ \t]+(?:"((?:[^"\\]|\\.){0,500})"|'((?:[^'\\]|\\.){0,500})'|\(((?:[^()\\]|\\.){0,500})\)))?[ \t]*""",
    re.IGNORECASE,
)


class Definition(NamedTuple):
    label: str
    href: str
    title: str
    #: its line: up to the address, the address, and the rest
    before: str
    address: str
    after: str


def add_references(parser: MarkdownIt) -> None:
    """Teach a parser link definitions; its own rule for them is left out."""
    parser.options["store_labels"] = True
    parser.block.ruler.before("reference", "definitions", _block, {"alt": ["paragraph", "blockquote", "list"]})
    parser.core.ruler.after("inline", "used", _leave_out)
    parser.core.ruler.after("used", "links", _links)
    parser.add_render_rule("definitions", _render)


def leads_somewhere(address: str) -> bool:
    """Whether a link to an address is let through."""
    return address.lower().startswith(SCHEMES)


def _definition(state: StateBlock, number: int) -> Definition | None:
    if state.is_code_block(number) or state.sCount[number] < state.blkIndent:
        return None
    start, end = state.bMarks[number] + state.tShift[number], state.eMarks[number]
    if not state.src.startswith("[", start):
        return None
    found = _DEFINITION.fullmatch(state.src, start, end)
    if found is None:
        return None
    label, href = normalizeReference(found[1]), state.md.normalizeLink(found[2])
    if not label or not state.md.validateLink(href):
        return None
    title = unescapeAll(found[3] or found[4] or found[5] or "")
    before, after = state.src[start : found.start(2)], state.src[found.end(2) : end]
    return Definition(label, href, title, before, found[2], after)


def _block(state: StateBlock, first: int, end: int, silent: bool) -> bool:
    """Lines of definitions, one after the other."""
    found, line = [], first
    while line < end and (definition := _definition(state, line)):
        if silent:
            return True
        found.append(definition)
        line += 1
    if not found:
        return False
    before = state.tokens[-1] if state.tokens else None
    numbered = before is not None and before.type == "list_item_open" and before.markup in ".)"
    token = state.push("definitions", "", 0)
    token.block, token.map = True, [first, line]
    token.meta = {"definitions": found, "numbered": numbered}
    state.line = line
    return True


def _render(self: Any, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    """Show the definitions that no link uses, as they were written; all of them while the text is still growing.

    In an item of a numbered list they stay too: without it, the others would have other numbers.
    """
    return "<p>" + "<br>\n".join(map(_line, _shown(tokens[at], env))) + "</p>\n"


def _shown(token: Token, env: Any) -> list[Definition]:
    found: list[Definition] = token.meta["definitions"]
    return found if env["growing"] or token.meta["numbered"] else [one for one in found if not _is_used(one, env)]


def _is_used(one: Definition, env: Any) -> bool:
    """Whether a link uses this definition. If two have the same label, links use the first."""
    references = env["references"]
    return one.label in references.used and references[one.label] == {"href": one.href, "title": one.title}


def _line(one: Definition) -> str:
    link = f'<a href="{escapeHtml(one.href)}" dir="ltr">{escapeHtml(one.address)}</a>'
    return escapeHtml(one.before) + link + escapeHtml(one.after)


def _leave_out(state: StateCore) -> None:
    """Leave out the definitions that are not shown, with each quotation and bullet that holds nothing else."""
    kept: list[Token] = []
    emptied = False
    for token in state.tokens:
        if token.type == "definitions" and not _shown(token, state.env):
            emptied = bool(kept) and kept[-1].nesting == 1
        elif emptied and token.nesting == -1 and kept[-1].type in CONTAINERS:
            kept.pop()
            emptied = bool(kept) and kept[-1].nesting == 1
        else:
            kept.append(token)
            emptied = False
    state.tokens = kept


def _links(state: StateCore) -> None:
    for token in state.tokens:
        if token.type == "inline" and token.children:
            _settle(token.children)


def _settle(tokens: Sequence[Token]) -> None:
    """A number in brackets keeps them as a link, and a link that is not let through is text."""
    rest: str | None = None
    for at, token in enumerate(tokens):
        if token.type == "link_close" and rest is not None:
            _become_text(token, rest)
            rest = None
        elif token.type == "link_open":
            href, title = str(token.attrGet("href") or ""), str(token.attrGet("title") or "")
            label = str((token.meta or {}).get("label", ""))
            if leads_somewhere(href):
                if label.isdigit() and tokens[at + 1].content == label:
                    tokens[at + 1].content = f"[{label}]"
                continue
            is_bare = token.markup == "autolink" or href.startswith("#")
            rest = "" if is_bare else as_written(href, title)
            _become_text(token, "[" if rest else "")


def as_written(address: str, title: str) -> str:
    """The end of a link, from its words on."""
    if address.startswith("data:"):
        address = f"{address[:40]}… {len(address):,} characters"
    return f']({address} "{title}")' if title else f"]({address})"


def _become_text(token: Token, text: str) -> None:
    token.type, token.tag, token.nesting, token.attrs, token.content = "text", "", 0, {}, text

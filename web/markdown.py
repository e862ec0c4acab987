"""Text of a model as HTML that can do nothing but be read: tables, task lists, highlighted code, MathML.

Two walls: markup in the text is never passed on, and whatever comes out goes through an allow-list. A reply that is
being written is rendered block by block: what is finished once, what is still open again with every piece. Link
definitions are off, for with them a later line would change what is finished.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
import nh3
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererHTML
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markupsafe import Markup

from web.formulas import add_math, mathml
from web.highlighting import COLOURS, has_colours

#: of a longer reply the rest is shown as it was written
RENDERED_CHARACTERS = 100_000
#: characters that may be rendered again for each one that was written, and what is given ahead
AGAIN, AHEAD = 16, 100_000
#: what a line costs besides its characters
LINE = 40

ALERTS = ("note", "tip", "important", "warning", "caution")
MATH = {
    *("math", "mrow", "mi", "mn", "mo", "ms", "mtext", "mspace", "mfrac", "msqrt", "mroot", "msub", "msup", "msubsup"),
    *("munder", "mover", "munderover", "mtable", "mtr", "mtd", "mstyle", "mpadded", "mphantom", "menclose", "mfenced"),
}
MATH_ATTRIBUTES = {
    *("display", "mathvariant", "stretchy", "fence", "separator", "form", "accent", "accentunder", "linethickness"),
    *("columnalign", "columnspacing", "rowspacing", "columnlines", "rowlines", "displaystyle", "scriptlevel"),
    *("minsize", "maxsize", "lspace", "rspace", "width", "height", "depth", "notation", "open", "close", "separators"),
}
TAGS = {
    *("p", "br", "hr", "h3", "h4", "h5", "h6", "strong", "em", "s", "blockquote", "ul", "ol", "li", "a"),
    *("div", "span", "pre", "code", "button", "table", "thead", "tbody", "tr", "th", "td"),
    *MATH,
}
ATTRIBUTES: dict[str, set[str]] = {
    "a": {"href", "title"},
    "ol": {"start"},
    "div": {"tabindex", "role", "aria-label"},
    "pre": {"tabindex"},
    "button": {"type"},
    "span": {"role", "aria-label"},
    **dict.fromkeys(MATH, MATH_ATTRIBUTES),
}
CLASSES = {
    "div": {"code", "code-head", "grid", "formula", "rest", "alert", *(f"alert-{kind}" for kind in ALERTS)},
    "p": {"alert-title"},
    "span": {"tick", "picture", *COLOURS.values()},
    "li": {"task"},
    "button": {"copy"},
    "code": {"source"},
    "th": {"center", "right"},
    "td": {"center", "right"},
}
_CLEANER = nh3.Cleaner(
    tags=TAGS,
    attributes=ATTRIBUTES,
    allowed_classes=CLASSES,
    url_schemes={"http", "https", "mailto"},
    url_relative="deny",
    link_rel="noopener noreferrer nofollow",
    set_tag_attribute_values={"a": {"target": "_blank"}},
)


class _Html(RendererHTML):
    """What each kind of token becomes, where it is not the usual."""

    def heading_open(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        """Below the page's own headings."""
        return f"<{_level(tokens[at])}>"

    def heading_close(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        return f"</{_level(tokens[at])}>\n"

    def fence(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        token = tokens[at]
        language = (token.info.split() or [""])[0][:40]
        body = env.get("colours", {}).get((language.lower(), token.content))
        return _code(escapeHtml(token.content) if body is None or not _is_closed(token) else body, language)

    def code_block(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        return _code(escapeHtml(tokens[at].content), "")

    def image(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        """A link: a picture that loads by itself would tell its server what was said."""
        token = tokens[at]
        words = self.renderInlineAsText(token.children or [], options, env) or "picture"
        address = escapeHtml(str(token.attrGet("src") or ""))
        return f'<a href="{address}"><span class="picture">{escapeHtml(words)}</span></a>'

    def list_item_open(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        token = tokens[at]
        if not token.meta or "checked" not in token.meta:
            return self.renderToken(tokens, at, options, env)
        state = "done" if token.meta["checked"] else "to do"
        tick = "☑" if token.meta["checked"] else "☐"
        return f'<li class="task"><span class="tick" role="img" aria-label="{state}">{tick}</span> '

    def table_open(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        return '<div class="grid" role="group" aria-label="Table" tabindex="0"><table>\n'

    def table_close(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        return "</table></div>\n"

    def th_open(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        return _cell(tokens[at])

    def td_open(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        return _cell(tokens[at])

    def alert_open(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        kind = str((tokens[at].meta or {}).get("kind", "note")).lower()
        return f'<div class="alert alert-{kind if kind in ALERTS else "note"}">\n'

    def alert_title_open(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        return '<p class="alert-title">'

    def formula(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        token = tokens[at]
        made = mathml(token.content, display=bool(token.meta["display"]))
        if made is None:
            made = f"<code>{escapeHtml(token.content)}</code>"
        return f'<div class="formula" tabindex="0">{made}</div>\n' if token.block else made


def _level(token: Token) -> str:
    return f"h{min(int(token.tag[1:]) + 2, 6)}"


def _cell(token: Token) -> str:
    side = str(token.attrGet("style") or "").removeprefix("text-align:")
    return f'<{token.tag} class="{side}">' if side in ("center", "right") else f"<{token.tag}>"


def _code(body: str, language: str) -> str:
    return (
        f'<div class="code"><div class="code-head"><span>{escapeHtml(language)}</span>'
        f'<button type="button" class="copy">Copy</button></div>'
        f'<pre tabindex="0"><code class="source">{body}</code></pre></div>\n'
    )


def _is_closed(fence: Token) -> bool:
    """Whether the fence has its last line; without it the block ran to the end of what there is."""
    assert fence.map is not None
    first, end = fence.map
    content = fence.content
    return (not content or content.endswith("\n")) and end - first == content.count("\n") + 2


def _parser() -> MarkdownIt:
    made = MarkdownIt(
        "gfm-like2", {"html": False, "breaks": True, "xhtmlOut": False, "linkify": False}, renderer_cls=_Html
    )
    made.disable(["reference", "html_block", "html_inline"])
    add_math(made)
    made.inline.ruler.before("linkify", "address", _address)
    return made


#: without a scheme it is more often a file's name than an address: main.py
_ADDRESS = re.compile(r"://[^\s<>\"`*]{1,2000}")
_SCHEME = re.compile(r"(?:^|[^\w/])(https?)$", re.IGNORECASE)


def _address(state: StateInline, silent: bool) -> bool:
    """An address in the text becomes a link; a mark that ends a sentence is not its end."""
    if state.linkLevel > 0 or not state.src.startswith("://", state.pos):
        return False
    scheme = _SCHEME.search(state.pending[-8:])
    found = _ADDRESS.match(state.src, state.pos, state.posMax)
    if scheme is None or found is None:
        return False
    rest = found[0].rstrip(".,:;!?'~_|\\")
    while rest.endswith((")", "]")) and rest.count(rest[-1]) > rest.count("(" if rest[-1] == ")" else "["):
        rest = rest[:-1].rstrip(".,:;!?'")
    address = state.md.normalizeLink(scheme[1] + rest)
    if len(rest) < 4 or not state.md.validateLink(address):
        return False
    if not silent:
        state.pending = state.pending.removesuffix(scheme[1])
        token = state.push("link_open", "a", 1)
        token.attrs = {"href": address}
        state.push("text", "", 0).content = scheme[1] + rest
        state.push("link_close", "a", -1)
    state.pos += len(rest)
    return True


_PARSER = _parser()


#: language and text of a block of code
Block = tuple[str, str]
#: gives blocks of code their colours: {block: HTML}, without those that stay plain
Colours = Callable[[list[Block]], dict[Block, str]]


def render(text: str, colouring: Colours | None = None) -> str:
    """HTML of a whole text; its code is plain where nobody colours it.

    It takes as long as the text is long, and the lexers of code may take much longer: what people or models wrote is
    rendered by `web.rendering`, in a process of its own where it is not short.
    """
    env: dict[str, Any] = {}
    tokens = _PARSER.parse(text[:RENDERED_CHARACTERS], env)
    if colouring is not None and (blocks := _blocks(tokens)):
        env["colours"] = colouring(blocks)
    made: str = _PARSER.renderer.render(tokens, _PARSER.options, env)
    if rest := text[RENDERED_CHARACTERS:]:
        made += written(rest)
    return _CLEANER.clean(made)


def written(text: str) -> str:
    """HTML of a text that is shown as it is written."""
    return f'<div class="rest">{escapeHtml(text)}</div>'


def _blocks(tokens: Sequence[Token]) -> list[Block]:
    """The blocks of code that have colours."""
    fences = (token for token in tokens if token.type == "fence" and _is_closed(token))
    found = {((token.info.split() or [""])[0][:40].lower(), token.content): None for token in fences}
    return [(language, code) for language, code in found if has_colours(code, language)]


def grow(text: str, *, lines: bool, colouring: Colours | None = None) -> tuple[int, str, str]:
    """A text that is being written: how much of it is finished, and the HTML of that and of the open block.

    Without new `lines` no more of it is finished than before.
    """
    end = _finished(text) if lines else 0
    return end, render(text[:end], colouring) if end else "", render(text[end:])


def _finished(text: str) -> int:
    """How much of a text is finished: all blocks before the last one that has a whole line.

    A line that may go on tells nothing: “2” is a paragraph and “2.” goes on with a list.
    """
    tokens: list[Token] = []
    _PARSER.block.parse(text[: text.rfind("\n") + 1], _PARSER, {}, tokens)
    starts = [token.map[0] for token in tokens if token.level == 0 and token.map and token.nesting >= 0]
    if len(starts) < 2:
        return 0
    at = 0
    for _ in range(starts[-1]):
        at = text.index("\n", at) + 1
    return at


class Grown(msgspec.Struct, frozen=True):
    """What a piece of text changes: blocks that are finished now, and the one that is open."""

    finished: Markup
    #: None where only `text` is added to it
    open: Markup | None
    #: text that is shown as it came until the open block is rendered again
    text: str = ""
    #: whether that text goes into a block of code
    in_code: bool = False


class Growing:
    """A reply that is being written.

    To render the open block with every piece costs the square of its length; so a long one is rendered again only
    when enough was written since, and what comes in between is shown as plain text.
    """

    def __init__(self) -> None:
        #: the text of the open block
        self._open = ""
        #: text that has not been rendered yet
        self._fresh = ""
        #: a carriage return at the end: half of a line break, perhaps
        self._half = ""
        self._seen = 0
        self._budget = AHEAD

    def add(self, text: str) -> Grown:
        """Take in the next piece, which is short."""
        text, due = self._accept(text)
        return self._step(grow(self._text(), lines="\n" in self._fresh) if due else None, text)

    async def take(self, text: str, growing: Callable[[str, bool], Awaitable[tuple[int, str, str] | None]]) -> Grown:
        """The same with another `grow`; without an answer the text is shown as it is written for now."""
        text, due = self._accept(text)
        return self._step(await growing(self._text(), "\n" in self._fresh) if due else None, text)

    def _text(self) -> str:
        return self._open + self._fresh

    def _accept(self, text: str) -> tuple[str, bool]:
        """Note a piece of text; it, and whether the open block is to be rendered again."""
        text = self._half + text
        self._half = "\r" if text.endswith("\r") else ""
        text = normal(text.removesuffix("\r"))
        self._fresh += text
        self._seen += len(text)
        self._budget = self._budget + len(text) * AGAIN if self._seen <= RENDERED_CHARACTERS else 0
        cost = len(self._open) + len(self._fresh) + LINE * (self._open.count("\n") + self._fresh.count("\n"))
        if due := self._budget >= cost:
            self._budget -= cost
        return text, due

    def _step(self, rendered: tuple[int, str, str] | None, text: str) -> Grown:
        if rendered is None:
            return Grown(Markup(), None, text, self._in_code())
        end, finished, html = rendered
        self._open, self._fresh = self._text()[end:], ""
        return Grown(Markup(finished), Markup(html))  # noqa: S704

    def _in_code(self) -> bool:
        return re.match(r" {0,3}(```|~~~)", self._open) is not None


def normal(text: str) -> str:
    """One kind of line break, and nothing a parser would change by itself."""
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")

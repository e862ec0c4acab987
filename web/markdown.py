"""Text of a model as HTML that can do nothing but be read: tables, task lists, highlighted code, MathML.

Two walls: markup in the text is never passed on, and whatever comes out goes through an allow-list. A reply that is
being written is rendered block by block: what is finished once, what is still open again with every piece. Definitions
of links and footnotes count there from their line on, since no later line may change what is finished. The reply that
has ended is rendered whole and takes the place of all that.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

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
from web.markdown_rules.containers import add_containers
from web.markdown_rules.directions import add_directions
from web.markdown_rules.elements import add_elements
from web.markdown_rules.emphasis import add_emphasis
from web.markdown_rules.fences import add_fences
from web.markdown_rules.notes import add_notes
from web.markdown_rules.order import Known, add_order, environment, told
from web.markdown_rules.references import add_references, as_written, leads_somewhere
from web.markdown_rules.tables import add_tables

#: of a longer reply the rest is shown as it was written
RENDERED_CHARACTERS = 100_000
#: characters that may be rendered again for each one that was written, and what is given ahead
AGAIN, AHEAD = 16, 100_000
#: renderings in a row that may fail until the rest of a reply is shown as it comes; one may only have met a busy moment
FAILURES = 2
#: what a line costs besides its characters
LINE = 40

#: languages of diagrams, which are shown as their source
DIAGRAMS = {"mermaid", "plantuml", "puml", "graphviz", "dot", "d2"}
#: a cell with more characters is given room, so that a narrow screen scrolls the table and does not squeeze it
SHORT_CELL, LONG_CELL = 9, 40
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
    *("div", "span", "pre", "code", "button", "table", "thead", "tbody", "tr", "th", "td", "sub", "sup", "kbd"),
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
#: what may say its direction
DIRECTED = ("p", "h3", "h4", "h5", "h6", "blockquote", "ul", "ol", "table", "th", "td", "div", "a")
CLASSES = {
    "div": {"code", "code-head", "grid", "formula", "rest", "note", "alert", *(f"alert-{kind}" for kind in ALERTS)},
    "p": {"alert-title"},
    "span": {"tick", "picture", *COLOURS.values()},
    "li": {"task"},
    "button": {"copy"},
    "code": {"source"},
    "sup": {"mark"},
    "th": {"center", "right", "some", "long"},
    "td": {"center", "right", "some", "long"},
}
_CLEANER = nh3.Cleaner(
    tags=TAGS,
    attributes=ATTRIBUTES,
    allowed_classes=CLASSES,
    tag_attribute_values={tag: {"dir": {"ltr", "rtl", "auto"}} for tag in DIRECTED},
    url_schemes={"http", "https", "mailto"},
    url_relative="deny",
    link_rel="noopener noreferrer nofollow",
    set_tag_attribute_values={"a": {"target": "_blank"}},
)


class _Html(RendererHTML):
    """What each kind of token becomes, where it is not the usual."""

    def heading_open(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        """Below the page's own headings."""
        return f"<{_level(tokens[at])}{self.renderAttrs(tokens[at])}>"

    def heading_close(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        return f"</{_level(tokens[at])}>\n"

    def fence(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        token = tokens[at]
        language = (token.info.split() or [""])[0][:40]
        body = env.get("colours", {}).get((language.lower(), token.content))
        head = " ".join(token.info.split())
        if language.lower() in DIAGRAMS:
            head += " (source of a diagram)"
        return _code(escapeHtml(token.content) if body is None or not token.meta["closed"] else body, head)

    def code_block(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        return _code(escapeHtml(tokens[at].content), "")

    def image(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        """A link: a picture that loads by itself would tell its server what was said."""
        token = tokens[at]
        words, source = escapeHtml(_words(token.children or ())), str(token.attrGet("src") or "")
        if not leads_somewhere(source):
            return f"![{words}{escapeHtml(as_written(source, str(token.attrGet('title') or '')))}"
        title = f' title="{escapeHtml(str(token.attrGet("title")))}"' if token.attrGet("title") else ""
        return f'<a href="{escapeHtml(source)}"{title}><span class="picture">{words or "picture"}</span></a>'

    def list_item_open(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        token = tokens[at]
        if not token.meta or "checked" not in token.meta:
            return self.renderToken(tokens, at, options, env)
        state = "done" if token.meta["checked"] else "to do"
        tick = "☑" if token.meta["checked"] else "☐"
        return f'<li class="task"><span class="tick" role="img" aria-label="{state}">{tick}</span> '

    def table_open(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        return f'<div class="grid" role="group" aria-label="Table" tabindex="0"><table{self.renderAttrs(tokens[at])}>\n'

    def table_close(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        return "</table></div>\n"

    def th_open(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        return _cell(tokens[at], tokens[at + 1].content)

    def td_open(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        return _cell(tokens[at], tokens[at + 1].content)

    def alert_open(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        kind = str((tokens[at].meta or {}).get("kind", "note")).lower()
        tokens[at].attrSet("class", f"alert alert-{kind if kind in ALERTS else 'note'}")
        return f"<div{self.renderAttrs(tokens[at])}>\n"

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


def _cell(token: Token, text: str) -> str:
    side = str(token.attrGet("style") or "").removeprefix("text-align:")
    room = "long" if len(text) > LONG_CELL else "some" if len(text) > SHORT_CELL else ""
    token.attrs.pop("style", None)
    if classes := " ".join(name for name in (side if side in ("center", "right") else "", room) if name):
        token.attrSet("class", classes)
    return f"<{token.tag}{RendererHTML.renderAttrs(token)}>"


def _words(tokens: Sequence[Token]) -> str:
    """What is read in a line that may hold no markup."""
    return "".join(
        " " if token.type in ("softbreak", "hardbreak") else _words(token.children or ()) or token.content
        for token in tokens
    )


def _code(body: str, language: str) -> str:
    return (
        f'<div class="code"><div class="code-head"><span>{escapeHtml(language)}</span>'
        f'<button type="button" class="copy">Copy</button></div>'
        f'<pre tabindex="0"><code class="source">{body}</code></pre></div>\n'
    )


def _parser() -> MarkdownIt:
    made = MarkdownIt(
        "gfm-like2", {"html": False, "breaks": True, "xhtmlOut": False, "linkify": False}, renderer_cls=_Html
    )
    made.disable(["reference", "html_block", "html_inline"])
    for add in (add_containers, add_emphasis, add_tables, add_fences, add_elements):
        add(made)
    for add in (add_references, add_notes, add_order, add_directions, add_math):
        add(made)
    made.inline.ruler.before("linkify", "address", _address)
    return made


#: without a scheme it is more often a file's name than an address: main.py
_ADDRESS = re.compile(r"://[^\s<>\"`*。，、；：！？「」『』（）《》〈〉【】“”]{1,2000}")
_SCHEME = re.compile(r"(?:^|[^A-Za-z0-9_/])(https?)$", re.IGNORECASE)


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
        token.attrs = {"href": address, "dir": "ltr"}
        state.push("text", "", 0).content = scheme[1] + rest
        state.push("link_close", "a", -1)
    state.pos += len(rest)
    return True


_PARSER = _parser()


#: language and text of a block of code
Block = tuple[str, str]
#: gives blocks of code their colours: {block: HTML}, without those that stay plain
Colours = Callable[[list[Block]], dict[Block, str]]


def render(text: str, colouring: Colours | None = None, env: dict[str, Any] | None = None) -> str:
    """HTML of a whole text; its code is plain where nobody colours it.

    It takes as long as the text is long, and the lexers of code may take much longer: what people or models wrote is
    rendered by `web.rendering`, in a process of its own where it is not short. Of a part of a text, `env` is what the
    parts before it have told; what this one tells is added.
    """
    env = environment() if env is None else env
    tokens = _PARSER.parse(text[:RENDERED_CHARACTERS], env)
    if colouring is not None and (blocks := _blocks(tokens)):
        env["colours"] = colouring(blocks)
    made: str = _PARSER.renderer.render(tokens, _PARSER.options, env)
    if rest := text[RENDERED_CHARACTERS:]:
        made += written(rest)
    return _CLEANER.clean(made)


def written(text: str) -> str:
    """HTML of a text that is shown as it is written."""
    return f'<div class="rest" dir="auto">{escapeHtml(text)}</div>'


def _blocks(tokens: Sequence[Token]) -> list[Block]:
    """The blocks of code that have colours."""
    fences = (token for token in tokens if token.type == "fence" and token.meta["closed"])
    found = {((token.info.split() or [""])[0][:40].lower(), token.content): None for token in fences}
    return [(language, code) for language, code in found if has_colours(code, language)]


class Growth(NamedTuple):
    """A text that is being written: how much of it is finished, and the HTML of that and of the open block."""

    end: int
    finished: str
    open: str
    #: what is known after the finished part
    known: Known


def grow(text: str, *, lines: bool, known: Known = (), colouring: Colours | None = None) -> Growth:
    """Render what is not finished yet of a text that is being written; `known` is what has been told before.

    Without new `lines` no more of it is finished than before.
    """
    end = _finished(text) if lines else 0
    finished = ""
    if end:
        env = environment(known)
        finished, known = render(text[:end], colouring, env), told(env)
    return Growth(end, finished, render(text[end:], env=environment(known)), known)


def _finished(text: str) -> int:
    """How much of a text is finished: all blocks before the last one that has a whole line.

    A line that may go on tells nothing: “2” is a paragraph and “2.” goes on with a list.
    """
    tokens: list[Token] = []
    _PARSER.block.parse(text[: text.rfind("\n") + 1], _PARSER, environment(()), tokens)
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
        self._failures = 0
        #: what the finished blocks have told
        self._known: Known = ()

    def add(self, text: str) -> Grown:
        """Take in the next piece, which is short."""
        text, due = self._accept(text)
        return self._step(grow(self._text(), lines="\n" in self._fresh, known=self._known) if due else None, text)

    async def take(self, text: str, growing: Callable[[str, bool, Known], Awaitable[Growth | None]]) -> Grown:
        """The same with another `grow`; without an answer the text is shown as it is written for now."""
        text, due = self._accept(text)
        rendered = await growing(self._text(), "\n" in self._fresh, self._known) if due else None
        if due:
            self._failures = self._failures + 1 if rendered is None else 0
        return self._step(rendered, text)

    def _text(self) -> str:
        return self._open + self._fresh

    def _accept(self, text: str) -> tuple[str, bool]:
        """Note a piece of text; it, and whether the open block is to be rendered again."""
        text = self._half + text
        self._half = "\r" if text.endswith("\r") else ""
        text = normal(text.removesuffix("\r"))
        if self._failures >= FAILURES:
            return text, False
        self._fresh += text
        self._seen += len(text)
        self._budget = self._budget + len(text) * AGAIN if self._seen <= RENDERED_CHARACTERS else 0
        cost = len(self._open) + len(self._fresh) + LINE * (self._open.count("\n") + self._fresh.count("\n"))
        if due := self._budget >= cost:
            self._budget -= cost
        return text, due

    def _step(self, rendered: Growth | None, text: str) -> Grown:
        if rendered is None:
            return Grown(Markup(), None, text, self._in_code())
        end, finished, html, self._known = rendered
        self._open, self._fresh = self._text()[end:], ""
        return Grown(Markup(finished), Markup(html))  # noqa: S704

    def _in_code(self) -> bool:
        return re.match(r" {0,3}(```|~~~)", self._open) is not None


def normal(text: str) -> str:
    """One kind of line break, and nothing a parser would change by itself."""
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")

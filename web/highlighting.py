"""Code in colours, for the languages people use. It may take long: only a process with limits of its own calls it."""

from functools import lru_cache
from typing import Any

from markdown_it.common.utils import escapeHtml

#: a longer block of code is shown without colours
HIGHLIGHT_CHARACTERS = 20_000

#: the first words of a token's type in Pygments → the class it is shown in
COLOURS = {
    "Keyword.Constant": "hl-number",
    "Keyword": "hl-keyword",
    "Operator.Word": "hl-keyword",
    "Literal.String": "hl-string",
    "Literal.Number": "hl-number",
    "Comment": "hl-comment",
    "Name.Function": "hl-name",
    "Name.Class": "hl-name",
    "Name.Decorator": "hl-name",
    "Name.Builtin": "hl-builtin",
    "Name.Tag": "hl-keyword",
    "Name.Attribute": "hl-name",
    "Generic.Heading": "hl-keyword",
    "Generic.Inserted": "hl-string",
    "Generic.Deleted": "hl-deleted",
}
#: the lexers of Pygments that are used, each → other names of its language. Those that took exponential time for
#: hostile text are not here; several take its square, so none of them runs without a limit.
LEXERS: dict[str, tuple[str, ...]] = {
    # programs
    "ada": (),
    "awk": ("gawk",),
    "c": ("h",),
    "clojure": ("clj",),
    "cobol": (),
    "common-lisp": ("cl", "lisp"),
    "cpp": ("c++", "cc", "cxx", "hpp"),
    "crystal": ("cr",),
    "csharp": ("c#", "cs"),
    "cuda": ("cu",),
    "cython": ("pyx",),
    "d": (),
    "dart": (),
    "delphi": ("pascal", "objectpascal"),
    "elisp": ("emacs", "emacs-lisp"),
    "elixir": ("ex", "exs"),
    "elm": (),
    "erlang": ("erl",),
    "fortran": ("f90",),
    "fsharp": ("f#", "fs"),
    "gdscript": ("gd",),
    "go": ("golang",),
    "groovy": ("gradle",),
    "haskell": ("hs",),
    "java": (),
    "javascript": ("js", "jsx", "mjs", "cjs", "node"),
    "julia": ("jl",),
    "kotlin": ("kt", "kts"),
    "lua": ("luau",),
    "matlab": (),
    "nim": (),
    "objective-c": ("objc", "objectivec", "obj-c"),
    "ocaml": ("ml",),
    "octave": (),
    "perl": ("pl",),
    "php": (),
    "prolog": (),
    "python": ("py", "py3", "python3", "sage", "gyp"),
    "racket": ("rkt",),
    "ruby": ("rb",),
    "rust": ("rs",),
    "scheme": ("scm",),
    "solidity": ("sol",),
    "splus": ("r", "s"),
    "swift": (),
    "tcl": (),
    "typescript": ("ts", "tsx"),
    "vb.net": ("vbnet", "vb", "visualbasic"),
    "zig": (),
    # machines
    "gas": ("asm", "assembly"),
    "glsl": (),
    "hlsl": (),
    "llvm": (),
    "nasm": (),
    "systemverilog": ("sv",),
    "verilog": ("v",),
    "vhdl": (),
    "wast": ("wat", "wasm"),
    # shells and builds
    "bash": ("sh", "shell", "zsh", "ksh"),
    "batch": ("bat", "cmd"),
    "cmake": (),
    "console": ("shell-session", "shellsession"),
    "docker": ("dockerfile", "containerfile"),
    "make": ("makefile", "mf"),
    "meson": (),
    "nix": (),
    "powershell": ("pwsh", "ps1"),
    "puppet": (),
    "terraform": ("tf", "hcl"),
    "vim": ("viml", "vimscript"),
    # data and queries
    "cypher": (),
    "diff": ("patch", "udiff"),
    "graphql": (),
    "ini": ("cfg", "conf", "dosini"),
    "json": ("jsonc", "json5", "jsonl", "ndjson"),
    "mysql": (),
    "nginx": (),
    "postgres": ("postgresql",),
    "properties": ("jproperties",),
    "protobuf": ("proto",),
    "sparql": (),
    "sql": ("sqlite", "tsql", "mssql", "plsql"),
    "toml": (),
    "xml": ("svg", "xsd", "xslt"),
    "yaml": ("yml",),
    # pages and texts
    "css": (),
    "html": ("xhtml", "htm"),
    "html+jinja": ("jinja2", "htmldjango", "html+django"),
    "less": (),
    "pycon": (),
    "pytb": ("traceback",),
    "rst": ("restructuredtext",),
    "sass": (),
    "scss": (),
    "tex": ("latex",),
}
LANGUAGES = {name: lexer for lexer, others in LEXERS.items() for name in (lexer, *others)}
#: a lexer that colours what is quoted would reach the lexers of all languages
OPTIONS: dict[str, dict[str, Any]] = {"rst": {"handlecodeblocks": False}}


def has_colours(code: str, language: str) -> bool:
    """Whether a block of code can have any."""
    return language in LANGUAGES and 0 < len(code) <= HIGHLIGHT_CHARACTERS


@lru_cache(maxsize=128)
def lexer_for(language: str) -> Any:
    """The lexer of a language that has one."""
    from pygments.lexers import get_lexer_by_name

    name = LANGUAGES[language]
    return get_lexer_by_name(name, stripnl=False, ensurenl=False, **OPTIONS.get(name, {}))


def coloured(code: str, language: str) -> str | None:
    """A block of code as HTML with its words in colours; None where its lexer changes or refuses the text."""
    try:
        pieces = list(lexer_for(language).get_tokens(code))
    except Exception:  # a lexer may fail at what it does not expect, each in its own way
        return None
    if "".join(text for _, text in pieces) != code:
        return None
    out: list[str] = []
    for kind, text in pieces:
        colour = _colour(kind)
        out.append(f'<span class="{colour}">{escapeHtml(text)}</span>' if colour and text.strip() else escapeHtml(text))
    return "".join(out)


@lru_cache(maxsize=512)
def _colour(kind: Any) -> str:
    """The class of a token type of Pygments, through its parents."""
    while kind:
        if (name := str(kind).removeprefix("Token.")) in COLOURS:
            return COLOURS[name]
        kind = kind.parent
    return ""

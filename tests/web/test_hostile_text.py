"""No text stops the server: every lexer, Markdown shape and formula against input that grows (SECURITY 28, 53).

With LONG_TESTS=1 there are more and longer texts; it takes a quarter of an hour.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from uuid import UUID

import pytest
from pygments.lexers import get_lexer_by_name

from db.words import Asked
from services.clients.echo import Plan
from services.clients.thinking import Parting
from services.markdown_file import plain, quoted
from services.text import TITLED_CHARACTERS, title_of
from web import render_worker, rendering
from web.formulas import FORMULA_CHARACTERS, mathml
from web.highlighting import HIGHLIGHT_CHARACTERS, LANGUAGES, LEXERS, coloured, has_colours
from web.markdown import RENDERED_CHARACTERS, Growing, Growth, grow, render
from web.markdown_rules.order import Known
from web.render_worker import BLOCK_SECONDS, digest_of
from web.rendering import LOOP_CHARACTERS, PROCESSES, QUEUE_OF_ONE, Renderer, _has_formulas, _is_short, html_of

LONG = bool(os.environ.get("LONG_TESTS"))
#: what may be held on the loop, in seconds of a processor
HELD = 0.05
#: of four times the text: linear is 4, and a busy machine measures badly; the square would be 16
TIMES = 9.0


def cpu(work: Callable[[str], object], text: str, tries: int = 3) -> float:
    """The least that some work takes of a processor."""
    best = float("inf")
    for _ in range(tries):
        began = time.process_time()
        work(text)
        best = min(best, time.process_time() - began)
    return best


def requires_linear(work: Callable[[str], object], shape: Callable[[int], str], size: int) -> None:
    """Four times the text takes about four times as long; what takes next to nothing tells nothing."""
    for _ in range(3):
        few, many = cpu(work, shape(size)), cpu(work, shape(4 * size))
        if many < max(TIMES * few, 0.01):
            return
    pytest.fail(f"{size} characters took {few * 1000:.1f} ms, four times as many {many * 1000:.1f} ms", pytrace=False)


# ---------------------------------------------------------------- Markdown

UNITS = (
    *("tok1 ", "*a ", "*a*", "**a", "***a", "_a", "__a_", "[", "]", "[a]", "[a](", "[a](b", "![", "![[", "[a][b]"),
    *("> ", ">", "> - ", "- > ", "- ", "-\n", "1. ", "1.\n", "- [ ] a\n", "`", "`a``b", "$a ", "$x$", "$x^2$ ", "$$"),
    *("\\(a", "\\[", "$$\na\n", "\\[\n", "&", "&#x", "&a;", "&amp", "http://a", "http://a ", "http://a.b)", "://"),
    *("a|b\n", "|", "|a|b|\n|-|-|\n", "```\n", "```a\nb\n```\n", "~~~\n", "<a ", "<http://a>", "<", "<!--", "~"),
    *("~~a", "~a~", "a\n", "\n", "\\", "\\\n", "# a\n", "#", "a\n=\n", "---\n", "> [!NOTE]\n", "> [!NOTE]\n> a\n\n"),
    *("> a\nb\n", "    a\n", "\t", "\ta\n", "*_", "*_a_*", "~~*_", "[a]: b\n", "[a]: <b", '[a]: b "', "[^a]"),
    *("[^a]: b\n", "[^a]\n\n[^a]: b\n\n", "a@b.c ", "www.a.b ", "a  \n", " ", "\u00a0", "😀", "字**", "**字", "。**「"),
    *("<br>", "|<br>", "[ ](", "(", ")", '"', "'", "\u2028", "\ufffd", "=", "+", "{", "}", "a:", "- a\n  - b\n"),
)


def repeated(unit: str) -> Callable[[int], str]:
    return lambda size: (unit * (size // len(unit) + 1))[:size]


def deeper(size: int) -> str:
    """A list in a list in a list."""
    lines: list[str] = []
    while sum(map(len, lines)) < size:
        lines.append("  " * len(lines) + "- a\n")
    return "".join(lines)[:size]


def longer(mark: str) -> Callable[[int], str]:
    """One mark, then two, then three."""

    def shape(size: int) -> str:
        marks = ""
        for number in count(1):
            marks += mark * number + "a "
            if len(marks) >= size:
                break
        return marks[:size]

    return shape


def wide(size: int) -> str:
    """A table with as many columns as rows, all but one of which are left out."""
    side = int(size**0.5)
    return (
        f"{'|a' * side}|\n{'|-' * side}|\n{'|a' * (size - 4 * side)}\n"[:size]
        if size < 100
        else (f"{'a|' * (side // 2)}\n{'-|' * (side // 2)}\n" + "|a\n" * ((size - 2 * side) // 3))
    )


SHAPES: dict[str, Callable[[int], str]] = {
    **{repr(unit): repeated(unit) for unit in UNITS},
    "lists in lists": deeper,
    **{f"ever more {mark}": longer(mark) for mark in ("`", "*", "_", ">", "[", "~", "$", "|", "<")},
    "one long link": lambda size: "[a](<" + "b" * (size - 5),
    "one long address": lambda size: "http://a" + ")" * (size - 8),
    "one long title": lambda size: ('[a](b "' * size)[:size],
    "blanks in a line": lambda size: "a" + " " * (size - 2) + "b",
    "definitions and uses": lambda size: "".join(f"[a{n}]: b\n\n[a{n}] " for n in range(size // 14)),
    "notes and their uses": lambda size: "".join(f"[^{n}]\n\n[^{n}]: b\n\n" for n in range(size // 16)),
    "one note used often": lambda size: "[^a]: b\n\n" + "[^a] " * (size // 5),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_53_four_times_the_markdown_takes_four_times_as_long(shape: Callable[[int], str]) -> None:
    requires_linear(render, shape, 6_000 if LONG else 400)


#: after these a line without a mark does not go on the quotation, which is known once it has been looked for
@pytest.mark.parametrize("inner", ["# a", "[!NOTE]", "[!TIP]\n> # a", "---", "```", "|a|\n> |-|", "$$a$$"])
def test_53_many_quotations_that_end_without_a_blank_line_take_as_long_as_their_text(inner: str) -> None:
    requires_linear(render, repeated(f"> {inner}\nb\n"), 5_000)


def test_a_quotation_goes_on_without_its_mark() -> None:
    for lines in (2, 300, 3_000):
        assert render("> a\n" + "b\n" * lines).count("<p>") == 1
    assert render("> a\nb\n" * 1_500 + "> c\n\nd").count("<blockquote") == 1


@pytest.mark.parametrize(
    "rest",
    ['"' + "‹" * 90_000 + '"', "a" * 90_000, "a" * 1_900 + ' "' + "‹" * 490 + '"'],
    ids=["title", "address", "both"],
)
def test_53_what_links_put_on_the_page_is_in_proportion_to_the_text(rest: str) -> None:
    definition = f"[1]: https://e.org/ {rest}" if rest.startswith('"') else f"[1]: https://e.org/{rest}"
    text = f"{definition}\n\n" + "[1][1][1]\n\n" * 1_000
    html = render(text)
    assert len(html) < 12 * len(text) + 200_000
    assert "[1]" in html
    # In the next block of a growing text too.
    growing = Growing()
    growing.add(f"{definition}\n\nx\n\n")
    assert len(str(growing.add("[1]" * 333).open)) < 60_000


def test_links_of_a_long_text_that_people_write_are_all_there() -> None:
    cited = "".join(f"As they say [{number}].\n\n" for number in range(1, 200))
    told = "".join(
        f'[{number}]: https://example.org/a/long/address/{number} "Title {number}"\n' for number in range(1, 200)
    )
    assert render(f"{cited}\n{told}").count("<a ") == 199


def test_53_a_table_is_filled_up_to_so_many_cells_only() -> None:
    assert render(wide(40_000)).count("<td>") < 70_000


def test_53_what_is_rendered_on_the_loop_holds_it_for_less_than_50_ms() -> None:
    held = {}
    for name, shape in {**SHAPES, "wide table": wide}.items():
        for size in (LOOP_CHARACTERS // 4, LOOP_CHARACTERS):
            text = shape(size)
            if _is_short(text) and not _has_formulas(text):
                held[name, size] = cpu(render, text), cpu(lambda text: Growing().add(text), text)
    assert len(held) > 150
    assert not {name: both for name, both in held.items() if max(both) >= HELD}
    assert not _is_short(wide(LOOP_CHARACTERS)), "its cells count"


# ---------------------------------------------------------------- formulas

FORMULAS = (
    *("x", "x^2 ", "x_", "x^{", "\\frac{", "\\frac12", "{", "{}", "\\sqrt{", "\\left(", "\\left(x\\right)", "\\text{"),
    *("\\text{a b}", "\\begin{matrix}", "a&", "a\\\\", "\\", "'", "x'", "x^{'}", "1", "1.", "\\ ", "\\alpha", "_", "^"),
    *("\\overset{a}{", "\\hat{", "\\sum\\limits_", "\\sum_{", "\\color{", "\\$", "%", "\\left[", "\\begin{cases}a"),
    *("\\begin{matrix}a&b\\end{matrix}", "\\begin{array}{c}a", "\\substack{", "\\big(", "\\mathbb{R}", "\\mathrm{"),
    *("\\operatorname{", "\\not", "\\middle|", "\\hline", "\\binom{", "\\xrightarrow{", "\\pmod{", " x", "\\href{a}{"),
    *("\\hspace{1em}", "\\displaystyle ", "\\root{", "\\genfrac{}{}{}{}{a}{b}", "\\begin{a}", "\\end{a}", "}", "&"),
)


@pytest.mark.parametrize("unit", FORMULAS)
def test_53_four_times_the_formula_takes_four_times_as_long(unit: str) -> None:
    def work(text: str) -> None:
        mathml.__wrapped__(text, display=True)

    requires_linear(work, repeated(unit), FORMULA_CHARACTERS // 4)


# ---------------------------------------------------------------- other places where a text is read

READERS: dict[str, tuple[Callable[[str], object], int]] = {
    "title": (title_of, TITLED_CHARACTERS),
    "line of a file": (plain, 20_000),
    "quote in a file": (quoted, 100_000),
    "directives": (Plan.of, 20_000),
    "reasoning": (lambda text: Parting().feed(text), 100_000),
    "place of a word": (lambda text: list(Asked("a b 中").spans(text)), 5_000),
}
READ = ("a", "a ", "[", "![", "[a](", "```\n", "~~~", "`", "- ", "# ", "> ", "*", "_", "-", " ", "\n", "?", "a? ", "<")
READ += (
    "\ufdfa",
    "中",
    "</",
    "<think>",
    "</think",
    "/text ",
    "/tokens ",
    "/delay ",
    "1. ",
    "\\",
    "\u0301",
    "字",
    "。",
    "\t",
    "\r",
)


@pytest.mark.parametrize("name", READERS)
def test_53_whatever_else_reads_a_text_holds_the_loop_for_less_than_50_ms(name: str) -> None:
    read, size = READERS[name]
    held = {unit: cpu(read, repeated(unit)(size)) for unit in READ}
    assert not {unit: seconds for unit, seconds in held.items() if seconds >= HELD}


# ---------------------------------------------------------------- lexers

#: beginnings, what grows, ends: each is more than linear in some lexer of Pygments
NASTY = [
    (before, unit, after)
    for before, unit, after in (
        *(("", unit, "") for unit in ("\\", '"', "'", "(", "[", "{", "<", "`", "/", "0_", "a", "-", "#", "\n", " \n")),
        *(
            ('"', "\\", ""),
            ("a ", " ", ""),
            ("a", "\t", "\x01"),
            ("{", "a\n", ""),
            ("", "<<a\n", ""),
            ("a = ", " ", ""),
        ),
        *(("", "a.", ""), ("", "a::", "\n"), ("", "a(", ""), ("<a ", "_", ""), ("/*", "*", ""), ("'''", '"', "!")),
        *(
            ("class ", "\t", ""),
            ("#", "\n", ""),
            ("def ", "(", ""),
            ("", "${", ""),
            ("", "{{", ""),
            ("", "function ", ""),
        ),
    )
]
MORE = [
    ("x = ", unit, end) for unit in ("<", "</", "a ", "a,", "a:", "$", "@", "%", "=", "\r", "é") for end in ("", '"')
]


class Over(Exception):
    """Code takes longer to colour than a block may."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises Over: patterns look for signals now and then."""

    def over(*_: object) -> None:
        raise Over

    before = signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def test_every_language_has_a_lexer_and_one_name() -> None:
    names = [name for lexer, others in LEXERS.items() for name in (lexer, *others)]
    assert len(names) == len(set(names)) == len(LANGUAGES) and 60 <= len(LEXERS) <= 100
    for lexer in LEXERS:
        assert get_lexer_by_name(lexer)
        assert coloured("a = 1\n", lexer) is not None, lexer
    assert not {"scala", "systemd", "smithy", "tads3", "fish", "http", "markdown"} & set(LANGUAGES)
    assert not has_colours("a", "no-such-language") and not has_colours("a" * (HIGHLIGHT_CHARACTERS + 1), "python")


@pytest.mark.parametrize("lexer", LEXERS)
def test_53_no_lexer_takes_exponential_time(lexer: str) -> None:
    """A few hundred characters are coloured within the limit of a block, and nothing is lost of them."""
    coloured("a", lexer)
    for before, unit, after in NASTY + (MORE if LONG else []):
        code = before + repeated(unit)(400 if LONG else 100) + after
        try:
            with limited(2 * BLOCK_SECONDS):
                coloured(code, lexer)
        except Over:
            pytest.fail(f"{lexer}: {before!r} and {unit!r}, {len(code)} characters", pytrace=False)


# ---------------------------------------------------------------- the processes that render


class Timeouts:
    """A list of texts that took too long, in memory."""

    def __init__(self) -> None:
        self.found: set[str] = set()
        self.remembered: list[str] = []

    async def known(self, digests: Collection[str]) -> set[str]:
        return self.found & set(digests)

    async def remember(self, digest: str) -> None:
        self.found.add(digest)
        self.remembered.append(digest)


_numbers = count()


def block(language: str, code: str) -> str:
    """A fenced block that no other test has."""
    return f"{next(_numbers)}\n\n```{language}\n{code}\n```\n"


#: what the lexer of C takes the square of: half a minute
SLOW = "a" + " " * 19_000
GOOD = "int main() { return 0; }"


@contextmanager
def ticking() -> Iterator[list[float]]:
    """Notes the pauses between two turns of the loop that took longer than 50 ms of this process's own time."""
    held: list[float] = []

    async def tick() -> None:
        while True:
            before = time.process_time()
            await asyncio.sleep(0)
            if (seconds := time.process_time() - before) >= HELD:
                held.append(seconds)
            await asyncio.sleep(0.002)

    task = asyncio.create_task(tick())
    try:
        yield held
    finally:
        task.cancel()


@pytest.fixture(autouse=True)
def patient_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait up to two minutes for a rendering, so that a busy machine fails no test; servers keep the real limit."""
    monkeypatch.setattr(rendering, "PAGE_SECONDS", 120.0)


async def all_wait() -> None:
    """Let every task go on until it waits for a process."""
    for _ in range(10):
        await asyncio.sleep(0)


#: two readers
ANN, BEN = UUID(int=1), UUID(int=2)


async def html(renderer: Renderer, text: str, who: UUID = ANN) -> str:
    async with renderer.shown(who, [text]):
        return str(html_of(text))


async def test_53_code_that_takes_too_long_stays_plain_for_good_and_the_rest_has_its_colours() -> None:
    timeouts, slow = Timeouts(), block("c", SLOW)
    text = f"{slow}\n{block('c', GOOD)}"
    renderer = Renderer(timeouts)
    with ticking() as held:
        shown = await html(renderer, text)
    assert not held
    assert shown.count("hl-keyword") == 2 and "  " * 9_000 in shown
    assert timeouts.remembered == [digest_of("c", SLOW + "\n")]
    assert await html(renderer, text) == shown
    await renderer.close()
    renderer = Renderer(timeouts)
    assert "hl-" not in await html(renderer, block("c", SLOW)), "another reply with the same block"
    assert len(timeouts.remembered) == 1 and len(renderer.processes) == 1, "nothing was tried again"
    await renderer.close()
    assert not renderer.processes


async def test_53_of_many_such_blocks_in_one_reply_some_are_tried_and_none_has_colours() -> None:
    timeouts = Timeouts()
    renderer = Renderer(timeouts)
    shown = await html(renderer, "\n".join(block("c", SLOW + str(number)) for number in range(5)))
    assert shown.count('class="code"') == 5 and "hl-" not in shown
    assert len(timeouts.remembered) == 3
    await renderer.close()


async def test_53_a_text_that_takes_too_long_is_shown_as_it_is_written_for_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from web import render_worker, rendering

    timeouts, text = Timeouts(), f"{next(_numbers)} " + "![[" * 30_000
    started = []
    start = rendering._Process.start

    async def limits_it(all: set[rendering._Process]) -> rendering._Process:
        process = await start(all)
        started.append(process)
        return process

    monkeypatch.setattr(rendering._Process, "start", limits_it)
    monkeypatch.setattr(render_worker, "__file__", str(hurried()))
    renderer = Renderer(timeouts)
    for _ in range(2):
        assert str(await html(renderer, text)).startswith('<div class="rest"')
    await renderer.close()
    assert timeouts.remembered == [digest_of("", text)] and len(started) == 1


def hurried() -> str:
    """The program of a process that may take a twentieth of a second for a text."""
    import tempfile
    from pathlib import Path

    import web.render_worker

    source = Path(web.render_worker.__file__).read_text()
    source = source.replace(
        "TEXT_SECONDS, BLOCK_SECONDS, COLOURS_SECONDS = 6.0,", "TEXT_SECONDS, BLOCK_SECONDS, COLOURS_SECONDS = 0.2,"
    )
    source = source.replace(
        "Path(__file__).resolve().parents[1]", repr(str(Path(web.render_worker.__file__).parents[1]))
    )
    file = Path(tempfile.mkdtemp()) / "hurried.py"
    file.write_text(source)
    return str(file)


async def test_53_a_growing_text_that_takes_too_long_is_tried_twice_and_the_whole_of_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limits = program(tmp_path, GROWING_SECONDS=0.05, TEXT_SECONDS=0.05)
    monkeypatch.setattr(render_worker, "__file__", str(limits))
    timeouts, growing = Timeouts(), Growing()
    renderer = Renderer(timeouts)
    pieces = [f"{next(_numbers)} " + "![[" * 10_000 for _ in range(8)]
    grown = [await growing.take(piece, partial(renderer.grow, ANN)) for piece in pieces]
    assert [one.text for one in grown] == pieces
    assert caplog.text.count("took too long to render") == 2 and not timeouts.remembered
    for _ in range(2):
        assert "rest" in await html(renderer, "".join(pieces))
    assert caplog.text.count("took too long to render") == 3
    assert timeouts.remembered == [digest_of("", "".join(pieces))]
    await renderer.close()


async def test_a_text_that_failed_once_goes_on_as_markdown() -> None:
    growing, answers = Growing(), iter([False, True, False, True])

    async def sometimes(text: str, lines: bool, known: Known) -> Growth | None:
        return grow(text, lines=lines, known=known) if next(answers) else None

    grown = [await growing.take("*a* ", sometimes) for _ in range(4)]
    assert [one.open is None for one in grown] == [True, False, True, False]


async def test_53_one_person_holds_one_process_and_the_other_is_for_others() -> None:
    renderer = Renderer(Timeouts())
    first = asyncio.create_task(html(renderer, block("c", SLOW)))
    while not renderer.processes:
        await asyncio.sleep(0.001)
    (held,) = renderer.processes
    os.kill(held, signal.SIGSTOP)
    second = asyncio.create_task(html(renderer, block("c", GOOD)))
    await all_wait()
    assert "hl-keyword" in await html(renderer, block("c", GOOD), BEN)
    assert not first.done() and not second.done()
    os.kill(held, signal.SIGCONT)
    assert "hl-keyword" in await second
    await first
    await renderer.close()


async def test_53_of_many_texts_of_one_person_the_last_ones_are_not_waited_for() -> None:
    renderer = Renderer(Timeouts())
    first = asyncio.create_task(html(renderer, block("c", SLOW)))
    while not renderer.processes:
        await asyncio.sleep(0.001)
    os.kill(renderer.processes[0], signal.SIGSTOP)
    waiting = [asyncio.create_task(html(renderer, block("c", GOOD))) for _ in range(QUEUE_OF_ONE)]
    await all_wait()
    assert "hl-" not in await html(renderer, block("c", GOOD))
    assert "hl-keyword" in await html(renderer, block("c", GOOD), BEN)
    assert not any(task.done() for task in waiting)
    await renderer.close()
    await asyncio.gather(first, *waiting)


async def test_53_what_no_page_waits_for_any_more_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer, late = Renderer(Timeouts()), block("c", GOOD)
    first = asyncio.create_task(html(renderer, block("c", SLOW)))
    while not renderer.processes:
        await asyncio.sleep(0.001)
    (held,) = renderer.processes
    os.kill(held, signal.SIGSTOP)
    monkeypatch.setattr(rendering, "PAGE_SECONDS", 0.0)
    assert "hl-" not in await html(renderer, late)
    monkeypatch.setattr(rendering, "PAGE_SECONDS", 120.0)
    os.kill(held, signal.SIGCONT)
    await first
    assert "hl-keyword" in await html(renderer, block("c", GOOD))
    assert late not in rendering._HTML
    await renderer.close()


async def test_53_an_answer_that_would_be_too_long_leaves_the_text_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render_worker, "__file__", str(program(tmp_path, ANSWER=3_000)))
    timeouts, text = Timeouts(), f"{next(_numbers)} " + "*a* " * 500
    renderer = Renderer(timeouts)
    assert "<em>" not in await html(renderer, text)
    assert timeouts.remembered == [digest_of("", text)]
    assert "<em>" in await html(renderer, text[:LOOP_CHARACTERS])
    await renderer.close()


async def test_53_a_page_of_very_much_html_shows_its_other_texts_as_they_are_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rendering, "PAGE_CHARACTERS", 2_000)
    renderer = Renderer(Timeouts())
    texts = [f"{next(_numbers)} " + "*a* " * 300 for _ in range(3)]
    async with renderer.shown(ANN, texts):
        assert ["<em>" in html_of(text) for text in texts] == [True, False, False]
    async with renderer.shown(ANN, texts[1:]):
        assert "<em>" in html_of(texts[1]), "nothing was remembered against it"
    await renderer.close()


async def test_a_process_that_is_killed_leaves_the_page_plain_and_the_next_block_coloured() -> None:
    timeouts = Timeouts()
    renderer = Renderer(timeouts)
    page = asyncio.create_task(html(renderer, block("c", SLOW) + block("c", GOOD)))
    while not renderer.processes:
        await asyncio.sleep(0.001)
    os.kill(renderer.processes[0], signal.SIGKILL)
    shown = await page
    assert '<pre tabindex="0">' in shown and "hl-" not in shown
    assert not timeouts.remembered, "it was not the text's fault"
    assert "hl-keyword" in await html(renderer, block("c", GOOD))
    assert len(renderer.processes) <= PROCESSES
    await renderer.close()


async def test_one_that_dies_between_two_texts_is_replaced() -> None:
    renderer = Renderer(Timeouts())
    assert "hl-keyword" in await html(renderer, block("c", GOOD))
    (before,) = renderer.processes
    os.kill(before, signal.SIGKILL)
    with suppress(ProcessLookupError):
        while True:  # until it is gone
            os.kill(before, 0)
            await asyncio.sleep(0.01)
    assert "hl-keyword" in await html(renderer, block("c", GOOD))
    assert renderer.processes != [before]
    await renderer.close()


async def test_a_process_stays_however_much_memory_its_server_has() -> None:
    of_the_server = bytearray(450_000_000)
    of_the_server[::4096] = b"1" * len(of_the_server[::4096])
    renderer = Renderer(Timeouts())
    for _ in range(3):
        assert "hl-keyword" in await html(renderer, block("c", GOOD))
        await asyncio.sleep(0.05)
    (process,) = renderer.processes
    os.kill(process, 0)
    await renderer.close()


def program(folder: Path, **limits: float) -> Path:
    """The program of a process with other limits."""
    changed = folder / "changed.py"
    changed.write_text(
        f"import sys; sys.path[:0] = [{str(Path(render_worker.__file__).parents[1])!r}]\n"
        "from web import render_worker\n"
        f"vars(render_worker).update({limits!r})\n"
        "render_worker.main()\n"
    )
    return changed


async def test_one_that_has_grown_is_replaced_before_the_next_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render_worker, "__file__", str(program(tmp_path, GROWN=1)))
    renderer = Renderer(Timeouts())
    for _ in range(3):
        assert "hl-keyword" in await html(renderer, block("c", GOOD))
        assert renderer.processes == []
    await renderer.close()


async def test_nothing_is_started_for_short_texts_and_one_process_is_enough_for_one_reader() -> None:
    renderer = Renderer(Timeouts())
    await html(renderer, f"Some *words* {next(_numbers)}")
    assert await renderer.grow(ANN, "one\n\ntwo", True, ()) is not None
    assert not renderer.processes
    for _ in range(3):
        await html(renderer, block("c", GOOD))
    assert len(renderer.processes) == 1
    await renderer.close()
    assert "hl-" not in await html(renderer, block("c", GOOD)), "and none once the server ends"


async def test_a_process_knows_nothing_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNKEEPER_SECRET_KEY", "canary-in-the-environment")
    renderer = Renderer(Timeouts())
    await html(renderer, block("c", GOOD))
    (process,) = renderer.processes
    with open(f"/proc/{process}/environ", "rb") as environment:
        assert environment.read() == b""
    opened = {os.readlink(f"/proc/{process}/fd/{number}") for number in os.listdir(f"/proc/{process}/fd")}
    assert all(name.startswith(("pipe:", "socket:")) or name == "/dev/null" for name in opened), opened
    await renderer.close()


async def test_long_texts_and_streams_leave_the_loop() -> None:
    renderer = Renderer(Timeouts())
    texts = [
        f"{next(_numbers)} " + "- *a* `b` [c](d)\n" * 5_000,
        "![" * (RENDERED_CHARACTERS // 8) + str(next(_numbers)),
    ]
    with ticking() as held:
        async with renderer.shown(ANN, texts):
            assert str(html_of(texts[0])).count("<li>") > 4_900
        growing = Growing()
        grown = [await growing.take("- *a* `b`\n" * 200, partial(renderer.grow, ANN)) for _ in range(20)]
    assert sum(one.open is not None for one in grown) > 3 and not held
    await renderer.close()


@pytest.mark.long
@pytest.mark.parametrize("lexer", LEXERS)
async def test_53_every_lexer_gets_through_hostile_code_or_is_stopped(lexer: str) -> None:
    timeouts = Timeouts()
    renderer = Renderer(timeouts)
    with ticking() as held:
        for before, unit, after in NASTY + MORE:
            code = before + repeated(unit)(HIGHLIGHT_CHARACTERS - 20) + after
            shown = await html(renderer, f"{next(_numbers)}\n\n~~~~{lexer}\n{code}\n~~~~\n")
            assert shown.count('<code class="source">') == 1
            assert len(renderer.processes) <= PROCESSES
    assert not held
    assert len(timeouts.remembered) == len(timeouts.found), "nothing was tried twice"
    await renderer.close()

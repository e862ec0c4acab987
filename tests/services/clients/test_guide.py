"""The guide answers from the docs, and admits what it is."""

import asyncio
from pathlib import Path
from time import process_time

import pytest

from services.clients import Ask, Message, Text, Usage
from services.clients.docs_search import DocsSearch, Section, sections_of, terms_of
from services.clients.guide import DOCS, PACE_SECONDS, QUOTE_CHARACTERS, SUGGESTIONS, GuideClient, reply_to

pytestmark = pytest.mark.anyio

README = """# Turnkeeper
A governed chat. <!-- nobody sees this -->
<picture><source srcset="dark.png"><img alt="a picture" src="light.png"></picture>
"""
SESSIONS = """\
# Sessions

A session is a conversation with rules.

## Limits

A group may start so many [turns](configure.md#turns) a minute. See [RFC 9110](https://example.org/9110).
![a picture](x.png)

```toml
# Limits in a file: this is no heading
turns = "30/min burst 10"
```

A refused turn costs nothing.

## Empty

## Expiry

Sessions expire when they idle for thirty days. An expired session can be read.
"""
CONFIGURE = """\
# Configure

## Providers

Add a `[[providers]]` table with its key and address. Ollama is found by itself.

## Environment

`TURNKEEPER_DATABASE_URL` names the database.
"""


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (tmp_path / "README.md").write_text(README)
    (folder / "sessions.md").write_text(SESSIONS)
    (folder / "configure.md").write_text(CONFIGURE)
    return folder


async def told(docs: Path, *messages: str, max_reply_tokens: int = 0) -> str:
    """The whole reply to the last of these, where every other one is the guide's."""
    guide = GuideClient(docs, pace_seconds=0)
    transcript = tuple(Message("assistant" if n % 2 else "user", text) for n, text in enumerate(messages))
    text = ""
    async with asyncio.timeout(60):
        async for piece in guide.stream(Ask("guide", transcript, max_reply_tokens)):
            text += piece.text if isinstance(piece, Text) else ""
    return text


async def test_a_question_gets_the_section_that_answers_it_and_its_source(docs: Path) -> None:
    reply = await told(docs, "When do my sessions expire?")
    assert "expire when they idle for thirty days" in reply
    assert "`docs/sessions.md § Expiry`" in reply
    assert "not a language model" in reply


async def test_it_says_what_it_is_once(docs: Path) -> None:
    assert "not a language model" not in await told(docs, "hi", "Hello.", "When do sessions expire?")


@pytest.mark.parametrize(
    "greeting", ["Hi!", "hello there", "What can you do?", "Who are you?", "help", "", "???", "Thanks"]
)
async def test_a_greeting_gets_an_introduction_and_three_suggestions(docs: Path, greeting: str) -> None:
    reply = await told(docs, greeting)
    assert "not a language model" in reply
    assert all(suggestion in reply for suggestion in SUGGESTIONS)
    assert len(SUGGESTIONS) == 3
    assert "Turnkeeper, Configure and Sessions" in reply


@pytest.mark.parametrize(
    "question", ["What is the capital of France?", "Write a poem about the sea", "鴨はどこ", "zzz qqq"]
)
async def test_what_the_docs_do_not_know_is_admitted(docs: Path, question: str) -> None:
    reply = await told(docs, question)
    assert "found nothing" in reply
    assert "Configure and Sessions" in reply


async def test_other_sections_are_named(docs: Path) -> None:
    reply = await told(docs, "limits of sessions?")
    assert reply.count("`docs/") >= 2
    assert "See also" in reply


async def test_a_question_that_says_too_little_is_read_with_the_one_before(docs: Path) -> None:
    reply = await told(docs, "How do I add providers?", "…", "and for squirrels?")
    assert "docs/configure.md § Providers" in reply
    assert "found nothing" in await told(docs, "How do I add providers?", "…", "What is the capital of France?")


async def test_a_name_with_underscores_is_found(docs: Path) -> None:
    assert "Environment" in await told(docs, "What is TURNKEEPER_DATABASE_URL?")


async def test_word_forms_do_not_matter(docs: Path) -> None:
    assert "§ Expiry" in await told(docs, "session expiring")


@pytest.mark.parametrize(
    "question",
    [
        'limit" OR body:"x',
        "limit* NEAR(turn, 2) AND NOT ^heading",
        "'; DROP TABLE section; --",
        "limit \0 { } ( ) + - : \\",
        "heading : limit",
        "_ __ limit",
        '"' * 5000 + "limit",
        "limit " * 100_000,
        " ".join(f"w{n}" for n in range(5000)),
    ],
)
async def test_a_hostile_question_is_only_words(docs: Path, question: str) -> None:
    began = process_time()
    assert await told(docs, question)
    assert await told(docs, "limits") != ""
    assert process_time() - began < 2


async def test_headings_in_code_links_pictures_and_comments_are_read_as_people_read_them() -> None:
    sections = {section.heading: section for section in sections_of(SESSIONS, "docs/sessions.md")}
    assert list(sections) == ["Sessions", "Limits", "Expiry"]
    limits = sections["Limits"].body
    assert "many turns a minute" in limits
    assert "[RFC 9110](https://example.org/9110)" in limits
    assert "picture" not in limits
    assert "# Limits in a file" in limits
    assert next(sections_of(README, "README.md")).body == "A governed chat."


@pytest.mark.parametrize(
    "text", ["", "\n", "no heading", "```\n# open for ever", "# only\n## headings", "#nothing", "# a\r\nb\r\n"]
)
async def test_any_file_can_be_read(text: str) -> None:
    sections = list(sections_of(text, "x.md"))
    assert all(section.body for section in sections)
    DocsSearch(sections).find("heading")


async def test_a_long_section_is_quoted_in_whole_paragraphs() -> None:
    paragraph = "Limits are limits. " * 20
    code = "```\nlimit\n\nlimit\n```"
    body = "\n\n".join(["All limits:", code, *[paragraph] * 10])
    reply = reply_to(["limits"], DocsSearch([Section("docs/x.md", "X", "Limits", body)]))
    assert code in reply
    assert reply.endswith("…")
    assert len(reply) < QUOTE_CHARACTERS + 400


async def test_docs_that_are_not_there_are_not_made_up(tmp_path: Path) -> None:
    assert "not installed" in await told(tmp_path / "docs", "limits?")


async def test_the_cap_on_the_reply_holds_and_words_are_counted(docs: Path) -> None:
    guide = GuideClient(docs, pace_seconds=0)
    pieces = [piece async for piece in guide.stream(Ask("guide", (Message("user", "session limits"),), 7))]
    assert pieces[-1] == Usage(2, 7)
    assert len("".join(piece.text for piece in pieces if isinstance(piece, Text)).split()) == 7


async def test_a_reply_comes_in_pieces_and_is_soon_there(docs: Path) -> None:
    pieces = [piece async for piece in GuideClient(docs).stream(Ask("guide", (Message("user", "limits"),), 0))]
    assert len(pieces) > 5
    assert len(pieces) * PACE_SECONDS < 2


async def test_it_is_always_there() -> None:
    guide = GuideClient()
    assert await guide.is_up()
    assert await guide.models() == ("guide",)
    await guide.aclose()


async def test_questions_lose_what_tells_nothing() -> None:
    assert terms_of("How do I add a model? And a MODEL of Ollama's?") == ["add", "model", "ollama"]


@pytest.mark.skipif(not any(DOCS.glob("*.md")), reason="there are no docs yet")
@pytest.mark.parametrize("suggestion", SUGGESTIONS)
async def test_the_suggested_questions_have_answers_in_the_real_docs(suggestion: str) -> None:
    search = DocsSearch.of(DOCS)
    assert search.find(suggestion), search.titles


async def test_a_paragraph_is_quoted_as_one_line_and_a_list_as_it_stands(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "limits.md").write_text(
        "# Limits\n\n## What a quota is\n\nA quota counts\nwhat is open.\n\n- one\n  more\n- two\n\n```\na\nb\n```\n"
    )
    client = GuideClient(docs, pace_seconds=0)
    ask = Ask(model="guide", messages=(Message(role="user", text="What is a quota?"),), max_reply_tokens=0)
    reply = "".join([event.text async for event in client.stream(ask) if isinstance(event, Text)])
    assert "A quota counts what is open.\n\n- one more\n- two\n\n```\na\nb\n```" in reply

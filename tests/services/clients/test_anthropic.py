"""Anthropic's wire form: what is asked, and what its events say."""

import json

import pytest

from services.clients import Ask, Message, Usage, Wishes
from services.clients.anthropic import MAX_REPLY_TOKENS, AnthropicClient, Thinking, request_of
from tests.services.clients.forms import ANTHROPIC, CALM, KEY, answering, ask, delta, listen, named, refused
from tests.services.clients.provider import STREAM_HEAD, Asked, Wire, provider, whole

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("in_time", "patient")]

START = named(
    "message_start",
    message={
        "type": "message",
        "role": "assistant",
        "content": [],
        "stop_reason": None,
        "usage": {
            "input_tokens": 5,
            "cache_creation_input_tokens": 30,
            "cache_read_input_tokens": 200,
            "output_tokens": 1,
        },
    },
)
PING = named("ping")
STOP = named("content_block_stop", index=0)
END = ANTHROPIC.FINISH + ANTHROPIC.DONE


def started(kind: str, **fields: object) -> bytes:
    """The beginning of a block."""
    return named("content_block_start", index=0, content_block={"type": kind, **fields})


def ended(stop_reason: str, **usage: object) -> bytes:
    """The end of a message, with what was counted in all."""
    return named("message_delta", delta={"stop_reason": stop_reason}, usage=usage) + ANTHROPIC.DONE


HELLO = started("text", text="") + PING + delta("text_delta", text="Hel") + delta("text_delta", text="lo") + STOP


def asking(*messages: tuple[str, str], cap: int = 0, **wishes: object) -> Ask:
    return Ask("m1", tuple(Message(role, text) for role, text in messages), cap, Wishes(**wishes))


async def test_a_reply_is_streamed_and_what_the_cache_held_is_counted() -> None:
    async with provider(answering(STREAM_HEAD, START, HELLO, ended("end_turn", output_tokens=12))) as served:
        assert await ask(ANTHROPIC, served.url) == ("Hello", Usage(235, 12))
    (asked,) = served.asked
    assert (asked.method, asked.path) == ("POST", "/v1/messages")
    assert asked.headers["x-api-key"] == KEY
    assert "authorization" not in asked.headers
    assert asked.headers["anthropic-version"] == "2023-06-01"
    assert asked.headers["content-type"] == "application/json"
    assert asked.headers["accept-encoding"] == "identity"
    assert asked.json == {
        "model": "m1",
        "max_tokens": MAX_REPLY_TOKENS,
        "system": "Be brief.",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
    }


async def test_a_provider_without_a_key_is_sent_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    async with provider(answering(STREAM_HEAD, HELLO, END)) as served:
        client = AnthropicClient(served.url, bounds=CALM)
        await listen(client)
        await client.aclose()
    assert "x-api-key" not in served.asked[0].headers
    assert KEY not in str(served.asked)


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
async def test_an_address_may_be_written_with_its_version_or_without(ending: str) -> None:
    async def script(asked: Asked, wire: Wire) -> None:
        await wire.send(whole(b'{"data": [{"id": "a"}]}'))

    async with provider(script) as served:
        client = AnthropicClient(served.url.removesuffix("/v1") + "/inner" + ending, KEY, bounds=CALM)
        assert await client.models() == ("a",)
        await client.aclose()
    assert served.asked[0].path == "/inner/v1/models"
    assert served.asked[0].headers["anthropic-version"] == "2023-06-01"


# What is asked


async def test_instructions_stand_apart_and_roles_take_turns() -> None:
    body = request_of(
        asking(
            ("system", "Be brief."),
            ("user", "one"),
            ("assistant", "  "),
            ("user", "two"),
            ("system", "Be kind."),
            ("assistant", "three"),
            ("user", ""),
            ("user", "four"),
        )
    )
    assert body["system"] == "Be brief.\n\nBe kind."
    assert body["messages"] == [
        {"role": "user", "content": "one\n\ntwo"},
        {"role": "assistant", "content": "three"},
        {"role": "user", "content": "four"},
    ]
    assert "system" not in request_of(asking(("user", "Hi")))


@pytest.mark.parametrize(
    ("wishes", "sent"),
    [
        ({}, {}),
        ({"temperature": 0.0}, {"temperature": 0.0}),
        ({"temperature": 1.7}, {"temperature": 1.0}),
        ({"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5}),
        ({"top_p": 0.9}, {"top_p": 0.9}),
        ({"stop": ("END", "\n")}, {"stop_sequences": ["END"]}),
        ({"stop": (" ",)}, {}),
        ({"seed": 1, "presence_penalty": 1.0, "frequency_penalty": 1.0, "verbosity": "low"}, {}),
        ({"reasoning_effort": "high"}, {}),
    ],
)
async def test_wishes_are_passed_on_as_far_as_the_form_knows_them(
    wishes: dict[str, object], sent: dict[str, object]
) -> None:
    body, plain = request_of(asking(("user", "Hi"), **wishes)), request_of(asking(("user", "Hi")))
    assert {name: value for name, value in body.items() if name not in plain} == sent


@pytest.mark.parametrize(
    ("thinking", "cap", "asked"),
    [
        (0, 0, None),
        ("adaptive", 100, {"type": "adaptive", "display": "summarized"}),
        (2048, 0, {"type": "enabled", "budget_tokens": 2048}),
        (99_999, 0, {"type": "enabled", "budget_tokens": MAX_REPLY_TOKENS - 1024}),
        (4096, 4096, {"type": "enabled", "budget_tokens": 3072}),
        (4096, 2048, {"type": "enabled", "budget_tokens": 1024}),
        (4096, 2047, None),
    ],
)
async def test_thinking_is_asked_for_where_there_is_room_for_it(thinking: Thinking, cap: int, asked: object) -> None:
    body = request_of(asking(("user", "Hi"), cap=cap, temperature=0.5), thinking)
    assert body["max_tokens"] == (cap or MAX_REPLY_TOKENS)
    assert body.get("thinking") == asked
    assert ("temperature" in body) is (asked is None)


# What is said


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(START + PING + HELLO + END, id="as documented"),
        pytest.param(HELLO + ANTHROPIC.FINISH, id="no message_stop"),
        pytest.param(HELLO + ANTHROPIC.DONE, id="no stop_reason"),
        pytest.param(HELLO + ended("max_tokens") + b"data: {junk\n\n", id="junk after the end"),
        pytest.param(HELLO + ended("model_context_window_exceeded"), id="another reason"),
        pytest.param(started("text", text="Hello") + END, id="text in the beginning of its block"),
        pytest.param(started("text") + delta("text_delta", text=None) + HELLO + END, id="no text, null text"),
        pytest.param((START + HELLO + END).replace(b"\n", b"\r\n"), id="CRLF"),
        pytest.param((START + HELLO + END).replace(b"event: ", b": "), id="no names of events"),
        pytest.param(
            named("news", delta="odd", message=7, content_block=[], usage="x", content={}) + HELLO + END,
            id="an unknown event, with every field in another form",
        ),
        pytest.param(
            started("tool_use", id="t", name="n", input={}, text=7)
            + delta("input_json_delta", partial_json='{"text": "no"}')
            + delta("citations_delta", citation={"cited_text": "no"})
            + delta("comment_delta", text="no")
            + STOP
            + HELLO
            + END,
            id="blocks and pieces that are not text",
        ),
    ],
)
async def test_events_may_differ(stream: bytes) -> None:
    async with provider(answering(STREAM_HEAD, stream)) as served:
        text, _ = await ask(ANTHROPIC, served.url)
    assert text == "Hello"


@pytest.mark.parametrize(
    "blocks",
    [
        started("thinking", thinking="", signature="")
        + delta("thinking_delta", thinking="Let ")
        + delta("thinking_delta", thinking="me see")
        + delta("signature_delta", signature="c2VjcmV0"),
        started("thinking", thinking="Let me")
        + STOP
        + started("redacted_thinking", data="c2VjcmV0")
        + STOP
        + started("thinking", thinking=" see"),
        delta("thinking_delta", thinking="Let me see") + delta("thinking_delta", thinking={"odd": 7}),
        # a server of open models behind this form
        started("text", text="<think>Let me") + delta("text_delta", text=" see</think>"),
    ],
)
async def test_thinking_is_told_apart_and_what_is_encrypted_is_passed_over(blocks: bytes) -> None:
    thoughts: list[str] = []
    async with provider(answering(STREAM_HEAD, START, blocks, STOP, HELLO, END)) as served:
        text, _ = await ask(ANTHROPIC, served.url, thoughts=thoughts)
    assert text == "Hello"
    assert "".join(thoughts) == "Let me see"


async def test_a_whole_message_instead_of_a_stream_is_a_reply() -> None:
    message = {
        "type": "message",
        "content": [
            {"type": "thinking", "thinking": "Let me\0 see", "signature": "c2VjcmV0"},
            {"type": "redacted_thinking", "data": "c2VjcmV0"},
            {"type": "text", "text": "Hel"},
            {"type": "tool_use", "input": {}},
            {"type": "text", "text": "lo"},
        ],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 3, "cache_read_input_tokens": None, "output_tokens": 1},
    }
    thoughts: list[str] = []
    async with provider(answering(whole(json.dumps(message).encode()))) as served:
        assert await ask(ANTHROPIC, served.url, thoughts=thoughts) == ("Hello", Usage(3, 1))
    assert thoughts == ["Let me\ufffd see"]


@pytest.mark.parametrize("body", [HELLO, b""])
async def test_a_model_that_declines_is_a_refusal_that_keeps_what_it_said(body: bytes) -> None:
    script = answering(STREAM_HEAD, START, body, ended("refusal", output_tokens=4))
    error = await refused(ANTHROPIC, script)
    assert (error.code, error.detail) == ("provider_refused", "The model declined to answer.")
    message = {"type": "message", "content": [], "stop_reason": "refusal"}
    assert (await refused(ANTHROPIC, answering(whole(json.dumps(message).encode())))).code == "provider_refused"


@pytest.mark.parametrize(
    ("start", "end", "counted"),
    [
        ({"input_tokens": 5, "output_tokens": 1}, {"output_tokens": 9}, Usage(5, 9)),
        ({"input_tokens": 5, "cache_read_input_tokens": None}, {"output_tokens": 9}, Usage(5, 9)),
        # The last event tells it again.
        ({"input_tokens": 5, "cache_read_input_tokens": 7}, {"input_tokens": 6, "output_tokens": 9}, Usage(13, 9)),
        ({"input_tokens": 5, "output_tokens": 1}, None, None),
        ({"input_tokens": 5, "output_tokens": 1}, {"output_tokens": -9}, None),
        ({"input_tokens": -5}, {"output_tokens": 9}, None),
        ({"input_tokens": 5, "cache_creation_input_tokens": "many"}, {"output_tokens": 9}, None),
        ({"input_tokens": 2**31 - 1, "cache_read_input_tokens": 1}, {"output_tokens": 9}, None),
        ("odd", {"output_tokens": 9}, None),
        (None, {"input_tokens": 5, "output_tokens": 9}, Usage(5, 9)),
    ],
)
async def test_tokens_are_counted_from_both_ends(start: object, end: object, counted: Usage | None) -> None:
    stream = named("message_start", message={"usage": start}) + HELLO
    stream += named("message_delta", delta={"stop_reason": "end_turn"}, usage=end) + ANTHROPIC.DONE
    async with provider(answering(STREAM_HEAD, stream)) as served:
        assert await ask(ANTHROPIC, served.url) == ("Hello", counted)


@pytest.mark.parametrize(
    ("status", "kind", "message", "code"),
    [
        (400, "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum", "context_overflow"),
        (400, "invalid_request_error", "input length and `max_tokens` exceed context limit: 1 + 2", "context_overflow"),
        (400, "invalid_request_error", "Your credit balance is too low", "provider_refused"),
        (401, "authentication_error", "invalid x-api-key", "provider_refused"),
        (403, "permission_error", "not for you", "provider_refused"),
        (404, "not_found_error", "model: claude-none", "model_missing"),
        (413, "request_too_large", "Request exceeds the maximum size", "context_overflow"),
        (429, "rate_limit_error", "Number of requests has exceeded", "provider_rate_limited"),
        (500, "api_error", "Internal server error", "provider_failed"),
        (529, "overloaded_error", "Overloaded", "provider_failed"),
    ],
)
async def test_an_error_means_the_same_before_a_stream(status: int, kind: str, message: str, code: str) -> None:
    body = json.dumps({"type": "error", "error": {"type": kind, "message": f"{message} {KEY}"}}).encode()
    assert (await refused(ANTHROPIC, answering(whole(body, status=status)))).code == code


@pytest.mark.parametrize(
    "line",
    [
        b"data: {",
        b"data: null",
        b"data: 7",
        b'data: {"type": 7}',
        b'data: {"type": "content_block_delta"}',
        b'data: {"type": "content_block_delta", "delta": []}',
        b'data: {"type": "content_block_delta", "delta": {"type": "text_delta", "text": 7}}',
        b'data: {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "\xff"}}',
        b'data: {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "\\ud800"}}',
        b'data: {"type": "content_block_start", "content_block": {"type": "text", "text": ["a"]}}',
        b'data: {"type": "message_delta", "delta": {"stop_reason": 1}}',
        b'data: {"type": "message"}',
        b'data: {"unknown": ' + b"[" * 30_000,
    ],
)
async def test_what_cannot_be_read_is_broken(line: bytes) -> None:
    error = await refused(ANTHROPIC, answering(STREAM_HEAD, HELLO, line + b"\n\n", END))
    assert error.code == "provider_broken"

"""OpenAI's wire form: what is asked, and what servers say differently and may."""

import json

import openai.resources.chat  # noqa: F401  so that no test's clock counts a second of imports
import pytest

from services.clients import Ask, Usage
from services.clients.openai import OpenAIClient
from tests.services.clients.forms import ASK, CALM, KEY, OPENAI, answering, ask, listen, refused
from tests.services.clients.provider import DONE, STREAM_HEAD, data, event, provider, usage, whole

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("in_time", "patient")]
FINISH = OPENAI.FINISH


async def test_a_reply_is_streamed_and_its_usage_comes_last() -> None:
    async with provider(answering(STREAM_HEAD, event("Hel"), event("lo"), FINISH, usage(9, 2), DONE)) as served:
        assert await ask(OPENAI, served.url) == ("Hello", Usage(9, 2))
    (asked,) = served.asked
    assert (asked.method, asked.path) == ("POST", "/v1/chat/completions")
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.headers["accept-encoding"] == "identity"
    assert asked.json == {
        "model": "m1",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_the_reply_cap_is_passed_on_under_the_name_the_provider_knows() -> None:
    async with provider(answering(STREAM_HEAD, event("x"), DONE)) as served:
        await ask(OPENAI, served.url, Ask("m1", ASK.messages, 5))
    assert served.asked[0].json["max_tokens"] == 5
    assert OpenAIClient("https://api.openai.com/v1")._limit_name == "max_completion_tokens"


async def test_no_key_from_the_environment_reaches_a_provider_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, KEY)
    async with provider(answering(STREAM_HEAD, event("x"), DONE)) as served:
        client = OpenAIClient(served.url, bounds=CALM)
        await listen(client)
        await client.aclose()
    assert KEY not in str(served.asked)


# What servers do differently, and may


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(event("Hello") + FINISH, id="no [DONE]"),
        pytest.param(event("Hello") + DONE, id="no finish_reason"),
        pytest.param(event("Hello") + b"data: [DONE]", id="no line end at the end"),
        pytest.param(event(None) + event("") + event("Hello") + DONE, id="null and empty content"),
        pytest.param((event("Hello") + DONE).replace(b"\n", b"\r\n"), id="CRLF"),
        pytest.param(b"\xef\xbb\xbf\n: hi\n\n" + event("Hello") + b": ping\n\n" + DONE, id="BOM and comments"),
        pytest.param((event("Hello") + DONE).replace(b"data: ", b"data:"), id="no blank after the colon"),
        pytest.param(event("Hello").replace(b", ", b",\ndata: ") + DONE, id="one event over several lines"),
        pytest.param(b"event: message\nid: 7\nretry: 10\n" + event("Hello") + DONE, id="other fields"),
        pytest.param(data({"type": "ping"}) + event("Hello") + DONE, id="unknown events"),
        pytest.param(
            data({"choices": [{"delta": {"content": "Hello", "new": {"a": [1]}}, "x": 1}], "y": None}) + DONE,
            id="unknown fields",
        ),
        pytest.param(data({"choices": None}) + data({"choices": []}) + event("Hello") + DONE, id="no choices"),
        pytest.param(data({"choices": [{"delta": {"refusal": "Hello"}}]}) + DONE, id="a refusal is text"),
        pytest.param(event("Hello") + DONE + event("!") + b"data: junk\n\n", id="anything after [DONE]"),
        pytest.param(event("Hello") + FINISH + b"data: {junk\n\n", id="junk after the finish"),
    ],
)
async def test_servers_may_differ(stream: bytes) -> None:
    async with provider(answering(STREAM_HEAD, stream)) as served:
        assert await ask(OPENAI, served.url) == ("Hello", None)


async def test_a_whole_document_instead_of_a_stream_is_a_reply() -> None:
    completion = {
        "object": "chat.completion",
        "choices": [{"message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1},
    }
    async with provider(answering(whole(json.dumps(completion).encode()))) as served:
        assert await ask(OPENAI, served.url) == ("Hello", Usage(3, 1))


# Reasoning, as servers send it beside the reply or inside it


@pytest.mark.parametrize(
    "stream",
    [
        event(None, reasoning_content="Let ") + event(None, reasoning_content="me see") + event("Forty-two"),
        event("", reasoning="Let me see") + event("Forty-", reasoning=None) + event("two"),
        # vLLM tells both for a while, and the same in both
        event(None, reasoning="Let me see", reasoning_content="Let me see") + event("Forty-two"),
        # Mistral
        event([{"type": "thinking", "thinking": [{"type": "text", "text": "Let me"}]}])
        + event([{"type": "thinking", "thinking": " see"}, {"type": "text", "text": "Forty-"}, {"type": "image"}])
        + event("two"),
        # after its first words, in the same chunk, and beside forms that nobody knows
        event("Forty", reasoning_content="Let ") + event("-two", reasoning_content="me see", reasoning_details=[{}]),
        event("<thi") + event("nk>\nLet me") + event(" see</") + event("think>\n\nForty-two"),
        event("<think> see</think>Forty-two", reasoning_content="Let me ").replace(b"> see", b">see"),
    ],
)
async def test_reasoning_is_told_apart_however_it_is_sent(stream: bytes) -> None:
    thoughts: list[str] = []
    async with provider(answering(STREAM_HEAD, stream, FINISH, usage(3, 9), DONE)) as served:
        client = OpenAIClient(served.url, KEY, bounds=CALM)
        assert await listen(client, thoughts=thoughts) == ("Forty-two", Usage(3, 9))
        assert "".join(thoughts) == "Let me see"
        await client.aclose()


async def test_reasoning_of_a_whole_document_is_told_apart() -> None:
    message = {"content": "Forty-two", "reasoning_content": "Let me\0 see"}
    thoughts: list[str] = []
    async with provider(answering(whole(json.dumps({"choices": [{"message": message}]}).encode()))) as served:
        client = OpenAIClient(served.url, KEY, bounds=CALM)
        assert await listen(client, thoughts=thoughts) == ("Forty-two", None)
        assert thoughts == ["Let me\ufffd see"]
        await client.aclose()


@pytest.mark.parametrize("odd", [None, "", 7, {"text": "a"}, ["a"], True])
async def test_reasoning_in_a_form_nobody_knows_costs_nothing_but_itself(odd: object) -> None:
    stream = event("Forty-", reasoning=odd) + event("two", reasoning_content=odd)
    async with provider(answering(STREAM_HEAD, stream, FINISH, DONE)) as served:
        assert await ask(OPENAI, served.url) == ("Forty-two", None)


# E35


@pytest.mark.parametrize(
    "line",
    [
        b"data: {",
        b"data: null",
        b"data: []",
        b"data: 7",
        b"data: {}{}",
        b'data: {"choices": {}}',
        b'data: {"choices": [null]}',
        b'data: {"choices": [{"delta": {"content": 7}}]}',
        b'data: {"choices": [{"delta": {"content": ["a"]}}]}',
        b'data: {"choices": [{"delta": {"content": "\xff"}}]}',
        b'data: {"choices": [{"delta": {"content": "\\ud800"}}]}',
        b'data: {"choices": [{"finish_reason": 1}]}',
        b"data: " + b"[" * 30_000,
        b'data: {"choices": ' + b"[" * 30_000,
        b'data: {"unknown": ' + b"[" * 30_000,
    ],
)
async def test_what_cannot_be_read_is_broken(line: bytes) -> None:
    error = await refused(OPENAI, answering(STREAM_HEAD, event("Hello"), line + b"\n\n", DONE))
    assert error.code == "provider_broken"

"""Both wire forms against a real llama.cpp, which speaks both."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from time import monotonic

import httpx
import pytest

from services.client_pool import discover
from services.clients import Ask, ClientError, Message, Reasoning, Said, Text, Usage
from services.clients.anthropic import AnthropicClient
from services.clients.openai import OpenAIClient
from services.clients.remote import RemoteClient
from tests.conftest import limit
from tests.peers.llama_cpp import CONTEXT_TOKENS, ENDLESS, MODEL, REPLY, SLOTS, SO, THINKING, THOUGHT, WORDS
from tests.web.wire import SOON

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def in_time(request: pytest.FixtureRequest) -> None:
    limit(request.node, 120)


@pytest.fixture(params=[OpenAIClient, AnthropicClient])
async def client(llama_cpp_url: str, request: pytest.FixtureRequest) -> AsyncIterator[RemoteClient]:
    client: RemoteClient = request.param(llama_cpp_url)
    yield client
    await client.aclose()


def asking(prompt: str, max_reply_tokens: int = 0, model: str = MODEL) -> Ask:
    return Ask(model, (Message("system", "Be brief."), Message("user", prompt)), max_reply_tokens)


async def told(client: RemoteClient, ask: Ask) -> tuple[list[str], Usage | None]:
    pieces: list[str] = []
    async with aclosing(client.stream(ask)) as stream:
        async for piece in stream:
            if isinstance(piece, Usage):
                return pieces, piece
            pieces.append(piece.text)
    return pieces, None


async def busy_slots(url: str) -> int:
    async with httpx.AsyncClient() as http:
        slots = (await http.get(url.removesuffix("/v1") + "/slots")).json()
    assert len(slots) == SLOTS
    return sum(slot["is_processing"] for slot in slots)


async def test_a_reply_is_streamed_with_its_usage(client: RemoteClient) -> None:
    pieces, usage = await told(client, asking("Hi."))
    assert "".join(pieces) == REPLY
    assert usage is not None
    assert usage.reply_tokens == len(WORDS) + 1  # and the token that ends it
    assert usage.prompt_tokens >= len("Be brief.\nHi.")


async def test_what_it_reasons_is_told_apart(client: RemoteClient) -> None:
    said: dict[type[Said], str] = {Reasoning: "", Text: ""}
    async with aclosing(client.stream(asking(f"Hi.{THINKING}"))) as stream:
        async for piece in stream:
            if not isinstance(piece, Usage):
                said[type(piece)] += piece.text
    assert {kind: text.strip() for kind, text in said.items()} == {Reasoning: THOUGHT.strip(), Text: SO.strip()}


async def test_the_cap_on_the_reply_holds(client: RemoteClient) -> None:
    pieces, usage = await told(client, asking("Hi.", 5))
    assert "".join(pieces) == "".join(WORDS[:5])
    assert usage is not None
    assert usage.reply_tokens == 5


async def test_it_is_up_and_lists_its_model(client: RemoteClient) -> None:
    assert await client.is_up()
    assert await client.models() == (MODEL,)


async def test_it_is_found_on_its_port(llama_cpp_url: str) -> None:
    (found,) = await discover(ports={"llamacpp": int(llama_cpp_url.split(":")[2].removesuffix("/v1"))})
    assert found.provider.base_url == llama_cpp_url
    assert found.models == (MODEL,)


async def test_a_server_with_one_model_answers_under_any_name(client: RemoteClient) -> None:
    pieces, _ = await told(client, asking("Hi.", model="no-such-model"))
    assert "".join(pieces) == REPLY


async def test_a_conversation_that_does_not_fit_is_an_overflow(client: RemoteClient) -> None:
    with pytest.raises(ClientError) as caught:
        await told(client, asking("long " * (CONTEXT_TOKENS // 4)))
    assert caught.value.code == "context_overflow"


async def test_replies_run_side_by_side(client: RemoteClient) -> None:
    replies = await asyncio.gather(*(told(client, asking(f"{n}")) for n in range(6)))
    assert {"".join(pieces) for pieces, _ in replies} == {REPLY}


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_stopping_in_the_middle_frees_the_server_within_a_second(
    client: RemoteClient, llama_cpp_url: str, how: str
) -> None:
    begun = asyncio.Event()

    async def listen() -> None:
        async with aclosing(client.stream(asking(f"Go on{ENDLESS}"))) as stream:
            async for piece in stream:
                assert isinstance(piece, Text)
                if "round9" in piece.text:
                    begun.set()
                    if how == "close":
                        return

    task = asyncio.create_task(listen())
    await begun.wait()
    if how == "cancel":
        assert await busy_slots(llama_cpp_url) == 1
        task.cancel()
    stopped = monotonic()
    await asyncio.wait({task})
    while await busy_slots(llama_cpp_url):
        assert monotonic() - stopped < SOON
        await asyncio.sleep(0.02)

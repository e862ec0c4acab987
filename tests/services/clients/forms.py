"""The two wire forms of a provider: each as a client, and as the events that a script sends it.

Each word is one event, whichever form it is in; what a form alone knows stands in the tests of that form.
"""

from contextlib import aclosing
from typing import Any, Protocol

import msgspec
import pytest

from services.clients import PLAIN, Ask, ClientError, Message, Text, Usage, Wishes
from services.clients.anthropic import AnthropicClient
from services.clients.openai import OpenAIClient
from services.clients.remote import Bounds, RemoteClient
from services.clients.wire import Reply
from tests.services.clients.provider import DONE, Asked, Script, Wire, data, event, provider, usage

KEY = "sk-canary-5f0c9e"
ASK = Ask("m1", (Message("system", "Be brief."), Message("user", "Hi")), 0)
#: longer than any test may take: no wait ends by itself, except the one that a test cuts short
CALM = Bounds(
    connect_seconds=120,
    first_text_seconds=120,
    idle_seconds=120,
    closing_seconds=120,
    drain_seconds=120,
    reply_seconds=120,
    reply_characters=20_000,
    reply_bytes=2 << 20,
    event_bytes=64 << 10,
    document_bytes=128 << 10,
    error_seconds=120,
    probe_seconds=120,
)


def only(**bounds: float) -> Bounds:
    """CALM, except for these."""
    return msgspec.structs.replace(CALM, **bounds)


class Form(Protocol):
    """How one kind of provider is spoken to, and how it speaks."""

    #: where it is asked for a reply
    path: str
    #: the model has said all, and the last event of its reply
    FINISH: bytes
    DONE: bytes

    def client(self, base_url: str, api_key: str = "", *, bounds: Bounds | None = None) -> RemoteClient: ...

    def event(self, text: str | None) -> bytes: ...

    def thought(self, text: str) -> bytes: ...

    def usage(self, prompt_tokens: Any, reply_tokens: Any) -> bytes: ...

    def error(self, error: object) -> bytes: ...

    def whole(self, text: str) -> object: ...


class OpenAIForm:
    path = "/v1/chat/completions"
    FINISH = event(finish="stop")
    DONE = DONE
    client = OpenAIClient

    def event(self, text: str | None) -> bytes:
        return event(text)

    def thought(self, text: str) -> bytes:
        return event(None, reasoning_content=text)

    def usage(self, prompt_tokens: Any, reply_tokens: Any) -> bytes:
        return usage(prompt_tokens, reply_tokens)

    def error(self, error: object) -> bytes:
        return data({"error": error})

    def whole(self, text: str) -> object:
        return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}


def named(kind: str, **fields: object) -> bytes:
    """One event of Anthropic's form, which names its type twice."""
    return f"event: {kind}\n".encode() + data({"type": kind, **fields})


def delta(kind: str, **fields: object) -> bytes:
    """The next piece of a block."""
    return named("content_block_delta", index=0, delta={"type": kind, **fields})


class AnthropicForm:
    path = "/v1/messages"
    FINISH = named("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None})
    DONE = named("message_stop")
    client = AnthropicClient

    def event(self, text: str | None) -> bytes:
        return delta("text_delta", text=text)

    def thought(self, text: str) -> bytes:
        return delta("thinking_delta", thinking=text)

    def usage(self, prompt_tokens: Any, reply_tokens: Any) -> bytes:
        return named("message_delta", delta={}, usage={"input_tokens": prompt_tokens, "output_tokens": reply_tokens})

    def error(self, error: object) -> bytes:
        return named("error", error=error)

    def whole(self, text: str) -> object:
        return {"type": "message", "content": [{"type": "text", "text": text}], "stop_reason": "end_turn"}


FORMS: tuple[Form, ...] = (OpenAIForm(), AnthropicForm())
OPENAI, ANTHROPIC = FORMS


def answering(*pieces: bytes) -> Script:
    """A provider that sends these and closes."""

    async def script(asked: Asked, wire: Wire) -> None:
        await wire.send(*pieces)
        raise ConnectionError

    return script


def reading(form: Form) -> Reply:
    """What reads the bytes of one answer."""
    return form.client("http://127.0.0.1:1").wire_form(max_event_bytes=1000, max_document_bytes=1000)


async def ask(
    form: Form, url: str, ask: Ask = ASK, bounds: Bounds = CALM, thoughts: list[str] | None = None
) -> tuple[str, Usage | None]:
    """The whole reply."""
    client = form.client(url, KEY, bounds=bounds)
    try:
        return await listen(client, ask, thoughts)
    finally:
        await client.aclose()


async def listen(client: RemoteClient, ask: Ask = ASK, thoughts: list[str] | None = None) -> tuple[str, Usage | None]:
    """Text and usage; what is reasoned goes into `thoughts`."""
    text, counted = "", None
    async with aclosing(client.stream(ask)) as pieces:
        async for piece in pieces:
            assert counted is None, "usage comes last"
            if isinstance(piece, Usage):
                counted = piece
                continue
            assert piece.text
            if isinstance(piece, Text):
                text += piece.text
            else:
                assert thoughts is not None, "nothing was to be reasoned"
                thoughts.append(piece.text)
    return text, counted


async def refused(form: Form, script: Script, bounds: Bounds = CALM, wishes: Wishes = PLAIN) -> ClientError:
    """The error a provider's answer becomes; it tells nobody a key or an address."""
    async with provider(script) as served:
        with pytest.raises(ClientError) as caught:
            await ask(form, served.url, msgspec.structs.replace(ASK, wishes=wishes), bounds)
    said = f"{caught.value!r} {caught.value}"
    assert KEY not in said
    assert "127.0.0.1" not in said
    assert caught.value.detail.endswith(".")
    return caught.value

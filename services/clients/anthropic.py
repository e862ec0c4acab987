"""Anthropic, and every server that speaks its wire form: requests of messages, without an SDK."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Literal

import msgspec

from services.clients import Ask, Wishes
from services.clients.anthropic_wire import AnthropicReply
from services.clients.remote import Bounds, RemoteClient

if TYPE_CHECKING:
    import httpx2

#: where an ask leaves it open, which this form does not; every model it serves writes that much
MAX_REPLY_TOKENS = 16_384
#: the least that a model may be given to think, and what it then has left to answer
MIN_REASONING_TOKENS = 1024

#: `adaptive` leaves to the model how much it thinks, a number is the most tokens of it, 0 asks for nothing
Thinking = Literal["adaptive"] | int


class AnthropicClient(RemoteClient):
    """A provider that speaks messages at `base_url`, with `/v1` at its end or without."""

    wire_form = AnthropicReply

    def __init__(
        self, base_url: str, api_key: str = "", *, thinking: Thinking = 0, bounds: Bounds | None = None
    ) -> None:
        super().__init__(base_url.rstrip("/").removesuffix("/v1") + "/v1", api_key, bounds=bounds)
        self._thinking = thinking

    @property
    def _headers(self) -> Mapping[str, str]:
        key = {"x-api-key": self._api_key} if self._api_key else {}
        return {"anthropic-version": "2023-06-01", **key}

    @asynccontextmanager
    async def _answer(self, ask: Ask) -> "AsyncIterator[httpx2.Response]":
        http = await self._loaded_http()
        body = msgspec.json.encode(request_of(ask, self._thinking))
        async with http.stream(
            "POST", "messages", content=body, headers={"Content-Type": "application/json"}
        ) as answer:
            yield answer


def request_of(ask: Ask, thinking: Thinking = 0) -> dict[str, object]:
    """The body of a request. Messages without text would be refused and are left out; neighbours of a role are one."""
    max_tokens = ask.max_reply_tokens or MAX_REPLY_TOKENS
    spoken = [message for message in ask.messages if message.text.strip()]
    said = groupby((message for message in spoken if message.role != "system"), lambda message: message.role)
    body: dict[str, object] = {
        "model": ask.model,
        "max_tokens": max_tokens,
        "messages": [{"role": role, "content": "\n\n".join(each.text for each in of_role)} for role, of_role in said],
        "stream": True,
    }
    if system := "\n\n".join(message.text for message in spoken if message.role == "system"):
        body["system"] = system
    if stop := [text for text in ask.wishes.stop if text.strip()]:
        body["stop_sequences"] = stop
    if thought := _thinking_within(thinking, max_tokens):
        body["thinking"] = thought
    else:  # a model that is to think chooses its words by itself
        body |= _sampling(ask.wishes)
    return body


def _thinking_within(thinking: Thinking, max_tokens: int) -> dict[str, object]:
    """How to ask for thinking, which counts as reply; empty where there is no room for it."""
    if thinking == "adaptive":
        # Newer models think in silence unless asked for a summary.
        return {"type": "adaptive", "display": "summarized"}
    budget = min(thinking, max_tokens - MIN_REASONING_TOKENS)
    return {"type": "enabled", "budget_tokens": budget} if budget >= MIN_REASONING_TOKENS else {}


def _sampling(wishes: Wishes) -> dict[str, object]:
    """At most one of the two, which is all that newer models take; and no temperature above 1, which none takes."""
    if wishes.temperature is not None:
        return {"temperature": min(wishes.temperature, 1.0)}
    return {"top_p": wishes.top_p} if wishes.top_p is not None else {}

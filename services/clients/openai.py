"""OpenAI, and every server that speaks its wire form: Ollama, llama.cpp, LM Studio, vLLM, and most hosted providers.

The SDK carries the request; what comes back is read as bytes and decoded by `openai_wire`, at a fraction of the cost of
the SDK's typed objects.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec

from services.clients import Ask
from services.clients.openai_wire import OpenAIReply
from services.clients.remote import Bounds, RemoteClient

if TYPE_CHECKING:
    import httpx2
    import openai


#: where `max_tokens` is refused by newer models; many other servers know nothing else
_WANTS_MAX_COMPLETION_TOKENS = ("api.openai.com", ".openai.azure.com")


class OpenAIClient(RemoteClient):
    """A provider that speaks chat completions at `base_url`."""

    wire_form = OpenAIReply

    def __init__(self, base_url: str, api_key: str = "", *, bounds: Bounds | None = None) -> None:
        # Servers without keys ignore one, and the SDK would otherwise take OPENAI_API_KEY from the environment.
        super().__init__(base_url, api_key or "none", bounds=bounds)
        wants_other = self._host.endswith(_WANTS_MAX_COMPLETION_TOKENS)
        self._limit_name = "max_completion_tokens" if wants_other else "max_tokens"
        self._sdk: openai.AsyncOpenAI | None = None

    @property
    def _headers(self) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {self._api_key}"}

    @asynccontextmanager
    async def _answer(self, ask: Ask) -> "AsyncIterator[httpx2.Response]":
        # As extra_body, because the SDK walks through typed messages at a quarter of a millisecond each.
        body: dict[str, object] = {
            "messages": [{"role": message.role, "content": message.text} for message in ask.messages],
            "stream_options": {"include_usage": True},
            **msgspec.to_builtins(ask.wishes),
        }
        if ask.max_reply_tokens:
            body[self._limit_name] = ask.max_reply_tokens
        sdk = await self._loaded_sdk()
        completions = sdk.chat.completions.with_streaming_response
        async with completions.create(model=ask.model, messages=(), stream=True, extra_body=body) as answer:
            yield answer.http_response

    async def _loaded_sdk(self) -> "openai.AsyncOpenAI":
        http = await self._loaded_http()
        async with self._loading:
            if self._sdk is None:
                self._sdk = await asyncio.to_thread(self._load_sdk, http)
            return self._sdk

    def _load_sdk(self, http: "httpx2.AsyncClient") -> "openai.AsyncOpenAI":
        import openai

        sdk = openai.AsyncOpenAI(api_key=self._api_key, base_url=self._base_url, http_client=http, max_retries=0)
        _ = sdk.chat.completions.with_streaming_response  # imports the rest here, off the loop
        return sdk

"""What every model adapter speaks: an `Ask` goes in, `Reasoning`, `Text` and `Usage` come out, or a `ClientError`."""

from collections.abc import AsyncGenerator
from typing import Literal, Protocol

import msgspec


class Message(msgspec.Struct, frozen=True):
    """One entry of the transcript that a model is shown."""

    role: Literal["system", "user", "assistant"]
    text: str


class Wishes(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a reply should be made, under OpenAI's names; what a provider does not know, it leaves aside."""

    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None


#: as the model does by itself
PLAIN = Wishes()


class Ask(msgspec.Struct, frozen=True):
    """One request for a reply."""

    #: What the provider calls the model, not what people see.
    model: str
    messages: tuple[Message, ...]
    #: 0 leaves it to the provider.
    max_reply_tokens: int
    wishes: Wishes = PLAIN


class Text(msgspec.Struct, frozen=True):
    """The next piece of a reply: never empty, and without NUL, which no text column of PostgreSQL takes."""

    text: str


class Reasoning(msgspec.Struct, frozen=True):
    """The next piece of what the model thinks aloud, mostly before its reply and no part of it; else as `Text`."""

    text: str


class Usage(msgspec.Struct, frozen=True):
    """What the provider counted; comes at most once, last."""

    prompt_tokens: int
    #: of reasoning and reply together
    reply_tokens: int


#: what a reply is made of
Said = Reasoning | Text | Usage


ErrorCode = Literal[
    "provider_unreachable",
    "provider_refused",
    "provider_rate_limited",
    "provider_failed",
    "provider_timeout",
    "provider_broken",
    "context_overflow",
    "model_missing",
]


class ClientError(Exception):
    """A provider gave no reply, or not all of it.

    provider_unreachable    no connection could be made; the only one that says the provider is down
    provider_refused        it will not serve this: key, payment, permission, a request it does not accept (4xx), or the
                            model declined
    provider_rate_limited   it wants fewer requests, or its quota is used up (429)
    provider_failed         it is overloaded or failed inside (5xx)
    provider_timeout        it fell silent, or took longer than a reply may take
    provider_broken         what it sent is malformed, cut off, too large, or a redirect
    context_overflow        the transcript is longer than the model can read
    model_missing           it has no such model

    `detail` is a sentence for users: it never holds a key, an address or the provider's own words.
    """

    def __init__(self, code: ErrorCode, detail: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(code, detail)
        self.code: ErrorCode = code
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


class Client(Protocol):
    """One provider, spoken to in its own way."""

    def stream(self, ask: Ask) -> AsyncGenerator[Said, None]:
        """Yield the reply while it is written. Raises ClientError.

        Closing the generator closes the provider's connection, so leave it through `contextlib.aclosing`.
        """
        ...

    async def is_up(self) -> bool:
        """Whether the provider answers now, within a few seconds; never raises."""
        ...

    async def models(self) -> tuple[str, ...]:
        """Upstream names the provider lists; empty if it lists none. Raises ClientError when it cannot be asked."""
        ...

    async def aclose(self) -> None:
        """Let go of every connection; nothing may be asked afterwards."""
        ...

"""The built-in model `echo`: repeats what it is told, or does what the prompt's directives say.

    /tokens 500             "tok0 tok1 …" instead of the prompt
    /text Once upon a time  this text instead of the prompt, to the end of the line
    /reason Let me see      this first, as its reasoning, to the end of the line
    /delay 20ms             between two tokens
    /error 429 after 10     fail after so many tokens: an HTTP status, or timeout, broken, unreachable
    /hang after 3           fall silent after so many tokens

For tests, demonstrations and load: the same prompt always gets the same reply, and a token is exactly one piece.
"""

import asyncio
import re
from collections.abc import AsyncGenerator

import msgspec

from services.clients import Ask, ClientError, Reasoning, Said, Text, Usage
from services.clients.wire import broken, refusal_of

MAX_TOKENS = 100_000
MAX_DELAY_SECONDS = 10.0

_TEXT = re.compile(r"(?<!\S)/text +(.+)")
_REASON = re.compile(r"(?<!\S)/reason +(.+)")
_TOKENS = re.compile(r"(?<!\S)/tokens +(\d{1,18})\b")
_DELAY = re.compile(r"(?<!\S)/delay +(\d{1,18}) ?ms\b")
_FAULT = re.compile(r"(?<!\S)/(?:error +(?P<error>\w{1,20})|hang)\b(?: +after +(?P<after>\d{1,18})\b)?")
_TOKEN = re.compile(r"\s*\S+\s*")


class Plan(msgspec.Struct, frozen=True):
    """What a prompt asks for."""

    tokens: tuple[str, ...]
    reasoning: tuple[str, ...] = ()
    delay_seconds: float = 0.0
    #: what comes after the tokens: nothing, `hang`, or the name of an error
    fault: str = ""

    @classmethod
    def of(cls, prompt: str) -> "Plan":
        """Directives count wherever they stand; without them, the prompt is what to repeat."""
        reasoning, rest = _taken(_REASON, prompt)
        text, rest = _taken(_TEXT, rest)
        count, rest = _taken(_TOKENS, rest)
        delay, rest = _taken(_DELAY, rest)
        fault, rest = _taken(_FAULT, rest)
        after = min(int(fault["after"] or 0), MAX_TOKENS) if fault else MAX_TOKENS
        if count:
            tokens = _numbered(min(int(count[1]), MAX_TOKENS))
        else:
            tokens = tokens_of(text[1] if text else rest) or (_numbered(after) if fault else ())
        return cls(
            tokens=tokens[:after],
            reasoning=tokens_of(reasoning[1]) if reasoning else (),
            delay_seconds=min(int(delay[1]) / 1000, MAX_DELAY_SECONDS) if delay else 0.0,
            fault=(fault["error"] or "hang") if fault else "",
        )


def tokens_of(text: str) -> tuple[str, ...]:
    """Words with the blanks around them; together they are the text."""
    if not text or text.isspace():
        return (text,) if text else ()
    return tuple(_TOKEN.findall(text))


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"tok{number} " for number in range(count))


def _taken(directive: re.Pattern[str], prompt: str) -> tuple[re.Match[str] | None, str]:
    """The directive, and the prompt without it."""
    found = directive.search(prompt)
    return (found, (prompt[: found.start()] + prompt[found.end() :]).strip()) if found else (None, prompt)


class EchoClient:
    """`silence_seconds` is how long a `/hang` is borne, as an adapter bears a real provider's silence."""

    def __init__(self, *, silence_seconds: float = 120.0) -> None:
        self._silence_seconds = silence_seconds

    async def stream(self, ask: Ask) -> AsyncGenerator[Said, None]:
        """Yield the reply token by token, giving way after each. Raises ClientError where told to."""
        asked = [message.text for message in ask.messages if message.role == "user"]
        plan = Plan.of(asked[-1] if asked else "")
        said: list[Said] = [*map(Reasoning, plan.reasoning), *map(Text, plan.tokens)]
        whole = len(said)
        del said[ask.max_reply_tokens or whole :]
        for token in said:
            await asyncio.sleep(plan.delay_seconds)
            yield token
        if plan.fault and len(said) == whole:
            await self._fail(plan.fault)
        yield Usage(sum(len(tokens_of(message.text)) for message in ask.messages), len(said))

    async def _fail(self, fault: str) -> None:
        match fault:
            case "hang":
                await asyncio.sleep(self._silence_seconds)
                raise ClientError("provider_timeout", "The echo fell silent, as it was told to.")
            case "timeout":
                raise ClientError("provider_timeout", "The echo timed out, as it was told to.")
            case "unreachable":
                raise ClientError("provider_unreachable", "The echo cannot be reached, as it was told to.")
            case status if status.isdecimal() and 400 <= int(status) < 600:
                raise refusal_of(int(status), b"", {"retry-after": "1"} if status in ("429", "503") else {})
            case _:
                raise broken("The echo broke off, as it was told to.")

    async def is_up(self) -> bool:
        return True

    async def models(self) -> tuple[str, ...]:
        return ("echo",)

    async def aclose(self) -> None:
        """Nothing is open."""

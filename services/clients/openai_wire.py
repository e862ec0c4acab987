"""OpenAI's wire form: what the events of a chat completion say.

Tolerant of `content: null`, content in parts, a missing `[DONE]`, and of every name that reasoning goes by.
"""

from typing import Any

import msgspec

from services.clients import Usage
from services.clients.wire import Count, Reply, error_of


class _Part(msgspec.Struct):
    """A piece of content where that is a list, as Mistral sends what its models reason."""

    text: str | None = None
    thinking: "str | list[_Part] | None" = None


class _Message(msgspec.Struct):
    content: str | list[_Part] | None = None
    #: what OpenAI sends instead of content when the model declines
    refusal: str | None = None
    #: DeepSeek, vLLM, llama.cpp, Qwen
    reasoning_content: Any = None
    #: OpenRouter, Ollama; some send both, and the same in both
    reasoning: Any = None

    @property
    def said(self) -> tuple[str, str]:
        """(reasoning, text); reasoning in a form that nobody knows must not cost the reply."""
        thought = self.reasoning_content or self.reasoning
        thought = thought if isinstance(thought, str) else ""
        if not isinstance(self.content, list):
            return thought, self.content or self.refusal or ""
        thoughts = (_joined(part.thinking) for part in self.content)
        return thought + "".join(thoughts), _joined(self.content)


class _Choice(msgspec.Struct):
    delta: _Message | None = None
    message: _Message | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: Count
    completion_tokens: Count


class _Answer(msgspec.Struct):
    """A streamed chunk (`delta`) or a whole completion (`message`)."""

    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None


_decode_answer = msgspec.json.Decoder(_Answer).decode


class OpenAIReply(Reply):
    """One chat completion, streamed in chunks that end with `[DONE]`, or whole."""

    def _read(self, event: bytes) -> tuple[str, str]:
        if event.strip() == b"[DONE]":
            self.finished = self.ended = True
            return "", ""
        answer = _decode_answer(event)
        if answer.error is not None:
            raise error_of(msgspec.json.encode(answer.error))
        if answer.usage is not None:
            self.usage = _counted(answer.usage) or self.usage
        if not answer.choices:
            return "", ""
        choice = answer.choices[0]
        if choice.finish_reason or choice.message:
            self.finished = True
        message = choice.delta or choice.message
        return message.said if message else ("", "")


def _joined(parts: str | list[_Part] | None) -> str:
    """The text of content, which may be in parts."""
    return parts or "" if not isinstance(parts, list) else "".join(part.text or "" for part in parts)


def _counted(counted: object) -> Usage | None:
    """Token counts, or None for what cannot be true: a wrong count must not cost the reply."""
    try:
        usage = msgspec.convert(counted, _Usage)
    except msgspec.ValidationError:
        return None
    return Usage(usage.prompt_tokens, usage.completion_tokens)

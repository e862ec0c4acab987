"""Anthropic's wire form: what the events of a message say.

A message is made of blocks. Text is reply and thinking is reasoning; signatures, thinking that is encrypted, calls of
tools, and whatever a later version adds are passed over, as are events of unknown types.
"""

from contextlib import suppress
from typing import Any

import msgspec

from services.clients import ClientError, Usage
from services.clients.wire import MAX_TOKENS, Count, Reply, broken, error_of


class _Kind(msgspec.Struct):
    """What any event has; by its type it is read again."""

    type: str = ""
    error: Any = None


class _Block(msgspec.Struct):
    """A block of a message, or the next piece of one."""

    type: str = ""
    text: Any = None
    thinking: Any = None

    @property
    def said(self) -> tuple[str, str]:
        """(reasoning, text); reasoning in a form that nobody knows must not cost the reply. Raises ClientError."""
        match self.type:
            case "thinking" | "thinking_delta":
                return self.thinking if isinstance(self.thinking, str) else "", ""
            case "text" | "text_delta":
                if not isinstance(self.text, str | None):
                    raise broken("The provider sent something that cannot be read.")
                return "", self.text or ""
        return "", ""


class _BlockStart(msgspec.Struct):
    content_block: _Block


class _BlockDelta(msgspec.Struct):
    delta: _Block


class _Message(msgspec.Struct):
    usage: Any = None


class _MessageStart(msgspec.Struct):
    message: _Message


class _WholeMessage(_Message, kw_only=True):
    content: list[_Block]
    stop_reason: str | None = None


class _Ending(msgspec.Struct, frozen=True):
    stop_reason: str | None = None


class _MessageDelta(msgspec.Struct):
    delta: _Ending = _Ending()
    usage: Any = None


class _Asked(msgspec.Struct, omit_defaults=True):
    """What was counted of the prompt."""

    #: without what went into the cache or came out of it
    input_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None


class _Counted(_Asked, omit_defaults=True):
    #: of thinking and text together, so far
    output_tokens: Count | None = None


_decode_kind = msgspec.json.Decoder(_Kind).decode
_decode_message_start = msgspec.json.Decoder(_MessageStart).decode
_decode_block_start = msgspec.json.Decoder(_BlockStart).decode
_decode_block_delta = msgspec.json.Decoder(_BlockDelta).decode
_decode_message_delta = msgspec.json.Decoder(_MessageDelta).decode
_decode_whole_message = msgspec.json.Decoder(_WholeMessage).decode


class AnthropicReply(Reply):
    """One message, streamed from `message_start` to `message_stop`, or whole."""

    def __init__(self, *, max_event_bytes: int, max_document_bytes: int) -> None:
        super().__init__(max_event_bytes=max_event_bytes, max_document_bytes=max_document_bytes)
        #: {what: how many}, by the latest event that told it
        self._counts: dict[str, int] = {}

    def _read(self, event: bytes) -> tuple[str, str]:
        told = _decode_kind(event)
        if told.type == "error" or told.error is not None:
            raise error_of(msgspec.json.encode(told.error))
        match told.type:
            case "content_block_delta":
                return _decode_block_delta(event).delta.said
            case "content_block_start":
                return _decode_block_start(event).content_block.said
            case "message_start":
                # Only the last event knows how much was written.
                self._count(_decode_message_start(event).message.usage, _Asked)
            case "message_delta":
                change = _decode_message_delta(event)
                self._count(change.usage, _Counted)
                self._finish(change.delta.stop_reason)
            case "message_stop":
                self.finished = self.ended = True
            case "message":
                message = _decode_whole_message(event)
                self._count(message.usage, _Counted)
                self._finish(message.stop_reason or "end_turn")
                said = [block.said for block in message.content]
                return "".join(thought for thought, _ in said), "".join(text for _, text in said)
        return "", ""

    def _count(self, counted: object, form: type[_Asked]) -> None:
        """Take over how many tokens there were; a count that cannot be true must not cost the reply."""
        with suppress(msgspec.ValidationError):
            self._counts |= msgspec.to_builtins(msgspec.convert(counted, form))
        if {"input_tokens", "output_tokens"} <= self._counts.keys():
            reply_tokens = self._counts["output_tokens"]
            prompt_tokens = sum(self._counts.values()) - reply_tokens
            self.usage = Usage(prompt_tokens, reply_tokens) if prompt_tokens <= MAX_TOKENS else None

    def _finish(self, stop_reason: str | None) -> None:
        """Take in why the message ends; None while it goes on."""
        if stop_reason == "refusal":
            self._end(ClientError("provider_refused", "The model declined to answer."))
        elif stop_reason is not None:
            self.finished = True

"""What all wire forms share: from the bytes of an answer to its events, and from a failure to a `ClientError`.

Strict where a mistake would lose or forge text, tolerant where servers are known to differ: comments, CRLF, events over
several lines, unknown fields, a missing last event, a JSON document where a stream was asked for. No I/O here.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from time import time
from typing import Annotated

import msgspec

from services.clients import ClientError, ErrorCode, Reasoning, Text, Usage
from services.clients.thinking import Parting

#: a token count above this is not believed
MAX_TOKENS = (1 << 31) - 1
Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]
#: a wait longer than this is as good as none
MAX_RETRY_AFTER_SECONDS = 86_400.0


def broken(detail: str) -> ClientError:
    """A `provider_broken` with its sentence."""
    return ClientError("provider_broken", detail)


class EventSplitter:
    """Cuts bytes, however they arrive, into the data of server-sent events (WHATWG HTML §9.2.6).

    A character cut by a chunk's end is whole again before anything is decoded. Lone CR does not end a line: no server
    sends it, and JSON text cannot hold one.
    """

    def __init__(self, max_event_bytes: int) -> None:
        self._max_event_bytes = max_event_bytes
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._data_bytes = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield each event that `chunk` completes, with blanks around. Raises ClientError for one that is too long."""
        end = chunk.rfind(b"\n")
        if end < 0:
            self._rest += chunk
        else:
            lines = bytes(self._rest) + chunk[:end]
            self._rest = bytearray(chunk[end + 1 :])
            for line in lines.split(b"\n"):
                if line.startswith(b"data:"):
                    self._data.append(line[5:])
                    self._data_bytes += len(line)
                elif line in (b"", b"\r") and self._data:
                    event = b"\n".join(self._data)
                    self._data, self._data_bytes = [], 0
                    yield event
        if len(self._rest) + self._data_bytes > self._max_event_bytes:
            raise broken("The provider sent an event that does not end.")

    def close(self) -> Iterator[bytes]:
        """Yield the last event where the stream ended without its blank line."""
        yield from self.feed(b"\n\n")


class _Model(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_Model] | None = None


_decode_models = msgspec.json.Decoder(_ModelList).decode
_decode_asked = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Reply(ABC):
    """One reply, fed with the bytes of its answer; what its events say is for each wire form."""

    def __init__(self, *, max_event_bytes: int, max_document_bytes: int) -> None:
        #: the model said that it is done; whatever fails after that loses nothing
        self.finished = False
        #: nothing more will come that matters
        self.ended = False
        #: why it ended before it was finished; the text before it stands
        self.failure: ClientError | None = None
        self.usage: Usage | None = None
        self._events = EventSplitter(max_event_bytes)
        self._max_document_bytes = max_document_bytes
        self._document: bytearray | None = None
        self._begun = False
        self._parting = Parting()

    def feed(self, chunk: bytes) -> list[Reasoning | Text]:
        """What `chunk` completes; often nothing."""
        if not self._begun:
            chunk = chunk.removeprefix(b"\xef\xbb\xbf").lstrip()
            self._begun = bool(chunk)
            if chunk.startswith(b"{"):
                self._document = bytearray()
            elif chunk.startswith(b"<"):
                self._end(broken("The provider answered with a web page. Its address may be wrong."))
        if self._document is None:
            return self._said_in(self._events.feed(chunk))
        self._document += chunk
        if len(self._document) > self._max_document_bytes:
            self._end(broken("The provider's answer is too large."))
        return []

    def close(self) -> list[Reasoning | Text]:
        """What the end of the answer completes."""
        said = self._said_in(self._events.close() if self._document is None else [bytes(self._document)])
        self._end(broken("The provider ended the reply before it was complete."))
        return said + self.let_go()

    def let_go(self) -> list[Reasoning | Text]:
        """What was held back in case more would come."""
        return _pieces(*self._parting.close())

    def _end(self, failure: ClientError) -> None:
        if not (self.ended or self.finished):
            self.failure = failure
        self.ended = True

    def _said_in(self, events: Iterable[bytes]) -> list[Reasoning | Text]:
        thoughts: list[str] = []
        texts: list[str] = []
        try:
            for event in events:
                if self.ended:
                    break
                thought, text = self._read(event)
                thoughts.append(thought)
                texts.append(text)
        except ClientError as failure:
            self._end(failure)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._end(broken("The provider sent something that cannot be read."))
        thought, text = "".join(thoughts), "".join(texts)
        if text and not self._parting.over:
            inline, text = self._parting.feed(text)
            thought += inline
        said = _pieces(thought, text)
        return said + self.let_go() if self.ended else said

    @abstractmethod
    def _read(self, event: bytes) -> tuple[str, str]:
        """(reasoning, text) of an event, or of a whole document. Raises ClientError, or as msgspec where it is none."""


def _pieces(thought: str, text: str) -> list[Reasoning | Text]:
    """What was said, without what no text column takes."""
    found: list[Reasoning | Text] = []
    if thought:
        found.append(Reasoning(thought.replace("\0", "\N{REPLACEMENT CHARACTER}")))
    if text:
        found.append(Text(text.replace("\0", "\N{REPLACEMENT CHARACTER}")))
    return found


def models_of(body: bytes) -> tuple[str, ...]:
    """The names in a list of models; empty for anything that is not one."""
    try:
        listed = _decode_models(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ()
    return tuple(dict.fromkeys(model.id for model in listed.data or () if model.id))


#: What a status says. The provider's own words are never passed on: they may hold a key, an inner address, the prompt.
_STATUS: Mapping[int, tuple[ErrorCode, str]] = {
    400: ("provider_refused", "The provider did not accept the request"),
    401: ("provider_refused", "The provider did not accept the key it was given"),
    402: ("provider_refused", "The provider asks for payment"),
    403: ("provider_refused", "The provider does not allow this"),
    404: ("model_missing", "The provider does not offer this model at its address"),
    408: ("provider_timeout", "The provider gave up waiting"),
    413: ("context_overflow", "The conversation is longer than the provider accepts"),
    429: ("provider_rate_limited", "The provider has received too many requests"),
    503: ("provider_failed", "The provider is overloaded"),
    529: ("provider_failed", "The provider is overloaded"),
}
_STATUS_CLASS: Mapping[int, tuple[ErrorCode, str]] = {
    2: ("provider_broken", "The provider's answer is not a reply"),
    3: ("provider_broken", "The provider answered with a redirect, which is not followed"),
    4: ("provider_refused", "The provider did not accept the request"),
    5: ("provider_failed", "The provider failed"),
}
#: What servers write where a status says too little: OpenAI, Azure, llama.cpp, vLLM, Ollama, LM Studio, Anthropic.
_TELLTALES: tuple[tuple[re.Pattern[bytes], ErrorCode, str], ...] = (
    (
        re.compile(
            rb"context_length_exceeded|exceed_context_size|context (length|size|window|limit)|prompt is too long"
            rb"|input is too long|maximum number of (input )?tokens"
        ),
        "context_overflow",
        "The conversation is longer than the model can read",
    ),
    (
        re.compile(
            rb"model_not_found|unknown model|no such model|model\W[^{}]{0,120}(not found|does not exist|not loaded)"
        ),
        "model_missing",
        "The provider does not offer this model",
    ),
    (re.compile(rb"insufficient_quota"), "provider_rate_limited", "The provider's quota is used up"),
    (re.compile(rb"rate_limit"), "provider_rate_limited", "The provider has received too many requests"),
    (re.compile(rb"overloaded"), "provider_failed", "The provider is overloaded"),
    (re.compile(rb"invalid_api_key|authentication_error"), *_STATUS[401]),
)
_STATUS_INSIDE = re.compile(rb'"(?:code|status)"\s*:\s*"?([45]\d\d)\b')
#: what is asked beside the conversation: some models take none of one, or not two of them together
_OPTIONS = re.compile(
    rb"\b(?:temperature|top_p|stop|stop_sequences|seed|presence_penalty|frequency_penalty|reasoning_effort|verbosity"
    rb"|max_tokens|max_completion_tokens|thinking|stream_options)\b"
)
#: Statuses whose meaning no text can change.
_PLAIN = frozenset({401, 402, 403, 413})


def refusal_of(status: int, body: bytes, headers: Mapping[str, str], asked: bytes = b"") -> ClientError:
    """What an answer with another status than 200 means, to the request with the body `asked`."""
    code, sentence = _meaning_of(status, body)
    if code == "provider_refused" and status in (400, 422) and (named := _options_named(body, asked)):
        sentence += f" because of {' and '.join(f'“{name}”' for name in named)}"
    return ClientError(code, f"{sentence} (HTTP {status}).", _retry_after_seconds(headers.get("retry-after", "")))


def error_of(raw: bytes) -> ClientError:
    """What an error object inside an answer means; some servers put a status into it."""
    status = _STATUS_INSIDE.search(raw)
    code, sentence = _meaning_of(int(status[1]) if status else 500, raw)
    return ClientError(code, f"{sentence}.")


def _meaning_of(status: int, body: bytes) -> tuple[ErrorCode, str]:
    code, sentence = _STATUS.get(status) or _STATUS_CLASS.get(status // 100, _STATUS_CLASS[5])
    if status >= 400 and status not in _PLAIN:
        words = body.lower()
        for telltale, told_code, told_sentence in _TELLTALES:
            if telltale.search(words):
                return told_code, told_sentence
    return code, sentence


def _options_named(body: bytes, asked: bytes) -> list[str]:
    """The options of a request that an error page names; our words and not the provider's."""
    try:
        sent = _decode_asked(asked)
    except msgspec.DecodeError:
        return []
    return list(dict.fromkeys(name for found in _OPTIONS.findall(body) if (name := found.decode()) in sent))


def _retry_after_seconds(value: str) -> float | None:
    """`Retry-After`, in seconds or as a date (RFC 9110 §10.2.3); None for none, or for nonsense."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time()
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if seconds <= MAX_RETRY_AFTER_SECONDS else None

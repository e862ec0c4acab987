"""OpenAI's forms, as its clients send and read them, and what they mean here.

A client of that kind tells the whole conversation each time. With a session, the session's own transcript is the
context, and only the last message is new. Without one, what was told becomes the beginning of a new session.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from itertools import takewhile
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from litestar import Response
from litestar.datastructures import Headers
from litestar.exceptions import NotFoundException

from services.brought import Brought
from services.catalogue import Entry
from services.clients import Wishes
from services.errors import InvalidRequest
from services.outcomes import BegunTurn
from services.turn_log import Beat, Begun, Delta, Ended, Event, Gone, Thought
from web.views import TurnView

#: names the session to go on in, and the one that was gone on in
SESSION_HEADER = "X-Turnkeeper-Session"
#: the session's own current model; no model may be called so
SESSION_MODEL = "session"
#: far more than any model is shown; each becomes part of a row
MOST_MESSAGES = 2000
#: the roles of messages that tell the model how to be
INSTRUCTING = ("system", "developer")
#: longer than this, OpenAI's own client does not wait by itself
PATIENCE_SECONDS = 60
#: what no client should take for the end of a line; JSON may say it otherwise
_LINES = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


# ---------------------------------------------------------------- what is asked


class ContentPart(msgspec.Struct):
    type: str
    text: str | None = None


class ChatMessage(msgspec.Struct):
    #: system and developer are the same; tool and function are refused
    role: str
    content: str | list[ContentPart] | None = None
    tool_calls: list[Any] | None = None
    function_call: Any = None

    @property
    def text(self) -> str:
        """Its text, of however many parts. Raises InvalidRequest."""
        if self.tool_calls or self.function_call:
            raise InvalidRequest("Tools cannot be called here.", field="messages")
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        if any(part.type != "text" or part.text is None for part in self.content):
            raise InvalidRequest("Only parts of text are taken.", field="messages")
        return "".join(part.text or "" for part in self.content)


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Cap = Annotated[int, msgspec.Meta(ge=1, le=100_000_000)]
#: kept by no column and sent to no provider, so any text will do
Ignored = str | None


class ChatCompletion(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """OpenAI's request; null is the same as leaving out."""

    messages: Annotated[list[ChatMessage], msgspec.Meta(max_length=MOST_MESSAGES)]
    #: an id or an alias, or `session`
    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: Cap | None = None
    max_tokens: Cap | None = None
    #: `session_id` names a session
    metadata: dict[str, str] | None = None
    # Passed on to the provider.
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    stop: str | list[str] | None = None
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    # Of no effect on a reply.
    user: Ignored = None
    store: bool | None = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    parallel_tool_calls: bool | None = None
    # Taken only where they ask for nothing.
    n: Annotated[int, msgspec.Meta(ge=1)] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    function_call: Any = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None


#: {field: what asks for nothing beyond null, false, zero and emptiness}
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "tools": (),
    "tool_choice": ("none", "auto"),
    "functions": (),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logprobs": (),
    "top_logprobs": (),
    "logit_bias": (),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}


class Question(msgspec.Struct, frozen=True):
    """What a request means here."""

    session_id: UUID | None
    prompt: str
    #: None for the session's own
    model: str | None
    #: a new session's beginning; of one that is there, the instructions it must have
    brought: Brought
    cap: int
    wishes: Wishes

    @classmethod
    def of(cls, asked: ChatCompletion, headers: Headers) -> "Question":
        """Raises InvalidRequest for what cannot be honoured."""
        for name, neutral in NEUTRAL.items():
            value = getattr(asked, name)
            if value and value not in neutral:
                raise InvalidRequest(f"“{name}” is not possible here.", field=name)
        stop = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
        session_id = _session_id(asked, headers)
        instructions, messages = _parted(asked.messages)
        # What came before in a session is the session's to say.
        exchanges, prompt = _conversation(messages if session_id is None else messages[-1:])
        return cls(
            session_id,
            prompt,
            None if asked.model == SESSION_MODEL else asked.model,
            Brought.told(instructions, exchanges),
            asked.max_completion_tokens or asked.max_tokens or 0,
            Wishes(
                asked.temperature,
                asked.top_p,
                stop,
                asked.seed,
                asked.presence_penalty,
                asked.frequency_penalty,
                asked.reasoning_effort,
                asked.verbosity,
            ),
        )


def _session_id(asked: ChatCompletion, headers: Headers) -> UUID | None:
    """The session that is named. Raises InvalidRequest."""
    named = {(asked.metadata or {}).get("session_id"), headers.get(SESSION_HEADER.lower())} - {None, ""}
    if len(named) > 1:
        raise InvalidRequest("Header and metadata name two sessions.", field="metadata")
    try:
        return UUID(named.pop()) if named else None
    except ValueError as error:
        raise InvalidRequest("This is no id of a session.", field="metadata") from error


def _parted(messages: Sequence[ChatMessage]) -> tuple[str, Sequence[ChatMessage]]:
    """The instructions at the beginning, and the messages behind them. Raises InvalidRequest."""
    first = list(takewhile(lambda message: message.role in INSTRUCTING, messages))
    return "\n\n".join(message.text for message in first), messages[len(first) :]


def _conversation(messages: Sequence[ChatMessage]) -> tuple[list[tuple[str, str]], str]:
    """Exchanges and the last message; several of one role in a row are one. Raises InvalidRequest."""
    said: list[tuple[str, list[str]]] = []
    for message in messages:
        if message.role in INSTRUCTING:
            raise InvalidRequest("A system message comes first.", field="messages")
        if message.role not in ("user", "assistant"):
            raise InvalidRequest(f"A message of the role “{message.role[:40]}” is not possible here.", field="messages")
        if said and said[-1][0] == message.role:
            said[-1][1].append(message.text)
        else:
            said.append((message.role, [message.text]))
    if not said or said[0][0] != "user" or said[-1][0] != "user":
        raise InvalidRequest("The first message after the system's and the last one are a user's.", field="messages")
    texts = ["\n\n".join(parts) for _, parts in said]
    return list(zip(texts[0:-1:2], texts[1::2], strict=True)), texts[-1]


# ---------------------------------------------------------------- what is answered


class CompletionUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, turn: TurnView) -> "CompletionUsage":
        return cls(turn.prompt_tokens, turn.reply_tokens, turn.prompt_tokens + turn.reply_tokens)


class ReplyMessage(msgspec.Struct, frozen=True):
    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    #: as DeepSeek and vLLM tell it; not there where there is none
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET


class CompletionChoice(msgspec.Struct, frozen=True):
    message: ReplyMessage
    finish_reason: Literal["stop", "length"]
    index: int = 0
    logprobs: None = None


class Completion(msgspec.Struct, frozen=True):
    """OpenAI's answer; the id is the turn's, behind `chatcmpl-`."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: CompletionUsage
    object: Literal["chat.completion"] = "chat.completion"

    @classmethod
    def of(cls, turn: TurnView, cap: int) -> "Completion":
        message = ReplyMessage(turn.reply, reasoning_content=turn.reasoning or msgspec.UNSET)
        choice = CompletionChoice(message, _finish(turn, cap))
        return cls(_id(turn), _created(turn), turn.model, [choice], CompletionUsage.of(turn))


class ChunkDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    content: str | None = None
    role: str | None = None
    reasoning_content: str | None = None


class ChunkChoice(msgspec.Struct, frozen=True):
    delta: ChunkDelta
    finish_reason: str | None = None
    index: int = 0
    logprobs: None = None


class Chunk(msgspec.Struct, frozen=True):
    """One event of a streamed answer."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: CompletionUsage | msgspec.UnsetType = msgspec.UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"


class OpenModel(msgspec.Struct, frozen=True):
    id: str
    owned_by: str
    created: int = 0
    object: Literal["model"] = "model"


class OpenModels(msgspec.Struct, frozen=True):
    data: list[OpenModel]
    object: Literal["list"] = "list"

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> "OpenModels":
        """Those that serve, and `session`."""
        models = [OpenModel(entry.id, entry.provider) for entry in entries if entry.serves]
        return cls([*models, OpenModel(SESSION_MODEL, "turnkeeper")])

    @classmethod
    def require(cls, name: str, entries: Sequence[Entry]) -> OpenModel:
        """The one of them that goes by this name. Raises NotFoundException."""
        listed = {model.id: model for model in cls.of(entries).data}
        aliases = {alias: entry.id for entry in entries if entry.serves for alias in entry.aliases}
        try:
            return listed[name if name in listed else aliases[name]]
        except KeyError:
            raise NotFoundException from None


class ErrorBody(msgspec.Struct, frozen=True):
    message: str
    type: str
    code: str
    param: str | None = None


class OpenError(msgspec.Struct, frozen=True):
    """OpenAI's error, with our code."""

    error: ErrorBody

    @classmethod
    def of(cls, status: int, code: str, detail: str, param: str | None = None) -> "OpenError":
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
        return cls(ErrorBody(detail, kind, code, param))


def refusal_headers(status: int, code: str, headers: dict[str, str]) -> dict[str, str]:
    """Whether OpenAI's client should ask again by itself: where waiting helps, and not for hours."""
    soon = int(headers.get("Retry-After", "0")) <= PATIENCE_SECONDS
    again = soon and (status in (429, 503) or code == "session_busy")
    return headers | {"x-should-retry": "true" if again else "false"}


def answered(turn: TurnView, begun: BegunTurn) -> Response[bytes]:
    """A turn that has ended, as one answer; one that failed is an error that is not asked again by itself."""
    headers = {SESSION_HEADER: str(turn.session_id)}
    if (failure := _failure(turn)) is None:
        return _json(Completion.of(turn, begun.cap), 200, headers)
    return _json(failure, 502, headers | {"x-should-retry": "false"})


async def chunks(events: AsyncGenerator[Event, None], begun: BegunTurn, *, usage: bool) -> AsyncGenerator[bytes, None]:
    """A turn as OpenAI streams it."""
    turn = TurnView.of(begun.turn)
    of = (_id(turn), _created(turn), turn.model)
    async with aclosing(events):
        async for event in events:
            match event:
                case Begun():
                    yield _frame(Chunk(*of, [ChunkChoice(ChunkDelta("", "assistant"))]))
                case Delta(text=text):
                    yield _frame(Chunk(*of, [ChunkChoice(ChunkDelta(text))]))
                case Thought(text=text):
                    yield _frame(Chunk(*of, [ChunkChoice(ChunkDelta(reasoning_content=text))]))
                case Ended(row):
                    turn = TurnView.of(row)
                    if (failure := _failure(turn)) is not None:
                        yield _frame(failure)
                        return
                    yield _frame(Chunk(*of, [ChunkChoice(ChunkDelta(), _finish(turn, begun.cap))]))
                    if usage:
                        yield _frame(Chunk(*of, [], CompletionUsage.of(turn)))
                    yield b"data: [DONE]\n\n"
                    return
                case Beat(version):
                    yield f": version {version}\n\n".encode()
                case Gone():
                    yield _frame(OpenError.of(404, "session_not_found", "The session is gone."))
                    return
    yield _frame(OpenError.of(503, "interrupted", "The server stops; the reply is in the session."))


def _finish(turn: TurnView, cap: int) -> Literal["stop", "length"]:
    """A reply that ran into its cap, or was stopped, is not whole."""
    return "length" if turn.state == "stopped" or (cap and turn.reply_tokens >= cap) else "stop"


def _failure(turn: TurnView) -> OpenError | None:
    """What to tell where a reply did not come to its end."""
    if turn.state in ("done", "stopped"):
        return None
    if turn.error is None:
        return OpenError.of(502, "interrupted", "The reply could not be finished.")
    return OpenError.of(502, turn.error.code, turn.error.detail)


def _id(turn: TurnView) -> str:
    return f"chatcmpl-{turn.id}"


def _created(turn: TurnView) -> int:
    return int(turn.created_at.timestamp())


def _json(body: msgspec.Struct, status: int, headers: dict[str, str]) -> Response[bytes]:
    return Response(msgspec.json.encode(body), status_code=status, headers=headers, media_type="application/json")


def _frame(body: msgspec.Struct) -> bytes:
    return f"data: {msgspec.json.encode(body).decode().translate(_LINES)}\n\n".encode()

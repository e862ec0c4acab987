"""Frames of `text/event-stream`, for scripts and for pages, from what `TurnLog` tells."""

import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import msgspec
from litestar.response import Stream

from services.turn_log import Beat, Begun, Changed, Delta, Ended, Event, Gone, Ousted, Thought
from web.answer import sent
from web.views import SessionView, TurnView

RETRY_MILLISECONDS = 1000
#: for a stream that gave way to another one of its reader's
LATER_MILLISECONDS = 30_000
#: what a page says whose stream has ended for good
GONE = "This is no longer there, or no longer yours."
_BREAKS = re.compile(r"\r\n|\r|\n")


def frame(data: str, event: str = "", id: str = "", retry: int = 0) -> bytes:
    """One event; `\\n` only, whatever the text holds."""
    lines = [f"id: {id}\n"] if id else []
    if retry:
        lines.append(f"retry: {retry}\n")
    if event:
        lines.append(f"event: {event}\n")
    lines += [f"data: {line}\n" for line in _BREAKS.split(data)]
    return "".join(lines).encode() + b"\n"


def stream(frames: AsyncGenerator[bytes, None]) -> Stream:
    """An answer that goes on until its frames end, and says first how soon to come back."""
    return stream_of(_begun(frames))


def stream_of(frames: AsyncGenerator[bytes, None]) -> Stream:
    """The same for frames of another kind."""
    return sent(frames, "text/event-stream", {"Cache-Control": "no-store", "X-Accel-Buffering": "no"})


async def _begun(frames: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(frames):
        yield f"retry: {RETRY_MILLISECONDS}\n\n".encode()
        async for one in frames:
            yield one


async def for_scripts(events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
    """What scripts read: turn, reasoning, delta, session, end as JSON. The id of a text is where to go on after it."""
    async with aclosing(events):
        async for event in events:
            match event:
                case Begun(turn):
                    yield frame(_json(TurnView.of(turn)), "turn")
                case Delta(turn_id, offset, text, place) | Thought(turn_id, offset, text, place):
                    data = _json({"turn_id": turn_id, "offset": offset, "text": text})
                    yield frame(data, "delta" if isinstance(event, Delta) else "reasoning", place)
                case Ended(turn):
                    yield frame(_json(TurnView.of(turn)), "end", f"{turn.id}:end")
                case Changed(session):
                    yield frame(_json(SessionView.of(session)), "session")
                case Beat(version):
                    yield f": version {version}\n\n".encode()
                case Gone():
                    yield frame("{}", "gone")
                case Ousted():
                    yield frame("{}", "ousted", retry=LATER_MILLISECONDS)


async def for_pages(
    events: AsyncGenerator[Event, None], render: Callable[[Event], Awaitable[str | None]]
) -> AsyncGenerator[bytes, None]:
    """What a page reads: rendered fragments under the same ids. What it has not come to has no id to go on after."""
    async with aclosing(events):
        async for event in events:
            match event:
                case Delta(place=place) | Thought(place=place):
                    if (shown := await render(event)) is not None:
                        yield frame(shown, id=place)
                case Ended(turn):
                    if (shown := await render(event)) is not None:
                        yield frame(shown, id=f"{turn.id}:end")
                case Beat(version):
                    yield f": version {version}\n\n".encode()
                case Gone():
                    if shown := await render(event):
                        yield frame(shown)
                    yield frame("" if shown else GONE, "gone")
                case Ousted():
                    yield frame("ousted", "ousted", retry=LATER_MILLISECONDS)
                case _:
                    if shown := await render(event):
                        yield frame(shown)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()

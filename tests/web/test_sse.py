"""Frames on their way out."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from itertools import count
from typing import Any

import pytest
from litestar import Litestar, get
from litestar.response import Stream

from services.turn_log import Beat, Event
from web.sse import for_pages, for_scripts, stream


async def test_between_the_frames_of_a_replay_others_get_their_turn() -> None:
    """They come without a wait. Without a pause a connection that breaks meanwhile is written to all the same."""
    turns = count()

    async def other() -> None:
        while True:
            next(turns)
            await asyncio.sleep(0)

    async def replay() -> AsyncGenerator[bytes, None]:
        for _ in range(100):
            yield b"data: x\n\n"

    beside = asyncio.create_task(other())
    frames = [frame async for frame in stream(replay()).iterator]
    beside.cancel()
    assert len(frames) == 101
    assert next(turns) >= 100


async def nothing(event: Event) -> str:
    return ""


@pytest.mark.parametrize("frames_of", [for_scripts, lambda events: for_pages(events, nothing)], ids=["script", "page"])
@pytest.mark.parametrize("sent", [0, 1, 5])
async def test_who_goes_away_while_a_frame_is_sent_holds_nothing_any_more(
    frames_of: Callable[[AsyncGenerator[Event, None]], AsyncGenerator[bytes, None]], sent: int
) -> None:
    """The frames are held on to here, so that it is not the garbage collector that ends them."""
    held, sending, bodies = 0, asyncio.Event(), count()

    async def events() -> AsyncGenerator[Event, None]:
        nonlocal held
        held += 1
        try:
            while True:
                yield Beat(1)
        finally:
            held -= 1

    frames = frames_of(events())

    @get("/")
    async def follow() -> Stream:
        return stream(frames)

    async def receive() -> Any:
        await sending.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body" and next(bodies) == sent:
            sending.set()
            await asyncio.Event().wait()

    scope: Any = {
        "type": "http", "method": "GET", "path": "/", "raw_path": b"/", "root_path": "", "query_string": b"",
        "headers": [], "scheme": "http", "http_version": "1.1", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }  # fmt: skip
    async with asyncio.timeout(30):
        await Litestar([follow])(scope, receive, send)
    assert held == 0
    with pytest.raises(StopAsyncIteration):
        await anext(frames)

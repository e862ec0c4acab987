"""Frames on their way out."""

import asyncio
from collections.abc import AsyncIterator
from itertools import count

from web.sse import stream


async def test_between_the_frames_of_a_replay_others_get_their_turn() -> None:
    """They come without a wait. Without a pause a connection that breaks meanwhile is written to all the same."""
    turns = count()

    async def other() -> None:
        while True:
            next(turns)
            await asyncio.sleep(0)

    async def replay() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"data: x\n\n"

    beside = asyncio.create_task(other())
    frames = [frame async for frame in stream(replay()).iterator]
    beside.cancel()
    assert len(frames) == 101
    assert next(turns) >= 100

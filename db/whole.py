"""A step that is done to its end although whoever asked for it has been cancelled."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

_shielded: set["asyncio.Future[Any]"] = set()


async def whole(step: Awaitable[Any], undo: Callable[[Any], Awaitable[Any]] | None = None) -> Any:
    """Run `step` to its end even when the caller is cancelled meanwhile; then `undo` what it has brought."""
    task = _shield(step)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(lambda done: _unclaimed(done, undo))
        raise


def _shield(step: Awaitable[Any]) -> "asyncio.Future[Any]":
    task = asyncio.ensure_future(step)
    _shielded.add(task)
    task.add_done_callback(_shielded.discard)
    return task


def _unclaimed(done: "asyncio.Future[Any]", undo: Callable[[Any], Awaitable[Any]] | None) -> None:
    """A result nobody waits for any more: it must not be reported as never retrieved, nor kept."""
    if not done.cancelled() and done.exception() is None and undo is not None:
        _shield(undo(done.result())).add_done_callback(lambda undone: _unclaimed(undone, None))

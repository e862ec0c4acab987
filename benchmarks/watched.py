"""`python -m benchmarks.watched serve`: Turnkeeper, which also tells the file named by WATCHED which tasks it has.

No URL tells that, for nobody outside has a use for it.
"""

import asyncio
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

import turnkeeper

EVERY_SECONDS = 0.5


class Told(msgspec.Struct):
    """What is in the file."""

    #: {what runs: how often}, without the task that tells it
    tasks: dict[str, int]
    #: of memory, by `sys.getallocatedblocks`
    blocks: int


def name_of(task: asyncio.Task[Any]) -> str:
    running = task.get_coro()
    return getattr(running, "__qualname__", None) or type(running).__name__


async def tell(file: Path) -> None:
    while True:
        unfinished = Counter(name_of(task) for task in asyncio.all_tasks() - {asyncio.current_task()})
        beside = file.with_suffix(".new")
        beside.write_bytes(msgspec.json.encode(Told(unfinished, sys.getallocatedblocks())))
        beside.replace(file)
        await asyncio.sleep(EVERY_SECONDS)


def main() -> None:
    import web.app

    create_app = web.app.create_app

    def watched(*arguments: Any, **named: Any) -> Any:
        app = create_app(*arguments, **named)
        telling: list[asyncio.Task[None]] = []

        async def begin() -> None:
            telling.append(asyncio.create_task(tell(Path(os.environ["WATCHED"]))))

        async def end() -> None:
            telling.pop().cancel()

        app.on_startup.append(begin)
        app.on_shutdown.append(end)
        return app

    web.app.create_app = watched
    turnkeeper.main()


if __name__ == "__main__":
    main()

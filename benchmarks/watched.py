"""`python -m benchmarks.watched serve`: Turnkeeper, which also tells the file named by WATCHED how many tasks it has.

No URL tells that, for nobody outside has a use for it.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import turnkeeper

EVERY_SECONDS = 0.5


async def tell(file: Path) -> None:
    while True:
        unfinished = len(asyncio.all_tasks()) - 1  # without this one
        beside = file.with_suffix(".new")
        beside.write_text(f"{unfinished} {sys.getallocatedblocks()}")
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

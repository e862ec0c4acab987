"""The desk as a stream: what each look at it has changed, as rows for a page or as JSON for scripts."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from uuid import UUID

import msgspec

from services.desk import DeskPage
from services.turn_log import Gone, Ousted
from web.sse import GONE, LATER_MILLISECONDS, frame
from web.templating import render
from web.views import DeskSessionView, DeskView

#: looks at an unchanged desk after which the reader is told that it is still there
QUIET_LOOKS = 14


class Shown:
    """What a reader has been shown, to tell only what differs from it."""

    def __init__(self, told: Callable[[DeskSessionView], str]) -> None:
        #: a session as it is told
        self._told = told
        self._rows: Mapping[UUID, str] = {}
        self._running = -1
        #: nothing has been shown yet
        self.is_new = True

    def differs(self, view: DeskView) -> tuple[list[UUID], list[UUID], list[UUID]] | None:
        """The ids of sessions that are another, that are new, and that are gone; None where all is as it was."""
        rows = {one.id: self._told(one) for one in view.sessions}
        before, self._rows = self._rows, rows
        changed = [id for id, row in rows.items() if id in before and before[id] != row]
        new, gone = [id for id in rows if id not in before], [id for id in before if id not in rows]
        same = not changed and not new and not gone and self._running == view.running
        self._running = view.running
        return None if same and not self.is_new else (changed, new, gone)


async def desk_frames(
    looks: AsyncGenerator[DeskPage | Gone | Ousted, None], *, page: bool
) -> AsyncGenerator[bytes, None]:
    """One event for each look that differs from the one before, and a comment where long none does."""
    write = _for_page if page else _for_scripts
    shown = Shown(_row if page else _json)
    quiet = 0
    async with aclosing(looks):
        async for look in looks:
            if isinstance(look, DeskPage):
                view = DeskView.of(look)
                differs, quiet = shown.differs(view), quiet + 1
                if differs is not None:
                    yield frame(*write(view, shown.is_new, *differs))
                    shown.is_new, quiet = False, 0
                elif quiet >= QUIET_LOOKS:
                    yield b": as before\n\n"
                    quiet = 0
            else:
                gone = isinstance(look, Gone)
                yield frame(
                    GONE if gone and page else "{}",
                    "gone" if gone else "ousted",
                    retry=0 if gone else LATER_MILLISECONDS,
                )


def _row(one: DeskSessionView) -> str:
    return render("admin/_row.html", one=one)


def _json(one: DeskSessionView) -> str:
    return msgspec.json.encode(one).decode()


def _for_page(view: DeskView, whole: bool, changed: list[UUID], new: list[UUID], gone: list[UUID]) -> tuple[str, str]:
    return render("admin/changed.html", view=view, whole=whole, changed=changed, new=new, gone=gone), ""


def _for_scripts(
    view: DeskView, whole: bool, changed: list[UUID], new: list[UUID], gone: list[UUID]
) -> tuple[str, str]:
    sessions = [one for one in view.sessions if one.id in changed or one.id in new]
    told = {"sessions": sessions, "gone": gone, "running": view.running}
    return msgspec.json.encode(told).decode(), "desk"

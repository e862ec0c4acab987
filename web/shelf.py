"""What the handlers share that arrange a session in its owner's list: who asks, and how it is answered."""

from typing import Any

import msgspec
from litestar import Request, Response

from db.db_session import DbSession
from services.actor import Actor
from services.outcomes import LiveSession
from services.session_service import SessionService
from web.answer import answer
from web.forms import Arrange
from web.given import Db, Given, Sessions, Who
from web.live import Controls
from web.side import moved_side
from web.views import SessionView


class Shelf(msgspec.Struct, frozen=True):
    """One request to put a session elsewhere in the list."""

    request: Request
    sessions: SessionService
    db_session: DbSession
    actor: Actor
    controls: Controls

    @property
    def asks(self) -> dict[str, Any]:
        """Who asks for a verb, and under which key."""
        return {"db_session": self.db_session, "actor": self.actor, "key": self.request.state.key}

    async def answer(self, live: LiveSession, form: Arrange, *, just: str = "") -> Response[Any]:
        """The session's row in the list, or its page; with `just` what has become of it, and the way back."""
        view, fragment, where = SessionView.of(live), "session/arranged.html", "/session"
        side = await moved_side(self.request, self.sessions, self.db_session, self.actor)
        shown: dict[str, Any] = {"just": just, "here": None, "moved": view.id, "told": told_of(live), "side": side}
        if form.back == "session":
            fragment, where = "session/changed.html", view.url
            shown |= await self.controls.of(live)
        return answer(self.request, fragment, view, location=where, allowance=live.allowance, **shown)


def told_of(live: LiveSession) -> str:
    """Where a session stands now, in a word."""
    if live.row.archived:
        return "Archived. It stays in “Archived”, and is found by its words."
    return "Pinned." if live.row.pinned else "Back in the list."


def provide_shelf(request: Request, sessions: Sessions, db_session: Db, actor: Who, controls: Given[Controls]) -> Shelf:
    return Shelf(request, sessions, db_session, actor, controls)

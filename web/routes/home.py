"""/ — where a new conversation begins."""

from typing import Any

from litestar import Request, Response, get

from web.actor import DEVICE_COOKIE, cookie_of
from web.answer import page
from web.given import Db, Pool, Sessions, Who
from web.side import side_of
from web.views import SessionsView, models_view


@get("/", opt={"answers": SessionsView})
async def show_home(request: Request, sessions: Sessions, db_session: Db, actor: Who, pool: Pool) -> Response[Any]:
    """The composer of a new session, and the actor's sessions."""
    side = request.state.get("side") or await side_of(request, sessions, db_session, actor)
    default = await sessions.default_model(db_session, actor=actor)
    models = models_view(await sessions.models(db_session, actor=actor), pool, default.id)
    allowances = await sessions.allowances(db_session, actor=actor)
    # Somebody has signed out here: what their browser kept of their typing is not for a guest.
    left = actor.kind == "guest" and bool(cookie_of(request, DEVICE_COOKIE))
    return page(
        request,
        "home.html",
        side.recent,
        recent=side.recent,
        models=models,
        default=default,
        limits=allowances,
        left=left,
    )

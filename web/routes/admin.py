"""/admin — everybody's live sessions."""

from typing import Any

from litestar import Request, Response, get

from web.answer import page
from web.forms import ListSessions, asks
from web.given import Db, Given, Pool, Sessions, Who
from web.routes.session import sessions_view, wanted
from web.views import SessionsView, models_view


@get("/admin", dependencies={"asked": asks(ListSessions)}, opt={"answers": SessionsView})
async def show_desk(
    request: Request, asked: Given[ListSessions], sessions: Sessions, db_session: Db, actor: Who, pool: Pool
) -> Response[Any]:
    """Whose sessions run on which model, and a switch for each."""
    found = await sessions.list_sessions(db_session, actor=actor, everybody=True, **wanted(asked))
    models = models_view(await sessions.models(db_session, actor=actor), pool, None)
    return page(request, "admin.html", sessions_view(found), models=models, query=asked)

"""/admin — everybody's live sessions."""

from typing import Any

from litestar import Response, get

from web.admin import Admin
from web.forms import ListSessions, asks
from web.given import Given
from web.routes.session import sessions_view, wanted
from web.views import SessionsView, models_view


@get("/admin", dependencies={"asked": asks(ListSessions)}, opt={"answers": SessionsView})
async def show_desk(asked: Given[ListSessions], admin: Given[Admin]) -> Response[Any]:
    """Whose sessions run on which model, and a switch for each."""
    found = await admin.sessions.list_sessions(admin.db_session, actor=admin.actor, everybody=True, **wanted(asked))
    models = models_view(await admin.sessions.models(admin.db_session, actor=admin.actor), admin.pool, None)
    return admin.page("admin.html", sessions_view(found), models=models, query=asked)

"""/limits — what the actor may still do, before trying."""

from typing import Any

from litestar import Request, Response, get

from web.answer import page
from web.given import Db, Sessions, Who
from web.views import LimitsView


@get("/limits", opt={"answers": LimitsView})
async def show_limits(request: Request, sessions: Sessions, db_session: Db, actor: Who) -> Response[Any]:
    """Every limit that applies: size, used, remaining, reset."""
    allowances = await sessions.allowances(db_session, actor=actor)
    return page(request, "limits.html", LimitsView.of(allowances), limits=allowances)

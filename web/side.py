"""The chats at the side of every page, and how they move when one of them changes."""

from datetime import tzinfo

import msgspec
from litestar import Request

from db.db_session import DbSession
from services.actor import Actor
from services.session_service import SessionService
from web.answer import page_named, wants, zone_of
from web.forms import ListSessions
from web.views import SessionsView, sessions_view

#: chats at the side of a page, and pinned ones at the top of them
RECENT, PINNED = 30, 20
#: the list at the side while nothing is looked for in it
AT_THE_SIDE = ".side:not(:has(#q:not(:placeholder-shown))) #sessions"


class Side(msgspec.Struct, frozen=True):
    """The newest of somebody's chats, with the pinned ones above them."""

    recent: SessionsView
    pinned: SessionsView
    query: ListSessions
    zone: tzinfo
    #: the list on the page that this takes the place of, as a selector
    target: str = ""


def has_side(request: Request) -> bool:
    """Whether a request is answered with a page that has the chats at its side."""
    of_the_page = request.route_handler.opt
    return request.method == "GET" and wants(request) == "page" and not (of_the_page.keys() & {"file", "no_side"})


async def side_of(
    request: Request,
    sessions: SessionService,
    db_session: DbSession,
    actor: Actor,
    *,
    target: str = "",
    limit: int = RECENT,
) -> Side:
    """The chats of the actor, as they stand."""
    recent = await sessions.list_sessions(db_session, actor=actor, limit=limit, show="")
    pinned = await sessions.list_sessions(db_session, actor=actor, limit=PINNED, show="pinned")
    return Side(
        sessions_view(recent), sessions_view(pinned), ListSessions(), zone_of(request.cookies.get("tz", "")), target
    )


async def moved_side(request: Request, sessions: SessionService, db_session: DbSession, actor: Actor) -> Side | None:
    """The list that the page shows from which htmx asks, as it is now; None where it shows what was looked for."""
    if wants(request) != "fragment":
        return None
    path, _, query = page_named(request, "hx-current-url").partition("?")
    if path != "/session":
        return await side_of(request, sessions, db_session, actor, target=AT_THE_SIDE)
    if query:
        return None
    return await side_of(request, sessions, db_session, actor, target="main #sessions", limit=ListSessions().limit)

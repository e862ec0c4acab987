"""/admin — everybody's sessions as they happen, and acting on one or many of them."""

from typing import Any

from litestar import Response, get, post
from litestar.response import Stream

from services.actor import require_admin
from services.desk import Wanted
from web.admin import Admin
from web.answer import answer, wants
from web.forms import Act, ShowDesk, acts, asks
from web.given import Given, Proof
from web.live_desk import desk_frames
from web.routes.session import position_of
from web.sse import stream
from web.views import DeskView, OutcomesView, models_view

HERE = "/admin"


@get(HERE, dependencies={"asked": asks(ShowDesk)}, opt={"answers": DeskView})
async def show_desk(asked: Given[ShowDesk], admin: Given[Admin]) -> Response[Any]:
    """Whose sessions run on which model, what is being written, and acts for one or many."""
    after = position_of(asked.cursor, asked.sort)
    found = await admin.desk.look(_wanted(asked), admin.db_session, actor=admin.actor, after=after, limit=asked.limit)
    models = models_view(await admin.sessions.models(admin.db_session, actor=admin.actor), admin.pool, None)
    groups = [group.name for group in await admin.governance.groups(admin.db_session, actor=admin.actor)]
    return admin.page("admin.html", DeskView.of(found), models=models, groups=groups, query=asked)


@get("/admin/events", dependencies={"asked": asks(ShowDesk)}, opt={"answers": "stream"})
async def follow_desk(asked: Given[ShowDesk], admin: Given[Admin], proof: Proof) -> Stream:
    """What changes on the first page of the desk, from what it is now on."""
    require_admin(admin.actor)
    admin.log.require_room()
    # What refuses a look is told before the answer begins; in its midst nobody could be told.
    await admin.desk.look(_wanted(asked), admin.db_session, actor=admin.actor, limit=1)
    looks = admin.desk.watch(_wanted(asked), actor=admin.actor, proof=proof, limit=asked.limit)
    return stream(desk_frames(looks, page=wants(admin.request) == "fragment"))


@post("/admin/act", **acts(Act, OutcomesView))
async def act(form: Given[Act], admin: Given[Admin]) -> Response[Any]:
    """Do the same to one or many sessions: each by itself, and told what became of it."""
    outcomes = await admin.desk.act(
        form.deed, form.session_ids, admin.db_session, model=form.model, reason=form.reason, **admin.asks
    )
    view = OutcomesView(form.deed, sum(not one.code for one in outcomes), outcomes)
    if wants(admin.request) == "page":
        return admin.page("admin/acted.html", view)
    response = answer(admin.request, "admin/done.html", view, location=HERE)
    if not view.refused:
        response.headers["HX-Trigger"] = "done"
    return response


def _wanted(asked: ShowDesk) -> Wanted:
    return Wanted(**{name: getattr(asked, name) for name in Wanted.__struct_fields__})

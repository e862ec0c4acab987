"""/models — what may be used, and pointing a session at one."""

from typing import Any

from litestar import Request, Response, get, post

from web.answer import answer, page, wants
from web.forms import SwitchModel, acts
from web.given import Db, Given, Pool, Ruling, Sessions, Who
from web.live import Controls
from web.views import ModelsView, SwitchView, models_view


@get("/models", opt={"answers": ModelsView})
async def list_models(
    request: Request, sessions: Sessions, db_session: Db, actor: Who, pool: Pool, governance: Ruling
) -> Response[Any]:
    """The models the actor may see, and the default of a new session."""
    default = await sessions.default_model(db_session, actor=actor)
    entries = await sessions.models(db_session, actor=actor)
    view = models_view(entries, pool, default.id)
    since = await governance.since(db_session) if wants(request) in ("page", "fragment") else {}
    return page(
        request, "models.html", view, default=default, entries={entry.id: entry for entry in entries}, since=since
    )


@post("/models/switch", **acts(SwitchModel, SwitchView))
async def switch_model(
    request: Request,
    form: Given[SwitchModel],
    sessions: Sessions,
    db_session: Db,
    actor: Who,
    controls: Given[Controls],
) -> Response[Any]:
    """Point one session at another model; answers its controls."""
    switch = await sessions.switch_model(
        form.session_id,
        form.model,
        db_session,
        actor=actor,
        expected_version=form.expected_version,
        when=form.when,
        reason=form.reason,
        lock=form.lock,
        key=request.state.key,
    )
    return answer(
        request,
        "model/switched.html",
        SwitchView.of(switch),
        location=f"/session/{form.session_id}",
        allowance=switch.allowance,
        **await controls.of(switch.session),
    )

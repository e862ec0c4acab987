"""/admin — everybody's live sessions, and the rules: models, groups, limits, moves of many sessions."""

from typing import Any

import msgspec
from litestar import Request, Response, get, post

from web.answer import answer, page
from web.forms import (
    ChangeGroup,
    ChangeLimit,
    ChangeModel,
    ListSessions,
    OrderMove,
    PreviewMove,
    RestoreGroup,
    RestoreModel,
    StopMove,
    asks,
    reads,
)
from web.given import Db, Given, Moving, Pool, Ruling, Sessions, Who
from web.routes.session import sessions_view, wanted
from web.views import (
    AdminGroupsView,
    AdminGroupView,
    AdminModelsView,
    AdminModelView,
    DecisionView,
    MovesView,
    MoveView,
    PreviewView,
    SessionsView,
    models_view,
)


@get("/admin", dependencies={"asked": asks(ListSessions)}, opt={"answers": SessionsView})
async def show_desk(
    request: Request, asked: Given[ListSessions], sessions: Sessions, db_session: Db, actor: Who, pool: Pool
) -> Response[Any]:
    """Whose sessions run on which model, and a switch for each."""
    found = await sessions.list_sessions(db_session, actor=actor, everybody=True, **wanted(asked))
    models = models_view(await sessions.models(db_session, actor=actor), pool, None)
    return page(request, "admin.html", sessions_view(found), models=models, query=asked)


# ---------------------------------------------------------------- models


@get("/admin/models", opt={"answers": AdminModelsView})
async def list_governed_models(
    request: Request, governance: Ruling, db_session: Db, actor: Who, pool: Pool
) -> Response[Any]:
    """Every model with its state, since when and by whom, and a form to change it."""
    view = await _models(governance, db_session, actor, pool)
    groups = await governance.groups(db_session, actor=actor)
    return page(request, "admin/models.html", view, groups=[group.name for group in groups if group.name != "*"])


@post(
    "/admin/models/change",
    status_code=200,
    dependencies={"form": reads(ChangeModel)},
    opt={"answers": AdminModelsView, "once": True},
)
async def change_model(
    request: Request, form: Given[ChangeModel], governance: Ruling, db_session: Db, actor: Who, pool: Pool
) -> Response[Any]:
    """Change what an admin may change of a model."""
    groups = form.groups.split() if isinstance(form.groups, str) else form.groups
    await governance.set_model(
        form.model,
        db_session,
        actor=actor,
        state=form.state or msgspec.UNSET,
        state_reason="" if form.state_reason is None else form.state_reason,
        replacement=form.replacement,
        groups=[] if groups is None else groups,
        concurrent_turns=msgspec.UNSET if form.concurrent_turns is None else form.concurrent_turns,
        reason=form.reason,
        key=request.state.key,
    )
    return answer(request, None, await _models(governance, db_session, actor, pool), location="/admin/models")


@post(
    "/admin/models/restore",
    status_code=200,
    dependencies={"form": reads(RestoreModel)},
    opt={"answers": AdminModelsView, "once": True},
)
async def restore_model(
    request: Request, form: Given[RestoreModel], governance: Ruling, db_session: Db, actor: Who, pool: Pool
) -> Response[Any]:
    """Give a model back to the configuration."""
    await governance.restore_model(form.model, db_session, actor=actor, reason=form.reason, key=request.state.key)
    return answer(request, None, await _models(governance, db_session, actor, pool), location="/admin/models")


async def _models(governance: Ruling, db_session: Db, actor: Who, pool: Pool) -> AdminModelsView:
    models = await governance.models(db_session, actor=actor)
    changes = await governance.changes(db_session, actor=actor)
    return AdminModelsView(
        [AdminModelView.of(model, pool) for model in models], [DecisionView.of(row) for row in changes]
    )


# ---------------------------------------------------------------- groups and limits


@get("/admin/groups", opt={"answers": AdminGroupsView})
async def list_groups(
    request: Request, governance: Ruling, sessions: Sessions, db_session: Db, actor: Who
) -> Response[Any]:
    """Every group with its default model and its limits, and a form for each."""
    view = await _groups(governance, db_session, actor)
    models = [entry.id for entry in await sessions.models(db_session, actor=actor)]
    return page(request, "admin/groups.html", view, models=models)


@post(
    "/admin/groups/change",
    status_code=200,
    dependencies={"form": reads(ChangeGroup)},
    opt={"answers": AdminGroupsView, "once": True},
)
async def change_group(
    request: Request, form: Given[ChangeGroup], governance: Ruling, db_session: Db, actor: Who
) -> Response[Any]:
    """Change a group's default model, or make a group."""
    await governance.set_group(
        form.group,
        db_session,
        actor=actor,
        default_model=form.default_model,
        on_missing_model=form.on_missing_model or msgspec.UNSET,
        reason=form.reason,
        key=request.state.key,
    )
    return answer(request, None, await _groups(governance, db_session, actor), location="/admin/groups")


@post(
    "/admin/groups/restore",
    status_code=200,
    dependencies={"form": reads(RestoreGroup)},
    opt={"answers": AdminGroupsView, "once": True},
)
async def restore_group(
    request: Request, form: Given[RestoreGroup], governance: Ruling, db_session: Db, actor: Who
) -> Response[Any]:
    """Give a group's default model back to the configuration."""
    await governance.restore_group(form.group, db_session, actor=actor, reason=form.reason, key=request.state.key)
    return answer(request, None, await _groups(governance, db_session, actor), location="/admin/groups")


@post(
    "/admin/groups/limit",
    status_code=200,
    dependencies={"form": reads(ChangeLimit)},
    opt={"answers": AdminGroupsView, "once": True},
)
async def change_limit(
    request: Request, form: Given[ChangeLimit], governance: Ruling, db_session: Db, actor: Who
) -> Response[Any]:
    """Set one limit of a group, or give it back to the configuration."""
    await governance.set_limit(
        form.group, form.limit, form.value, db_session, actor=actor, reason=form.reason, key=request.state.key
    )
    return answer(request, None, await _groups(governance, db_session, actor), location="/admin/groups")


async def _groups(governance: Ruling, db_session: Db, actor: Who) -> AdminGroupsView:
    groups = await governance.groups(db_session, actor=actor)
    changes = await governance.changes(db_session, actor=actor)
    return AdminGroupsView([AdminGroupView.of(group) for group in groups], [DecisionView.of(row) for row in changes])


# ---------------------------------------------------------------- moves of many sessions


@get("/admin/moves", dependencies={"asked": asks(PreviewMove)}, opt={"answers": MovesView})
async def list_moves(
    request: Request, asked: Given[PreviewMove], moves: Moving, sessions: Sessions, db_session: Db, actor: Who
) -> Response[Any]:
    """Moves of sessions from one model to another, with their progress."""
    view = MovesView([MoveView.of(row) for row in await moves.list_moves(db_session, actor=actor)])
    entries = await sessions.models(db_session, actor=actor)
    return page(request, "admin/moves.html", view, entries=entries, asked=asked)


@get("/admin/moves/preview", dependencies={"asked": asks(PreviewMove)}, opt={"answers": PreviewView})
async def preview_move(
    request: Request, asked: Given[PreviewMove], moves: Moving, db_session: Db, actor: Who
) -> Response[Any]:
    """What a move would do now; nothing is changed."""
    found = await moves.preview(asked.from_model, asked.to_model, db_session, actor=actor)
    return page(request, "admin/preview.html", PreviewView.of(found))


@post(
    "/admin/moves",
    status_code=201,
    dependencies={"form": reads(OrderMove)},
    opt={"answers": MoveView, "once": True},
)
async def order_move(
    request: Request, form: Given[OrderMove], moves: Moving, db_session: Db, actor: Who
) -> Response[Any]:
    """Move every live session of one model to another."""
    move = await moves.order(
        form.from_model, form.to_model, form.reason, db_session, actor=actor, key=request.state.key
    )
    return answer(request, None, MoveView.of(move), location="/admin/moves", status=201)


@post(
    "/admin/moves/stop",
    status_code=200,
    dependencies={"form": reads(StopMove)},
    opt={"answers": MoveView, "once": True},
)
async def stop_move(
    request: Request, form: Given[StopMove], moves: Moving, db_session: Db, actor: Who
) -> Response[Any]:
    """Stop a move where it is."""
    move = await moves.stop(form.move_id, db_session, actor=actor, key=request.state.key)
    return answer(request, None, MoveView.of(move), location="/admin/moves")

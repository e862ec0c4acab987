"""/admin/moves — moving every session of one model to another."""

from typing import Any

from litestar import Response, get, post

from web.admin import Admin
from web.forms import OrderMove, PreviewMove, StopMove, acts, asks
from web.given import Given
from web.views import MovesView, MoveView, PreviewView

HERE = "/admin/moves"


@get(HERE, dependencies={"asked": asks(PreviewMove)}, opt={"answers": MovesView})
async def list_moves(asked: Given[PreviewMove], admin: Given[Admin]) -> Response[Any]:
    """Moves of sessions from one model to another, with their progress."""
    moves = await admin.moves.list_moves(admin.db_session, actor=admin.actor)
    entries = await admin.sessions.models(admin.db_session, actor=admin.actor)
    return admin.page("admin/moves.html", MovesView([MoveView.of(row) for row in moves]), entries=entries, asked=asked)


@get("/admin/moves/preview", dependencies={"asked": asks(PreviewMove)}, opt={"answers": PreviewView})
async def preview_move(asked: Given[PreviewMove], admin: Given[Admin]) -> Response[Any]:
    """What a move would do now; nothing is changed."""
    found = await admin.moves.preview(asked.from_model, asked.to_model, admin.db_session, actor=admin.actor)
    return admin.page("admin/preview.html", PreviewView.of(found))


@post(HERE, **acts(OrderMove, MoveView, 201))
async def order_move(form: Given[OrderMove], admin: Given[Admin]) -> Response[Any]:
    """Move every live session of one model to another."""
    move = await admin.moves.order(form.from_model, form.to_model, form.reason, admin.db_session, **admin.asks)
    return admin.answer(MoveView.of(move), f"{HERE}?done=ordered", 201)


@post("/admin/moves/stop", **acts(StopMove, MoveView))
async def stop_move(form: Given[StopMove], admin: Given[Admin]) -> Response[Any]:
    """Stop a move where it is."""
    move = await admin.moves.stop(form.move_id, admin.db_session, reason=form.reason, **admin.asks)
    return admin.again(MoveView.of(move), HERE, "stopped", marks=(f"move-{move.id}",))

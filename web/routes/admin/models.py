"""/admin/models — every model: its state, who may use it, what stands in for it."""

from typing import Any

import msgspec
from litestar import Response, get, post

from services.text import listed
from services.trials import Trial
from web.admin import Admin
from web.answer import answer, wants
from web.forms import ChangeModel, RestoreModel, TestModel, acts
from web.given import Given
from web.templating import dom_id
from web.views import AdminModelsView, AdminModelView, DecisionView

HERE = "/admin/models"


@get(HERE, opt={"answers": AdminModelsView})
async def list_governed_models(admin: Given[Admin]) -> Response[Any]:
    """Every model with its state, since when and by whom, and a form to change it."""
    view, groups = await _view(admin), await admin.governance.groups(admin.db_session, actor=admin.actor)
    return admin.page("admin/models.html", view, groups=[group.name for group in groups if group.name != "*"])


@post("/admin/models/change", **acts(ChangeModel, AdminModelsView))
async def change_model(form: Given[ChangeModel], admin: Given[Admin]) -> Response[Any]:
    """Change what an admin may change of a model."""
    groups = listed(form.groups) if isinstance(form.groups, str) else form.groups
    await admin.governance.set_model(
        form.model,
        admin.db_session,
        state=form.state or msgspec.UNSET,
        state_reason="" if form.state_reason is None else form.state_reason,
        replacement=form.replacement,
        groups=[] if groups is None else groups,
        concurrent_turns=msgspec.UNSET if form.concurrent_turns is None else form.concurrent_turns,
        reason=form.reason,
        **admin.asks,
    )
    return admin.again(await _view(admin), HERE, said=f"Saved: {form.model}.", marks=(dom_id("model", form.model),))


@post("/admin/models/restore", **acts(RestoreModel, AdminModelsView))
async def restore_model(form: Given[RestoreModel], admin: Given[Admin]) -> Response[Any]:
    """Give a model back to the configuration."""
    await admin.governance.restore_model(form.model, admin.db_session, reason=form.reason, **admin.asks)
    return admin.again(await _view(admin), HERE, said=f"Saved: {form.model}.", marks=(dom_id("model", form.model),))


@post("/admin/models/test", **acts(TestModel, Trial))
async def test_model(form: Given[TestModel], admin: Given[Admin]) -> Response[Any]:
    """Ask a model something short, past sessions and limits."""
    trial = await admin.trials.try_model(form.model, admin.db_session, **admin.asks)
    if wants(admin.request) == "page":
        return admin.page("admin/tested.html", trial)
    return answer(admin.request, "admin/tried.html", trial, location=HERE)


async def _view(admin: Admin) -> AdminModelsView:
    models = await admin.governance.models(admin.db_session, actor=admin.actor)
    changes = await admin.governance.changes(admin.db_session, actor=admin.actor)
    return AdminModelsView(
        [AdminModelView.of(model, admin.pool) for model in models], [DecisionView.of(row) for row in changes]
    )

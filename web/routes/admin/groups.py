"""/admin/groups — groups, their default model, and their limits."""

from typing import Any

import msgspec
from litestar import Response, get, post

from services.catalogue import EVERYBODY
from web.admin import Admin
from web.forms import ChangeGroup, ChangeLimit, RestoreGroup, acts
from web.given import Given
from web.templating import dom_id, words
from web.views import AdminGroupsView, AdminGroupView, DecisionView

HERE = "/admin/groups"


@get(HERE, opt={"answers": AdminGroupsView})
async def list_groups(admin: Given[Admin]) -> Response[Any]:
    """Every group with its default model and its limits, and a form for each."""
    view, entries = await _view(admin), await admin.sessions.models(admin.db_session, actor=admin.actor)
    return admin.page("admin/groups.html", view, models=[entry.id for entry in entries])


@post("/admin/groups/change", **acts(ChangeGroup, AdminGroupsView))
async def change_group(form: Given[ChangeGroup], admin: Given[Admin]) -> Response[Any]:
    """Change a group's default model, or make a group."""
    await admin.governance.set_group(
        form.group,
        admin.db_session,
        default_model=form.default_model,
        on_missing_model=form.on_missing_model or msgspec.UNSET,
        reason=form.reason,
        **admin.asks,
    )
    return admin.again(await _view(admin), HERE, marks=(dom_id("group", form.group.strip()),))


@post("/admin/groups/restore", **acts(RestoreGroup, AdminGroupsView))
async def restore_group(form: Given[RestoreGroup], admin: Given[Admin]) -> Response[Any]:
    """Give a group's default model back to the configuration."""
    await admin.governance.restore_group(form.group, admin.db_session, reason=form.reason, **admin.asks)
    return admin.again(await _view(admin), HERE, marks=(dom_id("group", form.group),))


@post("/admin/groups/limit", **acts(ChangeLimit, AdminGroupsView))
async def change_limit(form: Given[ChangeLimit], admin: Given[Admin]) -> Response[Any]:
    """Set one limit of a group, or give it back to the configuration."""
    before = await _values(form, admin) if admin.actor.is_admin else {}
    await admin.governance.set_limit(
        form.group, form.limit, form.value, admin.db_session, reason=form.reason, **admin.asks
    )
    after = await _values(form, admin)
    changed = [group for group in after if after[group] != before.get(group)] or [form.group]
    marks = tuple(dom_id("limit", group, form.limit) for group in sorted(changed, key=lambda one: one != form.group))
    said = _said(
        form, before.get(form.group, ""), after.get(form.group, ""), [one for one in changed if one != form.group]
    )
    return admin.again(await _view(admin), HERE, said=said, marks=marks)


async def _values(form: ChangeLimit, admin: Admin) -> dict[str, str]:
    """{group: one limit of it as it stands, its own or inherited}."""
    groups = await admin.governance.groups(admin.db_session, actor=admin.actor)
    return {group.name: limit.value for group in groups for limit in group.limits if limit.name == form.limit}


def _said(form: ChangeLimit, before: str, after: str, inheriting: list[str]) -> str:
    """What became of a limit, and of those that inherit it."""
    whose = "the server" if form.group == EVERYBODY else form.group
    was, now = (value if value != "0" else "no limit" for value in (before, after))
    what = (
        f"{words(form.limit).capitalize()} of {whose}: {was} → {now}."
        if was != now
        else f"{words(form.limit).capitalize()} of {whose}: {now}, as before."
    )
    return f"{what} Inherited by {', '.join(inheriting)}." if inheriting else what


async def _view(admin: Admin) -> AdminGroupsView:
    groups = await admin.governance.groups(admin.db_session, actor=admin.actor)
    changes = await admin.governance.changes(admin.db_session, actor=admin.actor)
    return AdminGroupsView([AdminGroupView.of(group) for group in groups], [DecisionView.of(row) for row in changes])

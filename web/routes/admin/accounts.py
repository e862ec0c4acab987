"""/admin/accounts — who has an account: made, changed, disabled."""

from typing import Any
from uuid import UUID

import msgspec
from litestar import Response, get, post
from litestar.params import FromPath

from web.admin import Admin
from web.forms import ChangeAccount, CreateAccount, ListAccounts, SetPassword, acts, asks
from web.given import Given
from web.routes.account import account_view
from web.templating import dom_id
from web.views import AccountsView, AccountView, MemberView

HERE = "/admin/accounts"


@get(HERE, dependencies={"asked": asks(ListAccounts)}, opt={"answers": AccountsView})
async def list_accounts(asked: Given[ListAccounts], admin: Given[Admin]) -> Response[Any]:
    """Everybody who has an account, by name, and a form for a new one."""
    found = await admin.members.list_accounts(
        admin.db_session, actor=admin.actor, q=asked.q, after=asked.cursor, limit=asked.limit
    )
    view = AccountsView([MemberView.of(one, service=one.id in found.services) for one in found.accounts], found.next)
    return admin.page("admin/accounts.html", view, query=asked, groups=await _groups(admin))


@get("/admin/accounts/{account_id:uuid}", opt={"answers": AccountView})
async def show_account_of(account_id: FromPath[UUID], admin: Given[Admin]) -> Response[Any]:
    """One account with its logins and tokens, and forms to change it."""
    groups = await _groups(admin)
    return admin.page("admin/account.html", await _view(account_id, admin), groups=groups)


@post(HERE, **acts(CreateAccount, AccountView, 201))
async def create_account(form: Given[CreateAccount], admin: Given[Admin]) -> Response[Any]:
    """Make an account."""
    account = await admin.logins.create_account(
        form.name,
        form.password,
        admin.db_session,
        role=form.role,
        group=form.group,
        service=form.service,
        **admin.asks,
    )
    said = f"Account {account.name} created."
    return admin.again(
        await _view(account.id, admin), HERE, "account", said=said, marks=(_mark(account.id),), status=201
    )


@post("/admin/accounts/change", **acts(ChangeAccount, AccountView))
async def change_account(form: Given[ChangeAccount], admin: Given[Admin]) -> Response[Any]:
    """Change a role or a group, or take away and give back the way in."""
    account = await admin.members.change_account(
        form.account_id,
        admin.db_session,
        role=form.role or msgspec.UNSET,
        group=msgspec.UNSET if form.group is None else form.group,
        disabled=msgspec.UNSET if form.disabled is None else form.disabled,
        reason=form.reason,
        **admin.asks,
    )
    done = "saved" if form.disabled is None else "disabled" if form.disabled else "enabled"
    return await _again(account.id, admin, done)


@post("/admin/accounts/password", **acts(SetPassword, AccountView))
async def set_password(form: Given[SetPassword], admin: Given[Admin]) -> Response[Any]:
    """Give an account another password; all its logins end."""
    account = await admin.members.set_password(
        form.account_id, form.password, admin.db_session, reason=form.reason, **admin.asks
    )
    return await _again(account.id, admin, "password")


async def _again(account_id: UUID, admin: Admin, done: str) -> Response[Any]:
    return admin.again(await _view(account_id, admin), f"{HERE}/{account_id}", done)


def _mark(account_id: UUID) -> str:
    return dom_id("account", account_id)


async def _view(account_id: UUID, admin: Admin) -> AccountView:
    return await account_view(account_id, admin.members, admin.db_session, admin.actor)


async def _groups(admin: Admin) -> list[str]:
    """The groups an account can be in."""
    groups = await admin.governance.groups(admin.db_session, actor=admin.actor)
    return [group.name for group in groups if group.name != "*"]

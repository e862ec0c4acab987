"""/account — one's own password, logins and tokens; an admin ends and makes those of others by the same URLs."""

from datetime import UTC, datetime, time
from typing import Any
from uuid import UUID

from litestar import Request, Response, get, post
from litestar.datastructures import Cookie

from db.db_session import DbSession
from services.actor import Actor
from services.membership import Membership
from web.activity import ActivitiesView
from web.actor import DEVICE_COOKIE, cookie_of, device_cookie, nobody
from web.again import again
from web.answer import answer, page, wants
from web.forms import ChangePassword, CreateToken, ListActivity, RevokeLogins, RevokeToken, acts, asks
from web.given import Db, Given, Logins, Members, Who
from web.views import AccountView


@get("/account", opt={"answers": AccountView})
async def show_account(request: Request, members: Members, db_session: Db, actor: Who) -> Response[Any]:
    """Who one is, where one is signed in, and which scripts act for one."""
    return page(request, "account.html", await account_view(actor.id, members, db_session, actor))


@get("/account/activity", dependencies={"asked": asks(ListActivity)}, opt={"answers": ActivitiesView})
async def list_activity(
    request: Request, asked: Given[ListActivity], members: Members, db_session: Db, actor: Who
) -> Response[Any]:
    """List what was done to your account and by whom, newest first."""
    found = await members.activity(actor.id, db_session, actor=actor, before=asked.cursor, limit=asked.limit)
    view = ActivitiesView.of(found, actor.id, mine=True)
    return page(request, "account/activity.html", view, asked=asked)


@post("/account/password", **acts(ChangePassword, AccountView))
async def change_password(
    request: Request, form: Given[ChangePassword], members: Members, logins: Logins, db_session: Db, actor: Who
) -> Response[Any]:
    """Change one's own password; every other login ends."""
    account = await members.change_password(
        form.old, form.new, db_session, actor=actor, address=nobody(request), key=request.state.key
    )
    # The one that this browser had was proved by the old password.
    device = logins.remembering(account, cookie_of(request, DEVICE_COOKIE))
    return await _answer(request, actor.id, members, db_session, actor, [device_cookie(request, device)])


@post("/account/logins/revoke", **acts(RevokeLogins, AccountView))
async def revoke_logins(
    request: Request, form: Given[RevokeLogins], members: Members, db_session: Db, actor: Who
) -> Response[Any]:
    """End one login, or all of an account but the one that asks."""
    account_id, asks = form.account_id or actor.id, {"actor": actor, "reason": form.reason, "key": request.state.key}
    if form.login_id is not None:
        account_id = await members.revoke_login(form.login_id, db_session, **asks)
    else:
        await members.revoke_logins(account_id, db_session, **asks)
    view = await account_view(account_id, members, db_session, actor)
    return again(request, view, _place_of(account_id, actor), "signed-out", marks=("logins",))


@post("/account/tokens", **acts(CreateToken, AccountView, 201))
async def create_token(
    request: Request, form: Given[CreateToken], members: Members, logins: Logins, db_session: Db, actor: Who
) -> Response[Any]:
    """Make a script's token. The page that answers is the only one that shows it."""
    name = form.account or actor.name
    ends = datetime.combine(form.expires_on, time(), UTC) if form.expires_on is not None else None
    token = await logins.create_token(
        name,
        form.name,
        (form.scope,),
        db_session,
        expires_at=ends,
        reason=form.reason,
        actor=actor,
        key=request.state.key,
    )
    account = await members.account_named(name, db_session, actor=actor)
    view = await account_view(account.id, members, db_session, actor, token)
    if wants(request) == "json":
        return answer(request, None, view, location="/account", status=201)
    return page(request, "account/token.html", view, status=201)


@post("/account/tokens/revoke", **acts(RevokeToken, AccountView))
async def revoke_token(
    request: Request, form: Given[RevokeToken], members: Members, db_session: Db, actor: Who
) -> Response[Any]:
    """End a token."""
    account_id = await members.revoke_token(
        form.token_id, db_session, actor=actor, reason=form.reason, key=request.state.key
    )
    view = await account_view(account_id, members, db_session, actor)
    return again(request, view, _place_of(account_id, actor), "revoked", marks=("tokens",))


async def account_view(
    account_id: UUID, members: Membership, db_session: DbSession, actor: Actor, token: str | None = None
) -> AccountView:
    """An account with its logins and tokens."""
    return AccountView.whole(await members.whole(account_id, db_session, actor=actor), actor, token)


async def _answer(
    request: Request,
    account_id: UUID,
    members: Membership,
    db_session: DbSession,
    actor: Actor,
    cookies: list[Cookie] | None = None,
) -> Response[Any]:
    view = await account_view(account_id, members, db_session, actor)
    return answer(request, None, view, location=_place_of(account_id, actor), cookies=cookies)


def _place_of(account_id: UUID, actor: Actor) -> str:
    return "/account" if account_id == actor.id else f"/admin/accounts/{account_id}"

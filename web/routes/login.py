"""/login, /logout, /setup — proving who one is."""

import logging
from typing import Any

from litestar import Request, Response, get, post
from litestar.datastructures import Cookie
from litestar.params import FromPath

from db.db_session import DbSession
from services.accounts import Accounts, SignedIn
from services.errors import Refusal
from services.session_service import SessionService
from web.actor import (
    DEVICE_COOKIE,
    GUEST_COOKIE,
    LOGIN_COOKIE,
    browser_of,
    cookie_of,
    device_cookie,
    login_cookie,
    nobody,
)
from web.answer import html, redirect
from web.forms import Nothing, ReplacePassword, SetUp, ShowLogin, SignIn, acts, asks
from web.given import Db, Given, Logins, Sessions
from web.templating import render

log = logging.getLogger(__name__)


@get("/login", dependencies={"asked": asks(ShowLogin)}, opt={"answers": None})
async def show_login(request: Request, asked: Given[ShowLogin], logins: Logins) -> Response[Any]:
    """The form to sign in."""
    context = {"next": local(asked.next), "problem": None, "typed_name": "", "actor": None, "guests": logins.guests}
    return html(render("login.html", request=request, **context))


@post("/login", **acts(SignIn, None))
async def sign_in(
    request: Request, form: Given[SignIn], logins: Logins, sessions: Sessions, db_session: Db
) -> Response[Any]:
    """Check a password; a new login each time, and one for each idempotency key."""
    signed_in = await logins.sign_in(
        form.name,
        form.password,
        db_session,
        actor=nobody(request),
        key=request.state.key,
        browser=browser_of(request),
        device=cookie_of(request, DEVICE_COOKIE),
    )
    await _take_along(request, signed_in, logins, sessions, db_session)
    return redirect(local(form.next), _cookies(request, signed_in))


@post("/login/password", **acts(ReplacePassword, None))
async def replace_password(
    request: Request, form: Given[ReplacePassword], logins: Logins, sessions: Sessions, db_session: Db
) -> Response[Any]:
    """Replace a temporary password with your own and sign in."""
    signed_in = await logins.replace_password(
        form.ticket,
        form.new,
        db_session,
        actor=nobody(request),
        key=request.state.key,
        browser=browser_of(request),
        device=cookie_of(request, DEVICE_COOKIE),
    )
    await _take_along(request, signed_in, logins, sessions, db_session)
    return redirect(local(form.next), _cookies(request, signed_in))


@post("/logout", **acts(Nothing, None))
async def sign_out(request: Request, form: Given[Nothing], logins: Logins, db_session: Db) -> Response[Any]:
    """End this browser's login."""
    await logins.sign_out(cookie_of(request, LOGIN_COOKIE), db_session, actor=nobody(request))
    return redirect("/", [login_cookie(request, "")])


@get("/setup/{secret:str}", opt={"answers": None})
async def show_setup(request: Request, secret: FromPath[str], logins: Logins, db_session: Db) -> Response[Any]:
    """The form of the one-time link that makes its visitor the admin."""
    await logins.check_setup_link(secret, db_session)
    context = {"actor": None, "guests": logins.guests, "refused": request.state.get("refused")}
    return html(render("setup.html", secret=secret, request=request, **context))


@post("/setup/{secret:str}", **acts(SetUp, None))
async def set_up(
    request: Request,
    secret: FromPath[str],
    form: Given[SetUp],
    logins: Logins,
    sessions: Sessions,
    db_session: Db,
) -> Response[Any]:
    """Make the first admin and sign in."""
    signed_in = await logins.set_up(
        secret,
        form.name,
        form.password,
        db_session,
        actor=nobody(request),
        key=request.state.key,
        browser=browser_of(request),
        device=cookie_of(request, DEVICE_COOKIE),
    )
    await _take_along(request, signed_in, logins, sessions, db_session)
    return redirect("/admin", _cookies(request, signed_in))


def _cookies(request: Request, signed_in: SignedIn) -> list[Cookie]:
    """What a browser keeps that has signed in."""
    return [login_cookie(request, signed_in.cookie), device_cookie(request, signed_in.device)]


def local(next: str) -> str:
    """A path of ours to go on to; anything else is the home page."""
    safe = next.startswith("/") and not next.startswith(("//", "/\\")) and next.isprintable() and "\\" not in next
    return next if safe else "/"


async def _take_along(
    request: Request, signed_in: SignedIn, logins: Accounts, sessions: SessionService, db_session: DbSession
) -> None:
    """What this browser did as a guest goes to its account; the browser is another guest afterwards."""
    guest_id = logins.guest_of(cookie_of(request, GUEST_COOKIE))
    if guest_id is None:
        return
    try:
        await sessions.adopt_sessions(guest_id, db_session, actor=signed_in.actor)
    except Refusal as refusal:
        # The sign-in stands. The guest keeps the sessions and the cookie, so the next sign-in takes them along.
        log.warning("request %s: a guest's sessions were not taken along: %s", signed_in.actor.request_id, refusal.code)
    else:
        request.state.guest_cookie = logins.new_guest_cookie()

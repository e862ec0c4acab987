"""/login, /logout, /setup — proving who one is."""

from typing import Any

from litestar import Request, Response, get, post
from litestar.params import FromPath

from web.actor import LOGIN_COOKIE, cookie_of, login_cookie
from web.answer import html, redirect
from web.forms import Nothing, SetUp, ShowLogin, SignIn, asks, reads
from web.given import Db, Given, Logins
from web.templating import render


@get("/login", dependencies={"asked": asks(ShowLogin)}, opt={"answers": None})
async def show_login(request: Request, asked: Given[ShowLogin], logins: Logins) -> Response[Any]:
    """The form to sign in."""
    context = {"next": local(asked.next), "problem": None, "typed_name": "", "actor": None, "guests": logins.guests}
    return html(render("login.html", request=request, **context))


@post("/login", status_code=200, dependencies={"form": reads(SignIn)}, opt={"answers": None})
async def sign_in(request: Request, form: Given[SignIn], logins: Logins, db_session: Db) -> Response[Any]:
    """Check a password; a new login each time."""
    address = request.client.host if request.client else ""
    cookie = await logins.sign_in(form.name, form.password, address, db_session)
    return _signed_in(request, cookie, local(form.next))


@post("/logout", status_code=200, dependencies={"form": reads(Nothing)}, opt={"answers": None})
async def sign_out(request: Request, form: Given[Nothing], logins: Logins, db_session: Db) -> Response[Any]:
    """End this browser's login."""
    await logins.sign_out(cookie_of(request, LOGIN_COOKIE), db_session)
    return _signed_in(request, "", "/")


@get("/setup/{secret:str}", opt={"answers": None})
async def show_setup(request: Request, secret: FromPath[str], logins: Logins, db_session: Db) -> Response[Any]:
    """The form of the one-time link that makes its visitor the admin."""
    await logins.check_setup_link(secret, db_session)
    return html(render("setup.html", secret=secret, actor=None, guests=logins.guests, request=request))


@post("/setup/{secret:str}", status_code=200, dependencies={"form": reads(SetUp)}, opt={"answers": None})
async def set_up(
    request: Request, secret: FromPath[str], form: Given[SetUp], logins: Logins, db_session: Db
) -> Response[Any]:
    """Make the first admin and sign in."""
    cookie = await logins.set_up(secret, form.name, form.password, db_session)
    return _signed_in(request, cookie, "/admin")


def local(next: str) -> str:
    """A path of ours to go on to; anything else is the home page."""
    safe = next.startswith("/") and not next.startswith(("//", "/\\")) and next.isprintable() and "\\" not in next
    return next if safe else "/"


def _signed_in(request: Request, cookie: str, location: str) -> Response[Any]:
    return redirect(location, [login_cookie(request, cookie)])

"""Cookie or token → Actor, and what a token's scopes let it do."""

from ipaddress import ip_address

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.datastructures import Cookie

from services.accounts import LOGIN, Accounts, Credentials
from services.actor import Actor
from services.errors import Forbidden, Unauthenticated
from web.given import Db, Who
from web.side import has_side, side_of

LOGIN_COOKIE = "tk_login"
GUEST_COOKIE = "tk_guest"
#: by which a browser that has signed in before is known when it signs in again
DEVICE_COOKIE = "tk_device"
#: how long it is, from the last sign-in on
DEVICE_SECONDS = 180 * 86400
#: how browsers and systems are told apart; the first that is found
BROWSERS = {"Firefox/": "Firefox", "Edg/": "Edge", "OPR/": "Opera", "Chrome/": "Chrome", "Safari/": "Safari"}
SYSTEMS = {
    "Android": "Android",
    "iPhone": "iPhone",
    "iPad": "iPad",
    "Windows": "Windows",
    "Mac OS X": "macOS",
    "CrOS": "ChromeOS",
    "Linux": "Linux",
}


async def provide_actor(request: Request, db_session: Db) -> Actor:
    """Who asks; a page gets the chats at its side too. Raises Unauthenticated, Forbidden."""
    accounts: Accounts = request.app.state.accounts
    request.state.credentials = _credentials(request, accounts)
    actor = await accounts.authenticate(request.state.credentials, db_session)
    request.state.actor = actor
    if has_side(request):
        request.state.side = await side_of(request, request.app.state.sessions, db_session, actor)
    if actor.scopes is None:
        return actor
    if request.method not in ("GET", "HEAD"):
        async with accounts.units.refusing(request.route_handler.handler_name, actor, db_session):
            _require_scope("chat", actor)
    else:
        _require_scope("read", actor)
    return actor


def _require_scope(scope: str, actor: Actor) -> None:
    if actor.scopes is not None and scope not in actor.scopes:
        raise Forbidden(f"This token lacks the scope “{scope}”.")


def provide_proof(request: Request, actor: Who) -> Credentials:
    """What the actor has proved to be itself with: an open stream is asked for it again and again."""
    found: Credentials = request.state.credentials
    return found


def on_this_machine(request: Request) -> bool:
    """Whether a request was made here, and not by a proxy for somebody else."""
    forwarded = {"forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip"} & set(request.headers)
    try:
        return not forwarded and ip_address(_address(request)).is_loopback
    except ValueError:
        return False


def nobody(request: Request) -> Actor:
    """Who asks before proving anything."""
    accounts: Accounts = request.app.state.accounts
    return accounts.nobody(_address(request), request.state.get("request_id", ""))


def browser_of(request: Request) -> str:
    """What a browser calls itself, in a word or two: "Firefox on Linux"."""
    agent = request.headers.get("user-agent", "")
    name = next((name for mark, name in BROWSERS.items() if mark in agent), "A browser")
    system = next((name for mark, name in SYSTEMS.items() if mark in agent), "")
    return f"{name} on {system}" if system else name


def login_cookie(request: Request, value: str) -> Cookie:
    """The cookie of a login; empty to end it."""
    return _kept(request, LOGIN_COOKIE, value, int(LOGIN.total_seconds()) if value else 0)


def device_cookie(request: Request, value: str) -> Cookie:
    """The cookie of a browser that has signed in; signing out leaves it."""
    return _kept(request, DEVICE_COOKIE, value, DEVICE_SECONDS)


def _kept(request: Request, name: str, value: str, seconds: int) -> Cookie:
    """A cookie that proves something."""
    secure = request.url.scheme == "https"
    return Cookie(
        key=_name(name, secure),
        value=value,
        max_age=seconds,
        path="/",
        httponly=True,
        samesite="lax",
        secure=secure,
    )


def cookie_of(request: Request | ASGIConnection, name: str) -> str:
    return request.cookies.get(_name(name, request.url.scheme == "https"), "")


def _name(name: str, secure: bool) -> str:
    """Bound to this host where the browser can prove it (RFC 6265bis §4.1.3)."""
    return f"__Host-{name}" if secure else name


def _credentials(request: Request, accounts: Accounts) -> Credentials:
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    if kind and kind.lower() != "bearer":
        raise Unauthenticated("Only bearer tokens are accepted here.")
    guest = cookie_of(request, GUEST_COOKIE)
    if accounts.guests and not kind and accounts.guest_of(guest) is None:
        guest = accounts.new_guest_cookie()
        request.state.guest_cookie = guest
    return Credentials(
        bearer=token.strip() if kind else None,
        login_cookie=cookie_of(request, LOGIN_COOKIE),
        guest_cookie=guest,
        address=_address(request),
        request_id=request.state.get("request_id", ""),
    )


def _address(request: Request) -> str:
    return request.client.host if request.client else ""

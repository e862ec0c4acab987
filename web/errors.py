"""The one table refusal → status, and how a refusal looks: problem+json, a fragment, or the page the form stood on."""

import logging
from typing import Any
from uuid import UUID

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException

from db.db_session import DatabaseUnavailable
from services import errors
from services.errors import LimitReached, Refusal, StorageUnavailable
from services.outages import tell
from web.answer import html, json, rate_headers, wants
from web.bodies import BodyRefused
from web.completions import OpenError, refusal_headers
from web.late import Late
from web.refusal import Refused, form_of, page_of
from web.templating import render

log = logging.getLogger(__name__)

PROBLEM = "application/problem+json"

STATUS: dict[type[Refusal], int] = {
    errors.InvalidRequest: 400,
    errors.Unauthenticated: 401,
    errors.PasswordChangeRequired: 403,
    errors.NotFound: 404,
    errors.SessionExpired: 410,
    errors.SessionClosed: 410,
    errors.Forbidden: 403,
    errors.ModelLocked: 403,
    errors.UnknownModel: 422,
    errors.ModelDisabled: 422,
    errors.ModelRetired: 422,
    errors.NoModelAvailable: 503,
    errors.ModelUnavailable: 503,
    errors.VersionConflict: 409,
    errors.SessionBusy: 409,
    errors.IdempotencyKeyReused: 422,
    errors.SessionQuota: 409,
    errors.RateLimited: 429,
    errors.ConcurrencyLimited: 429,
    errors.BudgetExhausted: 429,
    errors.OverBudget: 422,
    errors.PromptTooLong: 413,
    errors.ContextOverflow: 422,
    errors.TooManyStreams: 503,
    errors.StorageUnavailable: 503,
}

#: the title of a code that says more than its status; the others have that of the status
TITLE_OF = {"budget_exhausted": "Not enough left in your budget"}
TITLES = {
    400: "That request cannot be read",
    401: "Please sign in",
    403: "Not allowed",
    404: "Not found",
    405: "Not possible here",
    409: "Not at the moment",
    410: "This session has ended",
    413: "Too long",
    414: "Too long",
    421: "Unknown host",
    422: "Not possible",
    429: "Please wait a moment",
    500: "Something went wrong here",
    503: "Not available at the moment",
}


def refused(request: Request, refusal: Refusal) -> Response[Any]:
    """A refusal in the form the request prefers."""
    headers = {}
    if isinstance(refusal, StorageUnavailable):
        tell(log, f"request {request.state.get('request_id', '')} was refused", refusal)
    if isinstance(refusal, LimitReached):
        headers = rate_headers(refusal.allowance, refusal.at)
    if wait := getattr(refusal, "retry_after_seconds", None):
        headers["Retry-After"] = str(wait)
    return _told(request, STATUS[type(refusal)], refusal.code, str(refusal), headers, refusal.facts, refusal.session_id)


def unavailable(request: Request, error: DatabaseUnavailable) -> Response[Any]:
    """The database failed outside a verb: the same refusal."""
    refusal = StorageUnavailable(error.told)
    refusal.__cause__ = error
    return refused(request, refusal)


def http_error(request: Request, error: HTTPException) -> Response[Any]:
    """Litestar's own refusals: no such URL, wrong method, too large, malformed."""
    status = error.status_code if error.status_code < 500 else 500
    codes = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 400: "invalid_request"}
    text = {404: "There is nothing here.", 405: "This URL does not take that method.", 413: "The body is too large."}
    return _told(
        request,
        status,
        codes.get(status, "internal" if status >= 500 else "invalid_request"),
        text.get(status, "The request is malformed." if status < 500 else "The log says more."),
        dict(error.headers or {}),
        {},
    )


def body_refused(request: Request, error: BodyRefused) -> Response[Any]:
    """A body that is too large, or has too many fields, where it is read."""
    return _told(request, error.status_code, error.code, error.told, dict(error.headers or {}), {})


def malformed(request: Request, _: Exception) -> Response[Any]:
    """Bad encoding or nesting, wherever it shows."""
    return refused(request, errors.InvalidRequest())


def unexpected(request: Request, error: Exception) -> Response[Any]:
    """A bug: logged whole, told as little."""
    log.error("request %s failed", request.state.get("request_id", ""), exc_info=error)
    return _told(request, 500, "internal", "The log says more.", {}, {})


HANDLERS: dict[Any, Any] = {
    Refusal: refused,
    DatabaseUnavailable: unavailable,
    BodyRefused: body_refused,
    HTTPException: http_error,
    UnicodeDecodeError: malformed,
    RecursionError: malformed,
    msgspec.MsgspecError: malformed,
    Exception: unexpected,
}


def _told(
    request: Request,
    status: int,
    code: str,
    detail: str,
    headers: dict[str, str],
    facts: dict[str, Any],
    session_id: UUID | None = None,
) -> Response[Any]:
    problem = {
        "type": f"urn:turnkeeper:{code}",
        "title": TITLE_OF.get(code) or TITLES.get(status, "Refused"),
        "status": status,
        "code": code,
        "detail": detail,
        **facts,
        "request_id": request.state.get("request_id", ""),
    }
    request.app.state.counts.refusals[code] += 1
    response: Response[Any]
    form = "openai" if request.url.path.startswith("/v1/") else wants(request)
    match form:
        case "openai":
            response = json(OpenError.of(status, code, detail, facts.get("field")), status)
            headers = refusal_headers(status, code, headers)
        case "fragment" if at := _password_field(request, problem):
            response = html(render("account/wrong.html", problem=problem, at=at), status)
        case "fragment":
            response = html(render("refusal/refused.html", refused=_refused(request, problem, session_id)), status)
        case "page":
            response = _page(request, problem, session_id)
        case _:
            response = json(problem, status, PROBLEM)
    response.headers.update(headers)
    if status == 401 and form != "page":
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _page(request: Request, problem: dict[str, Any], session_id: UUID | None) -> Response[Any]:
    """The page that the form stood on with the refusal in it, else one that says why; or the form to sign in."""
    actor, refused = request.state.get("actor"), _refused(request, problem, session_id)
    context = {"request": request, "actor": actor, "guests": request.app.state.accounts.guests}
    path, status = request.url.path, problem["status"]
    if problem["code"] == "password_change_required" or path == "/login/password":
        asks = {"username": problem.get("name", ""), "ticket": problem.get("ticket") or refused.typed.get("ticket", "")}
        page = render("password.html", next=refused.typed.get("next") or "/", problem=problem, **asks, **context)
        return html(page, status)
    if path == "/login" or (status == 401 and not refused.text):
        onward = refused.typed.get("next") or ("/" if path.startswith(("/login", "/setup")) else path)
        name = refused.typed.get("name", "")
        return html(render("login.html", next=onward, typed_name=name, problem=problem, **context), status)

    async def make() -> str:
        page = await page_of(request, refused) if request.method == "POST" else None
        return page or render("refusal.html", refused=refused, **context)

    return Late(make, status)


def _refused(request: Request, problem: dict[str, Any], session_id: UUID | None) -> Refused:
    """A refusal as templates see it."""
    typed = request.state.get("typed") or {}
    path = request.url.path
    asked_in = session_id or typed.get("session_id") or request.path_params.get("session_id")
    action = path if request.method == "POST" else ""
    return Refused(problem, action, typed, _signed_out(request, problem), asked_in, form_of(request))


def _password_field(request: Request, problem: dict[str, Any]) -> str:
    """The field of the form to change a password that is wrong; empty where it is another form, or none is."""
    field = problem.get("field", "")
    return str(field) if request.url.path == "/account/password" and field in ("old", "new") else ""


def _signed_out(request: Request, problem: dict[str, Any]) -> bool:
    """Whether signing in might help: a login may have ended while its page stayed open."""
    actor = request.state.get("actor")
    mine = problem["code"] == "session_not_found" and (actor is None or actor.kind == "guest")
    return mine or problem["status"] == 401

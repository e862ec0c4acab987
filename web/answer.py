"""Fragment, page, redirect or JSON: one place decides which form an answer takes."""

import asyncio
import string
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import msgspec
from litestar import Request, Response
from litestar.background_tasks import BackgroundTask
from litestar.datastructures import Cookie
from litestar.response import Stream

from services.policies import REQUESTS, Allowance
from web.changed import said_before
from web.forms import is_json
from web.templating import render

Form = Literal["json", "stream", "fragment", "page"]
JSON = "application/json"
HTML = "text/html"
TEXT = "text/plain"
STREAM = "text/event-stream"
#: of an Accept header that are looked at, several times for each request
ACCEPT_CHARACTERS = 1_000
#: of an address in a header; a longer one is no page of ours
ADDRESS_CHARACTERS = 2_000
#: of a page that are compressed and sent at once; it takes a few milliseconds
PART_BYTES = 256 * 1024
#: of two that are wanted alike the first is given
FORMS: dict[str, Form] = {HTML: "page", JSON: "json", STREAM: "stream"}


def wants(request: Request) -> Form:
    """The form of answer a request prefers: its Accept header, else what it brought."""
    if request.headers.get("hx-request") == "true":
        return "fragment"
    weights = _weights(request.headers.get("accept", "*/*"))
    weight = {kind: weights.get(kind, weights.get(f"{kind.split('/')[0]}/*", 0.0)) for kind in FORMS}
    best = max(weight, key=weight.__getitem__)
    if weight[best] > 0:
        return FORMS[best]
    if "*/*" in weights and not (is_json(request) or "authorization" in request.headers):
        return "page"
    return "json"


def page_named(request: Request, header: str) -> str:
    """The path and query of the page of this server whose address is in a header; empty where there is no such page."""
    try:
        address = urlsplit(request.headers.get(header, "")[:ADDRESS_CHARACTERS])
    except ValueError:
        return ""
    return f"{address.path}?{address.query}" if address.netloc == request.headers.get("host") else ""


def page(request: Request, template: str, view: object, status: int = 200, **context: Any) -> Response[Any]:
    """What a GET answers: the page to people, the view to scripts. `context` is what only the page needs."""
    if wants(request) in ("json", "stream"):
        return json(view, status)
    return html(render(template, view=view, request=request, **_chrome(request), **context), status)


def answer(
    request: Request,
    fragment: str | None,
    view: msgspec.Struct | None,
    *,
    location: str,
    status: int = 200,
    allowance: Sequence[Allowance] = (),
    cookies: list[Cookie] | None = None,
    **context: Any,
) -> Response[Any]:
    """What a verb answers: JSON to scripts, what changed on screen to htmx, a redirect to a plain form.

    Without `fragment` the screen becomes another page; without `view` there is nothing to tell a script.
    """
    response: Response[Any]
    match wants(request):
        case "json" | "stream":
            response = json(view, status) if view is not None else Response(None, status_code=204)
        case "fragment" if fragment is not None:
            response = html(render(fragment, view=view, request=request, **_chrome(request), **context))
        case "fragment":
            response = Response(b"", status_code=200, headers={"HX-Redirect": location}, media_type=TEXT)
        case _:
            response = redirect(location)
    response.headers.update(rate_headers(allowance))
    response.cookies.extend(cookies or [])
    return response


def json(view: object, status: int = 200, media_type: str = JSON) -> Response[bytes]:
    return Response(msgspec.json.encode(view), status_code=status, media_type=media_type)


def html(text: str, status: int = 200) -> Response[Any]:
    body = text.encode()
    if len(body) <= PART_BYTES or status != 200:
        return Response(body, status_code=status, media_type=HTML)
    return sent(_parts(body), HTML, {})


async def _parts(body: bytes) -> AsyncGenerator[bytes, None]:
    """A long page in parts: compressed as a whole it would keep others waiting."""
    for start in range(0, len(body), PART_BYTES):
        yield body[start : start + PART_BYTES]


def download(parts: AsyncGenerator[bytes, None], media_type: str, name: str, **headers: str) -> Stream:
    """A file to keep, sent as it is made."""
    headers["Content-Disposition"] = f'attachment; filename="turnkeeper-{name}"'
    return sent(parts, media_type, headers)


def sent(parts: AsyncGenerator[bytes, None], media_type: str, headers: dict[str, str]) -> Stream:
    """An answer that is sent as it is made."""
    paced = _paced(parts)
    return Stream(
        paced, status_code=200, media_type=media_type, headers=headers, background=BackgroundTask(_closed, paced)
    )


async def _paced(parts: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(parts):
        async for part in parts:
            yield part
            # What is there already comes without a wait: here others get their turn, and a reader that went is noticed.
            await asyncio.sleep(0)


async def _closed(parts: AsyncGenerator[bytes, None]) -> None:
    """A reader that goes away while a part is sent leaves the others unmade: what they hold is given up now."""
    await parts.aclose()


def redirect(location: str, cookies: list[Cookie] | None = None) -> Response[bytes]:
    """See other: what a plain form is answered with. Of the location only what no URL holds is written otherwise."""
    where = quote(location, safe=string.punctuation)
    return Response(b"", status_code=303, headers={"Location": where}, media_type=TEXT, cookies=cookies)


def rate_headers(allowance: Sequence[Allowance], at: datetime | None = None) -> dict[str, str]:
    """RateLimit and RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers-10) of the limits that applied, in order."""
    if not allowance:
        return {}
    at, policies, states = at or datetime.now(UTC), [], []
    for one in allowance:
        policy, state = f'"{one.name}";q={one.units.size}', f'"{one.name}";r={one.units.remaining}'
        if one.unit != REQUESTS:
            policy += f';qu="{one.unit}"'
        if one.window_seconds:
            policy += f";w={one.window_seconds}"
        if one.resets_at is not None:
            state += f";t={one.retry_after_seconds(at)}"
        policies.append(policy)
        states.append(state)
    return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(states)}


def _chrome(request: Request) -> dict[str, Any]:
    """What every template may use besides its view."""
    return {
        "actor": request.state.get("actor"),
        "guests": request.app.state.accounts.guests,
        "admins_read": request.app.state.accounts.admins_read,
        "zone": zone_of(request.cookies.get("tz", "")),
        "refused": request.state.get("refused"),
        "changed": request.state.get("changed") or said_before(request.query_params.get("done", "")),
    }


def zone_of(minutes: str) -> timezone:
    """The time zone that the cookie `tz` names: minutes that UTC is ahead, as page.js tells them; else UTC."""
    known = minutes.removeprefix("-")
    if not (known.isascii() and known.isdigit() and len(known) < 4):
        return UTC
    return timezone(timedelta(minutes=-int(minutes)))


def _weights(accept: str) -> dict[str, float]:
    """{media type: weight} of an Accept header (RFC 9110 §12.5.1)."""
    weights = {}
    for part in accept[:ACCEPT_CHARACTERS].split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = float(parameter[2:])
                except ValueError:
                    weight = 0.0
        if kind:
            weights[kind] = weight
    return weights

"""What holds for every request before any handler: host, same origin, body size; and for every answer: headers."""

import re
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import msgspec
from litestar.datastructures import Cookie
from litestar.enums import HttpMethod, ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from services.counts import Counts
from web.actor import GUEST_COOKIE
from web.bodies import FIELDS, Bodies, Body
from web.cookies import only_ours
from web.logs import REQUEST_ID, log_access

#: a prompt of the longest kind, percent-encoded in a form, and some more
BODY_BYTES = 1_500_000
#: a file of sessions
FILE_BYTES = 20_000_000
#: {path: its own cap}
CAPS = {"/session/import": FILE_BYTES}
PATH_CHARACTERS = 1000
FORM = "application/x-www-form-urlencoded"
MOST_PORT = 65_535
SAFE = ("GET", "HEAD", "OPTIONS")
#: what decides who asks, from where and for what: of two of a kind, we and a proxy might each believe another one
ONCE = (b"host", b"authorization", b"origin", b"sec-fetch-site", b"idempotency-key", b"content-type", b"last-event-id")
CSP = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "font-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "manifest-src 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = [
    (b"content-security-policy", CSP.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=()"),
]


class Guard:
    """ASGI middleware around everything else."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str], counts: Counts) -> None:
        self.app = app
        self.counts = counts
        self.hosts = frozenset(hosts)
        self.bodies = Bodies()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        scope["headers"] = only_ours(scope["headers"])
        request_id = uuid4().hex[:16]
        scope.setdefault("state", {})["request_id"] = request_id
        REQUEST_ID.set(request_id)
        began, answer = time.monotonic(), _Answer(send, self.counts)
        send = answer.send
        refused = self._refusal(scope, headers)
        if refused is not None:
            self.counts.refusals[refused[1]] += 1
            await _refuse(send, *refused, request_id)
            log_access(scope["method"], None, answer.status, time.monotonic() - began)
            return
        method = scope["method"]
        if method == "HEAD" and not scope["path"].endswith("/events"):
            # A copy: the server below still has to know that no body follows.
            scope = {**scope, "method": HttpMethod.GET}
            send = _headers_only(send)
        form = headers.get("content-type", "").partition(";")[0].strip().lower() == FORM
        body = Body(self.bodies, _cap(scope), form)
        try:
            await self.app(scope, body.reading(receive), body.answering(_dressed(send, scope)))
        finally:
            self.bodies.release(body)
            log_access(method, scope, answer.status, time.monotonic() - began)

    def _refusal(self, scope: HTTPScope, headers: dict[str, str]) -> tuple[int, str, str] | None:
        names = [name.lower() for name, _ in scope["headers"]]
        doubled = any(names.count(name) > 1 for name in ONCE)
        if "host" not in headers or doubled or "\0" in scope["path"] or len(scope["path"]) > PATH_CHARACTERS:
            return 400, "invalid_request", "The request is malformed."
        if scope["query_string"].count(b"&") >= FIELDS:
            return 414, "uri_too_long", f"A query has at most {FIELDS:,} fields."
        if _host_name(headers["host"]) not in self.hosts:
            return 421, "unknown_host", "This server does not answer to that name; see allowed_hosts."
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > (cap := _cap(scope)):
            return 413, "too_large", f"A body has at most {cap:,} bytes here."
        # A browser never adds a bearer token by itself, so such a request needs no other proof.
        if scope["method"] in SAFE or headers.get("authorization", "").lower().startswith("bearer "):
            return None
        if not _same_origin(headers):
            return 403, "forbidden", "This request came from another site."
        return None


def _host_name(host: str) -> str:
    """The name of a Host header without its port."""
    found = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([^:\[\]@/\\\s]+))(?::(\d{1,5}))?", host.lower())
    return (found[1] or found[2]) if found and int(found[3] or 0) <= MOST_PORT else ""


def _same_origin(headers: dict[str, str]) -> bool:
    """Whether a state change comes from a page of ours, or from no browser at all."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    try:
        return origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
    except ValueError:
        return False


def _cap(scope: HTTPScope) -> int:
    """How large a body may be."""
    return CAPS.get(scope["path"], BODY_BYTES)


class _Answer:
    """What is answered: its status, counted."""

    def __init__(self, send: Send, counts: Counts) -> None:
        self._send, self._counts = send, counts
        #: 0 before it has begun
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._counts.answers[self.status] += 1
        await self._send(message)


def _headers_only(send: Send) -> Send:
    """What a GET would answer, without its body (RFC 9110 §9.3.2)."""

    async def headers_only(message: Message) -> None:
        if message["type"] == "http.response.body":
            if message.get("more_body"):
                return
            message["body"] = b""
        await send(message)

    return headers_only


def _dressed(send: Send, scope: Scope) -> Send:
    async def dressed(message: Message) -> None:
        if message["type"] == "http.response.start":
            state: dict[str, Any] = scope["state"]
            headers = [*message.get("headers", []), *HEADERS, (b"x-request-id", state["request_id"].encode())]
            if not any(name == b"cache-control" for name, _ in headers):
                headers.append((b"cache-control", b"no-store"))
            if (guest := state.get("guest_cookie")) is not None:
                secure = scope["scheme"] == "https"
                cookie = Cookie(
                    key=f"__Host-{GUEST_COOKIE}" if secure else GUEST_COOKIE,
                    value=guest,
                    path="/",
                    httponly=True,
                    samesite="lax",
                    secure=secure,
                    max_age=30 * 86400,
                )
                headers.append((b"set-cookie", cookie.to_header(header="").encode()))
            message["headers"] = headers
        await send(message)

    return dressed


async def _refuse(send: Send, status: int, code: str, detail: str, request_id: str) -> None:
    headers, body = refusal(status, code, detail, request_id)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def refusal(status: int, code: str, detail: str, request_id: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """The headers and the body of a refusal that no page asked for."""
    problem = {"type": f"urn:turnkeeper:{code}", "title": "Refused", "status": status, "code": code, "detail": detail}
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"cache-control", b"no-store"),
        (b"x-request-id", request_id.encode()),
        *HEADERS,
    ]
    return headers, msgspec.json.encode(problem | {"request_id": request_id})

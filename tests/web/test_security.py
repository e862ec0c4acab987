"""What holds against whom: headers, hosts, origins, bodies, tokens, cookies, passwords, and what must never leak."""

import json
import re
import socket
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import product
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from tests.web.people import PASSWORD
from tests.web.running import Server, a_server
from tests.web.wire import (
    ABSENT,
    BROWSER,
    HTMX,
    JSON,
    SENT_AWAY_SECONDS,
    STREAM,
    begin,
    chat,
    create,
    is_page,
    problem,
    session_of,
    streaming,
    within,
)
from web.routes.login import local

FORM = {"Accept": BROWSER}

# ---------------------------------------------------------------- headers


def assert_dressed(answer: httpx.Response) -> None:
    """What every answer carries (SECURITY.md C 21)."""
    policy = {part.split()[0]: part.split()[1:] for part in answer.headers["content-security-policy"].split("; ")}
    assert policy["default-src"] == ["'none'"]
    assert policy["base-uri"] == policy["frame-ancestors"] == ["'none'"]
    assert policy["form-action"] == ["'self'"]
    for sources in policy.values():
        assert sources in (["'none'"], ["'self'"]), "nothing unsafe, nobody else"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] in ("same-origin", "no-referrer")
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert "camera=()" in answer.headers["permissions-policy"]
    assert "server" not in answer.headers
    assert "access-control-allow-origin" not in answer.headers
    assert re.fullmatch(r"\w{16,}", answer.headers["x-request-id"])
    assert len(answer.headers.get_list("content-security-policy")) == 1


def test_every_answer_carries_the_headers(server: Server, guest: httpx.Client, ann: httpx.Client) -> None:
    session = create(guest)
    turn = chat(guest, "hello", session_id=session["id"])
    answers = [
        *(guest.get(path, headers={"Accept": accept}) for accept in (JSON, BROWSER) for path in (
            "/", "/session", f"/session/{session['id']}", f"/session/{session['id']}/turns", "/models", "/limits",
            f"/session/{session['id']}/journal", f"/chat/{turn['id']}", "/login", "/healthz", "/readyz",
            "/openapi.json", "/nothing", f"/session/{ABSENT}", "/admin", "/setup/x", "/static/none.js",
        )),
        *(guest.get(path) for path in ("/static/icon.svg", "/static/js/page.js", "/static/vendor/htmx.js")),
        guest.post("/session/create", json={}),
        guest.post("/session/create", json={}, headers=FORM),
        guest.post("/session/create", json={}, headers=HTMX),
        guest.post("/chat", json={"prompt": ""}),
        guest.post("/chat", json={"prompt": "x"}, headers={"Origin": "http://evil.example"}),
        guest.post("/chat", content=b"x" * 2_000_000),
        guest.put("/chat"),
        guest.options("/chat"),
        guest.head("/"),
        guest.get("/", headers={"Host": "evil.example"}),
        guest.post(f"/session/{session['id']}/delete", json={}),
        ann.get("/session", headers={"Authorization": "Bearer wrong"}),
    ]  # fmt: skip
    assert {answer.status_code for answer in answers} >= {200, 201, 204, 303, 400, 401, 403, 404, 405, 413, 421}
    for answer in answers:
        assert_dressed(answer)
        if "/static/" not in str(answer.url) or answer.status_code != 200:
            assert "no-store" in answer.headers["cache-control"], answer.url


def test_the_id_of_a_request_is_ours(guest: httpx.Client) -> None:
    chosen = {"X-Request-Id": "chosen-by-the-client"}
    ids = [guest.get("/models", headers=chosen).headers["x-request-id"] for _ in range(3)]
    assert len(set(ids)) == 3
    assert "chosen-by-the-client" not in ids


def test_streams_carry_the_headers(guest: httpx.Client) -> None:
    turn = chat(guest, "hello")
    for url in (f"/chat/{turn['id']}/events", f"/session/{turn['session_id']}/events"):
        with streaming(guest, url) as stream:
            assert_dressed(stream.response)
            assert "no-store" in stream.response.headers["cache-control"]


def test_static_files_may_be_kept_for_ever_and_are_named_by_their_content(visitor: httpx.Client) -> None:
    page = visitor.get("/").text
    links = re.findall(r'(?:href|src)="(/static/[^"]+)"', page)
    assert len(links) > 3
    for link in links:
        assert re.search(r"\?v=[0-9a-f]{12}$", link), link
        answer = visitor.get(link)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
        assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "path",
    [
        "/static/../web/settings.py", "/static/%2e%2e/web/settings.py", "/static/..%2fturnkeeper.py",
        "/static//etc/passwd", "/static/%2fetc%2fpasswd", "/static/css", "/static/", "/static/..\\turnkeeper.py",
        "/static/vendor/../../pyproject.toml", "/static/%00", "/static/icon.svg%00.js", "/static/" + "a" * 5000,
    ],
)  # fmt: skip
def test_nothing_but_static_files_is_served_from_static(server: Server, path: str) -> None:
    """Sent as it stands: a client would tidy the path up."""
    status, _, body = raw(server, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    assert status in (400, 404), body
    assert b"SettingsError" not in body and b"root:" not in body


def test_pages_have_nothing_inline(guest: httpx.Client) -> None:
    turn = chat(guest, "hello")
    for path in ("/", "/session", f"/session/{turn['session_id']}", f"/chat/{turn['id']}", "/models", "/limits",
                 "/login", "/nothing"):  # fmt: skip
        page = guest.get(path, headers=FORM).text
        assert not re.search(r"<script(?![^>]*\bsrc=)", page), path
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", page), path
        assert not re.search(r'(?:src|href|action)="(?:https?:)?//', page), path


# ---------------------------------------------------------------- hosts


def raw(server: Server, request: bytes, seconds: float = 60) -> tuple[int, dict[str, str], bytes]:
    """What the server answers to these very bytes; status 0 where it hangs up."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        answer = b""
        with suppress(OSError):
            connection.sendall(request)
        with suppress(OSError):
            while piece := connection.recv(65536):
                answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head:
        return 0, {}, b""
    line, *lines = head.decode("latin-1").split("\r\n")
    return (
        int(line.split()[1]),
        {name.lower(): value for name, _, value in (one.partition(": ") for one in lines)},
        body,
    )


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:PORT", "127.0.0.1:1", "localhost", "localhost:PORT", "LocalHost", "[::1]", "[::1]:8000"],
)
def test_a_host_of_ours_is_answered(server: Server, guest: httpx.Client, host: str) -> None:
    assert guest.get("/healthz", headers={"Host": host.replace("PORT", str(server.port))}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "127.0.0.1.nip.io",
        "evil.example:127.0.0.1", "evil.example@127.0.0.1", "127.0.0.1@evil.example", "127.0.0.1:80@evil.example",
        "0.0.0.0", "127.0.0.2", "127.1", "2130706433", "0x7f.1", "[::]", "[::ffff:127.0.0.1]", "[::1", "::1",
        "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:123456", "127.0.0.1:65536", "127.0.0.1/", "localhost ",
        "localhost\\evil", "", "-", ".", "localhost,evil.example", "localhost:80:80",
    ],
)  # fmt: skip
@pytest.mark.parametrize("target", ["/healthz", "/nothing"])
def test_a_host_of_nobody_is_refused(server: Server, host: str, target: str) -> None:
    status, _, body = raw(server, f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert status in (400, 421), (host, status, body)


@pytest.mark.parametrize("protocol", ["websocket", "h2c", "x"])
def test_an_upgrade_is_not_taken_and_what_is_asked_is_asked_as_ever(server: Server, protocol: str) -> None:
    """RFC 9110 §7.8. Java's own client offers one each time; nobody is told of it in the log."""
    before = len(server.output)
    for host, answer in (("127.0.0.1", 200), ("evil.example", 421)):
        offer = f"Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: {protocol}\r\nSec-WebSocket-Version: 13\r\n"
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
        status, _, _ = raw(server, f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n{offer}{key}\r\n".encode())
        assert status == answer
    assert "pgrade" not in server.output[before:]


def test_no_host_at_all_is_refused(server: Server) -> None:
    for version in ("1.0", "1.1"):
        status, _, _ = raw(server, f"GET /healthz HTTP/{version}\r\nConnection: close\r\n\r\n".encode())
        assert status in (400, 421)


@pytest.mark.parametrize("hosts", [("127.0.0.1", "evil.example"), ("evil.example", "127.0.0.1")])
def test_two_hosts_are_refused(server: Server, hosts: tuple[str, str]) -> None:
    """RFC 9112 §3.2: more than one Host is a 400, whichever comes last."""
    lines = "".join(f"Host: {host}\r\n" for host in hosts)
    status, _, _ = raw(server, f"GET /healthz HTTP/1.1\r\n{lines}Connection: close\r\n\r\n".encode())
    assert status in (400, 421)


@pytest.mark.parametrize(
    "lines",
    [
        "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Site: same-origin",
        "Origin: http://evil.example\r\nOrigin: OURS",
        "Authorization: Bearer wrong\r\nAuthorization: TOKEN",
        "Authorization: TOKEN\r\nAuthorization: TOKEN",
        "Idempotency-Key: a\r\nIdempotency-Key: b",
        "content-type: text/plain\r\nContent-Type: application/json",
    ],
)
def test_what_decides_who_asks_and_from_where_is_said_once(server: Server, ann_token: str, lines: str) -> None:
    """Of two, a proxy and we might each believe another one."""
    lines = lines.replace("OURS", server.url).replace("TOKEN", f"Bearer {ann_token}")
    start = "POST /session/create HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n"
    status, _, body = raw(server, f"{start}{lines}\r\n\r\n".encode())
    assert status == 400, body


# ---------------------------------------------------------------- same origin


SITES = (None, "same-origin", "none", "same-site", "cross-site", "", "SAME-ORIGIN")
ORIGINS = (None, "OURS", "http://evil.example", "null", "http://127.0.0.1", "http://[", "", "OURS.evil.example")


def origin_is_ours(site: str | None, origin: str | None) -> bool:
    """SECURITY.md: `Sec-Fetch-Site` where a browser sends it, else `Origin`; neither is no browser."""
    if site is not None:
        return site in ("same-origin", "none")
    return origin in (None, "OURS")


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("origin", ORIGINS)
def test_a_change_by_cookie_comes_from_a_page_of_ours(
    server: Server, guest: httpx.Client, site: str | None, origin: str | None
) -> None:
    session = create(guest, title="as it was")
    headers = {} if site is None else {"Sec-Fetch-Site": site}
    if origin is not None:
        headers["Origin"] = origin.replace("OURS", server.url)
    url = f"/session/{session['id']}/rename"
    for kind in ("json", "data", "plain"):
        body = {"content": b'{"title": "changed"}'} if kind == "plain" else {kind: {"title": "changed"}}
        answer = guest.post(url, headers=headers | ({"Content-Type": "text/plain"} if kind == "plain" else {}), **body)
        if origin_is_ours(site, origin):
            assert answer.status_code in ((200,) if kind != "plain" else (400,)), answer.text
        else:
            problem(answer, 403, "forbidden")
    if not origin_is_ours(site, origin):
        assert session_of(guest, session["id"])["title"] == "as it was"


def test_a_bearer_needs_no_such_proof(ann: httpx.Client) -> None:
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        assert ann.post("/session/create", json={}, headers=headers).status_code == 201


@pytest.mark.parametrize("authorization", ["", "Basic YTpi", "bearer", "Token x", "Bearer \x85", "Bearer wrong"])
def test_a_header_that_is_no_token_is_no_proof(guest: httpx.Client, authorization: str) -> None:
    session = create(guest, title="as it was")
    headers = [
        ("Authorization", authorization.encode("latin-1")),
        ("Origin", b"http://evil.example"),
        ("Sec-Fetch-Site", b"cross-site"),
    ]
    answer = guest.post(f"/session/{session['id']}/rename", json={"title": "changed"}, headers=headers)
    assert answer.status_code in (401, 403)
    assert session_of(guest, session["id"])["title"] == "as it was"


@pytest.mark.parametrize(("method", "site"), list(product(("GET", "HEAD", "OPTIONS"), ("cross-site", "same-site"))))
def test_reading_is_open_to_links_from_elsewhere(guest: httpx.Client, method: str, site: str) -> None:
    answer = guest.request(method, "/models", headers={"Sec-Fetch-Site": site, "Origin": "http://evil.example"})
    assert answer.status_code in (200, 204)
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_every_post_of_the_site_map_is_guarded(guest: httpx.Client) -> None:
    from web.routes import ROUTES

    walked = 0
    for handler in ROUTES:
        for path in handler.paths if "POST" in handler.http_methods else ():
            url = re.sub(r"{\w+:uuid}", ABSENT, path).replace("{secret:str}", "x")
            problem(guest.post(url, json={}, headers={"Sec-Fetch-Site": "cross-site"}), 403, "forbidden")
            walked += 1
    assert walked > 10


# ---------------------------------------------------------------- bodies

#: bodies nobody should send, with their content type
BODIES: dict[str, tuple[str, bytes]] = {
    "nothing": (JSON, b""),
    "an array": (JSON, b"[]"),
    "a number": (JSON, b"5"),
    "null": (JSON, b"null"),
    "a string": (JSON, b'"x"'),
    "half an object": (JSON, b'{"prompt": "x'),
    "two objects": (JSON, b'{"prompt": "x"}{}'),
    "blanks": (JSON, b"   "),
    "nested arrays": (JSON, b"[" * 200_000),
    "nested objects": (JSON, b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "a nested prompt": (JSON, b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "bad utf-8": (JSON, b'{"prompt": "\xff\xfe"}'),
    "utf-16": (JSON, '{"prompt": "x"}'.encode("utf-16")),
    "a byte order mark": (JSON, b'\xef\xbb\xbf{"prompt": "x", "session_id": 1}'),
    "a lone surrogate": (JSON, rb'{"prompt": "\ud800"}'),
    "nul": (JSON, rb'{"prompt": "a\u0000b"}'),
    "nul in a key": (JSON, rb'{"prompt": "x", "a\u0000": 1}'),
    "a huge integer": (JSON, b'{"prompt": "x", "expected_version": ' + b"9" * 4000 + b"}"),
    "a large integer": (JSON, b'{"prompt": "x", "expected_version": 99999999999999999999999}'),
    "a huge number": (JSON, b'{"prompt": "x", "expected_version": 1e999}'),
    "not a number": (JSON, b'{"prompt": "x", "expected_version": NaN}'),
    "a wrong id": (JSON, b'{"prompt": "x", "session_id": "' + b"a" * 100_000 + b'"}'),
    "a form as json": (JSON, b"prompt=x"),
    "json as a form": ("application/x-www-form-urlencoded", b'{"prompt": "x"}'),
    "json as text": ("text/plain", b'{"prompt": "x"}'),
    "json as nothing": ("", b'{"prompt": "x", "y": 1}'),
    "xml": ("application/xml", b"<prompt>x</prompt>"),
    "no type": ("", b"prompt=x"),
    "an odd type": ("x", b"prompt=x"),
    "a type without end": ("application/" + "j" * 5000, b"{}"),
    "an unknown charset": ("application/json; charset=klingon", b'{"prompt": 5}'),
    "a form in an unknown charset": ("application/x-www-form-urlencoded; charset=klingon", b"promptx=1"),
    "a doubled field": ("application/x-www-form-urlencoded", b"prompt=a&prompt=b"),
    "many fields": ("application/x-www-form-urlencoded", b"&".join(b"a%d=1" % number for number in range(20_000))),
    "one doubled field, many times": ("application/x-www-form-urlencoded", b"prompt=a&" * 20_000),
    "bad percents": ("application/x-www-form-urlencoded", b"prompt=%zz%1&x=%ff%fe"),
    "nul in a form": ("application/x-www-form-urlencoded", b"prompt=a%00b"),
    "a multipart without parts": ("multipart/form-data; boundary=x", b""),
    "a multipart without a boundary": ("multipart/form-data", b"--x\r\n\r\n"),
    "a broken multipart": ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n"),
    "a file": (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="prompt"; filename="a.txt"\r\n\r\nhello\r\n--x--\r\n',
    ),
    "a part in an unknown charset": (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="prompt"\r\nContent-Type: text/plain; charset=klingon\r\n\r\nhi'
        b"\r\n--x--\r\n",
    ),
    "many parts": (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nhello\r\n' * 5000 + b"--x--\r\n",
    ),
}  # fmt: skip


#: with nothing in them, they are whole where no field is required
EMPTY = ("nothing", "a multipart without parts", "a form in an unknown charset")


@pytest.mark.parametrize("name", BODIES)
def test_an_odd_body_is_refused_and_nothing_breaks(newcomer: Callable[..., httpx.Client], name: str) -> None:
    kind, body = BODIES[name]
    client = newcomer()
    for url, accept in (
        ("/chat", JSON),
        ("/chat", BROWSER),
        ("/session/create", JSON),
        ("/models/switch", JSON),
        ("/login", JSON),
    ):
        if url == "/session/create" and name in EMPTY:
            continue
        headers = {"Accept": accept, **({"Content-Type": kind} if kind else {})}
        answer = client.post(url, content=body, headers=headers)
        assert 400 <= answer.status_code < 500, (url, answer.status_code, answer.text[:200])
        if accept == JSON:
            codes = ("invalid_request", "too_large", "too_many_fields", "version_conflict", "unauthenticated")
            assert answer.json()["code"] in codes
    assert client.get("/session").json()["sessions"] == []


def test_doubled_keys_in_json_are_one_of_both_or_refused(guest: httpx.Client) -> None:
    answer = guest.post("/session/create", content=b'{"title": "a", "title": "b"}', headers={"Content-Type": JSON})
    assert (answer.status_code, answer.json().get("title")) in ((201, "b"), (400, None))


@pytest.mark.parametrize("key", ["expected_version", "when", "lock"])
def test_a_large_number_with_a_key_breaks_nothing(guest: httpx.Client, key: str) -> None:
    session = create(guest)
    for value in (10**30, -(10**30), 2**63, 2**64, -1):
        body = {"session_id": session["id"], "model": "smart", key: value}
        answer = guest.post("/models/switch", json=body, headers={"Idempotency-Key": uuid4().hex})
        assert answer.status_code in (400, 409), answer.text
        chatted = guest.post(
            "/chat",
            json={"session_id": session["id"], "prompt": "x", "expected_version": value},
            headers={"Idempotency-Key": uuid4().hex},
        )
        assert chatted.status_code in (400, 409), chatted.text


def test_a_body_that_says_it_is_too_large_is_refused_unread(server: Server) -> None:
    for length in ("2000000", "99999999999999999999", "1" * 5000, "-1", "x", "1e3", "+5", "٣"):
        request = f"POST /chat HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        status, _, body = raw(server, request.encode())
        assert status in (400, 413), (length, status, body)


def test_a_body_that_grows_too_large_is_refused(server: Server, guest: httpx.Client) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(40):
            yield b"x" * 65536

    for kind in (JSON, "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        try:
            answer = guest.post("/chat", content=pieces(), headers={"Content-Type": kind})
        except httpx.TransportError:
            continue  # hung up on in the middle of it: as good
        problem(answer, 413, "too_large")
    assert guest.get("/healthz").status_code == 200


def test_two_lengths_or_a_length_and_chunks_are_refused(server: Server) -> None:
    """Request smuggling (RFC 9112 §6.3)."""
    start = (
        "POST /session/create HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    )
    for lines, body in (
        ("Content-Length: 2\r\nContent-Length: 3\r\n", "{}x"),
        ("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\nGET / HTTP/1.1\r\n\r\n"),
    ):
        status, _, _ = raw(server, f"{start}{lines}\r\n{body}".encode())
        assert status in (0, 400)


ODD_URLS = (
    "/session?q=%ff%fe", "/session?q=%00", "/session?q=%ED%A0%80", "/session?limit=" + "9" * 4000,
    "/session?limit=1&limit=2", "/session?cursor=%00", "/session?cursor=" + "9" * 400 + "-" + ABSENT,
    "/session?cursor=-1-" + ABSENT, "/session?cursor=253402300800000000-" + ABSENT, "/session?cursor=٣-" + ABSENT,
    "/session?model=%00", "/session?state[]=active", "/session?" + "a=1&" * 5000, "/session/" + "%00" * 10,
    "/session/" + ABSENT + "?before=x", "/session/" + ABSENT.upper(), "/session/{" + ABSENT + "}",
    "/session/" + ABSENT[:-1], "/chat/%2e%2e/admin", "//evil.example/", "/%ff%fe", "/;/", "/%00", "/setup/%00",
    "/setup/" + "x" * 5000, "/login?next=%00", "/session/" + ABSENT + "/events?version=" + "9" * 400,
    "/session/" + ABSENT + "/turns?limit=0", "/static/%00", "/static/%ff%fe",
)  # fmt: skip


@pytest.mark.parametrize("url", ODD_URLS)
def test_an_odd_url_breaks_nothing(guest: httpx.Client, url: str) -> None:
    for accept in (JSON, BROWSER):
        answer = guest.get(url, headers={"Accept": accept})
        assert answer.status_code in (200, 400, 403, 404, 414), answer.text


def test_odd_headers_break_nothing(server: Server) -> None:
    for line in (
        "Accept: " + "a/b;q=0.1," * 2000,
        "Accept: application/json;q=nan",
        "Accept: text/html;q=inf, application/json;q=-inf",
        "Accept: \xff\xfe",
        "Cookie: tk_guest=\xff; tk_login=\xfe",
        "Cookie: " + "a=b; " * 2000,
        "Cookie: tk_guest",
        "Cookie: ;;;=;==",
        "Authorization: Bearer \xff\xfe",
        "Authorization: Bearer " + "x" * 8000,
        "Idempotency-Key: \xff",
        "Last-Event-ID: \xff",
        "HX-Request: TRUE",
        "Content-Type: \xff",
        "X-Forwarded-For: not an address",
        "Range: bytes=0-1",
        "Expect: 100-continue",
        "If-Modified-Since: never",
    ):
        request = f"GET /models HTTP/1.1\r\nHost: 127.0.0.1\r\n{line}\r\nConnection: close\r\n\r\n".encode("latin-1")
        status, _, body = raw(server, request)
        assert status in (200, 206, 400, 401), (line[:60], status, body[:300])


# ---------------------------------------------------------------- tokens


@pytest.mark.parametrize("prefix", ["Bearer ", "bearer ", "BEARER ", "Bearer   "])
def test_a_token_works_in_authorization(server: Server, ann_token: str, prefix: str) -> None:
    with server.guest(Accept=JSON, Authorization=f"{prefix}{ann_token}") as client:
        assert client.post("/session/create", json={}).json()["owner"]["name"] == "ann"


ELSEWHERE: dict[str, Callable[[str], dict[str, dict[str, str]]]] = {
    "x-api-key": lambda token: {"headers": {"X-API-Key": token}},
    "api-key": lambda token: {"headers": {"api-key": token}},
    "x-auth-token": lambda token: {"headers": {"X-Auth-Token": token}},
    "proxy-authorization": lambda token: {"headers": {"Proxy-Authorization": f"Bearer {token}"}},
    "x-authorization": lambda token: {"headers": {"X-Authorization": f"Bearer {token}"}},
    "x-forwarded-authorization": lambda token: {"headers": {"X-Forwarded-Authorization": f"Bearer {token}"}},
    "x-forwarded-user": lambda token: {"headers": {"X-Forwarded-User": "ann", "Remote-User": "ann"}},
    "the login cookie": lambda token: {"headers": {"Cookie": f"tk_login={token}"}},
    "the guest cookie": lambda token: {"headers": {"Cookie": f"tk_guest={token}"}},
    "a cookie": lambda token: {"headers": {"Cookie": f"token={token}; Authorization=Bearer {token}"}},
    "the query": lambda token: {"params": {"token": token, "access_token": token, "api_key": token}},
    "the query, as a header": lambda token: {"params": {"Authorization": f"Bearer {token}"}},
}


@pytest.mark.parametrize("place", ELSEWHERE)
def test_a_token_works_nowhere_else(server: Server, ann_token: str, place: str) -> None:
    with server.guest(Accept=JSON) as client:
        made = client.post("/session/create", json={}, **ELSEWHERE[place](ann_token))  # type: ignore[arg-type]
        assert made.status_code == 201
        assert made.json()["owner"]["name"].startswith("guest-")


NO_TOKEN = (
    "Basic TOKEN", "Token TOKEN", "TOKEN", "Bearer: TOKEN", "Bearer,TOKEN", "Bearer x TOKEN", "Bearer TOKENx",
    "Bearer tk_", "Bearer", "Bearer null", "Bearer TOKEN TOKEN",
)  # fmt: skip


@pytest.mark.parametrize("form", NO_TOKEN)
def test_what_is_no_token_is_refused_and_does_not_become_a_guest(server: Server, ann_token: str, form: str) -> None:
    with server.guest(Accept=JSON, Authorization=form.replace("TOKEN", ann_token)) as client:
        answer = client.get("/session")
        problem(answer, 401, "unauthenticated")
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert "set-cookie" not in answer.headers


def test_a_token_is_not_accepted_beside_a_cookie_of_another(
    server: Server, ann_token: str, guest: httpx.Client
) -> None:
    mine = create(guest)
    answer = guest.get(f"/session/{mine['id']}", headers={"Authorization": f"Bearer {ann_token}"})
    problem(answer, 404, "session_not_found")
    problem(guest.get("/session", headers={"Authorization": "Bearer wrong"}), 401, "unauthenticated")


# ---------------------------------------------------------------- the guest's cookie


def test_the_guest_cookie_is_not_for_scripts_and_not_for_other_sites(server: Server) -> None:
    with server.guest(Accept=BROWSER) as fresh:
        cookie = fresh.get("/").headers["set-cookie"].lower()
        assert cookie.startswith("tk_guest=")
        assert "httponly" in cookie and "samesite=lax" in cookie and "path=/" in cookie
        assert "domain=" not in cookie
        assert "set-cookie" not in fresh.get("/").headers, "made once"


def test_behind_tls_cookies_are_secure_and_bound_to_the_host(
    newcomer: Callable[..., httpx.Client], tokens: dict[str, str]
) -> None:
    client = newcomer(BROWSER, **{"X-Forwarded-Proto": "https"})
    first = client.get("/").headers["set-cookie"]
    signed_in = client.post("/login", data={"name": "bob", "password": PASSWORD}).headers.get_list("set-cookie")
    assert {"tk_login", "tk_device"} <= {one.partition("=")[0].removeprefix("__Host-") for one in signed_in}
    for cookie in (first, *signed_in):
        assert cookie.startswith("__Host-")
        assert "; secure" in cookie.lower()
        assert "path=/" in cookie.lower() and "domain=" not in cookie.lower()


def forged(cookie: str) -> Iterator[str]:
    """Cookies like one of ours that we did not make."""
    id, _, signature = cookie.partition(".")
    yield from ("", "x", ".", f"{id}", f"{id}.", f".{signature}", f"{id}.{'0' * 64}", f"{id}.{signature[:-1]}")
    yield from (f"{id}.{signature}0", f"{id}.{signature.upper()}", f"{'0' * 32}.{signature}", f"{id[::-1]}.{signature}")
    yield from (f"{'0' * 32}.{'0' * 64}", f"{id}.{signature}.{signature}", f"{id}-{signature}", f"{id}%00.{signature}")


def test_a_cookie_we_did_not_make_is_never_adopted(server: Server, guest: httpx.Client) -> None:
    mine = create(guest)
    cookie = guest.cookies["tk_guest"]
    for value in forged(cookie):
        if value == cookie:
            continue
        with server.guest(Accept=JSON) as other:
            answer = other.get(f"/session/{mine['id']}", headers={"Cookie": f"tk_guest={value}"})
            problem(answer, 404, "session_not_found")
            assert "tk_guest=" in answer.headers["set-cookie"]
            assert value not in ("", "x", ".") or value != other.cookies["tk_guest"]
            assert other.cookies["tk_guest"].partition(".")[0] != cookie.partition(".")[0]


def test_a_guest_of_another_server_is_a_stranger_here(
    server: Server, guest: httpx.Client, newcomer: Callable[..., httpx.Client]
) -> None:
    elsewhere = newcomer()
    elsewhere.get("/models")
    answer = guest.get("/models", headers={"Cookie": f"tk_guest={elsewhere.cookies['tk_guest']}"})
    assert "tk_guest=" in answer.headers["set-cookie"]


# ---------------------------------------------------------------- signing in


@pytest.fixture
def signs_in(newcomer: Callable[..., httpx.Client], tokens: dict[str, str]) -> Callable[..., httpx.Client]:
    """A browser that has just signed in as bob; he has an account because he has a token."""

    def sign_in(next: str = "/", **headers: str) -> httpx.Client:
        client = newcomer(BROWSER, **headers)
        answer = client.post("/login", data={"name": "bob", "password": PASSWORD, "next": next})
        assert answer.status_code == 303, answer.text
        client.headers["accept"] = JSON
        return client

    return sign_in


def test_signing_in_makes_a_new_login_each_time(signs_in: Callable[..., httpx.Client]) -> None:
    first, second = signs_in(), signs_in()
    cookies = [client.cookies["tk_login"] for client in (first, second)]
    assert cookies[0] != cookies[1]
    assert all(len(cookie) >= 32 for cookie in cookies)
    for client in (first, second):
        assert client.post("/session/create", json={}).json()["owner"]["name"] == "bob"
        assert "bob" in client.get("/", headers=FORM).text


def test_a_login_the_client_chose_is_never_adopted(
    newcomer: Callable[..., httpx.Client], tokens: dict[str, str]
) -> None:
    client = newcomer(BROWSER)
    client.cookies.set("tk_login", "chosen-by-an-attacker-0123456789abcdef")
    answer = client.post("/login", data={"name": "bob", "password": PASSWORD})
    assert answer.status_code == 303
    assert "chosen-by-an-attacker" not in answer.headers["set-cookie"]
    problem_free = newcomer()
    problem_free.cookies.set("tk_login", "chosen-by-an-attacker-0123456789abcdef")
    assert problem_free.post("/session/create", json={}).json()["owner"]["name"].startswith("guest-")


def test_the_login_cookie_is_not_for_scripts_and_not_for_other_sites(
    newcomer: Callable[..., httpx.Client], tokens: dict[str, str]
) -> None:
    answer = newcomer(BROWSER).post("/login", data={"name": "bob", "password": PASSWORD})
    for name in ("tk_login=", "tk_device="):
        cookie = next(one for one in answer.headers.get_list("set-cookie") if one.startswith(name))
        assert "HttpOnly" in cookie and "SameSite=lax" in cookie and "Path=/" in cookie and "Domain" not in cookie
    assert "no-store" in answer.headers["cache-control"]


def test_signing_out_ends_the_login_and_nothing_else(signs_in: Callable[..., httpx.Client]) -> None:
    client, other = signs_in(), signs_in()
    stolen = client.cookies["tk_login"]
    session = create(client)
    out = client.post("/logout", data={}, headers=FORM)
    assert (out.status_code, out.headers["location"]) == (303, "/")
    assert "tk_login" not in client.cookies
    answer = client.get(f"/session/{session['id']}", headers={"Cookie": f"tk_login={stolen}"})
    problem(answer, 404, "session_not_found")
    assert session_of(other, session["id"])["state"] == "active", "the end of a login never touches a session"


# ---------------------------------------------------------------- rights that end


@contextmanager
def rows_of(server: Server) -> Iterator[sqlite3.Connection]:
    """The database beside its server: what an admin's command changes there, it must notice."""
    database = sqlite3.connect(server.folder / "var" / "turnkeeper.db", timeout=60)
    try:
        with database:
            yield database
    finally:
        database.close()


def test_a_login_ends_in_time(signs_in: Callable[..., httpx.Client], governed: Server) -> None:
    client = signs_in()
    session = create(client)
    with rows_of(governed) as database:
        changed = database.execute(
            "UPDATE login SET expires_at = created_at WHERE account_id = (SELECT id FROM account WHERE name = 'bob')"
        )
        assert changed.rowcount
    problem(client.get(f"/session/{session['id']}"), 404, "session_not_found")
    assert client.get("/", headers=FORM).status_code == 200


OF = "WHERE account_id = (SELECT id FROM account WHERE name = ?)"
LOST = {
    "revoked": f"UPDATE api_token SET revoked_at = created_at {OF}",
    "expired": f"UPDATE api_token SET expires_at = created_at {OF}",
    "disabled": "UPDATE account SET disabled_at = created_at WHERE name = ?",
}


def test_who_lost_the_right_is_refused_at_once_and_its_streams_end(governed: Server) -> None:
    """O4: within five seconds, also what is open already."""
    names = {why: f"{why}-{uuid4().hex[:8]}" for why in LOST}
    made = governed.people(*names.values())
    with ThreadPoolExecutor(len(LOST)) as pool, ExitStack() as opened:
        clients = {why: opened.enter_context(governed.script(made[name])) for why, name in names.items()}
        ask = {"json": {"prompt": "/tokens 3000 /delay 50ms"}, "headers": {"Accept": JSON}}
        waiting = [pool.submit(client.post, "/chat", **ask) for client in clients.values()]
        streams = []
        for client in clients.values():
            turn = begin(client, "/tokens 3000 /delay 50ms")
            for url in (f"/chat/{turn['id']}/events", f"/session/{turn['session_id']}/events"):
                streams.append(opened.enter_context(streaming(client, url)))
                streams[-1].next("delta")
        with rows_of(governed) as database:
            for why, change in LOST.items():
                assert database.execute(change, [names[why]]).rowcount == 1
        with within(SENT_AWAY_SECONDS, governed):
            for client in clients.values():
                problem(client.get("/session"), 401, "unauthenticated")
                problem(client.post("/chat", json={"prompt": "x"}), 401, "unauthenticated")
            assert {stream.rest()[-1].name for stream in streams} == {"gone"}
        for answer in waiting:
            problem(answer.result(), 401, "unauthenticated")


def test_a_former_admin_steers_nothing(governed: Server, newcomer: Callable[..., httpx.Client]) -> None:
    """CVE-2026-44553 of a peer: the role counts as it is now."""
    name = f"ex-{uuid4().hex[:8]}"
    session = create(newcomer())
    with governed.script(governed.people(f"{name}:admin")[name]) as former:
        assert former.get(f"/session/{session['id']}").status_code == 200
        with rows_of(governed) as database:
            database.execute("UPDATE account SET role = 'user' WHERE name = ?", [name])
        problem(former.get("/admin"), 403, "forbidden")
        problem(former.get(f"/session/{session['id']}"), 404, "session_not_found")
        body = {"session_id": session["id"], "model": "smart", "reason": "still me"}
        problem(former.post("/models/switch", json=body), 404, "session_not_found")


def test_signing_out_without_a_login_is_no_error(visitor: httpx.Client) -> None:
    assert visitor.post("/logout", data={}).status_code == 303


def test_a_wrong_password_is_a_page_with_the_name_and_without_the_password(
    newcomer: Callable[..., httpx.Client], tokens: dict[str, str]
) -> None:
    client = newcomer(BROWSER)
    fields = {"name": "kim", "password": "canary-wrong-password", "next": "/limits"}
    answer = client.post("/login", data=fields)
    assert answer.status_code == 401
    assert is_page(answer)
    assert 'value="kim"' in answer.text
    assert 'value="/limits"' in answer.text
    assert "canary-wrong-password" not in answer.text
    assert "tk_login" not in client.cookies
    told = problem(client.post("/login", json=fields, headers={"Accept": JSON}), 401, "unauthenticated")
    fields["name"] = "nobody"
    unknown = problem(client.post("/login", json=fields, headers={"Accept": JSON}), 401, "unauthenticated")
    assert told["detail"] == unknown["detail"]


ELSEWHERE_NEXT = (
    "//evil.example", "https://evil.example", "http:evil.example", "/\\evil.example", "\\\\evil.example",
    "evil.example", "/\t/evil.example", "/\n/evil.example", " //evil.example", "javascript:alert(1)",
    "///evil.example", "/x\r\nX-Evil: y", "", "data:text/html,x", "/\x00", "//127.0.0.1@evil.example",
)  # fmt: skip


@pytest.mark.parametrize("next", ELSEWHERE_NEXT)
def test_next_never_leaves_the_origin(visitor: httpx.Client, next: str) -> None:
    assert local(next) == "/"
    page = visitor.get("/login", params={"next": next})
    assert 'name="next" value="/"' in page.text


@pytest.mark.parametrize("next", ["/limits", "/session?q=a%20b&limit=3", "/#x", f"/session/{ABSENT}"])
def test_next_may_be_any_page_of_ours(visitor: httpx.Client, next: str) -> None:
    assert local(next) == next
    page = visitor.get("/login", params={"next": next})
    assert f'name="next" value="{next.replace("&", "&amp;")}"' in page.text


def test_signing_in_leads_to_next(newcomer: Callable[..., httpx.Client], tokens: dict[str, str]) -> None:
    for next, location in (
        ("/limits?x=1", "/limits?x=1"),
        ("/session?q=a%20b&limit=3", "/session?q=a%20b&limit=3"),
        ("/session?q=ü🦊 x", "/session?q=%C3%BC%F0%9F%A6%8A%20x"),
        ("//evil.example", "/"),
        ("https://evil.example", "/"),
    ):
        answer = newcomer(BROWSER).post("/login", data={"name": "kim", "password": PASSWORD, "next": next})
        assert (answer.status_code, answer.headers["location"]) == (303, location)


def test_after_ten_failures_of_a_name_from_an_address_one_waits(newcomer: Callable[..., httpx.Client]) -> None:
    """And nobody else does; the other limits are tried in tests/services/test_sign_in_limits.py."""
    client = newcomer()
    wrong = {"name": "victim", "password": "wrong"}
    with ThreadPoolExecutor(20) as pool:
        at_once = pool.map(lambda _: client.post("/login", json=wrong).status_code, range(20))
    assert sorted(at_once) == [401] * 10 + [429] * 10
    refused = client.post("/login", json=wrong)
    told = problem(refused, 429, "rate_limited")
    assert int(refused.headers["retry-after"]) == told["retry_after_seconds"] > 0
    assert told["retry_after_seconds"] <= 60
    problem(newcomer().post("/login", json=wrong), 401, "unauthenticated")
    assert client.get("/session").status_code == 200, "only signing in waits"
    page = client.post("/login", data=wrong, headers=FORM)
    assert page.status_code == 429
    assert is_page(page)


@pytest.mark.usefixtures("tokens")
def test_a_name_nobody_has_takes_as_long_as_one_somebody_has(
    governed: Server, newcomer: Callable[..., httpx.Client]
) -> None:
    """SECURITY B 16. In work and not in time, and the least of several each: what else runs only adds to it."""
    assert governed.process is not None
    work = Path(f"/proc/{governed.process.pid}/stat")

    def ticks(name: str) -> int:
        """CPU time of the server for one attempt, in hundredths of a second."""
        client = newcomer()
        before = sum(map(int, work.read_text().rpartition(")")[2].split()[11:13]))
        problem(client.post("/login", json={"name": name, "password": "wrong"}), 401, "unauthenticated")
        return sum(map(int, work.read_text().rpartition(")")[2].split()[11:13])) - before

    pairs = [(ticks(name), ticks(f"no{name}")) for name in ("kim", "liz", "pia", "cap", "brie", "bob") * 2]
    known, unknown = (min(one) for one in zip(*pairs, strict=True))
    assert known > 4, "no password was hashed"
    # A hundredth on either side is how coarsely it is measured.
    assert known - 1 < 1.2 * (unknown + 1) and unknown - 1 < 1.2 * (known + 1), pairs


def test_odd_names_do_not_sign_in(newcomer: Callable[..., httpx.Client]) -> None:
    client = newcomer()
    for name in ("system", "", "kim\0", "KIM\r\n", "x" * 10_000, "' OR 1=1 --"):
        answer = client.post("/login", json={"name": name, "password": PASSWORD})
        assert answer.status_code in (400, 401), name


def test_odd_passwords_do_not_break_anything(newcomer: Callable[..., httpx.Client]) -> None:
    for password in ("", "\0", "x" * 200_000, "€" * 1000):
        assert newcomer().post("/login", json={"name": "nobody", "password": password}).status_code in (400, 401)


# ---------------------------------------------------------------- what must never leak

CANARIES = {"prompt": "canary-prompt-51b2", "title": "canary-title-88aa", "password": "canary-password-77c1"}


def test_tokens_passwords_and_texts_are_in_no_log_no_journal_and_no_database_in_clear(tmp_path: Path) -> None:
    """SECURITY.md B 8, J3: everything that was printed and stored is searched."""
    key = "canary-key-0123456789abcdef0123456789"
    settings = """
[[providers]]
id = "p"
kind = "openai"
base_url = "http://127.0.0.1:9/v1"
api_key = "$CANARY_KEY"

[[models]]
id = "far"
provider = "p"

[[models]]
id = "echo"
provider = "builtin"
"""
    with a_server(tmp_path, settings, CANARY_KEY=key) as server:
        secret = server.setup_url.rsplit("/", 1)[-1]
        made = server.run("account", "create", "ann", "--permanent", stdin=f"{CANARIES['password']}\n")
        assert made.returncode == 0, made.stderr
        token = server.run("token", "create", "--account", "ann", "--name", "t").stdout.strip()
        assert token.startswith("tk_")
        with server.script(token) as ann, server.guest(Accept=JSON) as other:
            session = create(ann, title=CANARIES["title"], model="echo")
            chat(ann, CANARIES["prompt"], session_id=session["id"])
            begin(ann, f"{CANARIES['prompt']} /tokens 1000 /delay 20ms", session_id=session["id"])
            ann.post("/chat", json={"session_id": session["id"], "prompt": f"{CANARIES['prompt']} again"})
            ann.post("/chat", json={"session_id": session["id"], "prompt": CANARIES["prompt"], "model": "far"})
            ann.post("/chat", content=f'{{"prompt": "{CANARIES["prompt"]}'.encode(), headers={"Content-Type": JSON})
            journal = ann.get(f"/session/{session['id']}/journal").text
            signed_in = other.post("/login", data={"name": "ann", "password": CANARIES["password"]})
            assert signed_in.status_code == 303
            login = other.cookies["tk_login"]
            other.post("/login", data={"name": "ann", "password": CANARIES["password"] + "x"})
            pages = "".join(other.get(path, headers=FORM).text for path in ("/", "/session", "/models", "/limits"))
            models = other.get("/models").text + other.get("/openapi.json").text + other.get("/limits").text
        shown = server.run("config", "show")
        checked = server.run("check")
        server.stop()
        printed = server.output.replace(secret, "", 1)
        for text in (*CANARIES.values(), token, login, key):
            assert text not in printed
            assert text not in shown.stdout + shown.stderr + checked.stdout + checked.stderr
        for text in (*CANARIES.values(), token, login):
            assert text not in journal
        for text in (CANARIES["password"], token, login, key):
            assert text not in pages + models
        with sqlite3.connect(tmp_path / "var" / "turnkeeper.db") as database:
            dump = "\n".join(database.iterdump())
            rows = json.dumps(database.execute("SELECT * FROM journal").fetchall(), default=str)
        for text in (CANARIES["password"], token, token.removeprefix("tk_"), login, key, secret):
            assert text not in dump
        for text in (CANARIES["prompt"], CANARIES["title"], "127.0.0.1"):
            assert text not in rows
        assert "$argon2id$" in dump
        assert rows.count("session_created") == 1
        for file in tmp_path.rglob("*"):
            if file.is_file() and file.suffix not in (".toml", ".db", ".db-wal", ".db-shm"):
                assert key.encode() not in file.read_bytes()


def test_a_deleted_chat_leaves_no_text_behind(tmp_path: Path) -> None:
    with a_server(tmp_path) as server:
        with server.guest(Accept=JSON) as client:
            turn = chat(client, f"{CANARIES['prompt']} {'x' * 3000}")
            client.post(f"/session/{turn['session_id']}/delete", json={"for_good": True}).raise_for_status()
        server.stop()
        with sqlite3.connect(tmp_path / "var" / "turnkeeper.db") as database:
            assert CANARIES["prompt"] not in "\n".join(database.iterdump())


def test_a_provider_error_tells_no_address_and_no_key(newcomer: Callable[..., httpx.Client]) -> None:
    client = newcomer()
    told = ""
    for accept in (JSON, BROWSER, STREAM):
        answer = client.post("/chat", json={"prompt": "x", "model": "far"}, headers={"Accept": accept})
        told += answer.text
        told += client.get("/models", headers={"Accept": accept}).text
    assert "127.0.0.1:9" not in told
    assert "sk-canary" not in told


def test_an_error_tells_no_code(guest: httpx.Client) -> None:
    for answer in (guest.get("/nothing"), guest.post("/chat", content=b"["), guest.get("/session/x")):
        assert not re.search(r"Traceback|\.py|litestar|msgspec|sqlite", answer.text, re.I)


def test_many_at_once_share_nothing(server: Server) -> None:
    """Answers of one never land with another, however they interleave."""

    def one(number: int) -> None:
        with server.guest(Accept=JSON) as client:
            for round in range(4):
                turn = chat(client, f"/delay 1ms only for number {number} in round {round}")
                assert turn["reply"] == f"only for number {number} in round {round}"
                assert {session["owner"]["id"] for session in client.get("/session").json()["sessions"]} == {
                    session_of(client, turn["session_id"])["owner"]["id"]
                }

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(16)))

"""What a hostile script sends to every URL that changes something, on both databases: refused, and nothing breaks."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.web.running import Server
from tests.web.test_ownership import filled, needs
from tests.web.wire import ABSENT, JSON
from web.guard import BODY_BYTES, CAPS
from web.routes import ROUTES

POSTS = sorted(path for handler in ROUTES for path in handler.paths if "POST" in handler.http_methods)
#: what no text may hold, and what is no text; as JSON, where Python's own would refuse to write it
VALUES = {
    "a lone surrogate": r'"\ud800"',
    "half a pair in a word": r'"a\udfffb"',
    "NUL": r'"a\u0000b"',
    "a huge integer": "9" * 4000,
    "a number beyond all": "1e999",
    "depth": "[" * 5000 + "]" * 5000,
    "an empty object": "{}",
}


@pytest.fixture(scope="module", params=["server", "postgres_server"], ids=["sqlite", "postgres"])
def admin(request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    """A script that may do everything, so that nothing is refused for who asks."""
    server: Server = request.getfixturevalue(request.param)
    token = server.people(f"{request.param}-hostile:admin")[f"{request.param}-hostile"]
    with server.script(token) as client:
        client.headers["Accept"] = JSON
        yield client


def url_of(path: str) -> str:
    return filled(path.replace("{secret:str}", "x"), ABSENT, ABSENT)


def bodies(url: str) -> Iterator[tuple[str, bytes]]:
    """What is sent to a URL: its own fields holding what they must not, and what is no body at all."""
    fields: dict[str, Any] = needs(url) or {"title": "x"}
    for name, value in VALUES.items():
        yield name, ("{" + ", ".join(f'"{field}": {value}' for field in fields) + "}").encode()
        for field in fields:  # the others are as they should be
            rest = [f"{json.dumps(other)}: {json.dumps(fields[other])}" for other in fields if other != field]
            yield f"{name} in {field}", ("{" + ", ".join([*rest, f'"{field}": {value}']) + "}").encode()
    yield "bad UTF-8", b'{"' + next(iter(fields)).encode() + b'": "\xff\xfe"}'
    yield "a surrogate as a key", rb'{"\ud800": 1}'
    yield "half an object", b'{"a": '
    yield "an array", b"[]"


def test_there_are_urls_to_attack() -> None:
    assert len(POSTS) > 30
    assert sum(bool(needs(url_of(path))) for path in POSTS) > 15


@pytest.mark.parametrize("path", POSTS)
def test_what_no_field_may_hold_is_refused_everywhere(admin: httpx.Client, path: str) -> None:
    url = url_of(path)
    for name, body in bodies(url):
        answer = admin.post(
            url, content=body, headers={"Content-Type": JSON, "Idempotency-Key": f"{path} {hash(body)}"}
        )
        assert 400 <= answer.status_code < 500, (name, body[:200], answer.status_code, answer.text[:300])


@pytest.mark.parametrize("path", POSTS)
def test_a_key_that_cannot_be_breaks_nothing(ada: httpx.Client, path: str) -> None:
    url = url_of(path)
    for key in ("x" * 201, "ü" * 300):
        headers = {"Accept": JSON, "Idempotency-Key": key.encode()}
        answer = ada.post(url, json=needs(url), headers=headers)  # type: ignore[arg-type]
        assert answer.status_code < 500, (key, answer.text)


@pytest.mark.parametrize("path", POSTS)
def test_nobody_sends_more_than_a_url_takes(ada: httpx.Client, path: str) -> None:
    """12 MB, which say so and which do not."""
    url, megabytes = url_of(path), 12_000_000
    cap = CAPS.get(url, BODY_BYTES)

    def pieces() -> Iterator[bytes]:
        for _ in range(megabytes // 100_000):
            yield b" " * 100_000

    sends: list[Callable[[], httpx.Response]] = [
        lambda: ada.post(url, content=b" " * megabytes, headers={"Content-Type": JSON}),
        lambda: ada.post(url, content=pieces(), headers={"Content-Type": JSON}),
    ]
    for send in sends:
        try:
            answer = send()
        except httpx.TransportError:
            continue  # hung up on in the middle of it: as good
        assert answer.status_code == (413 if megabytes > cap else 400), answer.text
    assert ada.get("/healthz").status_code == 200

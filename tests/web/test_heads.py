"""Heads of requests that are too large, too many, or no heads: refused while they come, on a real socket."""

import asyncio
import json
import logging
import tracemalloc
from collections.abc import AsyncIterator

import pytest
from uvicorn.server import ServerState

from services.counts import Counts
from tests.web.test_connection import ASKED, answers, goes_on, listening
from web import connection
from web.connection import CHUNKS, HEAD_BYTES, HEADERS, LINE_BYTES, PIPELINED, Connection

COUNTS = Counts()
FIELD = b"X-Filler: " + b"x" * 990 + b"\r\n"


class Counted(Connection):
    @staticmethod
    def counts() -> Counts:
        return COUNTS


@pytest.fixture(autouse=True)
async def _counted_anew(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    COUNTS.refusals.clear()
    for line in (connection.MALFORMED, connection.FULL):
        monkeypatch.setattr(line, "_again_at", float("-inf"))
    yield
    # What a connection takes is given back once it is lost, which the server learns after the test's end of it.
    for _ in range(6_000):
        if not Connection.large_heads and not Connection.lingering:
            break
        await asyncio.sleep(0.01)
    assert (Connection.large_heads, Connection.lingering) == (0, 0)


async def told(port: int, sent: bytes, piece: int = 0) -> bytes:
    """All that is answered to these bytes, sent at once or in pieces."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(60):
            for place in range(0, len(sent), piece or len(sent)):
                writer.write(sent[place : place + (piece or len(sent))])
                await writer.drain()
                if piece:
                    await asyncio.sleep(0)
            return await reader.read()
    finally:
        writer.close()


async def gone(state: ServerState) -> None:
    async with asyncio.timeout(60):
        while state.connections or Connection.lingering:
            await asyncio.sleep(0.01)


def heads() -> dict[str, tuple[bytes, str]]:
    """What is sent, and the code it is refused with."""
    begun = b"GET / HTTP/1.1\r\nHost: x\r\n"
    chunked = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"
    return {
        "many large headers": (begun + FIELD * 80 + b"\r\n", "headers_too_large"),
        "one header without an end": (begun + b"X: " + b"x" * 200_000, "headers_too_large"),
        "a name without an end": (begun + b"x" * 200_000, "headers_too_large"),
        "many small headers": (begun + b"a: b\r\n" * (HEADERS + 1) + b"\r\n", "headers_too_large"),
        "headers that never end": (begun + b"aa: bb\r\n" * 100_000, "headers_too_large"),
        "empty lines": (b"\r\n" * 50_000, "headers_too_large"),
        "a long line": (b"GET /" + b"x" * LINE_BYTES + b" HTTP/1.1\r\nHost: x\r\n\r\n", "uri_too_long"),
        "a line without an end": (b"GET /?" + b"x" * 200_000, "uri_too_long"),
        "a trailer without an end": (chunked + b"0\r\nX: " + b"x" * 200_000, "headers_too_large"),
        "trailers that never end": (chunked + b"0\r\n" + FIELD * 200, "headers_too_large"),
        "an extension of a chunk without an end": (chunked + b"1;" + b"x" * 200_000, "headers_too_large"),
        "a body of one-byte chunks": (chunked + b"1\r\na\r\n" * 200_000, "too_many_chunks"),
        "the same with an extension each": (chunked + b"1;x\r\na\r\n" * 5_000, "too_many_chunks"),
        "small chunks behind a large one": (
            chunked + b"ff\r\n" + b"x" * 255 + b"\r\n" + b"1\r\na\r\n" * 1_100,
            "too_many_chunks",
        ),
        "no request": (b"hello\r\n\r\n", "invalid_request"),
        "a chunk of no size": (chunked + b"zz\r\n", "invalid_request"),
    }


async def waits(scope: object, receive: object, send: object) -> None:
    """For its whole body, and answers then."""
    while (message := await receive()).get("more_body"):  # type: ignore[operator]
        pass
    if message["type"] == "http.request":
        await answers(scope, receive, send)


@pytest.mark.parametrize("name", heads())
@pytest.mark.parametrize("piece", [0, 700], ids=["whole", "slowly"])
async def test_a_head_beyond_the_limits_is_refused_properly_and_the_connection_closed(name: str, piece: int) -> None:
    sent, code = heads()[name]
    state = ServerState()
    async with listening(Counted, state, waits) as port:
        said = await told(port, sent, piece)
        await gone(state)
    head, _, body = said.partition(b"\r\n\r\n")
    status = {"headers_too_large": 431, "uri_too_long": 414, "invalid_request": 400, "too_many_chunks": 413}[code]
    assert head.startswith(b"HTTP/1.1 %d " % status), said[:200]
    assert b"connection: close" in head and b"x-request-id: " in head and b"nosniff" in head
    problem = json.loads(body)
    assert (problem["code"], problem["status"]) == (code, status)
    assert f"content-length: {len(body)}".encode() in head
    assert COUNTS.refusals == {code: 1}


@pytest.mark.parametrize("piece", [0, 1, 1000], ids=["whole", "one byte at a time", "slowly"])
async def test_a_head_within_the_limits_is_taken_however_it_comes(piece: int) -> None:
    fields = FIELD * 60 if piece != 1 else FIELD
    sent = b"GET /" + b"x" * 5_000 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + fields + b"\r\n"
    assert len(sent) < HEAD_BYTES
    async with listening(Counted, ServerState()) as port:
        assert (await told(port, sent, piece)).startswith(b"HTTP/1.1 200")


async def test_a_refusal_waits_for_the_answer_before_it() -> None:
    """Written in the middle of another answer, it would be taken for a part of that."""
    let = asyncio.Event()

    async def slow(scope: object, receive: object, send: object) -> None:
        await let.wait()
        await answers(scope, receive, send)

    async with listening(Counted, ServerState(), slow) as port, asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(ASKED + b"GET /" + b"x" * 2 * LINE_BYTES)
        await writer.drain()
        while not COUNTS.refusals and not let.is_set():
            await asyncio.sleep(0.05)
            let.set()
        first = await reader.readuntil(b"ok")
        assert first.startswith(b"HTTP/1.1 200") and b"414" not in first
        assert (await reader.read()).startswith(b"HTTP/1.1 414")
        writer.close()


async def test_who_asks_ahead_too_far_is_refused_behind_what_is_answered() -> None:
    """Every request that waits for an answer takes memory, and one read brings thousands."""
    many = 5_000
    async with listening(Counted, ServerState()) as port:
        said = await told(port, ASKED * many)
    assert said.count(b"HTTP/1.1 200 OK") == PIPELINED + 1
    assert said.count(b"HTTP/1.1 503 ") == 1 and b"retry-after: " in said


async def test_what_follows_a_body_does_not_come_to_stand_among_the_headers() -> None:
    seen: list[list[tuple[bytes, bytes]]] = []

    async def looks(scope: dict, receive: object, send: object) -> None:  # type: ignore[type-arg]
        await waits(scope, receive, send)
        seen.append(list(scope["headers"]))

    body = b"1\r\na\r\n0\r\nAuthorization: Bearer tk_x\r\n\r\n"
    sent = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + body
    async with listening(Counted, ServerState(), looks) as port:
        assert (await told(port, sent)).startswith(b"HTTP/1.1 200")
    assert [name for name, _ in seen[0]] == [b"host", b"connection", b"transfer-encoding"]


@pytest.mark.parametrize(
    "chunks",
    [b"1\r\na\r\n" * (CHUNKS - 1), (b"40\r\n" + b"x" * 64 + b"\r\n") * 5 * CHUNKS],
    ids=["few small ones", "many of a fair size"],
)
async def test_a_body_in_chunks_is_taken_and_the_next_one_counts_anew(chunks: bytes) -> None:
    asked = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    last = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    async with listening(Counted, ServerState(), waits) as port:
        assert (await told(port, asked * 2 + last)).count(b"HTTP/1.1 200") == 3


async def test_sixty_megabytes_of_small_headers_take_no_memory() -> None:
    state = ServerState()
    async with listening(Counted, state) as port:
        piece = b"GET / HTTP/1.1\r\nHost: x\r\n" + b"aa: bb\r\n" * 125_000  # a megabyte
        tracemalloc.start()
        try:
            for _ in range(60):
                assert b"431" in (await told(port, piece))[:20]
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        await gone(state)
    assert peak < 8_000_000


async def test_large_heads_on_many_connections_share_a_bounded_room_and_small_ones_need_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "LARGE_HEADS_BYTES", 100_000)
    state = ServerState()
    async with listening(Counted, state) as port, asyncio.timeout(60):
        half = b"GET / HTTP/1.1\r\nHost: x\r\n" + FIELD * 50
        holding = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        for _, writer in holding:
            writer.write(half)
        while Connection.large_heads < 2 * (len(half) - connection.SMALL_HEAD_BYTES):
            await asyncio.sleep(0.01)
        assert (await told(port, half)).startswith(b"HTTP/1.1 503")
        assert (await told(port, ASKED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))).startswith(
            b"HTTP/1.1 200"
        )
        for _, writer in holding:
            writer.close()
        await gone(state)


async def test_malformed_requests_are_counted_and_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        async with listening(Counted, ServerState()) as port:
            for _ in range(20):
                assert (await told(port, b"\x16\x03\x01 no HTTP\r\n\r\n")).startswith(b"HTTP/1.1 400")
    assert COUNTS.refusals == {"invalid_request": 20}
    assert [record.getMessage() for record in caplog.records] == [
        "a malformed request was refused (1 since the last such line)"
    ]


async def test_a_stream_that_is_read_goes_on_when_something_malformed_follows_it() -> None:
    state = ServerState()
    async with listening(Counted, state, goes_on) as port, asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(ASKED)
        await reader.readuntil(b"more")
        writer.write(b"\x00\x00\r\n\r\n")
        for _ in range(20):
            assert b"HTTP/1.1" not in await reader.readuntil(b"more")
        writer.transport.abort()
        while state.tasks:
            await asyncio.sleep(0.01)

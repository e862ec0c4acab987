"""What the transport owes HTTP beyond what `test_remote` shows of it."""

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest

from services.clients import transport
from services.clients.transport import Transport
from tests.conftest import Until
from tests.services.clients.provider import Asked, Script, Served, Wire, chunked, provider, whole

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
async def in_time() -> AsyncIterator[None]:
    async with asyncio.timeout(60):
        yield


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is not dropped because a slow machine takes long to ask again."""
    monkeypatch.setattr(transport, "IDLE_SECONDS", 120)


def answering(*answers: bytes) -> Script:
    """A provider that gives each request the next answer, and stays."""
    left = list(answers)

    async def script(asked: Asked, wire: Wire) -> None:
        await wire.send(left.pop(0))

    return script


async def ask_twice(served: Served, connections: int, until: Until) -> list[str]:
    """Both answers; the second is asked for once the first connection is known to be spent, where it shall be."""
    way = Transport(served.url, connect_seconds=60)
    async with httpx2.AsyncClient(transport=way) as http:
        first = (await http.post(served.url, content=b"{}")).text
        if connections > 1:
            await until(lambda: not any(one.is_reusable for one in way._open))
        return [first, (await http.post(served.url, content=b"{}")).text]


@pytest.mark.parametrize(
    ("first", "connections"),
    [
        pytest.param(whole(b"one"), 1, id="a length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"o", b"ne"), 1, id="chunks"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"one")[:-2] + b"X: trailer\r\n\r\n",
            1,
            id="a trailer",
        ),
        pytest.param(b"HTTP/1.1 103 Early Hints\r\nX: 1\r\n\r\n" + whole(b"one"), 1, id="a provisional answer"),
        pytest.param(whole(b"one", headers="Connection: close\r\n"), 2, id="told to close"),
        pytest.param(b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\none", 2, id="HTTP/1.0"),
        pytest.param(whole(b"one") + whole(b"forged"), 2, id="an answer nobody asked for"),
        pytest.param(whole(b"one") + b"junk", 2, id="junk behind the answer"),
    ],
)
async def test_a_connection_is_used_again_only_after_a_clean_end(first: bytes, connections: int, until: Until) -> None:
    async with provider(answering(first, whole(b"two"))) as served:
        assert await ask_twice(served, connections, until) == ["one", "two"]
        assert served.connections == connections


async def test_an_answer_sent_while_nobody_asks_is_nobodys_answer(until: Until) -> None:
    async def script(asked: Asked, wire: Wire) -> None:
        await wire.send(whole(b"one"))
        await asyncio.sleep(0.01)
        await wire.send(whole(b"forged"))

    async with provider(script) as served:
        assert await ask_twice(served, 2, until) == ["one", "one"]
        assert served.connections == 2


async def test_a_connection_the_provider_closed_meanwhile_is_not_used_again(until: Until) -> None:
    async def script(asked: Asked, wire: Wire) -> None:
        await wire.send(whole(b"one"))
        raise ConnectionError

    async with provider(script) as served:
        assert await ask_twice(served, 2, until) == ["one", "one"]
        assert served.connections == 2


async def test_an_idle_connection_is_let_go(monkeypatch: pytest.MonkeyPatch, until: Until) -> None:
    monkeypatch.setattr(transport, "IDLE_SECONDS", 0.05)
    async with (
        provider(answering(whole(b"one"))) as served,
        httpx2.AsyncClient(transport=Transport(served.url, connect_seconds=60)) as http,
    ):
        await http.get(served.url)
        assert served.connections == 1
        await until(lambda: served.open == 0)


async def test_a_header_cannot_smuggle_another() -> None:
    async with (
        provider(answering(whole(b"one"))) as served,
        httpx2.AsyncClient(transport=Transport(served.url, connect_seconds=60)) as http,
    ):
        with pytest.raises(httpx2.LocalProtocolError):
            await http.get(served.url, headers={"X": "1\r\nY: 2"})
        assert served.connections == 0

"""What the transport owes HTTP beyond what `test_remote` shows of it."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

import httpx2
import pytest

from services.clients import transport
from services.clients.transport import Transport
from tests.conftest import Until, limit
from tests.services.clients.provider import Asked, Script, Served, Wire, chunked, provider, whole

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def in_time(request: pytest.FixtureRequest) -> None:
    limit(request.node, 60)


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


class Hasty:
    """A provider that closes each connection while the next request is under way on it, as some do after any reply."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self.answered = 0

    async def __aenter__(self) -> "Hasty":
        self._task = asyncio.create_task(self._serve())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._listener.close()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self._listener)
            with connection:
                await loop.sock_recv(connection, 65536)
                self.answered += 1
                await loop.sock_sendall(connection, whole(b"one"))
                # The next request is here, and nobody will ever read it.
                arrived = asyncio.Event()
                loop.add_reader(connection, arrived.set)
                try:
                    await arrived.wait()
                finally:  # else the next connection that is given the same number is never heard
                    loop.remove_reader(connection)


async def test_a_request_that_crosses_the_end_of_its_connection_is_sent_again() -> None:
    async with (
        Hasty() as served,
        httpx2.AsyncClient(transport=Transport(served.url, connect_seconds=60)) as http,
    ):
        for asked in range(20):
            assert (await http.post(served.url, content=b"{}")).text == "one"
            assert served.answered == asked + 1


Ending = Callable[[Wire], Awaitable[None]]


async def close(wire: Wire) -> None:
    raise ConnectionError


async def reset(wire: Wire) -> None:
    wire.reset()
    raise ConnectionError


async def half_close(wire: Wire) -> None:
    wire.half_close()
    await wire.silence()
    raise ConnectionError


async def begin(wire: Wire) -> None:
    await wire.send(b"H")
    raise ConnectionError


async def say_wait(wire: Wire) -> None:
    await wire.send(b"HTTP/1.1 102 Processing\r\n\r\n")
    raise ConnectionError


def ending(how: Ending, *, answers: int) -> Script:
    """A provider that ends its connection at every request after the first `answers`."""
    left = answers

    async def script(asked: Asked, wire: Wire) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            await how(wire)
        await wire.send(whole(b"one"))

    return script


async def asked_for(how: Ending, answers: int) -> int:
    """How often the provider is asked until a request fails."""
    async with (
        provider(ending(how, answers=answers)) as served,
        httpx2.AsyncClient(transport=Transport(served.url, connect_seconds=60)) as http,
    ):
        for _ in range(answers):
            await http.post(served.url, content=b"{}")
        with pytest.raises(httpx2.TransportError):
            await http.post(served.url, content=b"{}")
        return len(served.asked)


@pytest.mark.parametrize("how", [close, reset, half_close])
async def test_34_it_is_sent_again_once_and_only_where_the_connection_was_an_old_one(how: Ending) -> None:
    assert await asked_for(how, answers=0) == 1
    assert await asked_for(how, answers=1) == 1 + 2


@pytest.mark.parametrize("how", [begin, say_wait])
async def test_34_no_request_is_sent_again_once_anything_of_an_answer_has_come(how: Ending) -> None:
    assert await asked_for(how, answers=1) == 1 + 1


async def test_34_no_request_is_sent_again_that_the_provider_has_had_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "CROSSING_SECONDS", 0)
    assert await asked_for(close, answers=1) == 1 + 1


async def test_what_is_closed_here_is_not_sent_again(until: Until) -> None:
    async def silence(wire: Wire) -> None:
        await wire.silence()
        raise ConnectionError

    async with provider(ending(silence, answers=1)) as served:
        way = Transport(served.url, connect_seconds=60)
        async with httpx2.AsyncClient(transport=way) as http:
            await http.post(served.url, content=b"{}")
            under_way = asyncio.create_task(http.post(served.url, content=b"{}"))
            await until(lambda: len(served.asked) == 2)
            await way.aclose()
            with pytest.raises(httpx2.TransportError):
                await under_way
        assert (len(served.asked), served.connections) == (2, 1)


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

"""One HTTP connection, on a real socket."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from web import connection
from web.connection import Connection


async def answers(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def goes_on(scope: Any, receive: Any, send: Any) -> None:
    """Until nobody is there any more."""
    while (await receive())["type"] != "http.request":
        pass
    gone = asyncio.ensure_future(receive())
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while not gone.done():
        await send({"type": "http.response.body", "body": b"more", "more_body": True})
        await asyncio.sleep(0.01)


@asynccontextmanager
async def listening(kind: type[Connection], state: ServerState, app: Any = answers) -> AsyncIterator[int]:
    """A server of such connections; its port."""
    # uvicorn's own patience is longer than a test
    config = Config(app, log_config=None, timeout_keep_alive=3600)
    server = await asyncio.get_running_loop().create_server(
        lambda: kind(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_who_is_taken_in_while_the_server_stops_is_turned_away_before_a_request_is_read() -> None:
    """Otherwise it could ask again and again on that connection, of a server that has ended everything already."""
    stops = False

    class Stoppable(Connection):
        @staticmethod
        def stopping() -> bool:
            return stops

    state = ServerState()

    async def ask() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        async with asyncio.timeout(60):
            said = await reader.read(15)
        writer.close()
        return said

    async with listening(Stoppable, state) as port:
        assert await ask() == b"HTTP/1.1 200 OK"
        stops = True
        assert await ask() == b""
        assert not state.tasks


ASKED = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("said", [b"", b"\r\n", ASKED + b"\r\n", b"GET / HT"], ids=["nothing", "line", "after", "half"])
async def test_who_says_nothing_or_half_of_it_is_not_waited_for(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection takes an open file, whoever it is that made it."""
    monkeypatch.setattr(connection, "SILENT_SECONDS", 0.1)
    monkeypatch.setattr(connection, "REQUEST_SECONDS", 0.2)
    state = ServerState()
    async with listening(Connection, state) as port, asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        if said.startswith(ASKED):
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
            writer.write(b"\r\n")
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
        while state.connections:
            await asyncio.sleep(0.01)


async def test_who_asks_slowly_has_the_time_of_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SILENT_SECONDS", 0.3)
    async with listening(Connection, ServerState()) as port, asyncio.timeout(60):
        # It is there before the server takes the connection in.
        asking = socket.create_connection(("127.0.0.1", port))
        asking.sendall(ASKED[:9])
        reader, writer = await asyncio.open_connection(sock=asking)
        await asyncio.sleep(0.6)
        writer.write(ASKED[9:])
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.close()


@pytest.mark.parametrize("behind", [0, 1, 3])
async def test_who_goes_is_noticed_whatever_else_was_asked_for_on_the_same_connection(behind: int) -> None:
    """A stream that nobody reads any more would hold its place for ever."""
    state = ServerState()
    async with listening(Connection, state, goes_on) as port, asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(ASKED)
        await reader.readuntil(b"more")
        writer.write(ASKED * behind)
        await reader.readuntil(b"more")
        writer.transport.abort()
        while state.tasks or state.connections:
            await asyncio.sleep(0.01)


async def test_one_more_than_there_is_room_for_is_turned_away_and_the_others_are_answered() -> None:
    class Small(Connection):
        @staticmethod
        def room() -> int:
            return 2

    state = ServerState()
    async with listening(Small, state) as port, asyncio.timeout(60):
        inside = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        while len(state.connections) < 2:
            await asyncio.sleep(0.01)
        reader, outside = await asyncio.open_connection("127.0.0.1", port)
        assert (await reader.read()).startswith(b"HTTP/1.1 503")
        outside.close()
        for its_reader, its_writer in inside:
            its_writer.write(ASKED)
            assert (await its_reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
            its_writer.close()
        while state.connections:
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(ASKED)
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.close()

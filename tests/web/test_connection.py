"""One HTTP connection, on a real socket."""

import asyncio
from typing import Any

from uvicorn import Config
from uvicorn.server import ServerState

from web.connection import Connection


async def answers(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def test_who_is_taken_in_while_the_server_stops_is_turned_away_before_a_request_is_read() -> None:
    """Otherwise it could ask again and again on that connection, of a server that has ended everything already."""
    stops = False

    class Stoppable(Connection):
        @staticmethod
        def stopping() -> bool:
            return stops

    state, config = ServerState(), Config(answers, log_config=None)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Stoppable(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    port = server.sockets[0].getsockname()[1]

    async def ask() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        async with asyncio.timeout(60):
            said = await reader.read(15)
        writer.close()
        return said

    async with server:
        assert await ask() == b"HTTP/1.1 200 OK"
        stops = True
        assert await ask() == b""
        assert not state.tasks

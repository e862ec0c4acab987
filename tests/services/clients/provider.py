"""A provider made of a script: a real TCP server on loopback that answers with exactly the bytes a test wants.

async def script(asked, wire):
    await wire.send(STREAM_HEAD, event("Hello"), DONE)

async with provider(script) as served:
    OpenAIClient(served.url)
"""

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec


class Asked(msgspec.Struct):
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """The provider's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, *pieces: bytes, every: float = 0.0) -> None:
        """Send each piece in a packet of its own, `every` seconds apart."""
        for piece in pieces:
            self._writer.write(piece)
            await self._writer.drain()
            if every:
                await asyncio.sleep(every)

    async def silence(self) -> None:
        """Say nothing until the client goes away."""
        while await self._reader.read(65536):
            pass

    def half_close(self) -> None:
        self._writer.write_eof()

    def reset(self) -> None:
        """Leave by RST, as a crashed process does."""
        raw = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


Script = Callable[[Asked, Wire], Awaitable[None]]


class Served:
    """What a running provider was asked, and over how many connections."""

    def __init__(self, scheme: str, port: int) -> None:
        self.url = f"{scheme}://127.0.0.1:{port}/v1"
        self.asked: list[Asked] = []
        self.connections = 0
        self.open = 0


@asynccontextmanager
async def provider(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Served]:
    """Serve `script`: it is called for every request, and its connection stays while it returns normally."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        served.connections += 1
        served.open += 1
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while True:
                    asked = await _read(reader)
                    served.asked.append(asked)
                    await script(asked, Wire(reader, writer))
        finally:
            served.open -= 1
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1000, ssl=tls)
    served = Served("https" if tls else "http", server.sockets[0].getsockname()[1])
    try:
        yield served
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _read(reader: asyncio.StreamReader) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, _ = head[0].split(" ")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if line)}
    return Asked(method, path, headers, await reader.readexactly(int(headers.get("content-length", 0))))


#: ends with its connection
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def data(value: object) -> bytes:
    """One event."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def event(text: object = None, *, finish: str | None = None, **more: object) -> bytes:
    """One chunk of a reply; `more` stands beside its text."""
    return data({"choices": [{"index": 0, "delta": {"content": text, **more}, "finish_reason": finish}]})


def usage(prompt_tokens: Any, completion_tokens: Any) -> bytes:
    return data({"choices": [], "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}})


def chunked(*pieces: bytes, end: bool = True) -> bytes:
    """Pieces in HTTP/1.1's chunked form."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + (b"0\r\n\r\n" if end else b"")


def whole(body: bytes, *, status: int = 200, kind: str = "application/json", headers: str = "") -> bytes:
    """An answer that is not a stream."""
    return (
        f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body
    )

"""A bare relay, the least that Python and uvicorn can do: bytes in, bytes out; no decoding, storage or rules.

`python -m benchmarks.relay PORT UPSTREAM_PORT`
"""

import asyncio
import sys
from typing import Any

import uvicorn

REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: %d\r\n\r\n%s"
BODY = b'{"model":"bench","stream":true,"messages":[{"role":"user","content":"go"}]}'


def relay(upstream_port: int) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await receive()
        reader, writer = await asyncio.open_connection("127.0.0.1", upstream_port)
        writer.write(REQUEST % (len(BODY), BODY))
        await reader.readuntil(b"\r\n\r\n")
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while chunk := await reader.read(65536):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        writer.close()

    return app


if __name__ == "__main__":
    uvicorn.run(
        relay(int(sys.argv[2])),
        port=int(sys.argv[1]),
        log_level="error",
        access_log=False,
        http="httptools",
        lifespan="off",
    )

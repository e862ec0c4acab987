"""A model server that streams tokens at a set pace, in OpenAI's wire form.

`python -m benchmarks.upstream PORT TOKENS MILLISECONDS`
"""

import asyncio
import contextlib
import sys

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
TOKEN = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"token "},"finish_reason":null}]}\n\n'
LAST = b'data: {"id":"1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
MODELS = b'{"object":"list","data":[{"id":"bench","object":"model"}]}'


async def serve(port: int, tokens: int, pause: float) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        await reader.readexactly(length)
        if head.startswith(b"GET"):
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(MODELS) + MODELS)
        else:
            writer.write(HEAD)
            loop = asyncio.get_running_loop()
            due = loop.time()
            for _ in range(tokens):
                writer.write(TOKEN)
                due += pause
                if pause:
                    await asyncio.sleep(max(0, due - loop.time()))
                await writer.drain()
            writer.write(LAST)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port, backlog=4096)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) / 1000))

"""Readers: many streams at once, one request each, counting tokens.

`python -m benchmarks.load PORT STREAMS`, the request on standard input.
"""

import asyncio
import json
import sys
import time

WORD = b"token "


async def read_one(port: int, request: bytes) -> tuple[int, float, float, str]:
    """(tokens, seconds to the first, seconds to the end, status line) of one stream."""
    begun = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    writer.write(request)
    status = (await reader.readline()).decode().strip()
    tokens, first, tail = 0, 0.0, b""
    while chunk := await reader.read(65536):
        # The last event repeats the whole reply; it is not counted.
        found = (tail + chunk).split(b"event: end", 1)
        tokens += found[0].count(WORD) - tail.count(WORD)
        first = first or (time.monotonic() - begun if tokens else 0.0)
        tail = chunk[-12:]
        if len(found) > 1:
            break
    writer.close()
    return tokens, first, time.monotonic() - begun, status


async def main(port: int, streams: int, request: bytes) -> None:
    results = await asyncio.gather(*(read_one(port, request) for _ in range(streams)))
    print(
        json.dumps(
            {
                "tokens": sum(one[0] for one in results),
                "first_s": sorted(one[1] for one in results)[len(results) // 2],
                "end_s": max(one[2] for one in results),
                "statuses": sorted({one[3] for one in results}),
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.stdin.buffer.read()))

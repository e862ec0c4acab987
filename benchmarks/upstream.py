"""A model server that streams text at a set pace, in OpenAI's wire form.

`python -m benchmarks.upstream PORT TOKENS MILLISECONDS`. It says "token " so many times; or, where the prompt is that
of a `Story`, that story, piece by piece: whoever asked can tell every character of the reply before it comes. Asked to
go on, it goes on behind its own words in the conversation, as a model would.
"""

import asyncio
import contextlib
import json
import random
import re
import sys
from collections.abc import Iterable

import msgspec

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
TOKEN = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"token "},"finish_reason":null}]}\n\n'
LAST = b'data: {"id":"1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
MODELS = b'{"object":"list","data":[{"id":"bench","object":"model"}]}'
#: what makes text hard to carry: characters of every length, line ends, and what means something to those who carry it
WORDS = (
    "turn ", "kept ", "whole, ", "wörter ", "слово ", "文字", "😀 ", "\U0001f469\u200d\U0001f467 ", "e\u0301 ", "\n",
    "\n\n", "\r\n", "\u2028", "\ufeff", "```", "<b>bold</b> ", "&amp; ", "</script>", "data: x\n\n", "id: 7\n",
    "event: end\n\n", "\\u0000 ", "$x^2$ ", "%s ", "'\"",
)  # fmt: skip


#: a Turnkeeper that asks this server, and whose limits stop nobody; to be formatted with its `port`
SETTINGS = """
default_model = "fast"
providers = [{{ id = "upstream", kind = "openai", base_url = "http://127.0.0.1:{port}/v1" }}]
models = [
  {{ id = "fast", provider = "upstream", price_in = 1.0, price_out = 2.0 }},
  {{ id = "smart", provider = "upstream" }},
]
[groups.user]
sessions_created = "60000/min burst 10000"
turns = "60000/min burst 10000"
switches = "60000/min burst 10000"
concurrent_turns = 1000
open_sessions = 100000
tokens_per_day = 10000000000
"""


class Story(msgspec.Struct, frozen=True):
    """A reply that is known before it is asked for."""

    seed: str
    pieces: int
    pause_ms: int

    @property
    def prompt(self) -> str:
        return f"Tell story {self.seed} in {self.pieces} pieces, {self.pause_ms} ms apart."

    @property
    def told(self) -> list[str]:
        """Its pieces, the same for the same seed."""
        return random.Random(self.seed).choices(WORDS, k=self.pieces)

    @property
    def text(self) -> str:
        return "".join(self.told)

    @classmethod
    def asked_for(cls, prompt: str) -> "Story | None":
        found = re.fullmatch(r"Tell story (\S+) in (\d+) pieces, (\d+) ms apart\.", prompt)
        return cls(found[1], int(found[2]), int(found[3])) if found else None


def rest_of(messages: list[dict[str, str]]) -> tuple[list[str], int] | None:
    """The pieces of the story that was asked for last, without what has been told of it, and the pause between them."""
    told = ""
    for message in reversed(messages):
        if message["role"] == "assistant":
            told = message["content"] + told
        elif message["role"] == "user" and (story := Story.asked_for(message["content"])) is not None:
            pieces, skip = story.told, len(told) if story.text.startswith(told) else 0
            while pieces and skip >= len(pieces[0]):
                skip -= len(pieces.pop(0))
            return ([pieces[0][skip:], *pieces[1:]] if pieces else []), story.pause_ms
    return None


def token(text: str) -> bytes:
    delta = {"id": "1", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
    return b"data: " + json.dumps(delta).encode() + b"\n\n"


async def serve(port: int, tokens: int, pause: float) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        body = await reader.readexactly(length)
        if head.startswith(b"GET"):
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(MODELS) + MODELS)
        else:
            writer.write(HEAD)
            story = rest_of(json.loads(body)["messages"]) if b"Tell story" in body else None
            told = map(token, story[0]) if story else (TOKEN for _ in range(tokens))
            await tell(writer, told, story[1] / 1000 if story else pause)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    async def tell(writer: asyncio.StreamWriter, told: Iterable[bytes], pause: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        with contextlib.suppress(ConnectionError):
            for one in told:
                writer.write(one)
                due += pause
                if pause:
                    await asyncio.sleep(max(0, due - loop.time()))
                await writer.drain()
            writer.write(LAST)

    server = await asyncio.start_server(answer, "127.0.0.1", port, backlog=4096)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) / 1000))

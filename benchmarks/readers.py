"""What readers cost: idle streams, and readers that behave badly, beside requests that want to stay quick.

`python -m benchmarks.readers`. The database is SQLite; the readers are scripts of many accounts, because a guest has
no right that could be taken away. Read the ratios: the milliseconds are this machine's, at that moment.
"""

import asyncio
import hashlib
import json
import os
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from db.db_session import DbSession, new_id
from db.engine import migrate, open_engine
from db.tables import Account, ApiToken
from tests.servers import free_port

ROOT = Path(__file__).parents[1]
STREAMS = (500, 2000)
ACCOUNTS = 200
#: how long idle streams are watched: two heartbeats
IDLE_SECONDS = 30.0
#: pieces of the reply that is replayed
PIECES = 1_000_000
BATCHES, ASKED = 8, 30
SETTINGS = """
default_model = "echo"
models = [{ id = "echo", provider = "builtin" }]
[groups.user]
sessions_created = "0"
turns = "0"
switches = "0"
concurrent_turns = 0
open_sessions = 0
"""


class Quickness(NamedTuple):
    """How long a pair of requests takes."""

    median_ms: float
    slowest_ms: float
    #: of the server, whatever else it does meanwhile included
    cpu_ms: float

    def __str__(self) -> str:
        return f"{self.median_ms:.1f} ms, {self.slowest_ms:.0f} at most, {self.cpu_ms:.1f} of CPU"


# ---------------------------------------------------------------- the server


class Bench:
    """A server with accounts that have a token and a session each."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"sqlite:///{folder}/var/turnkeeper.db"
        self.tokens: list[str] = []
        self.sessions: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None
        #: the turn that is read
        self.turn = ""
        #: what a character of a short reply costs
        self.least = (1.0, 1.0, 1.0)

    async def prepare(self) -> None:
        (self.folder / "turnkeeper.toml").write_text(SETTINGS)
        engine = open_engine(self.url)
        await engine.start()
        await migrate(engine)
        now, db_session = datetime.now(UTC), DbSession(engine)
        async with db_session.transaction():
            for number in range(ACCOUNTS):
                token, id = f"tk_bench_{number}", new_id()
                await db_session.add(
                    Account(id=id, name=f"reader {number}", role="user", group_name="user", created_at=now)
                )
                await db_session.add(
                    ApiToken(
                        id=new_id(), account_id=id, name="bench", scopes="chat", created_at=now,
                        token_hash=hashlib.sha256(token.encode()).hexdigest(),
                    )
                )  # fmt: skip
                self.tokens.append(token)
        await engine.stop()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "turnkeeper", "serve", "--port", str(self.port)],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "errors").open("ab"),
        )
        try:
            for _ in range(600):
                try:
                    await self.ask("GET", "/readyz")
                    break
                except OSError:
                    await asyncio.sleep(0.05)
            if not self.sessions:
                for token in self.tokens:
                    _, made = await self.ask("POST", "/session/create", token, {})
                    self.sessions.append(json.loads(made)["id"])
            yield
        finally:
            self.process.terminate()
            self.process.wait(30)

    def head(
        self, method: str, path: str, token: str = "", accept: str = "application/json", body: bytes = b""
    ) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Accept: {accept}"]
        lines += [f"Authorization: Bearer {token}"] if token else []
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"] if body else []
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    async def ask(self, method: str, path: str, token: str = "", content: Any = None) -> tuple[int, bytes]:
        """One request on a connection of its own."""
        body = json.dumps(content).encode() if content is not None else b""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24)
        writer.write(self.head(method, path, token, body=body))
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        answer = await reader.readexactly(length)
        writer.close()
        return int(head.split()[1]), answer

    async def follow(
        self, number: int, path: str = "", after: str = ""
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """An open stream of one of the accounts."""
        place = number % (ACCOUNTS - 1)  # the last one asks, and nobody watches what it does
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 16)
        path = path or f"/session/{self.sessions[place]}/events"
        writer.write(self.head("GET", path, self.tokens[place], "text/event-stream"))
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head.split(b"\r\n")[0], head
        return reader, writer

    # ------------------------------------------------------------ what it uses

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_kb(self) -> int:
        line = next(one for one in Path(f"/proc/{self.pid}/status").read_text().splitlines() if one.startswith("VmRSS"))
        return int(line.split()[1])

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def written(self) -> int:
        """Bytes that it has written to files."""
        line = next(
            one for one in Path(f"/proc/{self.pid}/io").read_text().splitlines() if one.startswith("write_bytes")
        )
        return int(line.split()[1])

    async def reply(self, token: str, body: bytes) -> tuple[int, int]:
        """One prompt, its stream read to the end: bytes that came, and characters of the reply."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24)
        writer.write(self.head("POST", "/chat", token, "text/event-stream", body))
        came, end = 0, b""
        while b"\n\n" not in end.partition(b"event: end")[2]:
            chunk = await reader.read(1 << 20)
            assert chunk, end[-300:]
            came += len(chunk)
            end = (end + chunk) if b"event: end" in end else (end[-20:] + chunk)
        writer.close()
        turn = json.loads(end[end.index(b"data: ", end.index(b"event: end")) + 6 :].split(b"\n")[0])
        assert turn["state"] == "done", turn["error"]
        return came, len(turn["reply"])

    # ------------------------------------------------------------ what readers do to it

    async def never_read(self, over: asyncio.Event) -> None:
        deaf = []
        for _ in range(200):
            one = socket.socket()
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            one.setblocking(False)
            await asyncio.get_running_loop().sock_connect(one, ("127.0.0.1", self.port))
            one.send(self.head("GET", f"/chat/{self.turn}/events", self.tokens[0], "text/event-stream"))
            deaf.append(one)
        await over.wait()
        for one in deaf:
            one.close()

    async def reconnect(self, over: asyncio.Event) -> None:
        number = 0
        while not over.is_set():
            number += 1
            _, writer = await self.follow(number)
            writer.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await over.wait()

    def write_pieces(self) -> None:
        """Behind the server's back: a running turn that has written more than a reply ever does."""
        self.turn, now = str(new_id()), datetime.now(UTC)
        with sqlite3.connect(self.folder / "var" / "turnkeeper.db", timeout=60) as database:
            columns = [row[1] for row in database.execute("PRAGMA table_info(turn)")]
            session = self.sessions[0]
            changed = {
                "id": f"'{self.turn}'", "session_id": f"'{session}'", "state": "'running'", "reply": "NULL",
                "ended_at": "NULL", "lease_until": f"'{now + timedelta(seconds=55)}'",
            }  # fmt: skip
            chosen = ", ".join(changed.get(name, name) for name in columns)
            database.execute(f"INSERT INTO turn SELECT {chosen} FROM turn LIMIT 1")
            database.execute(
                "INSERT INTO turn_piece (turn_id, reasoning, start, text) WITH RECURSIVE numbers (n) AS "
                "(SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?) "
                "SELECT ?, FALSE, n * 4, 'text' FROM numbers",
                (PIECES - 1, self.turn),
            )

    def renew_lease(self) -> None:
        """Nobody writes the turn, and yet it goes on."""
        with sqlite3.connect(self.folder / "var" / "turnkeeper.db", timeout=60) as database:
            until = str(datetime.now(UTC) + timedelta(seconds=55))
            database.execute("UPDATE turn SET lease_until = ? WHERE id = ?", (until, self.turn))

    async def leave_in_replay(self, over: asyncio.Event) -> None:
        """Twenty at a time, each for a third of a second."""

        async def one() -> None:
            reader, writer = await self.follow(0, f"/chat/{self.turn}/events")
            with suppress(TimeoutError):
                async with asyncio.timeout(0.3):
                    while await reader.read(1 << 16):
                        pass
            writer.close()

        while not over.is_set():
            self.renew_lease()
            await asyncio.gather(*(one() for _ in range(20)))

    async def quickness(self) -> Quickness:
        """Of a request that reads and one that writes, one after the other; the best batch counts."""
        token, session = self.tokens[-1], self.sessions[-1]
        medians, slowest, before = [], 0.0, self.cpu_seconds()
        for batch in range(BATCHES):
            taken = []
            for number in range(ASKED):
                begun = time.perf_counter()
                for method, path, content in (
                    ("GET", f"/session/{session}", None),
                    ("POST", f"/session/{session}/rename", {"title": f"{batch} {number}"}),
                ):
                    status, told = await self.ask(method, path, token, content)
                    assert status == 200, told
                taken.append((time.perf_counter() - begun) * 1000)
            medians.append(statistics.median(taken))
            slowest = max(slowest, *taken)
        used = (self.cpu_seconds() - before) * 1000 / BATCHES / ASKED
        return Quickness(min(medians), slowest, used)


async def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name))
        await bench.prepare()
        for count in STREAMS:
            async with bench.serving():
                await idle(bench, count)
        async with bench.serving():
            await ill_behaved(bench)
            await asyncio.to_thread(bench.write_pieces)
            bench.renew_lease()
            await beside(bench, f"readers that leave in a replay of {PIECES:,} pieces", bench.leave_in_replay)
        for kilobytes in (1, 10, 100, 1000):
            async with bench.serving():
                await cost(bench, kilobytes)


async def ill_behaved(bench: Bench) -> None:
    """Readers that never read, and readers that come and go."""
    await bench.quickness()
    print("\nA read and a write beside readers that behave badly, as a ratio to alone", flush=True)
    _, told = await bench.ask("POST", "/chat", bench.tokens[0], {"prompt": "x" * 90_000})
    bench.turn = json.loads(told)["id"]
    await beside(bench, "200 readers that never read a reply of 90 KB", bench.never_read)
    await beside(bench, "ten reconnects a second", bench.reconnect)


async def beside(bench: Bench, what: str, behave: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    alone, memory, over = await bench.quickness(), bench.resident_kb(), asyncio.Event()
    behaving = asyncio.create_task(behave(over))
    await asyncio.sleep(2)
    meanwhile = await bench.quickness()
    over.set()
    await behaving
    ratio = meanwhile.median_ms / alone.median_ms
    print(f"{what}: {meanwhile}; ratio {ratio:.2f}; {bench.resident_kb() - memory:,} KB more", flush=True)


async def cost(bench: Bench, kilobytes: int) -> None:
    """What a character of a reply costs: computing, bytes written to disk, bytes sent to its reader."""
    token, words = bench.tokens[0], kilobytes * 1000 // 8
    times = max(1, 300 // kilobytes)
    body = json.dumps({"prompt": f"/tokens {words} /delay 0ms"}).encode()
    await bench.reply(token, body)
    characters, sent, cpu, written = 0, 0, bench.cpu_seconds(), bench.written()
    for _ in range(times):
        read, text = await bench.reply(token, body)
        characters, sent = characters + text, sent + read
    cpu, written = bench.cpu_seconds() - cpu, bench.written() - written
    each = (cpu * 1e6 / characters, written / characters, sent / characters)
    if kilobytes == 1:
        print("\nA character of a reply, and as a ratio to a reply of 1 KB", flush=True)
        bench.least = each
    ratios = [one / least for one, least in zip(each, bench.least, strict=True)]
    print(
        f"{kilobytes:>5} KB: {each[0]:.2f} microseconds ({ratios[0]:.2f}), "
        f"{each[1]:.1f} bytes written ({ratios[1]:.2f}), {each[2]:.1f} bytes sent ({ratios[2]:.2f})",
        flush=True,
    )


async def idle(bench: Bench, count: int) -> None:
    """Streams on which nothing happens."""
    await bench.quickness()
    alone, memory, files = await bench.quickness(), bench.resident_kb(), bench.descriptors()
    before = bench.cpu_seconds()
    streams = []
    for start in range(0, count, 50):
        streams += await asyncio.gather(*(bench.follow(start + place) for place in range(50)))
    opening = (bench.cpu_seconds() - before) / count
    held, files = bench.resident_kb() - memory, bench.descriptors() - files
    before = bench.cpu_seconds()
    await asyncio.sleep(IDLE_SECONDS)
    share = (bench.cpu_seconds() - before) / IDLE_SECONDS
    beside = await bench.quickness()
    print(
        f"{count:,} idle streams: {opening * 1000:.1f} ms of CPU to open one, "
        f"{held / count:.0f} KB, {files / count:.2f} files"
    )
    print(f"  {share:.1%} of a CPU for all, {share / count * 1e6:.0f} microseconds a second for each")
    print(f"  a read and a write alone: {alone}")
    print(f"  beside them:              {beside}; ratio {beside.median_ms / alone.median_ms:.2f}", flush=True)
    for _, writer in streams:
        writer.close()
    while bench.descriptors() > 30:
        await asyncio.sleep(0.1)
    print(f"  when they have left: {bench.resident_kb() - memory:,} KB more than before", flush=True)


if __name__ == "__main__":
    asyncio.run(main())

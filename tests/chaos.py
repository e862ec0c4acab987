"""`make chaos`: the server is killed at random moments under running turns, and nothing that was shown may be lost.

`python -m tests.chaos`; KILLS=, TURNS=, SEED=, DATABASE=sqlite|postgresql and WORKERS= in the environment say how
often, under how many turns, by which dice, and on what. Of several workers one is killed at a time, and whoever it cut
off goes on at another. The plan of a seed is always the same, the moments are as exact as the machine. All replies are
known beforehand (`benchmarks.upstream.Story`).
"""

import asyncio
import inspect
import itertools
import os
import random
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import msgspec

from benchmarks.__main__ import running
from benchmarks.reader import PATIENCE_SECONDS, Reader, Refused
from benchmarks.upstream import SETTINGS, Story
from db.engine import open_engine
from services.turn_runner import SWEEP_SECONDS
from services.turns import LEASE
from tests.servers import free_port, postgres_url
from tests.services.invariants import all_rows, the_books_are_balanced
from tests.web.running import PLAIN, ROOT, Server
from tests.web.wire import JSON

ACCOUNTS = ("ann", "bea", "cy", "dan", "eve")
#: whose prompts go without a session; with others' sessions about, one of those would be used again
AUTO = "eve"
#: so many kills come while the prompts come; the others when this share of the replies is being read
EARLY, MOST = 0.25, 0.8
#: and after that, so long at most
MOMENT_SECONDS = 1.2
#: so many starts are cut short by another kill, so soon
STILLBORN, STILLBORN_SECONDS = 0.1, 1.0
#: what of the server's words is shown where something fails
SAID_LINES = 40
#: a start that takes longer is told at once
SLOW_SECONDS = 10
#: more than a life takes on a slow machine
LIFE_SECONDS = 300
#: the rows of all tables are looked at after every so many kills
LOOK_EVERY = 10
#: of one prompt, beside the one that asks again
MOST_READERS = 3
#: what the button says that goes on with a reply
CONTINUE = "Continue where you stopped."


class Asked(msgspec.Struct):
    """One prompt, pursued over as many lives of the server as it takes until its turn has ended."""

    number: int
    account: str
    #: the text of a whole reply
    expected: str
    body: dict[str, Any]
    url: str = "/chat"
    #: made with a key, too; empty for one that the server makes
    session_id: str = ""
    makes_session: bool = False
    switches_to: str = ""
    stops_after: float = 0.0
    turn_id: str = ""
    #: all who read it: each keeps its text and its place
    readers: list[Reader] = []
    #: who reads it in this life
    reader: Reader | None = None
    was_stopped: bool = False
    #: follows from a reply that was interrupted
    goes_on: bool = False
    turn: dict[str, Any] = {}

    @property
    def key(self) -> str:
        return f"prompt {self.number}"

    @property
    def has_ended(self) -> bool:
        return bool(self.turn)

    async def pursue(self, client: httpx.AsyncClient, dice: random.Random) -> None:
        """Ask, or ask again under the same key, or go on reading; until the end. Raises httpx.TransportError."""
        if self.makes_session:
            made = await post(client, "/session/create", {}, f"session {self.number}", 201)
            assert self.session_id in ("", made["id"]), f"one key made {self.session_id} and {made['id']}"
            self.session_id = made["id"]
        if self.session_id and self.url == "/chat":
            self.body["session_id"] = self.session_id
        if self.switches_to:
            body = {"session_id": self.session_id, "model": self.switches_to}
            await post(client, "/models/switch", body, f"switch {self.number}")
        first = self.reader = Reader(client)
        others = [one for one in self.readers[-MOST_READERS:] if one.turn_id and dice.random() < 0.5]
        self.readers.append(first)
        acts = [first.send(self.body, key=self.key, url=self.url), *(self._return(one, client) for one in others)]
        if self.stops_after:
            acts.append(self._stop(first, client))
        try:
            await gather_all(acts)
        finally:
            self._recognise()
        self.turn = await get(client, f"/chat/{self.turn_id}")
        self.session_id = self.turn["session_id"]
        self._hold()

    async def _return(self, reader: Reader, client: httpx.AsyncClient) -> None:
        reader.client = client
        await reader.go_on()

    async def _stop(self, reader: Reader, client: httpx.AsyncClient) -> None:
        await asyncio.sleep(self.stops_after)
        if reader.turn_id and not reader.has_ended:
            self.was_stopped = True
            await post(client, f"/chat/{reader.turn_id}/stop", {}, f"stop {self.number}")

    def _recognise(self) -> None:
        """One key is one turn, whoever reads it and in whatever life."""
        ids = {self.turn_id, *(reader.turn_id for reader in self.readers)} - {""}
        assert len(ids) <= 1, f"one key began {ids}"
        self.turn_id = "".join(ids)

    def _hold(self) -> None:
        """What is stored against what was shown to anybody and what the upstream sends."""
        state, reply = self.turn["state"], self.turn["reply"]
        for reader in self.readers:
            assert reply.startswith(reader.text), f"{self.turn_id}: shown {reader.text!r}, kept {reply!r}"
            assert not reader.has_ended or reader.text == reply, f"{self.turn_id}: {reader.text!r} is not {reply!r}"
        assert self.expected.startswith(reply), f"{self.turn_id}: kept {reply!r} of {self.expected!r}"
        assert state in ("done", "interrupted", *(("stopped",) if self.was_stopped else ())), self.turn
        assert state != "done" or reply == self.expected, f"{self.turn_id}: done with {reply!r} of {self.expected!r}"
        assert state != "interrupted" or self.turn["error"]["code"] == "interrupted", self.turn

    @property
    def is_shown(self) -> bool:
        """Whether in this life somebody sees it, or has seen its end."""
        return self.has_ended or self.is_read

    @property
    def is_read(self) -> bool:
        return self.reader is not None and bool(self.reader.text)


async def gather_all(acts: list[Any]) -> None:
    """All of them to their ends, and then the first that failed."""
    for outcome in await asyncio.gather(*acts, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


async def post(client: httpx.AsyncClient, path: str, body: dict[str, Any], key: str, status: int = 200) -> Any:
    answer = await client.post(path, json=body, headers={"Accept": JSON, "Idempotency-Key": key})
    if answer.status_code != status:
        raise Refused(answer)
    return answer.json()


async def get(client: httpx.AsyncClient, path: str) -> Any:
    answer = await client.get(path, headers={"Accept": JSON})
    if answer.status_code != 200:
        raise Refused(answer)
    return answer.json()


class Chaos:
    """The lives of one server on one database."""

    def __init__(
        self, server: Server, database_url: str, turns: int, seed: int, workers: int, tell: Callable[[str], None]
    ) -> None:
        self._server, self._url, self._turns, self._dice = server, database_url, turns, random.Random(seed)
        self._workers, self._tell = workers, tell
        #: nobody serves at the moment
        self._is_down = False
        self._tokens: dict[str, str] = {}
        #: on SQLite the only process knows at its start that all others are gone
        self._at_once = database_url.startswith("sqlite")
        self.pending: list[Asked] = []
        self.ended: list[Asked] = []
        #: sessions in which nothing goes on: (account, session)
        self._idle: list[tuple[str, str]] = []
        self._numbers = itertools.count()
        #: when the process died
        self.kills: list[float] = []
        #: turns that ran at each kill, by the readers that were cut off
        self.cut: list[int] = []
        #: characters that all those had been shown
        self.shown = 0
        self.restarts: list[float] = []
        #: with several workers: seconds from a kill until a reader that was cut off was told something again
        self.reconnects: list[float] = []
        #: answers that the database could not be asked now: the same is asked again
        self.waits = 0
        #: seconds from a kill until the turns it cut off had ended
        self.freed: list[float] = []
        self.exit_code, self.exit_seconds = -1, 0.0

    async def run(self, kills: int) -> None:
        """So many lives that end by a kill, one that ends everything begun, and a stop."""
        self._tokens = await asyncio.to_thread(self._server.people, *ACCOUNTS)
        for _ in range(kills):
            await self._life()
            await self._rise()
        await self._finish()
        await self._look()
        await self._stop()

    # ------------------------------------------------------------ one life

    async def _life(self) -> None:
        """Prompts, and a kill: while most replies are being written, or now and then while they are being asked for."""
        early, moment = self._dice.random() < EARLY, self._dice.uniform(0.02, MOMENT_SECONDS)
        self.pending += [self._prompt() for _ in range(self._room)]
        for asked in self.pending:
            asked.reader = None
        async with self._clients() as clients, asyncio.timeout(LIFE_SECONDS):
            acts = [asyncio.create_task(self._pursue(asked, clients[asked.account])) for asked in self.pending]
            while not early and sum(asked.is_shown for asked in self.pending) < MOST * len(self.pending):
                await asyncio.sleep(0.005)
                if failed := next((act for act in acts if act.done() and act.exception()), None):
                    failed.result()
            await asyncio.sleep(moment)
            self._kill()
            outcomes = await asyncio.gather(*acts)
        self.cut.append(sum(outcomes))
        self._sort()

    @property
    def _room(self) -> int:
        """New prompts for this life, beside those that are continued or asked again and those that still run."""
        waits = not self._at_once and self._workers == 1  # for leases of earlier lives
        return max(self._turns // 3, self._turns - sum(waits or not asked.readers for asked in self.pending))

    async def _pursue(self, asked: Asked, client: httpx.AsyncClient) -> bool:
        """Whether its reader was cut off while it was reading."""
        dice, cut = random.Random(f"{asked.number} {len(self.kills)}"), False
        while True:
            pursuing = asyncio.create_task(asked.pursue(client, dice))
            if cut:
                before = asked.reader
                while not pursuing.done() and (asked.reader is before or not asked.is_read):
                    await asyncio.sleep(0.005)
                self.reconnects.append(time.time() - self.kills[-1])
            try:
                await pursuing
                return cut
            except httpx.TransportError:
                self.shown += sum(len(reader.text) for reader in asked.readers)
                cut = cut or asked.is_read
                if self._is_down:
                    return cut
                await asyncio.sleep(0.02)
            except Refused as refused:
                if refused.answer.status_code != 503:
                    raise AssertionError(f"{asked.key}: {refused}") from refused
                self.waits += 1
                await asyncio.sleep(1)

    def _kill(self) -> None:
        assert self._server.process is not None
        if self._workers > 1:
            os.kill(self._dice.choice(workers_of(self._server.process.pid)), signal.SIGKILL)
        else:
            self._is_down = True
            self._server.process.kill()
            self._server.process.wait()
        self.kills.append(time.time())

    async def _rise(self) -> None:
        if self._workers == 1:
            while self._dice.random() < STILLBORN:
                self._server.launch()
                await asyncio.sleep(self._dice.uniform(0, STILLBORN_SECONDS))
                self._kill()
            begun = time.monotonic()
            await asyncio.to_thread(self._server.start)
            self._is_down = False
            self.restarts.append(time.monotonic() - begun)
            if self.restarts[-1] > SLOW_SECONDS:
                self._tell(f"after kill {len(self.kills)} it took {self.restarts[-1]:.1f} s to be ready again")
        if self._at_once or self._workers > 1:
            async with self._clients() as clients:
                for account, client in clients.items():
                    await self._is_free(account, client)
        if len(self.restarts or self.cut) % LOOK_EVERY == 0:
            await self._look()
            self._tell(f"{len(self.kills)} kills, {len(self.ended)} turns have ended")

    async def _is_free(self, account: str, client: httpx.AsyncClient, used: int | None = None) -> None:
        """No slot is held, and nothing is reserved beside what the turns have `used`."""
        limits = {one["name"]: one["used"] for one in (await get(client, "/limits"))["limits"]}
        assert limits["concurrent_turns"] == 0, f"{account} holds {limits}"
        assert used is None or limits["tokens_per_day"] == used, f"{account} has used {used}: {limits}"

    async def _finish(self) -> None:
        """Follow everything that was asked to its end."""
        while self.pending:
            async with self._clients() as clients:
                cut = await asyncio.gather(*(self._pursue(one, clients[one.account]) for one in self.pending))
                assert not any(cut), "a stream broke without a kill"
                for account, client in clients.items():
                    await self._is_free(account, client)
            self._sort(again=False)

    async def _stop(self) -> None:
        """SIGTERM under as many replies as before."""
        self.pending = [self._prompt() for _ in range(self._turns)]
        async with self._clients() as clients:
            acts = [asyncio.create_task(self._pursue(asked, clients[asked.account])) for asked in self.pending]
            while sum(asked.is_shown for asked in self.pending) < MOST * len(self.pending):
                await asyncio.sleep(0.005)
            begun, self._is_down = time.monotonic(), True
            self.exit_code = await asyncio.to_thread(self._server.stop)
            self.exit_seconds = time.monotonic() - begun
            await asyncio.gather(*acts)
        rows = await self._rows()
        the_books_are_balanced(rows)
        running = [turn for turn in rows["turn"] if turn["state"] == "running"]
        assert not running, f"after the stop {len(running)} turns run"
        kept = {str(turn["id"]): turn["reply"] for turn in rows["turn"]}
        for asked in self.pending:
            for reader in asked.readers:
                assert not reader.text or kept[reader.turn_id].startswith(reader.text), f"lost: {reader.text!r}"
            assert asked.expected.startswith(kept.get(asked.turn_id, ""))

    # ------------------------------------------------------------ what is asked

    def _prompt(self) -> Asked:
        """In a session of its own, or where an earlier turn has ended."""
        number, dice = next(self._numbers), self._dice
        long = dice.random() < 0.8
        story = Story(f"{number}", dice.randint(60, 120) if long else dice.randint(1, 12), dice.choice([20, 40, 80]))
        asked = Asked(number, dice.choice(ACCOUNTS), story.text, {"prompt": story.prompt}, readers=[])
        if dice.random() < 0.1:
            asked.stops_after = dice.uniform(0.1, 1.5)
        mine = [one for one in self._idle if one[0] == asked.account]
        if mine and dice.random() < 0.5:
            chosen = dice.choice(mine)
            self._idle.remove(chosen)
            asked.session_id = chosen[1]
        else:
            asked.makes_session = asked.account != AUTO
        if asked.account != AUTO and dice.random() < 0.2:
            asked.switches_to = dice.choice(["fast", "smart"])
        return asked

    def _after(self, ended: Asked) -> Asked | None:
        """What somebody asks who finds a reply interrupted: to go on with it, or for all of it again."""
        if ended.turn["state"] != "interrupted" or self._dice.random() < 0.5:
            return None
        left = ended.expected[len(ended.turn["reply"]) :]
        follow = Asked(
            next(self._numbers), ended.account, left, {}, session_id=ended.session_id, readers=[], goes_on=True
        )
        if ended.turn["reply"] and left and self._dice.random() < 0.5:
            follow.body = {"session_id": ended.session_id, "parent_id": ended.turn_id, "prompt": CONTINUE}
        else:
            follow.url, follow.expected = f"/chat/{ended.turn_id}/retry", ended.expected
        return follow

    def _sort(self, *, again: bool = True) -> None:
        """Put away what has ended, and ask what follows from it."""
        ended = [asked for asked in self.pending if asked.has_ended]
        self.pending = [asked for asked in self.pending if not asked.has_ended]
        self.ended += ended
        for asked in ended:
            if asked.turn["state"] == "interrupted":
                begun, ended_at = (
                    datetime.fromisoformat(asked.turn[at]).timestamp() for at in ("created_at", "ended_at")
                )
                self.freed.append(ended_at - next(at for at in self.kills if at >= begun))
            if again and (follow := self._after(asked)) is not None:
                self.pending.append(follow)
            else:
                self._idle.append((asked.account, asked.session_id))

    # ------------------------------------------------------------ looking

    @asynccontextmanager
    async def _clients(self) -> AsyncIterator[dict[str, httpx.AsyncClient]]:
        """Fresh connections for everybody."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        clients = {
            name: httpx.AsyncClient(
                base_url=self._server.url,
                headers={"Authorization": f"Bearer {token}"},
                timeout=PATIENCE_SECONDS,
                verify=PLAIN,
                limits=limits,
            )
            for name, token in self._tokens.items()
        }
        try:
            yield clients
        finally:
            for client in clients.values():
                await client.aclose()

    async def _rows(self) -> dict[str, list[dict[str, Any]]]:
        engine = open_engine(self._url)
        await engine.start()
        try:
            return await all_rows(engine)
        finally:
            await engine.stop()

    async def _look(self) -> None:
        """The invariants, and one turn for each prompt whose turn is known."""
        rows = await self._rows()
        the_books_are_balanced(rows)
        told = Counter(asked.turn_id for asked in (*self.ended, *self.pending) if asked.turn_id)
        assert set(told.values()) <= {1}, "two prompts have one turn"
        there = {str(turn["id"]) for turn in rows["turn"]}
        assert set(told) <= there, f"turns are gone: {set(told) - there}"
        unknown = len(there - set(told))
        waiting = sum(not asked.turn_id for asked in self.pending)
        assert unknown <= waiting, f"{unknown} turns of {waiting} prompts that nobody has an answer to"
        if all(turn["state"] != "running" for turn in rows["turn"]):
            today, used = datetime.now(UTC).date(), Counter[UUID]()
            for row in rows["usage"]:
                used[row["owner_id"]] += row["tokens"] if row["day"] == today else 0
            async with self._clients() as clients:
                for account in rows["account"]:
                    await self._is_free(account["name"], clients[account["name"]], used[account["id"]])

    @property
    def report(self) -> str:
        states = Counter(asked.turn["state"] for asked in self.ended)
        kept = sum(len(asked.turn["reply"]) for asked in self.ended)
        again = sum(asked.goes_on for asked in self.ended)
        return "\n".join(
            [
                f"kills: {len(self.kills)}, each under {statistics.median(self.cut):.0f} replies that were being read"
                f" ({min(self.cut)} to {max(self.cut)})",
                f"turns: {len(self.ended)} ({', '.join(f'{count} {state}' for state, count in states.most_common())}),"
                f" {again} of them continued or asked again; {sum(len(asked.readers) for asked in self.ended)} streams",
                f"characters: {self.shown:,} shown to readers that were cut off, {kept:,} stored, each held against"
                " what was sent; lost: 0, doubled: 0",
                *(
                    f"{what} {middle_and_most(seconds)}"
                    for what, seconds in (
                        ("the server was ready again after", self.restarts),
                        ("readers were told something by another worker after", self.reconnects),
                        ("after a kill, interrupted turns were free after", self.freed),
                    )
                    if seconds
                ),
                f"answers that said to come again, for the database was away: {self.waits}",
                f"SIGTERM under {self._turns} replies: exit code {self.exit_code} after {self.exit_seconds:.2f} s",
            ]
        )


def workers_of(pid: int) -> list[int]:
    """The processes that serve under a parent."""
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def middle_and_most(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({max(seconds):.2f} s at most)"


def run(
    folder: Path, kills: int, turns: int, seed: int, database_url: str = "", workers: int = 1,
    tell: Callable[[str], None] = lambda line: None,
) -> Chaos:  # fmt: skip
    """A server in `folder`, killed again and again. Raises AssertionError where anything is lost."""
    port = free_port()
    environment = {"TURNKEEPER_DATABASE_URL": database_url} if database_url else {}
    with running("benchmarks.upstream", str(port), "20", "5", folder=ROOT, port=port):
        server = Server(folder, SETTINGS.format(port=port), TURNKEEPER_DISCOVER="false", **environment)
        server.arguments, server.start_seconds = ("--workers", str(workers)), PATIENCE_SECONDS
        server.forked = False
        server.start()
        try:
            chaos = Chaos(server, database_url or f"sqlite:///{folder}/var/turnkeeper.db", turns, seed, workers, tell)
            asyncio.run(chaos.run(kills))
        except BaseException:
            tell("\n".join(server.output.splitlines()[-SAID_LINES:]))
            raise
        finally:
            if server.process is not None and server.process.poll() is None:
                server.stop()
        assert not server.noise, "\n".join(server.noise)
    assert chaos.exit_code == 0
    slowest = LEASE.total_seconds() + 2 * SWEEP_SECONDS + max(chaos.restarts, default=0.0)
    assert max(chaos.freed, default=0.0) <= slowest, chaos.report
    return chaos


def main() -> None:
    kills, turns = int(os.environ.get("KILLS") or 200), int(os.environ.get("TURNS") or 50)
    seed = int(os.environ.get("SEED") or time.time())
    database, workers = os.environ.get("DATABASE") or "sqlite", int(os.environ.get("WORKERS") or 1)
    tell = partial(print, flush=True)
    tell(f"{kills} kills of {workers} under {turns} turns on {database}, SEED={seed}")
    with tempfile.TemporaryDirectory() as folder:
        if database == "sqlite":
            chaos = run(Path(folder), kills, turns, seed, tell=tell)
        else:
            with contextmanager(inspect.unwrap(postgres_url))() as url:
                chaos = run(Path(folder), kills, turns, seed, url, workers, tell)
    print(chaos.report)


if __name__ == "__main__":
    main()

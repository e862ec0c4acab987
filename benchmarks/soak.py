"""`make soak`: an hour of mixed load on a real server, and whether anything of it grows, fails or gets lost.

`python -m benchmarks.soak`; SECONDS= and PEOPLE= in the environment say how long and how many. The people send prompts
whose replies are known beforehand, as scripts and as pages do; they leave and come back, stop, ask again, switch, read,
and ask for what is refused, beside a crowd of silent streams. The exit code is 0 where the verdict is.
"""

import asyncio
import itertools
import os
import random
import re
import sqlite3
import statistics
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import msgspec

from benchmarks.__main__ import cpu_seconds, resident_mb, running
from benchmarks.reader import PATIENCE_SECONDS, PageReader, Reader, Refused, events_of, turn_in
from benchmarks.upstream import SETTINGS, Story
from benchmarks.watched import Told
from db.engine import SQLITE_READERS
from tests.servers import free_port
from tests.web.running import PLAIN, ROOT, Server
from tests.web.wire import ABSENT, BROWSER, HTMX, JSON

#: beside those of `upstream.SETTINGS`
TIGHT = """
[groups.tight]
turns = "6/min burst 2"
sessions_created = "2/min burst 2"
concurrent_turns = 1
"""

#: what a person does, and how often in proportion
HABITS = {
    "talk": 6, "come_and_go": 4, "page": 4, "wait": 2, "stop": 2, "ask_again": 2, "switch": 3, "read": 14,
    "refused": 3, "tidy": 2,
}  # fmt: skip
#: between two acts of one person
THINKING_SECONDS = 1.5
CROWD = 60
SESSIONS_OF_A_PERSON = 12
#: a line of the log that tells of nothing wrong
NO_TROUBLE = re.compile(r"\S+ INFO ")
#: the table has this many lines
LINES = 24
#: a busy moment opens the last of the connections to the file, which are kept: each has the file, its log and its index
KEPT_FDS = 3 * SQLITE_READERS
#: shorter runs say nothing about growth
TELLING_SECONDS = 600
#: at the beginning, while caches fill
WARM_UP = 0.15
#: how much more the last quarter may have than the first: in proportion, and beside that
ROOM = {
    "rss_mb": (0.08, 6.0), "blocks": (0.08, 20_000.0), "tasks": (0.15, 6.0), "fds": (0.15, 6.0), "threads": (0.1, 2.0),
    "wal_mb": (0.5, 8.0),
}  # fmt: skip
#: median latencies on a machine that others use
LATENCY_ROOM = (1.0, 10.0)


class Sample(msgspec.Struct):
    """How the server stood at one moment."""

    at: float
    rss_mb: float
    blocks: int
    tasks: int
    fds: int
    threads: int
    #: of one core, since the last one
    cpu: float
    db_mb: float
    wal_mb: float


class Tally:
    """What was asked and what came of it."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        #: kind → [(seconds since the beginning, milliseconds)]
        self.taken: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self.answers: Counter[str] = Counter()
        self.faults: list[str] = []
        #: replies held against the story character by character, their characters, and connections that went on
        self.replies = self.characters = self.resumed = 0

    @property
    def now(self) -> float:
        return time.monotonic() - self.begun

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        before = time.monotonic()
        yield
        self.taken[kind].append((self.now, (time.monotonic() - before) * 1000))

    def answered(self, answer: httpx.Response, *expected: int) -> httpx.Response:
        """Count an answer; one that nobody expected is a fault."""
        code = ""
        if answer.status_code >= 400:
            with suppress(ValueError, KeyError, AttributeError):
                code = f" {answer.json()['code']}"
        self.answers[f"{answer.status_code}{code}"] += 1
        if answer.status_code not in (expected or (200,)):
            self.faults.append(f"{answer.request.method} {answer.request.url.path}: {answer.status_code} {answer.text}")
        return answer

    def check(self, holds: bool, what: str) -> None:
        if not holds:
            self.faults.append(what)


class Person:
    """Somebody with sessions, who does one thing after the other."""

    def __init__(self, client: httpx.AsyncClient, name: str, dice: random.Random, tally: Tally) -> None:
        self.client, self.name, self.dice, self.tally = client, name, dice, tally
        self.sessions: list[str] = []
        #: ended turns of theirs: (session, turn, story)
        self.turns: list[tuple[str, str, Story]] = []
        self._stories = itertools.count()

    async def live(self, until: float, thinking_seconds: float) -> None:
        """One of everything to begin with, however long that takes, then by habit."""
        habits: dict[str, Callable[[], Awaitable[None]]] = {name: getattr(self, name) for name in HABITS}
        first = self.dice.sample(list(HABITS), len(HABITS))
        while first or time.monotonic() < until:
            left = max(0.0, until - time.monotonic())
            await asyncio.sleep(min(left, self.dice.expovariate(1 / thinking_seconds)))
            act = first.pop() if first else self.dice.choices(list(HABITS), list(HABITS.values()))[0]
            try:
                await habits[act]()
            except Refused as refused:
                self.tally.answered(refused.answer)
            except Exception as error:
                where = traceback.format_exc(limit=-4)
                self.tally.faults.append(f"{self.name} {act} at {self.tally.now:.0f} s: {error!r} {where}"[:3000])

    # ------------------------------------------------------------ parts of what they do

    async def ask(
        self, kind: str, method: str, path: str, *expected: int, accept: str = JSON, **request: Any
    ) -> httpx.Response:
        headers = request.pop("headers", {"Accept": accept})
        with self.tally.timed(kind):
            answer = await self.client.request(method, path, headers=headers, **request)
        return self.tally.answered(answer, *expected)

    async def session(self) -> str:
        if len(self.sessions) < 3 or (len(self.sessions) < SESSIONS_OF_A_PERSON and self.dice.random() < 0.2):
            answer = await self.ask("create", "POST", "/session/create", 201, json={})
            self.sessions.append(answer.json()["id"])
        return self.dice.choice(self.sessions)

    def story(self, least: int = 3, most: int = 90) -> Story:
        pieces = self.dice.randint(least, most)
        return Story(f"{self.name}-{next(self._stories)}", pieces, self.dice.choice([0, 10, 20, 40]))

    async def kept(self, session_id: str, turn_id: str, story: Story, shown: str, *, stopped: bool = False) -> None:
        """Hold a reply that has ended against its story and against what was shown of it."""
        turn = (await self.ask("get a turn", "GET", f"/chat/{turn_id}")).json()
        whole = turn["reply"]
        self.tally.replies += 1
        self.tally.characters += len(whole)
        self.tally.check(whole == shown, f"{turn_id}: stored {whole!r}, shown {shown!r}")
        if turn["state"] == "stopped" and stopped:
            self.tally.check(story.text.startswith(whole), f"{turn_id}: stopped with {whole!r}")
        else:
            self.tally.check((turn["state"], whole) == ("done", story.text), f"{turn_id}: {turn['state']} {whole!r}")
        self.turns = [*self.turns[-30:], (session_id, turn_id, story)]

    async def begun(self, story: Story, leave_after: int) -> tuple[str, Reader]:
        session_id, reader = await self.session(), Reader(self.client)
        begun = self.tally.now, time.monotonic()
        sending = asyncio.create_task(
            reader.send({"session_id": session_id, "prompt": story.prompt}, leave_after=leave_after)
        )
        while not reader.text and not sending.done():
            await asyncio.sleep(0.005)
        self.tally.taken["first text"].append((begun[0], (time.monotonic() - begun[1]) * 1000))
        await sending
        self.tally.answers["200"] += 1
        return session_id, reader

    # ------------------------------------------------------------ what they do

    async def talk(self) -> None:
        """Send a prompt and read its stream to the end."""
        story = self.story()
        session_id, reader = await self.begun(story, 0)
        await self.kept(session_id, reader.turn_id, story, reader.text)

    async def come_and_go(self) -> None:
        """Leave a reply again and again, for a while, and go on where one was."""
        story = self.story(20, 120)
        session_id, reader = await self.begun(story, self.dice.randint(1, 3))
        while not reader.has_ended:
            await asyncio.sleep(self.dice.random() / 2)
            self.tally.resumed += 1
            await reader.go_on(leave_after=self.dice.randint(1, 6), again=self.dice.random() < 0.2)
        await self.kept(session_id, reader.turn_id, story, reader.text)

    async def page(self) -> None:
        """Send a prompt as a page does and follow the session's fragments, with breaks."""
        story, session_id = self.story(), await self.session()
        shown = await self.ask("page", "GET", f"/session/{session_id}", accept=BROWSER)
        form = {"session_id": session_id, "prompt": story.prompt, "idempotency_key": uuid4().hex}
        answer = await self.ask("send by form", "POST", "/chat", data=form, headers=HTMX)
        turn_id = turn_in(answer.text)
        self.tally.check(turn_id not in shown.text, f"{turn_id} was there before")
        reader = PageReader(self.client, session_id, turn_id)
        while not reader.has_ended:
            await reader.go_on(leave_after=self.dice.choice([0, 2, 5]))
            self.tally.resumed += not reader.has_ended
        after = Reader(self.client, turn_id)
        await after.go_on()
        await self.kept(session_id, turn_id, story, after.text)

    async def wait(self) -> None:
        """Send a prompt and wait for the whole turn."""
        story, session_id = self.story(most=20), await self.session()
        answer = await self.client.post(
            "/chat", json={"session_id": session_id, "prompt": story.prompt}, headers={"Accept": JSON}
        )
        turn = self.tally.answered(answer).json()
        await self.kept(session_id, turn["id"], story, turn["reply"])

    async def stop(self) -> None:
        """Stop a reply in the middle, from beside its stream."""
        story = self.story(60, 120)
        session_id, reader = await self.begun(story, 2)
        await self.ask("stop", "POST", f"/chat/{reader.turn_id}/stop", json={})
        await reader.go_on()
        await self.kept(session_id, reader.turn_id, story, reader.text, stopped=True)

    async def ask_again(self) -> None:
        """Retry an ended turn, now and then with the other model."""
        turns = [turn for turn in self.turns if turn[0] in self.sessions]
        if not turns:
            return
        (session_id, turn_id, story), reader = self.dice.choice(turns), Reader(self.client)
        body = {"model": "smart"} if self.dice.random() < 0.3 else {}
        await reader.send(body, url=f"/chat/{turn_id}/retry")
        self.tally.answers["200"] += 1
        await self.kept(session_id, reader.turn_id, story, reader.text)

    async def switch(self) -> None:
        """Switch the model, at rest or while a reply is written."""
        body = {"session_id": await self.session(), "model": self.dice.choice(["fast", "smart"])}
        if self.dice.random() < 0.3:
            story = self.story(40, 80)
            session_id, reader = await self.begun(story, 1)
            body |= {"session_id": session_id, "when": self.dice.choice(["next_turn", "stop"])}
            await self.ask("switch", "POST", "/models/switch", json=body)
            await reader.go_on()
            await self.kept(session_id, reader.turn_id, story, reader.text, stopped=body["when"] == "stop")
        else:
            await self.ask("switch", "POST", "/models/switch", json=body)

    async def read(self) -> None:
        """Look at something, as a page or as JSON."""
        session_id, accept = await self.session(), self.dice.choice([JSON, JSON, BROWSER])
        kind, path = self.dice.choice([
            ("list", "/session?limit=30"), ("list", "/session?q=tell"), ("get", f"/session/{session_id}"),
            ("get", f"/session/{session_id}/turns"), ("get", f"/session/{session_id}/turns?all=true"),
            ("get", f"/session/{session_id}/journal"), ("small", "/models"), ("small", "/limits"), ("list", "/"),
            ("small", "/healthz"),
        ])  # fmt: skip
        kind = f"{kind} {'page' if accept == BROWSER else 'JSON'}"
        await self.ask(kind, "GET", path, accept=accept)

    async def refused(self) -> None:
        """Ask for what there is not, or not now."""
        session_id = await self.session()
        match self.dice.randrange(5):
            case 0:
                await self.ask("refused", "GET", f"/session/{ABSENT}", 404)
            case 1:
                body = {"session_id": session_id, "model": "nonesuch"}
                await self.ask("refused", "POST", "/models/switch", 422, json=body)
            case 2:
                await self.ask("refused", "POST", "/chat", 400, json={"session_id": session_id})
            case 3:
                story = self.story(20, 40)
                session_id, reader = await self.begun(story, 1)
                if not reader.has_ended:
                    body = {"session_id": session_id, "prompt": story.prompt, "expected_version": -1}
                    await self.ask("refused", "POST", "/chat", 409, json=body)
                    await reader.go_on()
                await self.kept(session_id, reader.turn_id, story, reader.text)
            case _:
                await self.ask("refused", "POST", f"/session/{session_id}/rename", 422, 400, json={"title": "\0"})

    async def tidy(self) -> None:
        """Give a name, or delete the oldest session, so that nobody has more and more of them."""
        session_id = await self.session()
        if len(self.sessions) < SESSIONS_OF_A_PERSON:
            title = f"{self.name} {self.dice.random()}"
            await self.ask("rename", "POST", f"/session/{session_id}/rename", json={"title": title})
        else:
            oldest = self.sessions.pop(0)
            await self.ask("delete", "POST", f"/session/{oldest}/delete", 204, json={})


async def somebody_limited(client: httpx.AsyncClient, tally: Tally, until: float) -> None:
    """Send more than allowed and wait as long as the refusal says; then it must be allowed."""
    while time.monotonic() < until:
        story = Story(f"tight-{tally.now}", 3, 0)
        answer = await client.post("/chat", json={"prompt": story.prompt}, headers={"Accept": JSON})
        tally.answered(answer, 200, 429)
        if answer.status_code == 429:
            told = float(answer.headers["retry-after"])
            tally.check(told == answer.json()["retry_after_seconds"], "header and body differ")
            await asyncio.sleep(min(told, max(0.0, until - time.monotonic())))
            if time.monotonic() < until:
                again = await client.post("/chat", json={"prompt": story.prompt}, headers={"Accept": JSON})
                tally.answered(again, 200)


async def a_crowd(client: httpx.AsyncClient, tally: Tally, until: float) -> None:
    """Streams that nobody writes in; one session after the other gets a new name, which wakes those who watch it."""
    sessions = [
        (await client.post("/session/create", json={"title": f"{one}"})).json()["id"] for one in range(CROWD // 4)
    ]

    async def rename() -> None:
        for number in itertools.count():
            await asyncio.sleep(2)
            path = f"/session/{sessions[number % len(sessions)]}/rename"
            tally.answered(await client.post(path, json={"title": f"name {number}"}))

    async with asyncio.TaskGroup() as group:
        renaming = group.create_task(rename())
        watching = [
            group.create_task(a_silent_stream(client, sessions[number % len(sessions)], number, tally, until))
            for number in range(CROWD)
        ]
        await asyncio.wait(watching)
        renaming.cancel()


async def a_silent_stream(client: httpx.AsyncClient, session_id: str, number: int, tally: Tally, until: float) -> None:
    """Keep a session's stream open and read what comes; now and then begin anew."""
    dice = random.Random(f"{session_id} {number}")
    while (left := until - time.monotonic()) > 0:
        try:
            async with asyncio.timeout(min(left, dice.uniform(60, 600))):
                async with events_of(client, f"/session/{session_id}/events", page=number % 2 == 0) as events:
                    async for event in events:
                        tally.check(event.name != "gone", "a silent stream was sent away")
                tally.check(time.monotonic() >= until, "a silent stream ended by itself")
        except TimeoutError:
            continue
        except Exception as error:
            tally.faults.append(f"a silent stream: {error!r}")


class Watch:
    """Samples of the server's process and of its file."""

    def __init__(self, server: Server, told: Path) -> None:
        self._server, self._told = server, told
        self.samples: list[Sample] = []
        self._cpu = self._at = 0.0

    @property
    def pid(self) -> int:
        assert self._server.process is not None
        return self._server.process.pid

    def open(self) -> Counter[str]:
        """What its tasks are and where its descriptors lead."""
        found = Counter(msgspec.json.decode(self._told.read_bytes(), type=Told).tasks)
        for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                found[re.sub(r":\[\d+\]", "", descriptor.readlink().name)] += 1
        return found

    def look(self, at: float) -> Sample:
        told = msgspec.json.decode(self._told.read_bytes(), type=Told)
        cpu, now = cpu_seconds(self.pid), time.monotonic()
        share = (cpu - self._cpu) / (now - self._at) if self._at else 0.0
        self._cpu, self._at = cpu, now
        file = self._server.folder / "var" / "turnkeeper.db"
        wal = file.with_name("turnkeeper.db-wal")
        status = Path(f"/proc/{self.pid}/status").read_text()
        threads = re.search(r"Threads:\s+(\d+)", status)
        assert threads
        return Sample(
            at=at,
            rss_mb=resident_mb(self.pid),
            blocks=told.blocks,
            tasks=sum(told.tasks.values()),
            fds=len(os.listdir(f"/proc/{self.pid}/fd")),
            threads=int(threads[1]),
            cpu=share,
            db_mb=file.stat().st_size / 2**20,
            wal_mb=wal.stat().st_size / 2**20 if wal.exists() else 0.0,
        )

    async def go_on(self, tally: Tally, every_seconds: float) -> None:
        while True:
            await asyncio.sleep(every_seconds)
            self.samples.append(self.look(tally.now))

    async def rest(self, fds: int, tasks: int) -> Sample:
        """How it stands once no more is open than that, or after a while."""
        for _ in range(120):
            found = self.look(0)
            if found.fds <= fds and found.tasks <= tasks:
                break
            await asyncio.sleep(0.25)
        return found


class Finding(msgspec.Struct):
    """One line of the verdict."""

    what: str
    holds: bool
    detail: str


def growth(name: str, values: list[tuple[float, float]], room: tuple[float, float], seconds: float) -> Finding:
    """The median of the last quarter beside that of the first, without the warm-up."""
    steady = [value for at, value in values if at >= seconds * WARM_UP]
    quarter = max(1, len(steady) // 4)
    first, last = (statistics.median(part) if part else 0.0 for part in (steady[:quarter], steady[-quarter:]))
    holds = last <= first * (1 + room[0]) + room[1]
    return Finding(f"{name} is flat", holds, f"{first:.4g} in the first quarter, {last:.4g} in the last")


class Soak(msgspec.Struct):
    """All that a run has found."""

    seconds: float
    tally: Tally
    samples: list[Sample]
    before: Sample
    after: Sample
    #: what was open after and not before
    kept_open: Counter[str]
    #: turns that run, and tokens reserved, by the file when everybody has left
    held: tuple[int, int]
    exit_code: int
    exit_seconds: float
    complaints: list[str]

    @property
    def verdict(self) -> list[Finding]:
        tally = self.tally
        failed = {name: count for name, count in tally.answers.items() if name.startswith("5")}
        kept = f"{tally.replies} replies, {tally.characters:,} characters, {tally.resumed} connections resumed"
        back = f"tasks {self.before.tasks} → {self.after.tasks}, descriptors {self.before.fds} → {self.after.fds}"
        more = ", ".join(f"{count} × {name}" for name, count in sorted(self.kept_open.items()))
        stop = f"exit code {self.exit_code} after {self.exit_seconds:.2f} s, with streams open"
        found = [
            Finding("no answer is a 5xx", not failed, str(failed or sum(tally.answers.values()))),
            Finding("everything was answered as it should be", not tally.faults, "; ".join(tally.faults[:5])),
            Finding("every reply is what the model sent", not tally.faults and tally.replies > 0, kept),
            Finding("the log is clean", not self.complaints, "\n".join(self.complaints[:20])),
            Finding("nothing runs or is reserved at the end", self.held == (0, 0), f"{self.held}"),
            Finding("tasks and descriptors are given back", self._given_back, f"{back} ({more})"),
            Finding("SIGTERM ends it", self.exit_code == 0, stop),
        ]
        if self.seconds >= TELLING_SECONDS:
            for name, room in ROOM.items():
                values = [(sample.at, float(getattr(sample, name))) for sample in self.samples]
                found.append(growth(name, values, room, self.seconds))
            for kind in ("first text", "get JSON", "list JSON", "get page", "create", "switch"):
                found.append(growth(f"the time of “{kind}”, in ms,", tally.taken[kind], LATENCY_ROOM, self.seconds))
        return found

    @property
    def _given_back(self) -> bool:
        return self.after.tasks <= self.before.tasks and self.after.fds <= self.before.fds + KEPT_FDS

    def told(self) -> Iterator[str]:
        """The tables, in Markdown."""
        columns = "minute, RSS MB, blocks, tasks, fds, threads, CPU %, database MB, WAL MB, turns"
        yield row(*columns.split(", "), "first text, ms", "reads, ms")
        yield row(*["---"] * 12)
        width = self.seconds / LINES
        for line in range(LINES):
            begin, end = line * width, (line + 1) * width
            part = [sample for sample in self.samples if begin <= sample.at < end]
            if not part:
                continue
            middle = Sample(
                *(statistics.median(column) for column in zip(*map(msgspec.structs.astuple, part), strict=True))
            )
            first = [ms for at, ms in self.tally.taken["first text"] if begin <= at < end]
            reads = [
                ms
                for kind, taken in self.tally.taken.items()
                if kind.partition(" ")[0] in ("list", "get", "small")
                for at, ms in taken
                if begin <= at < end
            ]
            sizes = (f"{size:.1f}" for size in (middle.db_mb, middle.wal_mb))
            counts = (f"{count:.0f}" for count in (middle.blocks, middle.tasks, middle.fds, middle.threads))
            cpu = f"{middle.cpu * 100:.0f}"
            yield row(
                f"{end / 60:.1f}", f"{middle.rss_mb:.1f}", *counts, cpu, *sizes, len(first), ends(first), ends(reads)
            )
        yield ""
        yield row("what", "times", "p50 ms", "p99 ms", "max ms")
        yield row(*["---"] * 5)
        for kind, taken in sorted(self.tally.taken.items()):
            ms = sorted(one for _, one in taken)
            yield row(kind, len(ms), *(f"{one:.1f}" for one in (at_share(ms, 0.5), at_share(ms, 0.99), ms[-1])))
        yield ""
        yield row("answer", "times")
        yield row(*["---"] * 2)
        yield from (row(*answer) for answer in sorted(self.tally.answers.items()))
        yield ""
        for finding in self.verdict:
            yield f"{'ok  ' if finding.holds else 'FAIL'}  {finding.what}: {finding.detail}"


def at_share(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def ends(values: list[float]) -> str:
    """Median and 99th percentile."""
    return f"{at_share(sorted(values), 0.5):.0f} · {at_share(sorted(values), 0.99):.0f}"


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def held_in(file: Path) -> tuple[int, int]:
    """(turns that run, tokens reserved by them)."""
    query = "SELECT COUNT(*), COALESCE(SUM(reserved_tokens), 0) FROM turn WHERE state = 'running'"
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
        turns, tokens = database.execute(query).fetchone()
    return turns, tokens


async def soak(server: Server, told: Path, seconds: float, people: int, thinking_seconds: float, seed: int) -> Soak:
    """The load and the watching; the server is stopped at the end, with streams open."""
    assert server.setup_url, "the greeting is there"
    greeting = len(server.output)
    tokens = server.people(*(f"person{number}" for number in range(people)), "tim::tight", "quinn")

    def client(name: str) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {tokens[name]}"}
        # The server closes a connection that has been idle for 5 s: one that is older must not be used again.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=8, keepalive_expiry=2)
        return httpx.AsyncClient(
            base_url=server.url, headers=headers, timeout=PATIENCE_SECONDS, verify=PLAIN, limits=limits
        )

    @asynccontextmanager
    async def everybody(tally: Tally) -> Any:
        async with client("tim") as tim, client("quinn") as quinn:
            mine = [client(f"person{number}") for number in range(people)]
            try:
                yield (
                    [
                        Person(one, f"person{number}", random.Random(f"{seed} {number}"), tally)
                        for number, one in enumerate(mine)
                    ],
                    tim,
                    quinn,
                )
            finally:
                for one in mine:
                    await one.aclose()

    watch = Watch(server, told)
    async with everybody(Tally()) as (first, *_):  # the first turn imports the provider's SDK; pages compile templates
        for act in ("talk", "page", "read", "switch"):
            await getattr(first[0], act)()
        assert not first[0].tally.faults, first[0].tally.faults
    await asyncio.sleep(3)  # connections to the provider are kept that long
    before, open_before = watch.look(0), watch.open()

    tally = Tally()
    watching = asyncio.create_task(watch.go_on(tally, max(0.5, min(5.0, seconds / 40))))
    until = time.monotonic() + seconds
    async with everybody(tally) as (persons, tim, quinn):
        async with asyncio.TaskGroup() as group:
            group.create_task(a_crowd(quinn, tally, until))
            for person in persons:
                group.create_task(person.live(until, thinking_seconds))
            group.create_task(somebody_limited(tim, tally, until))
        watching.cancel()
    after = await watch.rest(before.fds + KEPT_FDS, before.tasks)
    kept_open = watch.open() - open_before
    held = held_in(server.folder / "var" / "turnkeeper.db")

    async with everybody(Tally()) as (
        persons,
        *_,
    ):  # what a stop meets: replies that are written, streams that are open
        async with asyncio.TaskGroup() as group:
            for person in persons:
                group.create_task(person.begun(person.story(200, 200), 1))
            ending = time.monotonic() + 60
            open_streams = [
                asyncio.create_task(a_silent_stream(person.client, person.sessions[0], 0, Tally(), ending))
                for person in persons
                if person.sessions
            ]
        await asyncio.sleep(0.2)
        stopped = time.monotonic()
        exit_code = await asyncio.to_thread(server.stop)
        exit_seconds = time.monotonic() - stopped
        for one in open_streams:
            one.cancel()
        await asyncio.gather(*open_streams, return_exceptions=True)
    if (left := held_in(server.folder / "var" / "turnkeeper.db")) != (0, 0):
        tally.faults.append(f"after the stop there run or are reserved {left}")
    told = [line for line in server.output[greeting:].splitlines() if line and not NO_TROUBLE.match(line)]
    complaints = [*server.noise, *told]
    return Soak(seconds, tally, watch.samples, before, after, kept_open, held, exit_code, exit_seconds, complaints)


def run(folder: Path, seconds: float, people: int, seed: int, thinking_seconds: float = THINKING_SECONDS) -> Soak:
    """A server, its upstream and the load, in `folder`; all of it has ended when this returns."""
    port, told = free_port(), folder / "watched"
    with running("benchmarks.upstream", str(port), "20", "5", folder=ROOT, port=port):
        server = Server(folder, SETTINGS.format(port=port) + TIGHT, WATCHED=str(told), TURNKEEPER_DISCOVER="false")
        server.program, server.start_seconds, server.forked = "benchmarks.watched", PATIENCE_SECONDS, False
        server.start()
        try:
            while not told.exists():
                time.sleep(0.05)
            return asyncio.run(soak(server, told, seconds, people, thinking_seconds, seed))
        finally:
            if server.process is not None and server.process.poll() is None:
                server.stop()


def main() -> None:
    seconds, people = float(os.environ.get("SECONDS") or 3600), int(os.environ.get("PEOPLE") or 6)
    seed = int(os.environ.get("SEED") or time.time())
    print(f"{seconds:.0f} s, {people} people, {CROWD} silent streams, SEED={seed}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        found = run(Path(name), seconds, people, seed)
    print("\n".join(found.told()))
    sys.exit(0 if all(finding.holds for finding in found.verdict) else 1)


if __name__ == "__main__":
    main()

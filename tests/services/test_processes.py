"""Several processes on one database: every limit exact, no chain broken, one effect for each key, nothing left held.

On SQLite several processes share one file, which a server never does, but its command line beside it. With
LONG_TESTS=1 there is more of everything.
"""

import asyncio
import os
import shutil
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import msgspec
import pytest

from db.db_session import DbSession, new_id
from db.engine import Engine
from db.tables import TABLES, Account, Session
from services.actor import Actor
from services.policies import nanos
from services.session_service import LEASE, SessionService
from tests.conftest import Chain, Clock, Configure, Everything, JournalRows, Offer, an_actor
from tests.services.process import Job, Told

LONG = bool(os.environ.get("LONG_TESTS"))
PROCESSES = 4 if LONG else 3
JOB_SECONDS = 300 if LONG else 100
T = TypeVar("T")


class Outcome:
    """What became of calls in several processes."""

    def __init__(self, told: Sequence[Told]) -> None:
        self.done = [one.done for one in told if one.done]
        self.codes = Counter(one.refused for one in told if one.refused)
        broke = [one.broke for one in told if one.broke]
        assert not broke, broke
        assert "storage_unavailable" not in self.codes


class Processes:
    """Workers on one database, told what to do together."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.running: list[Process] = []
        #: where their clocks stand
        self.clock = Clock()

    async def start(self) -> None:
        """As many as are missing."""
        begun = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.services.process", self.url,
                stdin=PIPE, stdout=PIPE, limit=1 << 22, cwd=Path(__file__).parents[2],
            )
            for _ in range(PROCESSES - len(self.running))
        ]  # fmt: skip
        self.running += begun
        for process in begun:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ready\n"

    async def stop(self) -> None:
        for process in self.running:
            assert process.stdin is not None
            process.stdin.close()
        for process in self.running:
            await process.wait()

    async def kill(self) -> None:
        """SIGKILL for the first, whatever it is doing."""
        process = self.running.pop(0)
        process.kill()
        await process.wait()

    async def tell(self, process: Process, what: str, actor: Actor, calls: list[dict[str, Any]], at_once: int) -> None:
        assert process.stdin is not None
        job = Job(what, self.clock(), actor, calls, at_once)
        process.stdin.write(msgspec.json.encode(job) + b"\n")

    async def hear(self, process: Process) -> list[Told]:
        """What became of a job; empty from a process that was killed."""
        assert process.stdout is not None
        async with asyncio.timeout(JOB_SECONDS):
            line = await process.stdout.readline()
        return msgspec.json.decode(line, type=list[Told]) if line else []

    async def do(
        self, what: str, actors: Actor | Sequence[Actor], calls: Sequence[dict[str, Any]], *, at_once: int = 50
    ) -> Outcome:
        """Deal the calls out; each process is one of the actors, or all are the one."""
        actors = [actors] if isinstance(actors, Actor) else actors
        processes = list(self.running)
        for number, (process, actor) in enumerate(zip(processes, cycle(actors), strict=False)):
            await self.tell(process, what, actor, list(calls[number :: len(processes)]), at_once)
        return Outcome([one for told in await asyncio.gather(*map(self.hear, processes)) for one in told])


# ---------------------------------------------------------------- the database they share


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
async def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, migrated_postgres: str,
    sqlite_template: Path,
) -> AsyncIterator[Processes]:  # fmt: skip
    """The processes, started once for all tests on a database."""
    path = shutil.copy(sqlite_template, tmp_path_factory.mktemp("shared") / "turnkeeper.db")
    processes = Processes(f"sqlite:///{path}" if request.param == "sqlite" else migrated_postgres)
    await processes.start()
    yield processes
    await processes.stop()


@pytest.fixture
def database_url(shared: Processes) -> str:
    return shared.url


@pytest.fixture
async def engine(engine: Engine) -> Engine:
    """The database they share, without a row."""
    async with engine.transaction():
        for table in reversed(TABLES):
            await engine.run(f"DELETE FROM {table._meta.tablename}")
    return engine


Held = Callable[[], Awaitable[tuple[int, int, int]]]


@pytest.fixture
def held(engine: Engine, clock: Clock) -> Held:
    """Turns that run with a living lease, and the tokens and nano-money they reserve; one look at one moment."""

    async def look() -> tuple[int, int, int]:
        (row,) = await Session.raw(
            "SELECT COUNT(*) AS turns, COALESCE(SUM(reserved_tokens), 0) AS tokens, "
            "COALESCE(SUM(reserved_nanos), 0) AS nanos FROM turn WHERE state = 'running' AND lease_until > {}",
            clock(),
        )
        return int(row["turns"]), int(row["tokens"]), int(row["nanos"])

    return look


@pytest.fixture
async def processes(
    shared: Processes, sessions: SessionService, clock: Clock, held: Held, ann: Actor, everything: Everything
) -> AsyncIterator[Processes]:
    """Several of them, on the catalogue of the tests; afterwards, and a lease later, nothing is held."""
    shared.clock = clock
    await shared.start()
    yield shared
    clock.pass_(seconds=LEASE.total_seconds())
    swept = await shared.do("sweep", ann, [{}] * PROCESSES)
    assert not swept.codes
    assert await held() == (0, 0, 0)
    assert "running" not in {row["state"] for row in (await everything())["turn"]}


NewSessions = Callable[..., Awaitable[list[str]]]


@pytest.fixture
def new_sessions(sessions: SessionService, clock: Clock) -> NewSessions:
    """Make sessions in which nothing has happened yet, without asking a limit."""

    async def make(number: int, owner: Actor) -> list[str]:
        rows = [
            Session(
                id=new_id(), owner_id=owner.id, title="", opening="", origin="script", state="active",
                created_at=clock(), last_activity_at=clock(),
            )
            for _ in range(number)
        ]  # fmt: skip
        await Session.insert(*rows)
        return [str(row.id) for row in rows]

    return make


@pytest.fixture
async def team(sessions: SessionService, db_session: DbSession, clock: Clock) -> list[Actor]:
    """One user for each process."""
    users = [an_actor(f"user-{number}") for number in range(PROCESSES)]
    for user in users:
        await db_session.add(
            Account(id=user.id, name=user.name, role="user", group_name="user", created_at=clock())
        )  # fmt: skip
    return users


@asynccontextmanager
async def watched(look: Callable[[], Awaitable[T]]) -> AsyncIterator[list[T]]:
    """Look again and again meanwhile; what was seen."""
    seen: list[T] = []
    over = asyncio.Event()

    async def watch() -> None:
        while not over.is_set():
            seen.append(await look())
            await asyncio.sleep(0.005)

    watching = asyncio.create_task(watch())
    try:
        yield seen
    finally:
        over.set()
        await watching
    assert len(seen) > 3


# ---------------------------------------------------------------- rates and slots


async def test_C5_two_hundred_creations_admit_exactly_the_burst(
    processes: Processes, ann: Actor, configure: Configure, everything: Everything, journal: JournalRows
) -> None:
    await configure("user", sessions_created="1/h burst 7")
    outcome = await processes.do("create", ann, [{}] * 200, at_once=200)
    assert (len(outcome.done), outcome.codes) == (7, {"rate_limited": 193})
    rows = await everything()
    assert {str(row["id"]) for row in rows["session"]} == set(outcome.done)
    assert len(await journal("session_created")) == 7


async def test_58_guesses_over_processes_are_exactly_as_many_as_the_place_has(
    processes: Processes, ann: Actor, everything: Everything
) -> None:
    calls = [{"name": "ann", "address": f"192.0.2.{number % 2}"} for number in range(60)]
    outcome = await processes.do("guess", ann, calls)
    assert (outcome.done, outcome.codes) == ([], {"unauthenticated": 20, "rate_limited": 40})
    assert (await everything())["login"] == []


async def test_59_of_names_that_look_alike_one_is_taken_over_processes(
    processes: Processes, ann: Actor, everything: Everything
) -> None:
    alike = ["eve", "Eve", "EVE", "\u0435v\u0435".replace("v", "\u0475"), "\uff45\uff56\uff45"]
    before = len((await everything())["account"])
    outcome = await processes.do("name", ann, [{"name": name} for name in alike * 4], at_once=20)
    assert (len(outcome.done), outcome.codes) == (1, {"invalid_request": 19})
    assert len((await everything())["account"]) == before + 1


@pytest.mark.parametrize("scope", ["actor", "model", "instance"])
async def test_G3_two_hundred_turns_at_limit_five_admit_exactly_five(
    scope: str, processes: Processes, ann: Actor, team: list[Actor], configure: Configure, offer: Offer, held: Held,
    new_sessions: NewSessions, sessions: SessionService, db_session: DbSession, journal: JournalRows,
) -> None:  # fmt: skip
    await configure("user", concurrent_turns=5 if scope == "actor" else 0, turns="1/h burst 200")
    await configure("*", concurrent_turns=5 if scope == "instance" else 0)
    await offer(fast={"concurrent_turns": 5 if scope == "model" else 0})
    # Only where the actors differ does anything but their own lock decide.
    actors = [ann] * PROCESSES if scope == "actor" else team
    targets = await dealt(200, actors, new_sessions)
    async with watched(held) as seen:
        outcome = await processes.do("begin", actors, [{"session": one} for one in targets])
    assert (len(outcome.done), outcome.codes) == (5, {"concurrency_limited": 195})
    assert max(turns for turns, _, _ in seen) <= 5
    assert (await held())[0] == len(await journal("turn_begun")) == 5
    taken = [await sessions.allowances(db_session, actor=actor) for actor in set_of(actors)]
    assert sum(one.used for allowances in taken for one in allowances if one.name == "turns") == 5


async def dealt(number: int, actors: Sequence[Actor], new_sessions: NewSessions) -> list[str]:
    """Sessions in the order in which the processes are dealt calls: each its own actor's."""
    each = [await new_sessions(-(-number // len(actors)), actor) for actor in actors]
    return [session for row in zip(*each, strict=True) for session in row][:number]


def set_of(actors: Sequence[Actor]) -> list[Actor]:
    return list({actor.id: actor for actor in actors}.values())


# ---------------------------------------------------------------- budgets

#: tokens and nano-money that a turn uses, of two tokens asked and four answered; it reserves ten for the reply
USED = (6, 10_000)
SPOKEN_FOR = """
SELECT COALESCE((SELECT SUM(tokens) FROM usage WHERE owner_id = {}), 0)
     + COALESCE((SELECT SUM(reserved_tokens) FROM turn WHERE owner_id = {} AND state = 'running'), 0) AS tokens,
       COALESCE((SELECT SUM(cost_nanos) FROM usage WHERE owner_id = {}), 0)
     + COALESCE((SELECT SUM(reserved_nanos) FROM turn WHERE owner_id = {} AND state = 'running'), 0) AS nanos
"""


@pytest.mark.parametrize("name", ["tokens_per_day", "money_per_month"])
async def test_L4_a_hundred_turns_never_overspend_a_budget(
    name: str, processes: Processes, ann: Actor, bob: Actor, configure: Configure, offer: Offer, held: Held,
    new_sessions: NewSessions, ada: Actor, sessions: SessionService, db_session: DbSession,
) -> None:  # fmt: skip
    place = ("tokens_per_day", "money_per_month").index(name)
    await offer(fast={"max_reply_tokens": 10})
    known = (await sessions.begin_turn(None, "Hello", db_session, actor=ada)).turn
    reserved, used = (known.reserved_tokens, known.reserved_nanos)[place], USED[place]
    budget = 20 * reserved + used - 1
    await configure(
        "user", concurrent_turns=0, turns="0", **{name: budget / nanos(1) if name == "money_per_month" else budget}
    )

    async def spoken_for(who: Actor) -> int:
        """Settled and reserved, at one moment."""
        (row,) = await Session.raw(SPOKEN_FOR, *[who.id] * 4)
        return int(row["tokens"] if name == "tokens_per_day" else row["nanos"])

    await sessions.stop_turn(known.id, db_session, actor=ada)

    # None of bob's ends: what is reserved alone decides.
    calls = [{"session": one} for one in await new_sessions(100, bob)]
    outcome = await processes.do("begin", bob, calls)
    assert (len(outcome.done), outcome.codes) == (20, {"budget_exhausted": 80})
    assert await spoken_for(bob) == 20 * reserved
    await processes.do("stop", bob, [{"turn": one} for one in outcome.done])
    assert await held() == (0, 0, 0)

    # Ann's end and are settled while others begin, until no more fits.
    calls = [{"session": one, "prompt_tokens": 2, "reply_tokens": 4} for one in await new_sessions(100, ann)]
    spent = 0
    async with watched(lambda: spoken_for(ann)) as seen:
        while (outcome := await processes.do("spend", ann, calls)).done:
            spent += len(outcome.done)
            assert set(outcome.codes) <= {"budget_exhausted"}
            calls = calls[: 3 * PROCESSES]
    assert max(seen) <= budget
    assert await held() == (0, 0, 0)
    assert budget - reserved < await spoken_for(ann) == spent * used <= budget


# ---------------------------------------------------------------- switches


@pytest.mark.parametrize("sessions_switched", [20, 1])
async def test_S8_switches_leave_unbroken_chains_with_a_row_for_each_change(
    sessions_switched: int, processes: Processes, ann: Actor, configure: Configure, new_sessions: NewSessions,
    chain: Chain, journal: JournalRows,
) -> None:  # fmt: skip
    await configure("user", switches="0")
    targets = await new_sessions(sessions_switched, ann)
    number = (2000 if LONG else 200) if sessions_switched > 1 else 60
    calls = [
        {"session": session, "model": model}
        for session, model in islice(zip(cycle(targets), cycle(["fast", "smart", "aging"]), strict=False), number)
    ]
    outcome = await processes.do("switch", ann, calls, at_once=20)
    assert (len(outcome.done), outcome.codes) == (number, {})
    changes = sum(one.endswith("changed") for one in outcome.done)
    assert changes > sessions_switched
    links = [len(await chain(UUID(session))) for session in targets]
    assert sum(links) == changes
    assert (len(await journal("model_chosen")), len(await journal("model_switched"))) == (
        len(targets),
        changes - len(targets),
    )


async def test_S9_of_many_with_one_expected_version_exactly_one_wins(
    processes: Processes, ann: Actor, configure: Configure, offer: Offer, new_sessions: NewSessions, chain: Chain
) -> None:
    await configure("user", switches="0")
    # Each wants another model: the same one would be done already, which is no conflict.
    models = [f"model-{number}" for number in range(40)]
    await offer(**{model: {} for model in models})
    (target,) = await new_sessions(1, ann)
    for version in range(3):
        calls = [{"session": target, "model": model, "expected_version": version} for model in models]
        if version:  # but for the one it is on
            calls.remove({**calls[0], "model": (await chain(UUID(target)))[-1]})
        outcome = await processes.do("switch", ann, calls)
        assert outcome.done == [f"{version + 1} changed"]
        assert outcome.codes == {"version_conflict": len(calls) - 1}
    assert len(await chain(UUID(target))) == 3


# ---------------------------------------------------------------- idempotency


async def test_I9_one_key_in_every_process_has_one_effect_and_one_answer(
    processes: Processes, ann: Actor, everything: Everything, new_sessions: NewSessions, chain: Chain
) -> None:
    created = await processes.do("create", ann, [{"key": "k"}] * 60)
    assert len(created.done) == 60 and len(set(created.done)) == 1
    (target,) = await new_sessions(1, ann)
    switched = await processes.do("switch", ann, [{"session": target, "model": "smart", "key": "k"}] * 60)
    assert switched.done == ["1 changed"] * 60
    begun = await processes.do("begin", ann, [{"session": target, "key": "k"}] * 60)
    assert len(begun.done) == 60 and len(set(begun.done)) == 1
    assert created.codes == switched.codes == begun.codes == {}
    rows = await everything()
    assert {str(row["id"]) for row in rows["session"]} == {created.done[0], target}
    assert [str(row["id"]) for row in rows["turn"]] == [begun.done[0]]
    assert await chain(UUID(target)) == ["smart"]
    assert len(rows["idempotency"]) == 3


async def test_D1_of_two_contents_under_one_key_one_is_done_and_the_other_refused(
    processes: Processes, ann: Actor, everything: Everything, new_sessions: NewSessions
) -> None:
    (target,) = await new_sessions(1, ann)
    calls = [{"session": target, "model": model, "key": "k"} for model in ("fast", "smart") for _ in range(30)]
    outcome = await processes.do("begin", ann, calls)
    assert len(outcome.done) == 30 and len(set(outcome.done)) == 1
    assert outcome.codes == {"idempotency_key_reused": 30}
    assert len((await everything())["turn"]) == 1


# ---------------------------------------------------------------- ends


async def test_I7_ends_that_race_and_a_killed_process_never_pass_the_limit_and_leave_nothing_held(
    processes: Processes, ann: Actor, configure: Configure, held: Held, new_sessions: NewSessions, clock: Clock,
    sessions: SessionService, db_session: DbSession, everything: Everything, engine: Engine,
) -> None:  # fmt: skip
    await configure("user", concurrent_turns=5, turns="0")
    number = 600 if LONG else 100
    ways = [["finish"], ["stop"], ["fail"], ["finish", "stop", "sweep"], ["stop", "finish", "stop"], ["sweep", "fail"]]
    calls: list[dict[str, Any]] = [
        {"session": session, "ways": way}
        for session, way in zip(await new_sessions(number, ann), cycle(ways), strict=False)
    ]
    calls[5]["ways"] = calls[50]["ways"] = []

    async def look_and_stop() -> int:
        """How many run; the newest is stopped from here, one process more."""
        rows = await Session.raw("SELECT id FROM turn WHERE state = 'running' ORDER BY id DESC")
        if len(rows) > 2:
            await sessions.stop_turn(rows[0]["id"], DbSession(engine), actor=ann)
        return len(rows)

    async with watched(look_and_stop) as seen:
        working = asyncio.create_task(processes.do("end", ann, calls, at_once=4))
        while sum(seen) < 40 and not working.done():
            await asyncio.sleep(0.005)
        await processes.kill()
        outcome = await working
    assert set(outcome.codes) <= {"concurrency_limited"}
    assert 1 < max(seen) <= 5
    states = Counter(row["state"] for row in (await everything())["turn"])
    # In as many ways as there was time for before the kill.
    assert len({"done", "failed", "stopped"} & states.keys()) > 1
    # Left by the dead process, or on purpose.
    assert (await held())[0] == states["running"] <= 5

    clock.pass_(seconds=LEASE.total_seconds())
    assert await held() == (0, 0, 0)
    again = await processes.do("begin", ann, [{"session": one} for one in await new_sessions(40, ann)])
    assert (len(again.done), again.codes) == (5, {"concurrency_limited": 35})

"""Whatever is done, in whatever order, the invariants I2 to I11 and I13 of docs/rules.md hold after every step.

Hypothesis chooses what is done and by whom, on SQLite and on PostgreSQL; the same things each time. For a long run with
new things each time, `HYPOTHESIS_EXAMPLES=500 make test ARGS=tests/services/test_invariants.py` prints the shortest way
it finds to break one.
"""

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from db.db_session import DbSession
from db.engine import Engine, open_engine
from services.actor import Actor
from services.client_pool import ClientPool, Provider
from services.errors import Refusal
from tests.conftest import AtOnce, Clock
from tests.services.invariants import Ledger
from tests.services.verbs import VERBS, Call, Pick, set_limit
from tests.services.world import World

pytestmark = pytest.mark.usefixtures("a_copy_at_a_time")

#: how many lives of a world; 0 for a few that are always the same
EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", 0))
STEPS = 40
SETTINGS = settings(
    max_examples=EXAMPLES or 20,
    stateful_step_count=STEPS,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    print_blob=bool(EXAMPLES),
    phases=[Phase.generate, Phase.shrink] if EXAMPLES else [Phase.generate],
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


# ---------------------------------------------------------------- one after the other, as hypothesis chooses


class Life(RuleBasedStateMachine):
    """A world in which everything happens, in any order."""

    def __init__(self, world: World, run: Callable[[Any], Any]) -> None:
        super().__init__()
        self.world, self.run = world, run

    def do(self, choose: Callable[[Pick], Call], data: st.DataObject) -> None:
        call = choose(lambda options: options[data.draw(st.integers(0, len(options) - 1))])
        self.run(self.world.step(call))

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.run(self.world.begin())
        self.do(self.world.verbs.create, data)
        self.do(self.world.verbs.begin, data)

    @rule(data=st.data())
    def again(self, data: st.DataObject) -> None:
        """The same call under the same key."""
        if self.world.repeatable:
            self.do(lambda pick: pick(self.world.repeatable[-4:]), data)

    @classmethod
    def learn(cls, verb: str) -> None:
        """Add a rule for a verb."""

        def act(self: Life, data: st.DataObject) -> None:
            self.do(getattr(self.world.verbs, verb), data)

        act.__name__ = verb
        setattr(cls, f"do_{verb}", rule(data=st.data())(act))


for verb in VERBS:
    Life.learn(verb)


@pytest.fixture
def cast(ann: Actor, bob: Actor, ada: Actor, guest: Actor, script: Actor) -> list[Actor]:
    return [ann, bob, ada, guest, script]


@pytest.fixture
def run(anyio_backend: str, database_url: str) -> Iterator[Callable[[Any], Any]]:
    """Run coroutines, one after the other, in one event loop."""
    with asyncio.Runner() as runner:
        yield runner.run


def test_the_invariants_hold_after_every_step(
    database_url: str, cast: list[Actor], run: Callable[[Awaitable[Any]], Any]
) -> None:
    engine = open_engine(database_url)
    pool = ClientPool(
        [Provider(id="builtin", kind="builtin"), Provider(id="down", kind="openai", base_url="http://127.0.0.1:9/v1")]
    )

    def a_life() -> Life:
        pool.note("builtin", True)
        pool.note("down", False)
        return Life(World(engine, pool, Clock(), cast), run)

    run(engine.start())
    try:
        run_state_machine_as_test(a_life, settings=SETTINGS)
    finally:
        run(pool.aclose())
        run(engine.stop())


# ---------------------------------------------------------------- all at once, as chance chooses


@pytest.fixture
async def world(engine: Engine, pool: ClientPool, clock: Clock, cast: list[Actor]) -> World:
    world = World(engine, pool, clock, cast)
    await world.begin()
    return world


#: what is only asked of a world that holds still
ALONE = {"read", "foreign", "hidden", "begin_as_said", "kill", "wait", "offer", "default", "limit", "provider"}
AT_ONCE = [verb for verb in VERBS if verb not in ALONE]
OFTEN = ["begin", "begin", "begin", "append", "append", "finish", "switch", "switch", "retry"]


@pytest.mark.parametrize("seed", range(3, 6))
async def test_the_invariants_hold_when_everybody_acts_at_once(world: World, at_once: AtOnce, seed: int) -> None:
    pick = random.Random(seed).choice
    for group in ("user", "guest"):
        for limit in ("turns", "switches", "sessions_created"):
            await set_limit(group, limit, "0")
    await world.check()
    # Who is first is chance: until something has come to its end.
    for number in count():
        calls = [getattr(world.verbs, pick(AT_ONCE + OFTEN * 4))(pick) for _ in range(10)]
        await at_once(len(calls), lambda number, db, calls=calls: noted(calls[number], db, world.ledger))
        await world.check(alone=False)
        if number % 3 == 2:
            for change in ("wait", "offer", "kill"):
                await world.step(getattr(world.verbs, change)(pick))
        if number >= 7 and any(row["what"] == "turn_ended" for row in world.ledger.rows["journal"]):
            break


async def noted(call: Call, db_session: DbSession, ledger: Ledger) -> None:
    try:
        await call.do(db_session)
    except Refusal as refusal:
        assert refusal.code != "storage_unavailable", refusal.__cause__
        ledger.note(refusal, call.actor)

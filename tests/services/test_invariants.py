"""Long random walks through every verb; after each step the invariants I2, I3, I5, I7, I8, I9, I10, G6 and J4 hold."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from db.db_session import DbSession
from services.actor import Actor
from services.clients import Usage
from services.errors import Refusal
from services.event_bus import Hint
from services.outcomes import End
from services.session_service import SessionService
from tests.conftest import AtOnce, Clock, Configure, Everything, Offer, Orders

STEPS = 45
Rows = dict[str, list[dict[str, Any]]]


class Walk:
    """A random caller, and what must hold whatever it does."""

    def __init__(
        self,
        seed: int,
        sessions: SessionService,
        db_session: DbSession,
        actors: list[Actor],
        clock: Clock,
        offer: Offer,
        everything: Everything,
        published: list[Hint],
    ) -> None:
        self.random = random.Random(seed)
        (self.guest,) = (actor for actor in actors if actor.kind == "guest")
        self.sessions, self.db_session, self.actors, self.clock = sessions, db_session, actors, clock
        self.offer, self.everything, self.published = offer, everything, published
        self.committing = asyncio.Lock()
        self.rows: Rows = {}
        self.ended: dict[UUID, dict[str, Any]] = {}
        self.journal: dict[UUID, dict[str, Any]] = {}
        self.answers: dict[tuple[UUID, str], tuple[UUID, datetime]] = {}
        self.done: list[str] = []
        self.refused: list[str] = []

    # ------------------------------------------------------------ steps

    def session(self) -> UUID:
        newest = sorted(row["id"] for row in self.rows["session"])[-5:]
        return self.random.choice(newest or [UUID(int=1)])

    def turn(self) -> dict[str, Any]:
        running = [row for row in self.rows["turn"] if row["state"] == "running"]
        return self.random.choice(running or self.rows["turn"] or [{"id": UUID(int=1), "session_id": UUID(int=2)}])

    def verb(self, db_session: DbSession, *, alone: bool) -> tuple[str, Callable[[], Awaitable[Any]]]:
        """Something to do, with its name."""
        pick, sessions = self.random.choice, self.sessions
        model = pick(["fast", "smart", "aging", "quick", None, None, None, "off", "hidden"])
        id, turn = self.session(), self.turn()
        owners = {row["id"]: row["owner_id"] for row in self.rows["session"]}
        actor = pick([*(one for one in self.actors if one.id == owners.get(id)), *self.actors[:1]] * 3 + self.actors)
        busy = any(row["session_id"] == id and row["state"] == "running" for row in self.rows["turn"])
        text = "".join(pick("ab ü🦊") for _ in range(pick([1, 7, 40])))
        written = sum(len(row["text"]) for row in self.rows["turn_piece"] if row["turn_id"] == turn["id"])
        key = pick(["k1", "k2", None, None])
        steps: dict[str, Callable[[], Awaitable[Any]]] = {
            "create": lambda: sessions.create_session(db_session, actor=actor, model=model),
            "ensure": lambda: sessions.ensure_session(pick([id, None]), db_session, actor=actor),
            "begin": lambda: sessions.begin_turn(pick([id, None]), "Hello", db_session, actor=actor, model=model),
            "begin once": lambda: self.once(actor, key, db_session),
            "append": lambda: self.append((turn["session_id"], turn["id"], written, text), db_session),
            "finish": lambda: self.finish(turn["id"], text, db_session),
            "heartbeat": lambda: sessions.heartbeat([turn["id"]], db_session),
            "stop": lambda: sessions.stop_turn(turn["id"], db_session, actor=pick(self.actors)),
            "switch": lambda: sessions.switch_model(
                id,
                model or "smart",
                db_session,
                actor=actor,
                when=pick(["next_turn", "stop", "idle"]),
                reason="costs",
                lock=pick([None] * 8 + [True, False]),
            ),
            "rename": lambda: sessions.rename_session(id, text, db_session, actor=actor),
            "extend": lambda: sessions.extend_session(id, db_session, actor=actor),
            "close": lambda: sessions.close_session(id, db_session, actor=actor),
            "reopen": lambda: sessions.reopen_session(id, db_session, actor=actor),
            "sweep": lambda: sessions.sweep(db_session),
        }
        if alone and not busy:
            steps["delete"] = lambda: sessions.delete_session(id, db_session, actor=actor)
        weights = {"begin": 6, "append": 4, "finish": 4, "switch": 4, "begin once": 2}
        name = self.random.choices(list(steps), [weights.get(name, 1) for name in steps])[0]
        return name, steps[name]

    async def once(self, actor: Actor, key: str | None, db_session: DbSession) -> None:
        """Begin a turn under a key (I9)."""
        begun = await self.sessions.begin_turn(None, f"Once {key}", db_session, actor=actor, key=key)
        known, at = self.answers.get((actor.id, key or ""), (begun.turn.id, self.clock()))
        if key is not None:
            assert known == begun.turn.id or self.clock() - at > timedelta(hours=24)
            self.answers[actor.id, key] = begun.turn.id, at if known == begun.turn.id else self.clock()

    async def append(self, piece: tuple[UUID, UUID, int, str], db_session: DbSession) -> None:
        """Append text, one after the other as a runner does."""
        async with self.committing:
            await self.sessions.append([piece], db_session)

    async def finish(self, turn_id: UUID, tail: str, db_session: DbSession) -> None:
        usage = self.random.choice([None, Usage(self.random.randrange(50), self.random.randrange(500))])
        state: End = self.random.choice(["done", "failed"])
        async with self.committing:
            await self.sessions.finish_turn(turn_id, db_session, state=state, tail=tail, usage=usage)

    async def step(self) -> None:
        """One verb; where it is refused, nothing has changed (I5)."""
        name, call = self.verb(self.db_session, alone=True)
        before, hints = self.rows, len(self.published)
        try:
            await call()
            self.done.append(name)
        except Refusal as refusal:
            self.refused.append(refusal.code)
            assert await self.everything() == before, (name, refusal)
            assert len(self.published) == hints
        await self.check()

    async def change_the_world(self) -> None:
        """Time passes, models come and go."""
        self.clock.pass_(seconds=self.random.choice([1, 7, 7, 31, 600, 86400, 40 * 86400]))
        state = self.random.choice(["active", "active", "disabled", "retired", "deprecated"])
        await self.offer(**{self.random.choice(["smart", "aging"]): {"state": state, "replacement": "fast"}})
        await self.check()

    # ------------------------------------------------------------ what must hold

    async def check(self) -> None:
        rows = self.rows = await self.everything()
        turns_of: dict[UUID, list[dict[str, Any]]] = {row["id"]: [] for row in rows["session"]}
        for turn in rows["turn"]:
            turns_of[turn["session_id"]].append(turn)
        self.check_turns(rows)
        self.check_journal(rows)
        for session in rows["session"]:
            self.check_session(session, sorted(turns_of[session["id"]], key=lambda turn: turn["id"]))
            if session["owner_id"] == self.guest.id:  # I10
                live = await self.sessions.get_session(session["id"], self.db_session, actor=self.guest)
                assert live.deadline is not None
                assert live.deadline <= session["created_at"] + timedelta(hours=24)

    def check_turns(self, rows: Rows) -> None:
        running = [turn for turn in rows["turn"] if turn["state"] == "running"]
        assert len({turn["session_id"] for turn in running}) == len(running)  # I2
        assert {row["turn_id"] for row in rows["turn_piece"]} <= {turn["id"] for turn in running}
        for actor in self.actors:  # I7
            held = [turn for turn in running if turn["owner_id"] == actor.id and turn["lease_until"] > self.clock()]
            assert len(held) <= 3
        for turn in rows["turn"]:
            if turn["state"] != "running":
                assert self.ended.setdefault(turn["id"], turn) == turn  # G6
        used: dict[UUID, tuple[int, int]] = {}
        for turn in self.ended.values():  # I8; those deleted meanwhile too
            tokens, cost = used.get(turn["owner_id"], (0, 0))
            tokens += turn["prompt_tokens"] + turn["reply_tokens"]
            used[turn["owner_id"]] = (tokens, cost + turn["cost_nanos"])
        counted: dict[UUID, tuple[int, int]] = {}
        for row in rows["usage"]:
            tokens, cost = counted.get(row["owner_id"], (0, 0))
            counted[row["owner_id"]] = (tokens + row["tokens"], cost + row["cost_nanos"])
        assert counted == used

    def check_journal(self, rows: Rows) -> None:
        now = {row["id"]: row for row in rows["journal"]}
        assert {id: now.get(id) for id in self.journal} == self.journal  # J4
        self.journal = now

    def check_session(self, session: dict[str, Any], turns: list[dict[str, Any]]) -> None:
        assert session["turn_count"] == len(turns)
        assert session["head_id"] == (turns[-1]["id"] if turns else None)
        assert [turn["parent_id"] for turn in turns] == [None, *(turn["id"] for turn in turns)][: len(turns)]
        mine = [row for row in self.journal.values() if row["session_id"] == session["id"]]
        assert session["version"] == max(row["version"] for row in mine)
        switches = sorted((row for row in mine if row["what"] == "model_switched"), key=lambda row: row["version"])
        models = [row["to_value"] for row in switches]  # I3
        assert [row["from_value"] for row in switches] == [None, *models][: len(models)]
        assert session["last_model"] == (models[-1] if models else None)
        begun = {row["turn_id"] for row in mine if row["what"] == "turn_begun"}
        over = [row["turn_id"] for row in mine if row["what"] == "turn_ended"]
        assert begun == {turn["id"] for turn in turns}
        assert sorted(over) == sorted(turn["id"] for turn in turns if turn["state"] != "running")


@pytest.fixture
async def walk(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, ada: Actor, guest: Actor, clock: Clock,
    configure: Configure, offer: Offer, everything: Everything, published: list[Hint], orders: Orders,
) -> Callable[[int], Awaitable[Walk]]:  # fmt: skip
    for group in ("user", "guest", "admin"):
        await configure(group, turns="0", switches="0", sessions_created="0", open_sessions=12, concurrent_turns=3)

    async def begin(seed: int) -> Walk:
        actors = [ann, bob, ada, guest]
        walk = Walk(seed, sessions, db_session, actors, clock, offer, everything, published)
        await walk.check()
        return walk

    return begin


@pytest.mark.parametrize("seed", [1, 2])
async def test_the_invariants_hold_after_every_step(walk: Callable[[int], Awaitable[Walk]], seed: int) -> None:
    walker = await walk(seed)
    for number in range(STEPS):
        if number % 10 == 9:
            await walker.change_the_world()
        else:
            await walker.step()
    assert len(walker.done) > STEPS // 3
    assert walker.refused and walker.ended


@pytest.mark.parametrize("seed", [4, 5])
async def test_the_invariants_hold_when_everybody_acts_at_once(
    walk: Callable[[int], Awaitable[Walk]], at_once: AtOnce, seed: int
) -> None:
    walker = await walk(seed)
    for number in range(6):
        results = await at_once(10, lambda _, db: walker.verb(db, alone=False)[1]())
        for refusal in results.refusals:
            assert refusal.code != "storage_unavailable", refusal.__cause__
        await walker.check()
        if number % 3 == 2:
            await walker.change_the_world()
    assert walker.ended

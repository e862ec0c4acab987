"""A database, its cast and its workers, and what one call alone may leave behind (I5, I6, I7, I9)."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import msgspec

from db.db_session import DbSession
from db.engine import Engine
from db.tables import TABLES, Account
from services.actor import Actor
from services.client_pool import ClientPool
from services.errors import Refusal
from services.event_bus import Hint, MemoryEventBus
from services.session_service import SessionService
from tests.conftest import Clock, Configuration, Orders
from tests.services.invariants import Ledger, Rows, effects, policies_of
from tests.services.verbs import Call, Verbs


class World:
    """One database, its cast and its workers."""

    def __init__(self, engine: Engine, pool: ClientPool, clock: Clock, cast: list[Actor]) -> None:
        self.engine, self.pool, self.clock, self.cast = engine, pool, clock, cast
        self.db_session = DbSession(engine)
        self.published: list[Hint] = []
        self.orders = Orders()
        self.answers: dict[tuple[UUID, str, str], Any] = {}
        self.repeatable: list[Call] = []

    async def begin(self) -> None:
        """An empty database with the first configuration and accounts."""
        async with self.engine.transaction() as transaction:
            for table in reversed(TABLES):
                await transaction.run(f"DELETE FROM {table._meta.tablename}")
        await Configuration(self.engine, self.clock).begin()
        await self.engine.run("UPDATE model SET upstream = 'upstream of ' || id")
        for actor in self.cast[:3]:
            facts = {"name": actor.name, "role": actor.role, "group_name": actor.group}
            await self.db_session.add(Account(id=actor.id, created_at=self.clock(), **facts))
        bus = MemoryEventBus()
        publish = bus.publish

        def noted(hint: Hint) -> None:
            self.published.append(hint)
            publish(hint)

        bus.publish = noted  # type: ignore[method-assign]
        worker = SessionService(self.pool, bus, now=self.clock)
        worker.runner = self.orders
        self.ledger = Ledger(self.engine, self.clock, self.published, self.orders.started)
        self.verbs = Verbs(self.cast, worker, self.clock, self.ledger)
        await self.check()

    async def check(self, *, alone: bool = True) -> None:
        ada = self.cast[2]
        page = await self.verbs.worker.list_sessions(self.db_session, actor=ada, everybody=True, limit=1000)
        await self.ledger.check(page.sessions, self.db_session, alone=alone)

    async def step(self, call: Call) -> None:
        """One call alone: what it may not change, it does not."""
        before = self.ledger.rows
        told = len(self.published), len(self.orders.started), len(self.orders.stopped)
        place = (call.actor.id, call.verb, call.key or "")
        known = any(
            (row["actor_id"], row["verb"], row["key"]) == place
            and self.clock() - row["created_at"] <= timedelta(hours=24)
            for row in before["idempotency"]
        )
        quiet = call.harmless or known
        answer: Any = None
        try:
            answer = await call.do(self.db_session)
        except Refusal as refusal:
            assert refusal.code != "storage_unavailable", refusal.__cause__
            self.ledger.note(refusal, call.actor)
            quiet = True
        else:
            self.remember(call, answer, known)
        told_now = len(self.published), len(self.orders.started), len(self.orders.stopped)
        await self.check()
        if quiet:
            I5_I6_nothing_has_changed(before, self.ledger.rows)
            assert told == told_now
        elif hasattr(answer, "turn"):
            I7_no_more_slots_than_allowed(call.actor, self.ledger.rows, self.clock)

    def remember(self, call: Call, answer: Any, known: bool) -> None:
        """I9: a key that was used answers as it did the first time."""
        if call.key is None:
            return
        place, said = (call.actor.id, call.verb, call.key), essence(answer)
        if known:
            assert said == self.answers[place]
        else:
            self.repeatable.append(call)
        self.answers[place] = said


def essence(answer: Any) -> Any:
    """What must be the same in both answers of one key: all but the session as it is now."""
    if hasattr(answer, "turn"):
        return answer.turn.id
    if hasattr(answer, "row"):
        return answer.row.id
    if isinstance(answer, msgspec.Struct):
        facts = msgspec.structs.asdict(answer)
        return {name: fact for name, fact in facts.items() if name not in ("session", "allowance", "expires_at")}
    return getattr(answer, "id", answer)


def I5_I6_nothing_has_changed(before: Rows, after: Rows) -> None:
    assert effects(after) == effects(before)


def I7_no_more_slots_than_allowed(actor: Actor, rows: Rows, clock: Clock) -> None:
    allowed = policies_of(actor.group, rows).concurrent_turns.size
    held = [turn for turn in rows["turn"] if turn["state"] == "running" and turn["lease_until"] > clock()]
    assert not allowed or len([turn for turn in held if turn["owner_id"] == actor.id]) <= allowed

"""What the list of sessions and the search cost beside more and more sessions of the same owner.

`python -m benchmarks.sessions`. Neither may get slower as the history grows. Read the ratios: the milliseconds are this
machine's, at that moment.
"""

import random
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from benchmarks.admission import Fresh, an_actor, median_ms, on_both, prepared
from db.db_session import DbSession, new_id, snapshot
from db.engine import Engine
from db.tables import TABLES, Session, Turn
from services.actor import Actor
from services.session_service import SessionService
from services.standing import account_of

ROWS = (100, 10_000, 100_000)
#: measured batches of calls; the best one counts: others use this machine too
BATCHES = 5
#: words of a prompt, of a reply; sessions that are written at once
PROMPT_WORDS, REPLY_WORDS, CHUNK = 20, 120, 500
VOCABULARY = 20_000


def vocabulary() -> list[str]:
    """Made-up words, the first ones short and said often."""
    chance = random.Random(5)
    return ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(3, 10))) for _ in range(VOCABULARY)]


async def fill(db_session: DbSession, owner: Actor, count: int, now: datetime, seed: int = 7) -> None:
    """Give somebody so many sessions of one turn each, one an hour back from `now`.

    Every reply holds `everywhere`, every hundredth `sometimes`, the oldest of all `once`.
    """
    chance, words = random.Random(seed), vocabulary()
    await db_session.add_account_once(account_of(owner, now))

    def said(length: int) -> str:
        return " ".join(words[min(VOCABULARY - 1, int(chance.paretovariate(0.7)) - 1)] for _ in range(length))

    for start in range(0, count, CHUNK):
        sessions, turns = [], []
        for number in range(start, min(start + CHUNK, count)):
            at = now - timedelta(hours=count - number)
            session_id, turn_id = new_id(), new_id()
            prompt = said(PROMPT_WORDS)
            rare = ("once " if number == 0 else "") + ("sometimes " if number % 100 == 0 else "")
            sessions.append(
                Session(
                    id=session_id, owner_id=owner.id, title="", opening=prompt[:60], instructions="", origin="page",
                    state="active", last_model="a", version=0, created_at=at, last_activity_at=at, head_id=turn_id,
                    turn_count=1,
                )
            )  # fmt: skip
            turn = Turn(
                id=turn_id, session_id=session_id, owner_id=owner.id, prompt=prompt, state="done", model="a",
                reply=f"everywhere {rare}{said(REPLY_WORDS)}", lease_owner=owner.id, lease_until=at, created_at=at,
                ended_at=at,
            )  # fmt: skip
            turns.append(snapshot(turn))
        async with db_session.transaction():
            await Session.insert(*sessions)
            await db_session.add_turns(turns)


async def costs(
    sessions: SessionService, db_session: DbSession, actor: Actor, count: int
) -> dict[str, Callable[[], Awaitable[Any]]]:
    """What is measured, by name."""
    middle: Any = sessions.now() - timedelta(hours=count // 2), UUID(int=2**128 - 1)

    def listed(**asked: Any) -> Callable[[], Awaitable[Any]]:
        async def look() -> None:
            page = await sessions.list_sessions(db_session, actor=actor, limit=30, **asked)
            assert asked.get("q") == "nowhere" or page.sessions, asked

        return look

    async def turn() -> None:
        begun = await sessions.begin_turn(None, "Hello", db_session, actor=actor)
        await sessions.finish_turn(begun.turn.id, db_session, state="done", tail="Hi there")

    return {
        "list": listed(show=""),
        "list, middle": listed(show="", after=middle),
        "in all": listed(q="everywhere "),
        "beginning": listed(q="everyw"),
        "some": listed(q="sometimes everywhere"),
        "oldest": listed(q="once"),
        "nothing": listed(q="nowhere"),
        "a turn": turn,
    }


async def measure(name: str, fresh: Fresh) -> None:
    """One database: a line for each number of sessions."""
    worlds: list[tuple[Engine, dict[str, Callable[[], Awaitable[Any]]]]] = []
    for rows in ROWS:
        engine, sessions = await prepared(await fresh())
        db_session, actor, begun = DbSession(engine), an_actor("within"), time.perf_counter()
        await fill(db_session, actor, rows, sessions.now())
        if engine.engine_type == "postgres":
            await engine.run("VACUUM ANALYZE")
        print(f"{rows:>10,} sessions written in {time.perf_counter() - begun:.0f} s", flush=True)
        worlds.append((engine, await costs(sessions, db_session, actor, rows)))
    best: list[dict[str, float]] = [{} for _ in worlds]
    for _ in range(BATCHES):
        for (engine, calls), found in zip(worlds, best, strict=True):
            for table in TABLES:  # another engine was made since
                table._meta._db = engine
            for call, do in calls.items():
                found[call] = min(found.get(call, 1e9), await median_ms(do))
    print(f"\n{name}: a page of 30 beside sessions of the same owner, as a ratio to {ROWS[0]} sessions")
    print(f"{'sessions':>10} " + "".join(f"{call:>20}" for call in best[0]))
    for rows, found in zip(ROWS, best, strict=True):
        line = "".join(f"{found[call] / best[0][call]:>9.2f} ({found[call]:5.2f} ms)" for call in found)
        print(f"{rows:>10,} {line}", flush=True)
    for engine, _ in worlds:
        await engine.stop()


if __name__ == "__main__":
    on_both(measure)

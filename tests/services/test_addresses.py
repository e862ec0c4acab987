"""What guests hold and use counts for their network address too: rule L9. A discarded cookie gains a new list."""

import asyncio
import json
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from db.db_session import DbSession, Piece
from db.tables import AddressSession, AddressTurn, AddressUsage
from services.accounts import Accounts, Credentials
from services.actor import Actor
from services.clients import Usage as Counted
from services.errors import LimitReached, SessionQuota
from services.session_service import SessionService
from tests.conftest import AtOnce, Clock, Configure, Everything, Refused

Guest = Callable[..., Actor]


@pytest.fixture
def visit(clock: Clock) -> Guest:
    """A browser without a cookie, from an address."""
    accounts = Accounts(b"secret", guests=True, now=clock)

    def visit(address: str = "203.0.113.7") -> Actor:
        given = Credentials(None, "", accounts.new_guest_cookie(), address, "")
        guest = accounts._guest(given)
        assert isinstance(guest, Actor)
        return guest

    return visit


@pytest.fixture(autouse=True)
async def no_rates(sessions: SessionService, configure: Configure) -> None:
    await configure("guest", turns="0", sessions_created="0", switches="0", concurrent_turns=0, open_sessions=0)


async def test_L9_slots_hold_for_an_address_however_often_the_cookie_is_thrown_away(
    sessions: SessionService, db_session: DbSession, configure: Configure, refused: Refused, visit: Guest
) -> None:
    await configure("guest", concurrent_turns=2)
    first = (await sessions.begin_turn(None, "Hello", db_session, actor=visit())).turn
    await sessions.begin_turn(None, "Hello", db_session, actor=visit())
    async with refused("concurrency_limited") as told:
        await sessions.begin_turn(None, "Hello", db_session, actor=visit())
    assert told.facts["limit"] == "concurrent_turns" and "network" in str(told.refusal)
    # It is told before sending, too; another address is another matter, and so is an account.
    (slots,) = [one for one in await sessions.allowances(db_session, actor=visit()) if one.name == "concurrent_turns"]
    assert (slots.used, slots.remaining, slots.shared) == (2, 0, True)
    await sessions.begin_turn(None, "Hello", db_session, actor=visit("203.0.113.8"))
    await sessions.finish_turn(first.id, db_session, state="done")
    await sessions.begin_turn(None, "Hello", db_session, actor=visit())


async def test_L9_a_slot_of_an_address_lapses_with_its_lease(
    sessions: SessionService, db_session: DbSession, configure: Configure, refused: Refused, clock: Clock, visit: Guest
) -> None:
    await configure("guest", concurrent_turns=1)
    await sessions.begin_turn(None, "Hello", db_session, actor=visit())
    async with refused("concurrency_limited"):
        await sessions.begin_turn(None, "Hello", db_session, actor=visit())
    clock.pass_(seconds=30)
    await sessions.begin_turn(None, "Hello", db_session, actor=visit())
    await sessions.sweep(db_session)
    assert await AddressTurn.count() == 1


async def test_L9_open_sessions_hold_for_an_address(
    sessions: SessionService, db_session: DbSession, configure: Configure, refused: Refused, clock: Clock, visit: Guest
) -> None:
    await configure("guest", open_sessions=3)
    ann = visit()
    made = [(await sessions.create_session(db_session, actor=ann)).row.id for _ in range(2)]
    await sessions.create_session(db_session, actor=visit())
    async with refused("session_quota") as told:
        await sessions.create_session(db_session, actor=visit())
    assert isinstance(told.refusal, SessionQuota) and told.facts["used"] == 3
    async with refused("session_quota"):
        await sessions.begin_turn(None, "Hello", db_session, actor=visit())
    # One that is closed makes room, and so does one that expired; one that is brought back takes it again.
    await sessions.close_session(made[0], db_session, actor=ann)
    await sessions.create_session(db_session, actor=visit())
    clock.pass_(minutes=31)
    await sessions.sweep(db_session)
    assert await AddressSession.count() == 0
    await sessions.create_session(db_session, actor=visit(), title="1")
    await sessions.create_session(db_session, actor=visit(), title="2")
    await sessions.reopen_session(made[1], db_session, actor=ann)
    async with refused("session_quota"):
        await sessions.create_session(db_session, actor=visit())


async def test_L9_budgets_hold_for_an_address_while_it_runs_once_it_ended_and_when_its_worker_is_gone(
    sessions: SessionService, db_session: DbSession, configure: Configure, refused: Refused, clock: Clock, visit: Guest
) -> None:
    await configure("guest", tokens_per_day=1000)
    turn = (await sessions.begin_turn(None, "Hello", db_session, actor=visit())).turn
    assert turn.reserved_tokens == 1000
    async with refused("budget_exhausted") as told:
        await sessions.begin_turn(None, "Hello", db_session, actor=visit())
    assert told.facts["remaining"] == 0 and "network address" in str(told.refusal)
    await sessions.finish_turn(turn.id, db_session, state="done", usage=Counted(6, 394))
    # Another cookie gets what is left of the address.
    again = (await sessions.begin_turn(None, "Hello", db_session, actor=visit())).turn
    assert again.capped == (594, "tokens_per_day")
    await sessions.append([Piece(again.session_id, again.id, 0, "x" * 900)], db_session)
    clock.pass_(seconds=31)
    async with refused("budget_exhausted") as told:
        await sessions.begin_turn(None, "Hello" * 30, db_session, actor=visit())
    assert told.facts["remaining"] == 1000 - 400 - 6 - 300
    await sessions.sweep(db_session)
    (used,) = await AddressUsage.select()
    assert used["tokens"] == 706
    clock.pass_(days=1)
    assert (await sessions.begin_turn(None, "Hello", db_session, actor=visit())).turn.reserved_tokens == 1000
    clock.pass_(days=60)
    await sessions.sweep(db_session)
    assert await AddressUsage.count(column=AddressUsage.day) <= 1


async def test_L9_many_cookies_at_once_never_pass_the_limits_of_their_address(
    sessions: SessionService, configure: Configure, at_once: AtOnce, everything: Everything, visit: Guest
) -> None:
    await configure("guest", concurrent_turns=4, open_sessions=9, tokens_per_day=3 * 4102 + 500)
    results = await at_once(16, lambda _, db: sessions.begin_turn(None, "Hello", db, actor=visit()))
    # Both are used up, and both are free again once a reply has ended.
    assert (len(results.done), set(results.codes)) == (4, {"concurrency_limited"})
    rows = await everything()
    assert sum(turn["reserved_tokens"] for turn in rows["turn"]) == 3 * 4102 + 500
    assert len(rows["session"]) == 4  # a refused message leaves no session
    made = await at_once(16, lambda n, db: sessions.create_session(db, actor=visit(), title=f"{n}"))
    assert (len(made.done), made.codes) == (5, ["session_quota"] * 11)


async def test_L9_a_network_of_ipv6_has_several_times_what_an_address_has(
    sessions: SessionService, db_session: DbSession, configure: Configure, refused: Refused, visit: Guest
) -> None:
    """Who has a /48 has 65,536 addresses of this kind: they do not gain 65,536 times the limits."""
    await configure("guest", concurrent_turns=1)
    for subnet in range(4):
        await sessions.begin_turn(None, "Hello", db_session, actor=visit(f"2001:db8:0:{subnet:x}::1"))
    async with refused("concurrency_limited"):  # the same /64
        await sessions.begin_turn(None, "Hello", db_session, actor=visit("2001:db8::2"))
    async with refused("concurrency_limited"):  # the same /56
        await sessions.begin_turn(None, "Hello", db_session, actor=visit("2001:db8:0:5::1"))
    for subnet in range(1, 4):
        for one in range(4):
            await sessions.begin_turn(None, "Hello", db_session, actor=visit(f"2001:db8:0:{subnet:x}0{one}::1"))
    async with refused("concurrency_limited"):  # the same /48
        await sessions.begin_turn(None, "Hello", db_session, actor=visit("2001:db8:0:900::1"))
    await sessions.begin_turn(None, "Hello", db_session, actor=visit("2001:db8:1::1"))


async def test_L9_rates_hold_for_the_networks_around_an_ipv6_address(
    sessions: SessionService, db_session: DbSession, configure: Configure, refused: Refused, clock: Clock, visit: Guest
) -> None:
    await configure("guest", sessions_created="6/min burst 1")
    for subnet in range(4):
        await sessions.create_session(db_session, actor=visit(f"2001:db8:0:{subnet:x}::1"))
    async with refused("rate_limited") as told:
        await sessions.create_session(db_session, actor=visit("2001:db8:0:5::1"))
    assert isinstance(told.refusal, LimitReached) and told.wait <= timedelta(seconds=10)
    clock.pass_(seconds=told.refusal.retry_after_seconds)
    await sessions.create_session(db_session, actor=visit("2001:db8:0:5::1"))


async def test_L9_what_a_guest_used_stays_with_the_address_when_the_guest_signs_in(
    sessions: SessionService, db_session: DbSession, configure: Configure, refused: Refused, visit: Guest, ann: Actor
) -> None:
    await configure("guest", tokens_per_day=1000, open_sessions=1)
    await configure("user", open_sessions=5)
    guest = visit()
    turn = (await sessions.begin_turn(None, "Hello", db_session, actor=guest)).turn
    await sessions.finish_turn(turn.id, db_session, state="done", usage=Counted(6, 994))
    async with refused("session_quota"):
        await sessions.create_session(db_session, actor=visit())
    assert await sessions.adopt_sessions(guest.id, db_session, actor=ann) == 1
    # The session is the account's now and makes room; the budget of the address is used all the same.
    await sessions.create_session(db_session, actor=visit())
    await configure("guest", open_sessions=0)
    async with refused("budget_exhausted"):
        await sessions.begin_turn(None, "Hello", db_session, actor=visit("203.0.113.7"))
    told = {one.name: one.used for one in await sessions.allowances(db_session, actor=ann)}
    assert told["open_sessions"] == 1


async def test_L9_accounts_and_admins_are_not_counted_under_an_address(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, everything: Everything
) -> None:
    for actor in (ann, bob):
        await sessions.begin_turn(None, "Hello", db_session, actor=actor)
    rows = await everything()
    assert (rows["address_turn"], rows["address_session"], rows["address_usage"]) == ([], [], [])


async def test_L9_no_address_is_readable_in_the_rows(
    sessions: SessionService, db_session: DbSession, everything: Everything, visit: Guest
) -> None:
    turn = (await sessions.begin_turn(None, "Hello", db_session, actor=visit("2001:db8:77::1"))).turn
    await sessions.finish_turn(turn.id, db_session, state="done")
    told = repr(await everything())
    assert "2001" not in told.replace("2001-", "") and "db8:77" not in told


ONE_PROCESS = """
import asyncio, json, sys
from db.db_session import DbSession, new_id
from db.engine import open_engine
from services.actor import Actor
from services.client_pool import ClientPool, Provider
from services.event_bus import MemoryEventBus
from services.session_service import SessionService

async def main():
    engine = open_engine(sys.argv[1])
    await engine.start()
    sessions = SessionService(ClientPool([Provider("builtin", "builtin")]), MemoryEventBus())

    def cookie():
        return Actor(kind="guest", id=(id := new_id()), name=f"{id}", group="guest", rate_key="address:1", role="guest")

    print("ready", flush=True)
    sys.stdin.readline()
    verbs = (sessions.begin_turn(None, "Hello", DbSession(engine), actor=cookie()) for _ in range(10))
    results = await asyncio.gather(*verbs, return_exceptions=True)
    print(json.dumps([getattr(result, "code", type(result).__name__) for result in results]), flush=True)
    await engine.stop()

asyncio.run(main())
"""


async def test_L9_the_limits_of_an_address_are_exact_over_processes(
    database_url: str, sessions: SessionService, configure: Configure, everything: Everything
) -> None:
    await configure("guest", concurrent_turns=5, turns="0", sessions_created="0")
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", ONE_PROCESS, database_url, cwd=Path(__file__).parents[2],
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    async with asyncio.timeout(150):
        for process in processes:
            assert process.stdout is not None and await process.stdout.readline() == b"ready\n"
        told = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    results = sorted(result for output, _ in told for result in json.loads(output))
    assert results == ["BegunTurn"] * 5 + ["concurrency_limited"] * 15
    assert len((await everything())["turn"]) == 5

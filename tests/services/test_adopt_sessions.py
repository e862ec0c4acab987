"""adopt_sessions: rule O3."""

import asyncio
from functools import partial
from uuid import UUID, uuid4

import msgspec
import pytest

from db.db_session import DbSession, Piece
from db.engine import Engine
from db.tables import Turn
from services.actor import Actor
from services.rules import Rules
from services.session_service import SessionService
from tests.conftest import AtOnce, Clock, Configure, Everything, JournalRows, Refused, StorageFails, Waits, an_actor


async def test_O3_a_guests_sessions_become_the_accounts(
    sessions: SessionService, db_session: DbSession, guest: Actor, ann: Actor, journal: JournalRows, refused: Refused
) -> None:
    first = (await sessions.create_session(db_session, actor=guest, title="Rome")).row.id
    turn = (await sessions.begin_turn(first, "Hello", db_session, actor=guest)).turn
    await sessions.append([Piece(first, turn.id, 0, "Hi")], db_session)
    closed = (await sessions.create_session(db_session, actor=guest)).row.id
    await sessions.close_session(closed, db_session, actor=guest)
    versions = {id: (await sessions.get_session(id, db_session, actor=guest)).row.version for id in (first, closed)}
    assert await sessions.adopt_sessions(guest.id, db_session, actor=ann) == 2
    assert {live.row.id for live in (await sessions.list_sessions(db_session, actor=ann)).sessions} == {first, closed}
    assert (await sessions.list_sessions(db_session, actor=guest)).sessions == []
    async with refused("session_not_found"):
        await sessions.get_session(first, db_session, actor=guest)
    async with refused("session_not_found"):
        await sessions.stop_turn(turn.id, db_session, actor=guest)
    rows = await journal("session_adopted")
    assert {row.session_id: row.version for row in rows} == {id: versions[id] + 1 for id in versions}
    assert {(row.actor_id, row.owner_id, row.from_value, row.to_value) for row in rows} == {
        (ann.id, ann.id, guest.name, "ann")
    }
    # The reply goes on, and counts for the account now.
    used = {one.name: one.used for one in await sessions.allowances(db_session, actor=ann)}
    assert used["concurrent_turns"] == 1
    ended = await sessions.finish_turn(turn.id, db_session, state="done", tail=" there")
    assert (ended.reply, ended.owner_id) == ("Hi there", ann.id)
    assert (await sessions.begin_turn(first, "More", db_session, actor=ann)).turn.parent_id == turn.id


async def test_O3_it_happens_once_and_later_sessions_stay_the_guests(
    sessions: SessionService, db_session: DbSession, guest: Actor, ann: Actor, everything: Everything
) -> None:
    await sessions.create_session(db_session, actor=guest)
    assert await sessions.adopt_sessions(guest.id, db_session, actor=ann) == 1
    before = await everything()
    assert await sessions.adopt_sessions(guest.id, db_session, actor=ann) == 0
    assert await everything() == before
    later = (await sessions.create_session(db_session, actor=guest)).row
    assert later.owner_id == guest.id


async def test_O3_twenty_at_once_take_each_session_once(
    sessions: SessionService, db_session: DbSession, guest: Actor, ann: Actor, bob: Actor, at_once: AtOnce,
    journal: JournalRows,
) -> None:  # fmt: skip
    ids = {(await sessions.create_session(db_session, actor=guest)).row.id for _ in range(3)}
    results = await at_once(20, lambda n, db: sessions.adopt_sessions(guest.id, db, actor=(ann, bob)[n % 2]))
    assert results.codes == []
    assert sum(results.done) == 3
    assert {row.session_id for row in await journal("session_adopted")} == ids
    assert len(await journal("session_adopted")) == 3


async def test_O3_what_the_guest_used_goes_along(
    sessions: SessionService, db_session: DbSession, guest: Actor, ann: Actor, everything: Everything
) -> None:
    for actor in (guest, ann):
        turn = (await sessions.begin_turn(None, "Hello", db_session, actor=actor)).turn
        await sessions.finish_turn(turn.id, db_session, state="done", tail="Hi")
    await sessions.adopt_sessions(guest.id, db_session, actor=ann)
    rows = await everything()
    assert {turn["owner_id"] for turn in rows["turn"]} == {ann.id}
    (used,) = rows["usage"]
    assert used["owner_id"] == ann.id
    assert used["tokens"] == sum(turn["prompt_tokens"] + turn["reply_tokens"] for turn in rows["turn"])


@pytest.mark.parametrize("ended", ["idle", "absolute"])
async def test_O3_E7_what_is_over_is_not_revived_and_can_be_forked(
    sessions: SessionService, db_session: DbSession, guest: Actor, ann: Actor, clock: Clock, refused: Refused,
    configure: Configure, journal: JournalRows, ended: str,
) -> None:  # fmt: skip
    await configure("guest", idle="30min", absolute="24h")
    over = (await sessions.create_session(db_session, actor=guest)).row.id
    turn = (await sessions.begin_turn(over, "Hello", db_session, actor=guest)).turn
    await sessions.finish_turn(turn.id, db_session, state="done", tail="Hi")
    clock.pass_(**({"minutes": 31} if ended == "idle" else {"hours": 25}))
    living = (await sessions.create_session(db_session, actor=guest, title="Rome")).row.id
    end = (await sessions.get_session(over, db_session, actor=guest)).deadline
    await sessions.adopt_sessions(guest.id, db_session, actor=ann)
    live = await sessions.get_session(over, db_session, actor=ann)
    assert (live.state, live.deadline) == ("expired", end)
    async with refused("session_expired") as told:
        await sessions.begin_turn(over, "More", db_session, actor=ann)
    assert (told.facts["can_reopen"], told.facts["can_fork"]) == (False, True)
    async with refused("session_expired"):
        await sessions.reopen_session(over, db_session, actor=ann)
    assert await journal("session_reopened") == []
    fork = await sessions.fork_session(over, db_session, actor=ann)
    assert (fork.state, fork.row.turn_count) == ("active", 1)
    # What lives goes on as the account's.
    user = (await Rules.now(db_session)).policies_of("user").lifetime
    assert (await sessions.get_session(living, db_session, actor=ann)).deadline == clock() + user.idle


async def test_O3_G1_taking_along_while_the_account_and_the_guest_write_loses_and_blocks_nothing(
    sessions: SessionService, db_session: DbSession, ann: Actor, at_once: AtOnce, clock: Clock, everything: Everything,
    configure: Configure,
) -> None:  # fmt: skip
    """Ann's own turn has lapsed, so beginning anew settles it first: what she used is locked before her slots are."""
    await configure("user", sessions_created="0", turns="0", concurrent_turns=50)

    async def race(guest: Actor, mine: UUID, turns: list[Turn], number: int, db: DbSession) -> object:
        match number % 5:
            case 0:
                return await sessions.adopt_sessions(guest.id, db, actor=ann)
            case 1:
                return await sessions.begin_turn(mine, "Again", db, actor=ann)
            case 2:
                return await sessions.append([Piece(one.session_id, one.id, 0, "x") for one in reversed(turns)], db)
            case 3:
                return await sessions.heartbeat([one.id for one in turns], db)
            case _:
                return await sessions.finish_turn(turns[0].id, db, state="done")

    for round in range(6):
        guest = msgspec.structs.replace(an_actor(f"guest-{round}", "guest"), rate_key=f"address:{round}")
        mine = (await sessions.create_session(db_session, actor=ann)).row.id
        lost = (await sessions.begin_turn(mine, "Hello", db_session, actor=ann)).turn
        clock.pass_(seconds=31)
        theirs = [(await sessions.create_session(db_session, actor=guest)).row.id for _ in range(2)]
        turns = [(await sessions.begin_turn(one, "Hi", db_session, actor=guest)).turn for one in theirs]
        results = await at_once(15, partial(race, guest, mine, turns))
        assert set(results.codes) <= {"session_busy"}
        rows = await everything()
        assert {one["owner_id"] for one in rows["session"] + rows["turn"]} == {ann.id}
        assert [one["state"] for one in rows["turn"] if one["id"] == lost.id] == ["interrupted"]
        used = [one["prompt_tokens"] + one["reply_tokens"] for one in rows["turn"] if one["ended_at"] is not None]
        assert sum(one["tokens"] for one in rows["usage"]) == sum(used)


async def test_O3_nobody_takes_what_is_not_a_guests(
    sessions: SessionService, db_session: DbSession, guest: Actor, ann: Actor, bob: Actor, ada: Actor, script: Actor,
    everything: Everything,
) -> None:  # fmt: skip
    await sessions.create_session(db_session, actor=bob)
    await sessions.create_session(db_session, actor=guest)
    stranger = msgspec.structs.replace(guest, id=uuid4(), name="guest-stranger")
    before = await everything()
    for whose, actor in (
        (bob.id, ann), (bob.id, ada), (ann.id, ann), (uuid4(), ann), (guest.id, stranger), (guest.id, guest),
        (guest.id, script),
    ):  # fmt: skip
        assert await sessions.adopt_sessions(whose, db_session, actor=actor) == 0
    assert await everything() == before


async def test_O3_a_failing_database_moves_nothing(
    sessions: SessionService, db_session: DbSession, guest: Actor, ann: Actor, refused: Refused,
    storage_fails: StorageFails,
) -> None:  # fmt: skip
    await sessions.create_session(db_session, actor=guest)
    for place in ("journal", "commit"):
        async with refused("storage_unavailable"), storage_fails(place):
            await sessions.adopt_sessions(guest.id, db_session, actor=ann)


async def test_O3_E7_what_ended_long_ago_stays_over_too(
    sessions: SessionService, db_session: DbSession, guest: Actor, ann: Actor, clock: Clock, configure: Configure,
    refused: Refused,
) -> None:  # fmt: skip
    """It is over for the account's lifetime as well, so only the end that it had keeps it from being reopened."""
    await configure("guest", idle="30min", absolute="24h")
    over = (await sessions.create_session(db_session, actor=guest)).row.id
    clock.pass_(days=31)
    await sessions.adopt_sessions(guest.id, db_session, actor=ann)
    async with refused("session_expired"):
        await sessions.reopen_session(over, db_session, actor=ann)
    await configure("user", idle="60d")
    assert (await sessions.get_session(over, db_session, actor=ann)).state == "expired"


async def test_O3_I8_what_was_used_goes_along_even_where_no_session_is_left(
    sessions: SessionService, db_session: DbSession, guest: Actor, ann: Actor, everything: Everything
) -> None:
    turn = (await sessions.begin_turn(None, "Hello", db_session, actor=guest)).turn
    await sessions.finish_turn(turn.id, db_session, state="done", tail="Hi")
    await sessions.delete_session(turn.session_id, db_session, actor=guest, for_good=True)
    (before,) = (await everything())["usage"]
    assert await sessions.adopt_sessions(guest.id, db_session, actor=ann) == 0
    (after,) = (await everything())["usage"]
    assert after == before | {"owner_id": ann.id}


async def test_O3_a_session_begun_meanwhile_stays_whole_and_goes_along(
    sessions: SessionService, other_worker: SessionService, engine: Engine, db_session: DbSession, guest: Actor,
    ann: Actor, waits: Waits,
) -> None:  # fmt: skip
    first = (await sessions.create_session(db_session, actor=guest, title="Rome")).row.id
    held, go_on = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        db = DbSession(engine)
        async with db.transaction():
            await db.find_session(first, None, lock=True)
            held.set()
            await go_on.wait()

    holding = asyncio.create_task(hold())
    await held.wait()
    adopting = asyncio.create_task(sessions.adopt_sessions(guest.id, DbSession(engine), actor=ann))
    await waits()
    beginning = asyncio.create_task(other_worker.begin_turn(None, "late", DbSession(engine), actor=guest))
    # PostgreSQL begins it at once; on SQLite it waits behind the others.
    await asyncio.wait({beginning}, timeout=0.5)
    go_on.set()
    await asyncio.gather(holding, adopting)
    late = (await beginning).turn
    session, turn = await db_session.find_session(late.session_id, None), await db_session.find_turn(late.id)
    assert session is not None and turn is not None
    assert session.owner_id == turn.owner_id == (ann.id if engine.engine_type == "postgres" else guest.id)

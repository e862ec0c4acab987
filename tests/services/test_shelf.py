"""Pinning, archiving, deleting with a way back: for the owner alone, also on what has ended, and no use of it."""

import asyncio
from uuid import UUID, uuid4

import pytest

import services.upkeep
from db.db_session import DbSession, Piece
from db.engine import Engine
from services.actor import Actor
from services.brought import Brought
from services.event_bus import Hint, MemoryEventBus
from services.outcomes import Show
from services.policies import DELETED_KEPT
from services.session_service import SessionService
from services.turn_log import Gone, Position, TurnLog
from tests.conftest import AtOnce, Clock, Configure, Everything, JournalRows, Orders, Refused


async def shown(sessions: SessionService, db_session: DbSession, actor: Actor, show: Show = "") -> list[UUID]:
    return [live.row.id for live in (await sessions.list_sessions(db_session, actor=actor, show=show)).sessions]


async def test_pinned_and_archived_sessions_have_lists_of_their_own(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, clock: Clock
) -> None:
    ids = []
    for _ in range(4):
        clock.pass_(seconds=1)
        ids.append((await sessions.create_session(db_session, actor=ann)).row.id)
    oldest, pinned, archived, deleted = ids
    assert (await sessions.pin_session(pinned, db_session, actor=ann)).row.pinned
    assert (await sessions.archive_session(archived, db_session, actor=ann)).row.archived
    await sessions.pin_session(archived, db_session, actor=ann)
    await sessions.delete_session(deleted, db_session, actor=ann)
    assert await shown(sessions, db_session, ann) == [pinned, oldest]
    assert await shown(sessions, db_session, ann, "all") == [archived, pinned, oldest]
    assert await shown(sessions, db_session, ann, "pinned") == [pinned]
    assert await shown(sessions, db_session, ann, "archived") == [archived]
    assert await shown(sessions, db_session, ann, "deleted") == [deleted]
    await sessions.pin_session(pinned, db_session, actor=ann, pinned=False)
    await sessions.archive_session(archived, db_session, actor=ann, archived=False)
    assert await shown(sessions, db_session, ann) == [archived, pinned, oldest]
    assert await shown(sessions, db_session, ada, "deleted") == []
    everybodys = await sessions.list_sessions(db_session, actor=ada, everybody=True)
    assert [live.row.id for live in everybodys.sessions] == [archived, pinned, oldest]


async def test_E11_arranging_is_allowed_on_what_has_ended_and_is_no_use_of_it(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, clock: Clock, journal: JournalRows
) -> None:
    before = await sessions.get_session(session_id, db_session, actor=ann)
    clock.pass_(days=1)
    for state in ("active", "expired", "closed"):
        for yes in (True, False):
            live = await sessions.pin_session(session_id, db_session, actor=ann, pinned=yes)
            assert (live.row.pinned, live.state) == (yes, state)
            live = await sessions.archive_session(session_id, db_session, actor=ann, archived=yes)
            assert (live.row.archived, live.state) == (yes, state)
        await sessions.delete_session(session_id, db_session, actor=ann)
        live = await sessions.restore_session(session_id, db_session, actor=ann)
        assert (live.state, live.deadline, live.row.deleted_at) == (state, before.deadline, None)
        if state == "active":
            clock.pass_(days=30)
        elif state == "expired":
            # Nobody has written down yet that it is over; that is the sweep's to tell.
            assert (await journal("session_expired")) == []
            await sessions.sweep(db_session)
            assert len(await journal("session_expired")) == 1
            await sessions.close_session(session_id, db_session, actor=ann)
    assert live.row.last_activity_at == before.row.last_activity_at


async def test_E11_doing_it_twice_changes_nothing(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, everything: Everything,
    published: list[Hint],
) -> None:  # fmt: skip
    for do in (
        lambda: sessions.pin_session(session_id, db_session, actor=ann),
        lambda: sessions.archive_session(session_id, db_session, actor=ann),
        lambda: sessions.delete_session(session_id, db_session, actor=ann),
        lambda: sessions.restore_session(session_id, db_session, actor=ann),
        lambda: sessions.pin_session(session_id, db_session, actor=ann, pinned=False),
        lambda: sessions.archive_session(session_id, db_session, actor=ann, archived=False),
    ):
        before = await everything()
        await do()
        once = await everything()
        assert once != before and len(once["journal"]) == len(before["journal"]) + 1
        hints = list(published)
        await do()
        assert await everything() == once
        assert published == hints


async def test_E11_only_its_owner_arranges_a_session(
    sessions: SessionService, db_session: DbSession, bob: Actor, ada: Actor, session_id: UUID, refused: Refused
) -> None:
    for actor, code in ((ada, "forbidden"), (bob, "session_not_found")):
        async with refused(code):
            await sessions.pin_session(session_id, db_session, actor=actor)
        async with refused(code):
            await sessions.archive_session(session_id, db_session, actor=actor)
    for id in (session_id, uuid4()):
        async with refused("session_not_found"):
            await sessions.restore_session(id, db_session, actor=bob)


async def test_twenty_at_once_arrange_and_restore_once(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, at_once: AtOnce,
    journal: JournalRows,
) -> None:  # fmt: skip
    for what, do in (
        ("session_pinned", lambda _, db: sessions.pin_session(session_id, db, actor=ann)),
        ("session_archived", lambda _, db: sessions.archive_session(session_id, db, actor=ann)),
        ("session_deleted", lambda _, db: sessions.delete_session(session_id, db, actor=ann)),
        ("session_restored", lambda _, db: sessions.restore_session(session_id, db, actor=ann)),
    ):
        results = await at_once(20, do)
        assert (len(results.done), results.codes) == (20, []), what
        assert len(await journal(what)) == 1
    live = await sessions.get_session(session_id, db_session, actor=ann)
    assert (live.row.pinned, live.row.archived, live.row.deleted_at, live.row.version) == (True, True, None, 4)


# ---------------------------------------------------------------- deleted, and back


async def test_E10_a_deleted_session_is_not_there_for_anybody(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, orders: Orders, refused: Refused,
    bus: MemoryEventBus, engine: Engine,
) -> None:  # fmt: skip
    turn = (await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn
    id = turn.session_id
    await sessions.append([Piece(id, turn.id, 0, "Once upon")], db_session)
    await sessions.delete_session(id, db_session, actor=ann)
    assert orders.stopped == [turn.id]
    for actor in (ann, ada):
        for call in (
            lambda actor: sessions.get_session(id, db_session, actor=actor),
            lambda actor: sessions.begin_turn(id, "More", db_session, actor=actor),
            lambda actor: sessions.rename_session(id, "Mine", db_session, actor=actor),
            lambda actor: sessions.fork_session(id, db_session, actor=actor),
            lambda actor: sessions.pin_session(id, db_session, actor=actor),
            lambda actor: sessions.close_session(id, db_session, actor=actor),
        ):
            async with refused("session_not_found") as told:
                await call(actor)
            assert (str(told.refusal), told.facts) == ("There is no such session.", {})
        for call in (
            lambda actor: sessions.retry_turn(turn.id, db_session, actor=actor),
            lambda actor: sessions.stop_turn(turn.id, db_session, actor=actor),
        ):
            async with refused("session_not_found") as told:
                await call(actor)
            assert str(told.refusal) == "There is no such turn."
        log = TurnLog(sessions, bus, lambda: DbSession(engine), asyncio.Event())
        assert [event async for event in log.follow_session(id, Position(), actor)] == [Gone()]
    for verb in (sessions.delete_session, sessions.restore_session):
        async with refused("session_not_found"):
            await verb(id, db_session, actor=ada)
    assert await sessions.glances([(id, ann.id)], db_session) == [None]
    live = await sessions.restore_session(id, db_session, actor=ann)
    found = await db_session.find_turn(turn.id)
    assert found is not None and (found.state, found.reply, live.running_turn) == ("stopped", "Once upon", None)


async def test_C6_a_deleted_session_takes_no_place_and_comes_back_within_the_quota(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, refused: Refused, clock: Clock
) -> None:
    await configure("user", open_sessions=1, sessions_created="1/h burst 2", idle="1d")
    first = (await sessions.create_session(db_session, actor=ann)).row.id
    await sessions.delete_session(first, db_session, actor=ann)
    second = (await sessions.create_session(db_session, actor=ann)).row.id
    async with refused("session_quota"):
        await sessions.restore_session(first, db_session, actor=ann)
    await sessions.close_session(second, db_session, actor=ann)
    # It is not made anew: the rate of making sessions is used up, and does not stand against it.
    live = await sessions.restore_session(first, db_session, actor=ann)
    assert [(one.name, one.remaining) for one in live.allowance] == [("open_sessions", 0)]
    # What is over takes no place.
    await sessions.delete_session(first, db_session, actor=ann)
    clock.pass_(days=2)
    await sessions.create_session(db_session, actor=ann)
    assert (await sessions.restore_session(first, db_session, actor=ann)).state == "expired"


async def test_C5_restored_at_once_no_more_come_back_than_there_is_room_for(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, at_once: AtOnce
) -> None:
    ids = [(await sessions.create_session(db_session, actor=ann)).row.id for _ in range(5)]
    for id in ids:
        await sessions.delete_session(id, db_session, actor=ann)
    await configure("user", open_sessions=2)
    results = await at_once(5, lambda number, db: sessions.restore_session(ids[number], db, actor=ann))
    assert (len(results.done), results.codes) == (2, ["session_quota"] * 3)


async def test_E10_after_a_week_it_is_gone_and_the_sweep_takes_it_away_in_parts(
    sessions: SessionService, other_worker: SessionService, engine: Engine, db_session: DbSession, ann: Actor,
    clock: Clock, everything: Everything, journal: JournalRows, refused: Refused, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(services.upkeep, "ERASED_TURNS", 2)
    kept = (await sessions.create_session(db_session, actor=ann, title="Kept")).row.id
    gone = (await sessions.create_session(db_session, actor=ann, title="Gone")).row.id
    for _ in range(5):
        turn = (await sessions.begin_turn(gone, "Hello", db_session, actor=ann)).turn
        await sessions.finish_turn(turn.id, db_session, state="done", tail="Hi")
    await sessions.delete_session(gone, db_session, actor=ann)
    clock.pass_(seconds=1)
    await sessions.delete_session(kept, db_session, actor=ann)
    used, told = (await everything())["usage"], await journal()
    clock.at += DELETED_KEPT
    clock.pass_(seconds=-1)
    assert await shown(sessions, db_session, ann, "deleted") == [kept]
    for do in (
        lambda: sessions.restore_session(gone, db_session, actor=ann),
        lambda: sessions.delete_session(gone, db_session, actor=ann),
        lambda: sessions.delete_session(gone, db_session, actor=ann, for_good=True),
    ):
        async with refused("session_not_found"):
            await do()
    sizes, transaction = [], engine.transaction

    def counted(**asked: bool):  # type: ignore[no-untyped-def]
        sizes.append(0)
        return transaction(**asked)

    run = engine.run

    async def listened(sql, args=()):  # type: ignore[no-untyped-def]
        rows = await run(sql, args)
        if sql.startswith("DELETE FROM turn "):
            sizes[-1] += len(rows)
        return rows

    monkeypatch.setattr(engine, "transaction", counted)
    monkeypatch.setattr(engine, "run", listened)
    await sessions.sweep(db_session)
    assert [size for size in sizes if size] == [2, 2, 1]
    await other_worker.sweep(db_session)
    rows = await everything()
    assert [row["id"] for row in rows["session"]] == [kept]
    assert (rows["turn"], rows["usage"]) == ([], used)
    assert [row["turn_id"] for row in rows["said"]] == [None]
    (erased,) = await journal("session_erased")
    assert (erased.actor_kind, erased.session_id, erased.reason) == ("system", gone, "")
    assert [row.to_dict() for row in (await journal())[: len(told)]] == [row.to_dict() for row in told]
    assert (await sessions.restore_session(kept, db_session, actor=ann)).title == "Kept"


async def test_E10_a_long_session_goes_for_good_at_once_and_its_turns_some_at_a_time(
    sessions: SessionService, db_session: DbSession, ann: Actor, clock: Clock, everything: Everything,
    journal: JournalRows, refused: Refused, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In one transaction it kept every other writer waiting for seconds."""
    monkeypatch.setattr(services.upkeep, "ERASED_TURNS", 2)
    brought = Brought.told("", [("Hello", "obelisk")] * 7)
    gone = (await sessions.import_session(brought, db_session, actor=ann)).row.id
    await sessions.delete_session(gone, db_session, actor=ann, for_good=True)
    assert len((await everything())["turn"]) == 5
    clock.pass_(days=-30)  # a clock that is set back brings nothing back
    for show in ("all", "deleted"):
        assert await shown(sessions, db_session, ann, show) == []
        assert (await sessions.list_sessions(db_session, actor=ann, q="obelisk", show=show)).sessions == []
    for do in (sessions.restore_session, sessions.get_session, sessions.delete_session, sessions.fork_session):
        async with refused("session_not_found"):
            await do(gone, db_session, actor=ann)
    monkeypatch.setattr(services.upkeep, "ERASED_ROUNDS", 1)
    clock.pass_(days=30)
    await sessions.sweep(db_session)
    assert len((await everything())["turn"]) == 3
    monkeypatch.setattr(services.upkeep, "ERASED_ROUNDS", 9)
    await sessions.sweep(db_session)
    rows = await everything()
    assert (rows["session"], rows["turn"], rows["said"]) == ([], [], [])
    assert [row.actor_name for row in await journal("session_erased")] == ["ann"]


async def test_O3_what_a_guest_has_deleted_can_be_had_back_by_the_account(
    sessions: SessionService, db_session: DbSession, guest: Actor, ann: Actor, refused: Refused
) -> None:
    turn = (await sessions.begin_turn(None, "Carthage", db_session, actor=guest)).turn
    await sessions.finish_turn(turn.id, db_session, state="done", tail="must be destroyed")
    await sessions.delete_session(turn.session_id, db_session, actor=guest)
    await sessions.adopt_sessions(guest.id, db_session, actor=ann)
    async with refused("session_not_found"):
        await sessions.restore_session(turn.session_id, db_session, actor=guest)
    assert await shown(sessions, db_session, ann) == []
    await sessions.restore_session(turn.session_id, db_session, actor=ann)
    found = await sessions.list_sessions(db_session, actor=ann, q="carthage destroyed")
    assert [live.row.id for live in found.sessions] == [turn.session_id]
    assert (await sessions.list_sessions(db_session, actor=guest, q="carthage")).sessions == []


async def test_a_model_is_moved_away_from_no_deleted_session(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, clock: Clock
) -> None:
    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    ends = {"": (None, None)}
    assert (await db_session.count_sessions_on("smart", ends, clock(), ()))[0] == 1
    await sessions.delete_session(session_id, db_session, actor=ann)
    assert (await db_session.count_sessions_on("smart", ends, clock(), ()))[0] == 0
    assert await db_session.list_sessions_on("smart", ends, clock(), None, 9) == []


async def test_E10_nobody_but_the_owner_deletes_for_good(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, session_id: UUID, everything: Everything,
    refused: Refused,
) -> None:  # fmt: skip
    before = await everything()
    async with refused("forbidden"):
        await sessions.delete_session(session_id, db_session, actor=ada, for_good=True)
    assert await everything() == before
    await sessions.delete_session(session_id, db_session, actor=ada, reason="x")
    async with refused("session_not_found"):
        await sessions.delete_session(session_id, db_session, actor=ada, for_good=True)
    assert (await sessions.restore_session(session_id, db_session, actor=ann)).state == "active"


@pytest.mark.parametrize("against", ["restored", "deleted", "erased"])
async def test_E10_erased_at_once_with_anything_else_it_is_gone_once(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, at_once: AtOnce, everything: Everything,
    journal: JournalRows, monkeypatch: pytest.MonkeyPatch, against: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(services.upkeep, "ERASED_TURNS", 1)
    for _ in range(2):
        brought = Brought.told("", [("Hello", "obelisk")] * 2)
        id = (await sessions.import_session(brought, db_session, actor=ann)).row.id
        if against == "restored":
            await sessions.delete_session(id, db_session, actor=ann)

        async def race(number: int, db: DbSession, id: UUID = id) -> str:
            if number % 2 or against == "erased":
                await sessions.delete_session(id, db, actor=ann, for_good=True)
                return "erased"
            if against == "restored":
                await sessions.restore_session(id, db, actor=ann)
            else:
                await sessions.delete_session(id, db, actor=ada, reason="x")
            return against

        results = await at_once(4, race)
        assert results.done.count("erased") == 1
        assert set(results.codes) <= {"session_not_found"}
        done = [row.what for row in await journal() if row.session_id == id]
        assert done[-1] == "session_erased"
        assert done.count("session_erased") == 1
        assert await shown(sessions, db_session, ann, "deleted") == []
        await sessions.sweep(db_session)
        rows = await everything()
        assert (rows["session"], rows["turn"], rows["said"]) == ([], [], [])


async def test_E10_restored_and_deleted_by_an_admin_at_once_it_is_what_the_last_one_made_it(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, at_once: AtOnce, journal: JournalRows
) -> None:
    for _ in range(2):
        id = (await sessions.create_session(db_session, actor=ann)).row.id
        await sessions.delete_session(id, db_session, actor=ann)

        async def race(number: int, db: DbSession, id: UUID = id) -> None:
            if number:
                await sessions.delete_session(id, db, actor=ada, reason="x")
            else:
                await sessions.restore_session(id, db, actor=ann)

        results = await at_once(2, race)
        assert set(results.codes) <= {"session_not_found"}
        told = [row.what for row in await journal() if row.session_id == id]
        assert told[2:] == ["session_restored", "session_deleted"][: len(results.done)]
        assert (id in await shown(sessions, db_session, ann)) == (told[-1] == "session_restored")

"""Extend, reopen, close, delete, expire, sweep: rules E1 to E9 and I10."""

from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from db.db_session import DbSession, Piece
from db.tables import Account, Session, Usage
from services.actor import Actor
from services.errors import StorageUnavailable
from services.event_bus import Hint
from services.outcomes import LiveSession
from services.reads import Reads
from services.session_service import SessionService
from services.upkeep import LAPSED_ROWS
from tests.conftest import (
    BEGINNING,
    AtOnce,
    Clock,
    Configure,
    Everything,
    JournalRows,
    Orders,
    Refused,
    StorageFails,
)

HOUR = timedelta(hours=1)


async def test_E1_the_deadline_is_the_earliest_end_under_todays_policy(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, configure: Configure, clock: Clock
) -> None:
    async def deadline() -> timedelta | None:
        at = (await sessions.get_session(session_id, db_session, actor=ann)).deadline
        return at - BEGINNING if at is not None else None

    assert await deadline() == timedelta(days=30)
    await configure("user", idle="2h")
    assert await deadline() == 2 * HOUR
    await configure("user", absolute="1h")
    assert await deadline() == 1 * HOUR
    await configure("user", idle="0")
    assert await deadline() == 1 * HOUR
    await configure("user", absolute="0")
    assert await deadline() is None
    await Session.update({Session.expires_at: BEGINNING + 3 * HOUR}).where(Session.id == session_id)
    assert await deadline() == 3 * HOUR
    clock.pass_(minutes=90)
    await configure("user", idle="2h")
    await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)
    assert await deadline() == 3 * HOUR
    await configure("user", idle="1h")
    assert await deadline() == 2.5 * HOUR


async def test_E2_expired_from_the_deadline_on(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, configure: Configure, clock: Clock,
    refused: Refused,
) -> None:  # fmt: skip
    await configure("user", idle="1h")
    clock.pass_(minutes=59, seconds=59, microseconds=999_999)
    assert (await sessions.get_session(session_id, db_session, actor=ann)).state == "active"
    clock.pass_(microseconds=1)
    assert (await sessions.get_session(session_id, db_session, actor=ann)).state == "expired"
    async with refused("session_expired"):
        await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)


async def test_E3_what_slides_the_end(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, configure: Configure, clock: Clock
) -> None:
    await configure("user", idle="1h")

    async def slid() -> bool:
        row = await db_session.find_session(session_id, ann.id)
        assert row is not None
        return row.last_activity_at == clock()

    clock.pass_(minutes=10)
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    assert await slid()
    clock.pass_(seconds=10)
    await sessions.finish_turn(turn.id, db_session, state="done", tail="Hi")
    assert await slid()
    clock.pass_(minutes=10)
    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    assert await slid()
    clock.pass_(minutes=10)
    await sessions.extend_session(session_id, db_session, actor=ann)
    assert await slid()
    clock.pass_(hours=2)
    await sessions.reopen_session(session_id, db_session, actor=ann)
    assert await slid()


async def test_E3_what_does_not_slide_the_end(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, bob: Actor, session_id: UUID,
    configure: Configure, clock: Clock, refused: Refused,
) -> None:  # fmt: skip
    await configure("user", idle="1h")
    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    clock.pass_(minutes=10)
    await sessions.get_session(session_id, db_session, actor=ann)
    await sessions.list_sessions(db_session, actor=ann)
    await sessions.current_model(session_id, db_session, actor=ann)
    await sessions.ensure_session(session_id, db_session, actor=ann)
    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    await sessions.rename_session(session_id, "Rome", db_session, actor=ann)
    await sessions.switch_model(session_id, "smart", db_session, actor=ada, reason="audit", lock=True)
    await sessions.heartbeat([], db_session)
    await sessions.sweep(db_session)
    await sessions.fork_session(session_id, db_session, actor=ann)
    await Reads(sessions).timeline(session_id, db_session, actor=ann)
    for code, prompt, actor in (
        ("prompt_too_long", "x" * 100_001, ann),
        ("session_not_found", "Hello", bob),
        ("forbidden", "Hello", ada),
    ):
        async with refused(code):
            await sessions.begin_turn(session_id, prompt, db_session, actor=actor)
    async with refused("model_locked"):
        await sessions.switch_model(session_id, "fast", db_session, actor=ann)
    row = await db_session.find_session(session_id, ann.id)
    assert row is not None and row.last_activity_at == BEGINNING


async def test_E4_an_expired_session_is_read_and_deleted_and_no_more(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, clock: Clock, refused: Refused
) -> None:
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    await sessions.finish_turn(turn.id, db_session, state="done", tail="Hi")
    clock.pass_(days=30)
    live = await sessions.get_session(session_id, db_session, actor=ann)
    assert (live.state, live.title, live.current.id) == ("expired", "Hello", "fast")
    transcript = await Reads(sessions).transcript(live, db_session, actor=ann)
    assert [(turn.prompt, turn.reply) for turn in transcript.turns] == [("Hello", "Hi")]
    assert [row.row.id for row in (await sessions.list_sessions(db_session, actor=ann)).sessions] == [session_id]
    assert len(await Reads(sessions).timeline(session_id, db_session, actor=ann)) == 4
    async with refused("session_expired") as told:
        await sessions.begin_turn(session_id, "More", db_session, actor=ann)
    assert told.facts == {"can_reopen": True, "can_fork": True}
    async with refused("session_expired"):
        await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    async with refused("session_expired"):
        await sessions.extend_session(session_id, db_session, actor=ann)
    async with refused("session_expired"):
        await sessions.rename_session(session_id, "Rome", db_session, actor=ann)
    async with refused("session_expired"):
        await sessions.retry_turn(turn.id, db_session, actor=ann)
    async with refused("session_expired"):
        await sessions.edit_turn(turn.id, "More", db_session, actor=ann)
    async with refused("session_expired"):
        await sessions.begin_turn(session_id, "More", db_session, actor=ann, parent_id=turn.id)
    assert (await sessions.stop_turn(turn.id, db_session, actor=ann)).reply == "Hi"
    await sessions.delete_session(session_id, db_session, actor=ann)
    assert (await sessions.list_sessions(db_session, actor=ann)).sessions == []


async def test_E4_a_closed_session_is_read_and_deleted_and_no_more(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, refused: Refused
) -> None:
    await sessions.close_session(session_id, db_session, actor=ann)
    assert (await sessions.get_session(session_id, db_session, actor=ann)).state == "closed"
    async with refused("session_closed"):
        await sessions.begin_turn(session_id, "More", db_session, actor=ann)
    async with refused("session_closed"):
        await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    async with refused("session_closed"):
        await sessions.extend_session(session_id, db_session, actor=ann)
    async with refused("session_closed"):
        await sessions.close_session(session_id, db_session, actor=ann)
    async with refused("session_closed"):
        await sessions.reopen_session(session_id, db_session, actor=ann)
    await sessions.delete_session(session_id, db_session, actor=ann)


async def test_E5_a_running_turn_survives_expiry_and_is_stored(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, configure: Configure, clock: Clock
) -> None:
    await configure("user", idle="1min")
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    for _ in range(3):
        clock.pass_(seconds=20)
        await sessions.heartbeat([turn.id], db_session)
    await sessions.sweep(db_session)
    live = await sessions.get_session(session_id, db_session, actor=ann)
    assert (live.state, live.running_turn) == ("expired", turn.id)
    assert await sessions.append([Piece(session_id, turn.id, 0, "Once ")], db_session) == {turn.id}
    ended = await sessions.finish_turn(turn.id, db_session, state="done", tail="upon")
    assert (ended.state, ended.reply) == ("done", "Once upon")
    live = await sessions.get_session(session_id, db_session, actor=ann)
    assert (live.state, live.row.last_activity_at) == ("expired", BEGINNING)


async def test_E6_extend_never_revives(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, clock: Clock, refused: Refused
) -> None:
    clock.pass_(days=30)
    async with refused("session_expired"):
        await sessions.extend_session(session_id, db_session, actor=ann)
    await sessions.sweep(db_session)
    async with refused("session_expired"):
        await sessions.extend_session(session_id, db_session, actor=ann)


async def test_E6_extend_moves_the_end_and_is_journalled(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, clock: Clock, journal: JournalRows
) -> None:
    clock.pass_(days=3)
    extension = await sessions.extend_session(session_id, db_session, actor=ann)
    assert (extension.extended, extension.expires_at, extension.reason) == (True, clock() + timedelta(days=30), "")
    assert (extension.session.deadline, extension.session.row.version) == (extension.expires_at, 1)
    (row,) = await journal("session_extended")
    assert (row.session_id, row.actor_name, row.version) == (session_id, "ann", 1)


@pytest.mark.parametrize("limit", ["cap", "none"])
async def test_E6_an_extension_that_extends_nothing_changes_nothing(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, configure: Configure, clock: Clock,
    everything: Everything, published: list[Hint], limit: str,
) -> None:  # fmt: skip
    if limit == "cap":
        await configure("user", idle="1h", absolute="90min")
    else:
        await configure("user", idle="0")
    clock.pass_(minutes=45)
    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    clock.pass_(minutes=15)
    before, hints = await everything(), list(published)
    extension = await sessions.extend_session(session_id, db_session, actor=ann)
    assert extension.extended is False
    assert extension.expires_at == (BEGINNING + timedelta(minutes=90) if limit == "cap" else None)
    assert extension.reason == ("It cannot live any longer." if limit == "cap" else "It never expires.")
    assert await everything() == before
    assert published == hints


async def test_E7_what_idled_out_is_reopened(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, clock: Clock, journal: JournalRows
) -> None:
    for swept in (False, True):
        clock.pass_(days=30)
        if swept:
            assert await sessions.sweep(db_session) == 1
        live = await sessions.reopen_session(session_id, db_session, actor=ann)
        assert (live.state, live.deadline) == ("active", clock() + timedelta(days=30))
        row = await db_session.find_session(session_id, ann.id)
        assert row is not None
        assert (row.state, row.last_activity_at) == ("active", clock())
    rows = await journal("session_reopened")
    assert [(row.session_id, row.actor_name, row.version) for row in rows] == [
        (session_id, "ann", 1),
        (session_id, "ann", 3),
    ]
    await sessions.begin_turn(session_id, "Here again", db_session, actor=ann)


async def test_E7_through_the_creation_limit(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, clock: Clock, configure: Configure,
    refused: Refused,
) -> None:  # fmt: skip
    await configure("user", sessions_created="1/min", open_sessions=1)
    clock.pass_(days=30)
    await sessions.create_session(db_session, actor=ann)
    async with refused("session_quota"):
        await sessions.reopen_session(session_id, db_session, actor=ann)
    await configure("user", open_sessions=5)
    async with refused("rate_limited") as told:
        await sessions.reopen_session(session_id, db_session, actor=ann)
    assert (told.facts["limit"], told.wait) == ("sessions_created", timedelta(minutes=1))
    clock.at += told.wait
    assert (await sessions.reopen_session(session_id, db_session, actor=ann)).state == "active"


async def test_E7_what_reached_its_absolute_end_is_not_reopened(
    sessions: SessionService, db_session: DbSession, guest: Actor, clock: Clock, refused: Refused
) -> None:
    session_id = (await sessions.create_session(db_session, actor=guest)).row.id
    clock.pass_(hours=24)
    async with refused("session_expired") as told:
        await sessions.reopen_session(session_id, db_session, actor=guest)
    assert told.facts == {"can_reopen": False, "can_fork": True}
    async with refused("session_expired") as told:
        await sessions.begin_turn(session_id, "Hello", db_session, actor=guest)
    assert told.facts == {"can_reopen": False, "can_fork": True}


async def test_E7_an_end_set_by_hand_is_not_undone_by_reopening(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, clock: Clock, refused: Refused
) -> None:
    await Session.update({Session.expires_at: BEGINNING + HOUR}).where(Session.id == session_id)
    clock.pass_(hours=1)
    async with refused("session_expired"):
        await sessions.reopen_session(session_id, db_session, actor=ann)


async def test_E7_reopening_an_active_session_changes_nothing(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, clock: Clock, everything: Everything
) -> None:
    clock.pass_(minutes=1)
    before = await everything()
    assert (await sessions.reopen_session(session_id, db_session, actor=ann)).state == "active"
    assert await everything() == before


async def test_E7_twenty_at_once_reopen_once(
    sessions: SessionService, ann: Actor, session_id: UUID, clock: Clock, at_once: AtOnce, journal: JournalRows
) -> None:
    clock.pass_(days=30)
    results = await at_once(20, lambda _, db: sessions.reopen_session(session_id, db, actor=ann))
    assert results.codes == []
    assert {live.state for live in results.done} == {"active"}
    assert len(await journal("session_reopened")) == 1


async def test_E8_the_defaults(
    sessions: SessionService, db_session: DbSession, ann: Actor, script: Actor, guest: Actor, ada: Actor
) -> None:
    days = {}
    for actor in (ann, script, guest, ada):
        days[actor.kind] = (await sessions.create_session(db_session, actor=actor)).deadline
    month, half_an_hour = BEGINNING + timedelta(days=30), BEGINNING + timedelta(minutes=30)
    assert days == {"user": month, "token": month, "guest": half_an_hour, "admin": month}


async def test_E8_a_change_of_policy_holds_from_the_next_call(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, configure: Configure, clock: Clock,
    refused: Refused,
) -> None:  # fmt: skip
    clock.pass_(hours=2)
    await configure("user", idle="1h")
    async with refused("session_expired"):
        await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)
    await configure("user", idle="3h")
    await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)


async def test_E1_J1_what_lives_again_by_a_longer_policy_is_stored_with_its_next_change(
    sessions: SessionService, db_session: DbSession, ann: Actor, clock: Clock, configure: Configure,
    everything: Everything, journal: JournalRows, session_id: UUID,
) -> None:  # fmt: skip
    async def stored() -> str:
        row = await db_session.find_session(session_id, None)
        assert row is not None
        return str(row.state)

    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    await configure("user", idle="1h")
    clock.pass_(hours=2)
    await sessions.sweep(db_session)
    assert await stored() == "expired"
    await configure("user", idle="3h")
    before = await everything()
    # Neither looking nor a switch to the same model tells or writes anything.
    assert (await sessions.get_session(session_id, db_session, actor=ann)).state == "active"
    assert (await sessions.switch_model(session_id, "smart", db_session, actor=ann)).changed is False
    assert await sessions.ensure_session(session_id, db_session, actor=ann)
    assert await everything() == before
    await sessions.switch_model(session_id, "fast", db_session, actor=ann)
    assert await stored() == "active"
    clock.pass_(hours=4)
    await sessions.sweep(db_session)
    assert await stored() == "expired"
    assert len(await journal("session_expired")) == 2


async def test_E8_a_group_of_ones_own(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, configure: Configure
) -> None:
    await configure("team", idle="7d")
    await Account.update({Account.group_name: "team"}).where(Account.id == ann.id)
    live = await sessions.get_session(session_id, db_session, actor=ann)
    assert live.deadline == BEGINNING + timedelta(days=7)


async def test_I10_nothing_outlives_its_absolute_end(
    sessions: SessionService, db_session: DbSession, guest: Actor, configure: Configure, clock: Clock,
    refused: Refused,
) -> None:  # fmt: skip
    await configure("guest", idle="5h")
    session_id = (await sessions.create_session(db_session, actor=guest)).row.id
    end, told = BEGINNING + timedelta(hours=24), []
    for _ in range(5):
        clock.pass_(hours=4)
        extension = await sessions.extend_session(session_id, db_session, actor=guest)
        told.append((extension.extended, extension.expires_at))
    assert told == [(True, BEGINNING + timedelta(hours=hours)) for hours in (9, 13, 17, 21)] + [(True, end)]
    extension = await sessions.extend_session(session_id, db_session, actor=guest)
    assert (extension.extended, extension.expires_at) == (False, end)
    clock.pass_(hours=4)
    async with refused("session_expired"):
        await sessions.extend_session(session_id, db_session, actor=guest)


# ---------------------------------------------------------------- close and delete


async def test_close_stops_the_running_turn_and_keeps_its_text(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, orders: Orders, journal: JournalRows,
    published: list[Hint],
) -> None:  # fmt: skip
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    await sessions.append([Piece(session_id, turn.id, 0, "Once upon")], db_session)
    published.clear()
    live = await sessions.close_session(session_id, db_session, actor=ann, reason=" enough ")
    assert (live.state, live.running_turn) == ("closed", None)
    stopped = await db_session.find_turn(turn.id)
    assert stopped is not None
    assert (stopped.state, stopped.reply) == ("stopped", "Once upon")
    assert orders.stopped == [turn.id]
    assert [row.what for row in await journal()][-2:] == ["turn_ended", "session_closed"]
    (row,) = await journal("session_closed")
    assert (row.reason, row.version, row.actor_name) == ("enough", 2, "ann")
    assert set(published) == {Hint(session_id, "turn_ended", turn.id), Hint(session_id, "session")}


async def test_an_expired_session_can_be_closed_and_then_not_be_reopened(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, clock: Clock, refused: Refused
) -> None:
    clock.pass_(days=30)
    assert (await sessions.close_session(session_id, db_session, actor=ann)).state == "closed"
    async with refused("session_closed"):
        await sessions.reopen_session(session_id, db_session, actor=ann)


async def test_twenty_at_once_close_once(
    sessions: SessionService, ann: Actor, session_id: UUID, at_once: AtOnce, journal: JournalRows
) -> None:
    results = await at_once(20, lambda _, db: sessions.close_session(session_id, db, actor=ann))
    assert (len(results.done), results.codes) == (1, ["session_closed"] * 19)
    assert len(await journal("session_closed")) == 1


async def test_a_deleted_session_is_gone_with_its_turns(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, everything: Everything,
    orders: Orders, refused: Refused,
) -> None:  # fmt: skip
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    await sessions.append([Piece(session_id, turn.id, 0, "Once upon")], db_session)
    await sessions.delete_session(session_id, db_session, actor=ann, for_good=True)
    rows = await everything()
    assert (rows["session"], rows["turn"], rows["turn_piece"], rows["said"]) == ([], [], [], [])
    assert [row["tokens"] for row in rows["usage"]] == [6 + 3]
    assert orders.stopped == [turn.id]
    async with refused("session_not_found"):
        await sessions.get_session(session_id, db_session, actor=ann)
    async with refused("session_not_found"):
        await sessions.delete_session(session_id, db_session, actor=ann)


async def test_twenty_at_once_delete_once(
    sessions: SessionService, ann: Actor, session_id: UUID, at_once: AtOnce, journal: JournalRows
) -> None:
    results = await at_once(20, lambda _, db: sessions.delete_session(session_id, db, actor=ann))
    assert (len(results.done), results.codes) == (20, [])
    assert len(await journal("session_deleted")) == 1
    results = await at_once(20, lambda _, db: sessions.delete_session(session_id, db, actor=ann, for_good=True))
    assert (len(results.done), results.codes) == (1, ["session_not_found"] * 19)
    assert len(await journal("session_erased")) == 1


async def test_not_mine_and_unknown_are_the_same_for_every_verb_of_life(
    sessions: SessionService, db_session: DbSession, bob: Actor, session_id: UUID, refused: Refused
) -> None:
    for id in (session_id, uuid4()):
        for call in (
            lambda id: sessions.extend_session(id, db_session, actor=bob),
            lambda id: sessions.reopen_session(id, db_session, actor=bob),
            lambda id: sessions.close_session(id, db_session, actor=bob),
            lambda id: sessions.delete_session(id, db_session, actor=bob),
            lambda id: sessions.delete_session(id, db_session, actor=bob, for_good=True),
            lambda id: sessions.restore_session(id, db_session, actor=bob),
            lambda id: sessions.pin_session(id, db_session, actor=bob),
            lambda id: sessions.archive_session(id, db_session, actor=bob, archived=False),
            lambda id: sessions.rename_session(id, "Mine", db_session, actor=bob),
        ):
            async with refused("session_not_found") as told:
                await call(id)
            assert (str(told.refusal), told.facts) == ("There is no such session.", {})


async def test_a_failing_database_leaves_every_verb_of_life_undone(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, clock: Clock, refused: Refused,
    storage_fails: StorageFails,
) -> None:  # fmt: skip
    expired = session_id
    clock.pass_(days=30)
    live = (await sessions.create_session(db_session, actor=ann)).row.id
    deleted = (await sessions.create_session(db_session, actor=ann)).row.id
    await sessions.delete_session(deleted, db_session, actor=ann)
    await sessions.begin_turn(live, "Hello", db_session, actor=ann)
    clock.pass_(seconds=1)
    for place in ("journal", "commit"):
        for call in (
            lambda: sessions.extend_session(live, db_session, actor=ann),
            lambda: sessions.reopen_session(expired, db_session, actor=ann),
            lambda: sessions.close_session(live, db_session, actor=ann),
            lambda: sessions.delete_session(live, db_session, actor=ann),
            lambda: sessions.delete_session(deleted, db_session, actor=ann, for_good=True),
            lambda: sessions.restore_session(deleted, db_session, actor=ann),
            lambda: sessions.pin_session(live, db_session, actor=ann),
            lambda: sessions.archive_session(expired, db_session, actor=ann),
            lambda: sessions.rename_session(live, "Rome", db_session, actor=ann),
        ):
            async with refused("storage_unavailable"), storage_fails(place):
                await call()


# ---------------------------------------------------------------- sweep


async def test_E9_sweep_writes_down_what_time_has_ended_once(
    sessions: SessionService, db_session: DbSession, ann: Actor, guest: Actor, session_id: UUID, clock: Clock,
    journal: JournalRows, everything: Everything, published: list[Hint],
) -> None:  # fmt: skip
    await sessions.create_session(db_session, actor=guest)
    assert await sessions.sweep(db_session) == 0
    clock.pass_(days=30)
    published.clear()
    assert await sessions.sweep(db_session) == 2
    rows = await journal("session_expired")
    assert {row.owner_id for row in rows} == {ann.id, guest.id}
    assert {(row.actor_kind, row.actor_name, row.outcome, row.version) for row in rows} == {
        ("system", "system", "done", 1)
    }
    assert {hint.kind for hint in published} == {"session"} and len(published) == 2
    before = await everything()
    assert {row["state"] for row in before["session"]} == {"expired"}
    assert await sessions.sweep(db_session) == 0
    assert await everything() == before


async def test_E9_sweep_is_bounded(
    sessions: SessionService, db_session: DbSession, ann: Actor, clock: Clock, journal: JournalRows
) -> None:
    await sessions.create_session(db_session, actor=ann)
    for number in range(LAPSED_ROWS + 20):
        await db_session.add(
            Session(
                id=uuid4(),
                owner_id=ann.id,
                title=str(number),
                origin="page",
                state="active",
                created_at=clock(),
                last_activity_at=clock(),
            )
        )
    clock.pass_(days=30)
    assert await sessions.sweep(db_session) == LAPSED_ROWS
    assert await sessions.sweep(db_session) == 21
    assert await sessions.sweep(db_session) == 0
    assert len(await journal("session_expired")) == LAPSED_ROWS + 21


async def test_E9_many_workers_at_once_sweep_each_thing_once(
    sessions: SessionService, other_worker: SessionService, db_session: DbSession, ann: Actor, clock: Clock,
    configure: Configure, at_once: AtOnce, journal: JournalRows,
) -> None:  # fmt: skip
    await configure("user", idle="20s", turns="0", sessions_created="0", concurrent_turns=0)
    for number in range(8):
        begun = await sessions.begin_turn(None, f"Prompt {number}", db_session, actor=ann)
        await sessions.append([Piece(begun.turn.session_id, begun.turn.id, 0, "kept")], db_session)
    clock.pass_(seconds=30)
    await at_once(6, lambda number, db: (sessions, other_worker)[number % 2].sweep(db))
    ended = await journal("turn_ended")
    assert [row.outcome for row in ended] == ["interrupted"] * 8
    assert len({row.turn_id for row in ended}) == 8
    expired = await journal("session_expired")
    assert len(expired) == len({row.session_id for row in expired}) == 8


async def test_E9_every_group_is_swept(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, clock: Clock, configure: Configure
) -> None:
    await configure("team")
    for group in ("team", "a group nobody has heard of"):
        await Account.update({Account.group_name: group}).where(Account.id == ann.id)
        clock.pass_(days=30)
        assert (await sessions.get_session(session_id, db_session, actor=ann)).state == "expired"
        assert await sessions.sweep(db_session) == 1
        await sessions.reopen_session(session_id, db_session, actor=ann)


async def test_E9_lists_are_right_before_any_sweep(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, clock: Clock, configure: Configure
) -> None:
    await configure("user", idle="1h")
    clock.pass_(hours=1)
    young = (await sessions.create_session(db_session, actor=ann)).row.id

    async def listed(state: str) -> list[tuple[UUID, str]]:
        page = await sessions.list_sessions(db_session, actor=ann, state=state)
        return [(live.row.id, live.state) for live in page.sessions]

    for swept in (0, 1):
        assert await listed("active") == [(young, "active")]
        assert await listed("expired") == [(session_id, "expired")]
        assert await listed("closed") == []
        assert len(await listed("")) == 2
        assert await sessions.sweep(db_session) == 1 - swept


@pytest.mark.parametrize("swept", [False, True])
async def test_E9_whether_a_sweep_has_run_makes_no_difference(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, clock: Clock, configure: Configure,
    swept: bool,
) -> None:  # fmt: skip
    await configure("user", idle="1h")
    clock.pass_(hours=1)
    if swept:
        assert await sessions.sweep(db_session) == 1
    await configure("user", idle="2h")

    def seen(live: LiveSession) -> tuple[str, object]:
        return live.state, live.deadline

    expected = ("active", BEGINNING + timedelta(hours=2))
    assert seen(await sessions.get_session(session_id, db_session, actor=ann)) == expected
    assert (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).session.state == "active"


async def test_E9_sweep_forgets_keys_after_a_day(
    sessions: SessionService, db_session: DbSession, ann: Actor, clock: Clock, everything: Everything
) -> None:
    await sessions.create_session(db_session, actor=ann, key="k1")
    clock.pass_(hours=24)
    await sessions.sweep(db_session)
    assert len((await everything())["idempotency"]) == 1
    clock.pass_(microseconds=1)
    await sessions.sweep(db_session)
    assert (await everything())["idempotency"] == []


async def test_E9_a_sweep_that_meets_a_failing_database_marks_nothing(
    sessions: SessionService, db_session: DbSession, session_id: UUID, clock: Clock, everything: Everything,
    storage_fails: StorageFails, published: list[Hint],
) -> None:  # fmt: skip
    clock.pass_(days=30)
    before = await everything()
    async with storage_fails("journal"):
        with pytest.raises(StorageUnavailable):
            await sessions.sweep(db_session)
    after = await everything()
    assert (after["session"], after["journal"]) == (before["session"], before["journal"])
    assert published == []
    assert await sessions.sweep(db_session) == 1


async def test_E9_sweep_forgets_rates_that_are_whole_again_and_no_other(
    sessions: SessionService, db_session: DbSession, ann: Actor, clock: Clock, configure: Configure,
    everything: Everything,
) -> None:  # fmt: skip
    await configure("user", sessions_created="3/min", turns="1/h")
    begun = await sessions.begin_turn(None, "Hello", db_session, actor=ann)
    await sessions.finish_turn(begun.turn.id, db_session, state="done")
    clock.pass_(seconds=20)
    before = {one.name: one for one in await sessions.allowances(db_session, actor=ann)}
    await sessions.sweep(db_session)
    assert [row["key"].split(":")[0] for row in (await everything())["rate_bucket"]] == ["turns"]
    assert {one.name: one for one in await sessions.allowances(db_session, actor=ann)} == before


async def test_E7_an_admin_reopens_within_the_owners_quota(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, session_id: UUID, clock: Clock,
    configure: Configure, refused: Refused,
) -> None:  # fmt: skip
    await configure("user", open_sessions=1)
    await configure("admin", open_sessions=1)
    clock.pass_(days=30)
    await sessions.create_session(db_session, actor=ada)
    assert (await sessions.reopen_session(session_id, db_session, actor=ada)).state == "active"
    clock.pass_(days=30)
    await sessions.create_session(db_session, actor=ann)
    async with refused("session_quota"):
        await sessions.reopen_session(session_id, db_session, actor=ada)


async def test_E9_E3_when_a_lost_turn_is_noticed_decides_nothing(
    sessions: SessionService, db_session: DbSession, guest: Actor, clock: Clock, configure: Configure, refused: Refused
) -> None:
    """Neither the end of the session, nor when the turn ended, nor the day on which its use is booked."""
    await configure("guest", idle="30min", absolute="24h")
    clock.at = clock.at.replace(hour=23, minute=59, second=10)
    begun = (await sessions.begin_turn(None, "Hello", db_session, actor=guest)).turn
    day = clock().date()
    clock.pass_(minutes=29)
    before = (await sessions.get_session(begun.session_id, db_session, actor=guest)).deadline
    # A switch to the same model finds the lost turn, and so does a sweep; whichever comes first.
    await sessions.switch_model(begun.session_id, "fast", db_session, actor=guest)
    await sessions.sweep(db_session)
    assert (await sessions.get_session(begun.session_id, db_session, actor=guest)).deadline == before
    turn = await db_session.find_turn(begun.id)
    assert turn is not None and (turn.state, turn.ended_at) == ("interrupted", begun.lease_until)
    assert [row["day"] for row in await Usage.select(Usage.day)] == [day]
    clock.pass_(minutes=2)
    async with refused("session_expired"):
        await sessions.begin_turn(begun.session_id, "More", db_session, actor=guest)


async def test_G5_who_stops_a_turn_whose_worker_is_gone_interrupts_it(
    sessions: SessionService, db_session: DbSession, ann: Actor, clock: Clock, journal: JournalRows
) -> None:
    begun = (await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn
    clock.pass_(seconds=31)
    assert (await sessions.stop_turn(begun.id, db_session, actor=ann)).state == "interrupted"
    assert [(row.outcome, row.actor_kind) for row in await journal("turn_ended")] == [("interrupted", "system")]

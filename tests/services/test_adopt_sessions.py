"""adopt_sessions: rule O3."""

from uuid import uuid4

import msgspec

from db.db_session import DbSession
from services.actor import Actor
from services.session_service import SessionService
from tests.conftest import AtOnce, Everything, JournalRows, Refused, StorageFails


async def test_O3_a_guests_sessions_become_the_accounts(
    sessions: SessionService, db_session: DbSession, guest: Actor, ann: Actor, journal: JournalRows, refused: Refused
) -> None:
    first = (await sessions.create_session(db_session, actor=guest, title="Rome")).row.id
    turn = (await sessions.begin_turn(first, "Hello", db_session, actor=guest)).turn
    await sessions.append([(first, turn.id, 0, "Hi")], db_session)
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

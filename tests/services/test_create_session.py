"""create_session: rules C1 to C8."""

import asyncio
from datetime import timedelta
from uuid import UUID, uuid4

import msgspec

from db.db_session import DbSession
from db.engine import Engine
from services.accounts import Accounts, Credentials
from services.actor import Actor
from services.event_bus import MemoryEventBus
from services.session_service import SessionService
from tests.conftest import (
    BEGINNING,
    AtOnce,
    Clock,
    Configure,
    Everything,
    JournalRows,
    Offer,
    Refused,
    StorageFails,
)


async def test_C1_the_server_makes_the_id(sessions: SessionService, db_session: DbSession, ann: Actor) -> None:
    first = (await sessions.create_session(db_session, actor=ann)).row.id
    second = (await sessions.create_session(db_session, actor=ann)).row.id
    assert (first.version, second.version) == (7, 7)
    assert first < second


async def test_C1_an_id_that_a_client_brings_is_never_adopted(
    sessions: SessionService, db_session: DbSession, ann: Actor, everything: Everything, refused: Refused
) -> None:
    brought = uuid4()
    for ask in (
        lambda: sessions.ensure_session(brought, db_session, actor=ann),
        lambda: sessions.begin_turn(brought, "Hello", db_session, actor=ann),
        lambda: sessions.switch_model(brought, "smart", db_session, actor=ann),
        lambda: sessions.fork_session(brought, db_session, actor=ann),
        lambda: sessions.reopen_session(brought, db_session, actor=ann),
    ):
        async with refused("session_not_found"):
            await ask()
    # Not even where a session of that id was.
    deleted = (await sessions.create_session(db_session, actor=ann, key="k1")).row.id
    await sessions.delete_session(deleted, db_session, actor=ann, for_good=True)
    async with refused("session_not_found"):
        await sessions.begin_turn(deleted, "Hello", db_session, actor=ann)
    await sessions.create_session(db_session, actor=ann, key=str(brought))
    assert {row["id"] for row in (await everything())["session"]}.isdisjoint({brought, deleted})


async def test_C2_a_session_has_owner_origin_times_and_no_model(
    sessions: SessionService, db_session: DbSession, ann: Actor, clock: Clock
) -> None:
    created = await sessions.create_session(db_session, actor=ann, title="  About \n Rome ", origin="page")
    row = await db_session.find_session(created.row.id, ann.id)
    assert row is not None
    assert (row.owner_id, row.origin, row.title) == (ann.id, "page", "About Rome")
    assert (row.state, row.version, row.last_model, row.locked) == ("active", 0, None, False)
    assert (row.created_at, row.last_activity_at, row.expires_at) == (clock(), clock(), None)
    assert (row.turn_count, row.head_id) == (0, None)
    assert (created.state, created.running_turn, created.owner.name) == ("active", None, "ann")
    assert (created.current.id, created.current.source) == ("fast", "default")


async def test_C2_its_creation_is_journalled(
    sessions: SessionService, db_session: DbSession, ann: Actor, journal: JournalRows
) -> None:
    asked = msgspec.structs.replace(ann, request_id="request-1")
    created = await sessions.create_session(db_session, actor=asked, origin="script")
    (row,) = await journal()
    assert (row.what, row.outcome, row.reason, row.at) == ("session_created", "done", "script", BEGINNING)
    assert (row.actor_kind, row.actor_id, row.actor_name, row.owner_id) == ("user", ann.id, "ann", ann.id)
    assert (row.session_id, row.version, row.request_id) == (created.row.id, 0, "request-1")


async def test_C2_a_model_asked_for_is_stored_and_is_the_first_link_of_the_chain(
    sessions: SessionService, db_session: DbSession, ann: Actor, journal: JournalRows
) -> None:
    created = await sessions.create_session(db_session, actor=ann, model="quick")
    row = await db_session.find_session(created.row.id, ann.id)
    assert row is not None
    assert (row.last_model, row.version) == ("fast", 1)
    assert (created.row.last_model, created.current.id, created.current.source) == ("fast", "fast", "session")
    (chosen,) = await journal("model_chosen")
    assert (chosen.from_value, chosen.to_value, chosen.version, chosen.reason) == (None, "fast", 1, "asked")
    assert [row.what for row in await journal()] == ["session_created", "model_chosen"]


async def test_C2_the_row_and_its_journal_are_one_transaction(
    sessions: SessionService, db_session: DbSession, ann: Actor, everything: Everything, storage_fails: StorageFails,
    refused: Refused,
) -> None:  # fmt: skip
    async with refused("storage_unavailable"), storage_fails("journal"):
        await sessions.create_session(db_session, actor=ann)
    assert (await everything())["session"] == []


async def test_C3_a_model_that_cannot_be_used_makes_no_session(
    sessions: SessionService, db_session: DbSession, ann: Actor, refused: Refused
) -> None:
    for model, code, replacement in (
        ("no-such-model", "model_unknown", None),
        ("hidden", "model_unknown", None),
        ("off", "model_disabled", None),
        ("old", "model_retired", "smart"),
        ("switch", "model_unknown", None),
    ):
        async with refused(code) as told:
            await sessions.create_session(db_session, actor=ann, model=model)
        assert told.facts.get("replacement") == replacement


async def test_C3_a_model_whose_provider_is_not_configured_makes_no_session(
    sessions: SessionService, db_session: DbSession, ann: Actor, refused: Refused, offer: Offer
) -> None:
    await offer(stray={"provider": "nowhere"})
    async with refused("model_disabled"):
        await sessions.create_session(db_session, actor=ann, model="stray")


async def test_C3_without_a_model_it_works_even_when_none_is_usable(
    sessions: SessionService, db_session: DbSession, ann: Actor, offer: Offer
) -> None:
    await offer(default=None)
    created = await sessions.create_session(db_session, actor=ann)
    assert (created.state, created.current.id, created.current.usable) == ("active", None, False)
    assert await db_session.find_session(created.row.id, ann.id) is not None


async def test_C4_the_rate_is_each_actors_own(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, refused: Refused
) -> None:
    for _ in range(5):
        await sessions.create_session(db_session, actor=ann)
    async with refused("rate_limited"):
        await sessions.create_session(db_session, actor=ann)
    assert (await sessions.create_session(db_session, actor=bob)).row.owner_id == bob.id


async def test_C4_limited_and_again_after_exactly_the_wait(
    sessions: SessionService, db_session: DbSession, ann: Actor, clock: Clock, refused: Refused
) -> None:
    for _ in range(5):
        await sessions.create_session(db_session, actor=ann)
    async with refused("rate_limited") as told:
        await sessions.create_session(db_session, actor=ann)
    assert told.wait == timedelta(seconds=6)
    assert told.facts == {
        "limit": "sessions_created",
        "size": 5,
        "remaining": 0,
        "resets_at": clock() + timedelta(seconds=6),
        "retry_after_seconds": 6,
    }
    clock.pass_(seconds=5, microseconds=999_999)
    async with refused("rate_limited"):
        await sessions.create_session(db_session, actor=ann)
    clock.pass_(microseconds=1)
    assert (await sessions.create_session(db_session, actor=ann)).state == "active"


async def test_C4_a_script_and_a_page_of_one_account_share_the_rate(
    sessions: SessionService, db_session: DbSession, ann: Actor, script: Actor, refused: Refused
) -> None:
    for number in range(5):
        await sessions.create_session(db_session, actor=script if number % 2 else ann)
    async with refused("rate_limited"):
        await sessions.create_session(db_session, actor=script)


async def test_C4_guests_behind_one_address_share_the_rate_and_others_do_not(
    sessions: SessionService, db_session: DbSession, guest: Actor, refused: Refused
) -> None:
    neighbour = msgspec.structs.replace(guest, id=uuid4(), name="guest-neighbour")
    elsewhere = msgspec.structs.replace(guest, id=uuid4(), name="guest-elsewhere", rate_key="address:2")
    for number in range(5):
        await sessions.create_session(db_session, actor=neighbour if number % 2 else guest)
    async with refused("rate_limited"):
        await sessions.create_session(db_session, actor=neighbour)
    assert (await sessions.create_session(db_session, actor=elsewhere)).owner.role == "guest"


async def test_C4_a_guest_is_counted_by_address_and_IPv6_by_its_64(db_session: DbSession, clock: Clock) -> None:
    accounts = Accounts(b"secret", guests=True, now=clock)

    async def key(address: str) -> str:
        given = Credentials(None, "", accounts.new_guest_cookie(), address, "")
        return (await accounts.authenticate(given, db_session)).rate_key

    for one, other, same in (
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:198.51.100.7", False),
    ):
        first, second = await key(one), await key(other)
        assert (first == second) is same, (one, other)
        assert one not in first and other not in second


async def test_C5_twenty_at_once_admit_exactly_the_burst(
    sessions: SessionService, ann: Actor, at_once: AtOnce, everything: Everything
) -> None:
    results = await at_once(20, lambda _, db: sessions.create_session(db, actor=ann))
    assert len(results.done) == 5
    assert results.codes == ["rate_limited"] * 15
    rows = await everything()
    assert len(rows["session"]) == 5
    assert sorted(row["what"] for row in rows["journal"]) == ["configuration_applied"] + ["session_created"] * 5


async def test_C6_too_many_open_sessions_is_a_quota_not_a_rate(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, refused: Refused
) -> None:
    await configure("user", open_sessions=2)
    first = await sessions.create_session(db_session, actor=ann)
    await sessions.create_session(db_session, actor=ann)
    async with refused("session_quota") as told:
        await sessions.create_session(db_session, actor=ann)
    assert told.facts == {"limit": "open_sessions", "size": 2, "used": 2}
    await sessions.close_session(first.row.id, db_session, actor=ann)
    assert (await sessions.create_session(db_session, actor=ann)).state == "active"


async def test_C6_twenty_at_once_never_exceed_the_quota(
    sessions: SessionService, ann: Actor, configure: Configure, at_once: AtOnce
) -> None:
    await configure("user", open_sessions=3, sessions_created="100/min")
    results = await at_once(20, lambda _, db: sessions.create_session(db, actor=ann))
    assert len(results.done) == 3
    assert results.codes == ["session_quota"] * 17


async def test_C6_expired_sessions_do_not_fill_the_quota_before_any_sweep(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, clock: Clock, refused: Refused
) -> None:
    await configure("user", open_sessions=1, idle="1h")
    await sessions.create_session(db_session, actor=ann)
    clock.pass_(minutes=59)
    async with refused("session_quota"):
        await sessions.create_session(db_session, actor=ann)
    clock.pass_(minutes=1)
    assert (await sessions.create_session(db_session, actor=ann)).state == "active"


async def test_C7_the_same_key_makes_one_session(
    sessions: SessionService, db_session: DbSession, ann: Actor, everything: Everything
) -> None:
    first = await sessions.create_session(db_session, actor=ann, title="Rome", key="k1")
    before = await everything()
    again = await sessions.create_session(db_session, actor=ann, title="Rome", key="k1")
    assert (again.row.id, again.row.title) == (first.row.id, "Rome")
    assert await everything() == before
    assert len(before["session"]) == 1


async def test_C7_the_same_key_twenty_times_at_once_makes_one_session(
    sessions: SessionService, ann: Actor, at_once: AtOnce, everything: Everything
) -> None:
    results = await at_once(20, lambda _, db: sessions.create_session(db, actor=ann, key="k1"))
    assert len({one.row.id for one in results.done}) == 1
    assert len(results.done) == 20
    assert len((await everything())["session"]) == 1


async def test_C8_a_failing_database_makes_nothing_and_takes_nothing(
    sessions: SessionService, db_session: DbSession, ann: Actor, refused: Refused, storage_fails: StorageFails
) -> None:
    for place in ("session", "journal", "commit"):
        async with refused("storage_unavailable"), storage_fails(place):
            await sessions.create_session(db_session, actor=ann, key="k1")
    for _ in range(5):
        await sessions.create_session(db_session, actor=ann)


async def test_a_title_that_is_too_long_or_cannot_be_stored_is_refused(
    sessions: SessionService, db_session: DbSession, ann: Actor, refused: Refused
) -> None:
    for title in ("x" * 121, "a\0b", "\ud800"):
        async with refused("invalid_request"):
            await sessions.create_session(db_session, actor=ann, title=title)
    assert (await sessions.create_session(db_session, actor=ann, title="x" * 120)).row.title == "x" * 120


async def test_a_guests_first_session_makes_its_account_once(
    sessions: SessionService, guest: Actor, at_once: AtOnce, everything: Everything
) -> None:
    results = await at_once(3, lambda _, db: sessions.create_session(db, actor=guest))
    assert len(results.done) == 3
    (row,) = [row for row in (await everything())["account"] if row["role"] == "guest"]
    assert (row["id"], row["name"], row["group_name"], row["password_hash"]) == (guest.id, guest.name, "guest", None)


async def test_a_caller_who_goes_away_leaves_all_or_nothing(
    sessions: SessionService, engine: Engine, ann: Actor, configure: Configure, everything: Everything,
    bus: MemoryEventBus,
) -> None:  # fmt: skip
    await configure("user", sessions_created="1000/min")
    for number in range(30):
        task = asyncio.create_task(sessions.create_session(DbSession(engine), actor=ann, model="smart"))
        await asyncio.sleep(number * 0.0005)
        if number < 29:
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    rows = await everything()
    created = {row["session_id"] for row in rows["journal"] if row["what"] == "session_created"}
    switched = {row["session_id"] for row in rows["journal"] if row["what"] == "model_chosen"}
    ids: set[UUID] = {row["id"] for row in rows["session"]}
    assert ids == created == switched
    assert 0 < len(ids) < 30

"""ensure_session: rules A1 to A6, also where begin_turn calls it."""

import asyncio
from datetime import timedelta
from uuid import UUID, uuid4

import msgspec
import pytest

from db.db_session import DbSession
from db.engine import Engine
from services.actor import Actor
from services.event_bus import MemoryEventBus
from services.session_service import SessionService
from services.turn_log import Position, TurnLog
from tests.conftest import AtOnce, Clock, Configure, Everything, JournalRows, Orders, Refused, StorageFails


async def test_A1_without_an_id_it_creates_and_the_journal_says_auto(
    sessions: SessionService, db_session: DbSession, ann: Actor, journal: JournalRows
) -> None:
    made = await sessions.ensure_session(None, db_session, actor=ann)
    row = await db_session.find_session(made.row.id, ann.id)
    assert row is not None
    assert (row.origin, row.state, row.version, row.last_model) == ("auto", "active", 0, None)
    (created,) = await journal()
    assert (created.what, created.reason, created.session_id) == ("session_created", "auto", made.row.id)


async def test_A1_it_counts_against_the_same_limits(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, refused: Refused
) -> None:
    await configure("user", sessions_created="1/min")
    await sessions.create_session(db_session, actor=ann, title="not untouched")
    async with refused("rate_limited") as told:
        await sessions.ensure_session(None, db_session, actor=ann)
    assert (told.facts["limit"], told.wait) == ("sessions_created", timedelta(minutes=1))
    await configure("user", sessions_created="0", open_sessions=1)
    async with refused("session_quota"):
        await sessions.ensure_session(None, db_session, actor=ann)


async def test_A2_a_good_id_gives_that_session(
    sessions: SessionService, db_session: DbSession, ann: Actor, everything: Everything
) -> None:
    made = await sessions.create_session(db_session, actor=ann, title="mine")
    before = await everything()
    assert (await sessions.ensure_session(made.row.id, db_session, actor=ann)).row.id == made.row.id
    assert await everything() == before


async def test_A2_an_unknown_or_foreign_id_never_yields_a_session(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, refused: Refused
) -> None:
    foreign = (await sessions.create_session(db_session, actor=bob)).row.id
    for session_id in (uuid4(), foreign):
        async with refused("session_not_found"):
            await sessions.ensure_session(session_id, db_session, actor=ann)
        async with refused("session_not_found"):
            await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)


async def test_A2_an_expired_or_closed_id_never_yields_a_session(
    sessions: SessionService, db_session: DbSession, ann: Actor, clock: Clock, refused: Refused
) -> None:
    closed = (await sessions.create_session(db_session, actor=ann, title="closed")).row.id
    await sessions.close_session(closed, db_session, actor=ann)
    expired = (await sessions.create_session(db_session, actor=ann, title="expired")).row.id
    clock.pass_(days=30)
    for session_id, code in ((closed, "session_closed"), (expired, "session_expired")):
        async with refused(code):
            await sessions.ensure_session(session_id, db_session, actor=ann)
        async with refused(code):
            await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)


async def test_A2_an_id_over_the_turn_limit_is_refused_and_yields_no_session(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, refused: Refused
) -> None:
    await configure("user", turns="1/min")
    begun = await sessions.begin_turn(None, "One", db_session, actor=ann)
    await sessions.finish_turn(begun.turn.id, db_session, state="done")
    async with refused("rate_limited"):
        await sessions.begin_turn(begun.turn.session_id, "Two", db_session, actor=ann)


async def test_A3_over_the_creation_limit_a_turn_is_refused_before_anything_happens(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, refused: Refused
) -> None:
    await configure("user", sessions_created="1/min")
    await sessions.create_session(db_session, actor=ann, title="not untouched")
    async with refused("rate_limited") as told:
        await sessions.begin_turn(None, "Hello", db_session, actor=ann)
    assert told.facts["limit"] == "sessions_created"


async def test_A3_a_turn_that_is_refused_leaves_no_session_behind(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, refused: Refused
) -> None:
    await configure("user", concurrent_turns=1)
    await sessions.begin_turn(None, "One", db_session, actor=ann)
    async with refused("concurrency_limited"):
        await sessions.begin_turn(None, "Two", db_session, actor=ann)
    async with refused("model_unknown"):
        await sessions.begin_turn(None, "Two", db_session, actor=ann, model="no-such-model")
    async with refused("model_unavailable"):
        await sessions.begin_turn(None, "Two", db_session, actor=ann, model="far")


async def test_A3_a_failing_database_leaves_neither_session_nor_turn(
    sessions: SessionService, db_session: DbSession, ann: Actor, refused: Refused, storage_fails: StorageFails
) -> None:
    for place in ("session", "turn", "journal", "commit"):
        async with refused("storage_unavailable"), storage_fails(place):
            await sessions.begin_turn(None, "Hello", db_session, actor=ann)


async def test_A4_reading_what_is_not_there_makes_nothing(
    sessions: SessionService, db_session: DbSession, guest: Actor, refused: Refused
) -> None:
    for _ in range(5):
        async with refused("session_not_found"):
            await sessions.get_session(uuid4(), db_session, actor=guest)


async def test_A4_attaching_again_and_again_makes_no_row(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, bus: MemoryEventBus,
    everything: Everything,
) -> None:  # fmt: skip
    mine = (await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn
    before = await everything()
    log = TurnLog(sessions, bus, lambda: DbSession(db_session.engine), asyncio.Event())
    for number in range(50):
        for actor, id in ((ann, mine.session_id), (ann, uuid4()), (bob, mine.session_id)):
            events = log.follow_session(id, Position.parse(f"{uuid4()}:{number}"), actor)
            async with asyncio.timeout(60):
                await anext(events)
            await events.aclose()
    assert await everything() == before


async def test_A5_the_turn_is_in_the_session_that_was_made(
    sessions: SessionService, db_session: DbSession, ann: Actor, orders: Orders
) -> None:
    begun = await sessions.begin_turn(None, "Hello", db_session, actor=ann)
    assert begun.session.row.id == begun.turn.session_id
    (order,) = orders.started
    assert (order.session_id, order.turn_id) == (begun.turn.session_id, begun.turn.id)
    turn = await db_session.find_turn(begun.turn.id)
    row = await db_session.find_session(begun.turn.session_id, ann.id)
    assert turn is not None and row is not None
    assert (turn.session_id, row.head_id, row.turn_count) == (row.id, turn.id, 1)


async def test_A6_an_untouched_session_is_used_again(
    sessions: SessionService, db_session: DbSession, ann: Actor, clock: Clock, everything: Everything
) -> None:
    first = await sessions.ensure_session(None, db_session, actor=ann)
    before = await everything()
    clock.pass_(hours=23, minutes=59)
    assert (await sessions.ensure_session(None, db_session, actor=ann)).row.id == first.row.id
    assert await everything() == before
    assert len(before["session"]) == 1


async def test_A6_not_after_a_day(sessions: SessionService, db_session: DbSession, ann: Actor, clock: Clock) -> None:
    first = await sessions.ensure_session(None, db_session, actor=ann)
    clock.pass_(hours=24)
    assert (await sessions.ensure_session(None, db_session, actor=ann)).row.id != first.row.id


async def test_A6_not_one_in_which_something_happened(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, configure: Configure
) -> None:
    await configure("user", sessions_created="0")
    ids = [(await sessions.ensure_session(None, db_session, actor=ann)).row.id]
    begun = await sessions.begin_turn(None, "Hello", db_session, actor=ann)
    assert begun.turn.session_id == ids[0]

    async def fresh() -> None:
        made = (await sessions.ensure_session(None, db_session, actor=ann)).row.id
        assert made not in ids
        ids.append(made)

    await fresh()
    await sessions.keep_draft(ids[-1], "half a thought", db_session, actor=ann)
    await fresh()
    await sessions.rename_session(ids[-1], "Rome", db_session, actor=ann)
    await fresh()
    await sessions.switch_model(ids[-1], "smart", db_session, actor=ann)
    await fresh()
    await sessions.close_session(ids[-1], db_session, actor=ann)
    await fresh()
    await sessions.switch_model(ids[-1], "smart", db_session, actor=ada, reason="costs", lock=True)
    await fresh()


async def test_A6_not_one_that_has_expired(
    sessions: SessionService, db_session: DbSession, guest: Actor, clock: Clock
) -> None:
    first = await sessions.ensure_session(None, db_session, actor=guest)
    clock.pass_(minutes=30)
    assert (await sessions.ensure_session(None, db_session, actor=guest)).row.id != first.row.id


async def test_A6_not_somebody_elses(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, ada: Actor, guest: Actor
) -> None:
    ids = {(await sessions.ensure_session(None, db_session, actor=actor)).row.id for actor in (ann, bob, ada, guest)}
    assert len(ids) == 4


async def test_A6_it_costs_no_place_in_the_rate(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure
) -> None:
    await configure("user", sessions_created="1/min", open_sessions=1)
    first = await sessions.ensure_session(None, db_session, actor=ann)
    for _ in range(5):
        assert (await sessions.ensure_session(None, db_session, actor=ann)).row.id == first.row.id


async def test_A6_twenty_at_once_get_one_session(
    sessions: SessionService, ann: Actor, at_once: AtOnce, everything: Everything
) -> None:
    results = await at_once(20, lambda _, db: sessions.ensure_session(None, db, actor=ann))
    assert results.codes == []
    assert len({made.row.id for made in results.done}) == 1
    assert len((await everything())["session"]) == 1


async def test_A6_two_first_prompts_at_once_do_not_share_a_session(
    sessions: SessionService, db_session: DbSession, ann: Actor, at_once: AtOnce, configure: Configure
) -> None:
    await configure("user", sessions_created="0", turns="0", concurrent_turns=0)
    await sessions.ensure_session(None, db_session, actor=ann)
    results = await at_once(10, lambda number, db: sessions.begin_turn(None, f"Prompt {number}", db, actor=ann))
    assert results.codes == []
    assert len({begun.turn.session_id for begun in results.done}) == 10


async def test_a_token_reuses_and_makes_sessions_of_its_account(
    sessions: SessionService, db_session: DbSession, ann: Actor, script: Actor
) -> None:
    first = await sessions.ensure_session(None, db_session, actor=script)
    assert (first.row.owner_id, first.owner.name) == (ann.id, "ann")
    named = msgspec.structs.replace(ann, request_id="r")
    assert (await sessions.ensure_session(None, db_session, actor=named)).row.id == first.row.id


@pytest.mark.parametrize(
    ("model", "code"), [("no-such", "model_unknown"), ("off", "model_disabled"), ("far", "model_unavailable")]
)
async def test_A1_what_is_wrong_with_the_first_prompt_comes_before_the_limits(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, refused: Refused, model: str,
    code: str,
) -> None:  # fmt: skip
    await configure("user", sessions_created="1/h")
    live = await sessions.create_session(db_session, actor=ann)
    await sessions.rename_session(live.row.id, "used", db_session, actor=ann)
    async with refused(code):
        await sessions.begin_turn(None, "Hello", db_session, actor=ann, model=model)
    async with refused("context_overflow"):
        await sessions.begin_turn(None, "Hello " * 200, db_session, actor=ann, model="small")
    async with refused("rate_limited"):
        await sessions.begin_turn(None, "Hello", db_session, actor=ann, model="smart")


async def test_A6_an_untouched_session_that_is_being_begun_is_passed_over(
    sessions: SessionService, engine: Engine, db_session: DbSession, ann: Actor, session_id: UUID
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def begin() -> None:
        first = DbSession(engine)
        async with first.transaction():
            await sessions.begin_turn(session_id, "One", first, actor=ann)
            begun.set()
            await go_on.wait()

    beginning = asyncio.create_task(begin())
    await begun.wait()
    other = asyncio.create_task(sessions.begin_turn(None, "Two", db_session, actor=ann))
    # PostgreSQL answers at once; on SQLite it waits for the first.
    await asyncio.wait({other}, timeout=0.5)
    go_on.set()
    await beginning
    assert (await other).turn.session_id != session_id

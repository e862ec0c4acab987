"""An admin reads what others own: only where it is allowed, with a reason, and for a while; on both databases."""

import pytest

from db.db_session import DbSession
from services.actor import Actor
from services.event_bus import MemoryEventBus
from services.inspection import OPEN
from services.reads import Reads
from services.session_service import SessionService
from tests.conftest import Clock, Everything, JournalRows, Refused, an_actor


@pytest.fixture
def reading(sessions: SessionService, bus: MemoryEventBus, clock: Clock) -> SessionService:
    """The service of a deployment that lets admins read."""
    service = SessionService(sessions.pool, bus, now=clock, admins_read=True)
    service.runner = sessions.runner
    return service


async def test_a_transcript_is_read_by_who_opened_it_and_for_a_while(
    reading: SessionService, db_session: DbSession, ann: Actor, ada: Actor, clock: Clock, journal: JournalRows,
    everything: Everything, refused: Refused,
) -> None:  # fmt: skip
    turn = (await reading.begin_turn(None, "Hello", db_session, actor=ann)).turn
    session = await reading.get_session(turn.session_id, db_session, actor=ada)
    async with refused("forbidden"):
        await Reads(reading).transcript(session, db_session, actor=ada)
    for _ in range(2):  # the second is a double click
        await reading.inspection.open(session.row, "A complaint.", db_session, actor=ada, key="k")
    (row,) = await journal("transcript_opened")
    assert (row.actor_name, row.owner_id, row.session_id, row.reason) == ("ada", ann.id, session.row.id, "A complaint.")
    before = await everything()
    assert [one.prompt for one in (await Reads(reading).transcript(session, db_session, actor=ada)).turns] == ["Hello"]
    assert len(await Reads(reading).siblings(session, db_session, actor=ada)) == 1
    assert await everything() == before
    async with refused("forbidden"):
        await Reads(reading).transcript(session, db_session, actor=an_actor("eva", "admin"))
    async with refused("forbidden"):
        await Reads(reading).turn(turn.id, db_session, actor=ada)
    clock.pass_(seconds=OPEN.total_seconds())
    async with refused("forbidden"):
        await Reads(reading).transcript(session, db_session, actor=ada)


async def test_where_it_is_not_allowed_nobody_opens_one_nor_reads_what_was_opened(
    reading: SessionService, sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, script: Actor,
    refused: Refused,
) -> None:  # fmt: skip
    session = await sessions.create_session(db_session, actor=ann)
    async with refused("forbidden"):
        await sessions.inspection.open(session.row, "x", db_session, actor=ada)
    for actor in (ann, script):
        async with refused("forbidden"):
            await reading.inspection.open(session.row, "x", db_session, actor=actor)
    async with refused("invalid_request"):
        await reading.inspection.open(session.row, " ", db_session, actor=ada)
    await reading.inspection.open(session.row, "x", db_session, actor=ada)
    async with refused("forbidden"):
        await Reads(sessions).transcript(session, db_session, actor=ada)

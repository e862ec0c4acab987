"""choose_turn: of several messages in one place another is shown again."""

from uuid import UUID, uuid4

import pytest

from db.db_session import DbSession
from db.tables import Turn
from services.actor import Actor
from services.errors import Forbidden
from services.reads import Reads, Ways
from services.session_service import SessionService
from tests.conftest import AtOnce, JournalRows, Refused


@pytest.fixture
async def turns(sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID) -> list[Turn]:
    """One, with Two after it and Three after that; and beside Two, shown now, Four."""

    async def end(turn: Turn) -> Turn:
        return await sessions.finish_turn(turn.id, db_session, state="done", tail="!")

    made = [
        await end((await sessions.begin_turn(session_id, prompt, db_session, actor=ann)).turn)
        for prompt in ("One", "Two", "Three")
    ]
    return [*made, await end((await sessions.edit_turn(made[1].id, "Four", db_session, actor=ann)).turn)]


async def shown(sessions: SessionService, db_session: DbSession, actor: Actor, session_id: UUID) -> list[str]:
    live = await sessions.get_session(session_id, db_session, actor=actor)
    return [turn.prompt for turn in (await Reads(sessions).transcript(live, db_session, actor=actor)).turns]


async def test_the_transcript_goes_through_the_turn_to_the_newest_after_it(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, turns: list[Turn],
    journal: JournalRows,
) -> None:  # fmt: skip
    one, two, three, four = turns
    assert await shown(sessions, db_session, ann, session_id) == ["One", "Four"]
    before = await sessions.get_session(session_id, db_session, actor=ann)
    await sessions.choose_turn(two.id, db_session, actor=ann)
    assert await shown(sessions, db_session, ann, session_id) == ["One", "Two", "Three"]
    after = await sessions.get_session(session_id, db_session, actor=ann)
    assert (after.row.head_id, after.row.version, after.row.last_activity_at) == (
        three.id, before.row.version, before.row.last_activity_at,
    )  # fmt: skip
    assert [row.turn_id for row in await journal("turn_chosen")] == [two.id]
    await sessions.choose_turn(two.id, db_session, actor=ann)
    assert len(await journal("turn_chosen")) == 1, "what is shown already is no decision"
    await sessions.choose_turn(one.id, db_session, actor=ann)
    assert await shown(sessions, db_session, ann, session_id) == ["One", "Four"], "the newest branch below"
    await sessions.begin_turn(session_id, "Five", db_session, actor=ann)
    assert await shown(sessions, db_session, ann, session_id) == ["One", "Four", "Five"]
    assert four.id in [turn.parent_id for turn in await db_session.list_all_turns(session_id, None, 9)]


async def test_a_page_is_told_of_siblings_where_there_are_some(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, session_id: UUID, turns: list[Turn]
) -> None:
    _, two, _, four = turns
    live = await sessions.get_session(session_id, db_session, actor=ann)
    reading = Reads(sessions)
    path = (await reading.transcript(live, db_session, actor=ann)).turns
    ways = await reading.ways(live, path, db_session, actor=ann)
    assert ways == {four.id: Ways(messages=[two.id, four.id], replies=[four.id])}
    again = (await sessions.retry_turn(four.id, db_session, actor=ann)).turn
    live = await sessions.get_session(session_id, db_session, actor=ann)
    path = (await reading.transcript(live, db_session, actor=ann)).turns
    ways = await reading.ways(live, path, db_session, actor=ann)
    assert ways == {again.id: Ways(messages=[two.id, again.id], replies=[four.id, again.id])}
    with pytest.raises(Forbidden):
        await reading.ways(live, path, db_session, actor=bob)


async def test_who_may_and_when(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, ada: Actor, session_id: UUID,
    turns: list[Turn], refused: Refused,
) -> None:  # fmt: skip
    two = turns[1].id
    async with refused("session_not_found"):
        await sessions.choose_turn(two, db_session, actor=bob)
    async with refused("session_not_found"):
        await sessions.choose_turn(uuid4(), db_session, actor=ann)
    async with refused("forbidden"):
        await sessions.choose_turn(two, db_session, actor=ada)
    running = (await sessions.begin_turn(session_id, "Five", db_session, actor=ann)).turn
    async with refused("session_busy"):
        await sessions.choose_turn(two, db_session, actor=ann)
    await sessions.stop_turn(running.id, db_session, actor=ann)
    await sessions.close_session(session_id, db_session, actor=ann)
    async with refused("session_closed"):
        await sessions.choose_turn(two, db_session, actor=ann)


async def test_several_at_once_leave_one_of_the_branches(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, turns: list[Turn], at_once: AtOnce
) -> None:
    ids = [turns[1].id, turns[3].id] * 5
    await at_once(10, lambda place, own: sessions.choose_turn(ids[place], own, actor=ann))
    assert await shown(sessions, db_session, ann, session_id) in (["One", "Two", "Three"], ["One", "Four"])


# ---------------------------------------------------------------- drafts


async def test_a_draft_is_kept_until_it_is_sent_from_a_page(
    sessions: SessionService, db_session: DbSession, ann: Actor, script: Actor, session_id: UUID, journal: JournalRows
) -> None:
    async def draft() -> str:
        live = await sessions.get_session(session_id, db_session, actor=ann)
        return await Reads(sessions).draft(live, db_session, actor=ann)

    assert await draft() == ""
    rows = len(await journal())
    before = await sessions.get_session(session_id, db_session, actor=ann)
    for text in ("half", "half a thought"):
        await sessions.keep_draft(session_id, text, db_session, actor=ann)
        assert await draft() == text
    after = await sessions.get_session(session_id, db_session, actor=ann)
    assert after.row.to_dict() == before.row.to_dict()
    assert len(await journal()) == rows
    told = (await sessions.begin_turn(session_id, "by a script", db_session, actor=script)).turn
    await sessions.stop_turn(told.id, db_session, actor=ann)
    assert await draft() == "half a thought"
    await sessions.begin_turn(session_id, "half a thought, whole", db_session, actor=ann)
    assert await draft() == ""
    await sessions.keep_draft(session_id, "again", db_session, actor=ann)
    await sessions.keep_draft(session_id, "  ", db_session, actor=ann)
    assert await draft() == ""


async def test_a_draft_is_its_owners_and_has_an_end(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, ada: Actor, session_id: UUID,
    refused: Refused,
) -> None:  # fmt: skip
    async with refused("session_not_found"):
        await sessions.keep_draft(session_id, "x", db_session, actor=bob)
    async with refused("forbidden"):
        await sessions.keep_draft(session_id, "x", db_session, actor=ada)
    async with refused("prompt_too_long"):
        await sessions.keep_draft(session_id, "x" * 100_001, db_session, actor=ann)
    async with refused("invalid_request"):
        await sessions.keep_draft(session_id, "\0", db_session, actor=ann)
    await sessions.keep_draft(session_id, "x", db_session, actor=ann)
    await sessions.delete_session(session_id, db_session, actor=ann, for_good=True)
    assert await db_session.find_draft(session_id) == ""

"""keep_draft: what is typed and not sent outlives everything but being sent."""

from uuid import UUID

import pytest

from db.db_session import DbSession
from services.actor import Actor
from services.errors import Forbidden, NotFound, SessionBusy
from services.session_service import SessionService
from tests.conftest import AtOnce, Clock, Configure, JournalRows


async def test_a_draft_is_kept_until_its_message_is_sent(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, ada: Actor, session_id: UUID,
    journal: JournalRows,
) -> None:  # fmt: skip
    for text in ("one", "one two"):
        await sessions.keep_draft(session_id, text, db_session, actor=ann, key="first")
        assert await db_session.find_draft(session_id) == text
    for other, refusal in ((bob, NotFound), (ada, Forbidden)):
        with pytest.raises(refusal):
            await sessions.keep_draft(session_id, "mine", db_session, actor=other)
    assert await db_session.find_draft(session_id) == "one two"
    await sessions.begin_turn(session_id, "one two", db_session, actor=ann, key="first")
    assert await db_session.find_draft(session_id) == ""
    assert [row.what for row in await journal() if "draft" in row.what] == []


async def test_a_draft_that_comes_after_its_message_is_not_kept_and_takes_no_other_away(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID
) -> None:
    await sessions.begin_turn(session_id, "one two", db_session, actor=ann, key="first")
    await sessions.keep_draft(session_id, "one tw", db_session, actor=ann, key="first")
    assert await db_session.find_draft(session_id) == ""
    await sessions.keep_draft(session_id, "three", db_session, actor=ann, key="second")
    for late in ("one tw", ""):
        await sessions.keep_draft(session_id, late, db_session, actor=ann, key="first")
        assert await db_session.find_draft(session_id) == "three"
    await sessions.keep_draft(session_id, "", db_session, actor=ann, key="second")
    assert await db_session.find_draft(session_id) == ""


async def test_a_message_that_is_refused_leaves_the_draft(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID
) -> None:
    await sessions.begin_turn(session_id, "Hello", db_session, actor=ann, key="first")
    await sessions.keep_draft(session_id, "too early", db_session, actor=ann, key="second")
    with pytest.raises(SessionBusy):
        await sessions.begin_turn(session_id, "too early", db_session, actor=ann, key="second")
    await sessions.keep_draft(session_id, "too early!", db_session, actor=ann, key="second")
    assert await db_session.find_draft(session_id) == "too early!"


async def test_a_draft_and_its_message_at_once_leave_no_draft(
    sessions: SessionService, db_session: DbSession, ann: Actor, at_once: AtOnce, configure: Configure
) -> None:
    await configure("user", sessions_created="0", concurrent_turns=0)

    async def one(number: int, own: DbSession) -> None:
        session_id, key = ids[number // 2], f"key {number // 2}"
        if number % 2:
            await sessions.begin_turn(session_id, "one two", own, actor=ann, key=key)
        else:
            await sessions.keep_draft(session_id, "one tw", own, actor=ann, key=key)

    ids = [(await sessions.create_session(db_session, actor=ann, title=str(number))).row.id for number in range(10)]
    assert not (await at_once(20, one)).refusals
    assert [await db_session.find_draft(session_id) for session_id in ids] == [""] * 10


@pytest.mark.parametrize("ending", ["closed", "expired", ""])
async def test_a_draft_goes_along_from_a_session_in_which_it_cannot_be_sent(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, clock: Clock, ending: str
) -> None:
    await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)
    await sessions.keep_draft(session_id, "too late", db_session, actor=ann)
    if ending == "closed":
        await sessions.close_session(session_id, db_session, actor=ann)
    if ending == "expired":
        clock.pass_(days=400)
    fork = (await sessions.fork_session(session_id, db_session, actor=ann)).row.id
    drafts = [await db_session.find_draft(id) for id in (session_id, fork)]
    assert drafts == (["", "too late"] if ending else ["too late", ""])
    fork = (await sessions.fork_session(session_id, db_session, actor=ann, draft="another\r\nline")).row.id
    assert await db_session.find_draft(fork) == "another\nline"

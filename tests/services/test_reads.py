"""Reading while others write: what was shown is never taken back."""

from uuid import UUID

import pytest

from db.db_session import DbSession, Piece, Written
from db.engine import Engine
from services.actor import Actor
from services.reads import Reads
from services.session_service import SessionService


@pytest.mark.parametrize("whole", [False, True])
async def test_I13_a_turn_that_ends_between_two_looks_is_read_whole(
    sessions: SessionService, engine: Engine, db_session: DbSession, ann: Actor, whole: bool
) -> None:
    turn = (await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn
    pieces = [Piece(turn.session_id, turn.id, 0, text, reasoning=not text.isupper()) for text in ("SHOWN", "thought")]
    await sessions.append(pieces, db_session)
    live = await sessions.get_session(turn.session_id, db_session, actor=ann)

    class Meanwhile(DbSession):
        """The turn ends just before its text is asked for."""

        async def text_of(self, turn_id: UUID) -> Written:
            await sessions.stop_turn(turn.id, DbSession(engine), actor=ann)
            return await super().text_of(turn_id)

    if whole:
        page = await Reads(sessions).transcript(live, Meanwhile(engine), actor=ann)
        found, written = page.turns[-1], page.written
    else:
        found, written = await Reads(sessions).turn(turn.id, Meanwhile(engine), actor=ann)
    assert (found.state, found.reply, found.reasoning) == ("stopped", "SHOWN", "thought")
    assert written == Written()

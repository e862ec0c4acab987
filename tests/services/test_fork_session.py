"""fork_session: rule E7, and what a copy is and is not."""

from functools import partial
from uuid import UUID, uuid4

from db.db_session import DbSession, Piece
from db.tables import Turn
from services.actor import Actor
from services.clients import Usage
from services.outcomes import LiveSession
from services.reads import Reads
from services.session_service import SessionService
from tests.conftest import (
    AtOnce,
    Chain,
    Clock,
    Configure,
    Everything,
    JournalRows,
    Offer,
    Orders,
    Refused,
    StorageFails,
)


async def said(sessions: SessionService, db_session: DbSession, actor: Actor, session_id: UUID, *prompts: str) -> Turn:
    """A conversation in which every prompt is answered in capitals; its last turn."""
    turn = None
    for prompt in prompts:
        turn = (await sessions.begin_turn(session_id, prompt, db_session, actor=actor)).turn
        turn = await sessions.finish_turn(
            turn.id, db_session, state="done", tail=prompt.upper(), usage=Usage(prompt_tokens=3, reply_tokens=5)
        )
    assert turn is not None
    return turn


async def transcript(
    sessions: SessionService, db_session: DbSession, actor: Actor, session_id: UUID
) -> list[tuple[str, str | None]]:
    """Prompts and replies of a session, oldest first."""
    live = await sessions.get_session(session_id, db_session, actor=actor)
    turns = (await Reads(sessions).transcript(live, db_session, actor=actor)).turns
    assert [turn.depth for turn in turns] == list(range(1, len(turns) + 1))
    assert [turn.parent_id for turn in turns] == [None, *(turn.id for turn in turns)][: len(turns)]
    return [(turn.prompt, turn.reply) for turn in turns]


async def test_E7_what_cannot_be_reopened_can_be_forked(
    sessions: SessionService, db_session: DbSession, guest: Actor, ada: Actor, clock: Clock, refused: Refused
) -> None:
    closed, over = [(await sessions.create_session(db_session, actor=guest)).row.id for _ in range(2)]
    for id in (closed, over):
        await said(sessions, db_session, guest, id, "one", "two")
    await sessions.close_session(closed, db_session, actor=ada, reason="enough")
    clock.pass_(hours=24)
    for id, code in ((closed, "session_closed"), (over, "session_expired")):
        async with refused(code) as told:
            await sessions.reopen_session(id, db_session, actor=guest)
        assert told.facts["can_fork"] is True
        async with refused(code) as told:
            await sessions.begin_turn(id, "more", db_session, actor=guest)
        assert (told.facts.get("can_reopen", False), told.facts["can_fork"]) == (False, True)
        fork = await sessions.fork_session(id, db_session, actor=guest)
        assert (fork.state, fork.row.created_at) == ("active", clock())
        assert fork.row.id != id
        await said(sessions, db_session, guest, fork.row.id, "three")
        expected = [("one", "ONE"), ("two", "TWO"), ("three", "THREE")]
        assert await transcript(sessions, db_session, guest, fork.row.id) == expected
        assert await transcript(sessions, db_session, guest, id) == expected[:2]


async def test_E7_a_fork_is_a_session_like_any_other(
    sessions: SessionService, db_session: DbSession, ann: Actor, clock: Clock, journal: JournalRows, chain: Chain
) -> None:
    source = (await sessions.create_session(db_session, actor=ann, title="Rome", model="smart")).row.id
    last = await said(sessions, db_session, ann, source, "one")
    clock.pass_(days=3)
    fork = await sessions.fork_session(source, db_session, actor=ann)
    assert (fork.row.owner_id, fork.row.origin, fork.title, fork.row.turn_count) == (ann.id, "fork", "Rome", 1)
    assert (fork.row.last_model, fork.current.id, fork.current.source) == ("smart", "smart", "session")
    assert await chain(fork.row.id) == ["smart"]
    (row,) = [row for row in await journal("session_created") if row.session_id == fork.row.id]
    assert (row.reason, row.version, row.actor_name) == ("fork", 0, "ann")
    copied = await db_session.find_turn(fork.row.head_id)
    assert copied is not None
    assert (copied.copied_from, copied.session_id, copied.state, copied.model) == (
        last.id,
        fork.row.id,
        "done",
        "smart",
    )
    again = await sessions.fork_session(fork.row.id, db_session, actor=ann)
    copied = await db_session.find_turn(again.row.head_id)
    assert copied is not None and copied.copied_from == last.id


async def test_E7_a_fork_is_cut_where_it_is_asked_for_and_never_holds_a_running_turn(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, session_id: UUID, refused: Refused
) -> None:
    first = await said(sessions, db_session, ann, session_id, "one")
    await said(sessions, db_session, ann, session_id, "two")
    running = (await sessions.begin_turn(session_id, "three", db_session, actor=ann)).turn
    await sessions.append([Piece(session_id, running.id, 0, "half")], db_session)
    whole = await sessions.fork_session(session_id, db_session, actor=ann)
    assert await transcript(sessions, db_session, ann, whole.row.id) == [("one", "ONE"), ("two", "TWO")]
    assert whole.running_turn is None
    part = await sessions.fork_session(session_id, db_session, actor=ann, turn_id=first.id)
    assert await transcript(sessions, db_session, ann, part.row.id) == [("one", "ONE")]
    theirs = (await sessions.begin_turn(None, "secret", db_session, actor=bob)).turn
    elsewhere = await db_session.find_turn(part.row.head_id)
    assert elsewhere is not None
    for turn_id in (uuid4(), theirs.id, elsewhere.id):
        async with refused("session_not_found"):
            await sessions.fork_session(session_id, db_session, actor=ann, turn_id=turn_id)
    empty = (await sessions.create_session(db_session, actor=ann)).row.id
    fork = await sessions.fork_session(empty, db_session, actor=ann)
    assert (fork.row.turn_count, fork.row.head_id) == (0, None)


async def test_E7_a_fork_counts_as_a_creation(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, configure: Configure,
    clock: Clock, refused: Refused,
) -> None:  # fmt: skip
    await configure("user", open_sessions=1)
    async with refused("session_quota"):
        await sessions.fork_session(session_id, db_session, actor=ann)
    await configure("user", open_sessions=5, sessions_created="1/min")
    clock.pass_(minutes=1)
    await sessions.fork_session(session_id, db_session, actor=ann)
    async with refused("rate_limited") as told:
        await sessions.fork_session(session_id, db_session, actor=ann)
    assert told.facts["limit"] == "sessions_created"
    clock.at += told.wait
    await sessions.fork_session(session_id, db_session, actor=ann)


async def test_I8_a_copy_was_called_once_and_is_charged_once(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, orders: Orders,
    everything: Everything, configure: Configure,
) -> None:  # fmt: skip
    await configure("user", tokens_per_day=100_000)
    await said(sessions, db_session, ann, session_id, "one", "two")
    before, called = await everything(), len(orders.started)
    told = [one for one in await sessions.allowances(db_session, actor=ann) if one.name == "tokens_per_day"]
    await sessions.fork_session(session_id, db_session, actor=ann)
    after = await everything()
    assert (after["usage"], len(orders.started)) == (before["usage"], called)
    assert [one for one in await sessions.allowances(db_session, actor=ann) if one.name == "tokens_per_day"] == told
    (used,) = after["usage"]
    mine = [turn for turn in after["turn"] if turn["copied_from"] is None]
    assert used["tokens"] == sum(turn["prompt_tokens"] + turn["reply_tokens"] for turn in mine) == 2 * (3 + 5)
    assert len(after["turn"]) == 2 * len(mine)
    # The source is as it was.
    assert [row for row in after["session"] if row["id"] == session_id] == before["session"]


async def test_O1_only_the_owner_forks(
    sessions: SessionService, db_session: DbSession, bob: Actor, ada: Actor, session_id: UUID, refused: Refused
) -> None:
    for id in (session_id, uuid4()):
        async with refused("session_not_found") as told:
            await sessions.fork_session(id, db_session, actor=bob)
        assert (str(told.refusal), told.facts) == ("There is no such session.", {})
    async with refused("forbidden"):
        await sessions.fork_session(session_id, db_session, actor=ada)


async def test_S13_a_fork_does_not_free_the_model_that_an_admin_fixed(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, session_id: UUID, offer: Offer,
    refused: Refused,
) -> None:  # fmt: skip
    await sessions.switch_model(session_id, "smart", db_session, actor=ada, reason="audit", lock=True)
    fork = await sessions.fork_session(session_id, db_session, actor=ann)
    assert (fork.row.last_model, fork.row.locked) == ("smart", True)
    async with refused("model_locked"):
        await sessions.switch_model(fork.row.id, "fast", db_session, actor=ann)
    await offer(smart={"state": "disabled"})
    async with refused("no_model_available"):
        await sessions.begin_turn(fork.row.id, "Hello", db_session, actor=ann)


async def test_D1_one_key_is_one_fork_also_at_once(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, at_once: AtOnce,
    everything: Everything, refused: Refused,
) -> None:  # fmt: skip
    turn = await said(sessions, db_session, ann, session_id, "one")
    results = await at_once(20, lambda _, db: sessions.fork_session(session_id, db, actor=ann, key="k1"))
    assert results.codes == []
    assert len({live.row.id for live in results.done}) == 1
    rows = await everything()
    assert (len(rows["session"]), len(rows["turn"])) == (2, 2)
    async with refused("idempotency_key_reused"):
        await sessions.fork_session(session_id, db_session, actor=ann, turn_id=turn.id, key="k1")


async def test_E7_a_fork_of_what_is_being_deleted_has_all_of_it_or_is_refused(
    sessions: SessionService, db_session: DbSession, ann: Actor, at_once: AtOnce, configure: Configure
) -> None:
    await configure("user", sessions_created="0", turns="0")

    async def race(source: UUID, number: int, db: DbSession) -> LiveSession | None:
        if number == 1:
            await sessions.delete_session(source, db, actor=ann)
            return None
        return await sessions.fork_session(source, db, actor=ann)

    for _ in range(8):
        source = (await sessions.create_session(db_session, actor=ann)).row.id
        await said(sessions, db_session, ann, source, "one", "two")
        results = await at_once(3, partial(race, source))
        assert set(results.codes) <= {"session_not_found"}
        for fork in results.done:
            if fork is not None:
                assert await transcript(sessions, db_session, ann, fork.row.id) == [("one", "ONE"), ("two", "TWO")]


async def test_a_failing_database_leaves_no_fork(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, refused: Refused,
    storage_fails: StorageFails,
) -> None:  # fmt: skip
    await said(sessions, db_session, ann, session_id, "one")
    for place in ("session", "turn", "journal", "commit"):
        async with refused("storage_unavailable"), storage_fails(place):
            await sessions.fork_session(session_id, db_session, actor=ann)


async def test_J1_the_lock_of_a_fork_is_told(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, session_id: UUID, journal: JournalRows
) -> None:
    await sessions.switch_model(session_id, "smart", db_session, actor=ada, reason="it is enough", lock=True)
    fork = (await sessions.fork_session(session_id, db_session, actor=ann)).row
    (told,) = [row for row in await journal("model_locked") if row.session_id == fork.id]
    assert (told.actor_name, told.reason, told.to_value, told.version) == ("ann", "fork", "smart", fork.version)

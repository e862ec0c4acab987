"""Begin, append, heartbeat, finish, stop: rules G1 to G11, O1 for turns."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from db.db_session import DbSession, Piece
from db.engine import Conflict, Engine
from db.tables import Turn
from services.actor import Actor
from services.clients import Ask, Message, Usage
from services.event_bus import Hint
from services.outcomes import BegunTurn, TurnOrder
from services.reads import Reads
from services.session_service import SessionService
from tests.conftest import (
    BEGINNING,
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

LEASE = timedelta(seconds=30)


async def text_kept(turn_id: UUID, db_session: DbSession) -> str | None:
    turn = await db_session.find_turn(turn_id)
    return turn.reply if turn is not None else None


async def test_G1_a_turn_is_begun_in_one_transaction_and_ordered_after_it(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, orders: Orders, clock: Clock,
    published: list[Hint], journal: JournalRows,
) -> None:  # fmt: skip
    clock.pass_(minutes=1)
    async with db_session.transaction():
        begun = await sessions.begin_turn(session_id, "Where is Rome?", db_session, actor=ann)
        assert (orders.started, published) == ([], [])
    turn = await db_session.find_turn(begun.turn.id)
    assert turn is not None
    assert (turn.session_id, turn.owner_id, turn.parent_id) == (session_id, ann.id, None)
    assert (turn.prompt, turn.reply, turn.model, turn.state) == ("Where is Rome?", None, "fast", "running")
    assert (turn.lease_owner, turn.lease_until, turn.created_at) == (sessions.worker, clock() + LEASE, clock())
    assert (turn.prompt_tokens, turn.reserved_tokens) == (9, 9 + 4096)
    assert (turn.reserved_nanos, turn.estimated) == (9 * 1000 + 4096 * 2000, True)
    assert (turn.first_text_at, turn.ended_at, turn.error_code) == (None, None, None)
    row = await db_session.find_session(session_id, ann.id)
    assert row is not None
    assert (row.head_id, row.turn_count, row.last_model, row.opening) == (turn.id, 1, "fast", "Where is Rome?")
    ask = Ask(model="echo", messages=(Message("user", "Where is Rome?"),), max_reply_tokens=0)
    assert orders.started == [TurnOrder(turn.id, session_id, "builtin", ask)]
    assert set(published) == {Hint(session_id, "turn_begun", turn.id), Hint(session_id, "session")}
    (row,) = await journal("turn_begun")
    assert (row.turn_id, row.session_id, row.owner_id, row.actor_name) == (turn.id, session_id, ann.id, "ann")
    assert (row.to_value, row.outcome, row.version) == ("fast", "done", 1)
    assert (begun.session.running_turn, begun.session.title) == (turn.id, "Where is Rome?")
    assert {one.name: one.remaining for one in begun.allowance} == {"turns": 9, "concurrent_turns": 2}


async def test_G1_a_failing_database_leaves_nothing(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, refused: Refused,
    storage_fails: StorageFails,
) -> None:  # fmt: skip
    for place in ("turn", "journal", "rate_bucket", "commit"):
        async with refused("storage_unavailable"), storage_fails(place):
            await sessions.begin_turn(session_id, "Hello", db_session, actor=ann, key="k1", model="smart")
    assert (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann, key="k1")).turn.state == "running"


async def test_G1_a_caller_who_goes_away_leaves_a_whole_turn_or_none(
    sessions: SessionService, engine: Engine, ann: Actor, orders: Orders, configure: Configure, everything: Everything
) -> None:
    await configure("user", turns="0", sessions_created="0", concurrent_turns=0)
    for number in range(30):
        task = asyncio.create_task(sessions.begin_turn(None, "Hello", DbSession(engine), actor=ann))
        await asyncio.sleep(number * 0.0007)
        if number < 29:
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(60):
        rows = await everything()
    turns = {row["id"] for row in rows["turn"]}
    assert turns == {row["turn_id"] for row in rows["journal"] if row["what"] == "turn_begun"}
    assert turns == {row["head_id"] for row in rows["session"]}
    assert turns == {order.turn_id for order in orders.started}
    assert 0 < len(turns) < 30


async def test_G1_a_prompt_that_cannot_be_stored_is_refused_before_all_else(
    sessions: SessionService, db_session: DbSession, ann: Actor, refused: Refused
) -> None:
    for prompt, code in (
        ("x" * 100_001, "prompt_too_long"),
        ("", "invalid_request"),
        (" \n\t", "invalid_request"),
        ("\u200b", "invalid_request"),
        ("\ufeff \u2060\n", "invalid_request"),
        ("\u3164", "invalid_request"),
        ("a\0b", "invalid_request"),
        ("\udfff", "invalid_request"),
    ):
        async with refused(code):
            await sessions.begin_turn(uuid4(), prompt, db_session, actor=ann)


async def test_G1_a_prompt_is_stored_as_it_was_written_but_for_its_line_ends(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID
) -> None:
    prompt = "  Zwölf Boxkämpfer\r\n\tjagen 🦊 \u2028 e\u0301\n" + "x" * 99_900
    turn = (await sessions.begin_turn(session_id, prompt, db_session, actor=ann)).turn
    stored = await db_session.find_turn(turn.id)
    assert stored is not None and stored.prompt == prompt.replace("\r\n", "\n")


async def test_G2_a_second_prompt_while_one_runs_is_refused(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, refused: Refused
) -> None:
    turn = (await sessions.begin_turn(session_id, "One", db_session, actor=ann)).turn
    async with refused("session_busy") as told:
        await sessions.begin_turn(session_id, "Two", db_session, actor=ann)
    assert told.facts == {"running_turn": turn.id}
    async with refused("session_busy"):
        await sessions.begin_turn(session_id, "Two", db_session, actor=ann, model="smart")
    await sessions.finish_turn(turn.id, db_session, state="done", tail="1")
    second = (await sessions.begin_turn(session_id, "Two", db_session, actor=ann)).turn
    assert second.parent_id == turn.id


async def test_G2_twenty_at_once_begin_one(
    sessions: SessionService, ann: Actor, session_id: UUID, at_once: AtOnce, everything: Everything, orders: Orders,
    configure: Configure,
) -> None:  # fmt: skip
    await configure("user", turns="0")
    results = await at_once(20, lambda n, db: sessions.begin_turn(session_id, f"Prompt {n}", db, actor=ann))
    (begun,) = results.done
    assert results.codes == ["session_busy"] * 19
    assert {refusal.facts["running_turn"] for refusal in results.refusals} == {begun.turn.id}
    assert [row["id"] for row in (await everything())["turn"]] == [begun.turn.id]
    assert len(orders.started) == 1


async def test_G2_a_double_click_with_the_same_key_is_the_same_turn(
    sessions: SessionService, ann: Actor, session_id: UUID, at_once: AtOnce, everything: Everything, orders: Orders
) -> None:
    results = await at_once(20, lambda _, db: sessions.begin_turn(session_id, "Hello", db, actor=ann, key="k1"))
    assert results.codes == []
    assert len({begun.turn.id for begun in results.done}) == 1
    rows = await everything()
    assert len(rows["turn"]) == len(orders.started) == 1
    assert [row["what"] for row in rows["journal"]].count("turn_begun") == 1


async def test_I2_the_database_itself_refuses_a_second_running_turn(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID
) -> None:
    turn = (await sessions.begin_turn(session_id, "One", db_session, actor=ann)).turn
    second = Turn(**{**turn.to_dict(), "id": uuid4()})
    with pytest.raises(Conflict):
        await db_session.add(second)
    await sessions.finish_turn(turn.id, db_session, state="done")
    await db_session.add(second)


async def test_G3_an_actors_turns_at_once_are_counted_over_leased_rows(
    sessions: SessionService, other_worker: SessionService, db_session: DbSession, ann: Actor, bob: Actor,
    clock: Clock, refused: Refused,
) -> None:  # fmt: skip
    turns = [(await sessions.begin_turn(None, f"Prompt {n}", db_session, actor=ann)).turn for n in range(3)]
    async with refused("concurrency_limited") as told:
        await other_worker.begin_turn(None, "Four", db_session, actor=ann)
    assert (told.facts["limit"], told.facts["size"], told.facts["remaining"]) == ("concurrent_turns", 3, 0)
    assert told.wait == timedelta(seconds=5)
    assert (await sessions.begin_turn(None, "Mine", db_session, actor=bob)).turn.owner_id == bob.id
    await sessions.finish_turn(turns[0].id, db_session, state="done")
    await other_worker.begin_turn(None, "Four", db_session, actor=ann)
    async with refused("concurrency_limited"):
        await sessions.begin_turn(None, "Five", db_session, actor=ann)
    clock.at += LEASE
    await sessions.begin_turn(None, "Five", db_session, actor=ann)


async def test_G3_twenty_at_once_hold_exactly_the_slots(
    sessions: SessionService, ann: Actor, configure: Configure, at_once: AtOnce
) -> None:
    await configure("user", turns="0", sessions_created="0")
    results = await at_once(20, lambda n, db: sessions.begin_turn(None, f"Prompt {n}", db, actor=ann))
    assert (len(results.done), results.codes) == (3, ["concurrency_limited"] * 17)


async def test_G3_a_models_turns_at_once_are_everybodys(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, offer: Offer, refused: Refused
) -> None:
    await offer(fast={"concurrent_turns": 2})
    first = (await sessions.begin_turn(None, "One", db_session, actor=ann)).turn
    await sessions.begin_turn(None, "Two", db_session, actor=bob)
    async with refused("concurrency_limited") as told:
        await sessions.begin_turn(None, "Three", db_session, actor=bob)
    assert (told.facts["limit"], told.facts["size"]) == ("concurrent_turns_of_model", 2)
    assert (await sessions.begin_turn(None, "Three", db_session, actor=bob, model="smart")).turn.model == "smart"
    await sessions.stop_turn(first.id, db_session, actor=ann)
    assert (await sessions.begin_turn(None, "Four", db_session, actor=ann)).turn.model == "fast"


async def test_G3_a_closed_page_frees_no_slot(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, clock: Clock, refused: Refused
) -> None:
    await configure("user", concurrent_turns=1)
    turn = (await sessions.begin_turn(None, "One", db_session, actor=ann)).turn
    for _ in range(10):
        clock.pass_(seconds=20)
        await sessions.heartbeat([turn.id], db_session)
        async with refused("concurrency_limited"):
            await sessions.begin_turn(None, "Two", db_session, actor=ann)
    await sessions.finish_turn(turn.id, db_session, state="done")
    await sessions.begin_turn(None, "Two", db_session, actor=ann)


async def test_G4_text_is_appended_while_nobody_watches(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, published: list[Hint], clock: Clock
) -> None:
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    published.clear()
    clock.pass_(seconds=1)
    assert await sessions.append([Piece(session_id, turn.id, 0, "Once ")], db_session) == {turn.id}
    clock.pass_(seconds=1)
    assert await sessions.append([Piece(session_id, turn.id, 5, "upon")], db_session) == {turn.id}
    assert published == [
        Hint(session_id, "text", turn.id, 0, "Once "),
        Hint(session_id, "text", turn.id, 5, "upon"),
    ]
    assert (await db_session.text_of(turn.id)).reply == "Once upon"
    ended = await sessions.finish_turn(turn.id, db_session, state="done", tail=" a time")
    assert (ended.reply, ended.state, ended.ended_at) == ("Once upon a time", "done", clock())
    assert ended.first_text_at == BEGINNING + timedelta(seconds=1)
    assert (await db_session.text_of(turn.id)).reply == ""


async def test_G4_the_text_of_many_turns_is_one_append(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor
) -> None:
    turns = [(await sessions.begin_turn(None, "Hello", db_session, actor=actor)).turn for actor in (ann, bob)]
    pieces = [Piece(turn.session_id, turn.id, 0, turn.owner_id.hex) for turn in turns]
    assert await sessions.append(pieces, db_session) == {turn.id for turn in turns}
    for turn in turns:
        assert (await db_session.text_of(turn.id)).reply == turn.owner_id.hex


async def test_G4_text_whose_commit_was_not_acknowledged_comes_again_and_is_there_once(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID
) -> None:
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    for start, text in ((0, "Once "), (5, "up"), (5, "upon "), (5, "upon "), (10, "a ")):
        assert await sessions.append([Piece(session_id, turn.id, start, text)], db_session) == {turn.id}
    assert (await db_session.text_of(turn.id)).reply == "Once upon a "
    ended = await sessions.finish_turn(turn.id, db_session, state="done", tail="a time", start=10)
    assert ended.reply == "Once upon a time"


async def test_G5_a_lapsed_turn_is_interrupted_with_all_its_text(
    sessions: SessionService, other_worker: SessionService, db_session: DbSession, ann: Actor, session_id: UUID,
    clock: Clock, journal: JournalRows, published: list[Hint],
) -> None:  # fmt: skip
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    await sessions.append([Piece(session_id, turn.id, 0, "Once upon")], db_session)
    clock.pass_(seconds=29, microseconds=999_999)
    assert await other_worker.sweep(db_session) == 0
    clock.pass_(microseconds=1)
    published.clear()
    assert await other_worker.sweep(db_session) == 1
    ended = await db_session.find_turn(turn.id)
    assert ended is not None
    assert (ended.state, ended.reply, ended.error_code) == ("interrupted", "Once upon", "interrupted")
    assert (ended.prompt_tokens, ended.reply_tokens, ended.estimated) == (6, 3, True)
    (row,) = await journal("turn_ended")
    assert (row.outcome, row.reason, row.actor_kind, row.turn_id) == ("interrupted", "interrupted", "system", turn.id)
    assert Hint(session_id, "turn_ended", turn.id) in published
    assert (await sessions.get_session(session_id, db_session, actor=ann)).running_turn is None
    again = (await sessions.begin_turn(session_id, "Again", db_session, actor=ann)).turn
    assert again.parent_id == turn.id


async def test_G5_a_turn_is_interrupted_by_the_next_prompt_even_without_a_sweep(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, clock: Clock, journal: JournalRows,
    configure: Configure,
) -> None:  # fmt: skip
    await configure("user", concurrent_turns=1)
    turn = (await sessions.begin_turn(session_id, "One", db_session, actor=ann)).turn
    await sessions.append([Piece(session_id, turn.id, 0, "Once upon")], db_session)
    clock.at += LEASE
    second = (await sessions.begin_turn(session_id, "Two", db_session, actor=ann)).turn
    first = await db_session.find_turn(turn.id)
    assert first is not None
    assert (first.state, first.reply) == ("interrupted", "Once upon")
    row = await db_session.find_session(session_id, ann.id)
    assert row is not None
    assert (row.head_id, row.turn_count, second.parent_id) == (second.id, 2, turn.id)
    assert [row.what for row in await journal()][-2:] == ["turn_ended", "turn_begun"]


async def test_G5_at_once_when_the_only_process_starts_again(
    sessions: SessionService, other_worker: SessionService, db_session: DbSession, ann: Actor, session_id: UUID
) -> None:
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    await sessions.append([Piece(session_id, turn.id, 0, "Once upon")], db_session)
    assert await sessions.sweep(db_session, alone=True) == 0
    assert await other_worker.sweep(db_session) == 0
    assert await other_worker.sweep(db_session, alone=True) == 1
    ended = await db_session.find_turn(turn.id)
    assert ended is not None and (ended.state, ended.reply) == ("interrupted", "Once upon")


async def test_G6_an_ended_turn_never_changes(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, everything: Everything,
    published: list[Hint], clock: Clock,
) -> None:  # fmt: skip
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    await sessions.finish_turn(turn.id, db_session, state="done", tail="Hi", usage=Usage(1, 2))
    before, hints = await everything(), list(published)
    clock.pass_(seconds=1)
    late = await sessions.finish_turn(turn.id, db_session, state="failed", tail="more", error=("a", "b"))
    assert (late.state, late.reply) == ("done", "Hi")
    assert (await sessions.stop_turn(turn.id, db_session, actor=ann)).state == "done"
    assert await sessions.append([Piece(session_id, turn.id, 2, "more")], db_session) == set()
    await sessions.heartbeat([turn.id], db_session)
    assert await everything() == before
    assert published == hints


@pytest.mark.parametrize("stops_first", [False, True])
async def test_G6_twenty_ends_at_once_are_one(
    sessions: SessionService, ann: Actor, db_session: DbSession, session_id: UUID, at_once: AtOnce,
    journal: JournalRows, everything: Everything, stops_first: bool,
) -> None:  # fmt: skip
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn

    async def end(number: int, db: DbSession) -> Turn:
        if number % 2 == stops_first:
            return await sessions.finish_turn(turn.id, db, state="done", tail="Hi", usage=Usage(10, 20))
        return await sessions.stop_turn(turn.id, db, actor=ann)

    results = await at_once(20, end)
    assert results.codes == []
    (state,) = {one.state for one in results.done}
    assert len(await journal("turn_ended")) == 1
    (used,) = (await everything())["usage"]
    assert used["tokens"] == (30 if state == "done" else turn.prompt_tokens)
    assert used["turns"] == 1


async def test_G6_only_the_worker_that_holds_the_lease_writes(
    sessions: SessionService, other_worker: SessionService, db_session: DbSession, ann: Actor, session_id: UUID,
    everything: Everything,
) -> None:  # fmt: skip
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    before = await everything()
    assert await other_worker.append([Piece(session_id, turn.id, 0, "no")], db_session) == set()
    assert (await other_worker.finish_turn(turn.id, db_session, state="done", tail="no")).state == "running"
    await other_worker.heartbeat([turn.id], db_session)
    assert await everything() == before


async def test_G6_a_worker_that_slept_through_its_lease_cannot_write(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, clock: Clock, everything: Everything
) -> None:
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    await sessions.append([Piece(session_id, turn.id, 0, "Once")], db_session)
    clock.at += LEASE
    before = await everything()
    assert await sessions.append([Piece(session_id, turn.id, 4, " upon")], db_session) == set()
    assert (await sessions.finish_turn(turn.id, db_session, state="done", tail=" upon")).state == "running"
    await sessions.heartbeat([turn.id], db_session)
    assert await everything() == before


async def test_G6_a_heartbeat_keeps_the_lease(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, clock: Clock
) -> None:
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    for _ in range(5):
        clock.pass_(seconds=29)
        await sessions.heartbeat([turn.id], db_session)
    assert await sessions.sweep(db_session) == 0
    held = await db_session.find_turn(turn.id)
    assert held is not None and (held.state, held.lease_until) == ("running", clock() + LEASE)


async def test_G7_stop_keeps_the_text_and_tells_the_runner(
    sessions: SessionService, other_worker: SessionService, db_session: DbSession, ann: Actor, script: Actor,
    session_id: UUID, orders: Orders, clock: Clock, journal: JournalRows, published: list[Hint],
) -> None:  # fmt: skip
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    await sessions.append([Piece(session_id, turn.id, 0, "Once upon")], db_session)
    clock.pass_(seconds=2)
    published.clear()
    stopped = await other_worker.stop_turn(turn.id, db_session, actor=script)
    assert (stopped.state, stopped.reply, stopped.ended_at) == ("stopped", "Once upon", clock())
    assert (stopped.error_code, stopped.reply_tokens, stopped.estimated) == (None, 3, True)
    assert orders.stopped == [turn.id]
    assert published == [Hint(session_id, "turn_ended", turn.id)]
    (row,) = await journal("turn_ended")
    assert (row.outcome, row.actor_kind, row.actor_name, row.reason) == ("stopped", "token", "ann", "")
    assert (await db_session.text_of(turn.id)).reply == ""


async def test_G7_stopping_twice_is_stopping_once(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, everything: Everything,
    orders: Orders,
) -> None:  # fmt: skip
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    await sessions.stop_turn(turn.id, db_session, actor=ann)
    before = await everything()
    again = await sessions.stop_turn(turn.id, db_session, actor=ann)
    assert (again.state, again.reply, again.first_text_at) == ("stopped", "", None)
    assert await everything() == before
    assert orders.stopped == [turn.id]


async def test_G7_an_admin_may_stop_and_the_journal_says_who(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, session_id: UUID, journal: JournalRows
) -> None:
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    assert (await sessions.stop_turn(turn.id, db_session, actor=ada)).state == "stopped"
    (row,) = await journal("turn_ended")
    assert (row.actor_name, row.owner_id) == ("ada", ann.id)


async def test_O1_a_foreign_turn_is_not_there(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, guest: Actor, session_id: UUID,
    refused: Refused,
) -> None:  # fmt: skip
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    for actor in (bob, guest):
        told = []
        for turn_id in (turn.id, uuid4()):
            async with refused("session_not_found") as stop:
                await sessions.stop_turn(turn_id, db_session, actor=actor)
            async with refused("session_not_found") as read:
                await Reads(sessions).turn(turn_id, db_session, actor=actor)
            told.append([str(one.refusal) for one in (stop, read)] + [stop.facts, read.facts])
        assert told[0] == told[1]


async def test_O1_nobody_writes_in_anothers_session(
    sessions: SessionService, db_session: DbSession, bob: Actor, ada: Actor, session_id: UUID, refused: Refused
) -> None:
    async with refused("session_not_found"):
        await sessions.begin_turn(session_id, "Hello", db_session, actor=bob)
    async with refused("forbidden"):
        await sessions.begin_turn(session_id, "Hello", db_session, actor=ada)


async def test_G8_a_stale_version_stores_nothing(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, refused: Refused
) -> None:
    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    async with refused("version_conflict") as told:
        await sessions.begin_turn(session_id, "Hello", db_session, actor=ann, expected_version=0)
    assert told.facts == {"current_model": "smart", "version": 1}
    async with refused("version_conflict"):
        await sessions.begin_turn(session_id, "Hello", db_session, actor=ann, expected_version=0, model="fast")
    begun = await sessions.begin_turn(session_id, "Hello", db_session, actor=ann, expected_version=1)
    assert begun.turn.model == "smart"


async def test_G8_the_first_fault_of_two_wins(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, ada: Actor, session_id: UUID,
    configure: Configure, clock: Clock, refused: Refused, storage_fails: StorageFails,
) -> None:  # fmt: skip
    """Every two neighbours of the order of checks, at once."""
    await configure("user", turns="1/d")
    closed = (await sessions.create_session(db_session, actor=ann)).row.id
    await sessions.close_session(closed, db_session, actor=ann)
    locked = (await sessions.create_session(db_session, actor=ann)).row.id
    await sessions.switch_model(locked, "smart", db_session, actor=ada, reason="audit", lock=True)
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann, key="k1")).turn

    async def check(code: str, **change: Any) -> None:
        asked = {"session_id": session_id, "prompt": "Two", "actor": ann, **change}
        async with refused(code):
            await sessions.begin_turn(db_session=db_session, **asked)

    # form, key
    await check("invalid_request", prompt="", key="k1")
    await check("prompt_too_long", prompt="x" * 100_001, key="k1")
    # key, owner
    await check("idempotency_key_reused", key="k1", session_id=uuid4())
    # owner, state
    await check("session_not_found", session_id=closed, actor=bob)
    # state, permission
    await check("session_closed", session_id=closed, actor=ada)
    # permission, model
    await check("forbidden", actor=ada, model="no-such-model")
    await check("model_locked", session_id=locked, model="no-such-model")
    # model, version
    await check("model_unknown", model="no-such-model", expected_version=99)
    await check("model_unavailable", model="far", expected_version=99)
    # version, busy
    await check("version_conflict", expected_version=99)
    # busy, limits
    await check("session_busy")
    await sessions.finish_turn(turn.id, db_session, state="done")
    # a prompt that cannot fit, limits
    await check("context_overflow", model="small", prompt="x" * 1000)
    # limits, the write itself
    async with storage_fails("turn"):
        await check("rate_limited")
    clock.pass_(days=31)
    # state, model
    await check("session_expired", model="no-such-model")


async def test_a_turn_with_a_model_switches_the_session_first(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, chain: Chain, configure: Configure,
    refused: Refused, journal: JournalRows,
) -> None:  # fmt: skip
    await configure("user", switches="1/h")
    await sessions.switch_model(session_id, "aging", db_session, actor=ann)
    begun = await sessions.begin_turn(session_id, "Hello", db_session, actor=ann, model="quick")
    assert (begun.turn.model, begun.session.row.last_model) == ("fast", "fast")
    (row,) = await journal("model_switched")
    assert (row.from_value, row.to_value, row.reason) == ("aging", "fast", "")
    await sessions.finish_turn(begun.turn.id, db_session, state="done")
    async with refused("rate_limited") as told:
        await sessions.begin_turn(session_id, "Two", db_session, actor=ann, model="smart")
    assert told.facts["limit"] == "switches"
    for model, code in (("off", "model_disabled"), ("old", "model_retired"), ("hidden", "model_unknown")):
        async with refused(code):
            await sessions.begin_turn(session_id, "Two", db_session, actor=ann, model=model)
    await sessions.begin_turn(session_id, "Two", db_session, actor=ann, model="fast")
    assert await chain(session_id) == ["aging", "fast"]


async def test_G10_never_done_before_the_whole_text_is_committed(
    sessions: SessionService, db_session: DbSession, engine: Engine, ann: Actor, session_id: UUID,
    published: list[Hint],
) -> None:  # fmt: skip
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    await sessions.append([Piece(session_id, turn.id, 0, "Once ")], db_session)
    published.clear()
    async with db_session.transaction():
        await sessions.finish_turn(turn.id, db_session, state="done", tail="upon")
        assert published == []
        seen = await asyncio.create_task(DbSession(engine).find_turn(turn.id))
        assert seen is not None and (seen.state, seen.reply) == ("running", None)
    assert published == [Hint(session_id, "text", turn.id, 5, "upon"), Hint(session_id, "turn_ended", turn.id)]
    assert await text_kept(turn.id, db_session) == "Once upon"


async def test_G10_an_end_that_could_not_be_committed_is_no_end(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, refused: Refused,
    storage_fails: StorageFails,
) -> None:  # fmt: skip
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    for place in ("usage", "journal", "commit"):
        async with refused("storage_unavailable"), storage_fails(place):
            await sessions.finish_turn(turn.id, db_session, state="done", tail="Hi")
    assert (await sessions.finish_turn(turn.id, db_session, state="done", tail="Hi")).reply == "Hi"


async def test_G11_the_context_is_the_transcript_that_fits(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, orders: Orders
) -> None:
    for number in range(3):
        turn = (await sessions.begin_turn(session_id, f"Prompt {number}", db_session, actor=ann)).turn
        assert turn.context_left_out == 0
        await sessions.finish_turn(turn.id, db_session, state="done", tail=f"Reply {number}")
    assert [(message.role, message.text) for message in orders.started[-1].ask.messages] == [
        ("user", "Prompt 0"),
        ("assistant", "Reply 0"),
        ("user", "Prompt 1"),
        ("assistant", "Reply 1"),
        ("user", "Prompt 2"),
    ]


async def test_G11_what_does_not_fit_is_left_out_and_recorded(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, orders: Orders
) -> None:
    await sessions.switch_model(session_id, "small", db_session, actor=ann)
    left_out = []
    for number in range(5):
        prompt = f"{number}" + "x" * 15
        turn = (await sessions.begin_turn(session_id, prompt, db_session, actor=ann)).turn
        left_out.append(turn.context_left_out)
        await sessions.finish_turn(turn.id, db_session, state="done", tail=f"{number}" + "y" * 39)
    # The window of 80 tokens holds a reply of 8, the prompt of 10, and two of the turns of 10 + 18 before it.
    assert left_out == [0, 0, 0, 1, 2]
    assert [message.text[0] for message in orders.started[-1].ask.messages] == list("22334")
    stored = await db_session.find_turn(turn.id)
    assert stored is not None and stored.context_left_out == 2
    assert orders.started[-1].ask.max_reply_tokens == 8


async def test_G11_a_prompt_that_cannot_fit_is_refused(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, refused: Refused
) -> None:
    await sessions.switch_model(session_id, "small", db_session, actor=ann)
    async with refused("context_overflow"):
        await sessions.begin_turn(session_id, "x" * 205, db_session, actor=ann)
    turn = (await sessions.begin_turn(session_id, "x" * 204, db_session, actor=ann)).turn
    assert turn.context_left_out == 0


async def test_G11_a_turn_without_a_reply_is_no_context(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, orders: Orders
) -> None:
    failed = (await sessions.begin_turn(session_id, "Lost", db_session, actor=ann)).turn
    await sessions.finish_turn(failed.id, db_session, state="failed", error=("provider_failed", "It failed."))
    stopped = (await sessions.begin_turn(session_id, "Half", db_session, actor=ann)).turn
    await sessions.append([Piece(session_id, stopped.id, 0, "Once")], db_session)
    await sessions.stop_turn(stopped.id, db_session, actor=ann)
    await sessions.begin_turn(session_id, "Now", db_session, actor=ann)
    assert [message.text for message in orders.started[-1].ask.messages] == ["Half", "Once", "Now"]


async def test_a_failed_turn_keeps_its_text_and_its_error(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, journal: JournalRows
) -> None:
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    await sessions.append([Piece(session_id, turn.id, 0, "Once ")], db_session)
    ended = await sessions.finish_turn(
        turn.id, db_session, state="failed", tail="upon", error=("provider_failed", "It failed.")
    )
    assert (ended.state, ended.reply, ended.error_code) == ("failed", "Once upon", "provider_failed")
    assert ended.error_detail == "It failed."
    (row,) = await journal("turn_ended")
    assert (row.outcome, row.reason) == ("failed", "provider_failed")


async def test_a_turn_that_is_not_there_cannot_end(
    sessions: SessionService, db_session: DbSession, refused: Refused
) -> None:
    async with refused("session_not_found"):
        await sessions.finish_turn(uuid4(), db_session, state="done")
    assert await sessions.append([Piece(uuid4(), uuid4(), 0, "x")], db_session) == set()


async def test_the_first_prompt_gives_the_title_and_later_ones_do_not(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID
) -> None:
    long = "A  rather long question about the hills of Rome\nand about all of its many rivers"
    turn = (await sessions.begin_turn(session_id, long, db_session, actor=ann)).turn
    await sessions.finish_turn(turn.id, db_session, state="done")
    await sessions.begin_turn(session_id, "Another", db_session, actor=ann)
    row = await db_session.find_session(session_id, ann.id)
    assert row is not None
    assert row.opening == "A rather long question about the hills of Rome and about…"


async def test_a_prompt_that_races_with_closing_is_refused_or_stopped(
    sessions: SessionService, db_session: DbSession, ann: Actor, at_once: AtOnce, configure: Configure,
    everything: Everything,
) -> None:  # fmt: skip
    await configure("user", turns="0", sessions_created="0", concurrent_turns=0)
    for _ in range(5):
        id = (await sessions.create_session(db_session, actor=ann)).row.id

        async def race(place: int, db: DbSession, id: UUID = id) -> object:
            if place:
                return await sessions.close_session(id, db, actor=ann)
            return await sessions.begin_turn(id, "Hello", db, actor=ann)

        results = await at_once(2, race)
        assert results.codes in ([], ["session_closed"])
    rows = await everything()
    assert {row["state"] for row in rows["session"]} == {"closed"}
    assert {row["state"] for row in rows["turn"]} <= {"stopped"}


@pytest.mark.parametrize("limited", [False, True])
async def test_L1_turns_with_a_model_in_old_and_new_sessions_do_not_block_each_other(
    sessions: SessionService, db_session: DbSession, engine: Engine, ann: Actor, configure: Configure, offer: Offer,
    at_once: AtOnce, limited: bool,
) -> None:  # fmt: skip
    await configure("user", turns="10000/min", sessions_created="10000/min", switches="10000/min", concurrent_turns=0)
    if limited:
        await offer(fast={"concurrent_turns": 1000}, smart={"concurrent_turns": 1000})
    ids = [(await sessions.create_session(db_session, actor=ann, title="x")).row.id for _ in range(12)]

    async def begin(number: int, db: DbSession) -> object:
        if number % 2:
            return await sessions.begin_turn(None, "Hello", db, actor=ann, model=("fast", "smart")[number // 2 % 2])
        return await sessions.begin_turn(
            ids[number // 2], "Hello", db, actor=ann, model=("fast", "smart")[number % 3 % 2]
        )

    async with asyncio.timeout(60):
        results = await at_once(24, begin)
    assert results.codes == []
    assert len({begun.turn.id for begun in results.done}) == 24


async def test_I4_the_model_of_a_turn_is_the_one_that_was_called(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, configure: Configure, offer: Offer,
    orders: Orders, journal: JournalRows,
) -> None:  # fmt: skip
    """By default, by an alias, after a switch, by a replacement, as a fallback, and for one turn alone."""
    await configure("user", turns="0", switches="0")
    await offer(**{name: {"upstream": f"upstream-of-{name}"} for name in ("fast", "smart", "aging", "small")})
    called = []

    async def check(begun: BegunTurn) -> None:
        order = orders.started[-1]
        stored = await db_session.find_turn(begun.turn.id)
        assert stored is not None
        assert (order.turn_id, order.provider) == (stored.id, "builtin")
        assert order.ask.model == f"upstream-of-{stored.model}"
        assert (await journal("turn_begun"))[-1].to_value == stored.model
        # While the reply is written the session is switched, and the catalogue changes under it.
        if stored.model != "aging":
            await sessions.switch_model(session_id, "aging", db_session, actor=ann)
            await sessions.switch_model(session_id, stored.model, db_session, actor=ann)
        await offer(**{stored.model: {"state": "disabled"}})
        ended = await sessions.finish_turn(stored.id, db_session, state="done", tail="Hi")
        await offer(**{stored.model: {"state": "active"}})
        assert ended.model == stored.model
        called.append(ended.model)

    async def begin(model: str | None = None) -> BegunTurn:
        return await sessions.begin_turn(session_id, "Hello", db_session, actor=ann, model=model)

    await check(await begin())
    await check(await begin("quick"))
    await check(await begin("smart"))
    await offer(smart={"state": "retired", "replacement": "aging"})
    await check(await begin())
    await offer(aging=None)
    begun = await begin()
    await sessions.finish_turn(begun.turn.id, db_session, state="done")
    called.append(begun.turn.model)
    assert called == ["fast", "fast", "smart", "aging", "fast"]
    once = await sessions.retry_turn(begun.turn.id, db_session, actor=ann, model="small")
    assert (once.turn.model, orders.started[-1].ask.model) == ("small", "upstream-of-small")


async def test_G3_the_servers_turns_at_once_are_everybodys(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, configure: Configure, refused: Refused
) -> None:
    await configure("*", concurrent_turns=2)
    first = (await sessions.begin_turn(None, "One", db_session, actor=ann)).turn
    await sessions.begin_turn(None, "Two", db_session, actor=bob)
    async with refused("concurrency_limited") as told:
        await sessions.begin_turn(None, "Three", db_session, actor=bob)
    assert (told.facts["limit"], told.facts["size"]) == ("concurrent_turns_of_instance", 2)
    await sessions.stop_turn(first.id, db_session, actor=ann)
    await sessions.begin_turn(None, "Three", db_session, actor=bob)


async def test_G11_what_is_left_out_is_counted_over_the_whole_path(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, configure: Configure
) -> None:
    """Of a branch, only the turns before it count; a sibling is no part of it."""
    await configure("user", turns="0")
    await sessions.switch_model(session_id, "small", db_session, actor=ann)
    turns = []
    for number in range(5):
        turn = (await sessions.begin_turn(session_id, f"{number}" + "x" * 15, db_session, actor=ann)).turn
        turns.append(await sessions.finish_turn(turn.id, db_session, state="done", tail="y" * 40))
    beside = (await sessions.retry_turn(turns[3].id, db_session, actor=ann)).turn
    assert (beside.depth, beside.context_left_out) == (4, turns[3].context_left_out) == (4, 1)


async def test_G11_a_prompt_that_was_never_answered_is_left_out_and_counted(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, orders: Orders
) -> None:
    failed = (await sessions.begin_turn(session_id, "One", db_session, actor=ann)).turn
    await sessions.finish_turn(failed.id, db_session, state="failed", error=("provider_failed", "It broke."))
    turn = (await sessions.begin_turn(session_id, "Two", db_session, actor=ann)).turn
    assert [message.text for message in orders.started[-1].ask.messages] == ["Two"]
    assert turn.context_left_out == 1

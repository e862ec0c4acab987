"""What comes in from outside: a conversation that a script tells with its prompt, and a session that was exported."""

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from db.db_session import DbSession
from db.tables import Turn, Usage
from services.actor import Actor
from services.brought import TOLD, Brought, BroughtTurn
from services.clients import Wishes
from services.errors import Refusal
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
    Orders,
    Refused,
    StorageFails,
)

TOLD_BEFORE = Brought.told("Be brief.", [("one", "ONE"), ("two", "TWO")])
EXPORTED = Brought(
    title="Rome",
    opening="one",
    instructions="Be brief.",
    model="smart",
    turns=(
        BroughtTurn(prompt="one", reply="ONE", after=None, model="gone", copied_from=uuid4(), created_at=BEGINNING),
        BroughtTurn(
            prompt="two",
            reply="TW",
            after=0,
            model="smart",
            state="failed",
            error_code="provider_failed",
            error_detail="It broke.",
            prompt_tokens=3,
            reply_tokens=4,
            estimated=False,
            cost_nanos=2**40,
            context_left_out=1,
            created_at=BEGINNING - timedelta(days=400),
            first_text_at=BEGINNING - timedelta(days=399),
            ended_at=BEGINNING - timedelta(days=398),
            copied_from=uuid4(),
        ),
        BroughtTurn(prompt="two again", reply="", after=0, model="smart", copied_from=uuid4()),
    ),
    head=1,
)


async def turns_of(sessions: SessionService, db_session: DbSession, actor: Actor, session_id: UUID) -> list[Turn]:
    live = await sessions.get_session(session_id, db_session, actor=actor)
    return await Reads(sessions).siblings(live, db_session, actor=actor)


def facts_of(turn: Turn) -> dict[str, Any]:
    return {name: getattr(turn, name) for name in BroughtTurn.__struct_fields__ if name != "after"}


# ---------------------------------------------------------------- a conversation told with a prompt


async def test_what_a_script_tells_becomes_the_beginning_of_a_new_session(
    sessions: SessionService, db_session: DbSession, ann: Actor, orders: Orders, journal: JournalRows, chain: Chain
) -> None:
    begun = await sessions.begin_turn(None, "three", db_session, actor=ann, brought=TOLD_BEFORE)
    one, two, three = await turns_of(sessions, db_session, ann, begun.turn.session_id)
    assert [(turn.prompt, turn.reply, turn.state) for turn in (one, two)] == [
        ("one", "ONE", "done"),
        ("two", "TWO", "done"),
    ]
    assert {(turn.model, turn.copied_from, turn.cost_nanos) for turn in (one, two)} == {("", TOLD, 0)}
    assert [turn.parent_id for turn in (one, two, three)] == [None, one.id, two.id]
    assert (three.id, three.depth, three.copied_from) == (begun.turn.id, 3, None)
    (order,) = orders.started
    assert [(message.role, message.text) for message in order.ask.messages] == [
        ("system", "Be brief."),
        ("user", "one"),
        ("assistant", "ONE"),
        ("user", "two"),
        ("assistant", "TWO"),
        ("user", "three"),
    ]
    row = begun.session.row
    assert (row.origin, row.instructions, row.opening, row.turn_count) == ("script", "Be brief.", "one", 3)
    assert [entry.what for entry in await journal()] == ["session_created", "model_chosen", "turn_begun"]
    assert await chain(row.id) == ["fast"]


async def test_the_instructions_go_along_with_every_turn_and_into_a_fork(
    sessions: SessionService, db_session: DbSession, ann: Actor, orders: Orders
) -> None:
    begun = await sessions.begin_turn(None, "one", db_session, actor=ann, brought=Brought.told("Be brief.", []))
    await sessions.finish_turn(begun.turn.id, db_session, state="done", tail="ONE")
    fork = await sessions.fork_session(begun.turn.session_id, db_session, actor=ann)
    await sessions.begin_turn(begun.turn.session_id, "two", db_session, actor=ann)
    await sessions.begin_turn(fork.row.id, "two", db_session, actor=ann)
    assert [order.ask.messages[0].text for order in orders.started] == ["Be brief."] * 3


async def test_a_session_has_the_instructions_it_began_with(
    sessions: SessionService, db_session: DbSession, ann: Actor, refused: Refused
) -> None:
    begun = await sessions.begin_turn(None, "one", db_session, actor=ann, brought=Brought.told("Be brief.", []))
    id = begun.turn.session_id
    await sessions.finish_turn(begun.turn.id, db_session, state="done", tail="ONE")
    async with refused("invalid_request"):
        await sessions.begin_turn(id, "two", db_session, actor=ann, brought=Brought.told("Be long.", []))
    for same in ("Be brief.", ""):
        again = await sessions.begin_turn(id, "two", db_session, actor=ann, brought=Brought.told(same, []))
        await sessions.finish_turn(again.turn.id, db_session, state="done", tail="TWO")


async def test_a_refused_prompt_leaves_nothing_of_what_was_told(
    sessions: SessionService, db_session: DbSession, ann: Actor, refused: Refused
) -> None:
    for model, code in (
        ("no-such-model", "model_unknown"),
        ("far", "model_unavailable"),
        ("small", "context_overflow"),
    ):
        async with refused(code):
            await sessions.begin_turn(None, "x" * 400, db_session, actor=ann, model=model, brought=TOLD_BEFORE)


async def test_it_counts_as_a_new_session_and_as_a_message(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, refused: Refused, clock: Clock
) -> None:
    await configure("user", sessions_created="1/min", turns="60/min burst 9", concurrent_turns=9)
    begun = await sessions.begin_turn(None, "one", db_session, actor=ann, brought=TOLD_BEFORE)
    assert {"sessions_created", "turns"} <= {one.name for one in begun.allowance}
    async with refused("rate_limited") as told:
        await sessions.begin_turn(None, "two", db_session, actor=ann, brought=TOLD_BEFORE)
    assert told.facts["limit"] == "sessions_created"
    clock.at += told.wait
    await sessions.begin_turn(None, "two", db_session, actor=ann, brought=TOLD_BEFORE)


async def test_D1_the_same_key_at_once_tells_it_once(
    sessions: SessionService, db_session: DbSession, ann: Actor, at_once: AtOnce, everything: Everything
) -> None:
    together = await at_once(
        8, lambda _, db: sessions.begin_turn(None, "three", db, actor=ann, brought=TOLD_BEFORE, key="k")
    )
    assert len({begun.turn.id for begun in together.done}) == 1 and not together.refusals
    rows = await everything()
    assert (len(rows["session"]), len(rows["turn"])) == (1, 3)
    with pytest.raises(Refusal) as raised:
        await sessions.begin_turn(
            None, "three", db_session, actor=ann, brought=Brought.told("Be brief.", [("one", "1")]), key="k"
        )
    assert raised.value.code == "idempotency_key_reused"


async def test_a_cap_and_wishes_reach_the_client_and_the_reservation(
    sessions: SessionService, db_session: DbSession, ann: Actor, orders: Orders
) -> None:
    wishes = Wishes(temperature=0.5, stop=("END",))
    begun = await sessions.begin_turn(None, "one", db_session, actor=ann, cap=7, wishes=wishes)
    assert begun.turn.reserved_tokens == begun.turn.prompt_tokens + 7
    small = await sessions.begin_turn(None, "one", db_session, actor=ann, model="small", cap=700, brought=Brought())
    asks = [order.ask for order in orders.started]
    assert [(ask.max_reply_tokens, ask.wishes) for ask in asks] == [(7, wishes), (8, Wishes())]
    assert (begun.cap, small.cap) == (7, 8)


# ---------------------------------------------------------------- a session that was exported


async def test_an_imported_session_is_what_it_was(
    sessions: SessionService,
    db_session: DbSession,
    ann: Actor,
    clock: Clock,
    journal: JournalRows,
    chain: Chain,
    everything: Everything,
) -> None:
    clock.pass_(days=1000)
    live = await sessions.import_session(EXPORTED, db_session, actor=ann)
    turns = await turns_of(sessions, db_session, ann, live.row.id)
    for brought, turn in zip(EXPORTED.turns, turns, strict=True):
        expected = {name: getattr(brought, name) for name in BroughtTurn.__struct_fields__ if name != "after"}
        expected["created_at"] = brought.created_at or clock()
        expected["ended_at"] = brought.ended_at or expected["created_at"]
        assert facts_of(turn) == expected
    one, two, _ = turns
    assert [turn.parent_id for turn in turns] == [None, one.id, one.id]
    row = live.row
    assert (row.origin, row.state, row.head_id, row.turn_count) == ("import", "active", two.id, 3)
    assert (row.title, row.opening, row.instructions, row.last_model) == ("Rome", "one", "Be brief.", "smart")
    assert (row.created_at, row.last_activity_at, row.owner_id) == (clock(), clock(), ann.id)
    assert live.current.reason == "The model of the chat that was imported."
    created, switched = await journal()
    assert (created.what, created.reason, switched.what) == ("session_created", "import", "model_chosen")
    assert await chain(row.id) == ["smart"]
    assert not (await everything())["usage"] and not await Usage.count()


@pytest.mark.parametrize("model", ["no-such-model", "hidden", "off", "old", None])
async def test_a_model_that_cannot_be_used_is_left_aside(
    sessions: SessionService, db_session: DbSession, ann: Actor, model: str | None
) -> None:
    live = await sessions.import_session(msgspec.structs.replace(EXPORTED, model=model), db_session, actor=ann)
    assert (live.row.last_model, live.row.version, live.current.source) == (None, 0, "default")


async def test_C1_C4_C6_an_import_is_a_creation(
    sessions: SessionService,
    db_session: DbSession,
    ann: Actor,
    configure: Configure,
    refused: Refused,
    at_once: AtOnce,
    everything: Everything,
) -> None:
    await configure("user", sessions_created="1/min burst 3")
    together = await at_once(9, lambda _, db: sessions.import_session(EXPORTED, db, actor=ann))
    assert (len(together.done), together.codes) == (3, ["rate_limited"] * 6)
    rows = await everything()
    assert (len(rows["session"]), len(rows["turn"])) == (3, 9)
    assert {turn.copied_from for turn in EXPORTED.turns}.isdisjoint(row["id"] for row in rows["turn"])
    await configure("user", sessions_created="0", open_sessions=3)
    async with refused("session_quota"):
        await sessions.import_session(EXPORTED, db_session, actor=ann)


@pytest.mark.parametrize(
    "changes",
    [
        {"title": "two\nlines"},
        {"title": " x"},
        {"title": "x" * 121},
        {"opening": "x" * 121},
        {"instructions": "x" * 100_001},
        {"instructions": "\0"},
        {"turns": (BroughtTurn(prompt="x" * 100_001, reply="", after=None),)},
        {"turns": (BroughtTurn(prompt="x", reply="x" * 1_000_001, after=None),)},
        {"turns": (BroughtTurn(prompt="x", reply="\ud800", after=None),)},
        {"turns": (BroughtTurn(prompt="x", reply="", after=None, model="\0"),)},
        {"turns": (BroughtTurn(prompt="x", reply="", after=None, error_detail="\0"),)},
    ],
    ids=str,
)
async def test_what_no_row_may_hold_is_refused_whole(
    sessions: SessionService, db_session: DbSession, ann: Actor, refused: Refused, changes: dict[str, Any]
) -> None:
    async with refused("invalid_request"):
        await sessions.import_session(msgspec.structs.replace(EXPORTED, head=None, **changes), db_session, actor=ann)


async def test_C8_a_database_that_fails_leaves_nothing(
    sessions: SessionService, db_session: DbSession, ann: Actor, storage_fails: StorageFails, refused: Refused
) -> None:
    for place in ("turn", "commit"):
        async with refused("storage_unavailable"), storage_fails(place):
            await sessions.import_session(EXPORTED, db_session, actor=ann)
        async with refused("storage_unavailable"), storage_fails(place):
            await sessions.begin_turn(None, "three", db_session, actor=ann, brought=TOLD_BEFORE)

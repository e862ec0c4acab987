"""Whose is what: rules O1, O2, I6 and I11."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from db.db_session import DbSession, Piece
from db.engine import Engine
from services.actor import Actor
from services.errors import NotFound, Refusal
from services.event_bus import MemoryEventBus
from services.reads import Reads
from services.session_service import SessionService
from services.turn_log import Position, TurnLog
from tests.conftest import Clock, Configure, Everything, JournalRows, Offer, Refused, Waits

Verb = Callable[[SessionService, UUID, DbSession, Actor], Awaitable[Any]]

#: every verb that takes a session's id
VERBS: dict[str, Verb] = {
    "ensure": lambda sessions, id, db, actor: sessions.ensure_session(id, db, actor=actor),
    "get": lambda sessions, id, db, actor: sessions.get_session(id, db, actor=actor),
    "rename": lambda sessions, id, db, actor: sessions.rename_session(id, "Mine", db, actor=actor),
    "extend": lambda sessions, id, db, actor: sessions.extend_session(id, db, actor=actor),
    "close": lambda sessions, id, db, actor: sessions.close_session(id, db, actor=actor),
    "reopen": lambda sessions, id, db, actor: sessions.reopen_session(id, db, actor=actor),
    "pin": lambda sessions, id, db, actor: sessions.pin_session(id, db, actor=actor),
    "archive": lambda sessions, id, db, actor: sessions.archive_session(id, db, actor=actor),
    "delete": lambda sessions, id, db, actor: sessions.delete_session(id, db, actor=actor),
    "restore": lambda sessions, id, db, actor: sessions.restore_session(id, db, actor=actor),
    "fork": lambda sessions, id, db, actor: sessions.fork_session(id, db, actor=actor),
    "current_model": lambda sessions, id, db, actor: sessions.current_model(id, db, actor=actor),
    "switch": lambda sessions, id, db, actor: sessions.switch_model(id, "smart", db, actor=actor),
    "begin": lambda sessions, id, db, actor: sessions.begin_turn(id, "Hello", db, actor=actor),
    "keep_draft": lambda sessions, id, db, actor: sessions.keep_draft(id, "half a thought", db, actor=actor),
    "timeline": lambda sessions, id, db, actor: Reads(sessions).timeline(id, db, actor=actor),
    "follow": lambda sessions, id, db, actor: Reads(sessions).require_session(id, db, actor=actor),
}


async def test_O1_not_yours_is_not_there_word_for_word(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, guest: Actor, clock: Clock,
    everything: Everything,
) -> None:  # fmt: skip
    live = (await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn.session_id
    closed = (await sessions.create_session(db_session, actor=ann)).row.id
    await sessions.close_session(closed, db_session, actor=ann)
    expired = (await sessions.create_session(db_session, actor=guest)).row.id
    clock.pass_(hours=1)
    stranger = msgspec.structs.replace(guest, id=uuid4(), name="guest-x", rate_key="address:2")
    token = msgspec.structs.replace(bob, kind="token", scopes=frozenset({"read", "chat", "admin"}))
    before = await everything()
    told = set()
    for verb in VERBS:
        for actor in (bob, stranger, token):
            for id in (uuid4(), live, closed, expired, UUID(int=0)):
                with pytest.raises(NotFound) as raised:
                    await VERBS[verb](sessions, id, db_session, actor)
                told.add((type(raised.value), raised.value.code, str(raised.value), repr(raised.value.facts)))
    assert told == {(NotFound, "session_not_found", "There is no such session.", "{}")}
    assert await everything() == before


#: and every verb that takes a turn's
TURN_VERBS: dict[str, Verb] = {
    "stop_turn": lambda sessions, id, db, actor: sessions.stop_turn(id, db, actor=actor),
    "retry_turn": lambda sessions, id, db, actor: sessions.retry_turn(id, db, actor=actor),
    "edit_turn": lambda sessions, id, db, actor: sessions.edit_turn(id, "Edited", db, actor=actor),
    "choose_turn": lambda sessions, id, db, actor: sessions.choose_turn(id, db, actor=actor),
    "read": lambda sessions, id, db, actor: Reads(sessions).turn(id, db, actor=actor),
}
#: verbs of the worker that runs a turn, under its lease
OF_THE_RUNNER = {"append", "finish_turn", "heartbeat", "held_turns"}


def test_every_verb_of_the_service_is_asked_for_what_is_somebody_elses() -> None:
    taking = {
        name
        for name, verb in inspect.getmembers(SessionService, inspect.isfunction)
        if not name.startswith("_")
        and {"session_id", "turn_id", "turn_ids", "pieces"} & set(inspect.signature(verb).parameters)
    }
    asked = {word for verb in (*VERBS.values(), *TURN_VERBS.values()) for word in verb.__code__.co_names}
    assert len(taking) > 14
    assert taking - asked == OF_THE_RUNNER


async def test_O1_a_turn_that_is_not_yours_is_not_there_word_for_word(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, guest: Actor, everything: Everything
) -> None:
    done = (await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn
    await sessions.finish_turn(done.id, db_session, state="done", tail="Hi")
    running = (await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn
    before, told = await everything(), set()
    for verb in TURN_VERBS.values():
        for actor in (bob, guest):
            for id in (uuid4(), done.id, running.id, done.session_id, UUID(int=0)):
                with pytest.raises(NotFound) as raised:
                    await verb(sessions, id, db_session, actor)
                told.add((type(raised.value), raised.value.code, str(raised.value), repr(raised.value.facts)))
    assert told == {(NotFound, "session_not_found", "There is no such turn.", "{}")}
    assert await everything() == before


async def test_I11_a_hidden_model_cannot_be_told_from_one_that_does_not_exist(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, offer: Offer, configure: Configure,
    refused: Refused,
) -> None:  # fmt: skip
    """Whatever state it is in, by its id and by its alias, in every verb that takes a model."""
    await configure("user", turns="0", concurrent_turns=0)
    done = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    await sessions.finish_turn(done.id, db_session, state="done")
    asking: tuple[Callable[[str], Awaitable[Any]], ...] = (
        lambda model: sessions.create_session(db_session, actor=ann, model=model),
        lambda model: sessions.switch_model(session_id, model, db_session, actor=ann),
        lambda model: sessions.begin_turn(session_id, "Hello", db_session, actor=ann, model=model),
        lambda model: sessions.begin_turn(None, "Hello", db_session, actor=ann, model=model),
        lambda model: sessions.retry_turn(done.id, db_session, actor=ann, model=model),
        lambda model: sessions.edit_turn(done.id, "Hello", db_session, actor=ann, model=model),
    )
    for change in (
        {"state": "active", "aliases": ["secret"]},
        {"state": "disabled"},
        {"state": "retired", "replacement": "fast"},
        {"state": "deprecated", "provider": "down"},
        {"provider": "nowhere"},
    ):
        await offer(hidden=change)
        for ask in asking:
            told = set()
            for model in ("hidden", "secret", "absent"):
                async with refused("model_unknown") as refusal:
                    await ask(model)
                told.add((type(refusal.refusal), str(refusal.refusal).replace(model, "…"), repr(refusal.facts)))
            assert len(told) == 1


async def test_I11_a_hidden_model_is_named_as_nobodys_replacement(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, session_id: UUID, offer: Offer
) -> None:
    other = (await sessions.create_session(db_session, actor=ada)).row.id
    for name in ("hidden", "hidden-too"):
        named = {"replacement": name}
        await offer(
            hidden={"aliases": ["hidden-too"]},
            old=named,
            off=named,
            aging=named,
            stray={"provider": "nowhere", **named},
        )

        async def told(actor: Actor, id: UUID) -> str:
            seen = repr([entry.replacement for entry in await sessions.models(db_session, actor=actor)])
            for model in ("old", "off", "stray"):
                with pytest.raises(Refusal) as raised:
                    await sessions.switch_model(id, model, db_session, actor=actor)
                seen += f"{raised.value} {raised.value.facts}"
            return seen

        assert "hidden" not in await told(ann, session_id)
        assert (await told(ada, other)).count("hidden") == 4 + 3
    seen = repr(await sessions.allowances(db_session, actor=ann))
    assert "hidden" not in seen


async def test_O1_lists_hold_what_is_mine(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, ada: Actor, guest: Actor, script: Actor
) -> None:
    mine = {(await sessions.create_session(db_session, actor=ann, title=f"Rome {n}")).row.id for n in range(3)}
    theirs = (await sessions.create_session(db_session, actor=bob, title="Rome")).row.id

    async def listed(actor: Actor, **asked: Any) -> set[UUID]:
        return {live.row.id for live in (await sessions.list_sessions(db_session, actor=actor, **asked)).sessions}

    assert await listed(ann) == await listed(script) == mine
    assert await listed(ann, q="rome") == mine
    assert await listed(bob) == {theirs}
    assert await listed(guest) == await listed(ada) == set()
    assert await listed(ada, everybody=True) == mine | {theirs}
    assert await listed(ada, everybody=True, q="2") < mine


async def test_O1_only_an_admin_lists_everybodys(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, script: Actor, refused: Refused
) -> None:
    weak = msgspec.structs.replace(ada, kind="token", scopes=frozenset({"read", "chat"}))
    for actor in (ann, script, weak):
        async with refused("forbidden"):
            await sessions.list_sessions(db_session, actor=actor, everybody=True)


async def test_O1_a_list_has_pages_without_gap_or_double(
    sessions: SessionService, db_session: DbSession, ann: Actor, clock: Clock, configure: Configure
) -> None:
    await configure("user", sessions_created="0")
    made = []
    for number in range(11):
        made.append((await sessions.create_session(db_session, actor=ann)).row.id)
        if number % 3 == 0:
            clock.pass_(seconds=1)
    seen, after, pages = [], None, 0
    while True:
        page = await sessions.list_sessions(db_session, actor=ann, limit=4, after=after)
        seen += [live.row.id for live in page.sessions]
        pages += 1
        if (after := page.next) is None:
            break
    assert seen == made[::-1]
    assert pages == 3


async def test_O1_a_list_is_filtered_by_title_and_model(
    sessions: SessionService, db_session: DbSession, ann: Actor
) -> None:
    rome = (await sessions.create_session(db_session, actor=ann, title="100% ROME_1", model="smart")).row.id
    oslo = (await sessions.create_session(db_session, actor=ann, title="100 Oslo!", model="fast")).row.id

    async def listed(**asked: str) -> list[UUID]:
        return [live.row.id for live in (await sessions.list_sessions(db_session, actor=ann, **asked)).sessions]

    assert await listed(q="rome") == await listed(q="ROM") == [rome]
    assert await listed(q="100%") == await listed(q="100") == [oslo, rome]
    assert await listed(q="rome_1") == await listed(q="1 % rome") == [rome]
    assert await listed(q="slo") == await listed(q="%") == []
    assert await listed(model="smart") == [rome]
    assert await listed(q="' OR 1=1 --") == await listed(model="' OR 1=1 --") == []


async def test_O1_a_filter_no_column_can_hold_finds_nothing_or_is_refused(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID
) -> None:
    for asked in ({"q": "a\0b"}, {"q": "\ud800"}, {"model": "a\0b"}, {"model": "\ud800"}):
        try:
            page = await sessions.list_sessions(db_session, actor=ann, **asked)  # type: ignore[arg-type]
        except Refusal as refusal:
            assert refusal.code == "invalid_request"
        else:
            assert page.sessions == []


async def test_O2_an_admin_acts_by_the_same_verbs_and_is_named(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, session_id: UUID, clock: Clock,
    journal: JournalRows,
) -> None:  # fmt: skip
    assert (await sessions.get_session(session_id, db_session, actor=ada)).owner.name == "ann"
    await sessions.rename_session(session_id, "Rome", db_session, actor=ada)
    clock.pass_(days=1)
    await sessions.extend_session(session_id, db_session, actor=ada)
    await sessions.switch_model(session_id, "smart", db_session, actor=ada, reason="costs")
    clock.pass_(days=30)
    await sessions.reopen_session(session_id, db_session, actor=ada)
    await sessions.close_session(session_id, db_session, actor=ada, reason="enough")
    await sessions.delete_session(session_id, db_session, actor=ada, reason="enough")
    rows = [row for row in await journal() if row.actor_name == "ada"]
    assert [row.what for row in rows] == [
        "session_renamed",
        "session_extended",
        "model_chosen",
        "session_reopened",
        "session_closed",
        "session_deleted",
    ]
    assert {(row.owner_id, row.session_id, row.actor_kind) for row in rows} == {(ann.id, session_id, "admin")}


async def test_O2_an_admin_steers_a_foreign_session_and_does_not_read_it(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, session_id: UUID, refused: Refused
) -> None:
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    reads = Reads(sessions)
    live = await sessions.get_session(session_id, db_session, actor=ada)
    for call in (
        lambda: reads.transcript(live, db_session, actor=ada),
        lambda: reads.siblings(live, db_session, actor=ada),
        lambda: reads.turn(turn.id, db_session, actor=ada),
        lambda: sessions.begin_turn(session_id, "Hello", db_session, actor=ada),
    ):
        async with refused("forbidden"):
            await call()


async def test_O1_a_transcript_holds_no_turn_of_another_session(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, session_id: UUID, refused: Refused
) -> None:
    theirs = (await sessions.begin_turn(None, "Secret", db_session, actor=bob)).turn
    live = await sessions.get_session(session_id, db_session, actor=ann)
    reads = Reads(sessions)
    async with refused("session_not_found"):
        await reads.transcript(live, db_session, actor=ann, last=theirs.id)
    assert await reads.siblings(live, db_session, actor=ann, after=theirs.id) == []
    assert (await reads.transcript(live, db_session, actor=ann)).turns == []


async def test_O1_a_transcript_is_read_in_parts(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID
) -> None:
    ids = []
    for number in range(5):
        turn = (await sessions.begin_turn(session_id, f"Prompt {number}", db_session, actor=ann)).turn
        ids.append(turn.id)
        if number < 4:
            await sessions.finish_turn(turn.id, db_session, state="done", tail=f"Reply {number}")
    pieces = [Piece(session_id, ids[-1], 0, "Repl"), Piece(session_id, ids[-1], 0, "Let me", reasoning=True)]
    await sessions.append(pieces, db_session)
    reads = Reads(sessions)
    live = await sessions.get_session(session_id, db_session, actor=ann)
    last = await reads.transcript(live, db_session, actor=ann, limit=2)
    assert ([turn.id for turn in last.turns], last.written, last.earlier) == (ids[3:], ("Repl", "Let me"), ids[2])
    before = await reads.transcript(live, db_session, actor=ann, last=last.earlier, limit=3)
    assert ([turn.id for turn in before.turns], before.written, before.earlier) == (ids[:3], ("", ""), None)
    assert [turn.id for turn in await reads.siblings(live, db_session, actor=ann)] == ids
    assert (await reads.turn(ids[-1], db_session, actor=ann))[1] == ("Repl", "Let me")


async def test_I6_reads_never_write(
    sessions: SessionService, db_session: DbSession, ann: Actor, guest: Actor, session_id: UUID, bus: MemoryEventBus,
    offer: Offer, clock: Clock, everything: Everything,
) -> None:  # fmt: skip
    done = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    await sessions.finish_turn(done.id, db_session, state="done", tail="Hi")
    running = (await sessions.begin_turn(session_id, "More", db_session, actor=ann)).turn
    await offer(fast={"state": "retired", "replacement": "smart"})
    before = await everything()
    clock.pass_(days=31)
    reads, log = Reads(sessions), TurnLog(sessions, bus, lambda: DbSession(db_session.engine), asyncio.Event())
    for actor in (ann, guest):
        await sessions.list_sessions(db_session, actor=actor)
        await sessions.default_model(db_session, actor=actor)
        await sessions.models(db_session, actor=actor)
        await sessions.allowances(db_session, actor=actor)
    live = await sessions.get_session(session_id, db_session, actor=ann)
    assert (live.state, live.current.id) == ("expired", "smart")
    await sessions.current_model(session_id, db_session, actor=ann)
    await reads.transcript(live, db_session, actor=ann)
    await reads.siblings(live, db_session, actor=ann)
    await reads.timeline(session_id, db_session, actor=ann)
    await reads.turn(running.id, db_session, actor=ann)
    events = log.follow_session(session_id, Position(), ann)
    assert type(await anext(events)).__name__ == "Begun"
    await events.aclose()
    assert await everything() == before


async def test_a_token_acts_as_its_account(
    sessions: SessionService, db_session: DbSession, ann: Actor, script: Actor, session_id: UUID, journal: JournalRows
) -> None:
    begun = await sessions.begin_turn(session_id, "Hello", db_session, actor=script)
    assert (begun.turn.owner_id, begun.session.owner.name) == (ann.id, "ann")
    (row,) = await journal("turn_begun")
    assert (row.actor_kind, row.actor_id) == ("token", ann.id)
    assert begun.session.deadline == begun.session.row.last_activity_at + timedelta(days=30)


async def test_O1_a_stop_that_had_to_wait_is_checked_again(
    sessions: SessionService, engine: Engine, db_session: DbSession, guest: Actor, ann: Actor, waits: Waits
) -> None:
    """The session becomes the account's while its guest waits to stop the reply."""
    turn = (await sessions.begin_turn(None, "Hello", db_session, actor=guest)).turn
    adopted, go_on = asyncio.Event(), asyncio.Event()

    async def adopt() -> None:
        db = DbSession(engine)
        async with db.transaction():
            await sessions.adopt_sessions(guest.id, db, actor=ann)
            adopted.set()
            await go_on.wait()

    adopting = asyncio.create_task(adopt())
    await adopted.wait()
    stopping = asyncio.create_task(sessions.stop_turn(turn.id, DbSession(engine), actor=guest))
    await waits()
    go_on.set()
    await adopting
    with pytest.raises(NotFound):
        await stopping
    found = await db_session.find_turn(turn.id)
    assert found is not None and found.state == "running"

"""The desk: what admins see of everybody's sessions as it happens, and do to many at once; on both databases."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, get_args
from uuid import UUID

import pytest

from db.db_session import DbSession, Piece
from db.engine import Engine
from services.actor import Actor
from services.clients import Usage as Counted
from services.desk import MOST_AT_ONCE, Deed, Desk, DeskPage, Wanted
from services.readers import Readers
from services.session_service import SessionService
from services.turn_log import Gone
from tests.conftest import AtOnce, Clock, Everything, JournalRows, Refused, StorageFails

ABSENT = UUID("01890000-0000-7000-8000-0000000000aa")


@pytest.fixture
def drained() -> asyncio.Event:
    return asyncio.Event()


@pytest.fixture
def readers(sessions: SessionService, engine: Engine, drained: asyncio.Event) -> Readers:
    async def nobody(readers: Any, db_session: DbSession) -> list[bool]:
        return [False] * len(readers)

    return Readers(sessions, lambda: DbSession(engine), nobody, drained, 100)


@pytest.fixture
def desk(sessions: SessionService, engine: Engine, readers: Readers) -> Desk:
    return Desk(sessions, readers, lambda: DbSession(engine))


Make = Callable[..., Awaitable[UUID]]


@pytest.fixture
def make(sessions: SessionService, db_session: DbSession, clock: Clock) -> Make:
    """A session some time after the one before, with replies that cost something."""

    async def make(actor: Actor, title: str = "", replies: int = 0, cost: int = 1) -> UUID:
        clock.pass_(minutes=1)
        session = await sessions.create_session(db_session, actor=actor, title=title)
        for _ in range(replies):
            begun = await sessions.begin_turn(session.row.id, "Hello", db_session, actor=actor, model="fast")
            await sessions.finish_turn(begun.turn.id, db_session, state="done", tail="Hi", usage=Counted(cost, cost))
        return session.row.id

    return make


Looks = Callable[..., Awaitable[list[UUID]]]


@pytest.fixture
def looks(desk: Desk, db_session: DbSession, ada: Actor) -> Looks:
    """The ids that the admin sees, read in pages of two."""

    async def look(**wanted: Any) -> list[UUID]:
        seen: list[UUID] = []
        after = None
        while True:
            page = await desk.look(Wanted(**wanted), db_session, actor=ada, after=after, limit=2)
            seen += [one.session.row.id for one in page.sessions]
            if (after := page.next) is None:
                return seen

    return look


async def test_only_an_admin_sees_and_acts(
    desk: Desk, db_session: DbSession, ann: Actor, guest: Actor, script: Actor, session_id: UUID, refused: Refused
) -> None:
    for actor in (ann, guest, script):
        async with refused("forbidden"):
            await desk.look(Wanted(), db_session, actor=actor)
        for deed in get_args(Deed):
            async with refused("forbidden"):
                await desk.act(deed, [session_id], db_session, actor=actor, model="smart", reason="x")


async def test_it_is_filtered_sorted_and_paged(
    looks: Looks, make: Make, sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, ada: Actor,
    guest: Actor,
) -> None:  # fmt: skip
    cheap = await make(ann, "Plans", replies=3)
    dear = await make(bob, "Plans of bob", replies=1, cost=1000)
    empty = await make(ann)
    of_guest = await make(guest, replies=2, cost=10)
    running = await make(ada)
    closed = await make(bob)
    await sessions.begin_turn(running, "Hello", db_session, actor=ada, model="smart")
    await sessions.close_session(closed, db_session, actor=bob)
    everything = [closed, running, of_guest, empty, dear, cheap]
    assert await looks(sort="age") == everything
    assert await looks() == everything  # of two at the same moment the younger comes first
    assert (await looks(sort="cost"))[:3] == [dear, of_guest, cheap]
    assert (await looks(sort="turns"))[:2] == [cheap, of_guest]
    for sort in ("age", "cost", "turns"):
        assert sorted(await looks(sort=sort)) == sorted(everything)
    assert await looks(owner="ann") == [empty, cheap]
    assert await looks(owner="nobody") == []
    assert await looks(group="guest") == [of_guest]
    assert await looks(running=True) == [running]
    assert await looks(q="PLANS", owner="bob") == [dear]
    assert await looks(state="closed") == [closed]
    assert await looks(model="smart") == [running]
    # A fork brings along what another session has paid.
    fork = await sessions.fork_session(dear, db_session, actor=bob)
    assert (await looks(sort="cost"))[0] == dear
    assert fork.row.cost_nanos == 0


async def test_a_reply_that_is_written_shows_how_fast(
    desk: Desk, make: Make, sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, clock: Clock,
    everything: Everything,
) -> None:  # fmt: skip
    session_id = await make(ann)
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann, model="fast")).turn

    async def writing() -> Any:
        page = await desk.look(Wanted(), db_session, actor=ada)
        assert page.running == sum(one.writing is not None for one in page.sessions)
        return page.sessions[0].writing

    assert ((await writing()).tokens, (await writing()).tokens_per_second) == (0, None)
    await sessions.append([Piece(session_id, turn.id, 0, "x" * 300)], db_session)
    clock.pass_(seconds=5)
    await sessions.append([Piece(session_id, turn.id, 300, "x" * 30)], db_session)
    before = await everything()
    assert ((await writing()).tokens, (await writing()).tokens_per_second) == (100, 20.0)
    assert await everything() == before
    clock.pass_(seconds=60)  # the lease lapses
    assert await writing() is None


async def test_who_watches_is_shown_what_another_does_and_is_sent_away_without_the_right(
    desk: Desk, make: Make, sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from services.accounts import Credentials

    monkeypatch.setattr("services.desk.LOOK_SECONDS", 0.01)
    monkeypatch.setattr("services.readers.ASK_SECONDS", 0.3)
    session_id = await make(ann)
    async with asyncio.timeout(60):
        async with aclosing(desk.watch(Wanted(), actor=ada)) as seen:
            first = await anext(seen)
            assert isinstance(first, DeskPage) and [one.session.title for one in first.sessions] == [""]
            await sessions.rename_session(session_id, "Renamed", db_session, actor=ann)
            async for look in seen:
                if isinstance(look, DeskPage) and look.sessions[0].session.title == "Renamed":
                    break
        async with aclosing(desk.watch(Wanted(), actor=ada, proof=Credentials(None, "", "", "", ""))) as seen:
            last = [look async for look in seen][-1]
            assert isinstance(last, Gone)


async def test_who_watches_is_let_go_when_the_server_stops(desk: Desk, ada: Actor, drained: asyncio.Event) -> None:
    async with asyncio.timeout(60), aclosing(desk.watch(Wanted(), actor=ada)) as seen:
        await anext(seen)
        drained.set()
        assert [look async for look in seen] == []


# ---------------------------------------------------------------- acting on many


async def test_each_session_is_acted_on_by_itself(
    desk: Desk, make: Make, sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, ada: Actor,
    journal: JournalRows,
) -> None:  # fmt: skip
    fine, closed, of_bob = await make(ann, replies=1), await make(ann), await make(bob)
    await sessions.close_session(closed, db_session, actor=ann)

    async def act(deed: Deed, **asked: Any) -> list[str]:
        asked.setdefault("key", None)
        outcomes = await desk.act(deed, [fine, closed, ABSENT, of_bob, fine], db_session, actor=ada, **asked)
        assert [one.session_id for one in outcomes] == [fine, closed, ABSENT, of_bob]
        return [one.code or "done" for one in outcomes]

    over = ["session_closed", "session_not_found"]
    await sessions.switch_model(of_bob, "fast", db_session, actor=bob)
    for _ in range(2):  # the second is a double click
        assert await act("switch", model="smart", reason="costs", key="k") == ["done", *over, "done"]
    switches = [row for row in await journal("model_switched") if row.actor_name == "ada"]
    assert {(row.session_id, row.to_value, row.reason) for row in switches} == {
        (fine, "smart", "costs"), (of_bob, "smart", "costs"),
    }  # fmt: skip
    assert len(switches) == 2
    assert await act("switch", model="smart") == ["invalid_request", *over, "invalid_request"]
    assert await act("switch", model="none", reason="x") == ["model_unknown", *over, "model_unknown"]
    assert await act("lock", reason="exam") == ["done", *over, "done"]
    live = await sessions.get_session(fine, db_session, actor=ann)
    assert (live.row.locked, live.row.last_model) == (True, "smart")
    assert await act("unlock", reason="over") == ["done", *over, "done"]
    turn = (await sessions.begin_turn(fine, "Hello", db_session, actor=ann)).turn
    assert await act("stop") == ["done", "done", "session_not_found", "done"]
    assert (await db_session.find_turn(turn.id)).state == "stopped"  # type: ignore[union-attr]
    assert await act("extend") == ["done", *over, "done"]
    assert await act("close", reason="The end.") == ["done", *over, "done"]
    rows = [row for row in await journal("session_closed") if row.actor_name == "ada"]
    assert {(row.owner_id, row.reason) for row in rows} == {(ann.id, "The end."), (bob.id, "The end.")}


async def test_an_order_without_sessions_with_too_many_or_without_a_model_is_refused(
    desk: Desk, db_session: DbSession, ada: Actor, session_id: UUID, refused: Refused
) -> None:
    too_many = [UUID(int=number) for number in range(MOST_AT_ONCE + 1)]
    for ids, model in (([], "smart"), (too_many, "smart"), ([session_id], "")):
        async with refused("invalid_request"):
            await desk.act("switch", ids, db_session, actor=ada, model=model, reason="x")


async def test_two_orders_at_once_are_one_after_the_other(
    desk: Desk, make: Make, ann: Actor, ada: Actor, at_once: AtOnce, chain: Any
) -> None:
    ids = [await make(ann) for _ in range(4)]

    async def order(number: int, db: DbSession) -> list[str]:
        outcomes = await desk.act(
            "switch", ids[:: 1 - 2 * number], db, actor=ada, model=("fast", "smart")[number], reason="x"
        )
        return [one.code for one in outcomes]

    together = await at_once(2, order)
    assert together.done == [[""] * 4] * 2
    for id in ids:
        assert sorted(await chain(id)) == ["fast", "smart"]


async def test_a_failing_database_is_told_for_each_and_changes_nothing(
    desk: Desk, db_session: DbSession, ada: Actor, session_id: UUID, storage_fails: StorageFails, everything: Everything
) -> None:
    before = await everything()
    async with storage_fails("commit"):
        outcomes = await desk.act("switch", [session_id], db_session, actor=ada, model="smart", reason="x")
    assert [one.code for one in outcomes] == ["storage_unavailable"]
    assert await everything() == before

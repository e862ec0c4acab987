"""A session's first model is chosen and not switched to: rule S0, and who is named as having chosen it."""

from collections.abc import Awaitable, Callable
from uuid import UUID

import msgspec
import pytest

from db.db_session import DbSession, new_id
from db.tables import Account, Journal
from services.actor import Actor
from services.brought import Brought
from services.reads import Reads
from services.session_service import SessionService
from tests.conftest import Chain, Clock, Configure, JournalRows, Offer, Refused, an_actor
from web.views import LineView, WhyView

Begin = Callable[[SessionService, DbSession, Actor], Awaitable[UUID]]


async def created(sessions: SessionService, db_session: DbSession, ann: Actor) -> UUID:
    return (await sessions.create_session(db_session, actor=ann, model="smart")).row.id


async def in_the_first_message(sessions: SessionService, db_session: DbSession, ann: Actor) -> UUID:
    return (await sessions.begin_turn(None, "Hello", db_session, actor=ann, model="smart")).turn.session_id


async def by_a_message_without_a_model(sessions: SessionService, db_session: DbSession, ann: Actor) -> UUID:
    return (await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn.session_id


async def by_the_verb(sessions: SessionService, db_session: DbSession, ann: Actor) -> UUID:
    session_id = (await sessions.create_session(db_session, actor=ann)).row.id
    switch = await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    assert (switch.changed, switch.from_model, switch.allowance) == (True, None, ())
    return session_id


async def of_a_fork(sessions: SessionService, db_session: DbSession, ann: Actor) -> UUID:
    source = (await sessions.create_session(db_session, actor=ann, model="smart")).row.id
    return (await sessions.fork_session(source, db_session, actor=ann)).row.id


async def of_an_import(sessions: SessionService, db_session: DbSession, ann: Actor) -> UUID:
    brought = Brought(turns=(), title="Rome", model="smart")
    return (await sessions.import_session(brought, db_session, actor=ann)).row.id


@pytest.mark.parametrize(
    ("begin", "model", "source"),
    [
        (created, "smart", "asked"),
        (in_the_first_message, "smart", "asked"),
        (by_a_message_without_a_model, "fast", "default"),
        (by_the_verb, "smart", "asked"),
        (of_a_fork, "smart", "fork"),
        (of_an_import, "smart", "import"),
    ],
    ids=lambda one: getattr(one, "__name__", one),
)
async def test_S0_the_first_model_is_chosen_and_takes_no_place_among_switches(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, refused: Refused,
    journal: JournalRows, chain: Chain, begin: Begin, model: str, source: str,
) -> None:  # fmt: skip
    await configure("user", switches="1/h")
    session_id = await begin(sessions, db_session, ann)
    rows = [row for row in await journal() if row.session_id == session_id and row.what.startswith("model_")]
    assert [(row.what, row.reason, row.from_value, row.to_value) for row in rows] == [
        ("model_chosen", source, None, model)
    ]
    # Nobody is told of a switch: neither the transcript nor the line that a page is sent.
    live = await sessions.get_session(session_id, db_session, actor=ann)
    assert live.last_switch is not None and live.last_switch.id == rows[0].id
    assert await Reads(sessions).switches(live, [], db_session, actor=ann) == []
    # The place is there for the first real switch, and for one only.
    await sessions.switch_model(session_id, "aging", db_session, actor=ann)
    async with refused("rate_limited"):
        await sessions.switch_model(session_id, model, db_session, actor=ann)
    assert await chain(session_id) == [model, "aging"]
    live = await sessions.get_session(session_id, db_session, actor=ann)
    (line,) = await Reads(sessions).switches(live, [], db_session, actor=ann)
    assert LineView.of(line, ann).text == f"You switched from {model} to aging"


async def test_S0_a_first_model_that_an_admin_chooses_is_told_to_the_owner(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, session_id: UUID, journal: JournalRows
) -> None:
    await sessions.switch_model(session_id, "smart", db_session, actor=ada, reason="asked")
    (row,) = await journal("model_chosen")
    assert (row.actor_name, row.reason) == ("ada", "asked")
    live = await sessions.get_session(session_id, db_session, actor=ann)
    (line,) = await Reads(sessions).switches(live, [], db_session, actor=ann)
    assert LineView.of(line, ann).text == "ada chose smart"
    assert WhyView.of(live, ann) == WhyView("Chosen by ada.", True)


@pytest.mark.parametrize("reason", ["", "default"])
async def test_S0_what_an_older_version_journalled_as_a_switch_from_nothing_reads_as_a_choice(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, clock: Clock, reason: str
) -> None:
    begun = await sessions.begin_turn(session_id, "Hello", db_session, actor=ann, model=None if reason else "fast")
    await sessions.finish_turn(begun.turn.id, db_session, state="done")
    await Journal.update({Journal.what: "model_switched", Journal.reason: reason}).where(Journal.what == "model_chosen")
    live = await sessions.get_session(session_id, db_session, actor=ann)
    assert live.last_switch is not None and live.last_switch.to_value == "fast"
    assert live.current.reason == ("Default model." if reason else "Chosen by ann.")
    assert await Reads(sessions).switches(live, [], db_session, actor=ann) == []
    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    rows = await db_session.list_switches(session_id, 50)
    assert [(row.what, row.from_value, row.to_value) for row in rows] == [
        ("model_switched", None, "fast"),
        ("model_switched", "fast", "smart"),
    ]


async def test_S0_a_retry_with_another_model_in_a_session_without_one_is_checked_as_a_switch_and_chooses_nothing(
    sessions: SessionService, db_session: DbSession, ann: Actor, configure: Configure, refused: Refused,
    journal: JournalRows,
) -> None:  # fmt: skip
    """A transcript that was imported without a model has turns, and no first model yet."""
    await configure("user", switches="1/h")
    session_id = (await sessions.begin_turn(None, "Hello", db_session, actor=ann)).turn.session_id
    turn = await db_session.find_running_turn(session_id)
    assert turn is not None
    await sessions.finish_turn(turn.id, db_session, state="done", tail="Hi")
    chosen = len(await journal("model_chosen"))
    other = (await sessions.retry_turn(turn.id, db_session, actor=ann, model="smart")).turn
    await sessions.finish_turn(other.id, db_session, state="done")
    async with refused("rate_limited"):
        await sessions.retry_turn(turn.id, db_session, actor=ann, model="smart")
    assert len(await journal("model_chosen")) == chosen


@pytest.mark.parametrize("name", ["ann.bob", "ann: hm", "ann", "Chosen by ann", "you"])
async def test_S13_who_chose_is_known_by_id_whatever_the_names_are(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, offer: Offer, name: str
) -> None:
    admin = msgspec.structs.replace(an_actor(name, "admin"), name=name)
    if name != "ann":  # names are unique; an id alone tells that this one is somebody else
        account = Account(
            id=admin.id, name=name, role="admin", group_name="admin", created_at=sessions.now(), password_hash=None
        )
        await db_session.add(account)
    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    own = WhyView.of(await sessions.get_session(session_id, db_session, actor=ann), ann)
    assert own == WhyView("Chosen by you.", False)
    await sessions.switch_model(session_id, "aging", db_session, actor=admin, reason="Chosen by ann.")
    live = await sessions.get_session(session_id, db_session, actor=ann)
    assert WhyView.of(live, ann).text.startswith(f"Chosen by {name}: Chosen by ann. It is going away.")
    assert WhyView.of(live, ann).by_other
    # A token of the owner's is the owner.
    script = msgspec.structs.replace(ann, kind="token", token_id=new_id(), scopes=frozenset({"chat"}))
    await sessions.switch_model(session_id, "fast", db_session, actor=script, reason="cheap")
    live = await sessions.get_session(session_id, db_session, actor=ann)
    assert WhyView.of(live, ann) == WhyView("Chosen by you: cheap.", False)
    assert live.current.reason == "Chosen by ann: cheap."

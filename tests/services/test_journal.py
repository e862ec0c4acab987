"""The journal: rules J1, J3, J4, I3 and I5."""

import logging
from uuid import UUID, uuid4

import msgspec
import pytest

from db.db_session import DbSession, Piece
from services.accounts import Accounts, Credentials
from services.actor import Actor
from services.clients import Usage
from services.reads import Reads
from services.session_service import SessionService
from tests.conftest import Chain, Clock, Configure, Everything, JournalRows, Offer, Refused, StorageFails


async def test_J1_every_decision_is_told_in_order(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, clock: Clock, journal: JournalRows,
    configure: Configure, chain: Chain,
) -> None:  # fmt: skip
    await configure("user", switches="0")
    ann = msgspec.structs.replace(ann, request_id="r1")
    id = (await sessions.create_session(db_session, actor=ann)).row.id
    turn = (await sessions.begin_turn(id, "Hello", db_session, actor=ann)).turn
    await sessions.finish_turn(turn.id, db_session, state="done", tail="Hi")
    await sessions.rename_session(id, "Rome", db_session, actor=ann)
    clock.pass_(days=1)
    await sessions.extend_session(id, db_session, actor=ann)
    await sessions.switch_model(id, "smart", db_session, actor=ada, reason="costs", lock=True)
    await sessions.switch_model(id, "smart", db_session, actor=ada, reason="done", lock=False)
    await sessions.switch_model(id, "fast", db_session, actor=ann)
    clock.pass_(days=30)
    await sessions.sweep(db_session)
    await sessions.reopen_session(id, db_session, actor=ann)
    await sessions.close_session(id, db_session, actor=ada, reason="enough")
    assert await chain(id) == ["fast", "smart", "fast"]
    for yes in (True, False):
        await sessions.pin_session(id, db_session, actor=ann, pinned=yes)
    for yes in (True, False):
        await sessions.archive_session(id, db_session, actor=ann, archived=yes)
    await sessions.delete_session(id, db_session, actor=ann)
    await sessions.restore_session(id, db_session, actor=ann)
    await sessions.delete_session(id, db_session, actor=ann, for_good=True)
    rows = await journal()
    assert [
        (row.what, row.actor_name, row.outcome, row.reason, row.from_value, row.to_value, row.version) for row in rows
    ] == [
        ("session_created", "ann", "done", "script", None, None, 0),
        ("model_chosen", "ann", "done", "default", None, "fast", 1),
        ("turn_begun", "ann", "done", "", None, "fast", 1),
        ("turn_ended", "system", "done", "", None, None, 1),
        ("session_renamed", "ann", "done", "", None, None, 2),
        ("session_extended", "ann", "done", "", None, None, 3),
        ("model_switched", "ada", "done", "costs", "fast", "smart", 4),
        ("model_locked", "ada", "done", "costs", None, "smart", 5),
        ("model_unlocked", "ada", "done", "done", None, "smart", 6),
        ("model_switched", "ann", "done", "", "smart", "fast", 7),
        ("session_expired", "system", "done", "", None, None, 8),
        ("session_reopened", "ann", "done", "", None, None, 9),
        ("session_closed", "ada", "done", "enough", None, None, 10),
        ("session_pinned", "ann", "done", "", None, None, 11),
        ("session_unpinned", "ann", "done", "", None, None, 12),
        ("session_archived", "ann", "done", "", None, None, 13),
        ("session_unarchived", "ann", "done", "", None, None, 14),
        ("session_deleted", "ann", "done", "", None, None, 15),
        ("session_restored", "ann", "done", "", None, None, 16),
        ("session_erased", "ann", "done", "", None, None, 16),
    ]
    assert {row.session_id for row in rows} == {id}
    assert {row.owner_id for row in rows} == {ann.id}
    assert {row.request_id for row in rows if row.actor_name == "ann"} == {"r1"}
    assert [row.turn_id for row in rows if row.turn_id is not None] == [turn.id, turn.id, turn.id]
    assert {row.at.tzinfo is not None for row in rows} == {True}


async def test_J1_a_script_is_told_with_its_token_and_whom_it_acts_for(
    sessions: SessionService, db_session: DbSession, ann: Actor, script: Actor, session_id: UUID, journal: JournalRows
) -> None:
    token_id = uuid4()
    script = msgspec.structs.replace(script, token_id=token_id)
    await sessions.switch_model(session_id, "fast", db_session, actor=ann)
    await sessions.switch_model(session_id, "smart", db_session, actor=script)
    (row,) = await journal("model_switched")
    assert (row.actor_kind, row.actor_id, row.on_behalf_of, row.actor_name) == ("token", token_id, ann.id, "ann")
    await sessions.rename_session(session_id, "Rome", db_session, actor=ann)
    (row,) = await journal("session_renamed")
    assert (row.actor_kind, row.actor_id, row.on_behalf_of) == ("user", ann.id, None)


async def test_J1_nothing_is_told_that_was_not_done(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, session_id: UUID, clock: Clock,
    configure: Configure, journal: JournalRows, refused: Refused, storage_fails: StorageFails,
) -> None:  # fmt: skip
    """Each verb and its row are one transaction: where the commit fails there is neither (`refused` looks)."""
    await configure("user", sessions_created="0", turns="0", switches="0", concurrent_turns=0)
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    idled = (await sessions.create_session(db_session, actor=ann)).row.id
    clock.pass_(seconds=1)
    before = len(await journal())
    for call in (
        lambda: sessions.create_session(db_session, actor=ann, model="smart"),
        lambda: sessions.fork_session(session_id, db_session, actor=ann),
        lambda: sessions.switch_model(session_id, "smart", db_session, actor=ada, reason="costs", lock=True),
        lambda: sessions.rename_session(session_id, "Rome", db_session, actor=ann),
        lambda: sessions.extend_session(session_id, db_session, actor=ann),
        lambda: sessions.stop_turn(turn.id, db_session, actor=ann),
        lambda: sessions.finish_turn(turn.id, db_session, state="done"),
        lambda: sessions.begin_turn(idled, "Hello", db_session, actor=ann),
        lambda: sessions.close_session(session_id, db_session, actor=ann),
        lambda: sessions.delete_session(session_id, db_session, actor=ann),
    ):
        async with refused("storage_unavailable"), storage_fails("commit"):
            await call()
    assert len(await journal()) == before
    clock.pass_(days=30)
    async with refused("storage_unavailable"), storage_fails("commit"):
        await sessions.reopen_session(idled, db_session, actor=ann)


@pytest.mark.parametrize("verb", ["switch", "close", "delete"])
async def test_J1_who_stopped_a_reply_is_told(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, session_id: UUID, journal: JournalRows,
    verb: str,
) -> None:  # fmt: skip
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    if verb == "switch":
        await sessions.switch_model(session_id, "smart", db_session, actor=ada, when="stop", reason="costs")
    elif verb == "close":
        await sessions.close_session(session_id, db_session, actor=ada, reason="costs")
    else:
        await sessions.delete_session(session_id, db_session, actor=ada, reason="costs")
    (row,) = await journal("turn_ended")
    assert (row.outcome, row.turn_id) == ("stopped", turn.id)
    assert (row.actor_kind, row.actor_name, row.owner_id) == ("admin", "ada", ann.id)


async def test_J1_an_account_and_a_token_are_told(db_session: DbSession, clock: Clock, journal: JournalRows) -> None:
    accounts = Accounts(b"secret", guests=True, now=clock)
    account = await accounts.create_account("eve", "a canary password", db_session, role="admin")
    token = await accounts.create_token("eve", "ci", ("chat",), db_session)
    rows = await journal()
    assert [(row.what, row.actor_name, row.to_value, row.reason) for row in rows] == [
        ("account_created", "system", "admin", ""),
        ("token_created", "system", "chat", "ci"),
    ]
    assert {row.owner_id for row in rows} == {account.id}
    assert token not in repr([row.to_dict() for row in rows])


async def test_J3_no_content_and_no_secret_is_ever_in_the_journal_or_the_log(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, clock: Clock, everything: Everything,
    refused: Refused, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO)
    accounts = Accounts(b"secret", guests=True, now=clock)
    cookie = accounts.new_guest_cookie()
    guest = await accounts.authenticate(Credentials(None, "", cookie, "203.0.113.77", "r1"), db_session)
    for actor in (ann, guest):
        key = f"canary-key-{actor.kind}"
        begun = await sessions.begin_turn(None, "canary-prompt", db_session, actor=actor, key=key)
        session_id = begun.turn.session_id
        await sessions.append([Piece(session_id, begun.turn.id, 0, "canary-text ")], db_session)
        await sessions.finish_turn(
            begun.turn.id, db_session, state="failed", tail="canary-tail", error=("provider_failed", "canary-detail")
        )
        again = await sessions.begin_turn(session_id, "canary-second", db_session, actor=actor)
        await sessions.stop_turn(again.turn.id, db_session, actor=actor)
        await sessions.rename_session(session_id, "canary-title", db_session, actor=actor)
        async with refused("prompt_too_long"):
            await sessions.begin_turn(session_id, "canary" * 20_000, db_session, actor=actor)
        async with refused("model_unknown"):
            await sessions.switch_model(session_id, "canary-model", db_session, actor=actor)
        await sessions.close_session(session_id, db_session, actor=actor)
        await sessions.delete_session(session_id, db_session, actor=actor)
    rows = await everything()
    assert len(rows["journal"]) >= 18
    told = repr(rows["journal"]) + caplog.text
    for secret in ("canary", cookie, "203.0.113.77", guest.rate_key):
        assert secret not in told
    assert "203.0.113.77" not in repr(rows)


async def test_J4_deleting_a_session_leaves_its_rows(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, journal: JournalRows
) -> None:
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    await sessions.finish_turn(turn.id, db_session, state="done", usage=Usage(1, 1))
    before = [row.to_dict() for row in await journal()]
    assert len(before) == 4
    await sessions.delete_session(session_id, db_session, actor=ann)
    after = [row.to_dict() for row in await journal()]
    assert after[:-1] == before
    assert (after[-1]["what"], after[-1]["session_id"]) == ("session_deleted", session_id)


async def test_J4_no_verb_changes_a_row(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, clock: Clock, journal: JournalRows,
    configure: Configure,
) -> None:  # fmt: skip
    await configure("user", turns="0", switches="0", sessions_created="0")
    seen: list[dict[str, object]] = []

    async def grew() -> None:
        rows = [row.to_dict() for row in await journal()]
        assert rows[: len(seen)] == seen
        assert len(rows) > len(seen)
        seen[:] = rows

    await grew()
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    await grew()
    await sessions.stop_turn(turn.id, db_session, actor=ann)
    await grew()
    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    await grew()
    clock.pass_(days=1)
    await sessions.extend_session(session_id, db_session, actor=ann)
    await grew()
    clock.pass_(days=400)
    await sessions.sweep(db_session)
    await grew()
    await sessions.reopen_session(session_id, db_session, actor=ann)
    await grew()
    await sessions.close_session(session_id, db_session, actor=ann)
    await grew()
    await sessions.delete_session(session_id, db_session, actor=ann)
    await grew()


async def test_I3_the_chain_holds_through_every_way_a_model_is_put(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, offer: Offer, configure: Configure,
    chain: Chain,
) -> None:  # fmt: skip
    await configure("user", turns="0", switches="0")
    session_id = (await sessions.create_session(db_session, actor=ann, model="aging")).row.id

    async def turn(model: str | None = None) -> None:
        begun = await sessions.begin_turn(session_id, "Hello", db_session, actor=ann, model=model)
        await sessions.finish_turn(begun.turn.id, db_session, state="done")

    await turn()
    await turn("smart")
    await offer(smart={"state": "retired", "replacement": "aging"})
    await turn()
    await offer(aging=None)
    await turn()
    await sessions.switch_model(session_id, "small", db_session, actor=ada, reason="costs")
    await sessions.switch_model(session_id, "small", db_session, actor=ann)
    await turn()
    assert await chain(session_id) == ["aging", "smart", "aging", "fast", "small"]


async def test_I5_a_refused_call_journals_no_success(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, session_id: UUID, refused: Refused,
    journal: JournalRows,
) -> None:  # fmt: skip
    async with refused("session_not_found"):
        await sessions.switch_model(session_id, "smart", db_session, actor=bob)
    async with refused("model_unavailable"):
        await sessions.begin_turn(session_id, "Hello", db_session, actor=ann, model="far")
    assert {row.what for row in await journal() if row.outcome == "done"} == {"session_created"}


async def test_O2_the_owner_reads_the_timeline_newest_first_and_others_do_not(
    sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, ada: Actor, session_id: UUID,
    refused: Refused,
) -> None:  # fmt: skip
    await sessions.switch_model(session_id, "smart", db_session, actor=ada, reason="costs")
    other = await sessions.create_session(db_session, actor=bob)
    for actor in (ann, ada):
        rows = await Reads(sessions).timeline(session_id, db_session, actor=actor)
        assert [(row.what, row.actor_name, row.reason) for row in rows] == [
            ("model_chosen", "ada", "costs"),
            ("session_created", "ann", "script"),
        ]
    async with refused("session_not_found"):
        await Reads(sessions).timeline(other.row.id, db_session, actor=ann)

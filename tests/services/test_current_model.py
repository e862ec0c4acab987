"""The current model: rules M1 to M8, one function for page, script, stream and turn."""

from uuid import UUID

import pytest

from db.db_session import DbSession
from db.tables import Account
from services.actor import Actor
from services.catalogue import CurrentModel
from services.client_pool import ClientPool
from services.session_service import SessionService
from tests.conftest import Chain, Clock, Configure, Everything, JournalRows, Offer, Refused


async def test_M1_the_sessions_own_model_is_used(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID
) -> None:
    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    current = await sessions.current_model(session_id, db_session, actor=ann)
    assert current == CurrentModel("smart", "session", True, "Chosen by ann.", wanted=None)


async def test_M2_a_retired_model_is_replaced_and_remembered_as_wanted(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, offer: Offer
) -> None:
    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    await offer(smart={"state": "retired", "replacement": "aging"})
    current = await sessions.current_model(session_id, db_session, actor=ann)
    assert (current.id, current.source, current.usable, current.wanted) == ("aging", "replacement", True, "smart")
    assert current.reason == "Replaces Smart, which is retired."


async def test_M2_replacements_are_followed_to_the_first_usable_one(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, offer: Offer
) -> None:
    await offer(a={}, b={"state": "retired", "replacement": "c"}, c={})
    await sessions.switch_model(session_id, "a", db_session, actor=ann)
    await offer(a={"state": "retired", "replacement": "b"})
    assert (await sessions.current_model(session_id, db_session, actor=ann)).id == "c"
    await offer(c={"state": "retired", "replacement": "a"})
    current = await sessions.current_model(session_id, db_session, actor=ann)
    assert (current.id, current.source) == ("fast", "fallback")


async def test_M2_a_replacement_the_owner_may_not_use_is_none(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, offer: Offer
) -> None:
    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    await offer(smart={"state": "retired", "replacement": "hidden"})
    current = await sessions.current_model(session_id, db_session, actor=ann)
    assert (current.id, current.source, current.wanted) == ("fast", "fallback", "smart")
    assert "Hidden" not in current.reason and "hidden" not in current.reason


async def test_M2_a_deprecated_model_still_serves_and_says_so(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, offer: Offer
) -> None:
    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    await offer(smart={"state": "deprecated", "replacement": "fast"})
    current = await sessions.current_model(session_id, db_session, actor=ann)
    assert (current.id, current.source, current.usable) == ("smart", "session", True)
    assert "going away" in current.reason
    assert (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn.model == "smart"


async def test_M2_a_deprecated_model_says_until_when(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, offer: Offer
) -> None:
    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    await offer(smart={"state": "deprecated", "state_reason": "Until the end of June."})
    current = await sessions.current_model(session_id, db_session, actor=ann)
    assert current.reason == "Chosen by ann. It is going away. Until the end of June."


async def test_M3_a_model_that_cannot_be_used_falls_back_with_its_reason(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, offer: Offer
) -> None:
    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    for change, reason in (
        ({"state": "disabled"}, "Smart is disabled. Fast stands in."),
        ({"state": "retired", "replacement": None}, "Smart is retired. Fast stands in."),
        ({"groups": ["admin"]}, "smart is not available. Fast stands in."),
        ({"provider": "nowhere"}, "Smart is not available. Fast stands in."),
        (None, "Smart is disabled. Fast stands in."),
    ):
        await offer(smart=change)
        current = await sessions.current_model(session_id, db_session, actor=ann)
        assert current == CurrentModel("fast", "fallback", True, reason, wanted="smart")
        if change is not None:
            await offer(smart={"state": "active", "groups": [], "provider": "builtin"})
            assert (await sessions.current_model(session_id, db_session, actor=ann)).source == "session"


async def test_M3_the_groups_default_comes_before_the_instances_and_the_accounts_not_at_all(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, offer: Offer, configure: Configure
) -> None:
    await Account.update({Account.default_model: "small"}).where(Account.id == ann.id)
    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    await configure("user", default_model="aging")
    await offer(smart={"state": "disabled"})
    assert (await sessions.current_model(session_id, db_session, actor=ann)).id == "aging"
    await offer(aging={"state": "disabled"})
    assert (await sessions.current_model(session_id, db_session, actor=ann)).id == "fast"


async def test_M3_a_group_may_block_instead(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, offer: Offer, configure: Configure,
    refused: Refused,
) -> None:  # fmt: skip
    await configure("user", on_missing_model="block")
    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    await offer(smart={"state": "disabled"})
    current = await sessions.current_model(session_id, db_session, actor=ann)
    assert (current.id, current.source, current.usable, current.wanted) == (None, "none", False, "smart")
    async with refused("no_model_available"):
        await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)


async def test_M4_without_a_model_the_nearest_default_is_used(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, offer: Offer, configure: Configure
) -> None:
    async def current() -> tuple[str | None, str, str]:
        found = await sessions.current_model(session_id, db_session, actor=ann)
        assert found == await sessions.default_model(db_session, actor=ann)
        return found.id, found.source, found.reason

    assert await current() == ("fast", "default", "The default here.")
    await configure("user", default_model="smart")
    assert await current() == ("smart", "default", "The default of your group.")
    await Account.update({Account.default_model: "small"}).where(Account.id == ann.id)
    assert await current() == ("small", "default", "Your default model.")
    await offer(small={"state": "disabled"})
    assert await current() == ("smart", "default", "The default of your group.")
    await offer(smart={"groups": ["admin"]})
    assert await current() == ("fast", "default", "The default here.")


async def test_M4_a_default_may_be_an_alias(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, offer: Offer
) -> None:
    await offer(default="quick")
    assert (await sessions.current_model(session_id, db_session, actor=ann)).id == "fast"


async def test_M5_nothing_usable_is_said_and_never_the_first_of_the_list(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, offer: Offer, refused: Refused
) -> None:
    await offer(default=None)
    current = await sessions.current_model(session_id, db_session, actor=ann)
    assert (current.id, current.source, current.usable, current.wanted) == (None, "none", False, None)
    assert (await sessions.get_session(session_id, db_session, actor=ann)).current == current
    assert len((await sessions.list_sessions(db_session, actor=ann)).sessions) == 1
    async with refused("no_model_available"):
        await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)
    async with refused("no_model_available"):
        await sessions.begin_turn(None, "Hello", db_session, actor=ann)


async def test_M6_a_provider_that_is_down_is_not_a_missing_model(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, pool: ClientPool, refused: Refused
) -> None:
    await sessions.switch_model(session_id, "far", db_session, actor=ann)
    current = await sessions.current_model(session_id, db_session, actor=ann)
    assert (current.id, current.source, current.usable) == ("far", "session", True)
    async with refused("model_unavailable"):
        await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)
    pool.note("down", True)
    assert (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn.model == "far"


async def test_M6_a_default_whose_provider_is_down_does_not_give_way(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, offer: Offer, refused: Refused
) -> None:
    await offer(default="far")
    assert (await sessions.current_model(session_id, db_session, actor=ann)).id == "far"
    async with refused("model_unavailable"):
        await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)


async def test_M7_asking_writes_nothing(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, offer: Offer,
    everything: Everything, clock: Clock,
) -> None:  # fmt: skip
    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    await offer(smart={"state": "retired", "replacement": "fast"})
    before = await everything()
    clock.pass_(minutes=1)
    for _ in range(3):
        await sessions.current_model(session_id, db_session, actor=ann)
        await sessions.default_model(db_session, actor=ann)
    assert await everything() == before


async def test_M7_the_first_turn_pins_the_default(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, offer: Offer, chain: Chain,
    journal: JournalRows,
) -> None:  # fmt: skip
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    await sessions.finish_turn(turn.id, db_session, state="done")
    (row,) = await journal("model_chosen")
    assert (row.from_value, row.to_value, row.reason, row.version) == (None, "fast", "default", 1)
    assert (row.actor_name, row.session_id) == ("ann", session_id)
    await offer(default="smart")
    current = await sessions.current_model(session_id, db_session, actor=ann)
    assert (current.id, current.source) == ("fast", "session")
    assert current.reason == "Default model."
    await sessions.begin_turn(session_id, "And now?", db_session, actor=ann)
    assert await chain(session_id) == ["fast"]


@pytest.mark.parametrize(
    ("change", "source"),
    [({"state": "retired", "replacement": "aging"}, "replacement"), ({"state": "disabled"}, "fallback")],
)
async def test_M7_a_turn_stores_the_model_it_uses_and_the_old_one_does_not_come_back(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, offer: Offer, chain: Chain,
    journal: JournalRows, change: dict[str, str], source: str,
) -> None:  # fmt: skip
    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    await offer(smart=change)
    used = {"replacement": "aging", "fallback": "fast"}[source]
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    assert turn.model == used
    last = (await journal("model_switched"))[-1]
    assert (last.from_value, last.to_value, last.reason) == ("smart", used, source)
    await sessions.finish_turn(turn.id, db_session, state="done")
    await offer(smart={"state": "active"})
    assert (await sessions.current_model(session_id, db_session, actor=ann)).id == used
    assert await chain(session_id) == ["smart", used]


async def test_M7_a_refused_turn_stores_no_model(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, configure: Configure,
    refused: Refused,
) -> None:  # fmt: skip
    await configure("user", concurrent_turns=1)
    other = (await sessions.create_session(db_session, actor=ann)).row.id
    await sessions.begin_turn(other, "Elsewhere", db_session, actor=ann)
    async with refused("concurrency_limited"):
        await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)


async def test_M7_a_retry_with_another_model_stores_nothing(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, chain: Chain
) -> None:
    turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
    await sessions.finish_turn(turn.id, db_session, state="done")
    before = await sessions.get_session(session_id, db_session, actor=ann)
    begun = await sessions.retry_turn(turn.id, db_session, actor=ann, model="smart")
    assert (begun.turn.model, begun.session.current, begun.session.row.version) == (
        "smart",
        before.current,
        before.row.version,
    )
    assert await chain(session_id) == ["fast"]


async def test_M8_page_list_and_turn_give_the_same_answer(
    sessions: SessionService, db_session: DbSession, ann: Actor, session_id: UUID, offer: Offer, configure: Configure
) -> None:
    await configure("user", turns="0", switches="0")

    async def check(model: str, source: str) -> None:
        asked = await sessions.current_model(session_id, db_session, actor=ann)
        shown = (await sessions.get_session(session_id, db_session, actor=ann)).current
        ensured = (await sessions.ensure_session(session_id, db_session, actor=ann)).current
        (listed,) = (await sessions.list_sessions(db_session, actor=ann)).sessions
        assert (asked.id, asked.source) == (model, source)
        assert shown == asked
        assert ensured == asked
        assert listed.current == asked
        turn = (await sessions.begin_turn(session_id, "Hello", db_session, actor=ann)).turn
        assert turn.model == model
        await sessions.finish_turn(turn.id, db_session, state="done")

    await check("fast", "default")
    await check("fast", "session")
    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    await check("smart", "session")
    await offer(smart={"state": "retired", "replacement": "aging"})
    await check("aging", "replacement")
    await offer(aging={"state": "disabled"})
    await check("fast", "fallback")


async def test_M8_an_admin_sees_the_model_the_owner_has(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, session_id: UUID, configure: Configure
) -> None:
    await configure("user", default_model="smart")
    assert (await sessions.current_model(session_id, db_session, actor=ada)).id == "smart"
    assert (await sessions.default_model(db_session, actor=ada)).id == "fast"


async def test_a_foreign_or_absent_session_has_no_model(
    sessions: SessionService, db_session: DbSession, bob: Actor, session_id: UUID, refused: Refused
) -> None:
    for id in (session_id, UUID(int=7)):
        async with refused("session_not_found") as told:
            await sessions.current_model(id, db_session, actor=bob)
        assert str(told.refusal) == "There is no such session."


async def test_models_are_what_the_actor_may_see_in_the_configured_order(
    sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, guest: Actor
) -> None:
    mine = [entry.id for entry in await sessions.models(db_session, actor=ann)]
    assert mine == ["fast", "smart", "off", "old", "aging", "far", "small"]
    assert [entry.id for entry in await sessions.models(db_session, actor=guest)] == mine
    theirs = [entry.id for entry in await sessions.models(db_session, actor=ada)]
    assert theirs == ["fast", "smart", "hidden", "off", "old", "aging", "far", "small"]

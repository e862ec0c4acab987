"""What admins decide about models, groups and limits: rules L6, J1 and M3."""

import asyncio
from uuid import UUID

import msgspec
import pytest

from db.db_session import DbSession
from db.engine import Engine
from services.actor import Actor
from services.configuration import configured
from services.governance import Governance
from services.moves import Moves
from services.rules import Rules
from services.session_service import SessionService
from tests.conftest import MODELS, AtOnce, Clock, Configuration, Configure, JournalRows, Offer, Refused


@pytest.fixture
def governance(sessions: SessionService, clock: Clock) -> Governance:
    return Governance(sessions.units, configured(MODELS, {}, "fast"), clock)


async def limit(governance: Governance, group: str, name: str, db_session: DbSession, ada: Actor) -> tuple[str, bool]:
    """A limit, and whether an admin has set it."""
    groups = {one.name: one for one in await governance.groups(db_session, actor=ada)}
    (found,) = [one for one in groups[group].limits if one.name == name]
    return found.value, found.set_by is not None


async def told(journal: JournalRows, what: str) -> list[tuple[str, str | None, str | None, str]]:
    return [(row.actor_name, row.from_value, row.to_value, row.reason) for row in await journal(what)]


async def test_L6_an_admins_limit_holds_from_the_next_call_and_is_journalled(
    governance: Governance, sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, refused: Refused,
    journal: JournalRows,
) -> None:  # fmt: skip
    await governance.set_limit("user", "open_sessions", "1", db_session, actor=ada, reason="full house")
    await sessions.create_session(db_session, actor=ann)
    async with refused("session_quota"):
        await sessions.create_session(db_session, actor=ann)
    await governance.set_limit("user", "open_sessions", None, db_session, actor=ada)
    await sessions.create_session(db_session, actor=ann)
    assert await limit(governance, "user", "open_sessions", db_session, ada) == ("500", False)
    assert await told(journal, "limit_changed") == [
        ("ada", "user open sessions: 500", "user open sessions: 1", "full house"),
        ("ada", "user open sessions: 1", "user open sessions: 500", ""),
    ]


async def test_L6_what_a_limit_of_user_changes_for_other_groups_is_told(
    governance: Governance, sessions: SessionService, db_session: DbSession, ada: Actor
) -> None:
    done = await governance.set_limit("user", "turns", "0", db_session, actor=ada, key="k")
    assert (done.before, done.value, done.followed_by) == ("30/min burst 10", "0", ["admin", "guest"])
    again = await governance.set_limit("user", "turns", "0", db_session, actor=ada, key="k")
    assert (again.value, again.followed_by) == ("0", ["admin", "guest"])
    # guest has a limit of its own, so that of user changes nothing for it; and nobody follows guest.
    assert (await governance.set_limit("user", "concurrent_turns", "9", db_session, actor=ada)).followed_by == []
    await governance.set_limit("guest", "turns", "1/min", db_session, actor=ada)
    assert (await governance.set_limit("user", "turns", "2/min", db_session, actor=ada)).followed_by == ["admin"]
    back = await governance.set_limit("guest", "turns", None, db_session, actor=ada)
    assert (back.before, back.value, back.followed_by) == ("1/min", "2/min", [])


async def test_a_value_that_is_no_limit_is_answered_with_how_it_is_written(
    governance: Governance, db_session: DbSession, ada: Actor, refused: Refused
) -> None:
    money = (
        "An amount of money is a plain number like 20 or 0.05, without a currency, or 0 for no limit, and less than a "
        "billion; not "
    )
    for name, value, told in (
        ("money_per_day", "50 USD", f"{money}'50 USD'."),
        ("money_per_month", "nan", f"{money}'nan'."),
        ("money_per_month", "-1", f"{money}'-1'."),
        ("tokens_per_day", "1.5k", "A count is a whole number like 3, or 0 for no limit, not '1.5k'."),
        ("turns", "10", "A rate is written like '10/min burst 5', or 0 for no limit, not '10'."),
        ("idle", "soon", "A span is written like '30d', '12h' or '30min', or 0 for no end, not 'soon'."),
    ):
        async with refused("invalid_request") as refusal:
            await governance.set_limit("user", name, value, db_session, actor=ada)
        assert str(refusal.refusal) == told


async def test_L6_what_an_admin_set_stays_over_a_restart_and_the_rest_follows_the_configuration(
    governance: Governance, configuration: Configuration, db_session: DbSession, ada: Actor, configure: Configure,
    offer: Offer,
) -> None:  # fmt: skip
    await governance.set_limit("user", "turns", "9/min", db_session, actor=ada)
    await governance.set_model("smart", db_session, actor=ada, state="deprecated", state_reason="until May")
    await configure("user", turns="1/min", switches="2/min")
    await offer(smart={"label": "Smarter", "state": "active"})
    assert await limit(governance, "user", "turns", db_session, ada) == ("9/min", True)
    assert await limit(governance, "user", "switches", db_session, ada) == ("2/min", False)
    models = {model.entry.id: model for model in await governance.models(db_session, actor=ada)}
    smart = models["smart"]
    assert (smart.entry.label, smart.entry.state, smart.entry.state_reason) == ("Smarter", "deprecated", "until May")
    assert smart.set_by == "ada"
    assert smart.since is not None and smart.since.actor_name == "ada"
    await offer(smart=None)
    models = {model.entry.id: model for model in await governance.models(db_session, actor=ada)}
    assert (models["smart"].entry.state, models["smart"].set_by) == ("disabled", None)


async def test_J1_what_a_configuration_changed_is_told_row_by_row_and_the_first_one_as_a_whole(
    governance: Governance, configure: Configure, offer: Offer, journal: JournalRows
) -> None:
    assert len(await journal("configuration_applied")) == 1
    assert not [row for row in await journal() if row.what.endswith("_changed")]
    await configure("user", turns="7/min")
    await configure("interns", default_model="smart", turns="1/h")
    await offer(fast={"state": "retired", "replacement": "smart"}, new={})
    assert len(await journal("configuration_applied")) == 1
    assert await told(journal, "limit_changed") == [
        ("system", "user turns: 30/min burst 10", "user turns: 7/min", ""),
        ("system", "interns turns: as in user", "interns turns: 1/h", ""),
    ]
    ((_, before, after, _),) = await told(journal, "group_changed")
    assert (before, after) == (None, "group interns: default model smart, on missing model fallback")
    first, second = await told(journal, "model_changed")
    assert first[1:3] == ("fast: state active, replacement none", "fast: state retired, replacement smart")
    assert second[1] is None and (second[2] or "").startswith("new: state active")
    await configure("user")
    assert len(await told(journal, "limit_changed")) == 2, "what did not change is not told"


async def test_M3_a_model_that_an_admin_closes_to_a_group_is_gone_for_it_at_the_next_call(
    governance: Governance, sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, session_id: UUID
) -> None:
    await sessions.switch_model(session_id, "smart", db_session, actor=ann)
    await governance.set_model("smart", db_session, actor=ada, groups=["admin"])
    current = await sessions.current_model(session_id, db_session, actor=ann)
    assert (current.id, current.source) == ("fast", "fallback")
    await governance.set_group("user", db_session, actor=ada, on_missing_model="block")
    assert not (await sessions.current_model(session_id, db_session, actor=ann)).usable
    await governance.restore_model("smart", db_session, actor=ada)
    assert (await sessions.current_model(session_id, db_session, actor=ann)).id == "smart"


async def test_J1_a_group_is_made_gets_a_default_and_goes(
    governance: Governance, db_session: DbSession, ada: Actor, journal: JournalRows, refused: Refused
) -> None:
    await governance.set_group("interns", db_session, actor=ada, default_model="quick")
    assert await limit(governance, "interns", "turns", db_session, ada) == ("30/min burst 10", False)
    await governance.set_limit("interns", "turns", "1/min", db_session, actor=ada)
    async with refused("invalid_request"):
        await governance.restore_group("interns", db_session, actor=ada)
    await governance.set_limit("interns", "turns", None, db_session, actor=ada)
    await governance.restore_group("interns", db_session, actor=ada)
    assert "interns" not in {group.name for group in await governance.groups(db_session, actor=ada)}
    made, gone = await told(journal, "group_changed")
    assert made[1] is None and (made[2] or "").startswith("group interns: default model fast")
    assert gone[2] is None


async def test_D1_one_key_is_one_change(
    governance: Governance, db_session: DbSession, ada: Actor, refused: Refused, journal: JournalRows
) -> None:
    for _ in range(2):
        await governance.set_model("smart", db_session, actor=ada, state="disabled", reason="x", key="k")
    async with refused("idempotency_key_reused"):
        await governance.set_model("smart", db_session, actor=ada, state="active", key="k")
    await governance.set_model("smart", db_session, actor=ada, state="disabled", reason="x")
    assert len(await journal("model_changed")) == 1


async def test_J1_two_admins_at_once_are_one_after_the_other(
    governance: Governance, ada: Actor, bob: Actor, at_once: AtOnce, journal: JournalRows
) -> None:
    eve = msgspec.structs.replace(bob, kind="admin", role="admin", name="eve")
    await at_once(
        12,
        lambda number, db_session: governance.set_limit(
            "user", "concurrent_turns", str(number + 10), db_session, actor=(ada, eve)[number % 2]
        ),
    )
    rows = await told(journal, "limit_changed")
    assert len(rows) == 12
    # Each begins where another ended: one chain from what was there.
    assert {row[1] for row in rows} - {row[2] for row in rows} == {"user concurrent turns: 3"}


async def test_O2_only_an_admin_sees_and_changes_the_rules(
    governance: Governance, db_session: DbSession, ann: Actor, refused: Refused
) -> None:
    for call in (
        lambda: governance.models(db_session, actor=ann),
        lambda: governance.groups(db_session, actor=ann),
        lambda: governance.changes(db_session, actor=ann),
        lambda: governance.set_model("fast", db_session, actor=ann, state="disabled"),
        lambda: governance.restore_model("fast", db_session, actor=ann),
        lambda: governance.set_group("user", db_session, actor=ann, default_model="smart"),
        lambda: governance.restore_group("user", db_session, actor=ann),
        lambda: governance.set_limit("user", "turns", "1/h", db_session, actor=ann),
    ):
        async with refused("forbidden"):
            await call()  # type: ignore[no-untyped-call]


async def test_I5_what_makes_no_sense_is_refused_and_names_the_field(
    governance: Governance, db_session: DbSession, ada: Actor, refused: Refused
) -> None:
    await governance.set_model("smart", db_session, actor=ada, replacement="small")
    for call, field in (
        (lambda: governance.set_model("none", db_session, actor=ada, state="active"), "model"),
        (lambda: governance.set_model("small", db_session, actor=ada, replacement="small"), "replacement"),
        (lambda: governance.set_model("small", db_session, actor=ada, replacement="smart"), "replacement"),
        (lambda: governance.set_model("small", db_session, actor=ada, replacement="none"), "replacement"),
        (lambda: governance.set_model("small", db_session, actor=ada, groups=["nobody"]), "groups"),
        (lambda: governance.set_model("small", db_session, actor=ada, concurrent_turns=-1), "concurrent_turns"),
        (lambda: governance.set_group("user", db_session, actor=ada, default_model="none"), "default_model"),
        (lambda: governance.set_group("user", db_session, actor=ada, default_model="hidden"), "default_model"),
        (lambda: governance.set_group("a b", db_session, actor=ada), "group"),
        (lambda: governance.set_limit("user", "turns", "often", db_session, actor=ada), "value"),
        (lambda: governance.set_limit("user", "open_sessions", "9" * 20, db_session, actor=ada), "value"),
        (lambda: governance.set_limit("user", "naps", "1", db_session, actor=ada), "limit"),
        (lambda: governance.set_limit("*", "idle", "1d", db_session, actor=ada), "limit"),
        (lambda: governance.set_limit("nobody", "turns", "1/h", db_session, actor=ada), "group"),
    ):
        async with refused("invalid_request") as refusal:
            await call()  # type: ignore[no-untyped-call]
        assert refusal.facts["field"] == field


async def test_J2_what_an_admin_writes_wrong_is_noted_too(
    governance: Governance, sessions: SessionService, db_session: DbSession, ada: Actor, refused: Refused,
    journal: JournalRows, clock: Clock,
) -> None:  # fmt: skip
    wrong = {
        "set_group": lambda: governance.set_group("two words", db_session, actor=ada),
        "set_limit": lambda: governance.set_limit("user", "turns", "often", db_session, actor=ada),
        "set_model": lambda: governance.set_model("fast", db_session, actor=ada, state="disabled", reason="x" * 5000),
        "order_move": lambda: Moves(sessions).order("fast", "smart", "x" * 5000, db_session, actor=ada),
    }
    for call in wrong.values():
        async with refused("invalid_request"):
            await call()
        clock.pass_(minutes=1)
    assert [(row.reason, row.actor_name) for row in await journal("refused")] == [(verb, "ada") for verb in wrong]


async def test_M8_the_rules_are_all_of_one_moment(
    governance: Governance, engine: Engine, db_session: DbSession, configuration: Configuration, offer: Offer
) -> None:
    """A configuration that takes away a model and the default that was it, while others decide by the rules."""
    done = asyncio.Event()

    async def look() -> int:
        looks = 0
        while not done.is_set():
            rules = await Rules.now(DbSession(engine))
            assert rules.catalogue.entries[rules.catalogue.instance.default_model].state == "active"
            looks += 1
        return looks

    looking = [asyncio.create_task(look()) for _ in range(4)]
    try:
        for state in ("disabled", "active") * 10:
            await offer(default="smart" if state == "disabled" else "fast", fast={"state": state})
    finally:
        done.set()
        looks = await asyncio.gather(*looking)
    assert min(looks) > 5


async def test_L6_a_time_zone_that_is_none_is_refused_and_stops_nobody(
    governance: Governance, sessions: SessionService, db_session: DbSession, ada: Actor, ann: Actor, refused: Refused
) -> None:
    async with refused("invalid_request"):
        await governance.set_limit("*", "time_zone", "Europe/Berlim", db_session, actor=ada)
    await sessions.create_session(db_session, actor=ann)
    await governance.set_limit("*", "time_zone", "Europe/Berlin", db_session, actor=ada)
    await sessions.create_session(db_session, actor=ann)

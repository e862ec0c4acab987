"""What admins look through: the journal with its filters, and what was used; on both databases."""

from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from db.db_session import DbSession, first_id, new_id
from db.tables import Account
from services.accounts import Accounts, Credentials
from services.actor import SYSTEM, Actor
from services.clients import Usage as Counted
from services.configuration import InstanceConfig
from services.oversight import MOST_ROWS, Asked, Oversight
from services.session_service import SessionService
from tests.conftest import BEGINNING, Clock, Configuration, Everything, Refused, an_actor
from tests.services.test_accounts import cheap_passwords  # noqa: F401 - a fixture, used by every test

Chats = Callable[..., Awaitable[None]]


@pytest.fixture
def oversight(sessions: SessionService) -> Oversight:
    return Oversight(sessions)


@pytest.fixture
def chats(sessions: SessionService, db_session: DbSession) -> Chats:
    """Somebody's turn on a model, with what it used."""

    async def chat(actor: Actor, model: str = "fast", tokens: tuple[int, int] = (10, 20)) -> None:
        session = await sessions.create_session(db_session, actor=actor)
        begun = await sessions.begin_turn(session.row.id, "Hello", db_session, actor=actor, model=model)
        await sessions.finish_turn(begun.turn.id, db_session, state="done", tail="Hi", usage=Counted(*tokens))

    return chat


async def test_only_an_admin_looks_through_it(
    oversight: Oversight, db_session: DbSession, ann: Actor, guest: Actor, script: Actor, refused: Refused
) -> None:
    for actor in (ann, guest, script):
        async with refused("forbidden"):
            await oversight.journal(Asked(), db_session, actor=actor)
        async with refused("forbidden"):
            await oversight.whole_journal(Asked(), db_session, actor=actor)
        async with refused("forbidden"):
            await oversight.kinds(db_session, actor=actor)
        async with refused("forbidden"):
            await oversight.usage("day", db_session, actor=actor)


# ---------------------------------------------------------------- the journal


async def test_the_journal_is_filtered_by_what_whose_and_outcome_and_reads_write_nothing(
    oversight: Oversight, sessions: SessionService, db_session: DbSession, ann: Actor, bob: Actor, ada: Actor,
    chats: Chats, everything: Everything,
) -> None:  # fmt: skip
    await chats(ann)
    await chats(bob)
    session = await sessions.create_session(db_session, actor=ann, model="fast")
    await sessions.switch_model(session.row.id, "smart", db_session, actor=ada, reason="It is cheaper.")
    with pytest.raises(Exception, match="no model"):
        await sessions.switch_model(session.row.id, "none", db_session, actor=ann)
    before = await everything()

    async def found(**asked: Any) -> list[tuple[str, str]]:
        page = await oversight.journal(Asked(**asked), db_session, actor=ada, limit=100)
        ids = [one.row.id for one in page.decisions]
        assert ids == sorted(ids, reverse=True)
        return [(one.row.what, one.row.actor_name) for one in page.decisions]

    assert await found(account="ada") == [("model_switched", "ada")]
    about_ann = await found(account="ann")
    assert {who for _, who in about_ann} == {"ann", "ada", "system"} and ("model_switched", "ada") in about_ann
    assert "bob" not in {who for _, who in about_ann}
    assert await found(outcome="refused") == [("refused", "ann")]
    assert ("refused", "ann") not in await found(outcome="done")
    assert set(await found(what="turn_begun")) == {("turn_begun", "ann"), ("turn_begun", "bob")}
    assert await found(what="turn_begun", account="bob") == [("turn_begun", "bob")]
    of_session = await found(session_id=session.row.id)
    assert of_session == [
        ("refused", "ann"),
        ("model_switched", "ada"),
        ("model_chosen", "ann"),
        ("session_created", "ann"),
    ]
    assert len(await found()) == len(before["journal"]) + 1  # `everything` leaves refusals out
    kinds = await oversight.kinds(db_session, actor=ada)
    assert kinds == sorted({what for what, _ in await found()})
    assert await everything() == before
    with pytest.raises(Exception, match="no account"):
        await found(account="nobody")


async def test_what_a_token_did_is_its_accounts(
    oversight: Oversight, sessions: SessionService, db_session: DbSession, ann: Actor, ada: Actor, clock: Clock
) -> None:
    accounts = Accounts(b"a secret", guests=True, now=clock)
    token = await accounts.create_token("ada", "ci", ("admin",), db_session)
    script = await accounts.authenticate(Credentials(token, "", "", "", ""), db_session)
    session = await sessions.create_session(db_session, actor=ann, model="fast")
    await sessions.switch_model(session.row.id, "smart", db_session, actor=script, reason="By the script.")
    page = await oversight.journal(Asked(account="ada", what="model_switched"), db_session, actor=ada)
    assert [(one.row.actor_kind, one.owner.name if one.owner else "") for one in page.decisions] == [("token", "ann")]


async def test_the_journal_goes_on_page_by_page_and_whole_without_gap_or_double(
    oversight: Oversight,
    sessions: SessionService,
    db_session: DbSession,
    ada: Actor,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for _ in range(7):
        clock.pass_(minutes=1)
        await sessions.create_session(db_session, actor=ada)
    for account in ("", "ada"):
        seen: list[UUID] = []
        before = None
        while True:
            page = await oversight.journal(Asked(account=account), db_session, actor=ada, before=before, limit=3)
            seen += [one.row.id for one in page.decisions]
            if (before := page.next) is None:
                break
        assert len(seen) == len(set(seen)) >= 7
        monkeypatch.setattr("services.oversight.EXPORT_ROWS", 2)
        parts = await oversight.whole_journal(Asked(account=account), db_session, actor=ada)
        assert [one.row.id async for part in parts for one in part] == seen


async def test_days_are_those_of_the_servers_time_zone_and_both_count(
    oversight: Oversight, db_session: DbSession, ada: Actor, configuration: Configuration
) -> None:
    configuration.groups["*"] = InstanceConfig(time_zone="Pacific/Auckland")  # 12 hours ahead in winter
    await configuration.apply()
    for at in (datetime(2026, 7, 1, 11, 59, tzinfo=UTC), datetime(2026, 7, 1, 12, 0, tzinfo=UTC)):
        await db_session.record("signed_in", SYSTEM, at)
        row = (await db_session.list_decisions(limit=1, what="signed_in"))[0]
        await db_session.engine.run(
            "UPDATE journal SET id = $1 WHERE id = $2" if db_session.engine.engine_type == "postgres"
            else "UPDATE journal SET id = ? WHERE id = ?",
            [UUID(int=first_id(at).int + (new_id().int & 0xFFFF)), row.id],
        )  # fmt: skip

    async def count(**days: date) -> int:
        page = await oversight.journal(Asked(what="signed_in", **days), db_session, actor=ada)
        return len(page.decisions)

    assert await count(since=date(2026, 7, 1), until=date(2026, 7, 1)) == 1
    assert await count(since=date(2026, 7, 2), until=date(2026, 7, 2)) == 1
    assert await count(since=date(2026, 7, 1)) == 2
    assert await count(until=date(2026, 6, 30)) == 0
    for day in (date.min, date.max):
        try:
            await count(since=day, until=day)
        except Exception as error:
            assert getattr(error, "code", error) == "invalid_request"


# ---------------------------------------------------------------- usage


async def test_I8_usage_is_the_sum_of_the_turns_by_day_model_group_and_account(
    oversight: Oversight, db_session: DbSession, ann: Actor, bob: Actor, ada: Actor, guest: Actor, chats: Chats,
    clock: Clock,
) -> None:  # fmt: skip
    await chats(ann, "fast", (10, 20))
    await chats(ann, "smart", (1, 2))
    clock.pass_(days=2)
    await chats(bob, "fast", (100, 200))
    await chats(guest, "fast", (5, 5))

    async def told(by: Any, **asked: Any) -> dict[str, tuple[int, int, int]]:
        report = await oversight.usage(by, db_session, actor=ada, **asked)
        rows = {row.name: (row.turns, row.tokens, row.cost_nanos) for row in report.rows}
        assert (report.total.turns, report.total.tokens, report.total.cost_nanos) == tuple(
            sum(figures) for figures in zip(*rows.values(), strict=True)
        )
        return rows

    # `fast` costs 1 in and 2 out for a million tokens: 1000 and 2000 nano-money each.
    assert await told("model") == {"fast": (3, 340, 565_000), "smart": (1, 3, 0)}
    assert await told("group") == {"user": (3, 333, 550_000), "guest": (1, 10, 15_000)}
    assert await told("account") == {
        "bob": (1, 300, 500_000), "ann": (2, 33, 50_000), guest.name: (1, 10, 15_000),
    }  # fmt: skip
    today = BEGINNING.date() + timedelta(days=2)
    assert await told("day", days=3) == {
        str(today - timedelta(days=2)): (2, 33, 50_000),
        str(today - timedelta(days=1)): (0, 0, 0),
        str(today): (2, 310, 515_000),
    }
    assert await told("model", account="ann") == {"fast": (1, 30, 50_000), "smart": (1, 3, 0)}
    assert await told("account", model="smart") == {"ann": (1, 3, 0)}
    assert await told("model", group="guest") == {"fast": (1, 10, 15_000)}
    assert await told("account", days=1, last=BEGINNING.date()) == {"ann": (2, 33, 50_000)}


async def test_usage_is_sorted_by_what_is_asked_for_and_what_is_cut_off_is_the_least_of_it(
    oversight: Oversight, db_session: DbSession, ada: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {"dear": (1, 10, 900), "long": (2, 1000, 5), "busy": (50, 20, 7)}
    for name, (turns, tokens, cost) in figures.items():
        actor = an_actor(name)
        await db_session.add_account_once(
            Account(id=actor.id, name=name, role="user", group_name=name, created_at=BEGINNING)
        )
        for turn in range(turns):
            await db_session.add_usage(actor.id, BEGINNING.date(), name, tokens * (not turn), cost * (not turn))
    most = {"tokens": ["long", "busy", "dear"], "turns": ["busy", "long", "dear"], "cost": ["dear", "busy", "long"]}
    for by in ("account", "group", "model"):
        for measure, names in most.items():
            report = await oversight.usage(by, db_session, actor=ada, measure=measure)  # type: ignore[arg-type]
            assert [row.name for row in report.rows] == names
    monkeypatch.setattr("services.oversight.MOST_ROWS", 1)
    report = await oversight.usage("account", db_session, actor=ada, measure="cost")
    assert [row.name for row in report.rows] == ["dear", "others"]


async def test_who_used_little_is_told_together(oversight: Oversight, db_session: DbSession, ada: Actor) -> None:
    for number in range(MOST_ROWS + 5):
        actor = an_actor(f"user {number:03}")
        await db_session.add_account_once(
            Account(id=actor.id, name=actor.name, role="user", group_name="user", created_at=BEGINNING)
        )
        await db_session.add_usage(actor.id, BEGINNING.date(), "fast", 1000 - number, 1)
    report = await oversight.usage("account", db_session, actor=ada)
    assert len(report.rows) == MOST_ROWS + 1
    assert (report.rows[-1].name, report.rows[-1].turns) == ("others", 5)
    assert report.total.turns == MOST_ROWS + 5


async def test_usage_of_odd_days_is_refused_or_empty(
    oversight: Oversight, db_session: DbSession, ada: Actor, refused: Refused
) -> None:
    for days in (0, 401):
        async with refused("invalid_request"):
            await oversight.usage("day", db_session, actor=ada, days=days)
    report = await oversight.usage("day", db_session, actor=ada, days=400, last=date.min)
    assert [row.turns for row in report.rows] == [0]
    assert (await oversight.usage("model", db_session, actor=ada, last=date.max)).rows == []

"""Oversight: what admins look through — the journal, what was used, what runs. Nothing here writes or shows a text."""

from collections.abc import AsyncIterator
from datetime import date, datetime, time, timedelta, tzinfo
from typing import Any, Literal
from uuid import UUID

import msgspec

from db.db_session import DbSession, first_id
from db.tables import Account, Journal
from services.actor import Actor, require_admin
from services.errors import InvalidRequest
from services.rules import Rules
from services.session_service import SessionService
from services.text import storable

By = Literal["day", "model", "group", "account"]
Measure = Literal["tokens", "turns", "cost"]
#: days of usage that are added up at most
MOST_DAYS = 400
#: rows of usage that are told one by one; the rest is one row
MOST_ROWS = 50
#: decisions that an export reads at once
EXPORT_ROWS = 500


class Asked(msgspec.Struct, frozen=True):
    """Which decisions are wanted."""

    #: a name: what this account did, and what concerns it
    account: str = ""
    session_id: UUID | None = None
    what: str = ""
    outcome: Literal["", "done", "refused"] = ""
    since: date | None = None
    #: this day counts too
    until: date | None = None


class Decision(msgspec.Struct, frozen=True):
    """One decision, with whom it concerns."""

    row: Journal
    owner: Account | None


class DecisionPage(msgspec.Struct, frozen=True):
    """Part of the journal, newest first."""

    decisions: list[Decision]
    #: the last id of this part; None at the end
    next: UUID | None


class Used(msgspec.Struct, frozen=True):
    """What somebody or something used."""

    name: str
    turns: int
    tokens: int
    cost_nanos: int


class UsageReport(msgspec.Struct, frozen=True):
    """What was used in some days."""

    by: By
    first: date
    last: date
    #: days in their order, everything else with the most first
    rows: list[Used]
    total: Used


class Oversight:
    """What only admins see."""

    def __init__(self, sessions: SessionService) -> None:
        self._sessions, self.now = sessions, sessions.now

    # ------------------------------------------------------------ the journal

    async def journal(
        self, asked: Asked, db_session: DbSession, *, actor: Actor, before: UUID | None = None, limit: int = 50
    ) -> DecisionPage:
        """Decisions, newest first, from the one before `before` on. Raises Forbidden, InvalidRequest."""
        require_admin(actor)
        account = await self._account_named(asked.account, db_session) if asked.account else None
        zone = (await Rules.now(db_session)).zone
        until = _first_of(asked.until, zone, days=1) if asked.until else None
        rows = await db_session.list_decisions(
            limit=limit + 1,
            before=min((id for id in (before, until) if id is not None), default=None),
            after=_first_of(asked.since, zone) if asked.since else None,
            account_id=account.id if account is not None else None,
            session_id=asked.session_id,
            what=storable(asked.what),
            refused=None if not asked.outcome else asked.outcome == "refused",
        )
        owners = await db_session.list_accounts(row.owner_id for row in rows if row.owner_id is not None)
        return DecisionPage(
            [Decision(row, owners.get(row.owner_id)) for row in rows[:limit]],
            rows[limit - 1].id if len(rows) > limit else None,
        )

    async def whole_journal(
        self, asked: Asked, db_session: DbSession, *, actor: Actor
    ) -> AsyncIterator[list[Decision]]:
        """The same to its end, some at a time. Raises Forbidden, InvalidRequest before the first."""
        page = await self.journal(asked, db_session, actor=actor, limit=EXPORT_ROWS)

        async def parts(page: DecisionPage) -> AsyncIterator[list[Decision]]:
            yield page.decisions
            while page.next is not None:
                page = await self.journal(asked, db_session, actor=actor, before=page.next, limit=EXPORT_ROWS)
                yield page.decisions

        return parts(page)

    async def kinds(self, db_session: DbSession, *, actor: Actor) -> list[str]:
        """Every word for a decision that stands in the journal. Raises Forbidden."""
        require_admin(actor)
        return await db_session.list_kinds_of_decisions()

    # ------------------------------------------------------------ usage

    async def usage(
        self,
        by: By,
        db_session: DbSession,
        *,
        actor: Actor,
        days: int = 30,
        last: date | None = None,
        account: str = "",
        group: str = "",
        model: str = "",
        measure: Measure = "tokens",
    ) -> UsageReport:
        """What the turns that ended in some days used: days in their order, everything else by `measure`.

        Raises Forbidden, InvalidRequest.
        """
        require_admin(actor)
        if not 1 <= days <= MOST_DAYS:
            raise InvalidRequest(f"Usage is added up for 1 to {MOST_DAYS} days.", field="days")
        whose = await self._account_named(account, db_session) if account else None
        last = last or (await Rules.now(db_session)).day_of(self.now())
        first = last - timedelta(days=min(days - 1, (last - date.min).days))
        of: dict[str, Any] = {
            "account_id": whose.id if whose is not None else None,
            "group": storable(group),
            "model": storable(model),
            "most": "cost_nanos" if measure == "cost" else measure,
        }
        ((_, *all),) = await db_session.sum_usage("", first, last, limit=1, **of)
        total = Used("total", *all)
        found = await db_session.sum_usage(by, first, last, limit=MOST_DAYS if by == "day" else MOST_ROWS, **of)
        rows = [Used(str(name), *figures) for name, *figures in found]
        if by == "day":
            told = {row.name: row for row in rows}
            every = [str(first + timedelta(days=number)) for number in range((last - first).days + 1)]
            rows = [told.get(name, Used(name, 0, 0, 0)) for name in every]
        elif (rest := _rest(total, rows)).turns or rest.tokens:
            rows.append(rest)
        return UsageReport(by, first, last, rows, total)

    # ------------------------------------------------------------ parts

    async def _account_named(self, name: str, db_session: DbSession) -> Account:
        account = await db_session.find_account_by_name(storable(name.strip()))
        if account is None:
            raise InvalidRequest(f"There is no account “{name[:80]}”.", field="account")
        return account


def _first_of(day: date, zone: tzinfo, days: int = 0) -> UUID:
    """The lowest id that can have been made on a day, or some days after it. Raises InvalidRequest."""
    try:
        return first_id(datetime.combine(day + timedelta(days=days), time(), zone))
    except (ValueError, OverflowError) as error:
        raise InvalidRequest("There is nothing so long ago, nor so far ahead.", field="since") from error


def _rest(total: Used, rows: list[Used]) -> Used:
    """What is not told one by one."""
    return Used(
        "others",
        total.turns - sum(row.turns for row in rows),
        total.tokens - sum(row.tokens for row in rows),
        total.cost_nanos - sum(row.cost_nanos for row in rows),
    )

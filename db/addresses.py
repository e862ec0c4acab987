"""Sessions, running turns and usage of guests by network address.

An address is a keyed hash, never the address itself. A row for a turn stands while the turn runs, one for a session
while the session is open, so counting by address touches few rows.
"""

from collections.abc import Sequence
from datetime import date, datetime
from uuid import UUID

from db.tables import AddressSession, AddressTurn, AddressUsage


async def hold_turn(turn_id: UUID, addresses: Sequence[str]) -> None:
    """Count a running turn under its guest's addresses."""
    for address in addresses:
        await AddressTurn.raw("INSERT INTO address_turn (turn_id, address) VALUES ({}, {})", turn_id, address)


async def release_turn(turn_id: UUID) -> list[str]:
    """Stop counting a turn that has ended; the addresses it was counted under, in the order of locks."""
    rows = await AddressTurn.raw("DELETE FROM address_turn WHERE turn_id = {} RETURNING address", turn_id)
    return sorted(row["address"] for row in rows)


async def add_usage(address: str, day: date, tokens: int, cost_nanos: int) -> None:
    await AddressUsage.raw(
        "INSERT INTO address_usage (address, day, tokens, cost_nanos) VALUES ({}, {}, {}, {}) "
        "ON CONFLICT (address, day) DO UPDATE SET tokens = address_usage.tokens + excluded.tokens, "
        "cost_nanos = address_usage.cost_nanos + excluded.cost_nanos",
        address,
        day,
        tokens,
        cost_nanos,
    )


async def usage_between(address: str, first: date, end: date) -> tuple[int, int]:
    """Tokens and nano-money used by ended turns from the day `first` on, before the day `end`."""
    (row,) = await AddressUsage.raw(
        "SELECT COALESCE(SUM(tokens), 0) AS tokens, COALESCE(SUM(cost_nanos), 0) AS cost_nanos "
        "FROM address_usage WHERE address = {} AND day >= {} AND day < {}",
        address,
        first,
        end,
    )
    return int(row["tokens"]), int(row["cost_nanos"])


async def count_running_turns(address: str, now: datetime) -> int:
    """Turns that run under a living lease."""
    (row,) = await AddressTurn.raw(
        "SELECT COUNT(*) AS turns FROM address_turn JOIN turn ON turn.id = address_turn.turn_id "
        "WHERE address_turn.address = {} AND turn.state = 'running' AND turn.lease_until > {}",
        address,
        now,
    )
    return int(row["turns"])


async def reserved(address: str, now: datetime) -> tuple[int, int]:
    """Tokens and nano-money that running turns hold."""
    (row,) = await AddressTurn.raw(
        "SELECT COALESCE(SUM(turn.reserved_tokens), 0) AS tokens, COALESCE(SUM(turn.reserved_nanos), 0) AS nanos "
        "FROM address_turn JOIN turn ON turn.id = address_turn.turn_id "
        "WHERE address_turn.address = {} AND turn.state = 'running' AND turn.lease_until > {}",
        address,
        now,
    )
    return int(row["tokens"]), int(row["nanos"])


async def list_lapsed_turns(address: str, now: datetime) -> list[UUID]:
    """Turns whose worker is gone and whose end nobody has written down; rarely any."""
    rows = await AddressTurn.raw(
        "SELECT turn.id AS id FROM address_turn JOIN turn ON turn.id = address_turn.turn_id "
        "WHERE address_turn.address = {} AND turn.state = 'running' AND turn.lease_until <= {}",
        address,
        now,
    )
    return [row["id"] for row in rows]


async def hold_session(session_id: UUID, addresses: Sequence[str]) -> None:
    """Count an open session under its guest's addresses; one that is counted already stays so."""
    for address in addresses:
        await AddressSession.raw(
            "INSERT INTO address_session (session_id, address) VALUES ({}, {}) ON CONFLICT DO NOTHING",
            session_id,
            address,
        )


async def release_session(session_id: UUID) -> None:
    """Count a session no longer: it has ended, or is an account's now."""
    await AddressSession.raw("DELETE FROM address_session WHERE session_id = {}", session_id)


async def count_open_sessions(
    address: str, now: datetime, active_after: datetime | None, created_after: datetime | None
) -> int:
    """Sessions that are neither closed nor past their end."""
    where, args = [], list[datetime]()
    for condition, at in (
        ("session.last_activity_at > {}", active_after),
        ("session.created_at > {}", created_after),
    ):
        if at is not None:
            where.append(f"AND {condition}")
            args.append(at)
    (row,) = await AddressSession.raw(
        "SELECT COUNT(*) AS sessions FROM address_session JOIN session ON session.id = address_session.session_id "  # noqa: S608
        "WHERE address_session.address = {} AND session.state <> 'closed' AND session.deleted_at IS NULL "
        f"AND (session.expires_at IS NULL OR session.expires_at > {{}}) {' '.join(where)}",
        address,
        now,
        *args,
    )
    return int(row["sessions"])


async def forget_usage(before: date, limit: int) -> None:
    """Drop some usage of days before."""
    # Looked for first: a statement that writes has to wait for its turn on SQLite.
    found = await AddressUsage.raw("SELECT address FROM address_usage WHERE day < {} LIMIT {}", before, limit)
    if some := sorted({row["address"] for row in found}):
        marks = ", ".join(["{}"] * len(some))
        await AddressUsage.raw(f"DELETE FROM address_usage WHERE address IN ({marks}) AND day < {{}}", *some, before)  # noqa: S608

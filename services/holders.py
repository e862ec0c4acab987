"""Under whom slots, quotas and budgets are counted: an owner, and for guests the network addresses too.

A guest is a cookie, and a cookie is thrown away in a moment. So what guests hold and use counts for their address as
well: one address has what one guest has, and the IPv6 networks around it have several times that. It stays there when a
guest signs in; only the open sessions go along with the account.
"""

from datetime import date, datetime
from typing import Protocol
from uuid import UUID

import msgspec

from db import addresses
from db.db_session import DbSession
from db.tables import Turn
from services.actor import Actor


class Holder(Protocol):
    """Somebody or something that limits are counted under."""

    @property
    def share(self) -> int:
        """How many times the limits of the group hold."""

    @property
    def shared(self) -> bool:
        """Whether several are counted together."""

    async def running_turns(self, now: datetime, db_session: DbSession) -> int: ...

    async def reserved(self, now: datetime, db_session: DbSession) -> tuple[int, int]:
        """Tokens and nano-money that running turns hold."""

    async def lapsed_turns(self, now: datetime, db_session: DbSession) -> list[Turn]:
        """Turns whose use is not booked yet, though their worker is gone."""

    async def used(self, first: date, end: date, db_session: DbSession) -> tuple[int, int]:
        """Tokens and nano-money of ended turns from the day `first` on, before the day `end`."""

    async def open_sessions(
        self, now: datetime, active_after: datetime | None, created_after: datetime | None, db_session: DbSession
    ) -> int: ...


class Owner(msgspec.Struct, frozen=True):
    """An account, or one guest."""

    id: UUID
    share: int = 1
    shared: bool = False

    async def running_turns(self, now: datetime, db_session: DbSession) -> int:
        return await db_session.count_running_turns(now, owner_id=self.id)

    async def reserved(self, now: datetime, db_session: DbSession) -> tuple[int, int]:
        return await db_session.reserved_of(self.id, now)

    async def lapsed_turns(self, now: datetime, db_session: DbSession) -> list[Turn]:
        return await db_session.list_lapsed_turns_of(self.id, now)

    async def used(self, first: date, end: date, db_session: DbSession) -> tuple[int, int]:
        return await db_session.usage_between(self.id, first, end)

    async def open_sessions(
        self, now: datetime, active_after: datetime | None, created_after: datetime | None, db_session: DbSession
    ) -> int:
        return await db_session.count_open_sessions(self.id, now, active_after, created_after)


class Address(msgspec.Struct, frozen=True):
    """All guests at a network address, or in a network."""

    key: str
    share: int
    shared: bool = True

    async def running_turns(self, now: datetime, db_session: DbSession) -> int:
        return await addresses.count_running_turns(self.key, now)

    async def reserved(self, now: datetime, db_session: DbSession) -> tuple[int, int]:
        return await addresses.reserved(self.key, now)

    async def lapsed_turns(self, now: datetime, db_session: DbSession) -> list[Turn]:
        found = [await db_session.find_turn(id) for id in await addresses.list_lapsed_turns(self.key, now)]
        return [turn for turn in found if turn is not None]

    async def used(self, first: date, end: date, db_session: DbSession) -> tuple[int, int]:
        return await addresses.usage_between(self.key, first, end)

    async def open_sessions(
        self, now: datetime, active_after: datetime | None, created_after: datetime | None, db_session: DbSession
    ) -> int:
        return await addresses.count_open_sessions(self.key, now, active_after, created_after)


def holders_of(owner_id: UUID, actor: Actor) -> tuple[Holder, ...]:
    """The owner, and where a guest asks its addresses."""
    return (Owner(owner_id), *(Address(key, share) for key, share in actor.addresses))


def locks_of(owner_id: UUID, actor: Actor) -> list[str]:
    """What is locked while something is counted under them, in one order everywhere."""
    return [f"owner:{owner_id}", *sorted(f"address:{key}" for key, _ in actor.addresses)]

"""What holds now: the catalogue and each group's policies, as their rows say at this moment."""

from datetime import date, datetime, tzinfo
from typing import Any

from db.db_session import DbSession
from services.catalogue import EVERYBODY, Catalogue
from services.policies import DEFAULT_LIMITS, RATES, Policies, parse_count, parse_zone


class Rules:
    """The catalogue and the policies of every group, read once for one decision."""

    def __init__(
        self, models: list[dict[str, Any]], groups: list[dict[str, Any]], limits: list[dict[str, Any]]
    ) -> None:
        self.catalogue = Catalogue(models, groups)
        self._limits: dict[str, dict[str, str]] = {name: dict(values) for name, values in DEFAULT_LIMITS.items()}
        for row in limits:
            self._limits.setdefault(row["group_name"], {})[row["name"]] = row["value"]
        self._policies: dict[str, Policies] = {}

    @classmethod
    async def now(cls, db_session: DbSession) -> "Rules":
        return cls(*await db_session.rules())

    def policies_of(self, group: str) -> Policies:
        """A group's limits; one that sets none has those of `user`."""
        if group not in self._policies:
            self._policies[group] = Policies.parse({**self._limits["user"], **self._limits.get(group, {})}, self.zone)
        return self._policies[group]

    @property
    def zone(self) -> tzinfo:
        """The time zone in which days and months begin."""
        return parse_zone(self._limits[EVERYBODY]["time_zone"])

    def day_of(self, now: datetime) -> date:
        """The day in whose budget `now` falls."""
        return now.astimezone(self.zone).date()

    def ends(self, now: datetime) -> dict[str, tuple[datetime | None, datetime | None]]:
        """For each group, and "" for any other: what a session's last activity and creation must lie behind to live."""
        lifetimes = {name: self.policies_of(name).lifetime for name in ("", *self._limits) if name != EVERYBODY}
        return {
            name: (now - one.idle if one.idle else None, now - one.absolute if one.absolute else None)
            for name, one in lifetimes.items()
        }

    @property
    def windows_us(self) -> dict[str, int]:
        """For each rate the longest that one of its buckets takes to fill, in any group."""
        policies = [self.policies_of(name) for name in self._limits if name != EVERYBODY]
        return {name: max(getattr(one, name).window_us for one in policies) for name in RATES}

    @property
    def concurrent_turns(self) -> int:
        """Turns at once on the whole instance; 0 for no limit."""
        return parse_count(self._limits[EVERYBODY]["concurrent_turns"])

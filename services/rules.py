"""What holds now: the catalogue and each group's policies, as their rows say at this moment."""

from datetime import datetime
from typing import Any, Literal

import msgspec

from db.db_session import DbSession
from db.tables import AccountGroup, LimitRule, Model
from services.actor import SYSTEM
from services.catalogue import EVERYBODY, Catalogue, ModelConfig
from services.policies import DEFAULT_LIMITS, Policies, nanos, parse_count


class GroupConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `[groups.NAME]` table of the configuration; None keeps the default."""

    default_model: str | None = None
    on_missing_model: Literal["fallback", "block"] = "fallback"
    sessions_created: str | None = None
    turns: str | None = None
    switches: str | None = None
    concurrent_turns: int | None = None
    open_sessions: int | None = None
    tokens_per_day: int | None = None
    money_per_month: float | None = None
    idle: str | None = None
    absolute: str | None = None

    def limits(self) -> dict[str, str]:
        """The limits it sets, as `limit_rule` values."""
        return {name: str(value) for name in DEFAULT_LIMITS["user"] if (value := getattr(self, name)) is not None}


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
            self._policies[group] = Policies.parse({**self._limits["user"], **self._limits.get(group, {})})
        return self._policies[group]

    def ends(self, now: datetime) -> dict[str, tuple[datetime | None, datetime | None]]:
        """For each group, and "" for any other: what a session's last activity and creation must lie behind to live."""
        lifetimes = {name: self.policies_of(name).lifetime for name in ("", *self._limits) if name != EVERYBODY}
        return {
            name: (now - one.idle if one.idle else None, now - one.absolute if one.absolute else None)
            for name, one in lifetimes.items()
        }

    @property
    def concurrent_turns(self) -> int:
        """Turns at once on the whole instance; 0 for no limit."""
        return parse_count(self._limits[EVERYBODY]["concurrent_turns"])


async def apply_config(
    models: list[ModelConfig],
    groups: dict[str, GroupConfig],
    default_model: str | None,
    now: datetime,
    db_session: DbSession,
) -> None:
    """Write the configuration into the catalogue and the limits, once changed; what an admin has set since stays."""
    async with db_session.transaction():
        await db_session.lock("configuration")
        before = await db_session.rules()
        for position, model in enumerate(models):
            await db_session.put_model(_row_of(model, position))
        await db_session.disable_models_except([model.id for model in models], "It is no longer in the configuration.")
        instance = msgspec.structs.replace(groups.get(EVERYBODY, GroupConfig()), default_model=default_model)
        groups = {"guest": GroupConfig(), "user": GroupConfig(), "admin": GroupConfig(), **groups, EVERYBODY: instance}
        kept = set()
        for name, group in groups.items():
            await db_session.put_group(
                AccountGroup(
                    name=name,
                    default_model=group.default_model,
                    on_missing_model=group.on_missing_model,
                    set_by="config",
                )
            )
            for limit, value in {**DEFAULT_LIMITS.get(name, {}), **group.limits()}.items():
                kept.add((name, limit))
                await db_session.put_limit(LimitRule(group_name=name, name=limit, value=value, set_by="config"))
        await db_session.forget_limits_except(kept)
        db_session.forget_rules()
        if await db_session.rules() != before:
            await db_session.record("configuration_applied", SYSTEM, now)


def _row_of(model: ModelConfig, position: int) -> Model:
    return Model(
        id=model.id,
        provider=model.provider,
        upstream=model.upstream or model.id,
        label=model.label or model.id,
        state=model.state,
        state_reason=model.state_reason,
        replacement=model.replacement,
        aliases=" ".join(model.aliases),
        group_names=" ".join(model.groups),
        context_tokens=model.context_tokens,
        max_reply_tokens=model.max_reply_tokens,
        price_in_nanos=nanos(model.price_in) // 1_000_000,
        price_out_nanos=nanos(model.price_out) // 1_000_000,
        concurrent_turns=model.concurrent_turns,
        position=position,
        set_by="config",
    )

"""What `turnkeeper.toml` says about models and groups, written into the rows that hold at run time."""

from datetime import datetime
from typing import Literal

import msgspec

from db.db_session import DbSession
from db.tables import AccountGroup, LimitRule, Model
from services.actor import SYSTEM
from services.catalogue import EVERYBODY, ModelConfig
from services.policies import DEFAULT_LIMITS, nanos


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

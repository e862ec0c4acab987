"""What `turnkeeper.toml` says about models and groups, written into the rows that hold at run time."""

from datetime import datetime
from typing import Any, Literal

import msgspec

from db.db_session import DbSession
from db.tables import AccountGroup, LimitRule, Model
from services.actor import SYSTEM, Actor
from services.catalogue import EVERYBODY, ModelConfig
from services.changes import CONFIG, GOVERNED, RuleRows, changes_of, keyed
from services.policies import DEFAULT_LIMITS, nanos

#: the table of each kind of rule
TABLES: dict[str, type[Model] | type[AccountGroup] | type[LimitRule]] = {
    "model": Model,
    "group": AccountGroup,
    "limit": LimitRule,
}
#: why a model serves no more that the configuration does not name
GONE = "It is no longer in the configuration."
RENAMED = "It goes by another name now."


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
    tokens_per_month: int | None = None
    money_per_day: float | None = None
    money_per_month: float | None = None
    idle: str | None = None
    absolute: str | None = None

    def limits(self) -> dict[str, str]:
        """The limits it sets, as `limit_rule` values."""
        return {name: str(value) for name in DEFAULT_LIMITS["user"] if (value := getattr(self, name)) is not None}


class InstanceConfig(GroupConfig, frozen=True):
    """What holds for the instance as a whole: the group `*`."""

    time_zone: str = "UTC"

    def limits(self) -> dict[str, str]:
        return {**super().limits(), "time_zone": self.time_zone}


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
        before = keyed(await db_session.rules())
        after = _kept(before, configured(models, groups, default_model))
        await write(before, after, SYSTEM, now, db_session, told=bool(before))
        if not before:
            await db_session.record("configuration_applied", SYSTEM, now)


async def write(
    before: RuleRows,
    after: RuleRows,
    actor: Actor,
    now: datetime,
    db_session: DbSession,
    *,
    reason: str = "",
    told: bool = True,
) -> None:
    """Write the rows that differ, and tell the journal of each in the same transaction."""
    for change in changes_of(before, after):
        table = TABLES[change.key[0]]
        if change.before is not None:
            await db_session.drop_rule(table(**change.before))
        if change.after is not None:
            await db_session.add(table(**change.after))
        if told and change.is_told:
            from_value, to_value = change.told(change.before), change.told(change.after)
            await db_session.record(change.what, actor, now, reason=reason, from_value=from_value, to_value=to_value)
    db_session.forget_rules()


def configured(models: list[ModelConfig], groups: dict[str, GroupConfig], default_model: str | None) -> RuleRows:
    """The rows that the configuration asks for."""
    instance = msgspec.structs.replace(groups.get(EVERYBODY, GroupConfig()), default_model=default_model)
    groups = {"guest": GroupConfig(), "user": GroupConfig(), "admin": GroupConfig(), **groups, EVERYBODY: instance}
    rows: RuleRows = {("model", model.id): _row_of(model, position) for position, model in enumerate(models)}
    for name, group in groups.items():
        rows["group", name] = {
            "name": name,
            "default_model": group.default_model,
            "on_missing_model": group.on_missing_model,
            "set_by": CONFIG,
        }
        for limit, value in {**DEFAULT_LIMITS.get(name, {}), **group.limits()}.items():
            rows["limit", name, limit] = {"group_name": name, "name": limit, "value": value, "set_by": CONFIG}
    return rows


def _kept(before: RuleRows, wanted: RuleRows) -> RuleRows:
    """What the configuration asks for, with what admins have set over it."""
    after = dict(wanted)
    for key, row in before.items():
        kind, by_admin = key[0], row["set_by"] != CONFIG
        if by_admin and key in wanted:
            governed = {name: row[name] for name in (*GOVERNED[kind], "set_by")}
            after[key] = {**wanted[key], **governed}
        elif kind == "model" and key not in wanted:
            after[key] = _gone(row, wanted)
        elif by_admin:
            after[key] = row
    return after


def _gone(row: dict[str, Any], wanted: RuleRows) -> dict[str, Any]:
    """The row of a model that the configuration no longer names; what it was called may be another's name now."""
    named = {name: key[1] for key, one in wanted.items() if key[0] == "model" for name in one["aliases"].split()}
    row = {**row, "aliases": " ".join(alias for alias in row["aliases"].split() if alias not in named)}
    if row["set_by"] != CONFIG and row["state"] in ("retired", "disabled"):
        return row
    if row["id"] in named:
        renamed = {"state": "retired", "state_reason": RENAMED, "replacement": named[row["id"]]}
        return {**row, **renamed, "set_by": CONFIG}
    return {**row, "state": "disabled", "state_reason": GONE, "set_by": CONFIG}


def _row_of(model: ModelConfig, position: int) -> dict[str, Any]:
    return {
        "id": model.id,
        "provider": model.provider,
        "upstream": model.upstream or model.id,
        "label": model.label or model.id,
        "state": model.state,
        "state_reason": model.state_reason,
        "replacement": model.replacement,
        "aliases": " ".join(model.aliases),
        "group_names": " ".join(model.groups),
        "context_tokens": model.context_tokens,
        "max_reply_tokens": model.max_reply_tokens,
        "price_in_nanos": nanos(model.price_in) // 1_000_000,
        "price_out_nanos": nanos(model.price_out) // 1_000_000,
        "concurrent_turns": model.concurrent_turns,
        "position": position,
        "set_by": CONFIG,
    }

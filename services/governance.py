"""Governance: what admins decide about models, groups and limits while it runs.

The rows are read for each call, so a change holds from the next one on, in every process. What an admin has set stays
over a restart, and can be given back to the configuration. An open page learns of it at its next heartbeat.
"""

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import msgspec

from db.db_session import DbSession
from db.tables import Journal
from services.actor import SYSTEM, Actor, require_admin
from services.catalogue import EVERYBODY, Entry, GroupDefaults
from services.changes import CONFIG, Key, RuleRows, keyed
from services.configuration import write
from services.errors import InvalidRequest
from services.names import checked_name, look_alike
from services.policies import DEFAULT_LIMITS, check_rule
from services.text import REASON_CHARACTERS, checked_line, listed
from services.unit_of_work import UnitOfWork

State = Literal["active", "deprecated", "retired", "disabled"]
#: states that take a model away from people who use it
OUT_OF_USE = ("retired", "disabled")
NAME_CHARACTERS = 60
VALUE_CHARACTERS = 40
#: decisions that a page lists
RECENT = 30
#: changes of state that are looked through for when a model came into its own
STATE_CHANGES = 1000
MOST = 1_000_000_000


class GovernedModel(msgspec.Struct, frozen=True):
    """One model, with who has set it and since when its state is what it is."""

    entry: Entry
    #: an admin's name; None for the configuration
    set_by: str | None
    #: the decision that gave it its state; None where that was the first configuration
    since: Journal | None


class GovernedLimit(msgspec.Struct, frozen=True):
    """One limit of a group as it stands."""

    name: str
    #: as it is written: "10/min burst 5"
    value: str
    #: an admin's name; None for the configuration
    set_by: str | None
    #: the group has none of its own and follows `user`
    inherited: bool
    #: what the configuration says, where an admin said otherwise
    configured: str


class LimitSet(msgspec.Struct, frozen=True):
    """A limit that was set: what it was and is, and which other groups follow it."""

    group: str
    limit: str
    before: str
    value: str
    #: groups that have none of their own, so that it changes for them too
    followed_by: list[str]


class GovernedGroup(msgspec.Struct, frozen=True):
    """One group; `*` is the server as a whole."""

    name: str
    defaults: GroupDefaults
    set_by: str | None
    limits: list[GovernedLimit]


class Governance:
    """The verbs of admins about the rules themselves."""

    def __init__(self, units: UnitOfWork, configured: RuleRows, now: Callable[[], datetime]) -> None:
        self._units = units
        #: what the configuration of this process asks for
        self._configured = configured
        self.now = now

    # ------------------------------------------------------------ reading

    async def models(self, db_session: DbSession, *, actor: Actor) -> list[GovernedModel]:
        """Every model. Raises Forbidden."""
        require_admin(actor)
        rows = keyed(await db_session.rules())
        names, since = await _setters(rows, db_session), await self.since(db_session)
        return [
            GovernedModel(Entry.of(row), names.get(row["set_by"]), since.get(row["id"]))
            for key, row in rows.items()
            if key[0] == "model"
        ]

    async def since(self, db_session: DbSession) -> dict[str, Journal]:
        """{model: the decision that gave it its state}; without those still in their first one."""
        found: dict[str, Journal] = {}
        for row in await db_session.list_rule_changes(STATE_CHANGES, of_state=True):
            model, _, told = (row.to_value or "").partition(": ")
            if told.startswith("state ") and row.from_value != row.to_value:
                found.setdefault(model, row)
        return found

    async def groups(self, db_session: DbSession, *, actor: Actor) -> list[GovernedGroup]:
        """Every group with its limits, the server last. Raises Forbidden."""
        require_admin(actor)
        rows = keyed(await db_session.rules())
        names = await _setters(rows, db_session)
        groups = [row for key, row in rows.items() if key[0] == "group"]
        return [
            GovernedGroup(
                row["name"],
                GroupDefaults(row["default_model"], row["on_missing_model"]),
                names.get(row["set_by"]),
                [self._limit(row["name"], limit, rows, names) for limit in limits_of(row["name"])],
            )
            for row in sorted(groups, key=lambda row: (row["name"] == EVERYBODY, row["name"]))
        ]

    async def changes(self, db_session: DbSession, *, actor: Actor) -> list[Journal]:
        """The latest decisions about models, groups, limits and moves. Raises Forbidden."""
        require_admin(actor)
        return await db_session.list_rule_changes(RECENT)

    # ------------------------------------------------------------ models

    async def set_model(
        self,
        model_id: str,
        db_session: DbSession,
        *,
        actor: Actor,
        state: State | msgspec.UnsetType = msgspec.UNSET,
        state_reason: str | msgspec.UnsetType = msgspec.UNSET,
        replacement: str | msgspec.UnsetType | None = msgspec.UNSET,
        groups: list[str] | msgspec.UnsetType = msgspec.UNSET,
        concurrent_turns: int | msgspec.UnsetType = msgspec.UNSET,
        reason: str = "",
        key: str | None = None,
    ) -> None:
        """Change a model; what is left out stays. No groups are all of them. Raises Forbidden, InvalidRequest.

        A new state without a `state_reason` has none; to take a model out of use needs a `state_reason` or a `reason`.
        """
        asked = _given(
            state=state,
            state_reason=state_reason,
            replacement=replacement,
            groups=groups,
            concurrent_turns=concurrent_turns,
        )

        told = state_reason.strip() if state_reason is not msgspec.UNSET else ""

        def change(rows: RuleRows) -> None:
            before = _require_model(model_id, rows)["state"]
            row = rows["model", model_id] = {**_require_model(model_id, rows), "set_by": _kept_as(actor)}
            if state is not msgspec.UNSET:
                row["state_reason"] = row["state_reason"] if state == row["state"] else ""
                row["state"] = state
            if state_reason is not msgspec.UNSET:
                row["state_reason"] = checked_line(state_reason, REASON_CHARACTERS, "state_reason")
            if replacement is not msgspec.UNSET:
                row["replacement"] = _id_of(replacement, "replacement", rows) if replacement else None
                _check_chain(model_id, rows)
            if groups is not msgspec.UNSET:
                row["group_names"] = _checked_groups(groups, rows)
            if concurrent_turns is not msgspec.UNSET:
                if not 0 <= concurrent_turns <= MOST:
                    raise InvalidRequest("This is no number of replies.", field="concurrent_turns")
                row["concurrent_turns"] = concurrent_turns
            if row["state"] != before and row["state"] in OUT_OF_USE and not (told or reason.strip()):
                text = "Please give a reason; people who use this model will see it."
                raise InvalidRequest(text, field="state_reason")

        await self._change("set_model", key, (model_id, asked), change, actor, reason or told, db_session)

    async def restore_model(
        self, model_id: str, db_session: DbSession, *, actor: Actor, reason: str = "", key: str | None = None
    ) -> None:
        """Give a model back to the configuration. Raises Forbidden, InvalidRequest."""

        def change(rows: RuleRows) -> None:
            _require_model(model_id, rows)
            if ("model", model_id) not in self._configured:
                raise InvalidRequest("The configuration does not name this model.", field="model")
            self._restore(("model", model_id), rows)

        await self._change("restore_model", key, model_id, change, actor, reason, db_session)

    # ------------------------------------------------------------ groups and limits

    async def set_group(
        self,
        name: str,
        db_session: DbSession,
        *,
        actor: Actor,
        default_model: str | msgspec.UnsetType | None = msgspec.UNSET,
        on_missing_model: Literal["fallback", "block"] | msgspec.UnsetType = msgspec.UNSET,
        reason: str = "",
        key: str | None = None,
    ) -> None:
        """Change a group or make one; what is left out stays. Raises Forbidden, InvalidRequest."""
        async with self._units.refusing("set_group", actor, db_session):
            name = checked_line(name, NAME_CHARACTERS, "group")
            if listed(name) != [name]:
                raise InvalidRequest("The name of a group is one word.", field="group")
        asked = _given(default_model=default_model, on_missing_model=on_missing_model)

        def change(rows: RuleRows) -> None:
            if ("group", name) not in rows:
                _require_distinct(name, rows)
            known = rows.get(("group", name)) or {"default_model": None, "on_missing_model": "fallback"}
            row = rows["group", name] = {**known, "name": name, "set_by": _kept_as(actor)}
            if default_model is not msgspec.UNSET:
                row["default_model"] = _default_of(name, default_model, rows) if default_model else None
            if on_missing_model is not msgspec.UNSET:
                row["on_missing_model"] = on_missing_model

        await self._change("set_group", key, (name, asked), change, actor, reason, db_session)

    async def restore_group(
        self, name: str, db_session: DbSession, *, actor: Actor, reason: str = "", key: str | None = None
    ) -> None:
        """Give a group back to the configuration, but for its limits. One that an admin made and that has none goes.

        Raises Forbidden, InvalidRequest.
        """

        def change(rows: RuleRows) -> None:
            _require_group(name, rows)
            self._restore(("group", name), rows)
            if ("group", name) not in rows and any(key[:2] == ("limit", name) for key in rows):
                raise InvalidRequest("Give back its limits first; then the group can go.", field="group")

        await self._change("restore_group", key, name, change, actor, reason, db_session)

    async def set_limit(
        self,
        group: str,
        name: str,
        value: str | None,
        db_session: DbSession,
        *,
        actor: Actor,
        reason: str = "",
        key: str | None = None,
    ) -> LimitSet:
        """Set one limit of a group, written as in the configuration; None gives it back to that.

        Raises Forbidden, InvalidRequest.
        """
        async with self._units.refusing("set_limit", actor, db_session):
            value = _checked_value(group, name, value) if value is not None else None
        before: list[str] = []

        def change(rows: RuleRows) -> None:
            _require_group(group, rows)
            if name not in limits_of(group):
                there = ", ".join(limits_of(group))
                raise InvalidRequest(f"There is no limit “{name[:80]}” here. There are {there}.", field="limit")
            before.append(self._limit(group, name, rows, {}).value)
            self._restore(("limit", group, name), rows)
            if value is not None:
                row = {"group_name": group, "name": name, "value": value, "set_by": _kept_as(actor)}
                rows["limit", group, name] = row

        await self._change("set_limit", key, (group, name, value), change, actor, reason, db_session)
        rows = keyed(await db_session.rules())
        now = self._limit(group, name, rows, {}).value
        # A repeated key changes nothing, so that there is no other value before.
        return LimitSet(group, name, before[0] if before else now, now, _followers(group, name, rows))

    # ------------------------------------------------------------ parts of verbs

    async def _change(
        self,
        verb: str,
        key: str | None,
        asked: object,
        change: Callable[[RuleRows], None],
        actor: Actor,
        reason: str,
        db_session: DbSession,
    ) -> None:
        """Change the rows, one admin at a time; what differs is written and told. Raises Forbidden."""
        async with self._units.refusing(verb, actor, db_session):
            reason = checked_line(reason, REASON_CHARACTERS, "reason")
        async with self._units.once(verb, key, (asked, reason), actor, db_session) as once:
            require_admin(actor)
            if once.answer:
                return
            await db_session.lock("configuration")
            before = keyed(await db_session.rules())
            after = dict(before)
            change(after)
            await write(before, after, actor, self.now(), db_session, reason=reason)

    def _restore(self, key: Key, rows: RuleRows) -> None:
        rows.pop(key, None)
        if key in self._configured:
            rows[key] = self._configured[key]

    def _limit(self, group: str, name: str, rows: RuleRows, names: dict[str, str]) -> GovernedLimit:
        own, configured = rows.get(("limit", group, name)), self._configured.get(("limit", group, name))
        shown = own or rows.get(("limit", "user", name))
        return GovernedLimit(
            name,
            shown["value"] if shown is not None else DEFAULT_LIMITS["user"][name],
            names.get(own["set_by"]) if own is not None else None,
            own is None,
            configured["value"] if configured is not None else "",
        )


def limits_of(group: str) -> list[str]:
    """The limits that a group can have; the server as a whole has fewer."""
    return list(DEFAULT_LIMITS[EVERYBODY if group == EVERYBODY else "user"])


def _followers(group: str, name: str, rows: RuleRows) -> list[str]:
    """Groups without a limit of their own, which have that of `user`."""
    if group != "user":
        return []
    groups = (key[1] for key in rows if key[0] == "group" and key[1] not in ("user", EVERYBODY))
    return sorted(one for one in groups if ("limit", one, name) not in rows)


async def _setters(rows: RuleRows, db_session: DbSession) -> dict[str, str]:
    """{set_by: the admin's name}; nothing for the configuration."""
    ids = {row["set_by"] for row in rows.values()} - {CONFIG}
    accounts = await db_session.list_accounts(UUID(id) for id in ids if _is_id(id))
    return {id: id for id in ids} | {str(SYSTEM.id): SYSTEM.name} | {str(id): one.name for id, one in accounts.items()}


def _kept_as(actor: Actor) -> str:
    """Who sets a rule: an account by its id, an operator by name, since all of them have the id of the system."""
    return actor.name if actor.kind == "system" else str(actor.id)


def _is_id(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f-]{36}", text) is not None


def _given(**fields: object) -> dict[str, object]:
    """Those that were given."""
    return {name: value for name, value in fields.items() if value is not msgspec.UNSET}


def _require_model(model_id: str, rows: RuleRows) -> dict[str, Any]:
    """Raise InvalidRequest unless the model is there."""
    if ("model", model_id) not in rows:
        raise InvalidRequest(f"There is no model “{model_id[:80]}”.", field="model")
    return rows["model", model_id]


def _require_group(name: str, rows: RuleRows) -> None:
    """Raise InvalidRequest unless the group is there."""
    if ("group", name) not in rows:
        raise InvalidRequest(f"There is no group “{name[:80]}”.", field="group")


def _require_distinct(name: str, rows: RuleRows) -> None:
    """Raise InvalidRequest where a new group would be taken for one that is there."""
    checked_name(name, field="group")
    if other := next((key[1] for key in rows if key[0] == "group" and look_alike(key[1], name)), None):
        raise InvalidRequest(f"“{name}” looks like the group “{other}”. Choose another name.", field="group")


def _id_of(name: str, field: str, rows: RuleRows) -> str:
    """The model behind an id or an alias. Raises InvalidRequest."""
    models = {key[1]: row for key, row in rows.items() if key[0] == "model"}
    found = [name] if name in models else [id for id, row in models.items() if name in row["aliases"].split()]
    if not found:
        raise InvalidRequest(f"There is no model “{name[:80]}”.", field=field)
    return found[0]


def _check_chain(model_id: str, rows: RuleRows) -> None:
    """Raise InvalidRequest where a model would replace itself, directly or through others."""
    seen, following = {model_id}, rows["model", model_id]["replacement"]
    while following is not None and ("model", following) in rows:
        if following == model_id:
            raise InvalidRequest("A model cannot be replaced by itself, nor through others.", field="replacement")
        if following in seen:
            return
        seen.add(following)
        following = rows["model", following]["replacement"]


def _default_of(group: str, name: str, rows: RuleRows) -> str:
    """The id of a model that can be a group's default. Raises InvalidRequest."""
    found = _id_of(name, "default_model", rows)
    if group != EVERYBODY and not Entry.of(rows["model", found]).open_to(group):
        raise InvalidRequest(f"This group may not use “{found}”.", field="default_model")
    return found


def _checked_groups(groups: list[str], rows: RuleRows) -> str:
    """Groups as a model's row keeps them. Raises InvalidRequest."""
    for group in groups:
        if ("group", group) not in rows or group == EVERYBODY:
            raise InvalidRequest(f"There is no group “{group[:80]}”.", field="groups")
    return " ".join(dict.fromkeys(groups))


def _checked_value(group: str, limit: str, value: str) -> str:
    """A limit as it may be stored. Raises InvalidRequest."""
    value = checked_line(value, VALUE_CHARACTERS, "value")
    if limit in limits_of(group):
        try:
            check_rule(limit, value, group)
        except ValueError as error:
            told = str(error)
            raise InvalidRequest(f"{told[:1].upper()}{told[1:]}.", field="value") from error
    if re.search(r"\d{16}", value):
        raise InvalidRequest("This is more than can be counted.", field="value")
    return value

"""Which models may be used: a snapshot of the `model` and `account_group` rows, and the questions asked of it."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import msgspec

from services.actor import Actor
from services.errors import ModelDisabled, ModelRetired, UnknownModel

EVERYBODY = "*"

Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]
Price = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `[[models]]` entry of the configuration."""

    id: str
    provider: str
    #: the name the provider is asked for; default: `id`
    upstream: str = ""
    label: str = ""
    state: Literal["active", "deprecated", "retired", "disabled"] = "active"
    #: shown with a state that is not active: why, and until when
    state_reason: str = ""
    replacement: str | None = None
    aliases: list[str] = []
    #: groups that may use it; empty for everybody
    groups: list[str] = []
    context_tokens: Count = 0
    max_reply_tokens: Count = 0
    #: money per million tokens
    price_in: Price = 0.0
    price_out: Price = 0.0
    #: turns at once over all sessions; 0 for no limit
    concurrent_turns: Count = 0


class Entry(msgspec.Struct, frozen=True):
    """One model of the catalogue."""

    id: str
    provider: str
    upstream: str
    label: str
    state: str
    state_reason: str
    replacement: str | None
    aliases: tuple[str, ...]
    groups: tuple[str, ...]
    context_tokens: int
    max_reply_tokens: int
    price_in_nanos: int
    price_out_nanos: int
    concurrent_turns: int

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Entry":
        """From a `model` row."""
        return cls(
            **{name: row[name] for name in cls.__struct_fields__ if name not in ("aliases", "groups")},
            aliases=tuple(row["aliases"].split()),
            groups=tuple(row["group_names"].split()),
        )

    @property
    def serves(self) -> bool:
        """Whether its state lets it answer; a deprecated model still does."""
        return self.state in ("active", "deprecated")

    def open_to(self, group: str) -> bool:
        return not self.groups or group in self.groups


class GroupDefaults(msgspec.Struct, frozen=True):
    """What a group's sessions use when nothing else is said."""

    default_model: str | None = None
    on_missing_model: str = "fallback"


class CurrentModel(msgspec.Struct, frozen=True):
    """The answer to "which model is in use", with its reason."""

    #: None where nothing is usable
    id: str | None
    #: session · replacement · fallback · default · none; of a turn also asked: named with the message
    source: str
    usable: bool
    #: a sentence
    reason: str
    #: the model asked for, where it is another
    wanted: str | None = None


class Catalogue:
    """A snapshot of what may be used; hidden models do not exist for those they are hidden from."""

    def __init__(self, models: Iterable[Mapping[str, Any]], groups: Iterable[Mapping[str, Any]]) -> None:
        self.entries = {row["id"]: Entry.of(row) for row in models}
        self._names: dict[str, str] = {}
        # Of two that claim a name the one that serves has it, and then the one whose id it is.
        for entry in sorted(self.entries.values(), key=lambda entry: entry.serves):
            self._names.update(dict.fromkeys(entry.aliases, entry.id))
        self._names.update({entry.id: entry.id for entry in self.entries.values() if entry.serves})
        self._names = {name: name for name in self.entries} | self._names
        self._groups = {row["name"]: GroupDefaults(row["default_model"], row["on_missing_model"]) for row in groups}

    def visible_to(self, actor: Actor) -> list[Entry]:
        """What `actor` may know of, in the configured order."""
        return [self._seen_by(actor, entry) for entry in self.entries.values() if _known_to(actor, entry)]

    def find(self, name: str | None, group: str) -> Entry | None:
        """The model behind a name or alias, if `group` may use it."""
        return self.find_id(self.id_of(name or ""), group)

    def find_id(self, id: str, group: str) -> Entry | None:
        """The very model that has this id, if `group` may use it."""
        entry = self.entries.get(id)
        return entry if entry is not None and entry.open_to(group) else None

    def id_of(self, name: str) -> str:
        """The id behind a name or alias; empty where there is none."""
        return self._names.get(name, "")

    def require(self, name: str, actor: Actor) -> Entry:
        """The model behind a name or alias. Raises UnknownModel, ModelDisabled, ModelRetired."""
        entry = self.entries.get(self._names.get(name, ""))
        if entry is None or not _known_to(actor, entry):
            raise UnknownModel(f"There is no model “{name[:80]}”.")
        entry = self._seen_by(actor, entry)
        if entry.state == "disabled":
            raise ModelDisabled(f"“{entry.label}” is switched off.", replacement=entry.replacement)
        if entry.state == "retired":
            raise ModelRetired(f"“{entry.label}” is retired.", replacement=entry.replacement)
        return entry

    def _seen_by(self, actor: Actor, entry: Entry) -> Entry:
        """An entry that names no replacement the actor may not know of."""
        following = self.entries.get(self._names.get(entry.replacement or "", ""))
        if following is None or _known_to(actor, following):
            return entry
        return msgspec.structs.replace(entry, replacement=None)

    def cost_nanos(self, model: str, prompt_tokens: int, reply_tokens: int) -> int:
        """What so many tokens of a model cost, in nano-money; nothing where it is no longer known."""
        entry = self.entries.get(model)
        return 0 if entry is None else prompt_tokens * entry.price_in_nanos + reply_tokens * entry.price_out_nanos

    def replacement_of(self, entry: Entry, group: str) -> Entry | None:
        """The first usable model along the chain of replacements."""
        seen = {entry.id}
        following = self.find(entry.replacement, group)
        while following is not None and following.id not in seen:
            if following.serves:
                return following
            seen.add(following.id)
            following = self.find(following.replacement, group)
        return None

    def defaults_of(self, group: str) -> GroupDefaults:
        return self._groups.get(group, GroupDefaults())

    @property
    def instance(self) -> GroupDefaults:
        return self.defaults_of(EVERYBODY)


def _known_to(actor: Actor, entry: Entry) -> bool:
    return actor.is_admin or entry.open_to(actor.group)

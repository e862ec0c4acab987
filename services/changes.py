"""What a change of the rules is, in words: models, groups and limits as rows before and after."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from services.catalogue import EVERYBODY

#: ("model", id) · ("group", name) · ("limit", group, name)
Key = tuple[str, ...]
#: every row of the rules
RuleRows = dict[Key, dict[str, Any]]
#: who has set a row that no admin has
CONFIG = "config"
#: what an admin sets; the rest of a row is always the configuration's
GOVERNED = {
    "model": ("state", "state_reason", "replacement", "group_names", "concurrent_turns"),
    "group": ("default_model", "on_missing_model"),
    "limit": ("value",),
}


class Change(msgspec.Struct, frozen=True):
    """One row that is not what it was."""

    key: Key
    before: dict[str, Any] | None
    after: dict[str, Any] | None

    @property
    def what(self) -> str:
        """Its name in the journal."""
        return f"{self.key[0]}_changed"

    @property
    def is_told(self) -> bool:
        """Whether more has changed than the order of lists."""
        return self.told(self.before) != self.told(self.after) or self._setter(self.before) != self._setter(self.after)

    def told(self, row: dict[str, Any] | None) -> str | None:
        """One side of it in words: "user turns: 30/min burst 10", "fast: state retired, replacement smart"."""
        if self.key[0] == "limit":
            _, group, name = self.key
            whose = "server" if group == EVERYBODY else group
            return f"{whose} {name.replace('_', ' ')}: {row['value'] if row is not None else 'as in user'}"
        if row is None:
            return None
        words = WORDS[self.key[0]]
        changed = [name for name in words if self._differs(name)] or list(words)[:1]
        title = "server" if self.key[1] == EVERYBODY else " ".join(self.key) if self.key[0] == "group" else self.key[1]
        return f"{title}: {', '.join(words[name](row[name]) for name in changed)}"

    def _differs(self, name: str) -> bool:
        before, after = (row[name] if row is not None else None for row in (self.before, self.after))
        return bool(before != after and (before or after))

    def _setter(self, row: dict[str, Any] | None) -> str | None:
        return row["set_by"] if row is not None else None


def keyed(rules: tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]) -> RuleRows:
    """The rows of the rules by their keys."""
    models, groups, limits = rules
    return {
        **{("model", row["id"]): row for row in models},
        **{("group", row["name"]): row for row in groups},
        **{("limit", row["group_name"], row["name"]): row for row in limits},
    }


def changes_of(before: RuleRows, after: RuleRows) -> Iterator[Change]:
    """Every row that differs, models before groups before limits."""
    for key in {**before, **after}:
        if before.get(key) != after.get(key):
            yield Change(key, before.get(key), after.get(key))


def _plain(name: str) -> Callable[[Any], str]:
    return lambda value: f"{name} {value if value not in (None, '') else 'none'}"


def _price(name: str) -> Callable[[Any], str]:
    return lambda nanos: f"{name} {nanos / 1000:g}"


#: {column: its words} in the order they are told; a model's state comes first
WORDS: Mapping[str, Mapping[str, Callable[[Any], str]]] = {
    "model": {
        "state": _plain("state"),
        "state_reason": _plain("because:"),
        "replacement": _plain("replacement"),
        "group_names": lambda names: f"open to {', '.join(names.split()) or 'everybody'}",
        "concurrent_turns": lambda count: f"replies at once {count or 'without limit'}",
        "provider": _plain("provider"),
        "upstream": _plain("upstream"),
        "label": _plain("label"),
        "aliases": lambda names: f"aliases {', '.join(names.split()) or 'none'}",
        "context_tokens": _plain("context tokens"),
        "max_reply_tokens": _plain("max reply tokens"),
        "price_in_nanos": _price("price in"),
        "price_out_nanos": _price("price out"),
    },
    "group": {
        "default_model": _plain("default model"),
        "on_missing_model": _plain("on missing model"),
    },
}

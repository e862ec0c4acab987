"""The one rule about the model: which one a session uses and why, and which one may be asked for by name.

A pure function of the rows and of what is configured here: it writes nothing, and page, script, stream and turn all
ask it. A provider that is down is not a missing model.
"""

from collections.abc import Callable, Iterator

from db.tables import Account, Journal, Session
from services.actor import Actor
from services.catalogue import CurrentModel, Entry
from services.errors import Forbidden, ModelDisabled, NoModelAvailable
from services.rules import Rules

#: whose default it is, when it is the account's own
OWN = "Your default model"
#: the reason of a session's own model, until the journal tells more
CHOSEN = "Chosen for this session."
#: the reason of a turn's model that was named with its message
ASKED = "Asked for with this message."
#: the journal's word for a session's first model, and for each one after it
FIRST, SWITCHED = "model_chosen", "model_switched"
#: the source of a first model that somebody named
NAMED = "asked"
#: the sources of models that nobody named: with a message, and in a new session that begins with another's turns
WITH_A_MESSAGE = {
    "default": "Default model.",
    "replacement": "Replaced a model that is retired.",
    "fallback": "Stands in for a model that could not be used any more.",
}
WITH_A_COPY = {
    "fork": "The model of the chat that this one was copied from.",
    "import": "The model of the chat that was imported.",
}


class ModelRule:
    """The rule as it stands for one decision."""

    def __init__(self, rules: Rules, configured: Callable[[str], bool]) -> None:
        self._rules = rules
        self._catalogue = rules.catalogue
        #: whether a provider is configured here
        self._configured = configured

    def current(self, session: Session, owner: Account, choice: Journal | None = None) -> CurrentModel:
        """Which model a session uses: its own, a retired one's replacement, a fallback, or a default.

        `choice` is what the journal tells of its own model.
        """
        if session.last_model is None:
            return self.default(owner)
        entry = self._catalogue.find_id(session.last_model, owner.group_name)
        if entry is not None and self._callable(entry):
            going = f" It is going away. {entry.state_reason}".rstrip() if entry.state == "deprecated" else ""
            return CurrentModel(entry.id, "session", True, f"{chosen_by(choice)}{going}")
        if entry is not None and entry.state == "retired":
            replacement = self._catalogue.replacement_of(entry, owner.group_name)
            if replacement is not None and self._callable(replacement):
                reason = f"Replaces {entry.label}, which is retired."
                return CurrentModel(replacement.id, "replacement", True, reason, wanted=entry.id)
        return self._fallback(session, owner)

    def default(self, owner: Account) -> CurrentModel:
        """What a session uses that names no model: the account's default, the group's, or the instance's."""
        for whose, entry in self._defaults(owner):
            return CurrentModel(entry.id, "default", True, f"{whose}.")
        return CurrentModel(None, "none", False, NoModelAvailable.text)

    def usable(self, current: CurrentModel) -> Entry:
        """The model a turn will call. Raises NoModelAvailable."""
        if current.id is None:
            raise NoModelAvailable(current.reason)
        return self._catalogue.entries[current.id]

    def require(self, name: str, actor: Actor, owner_group: str) -> Entry:
        """The one check of a model that somebody asks for. Raises UnknownModel, UnusableModel, Forbidden."""
        entry = self._catalogue.require(name, actor)
        if not self._configured(entry.provider):
            raise ModelDisabled(f"The provider of “{entry.label}” is not configured.", replacement=entry.replacement)
        if not entry.open_to(owner_group):
            raise Forbidden(f"The group of this session's owner may not use “{entry.label}”.")
        return entry

    def callable_by(self, owner: Account, is_up: Callable[[str], bool | None]) -> list[Entry]:
        """The models that an owner could use now, the default first; no provider of theirs is known to be down."""
        default = next((entry.id for _, entry in self._defaults(owner)), None)
        entries = [
            entry
            for entry in self._catalogue.entries.values()
            if self._callable(entry) and entry.open_to(owner.group_name) and is_up(entry.provider) is not False
        ]
        return sorted(entries, key=lambda entry: (entry.id != default, entry.state != "active"))

    def _fallback(self, session: Session, owner: Account) -> CurrentModel:
        """What stands in for a model that can no longer be used: the group's default, the instance's, or nothing."""
        wanted = str(session.last_model)
        known = self._catalogue.entries.get(wanted)
        if known is not None and not known.open_to(owner.group_name):
            known = None
        label = known.label if known is not None else wanted
        why = f"{label} is {known.state}." if known is not None and not known.serves else f"{label} is not available."
        if session.locked or self._catalogue.defaults_of(owner.group_name).on_missing_model == "block":
            return CurrentModel(None, "none", False, f"{why} An admin has to choose another model.", wanted=wanted)
        for whose, entry in self._defaults(owner):
            if whose != OWN:
                return CurrentModel(entry.id, "fallback", True, f"{why} {entry.label} stands in.", wanted=wanted)
        return CurrentModel(None, "none", False, f"{why} No other model can be used.", wanted=wanted)

    def _defaults(self, owner: Account) -> Iterator[tuple[str, Entry]]:
        """The defaults that can be used, nearest first, with whose they are."""
        for whose, name in (
            (OWN, owner.default_model),
            ("The default of your group", self._catalogue.defaults_of(owner.group_name).default_model),
            ("The default here", self._catalogue.instance.default_model),
        ):
            entry = self._catalogue.find(name, owner.group_name)
            if entry is not None and self._callable(entry):
                yield whose, entry

    def _callable(self, entry: Entry) -> bool:
        """Whether it may serve and is configured here."""
        return entry.serves and self._configured(entry.provider)


def chosen_by(row: Journal | None, *, to_owner: bool = False) -> str:
    """Who put a session on its own model and why, as a sentence: for everybody, or for its owner."""
    if row is None:
        return CHOSEN
    if came_by_itself(row):
        return (WITH_A_MESSAGE | WITH_A_COPY)[row.reason]
    who = "you" if to_owner and is_owners(row) else row.actor_name
    return f"Chosen by {who}{f': {why}' if (why := reason_of(row)) else ''}".removesuffix(".") + "."


def reason_of(row: Journal) -> str:
    """The reason that somebody gave for a choice; empty for none."""
    return "" if row.what == FIRST and row.reason == NAMED else row.reason


def is_first(row: Journal) -> bool:
    """Whether it tells of a session's first model; older journals call that a switch from nothing."""
    return row.from_value is None


def is_owners(row: Journal) -> bool:
    """Whether the session's owner decided it, also by a token."""
    return row.owner_id in (row.actor_id, row.on_behalf_of)


def came_by_itself(row: Journal) -> bool:
    """Whether a message, a fork or an import brought a model along; the same word from a person is a reason given."""
    if row.turn_id is not None:
        return row.reason in WITH_A_MESSAGE
    return is_first(row) and is_owners(row) and row.reason in WITH_A_COPY

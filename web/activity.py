"""What was done to an account, in words for whoever looks: facts of the journal become sentences here alone."""

from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

import msgspec

from db.tables import Journal
from services.membership import Activity

#: {what happened: (what its owner did, what somebody else did)}; {} is what the journal names
DEEDS = {
    "account_created": ("created the account: {to}", "created this account: {to}"),
    "account_changed": ("changed role or group: {from} → {to}", "changed role or group: {from} → {to}"),
    "account_disabled": ("disabled the account", "disabled this account"),
    "account_enabled": ("re-enabled the account", "re-enabled this account"),
    "login_revoked": ("signed out another browser", "signed out a browser of this account"),
    "signed_in": ("signed in", "signed in"),
    "signed_out": ("signed out", "signed out"),
    "token_created": ("created the API token “{reason}” ({to})", "created the API token “{reason}” ({to})"),
    "token_revoked": ("revoked the API token “{reason}”", "revoked the API token “{reason}”"),
}
#: {why a sign-in was refused: what happened}
FAILURES = {
    "unauthenticated": "Somebody tried to sign in with a wrong password",
    "account_disabled": "Somebody tried to sign in while the account was disabled",
    "invalid_request": "A wrong current password was entered",
    "rate_limited": "Attempts to sign in were refused: too many",
    "password_change_required": "Somebody entered the temporary password",
}
#: of these the reason stands in the sentence
NAMED = ("token_created", "token_revoked", "refused", "refusals_counted")


class ActivityView(msgspec.Struct, frozen=True):
    """One thing that was done to an account."""

    id: UUID
    at: datetime
    what: str
    #: done, or the code of a refusal
    outcome: str
    #: who did it; empty where nobody has proved to be somebody
    actor: str
    #: the account's owner did it, also by a script
    yours: bool
    #: the same as a sentence
    text: str
    reason: str

    @classmethod
    def of(cls, row: Journal, account_id: UUID, *, mine: bool) -> "ActivityView":
        """For its owner (`mine`), or for an admin."""
        yours = account_id in (row.actor_id, row.on_behalf_of)
        who = "You" if yours and mine else row.actor_name or "Somebody"
        if row.actor_kind == "token":
            who += " (by an API token)"
        reason = "" if row.what in NAMED else row.reason
        text = _told(row, who, yours=yours)
        return cls(row.id, row.at, row.what, row.outcome, row.actor_name, yours, text, reason)


class ActivitiesView(msgspec.Struct, frozen=True):
    activity: list[ActivityView]
    next_cursor: UUID | None

    @classmethod
    def of(cls, found: Activity, account_id: UUID, *, mine: bool) -> "ActivitiesView":
        return cls(told(found.rows, account_id, mine=mine), found.next)


def told(rows: Iterable[Journal], account_id: UUID, *, mine: bool) -> list[ActivityView]:
    return [ActivityView.of(row, account_id, mine=mine) for row in rows]


def _told(row: Journal, who: str, *, yours: bool) -> str:
    """What happened, as a sentence without its full stop."""
    if row.what == "refused":
        return FAILURES.get(row.outcome, "An attempt to sign in was refused")
    if row.what == "refusals_counted":
        return f"{row.to_value} more attempts like the one before were refused within a minute"
    if row.what == "password_changed":
        if not yours:
            return f"{who} set a {'temporary ' if row.to_value else ''}password and signed out every browser"
        # Whoever has set the temporary password knows it too.
        return (
            "Somebody who knew it replaced the temporary password" if row.from_value else f"{who} changed the password"
        )
    if row.what == "signed_in" and row.to_value:
        return f"{who} signed in: {row.to_value}"
    own, others = DEEDS[row.what]
    said = {"from": row.from_value or "", "to": row.to_value or "", "reason": row.reason}
    return f"{who} {(own if yours else others).format(**said)}"

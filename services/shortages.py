"""What somebody is told at a limit: how much is allowed, what that means, and what to do next.

How long to wait is a fact of the refusal; pages count it down beside the sentence, so no sentence repeats it.
"""

from datetime import datetime, tzinfo

from services.policies import CONCURRENT, REQUESTS, Allowance

#: rates, as what somebody does too quickly
TOO_QUICKLY = {
    "turns": "You're sending messages too quickly.",
    "switches": "You're switching models too often.",
    "sessions_created": "You're starting chats too quickly.",
    "sign_ins": "Too many attempts to sign in.",
}
#: budgets, as what is used of them and in which span
BUDGET_OF = {
    "tokens_per_day": ("tokens", "today", "per day"),
    "tokens_per_month": ("tokens", "this month", "per month"),
    "money_per_day": ("money", "today", "per day"),
    "money_per_month": ("money", "this month", "per month"),
}


def too_quick(limit: Allowance) -> str:
    """A rate that is used up."""
    return f"{TOO_QUICKLY[limit.name]} The limit is {limit.pace}, {limit.size:,} at once.{_whose(limit)}"


def too_many_at_once(limit: Allowance) -> str:
    """All places for replies are taken."""
    count = f"{limit.used:,} {'reply' if limit.used == 1 else 'replies'}"
    if limit.model:
        return (
            f"{limit.model} is writing {count}, as many as it may at once. Wait for one to end, or use another model."
        )
    if limit.name == "concurrent_turns_of_instance":
        return f"This server is writing {count}, as many as it may at once. Wait for one to end."
    if limit.shared:
        return f"{count} in progress from your network, as many as may be at once.{_whose(limit)}"
    return f"You have {count} in progress, as many as you may have at once. Wait for one to end, or stop one."


def too_little_left(limit: Allowance, zone: tzinfo) -> str:
    """A budget of which less is left than the shortest reply may need."""
    what, when, _ = BUDGET_OF[limit.name]
    size, _, remaining = limit.words
    if limit.resets_at is None:
        return (
            f"Replies in progress hold the {what} for {when} that this message needs. "
            f"Wait for one to end, or stop one.{_whose(limit)}"
        )
    if limit.remaining:
        used = f"{remaining} of {_of(what, size)} {_are(what)} left for {when}, and this message needs more."
    else:
        used = f"You have used your budget for {when}: {_of(what, size)}."
    return f"{used} {_resets(limit, zone)} Need more? Ask your admin.{_whose(limit)}"


def never_fits(limit: Allowance, tokens: int) -> str:
    """A message that is more than a whole budget."""
    what, _, per = BUDGET_OF[limit.name]
    return (
        f"This message needs more than your whole budget of {_of(what, limit.words[0])} {per}: with the conversation "
        f"before it and a short reply it is about {tokens:,} tokens. Shorten it, or start a new chat; an admin can "
        "raise the budget."
    )


def capped_by(name: str) -> str:
    """The budget that made a reply shorter, after "your"."""
    what, when, _ = BUDGET_OF[name]
    return f"{what} for {when}"


def too_many_chats(limit: Allowance) -> str:
    """The quota of open sessions is full."""
    return (
        f"You have {limit.used:,} open chat{'' if limit.used == 1 else 's'}; {limit.size:,} may be open at once. "
        f"Close or delete one, then try again.{_whose(limit)}"
    )


def short(limit: Allowance, zone: tzinfo) -> str:
    """Any limit that stands against a verb."""
    if limit.unit == REQUESTS:
        return too_quick(limit)
    return too_many_at_once(limit) if limit.unit == CONCURRENT else too_little_left(limit, zone)


def _of(what: str, figure: str) -> str:
    return figure if what == "money" else f"{figure} tokens"


def _are(what: str) -> str:
    return "is" if what == "money" else "are"


def _resets(limit: Allowance, zone: tzinfo) -> str:
    at: datetime | None = limit.resets_at
    if at is None:
        return ""
    local = at.astimezone(zone)
    return f"It resets on {local.day} {local:%B} at {local:%H:%M} ({zone})."


def _whose(limit: Allowance) -> str:
    """Whom a limit counts besides the one who asks."""
    return " Guests at your network address share this limit. Sign in to have your own." if limit.shared else ""

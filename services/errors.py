"""Refusals: why a verb did not do what was asked, in one tree.

    Refusal
    ├── InvalidRequest              malformed input
    ├── Unauthenticated             nobody is asking, where somebody must
    ├── PasswordChangeRequired      the password is temporary; carries the ticket to replace it with
    ├── NotFound                    absent, or not yours: the two are the same
    ├── Ended
    │   ├── SessionExpired          read-only; names reopen or fork where allowed
    │   └── SessionClosed           read-only for good; names fork where allowed
    ├── Forbidden
    │   └── ModelLocked             an admin holds the model
    ├── UnknownModel                absent, or hidden from you
    ├── UnusableModel
    │   ├── ModelDisabled           visible but off
    │   └── ModelRetired            names its replacement
    ├── NoModelAvailable            nothing usable at all
    ├── ModelUnavailable            its provider is down; the session is unchanged
    ├── VersionConflict             carries the current model and version
    ├── SessionBusy                 carries the running turn
    ├── IdempotencyKeyReused        same key, other content
    ├── SessionQuota                too many open sessions
    ├── LimitReached                names the limit, its size, what remains, when it resets
    │   ├── RateLimited
    │   ├── ConcurrencyLimited
    │   └── BudgetExhausted
    ├── OverBudget                  needs more than a whole budget: no wait helps
    ├── PromptTooLong               over the size cap
    ├── ContextOverflow             cannot fit the model even after trimming
    ├── TooManyStreams              this process holds no more
    └── StorageUnavailable          the database failed before or during commit

The text is a sentence for the user; the facts are attributes, listed by `facts`.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import ClassVar
from uuid import UUID

from services.policies import Allowance


class Refusal(Exception):
    """Something was asked that is not done; nothing has changed."""

    code: ClassVar[str] = "refused"
    text: ClassVar[str] = "This cannot be done."
    #: the session in which it was asked, where the actor may know of it
    session_id: UUID | None = None
    #: the account that it concerns, where nobody has proved to be its owner
    account_id: UUID | None = None
    #: the outcome in the journal, where that may tell more than the caller learns; the code where empty
    outcome: str = ""

    def __init__(self, text: str = "", **facts: object) -> None:
        super().__init__(text or self.text)
        self.facts = {name: fact for name, fact in facts.items() if fact is not None}


class InvalidRequest(Refusal):
    code = "invalid_request"
    text = "The request is malformed."


class Unauthenticated(Refusal):
    code = "unauthenticated"
    text = "Please sign in first."


class PasswordChangeRequired(Refusal):
    code = "password_change_required"
    text = "This password is temporary. Choose your own password to continue."

    def __init__(self, *, name: str, ticket: str, expires_at: datetime) -> None:
        super().__init__(name=name, ticket=ticket, expires_at=expires_at)


class NotFound(Refusal):
    code = "session_not_found"
    text = "There is no such session."


class Ended(Refusal):
    """The session can be read, exported and deleted, and no more."""


class SessionExpired(Ended):
    code = "session_expired"
    text = "This session has expired. You can still read it."

    def __init__(self, text: str = "", *, can_reopen: bool = False, can_fork: bool = False) -> None:
        super().__init__(text, can_reopen=can_reopen, can_fork=can_fork)


class SessionClosed(Ended):
    code = "session_closed"
    text = "This session is closed. You can still read it."

    def __init__(self, text: str = "", *, can_fork: bool = False) -> None:
        super().__init__(text, can_fork=can_fork)


class Forbidden(Refusal):
    code = "forbidden"
    text = "You may not do this."


class ModelLocked(Forbidden):
    code = "model_locked"
    text = "An admin has fixed the model of this session."


class UnknownModel(Refusal):
    code = "model_unknown"
    text = "There is no such model."


class UnusableModel(Refusal):
    """A model that can be seen and not used; names what to use instead."""

    def __init__(self, text: str = "", *, replacement: str | None = None) -> None:
        super().__init__(text, replacement=replacement)


class ModelDisabled(UnusableModel):
    code = "model_disabled"
    text = "This model is switched off."


class ModelRetired(UnusableModel):
    code = "model_retired"
    text = "This model is retired."


class NoModelAvailable(Refusal):
    code = "no_model_available"
    text = "No model can be used at the moment. An admin needs to enable one."


class ModelUnavailable(Refusal):
    """Names the models that the actor could use instead, the default first."""

    code = "model_unavailable"
    text = "The model's provider does not answer at the moment. The session is unchanged."

    def __init__(self, text: str = "", *, alternatives: Sequence[str] = ()) -> None:
        super().__init__(text, alternatives=list(alternatives))


class VersionConflict(Refusal):
    code = "version_conflict"
    text = "The session has changed meanwhile."

    def __init__(self, *, current_model: str | None, version: int) -> None:
        super().__init__(current_model=current_model, version=version)


class SessionBusy(Refusal):
    code = "session_busy"
    text = "A reply is still being written in this session."

    def __init__(self, *, running_turn: UUID) -> None:
        super().__init__(running_turn=running_turn)


class IdempotencyKeyReused(Refusal):
    code = "idempotency_key_reused"
    text = "This key was already used for another request."


class SessionQuota(Refusal):
    code = "session_quota"
    text = "You have as many open chats as you may. Close or delete one, then try again."

    def __init__(self, text: str = "", *, size: int, used: int) -> None:
        super().__init__(text, limit="open_sessions", size=size, used=used)


class LimitReached(Refusal):
    """A limit is used up: the first of `allowance`, which tells the others that applied too.

    `retry_after_seconds` is a wait that suffices from `at` on. `ahead` names the buckets of rates that a clock has
    written that was ahead: they are shortened once the refused verb is undone.
    """

    def __init__(
        self,
        text: str,
        limit: Allowance,
        now: datetime,
        others: tuple[Allowance, ...] = (),
        *,
        ahead: Mapping[str, int] | None = None,
    ) -> None:
        self.allowance = (limit, *others)
        self.ahead = ahead or {}
        self.retry_after_seconds = limit.retry_after_seconds(now)
        self.at = now
        super().__init__(
            text,
            limit=limit.name,
            size=limit.figures.size,
            remaining=limit.figures.remaining,
            resets_at=limit.resets_at,
            retry_after_seconds=self.retry_after_seconds,
        )


class RateLimited(LimitReached):
    code = "rate_limited"


class ConcurrencyLimited(LimitReached):
    code = "concurrency_limited"


class BudgetExhausted(LimitReached):
    code = "budget_exhausted"


class OverBudget(Refusal):
    """A message that does not fit into a whole budget, so that waiting does not help."""

    code = "over_budget"

    def __init__(self, text: str, limit: Allowance, *, needed_tokens: int) -> None:
        super().__init__(text, limit=limit.name, size=limit.figures.size, needed_tokens=needed_tokens)


class PromptTooLong(Refusal):
    code = "prompt_too_long"
    text = "This text is too long."

    def __init__(self, *, characters: int, limit: int) -> None:
        over = characters - limit
        text = (
            f"{over:,} character{'s' if over != 1 else ''} over the limit of {limit:,}. Shorten it and send it again."
        )
        super().__init__(text, size=limit)


class ContextOverflow(Refusal):
    code = "context_overflow"
    text = "This text does not fit into the model's window."


class TooManyStreams(Refusal):
    code = "too_many_streams"
    text = "As many pages are open here as this server can hold. Please try again in a moment."
    retry_after_seconds = 15


class StorageUnavailable(Refusal):
    code = "storage_unavailable"
    retry_after_seconds = 2

    def __init__(self, why: str = "The database does not answer.") -> None:
        super().__init__(f"{why} Nothing was changed; please try again.")

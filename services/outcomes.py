"""What the verbs of SessionService return, and what it hands to the runner."""

from datetime import datetime
from typing import Any, Literal, Protocol
from uuid import UUID

import msgspec

from db.tables import Account, Journal, Session, Turn
from services.catalogue import CurrentModel
from services.clients import Ask
from services.policies import CONCURRENT, MONEY, TOKENS, Allowance, tightest_first

State = Literal["active", "expired", "closed"]
Origin = Literal["page", "script", "auto", "fork", "import"]
When = Literal["next_turn", "stop", "idle"]
Sort = Literal["activity", "age", "cost", "turns", "deletion"]
#: which of one's sessions: those in use, all that are not deleted, or some
Show = Literal["", "all", "pinned", "archived", "deleted"]
End = Literal["done", "stopped", "failed", "interrupted"]


class Found(msgspec.Struct, frozen=True):
    """Where a session holds what was looked for."""

    #: None where it is the title
    turn_id: UUID | None
    #: what stands around it, on one line
    text: str
    #: from which to which character of that text the words stand
    marks: tuple[tuple[int, int], ...]


class LiveSession(msgspec.Struct, frozen=True):
    """A session as it stands now."""

    row: Session
    owner: Account
    #: given by hand, else for its owner alone how the first prompt begins
    title: str
    state: State
    current: CurrentModel
    #: who put it on its model, and why; None while it follows a default
    last_switch: Journal | None
    #: when it expires if nothing happens; None for never
    deadline: datetime | None
    running_turn: UUID | None
    #: the decision that closed it, or that deleted it; None where neither was done, or that is not known
    ending: Journal | None = None
    #: every limit that applied to the verb that made this answer, tightest first
    allowance: tuple[Allowance, ...] = ()
    #: where it was looked for by what was said
    found: Found | None = None


class Glance(msgspec.Struct, frozen=True):
    """What tells a watcher that a session is another than before."""

    version: int
    head_id: UUID | None
    state: State
    model: str | None
    #: why that model
    source: str

    @classmethod
    def of(cls, live: LiveSession) -> "Glance":
        return cls(live.row.version, live.row.head_id, live.state, live.current.id, live.current.source)


class BegunTurn(msgspec.Struct, frozen=True):
    """A turn that was accepted, with its session."""

    turn: Turn
    session: LiveSession
    allowance: tuple[Allowance, ...] = ()
    #: where its reply is cut, in tokens; 0 for nowhere, or where it is not known any more
    cap: int = 0

    def allowance_after(self, ended: Turn) -> tuple[Allowance, ...]:
        """The limits once the turn has ended: its slots are free, and of the budgets only what it used is gone.

        One that had ended before it was begun again under its key held nothing.
        """
        if self.turn.ended_at is not None or ended.ended_at is None:
            return self.allowance
        freed = {
            CONCURRENT: 1,
            TOKENS: ended.reserved_tokens - ended.prompt_tokens - ended.reply_tokens,
            MONEY: ended.reserved_nanos - ended.cost_nanos,
        }
        return tightest_first(one.more(freed.get(one.unit, 0)) for one in self.allowance)


#: changed, from, to, effective, warnings: what a repeated key is answered with
SwitchAnswer = tuple[bool, str | None, str, Literal["now", "next_turn"], tuple[str, ...]]


class Switch(msgspec.Struct, frozen=True):
    """What became of a switch."""

    changed: bool
    from_model: str | None
    to_model: str
    effective: Literal["now", "next_turn"]
    warnings: tuple[str, ...]
    session: LiveSession
    allowance: tuple[Allowance, ...] = ()


class Extension(msgspec.Struct, frozen=True):
    """What became of an extension."""

    extended: bool
    expires_at: datetime | None
    reason: str
    session: LiveSession


class SessionPage(msgspec.Struct, frozen=True):
    """One page of a list of sessions, newest activity first, or newest match."""

    sessions: list[LiveSession]
    #: behind which the next page begins, in what it is sorted by and by id; None at the end
    next: tuple[Any, UUID] | None


class TurnOrder(msgspec.Struct, frozen=True):
    """What the runner needs to run a begun turn."""

    turn_id: UUID
    session_id: UUID
    provider: str
    ask: Ask


class Runner(Protocol):
    """Runs begun turns; told only after their commit, or to `seek` one whose commit nobody acknowledged."""

    def start(self, order: TurnOrder) -> None: ...

    def seek(self, order: TurnOrder) -> None: ...

    def stop(self, turn_id: UUID) -> None: ...

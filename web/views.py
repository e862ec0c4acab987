"""What templates and JSON see, built from what the services return."""

from collections.abc import Iterable, Sequence
from datetime import date, datetime
from itertools import pairwise
from typing import Any, Self
from uuid import UUID

import msgspec
from markupsafe import Markup

from db.db_session import Written
from db.tables import Account, ApiToken, Journal, ModelMove, TemporaryPassword, Turn
from services.actor import Actor
from services.catalogue import EVERYBODY, CurrentModel, Entry
from services.client_pool import ClientPool
from services.desk import DeskPage, OnDesk, Outcome, Writing
from services.governance import GovernedGroup, GovernedLimit, GovernedModel
from services.membership import AccountState
from services.model_rule import came_by_itself, chosen_by, is_first, is_owners, reason_of
from services.moves import Preview
from services.outcomes import Extension, Found, LiveSession, SessionPage, Switch
from services.oversight import Decision, UsageReport, Used
from services.policies import DELETED_KEPT, Allowance, microseconds
from services.reads import Ways
from services.shortages import capped_by
from services.transfer import Taken
from services.turn_log import Position
from web.activity import ActivityView, told
from web.markdown import Grown
from web.rendering import begun, html_of

#: of a turn that has not begun to write, or has ended
NOTHING = Written()


class View(msgspec.Struct, frozen=True):
    """What is told of a row."""

    @classmethod
    def _of(cls, row: Any, **told: Any) -> Self:
        """The fields named in `told`, and every other as the row has it."""
        return cls(**{name: getattr(row, name) for name in cls.__struct_fields__ if name not in told}, **told)


class OwnerView(View, frozen=True):
    id: UUID
    name: str

    @classmethod
    def of(cls, account: Account) -> "OwnerView":
        return cls._of(account)


class FoundView(View, frozen=True):
    """Where a session holds what was looked for."""

    #: null where it is the title
    turn_id: UUID | None
    text: str
    #: [from, to) of the words, in characters of the text
    marks: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, found: Found) -> "FoundView":
        return cls._of(found)

    @property
    def parts(self) -> list[tuple[str, bool]]:
        """The text cut where words begin and end: each part, and whether it is one of them."""
        cuts = [0, *(place for mark in self.marks for place in mark), len(self.text)]
        return [(self.text[start:end], bool(n % 2)) for n, (start, end) in enumerate(pairwise(cuts)) if end > start]


class EndingView(View, frozen=True):
    """Who closed or deleted a session, and why."""

    at: datetime
    #: a name
    by: str
    by_owner: bool
    reason: str

    @classmethod
    def of(cls, row: Journal, owner: Account) -> "EndingView":
        by_owner = row.actor_id == owner.id or row.on_behalf_of == owner.id
        return cls._of(row, by=row.actor_name, by_owner=by_owner)


class SessionView(View, frozen=True):
    id: UUID
    title: str
    owner: OwnerView
    state: str
    last_model: str | None
    current_model: CurrentModel
    locked: bool
    version: int
    created_at: datetime
    last_activity_at: datetime
    expires_at: datetime | None
    turn_count: int
    running_turn: UUID | None
    pinned: bool
    archived: bool
    deleted_at: datetime | None
    #: who closed it, or who deleted it; null where nobody did
    ending: EndingView | None
    #: where it was looked for by words
    found: FoundView | None

    @classmethod
    def of(cls, live: LiveSession) -> "SessionView":
        return cls._of(
            live.row,
            title=live.title,
            owner=OwnerView.of(live.owner),
            state=live.state,
            current_model=live.current,
            expires_at=live.deadline,
            running_turn=live.running_turn,
            ending=EndingView.of(live.ending, live.owner) if live.ending is not None else None,
            found=FoundView.of(live.found) if live.found is not None else None,
        )

    @property
    def url(self) -> str:
        return f"/session/{self.id}"

    @property
    def seal(self) -> str:
        """Whether a page shows it as it is: other whenever the live stream tells of a change."""
        return f"{self.version}-{self.state}-{self.current_model.id}-{self.current_model.source}"

    @property
    def ended_count(self) -> int:
        """Its turns that have ended: what comes late to a page tells by it."""
        return self.turn_count - (self.running_turn is not None)

    @property
    def place(self) -> str:
        """Where to read it: at the turn that was found, where one was."""
        turn_id = self.found.turn_id if self.found is not None else None
        return f"{self.url}?turn={turn_id}#turn-{turn_id}" if turn_id is not None else self.url

    @property
    def kept_until(self) -> datetime | None:
        """Until when a deleted session can be had back."""
        return self.deleted_at + DELETED_KEPT if self.deleted_at is not None else None


class SessionsView(msgspec.Struct, frozen=True):
    sessions: list[SessionView]
    next_cursor: str | None


class RefusedView(msgspec.Struct, frozen=True):
    """Why an import went no further."""

    code: str
    detail: str
    retry_after_seconds: int | None


class ImportedView(msgspec.Struct, frozen=True):
    """How far an import came: under the same key, the same file goes on from there."""

    sessions: list[SessionView]
    #: sessions of the file that were not made
    left: int
    refusal: RefusedView | None

    @classmethod
    def of(cls, steps: list[Taken]) -> "ImportedView":
        refusal = steps[-1].refusal if steps else None
        return cls(
            [SessionView.of(step.session) for step in steps if step.session is not None],
            steps[-1].of - steps[-1].done if refusal is not None else 0,
            RefusedView(refusal.code, str(refusal), getattr(refusal, "retry_after_seconds", None))
            if refusal is not None
            else None,
        )


class ProgressView(msgspec.Struct, frozen=True):
    """One step of an import."""

    done: int
    of: int
    session: SessionView | None

    @classmethod
    def of_step(cls, step: Taken) -> "ProgressView":
        return cls(step.done, step.of, SessionView.of(step.session) if step.session is not None else None)


class TurnError(msgspec.Struct, frozen=True):
    code: str
    detail: str


class CapView(msgspec.Struct, frozen=True):
    """How long a reply may be where a budget leaves it less than its model allows."""

    tokens: int
    #: the budget: tokens_per_day, …
    limit: str

    @property
    def words(self) -> str:
        return f"Limited to {self.tokens:,} tokens: that was left of your {capped_by(self.limit)}."


class TurnView(View, frozen=True):
    id: UUID
    session_id: UUID
    parent_id: UUID | None
    prompt: str
    #: what is written so far while it runs
    reply: str
    #: what the model thought aloud before it replied; no part of the reply
    reasoning: str
    model: str
    #: why that model: session, default, replacement, fallback, asked; empty where nobody says
    model_source: str
    #: the same as a sentence
    model_reason: str
    state: str
    error: TurnError | None
    prompt_tokens: int
    reply_tokens: int
    estimated: bool
    #: money
    cost: float
    context_left_out: int
    #: null where the reply may be as long as its model allows
    reply_cap: CapView | None
    created_at: datetime
    #: of reasoning or reply
    first_text_at: datetime | None
    first_reply_at: datetime | None
    ended_at: datetime | None

    @classmethod
    def of(cls, turn: Turn, written: Written = NOTHING) -> "TurnView":
        """`written` is what a running turn has written so far."""
        return cls._of(
            turn,
            reply=written.reply if turn.reply is None else turn.reply,
            reasoning=written.reasoning if turn.reply is None else turn.reasoning,
            error=TurnError(turn.error_code, turn.error_detail or "") if turn.error_code else None,
            cost=turn.cost_nanos / 1e9,
            reply_cap=CapView(*turn.capped) if turn.capped is not None else None,
        )

    @classmethod
    def for_actor(cls, turn: Turn, actor: Actor) -> "TurnView":
        """An ended turn as `actor` may see it: its text is its owner's alone."""
        view = cls.of(turn)
        mine = turn.owner_id == actor.id
        return view if mine else msgspec.structs.replace(view, prompt="", reply="", reasoning="")

    @property
    def html(self) -> Markup:
        """The reply as it is shown once it has ended."""
        return html_of(self.reply)

    @property
    def growing(self) -> Grown:
        """The reply as far as it is written: finished blocks, and the open one."""
        return begun(self.reply)

    @property
    def thoughts(self) -> Markup:
        """The reasoning as it is shown once it is over."""
        return html_of(self.reasoning)

    @property
    def growing_thoughts(self) -> Grown:
        """The reasoning as far as it is written."""
        return begun(self.reasoning)

    @property
    def thinks(self) -> bool:
        """Whether it is at its reasoning still: nothing is replied yet."""
        return self.state == "running" and not self.reply

    @property
    def thinking_seconds(self) -> float | None:
        """From the first thought to the first word of the reply, or to the end; None where that is not known."""
        over = self.first_reply_at or (self.ended_at if not self.reply else None)
        return (over - self.first_text_at).total_seconds() if over and self.first_text_at else None

    @property
    def first_text_seconds(self) -> float | None:
        """From acceptance to the first text."""
        return (self.first_text_at - self.created_at).total_seconds() if self.first_text_at else None

    @property
    def place(self) -> str:
        """Where the live stream goes on behind what is shown of it."""
        return str(Position(self.id, len(self.reply), len(self.reasoning)))

    @property
    def seconds(self) -> float | None:
        """From acceptance to the end."""
        return (self.ended_at - self.created_at).total_seconds() if self.ended_at else None


def texts_of(turns: Iterable[TurnView]) -> tuple[list[str], list[str]]:
    """What of turns is shown as Markdown: of those that have ended, and of those that run."""
    ended: list[str] = []
    running: list[str] = []
    for turn in turns:
        (running if turn.state == "running" else ended).extend((turn.reasoning, turn.reply))
    return ended, running


class WayView(msgspec.Struct, frozen=True):
    """Where a turn stands among its siblings, for people."""

    place: int
    count: int
    before: UUID | None
    after: UUID | None

    @classmethod
    def of(cls, turn_id: UUID, ids: Sequence[UUID]) -> "WayView | None":
        """None where it is the only one."""
        if len(ids) < 2:
            return None
        at = ids.index(turn_id)
        return cls(at + 1, len(ids), ids[at - 1] if at else None, ids[at + 1] if at + 1 < len(ids) else None)


class WhyView(msgspec.Struct, frozen=True):
    """Why a session uses its model, for whoever looks."""

    text: str
    #: somebody else chose it for the owner
    by_other: bool

    @classmethod
    def of(cls, live: LiveSession, actor: Actor) -> "WhyView":
        reason, row = live.current.reason, live.last_switch
        if live.current.source != "session" or row is None:
            return cls(reason, False)
        # The sentence for everybody begins so, whoever is called what: both are made of the same row.
        rest = reason[len(chosen_by(row)) :]
        text = chosen_by(row, to_owner=live.row.owner_id == actor.id) + rest
        return cls(text, not is_owners(row) and not came_by_itself(row))


class WaysView(msgspec.Struct, frozen=True):
    """The ways from a turn: to other messages in its place, and to other replies to its message."""

    messages: WayView | None
    replies: WayView | None

    @classmethod
    def of(cls, turn_id: UUID, ways: Ways) -> "WaysView":
        return cls(WayView.of(turn_id, ways.messages), WayView.of(turn_id, ways.replies))


class LockView(msgspec.Struct, frozen=True):
    """Who locked a session's model, and why, for whoever looks."""

    who: str
    #: empty where the session was locked together with the switch that the page tells of
    reason: str

    @classmethod
    def of(cls, row: Journal, switch: Journal | None, actor: Actor) -> "LockView":
        if row.reason == "fork":
            return cls("", "The chat it was copied from is locked.")
        told = switch is not None and (switch.actor_id, switch.reason) == (row.actor_id, row.reason)
        who = "you" if row.actor_id in (actor.id, actor.token_id) else row.actor_name
        return cls(who, "" if told else row.reason)


class LineView(msgspec.Struct, frozen=True):
    """A quiet line in the transcript: the model was switched, by whom and why."""

    id: UUID
    text: str
    at: datetime

    @classmethod
    def of(cls, row: Journal, actor: Actor) -> "LineView":
        who = "You" if row.actor_id in (actor.id, actor.token_id) else row.actor_name
        way = f"from {row.from_value} to {row.to_value}"
        if row.reason == "replacement" and came_by_itself(row):
            return cls(row.id, f"{row.to_value} took the place of {row.from_value}", row.at)
        if row.reason == "fallback" and came_by_itself(row):
            return cls(row.id, f"{row.from_value} could not be used any more; on {row.to_value} since", row.at)
        did = f"chose {row.to_value}" if is_first(row) else f"switched {way}"
        return cls(row.id, f"{who} {did}{f': {why}' if (why := reason_of(row)) else ''}", row.at)


def lines_between(
    turns: Sequence[Turn], switches: Iterable[Journal], actor: Actor
) -> dict[UUID | None, list[LineView]]:
    """{turn: what was switched before it and after the one before}; under None what came after the last."""
    lines: dict[UUID | None, list[LineView]] = {}
    for row in switches:
        # A turn that brought its switch along was begun a moment before that was written down.
        following = next((turn.id for turn in turns if turn.id == row.turn_id or turn.created_at >= row.at), None)
        lines.setdefault(following, []).append(LineView.of(row, actor))
    return lines


class TurnsView(msgspec.Struct, frozen=True):
    turns: list[TurnView]
    next_cursor: str | None
    #: what the model is told before all of them
    instructions: str


class ModelView(View, frozen=True):
    id: str
    label: str
    state: str
    provider_up: bool | None
    context_tokens: int
    #: money per million tokens
    price_in: float
    price_out: float
    replacement: str | None

    @classmethod
    def of(cls, entry: Entry, pool: ClientPool) -> "ModelView":
        return cls._of(
            entry,
            provider_up=pool.is_up(entry.provider),
            price_in=entry.price_in_nanos / 1000,
            price_out=entry.price_out_nanos / 1000,
        )


class ModelsView(msgspec.Struct, frozen=True):
    models: list[ModelView]
    default: str | None


class AllowanceView(msgspec.Struct, frozen=True):
    name: str
    size: float
    used: float
    remaining: float
    resets_at: datetime | None
    window_seconds: int
    #: the model whose limit it is
    model: str | None

    @classmethod
    def of(cls, allowance: Allowance) -> "AllowanceView":
        """Money is in money, everything else in whole numbers."""
        return cls(
            allowance.name,
            *allowance.figures,
            allowance.resets_at,
            allowance.window_seconds,
            allowance.model or None,
        )


class LimitsView(msgspec.Struct, frozen=True):
    limits: list[AllowanceView]

    @classmethod
    def of(cls, allowances: Iterable[Allowance]) -> "LimitsView":
        return cls([AllowanceView.of(one) for one in allowances])


class SwitchView(msgspec.Struct, frozen=True, rename={"from_model": "from", "to_model": "to"}):
    changed: bool
    from_model: str | None
    to_model: str
    version: int
    effective: str
    warnings: tuple[str, ...]
    session: SessionView

    @classmethod
    def of(cls, switch: Switch) -> "SwitchView":
        session = SessionView.of(switch.session)
        return cls(
            switch.changed,
            switch.from_model,
            switch.to_model,
            session.version,
            switch.effective,
            switch.warnings,
            session,
        )


class ExtensionView(View, frozen=True):
    extended: bool
    expires_at: datetime | None
    reason: str

    @classmethod
    def of(cls, extension: Extension) -> "ExtensionView":
        return cls._of(extension)


class DecisionView(View, frozen=True, rename={"from_value": "from", "to_value": "to"}):
    """One row of the journal."""

    at: datetime
    actor: str
    what: str
    outcome: str
    reason: str
    from_value: str | None
    to_value: str | None
    version: int | None
    request_id: str

    @classmethod
    def of(cls, row: Journal) -> "DecisionView":
        return cls._of(row, actor=row.actor_name)


class TimelineView(msgspec.Struct, frozen=True):
    journal: list[DecisionView]


class HealthView(msgspec.Struct, frozen=True):
    status: str
    #: {database, schema or writing: what is wrong}
    failed: dict[str, str] | msgspec.UnsetType = msgspec.UNSET


def models_view(entries: Iterable[Entry], pool: ClientPool, default: str | None) -> ModelsView:
    return ModelsView([ModelView.of(entry, pool) for entry in entries], default)


class AdminModelView(View, frozen=True):
    """One model, as admins see it."""

    id: str
    label: str
    provider: str
    provider_up: bool | None
    state: str
    state_reason: str
    #: when its state became what it is; null where that was with the first configuration
    since: datetime | None
    replacement: str | None
    #: empty for everybody
    groups: tuple[str, ...]
    concurrent_turns: int
    #: the admin whose change stands; null for the configuration
    set_by: str | None

    @classmethod
    def of(cls, model: GovernedModel, pool: ClientPool) -> "AdminModelView":
        return cls._of(
            model.entry,
            provider_up=pool.is_up(model.entry.provider),
            since=model.since.at if model.since is not None else None,
            set_by=model.set_by,
        )


class AdminModelsView(msgspec.Struct, frozen=True):
    models: list[AdminModelView]
    changes: list[DecisionView]


class AdminGroupView(msgspec.Struct, frozen=True):
    """One group with its limits; `*` is the server."""

    name: str
    default_model: str | None
    on_missing_model: str
    set_by: str | None
    limits: list[GovernedLimit]

    @classmethod
    def of(cls, group: GovernedGroup) -> "AdminGroupView":
        defaults = group.defaults
        return cls(group.name, defaults.default_model, defaults.on_missing_model, group.set_by, group.limits)


class AdminGroupsView(msgspec.Struct, frozen=True):
    groups: list[AdminGroupView]
    changes: list[DecisionView]

    def heirs(self, limit: str) -> list[str]:
        """The groups that follow `user` in a limit."""
        return [
            group.name
            for group in self.groups
            if group.name != EVERYBODY and any(one.name == limit and one.inherited for one in group.limits)
        ]


class MoveView(View, frozen=True, rename={"from_model": "from", "to_model": "to"}):
    """A move of sessions and how far it is."""

    id: UUID
    from_model: str
    to_model: str
    reason: str
    state: str
    ordered_by: str
    total: int
    moved: int
    skipped: int
    note: str
    created_at: datetime
    ended_at: datetime | None

    @classmethod
    def of(cls, row: ModelMove) -> "MoveView":
        return cls._of(row, ordered_by=row.admin_name)


class MovesView(msgspec.Struct, frozen=True):
    moves: list[MoveView]


class SampleView(View, frozen=True):
    """One of the sessions that would be moved; what it is about is its owner's."""

    id: UUID
    owner: OwnerView
    locked: bool
    last_activity_at: datetime


class PreviewView(View, frozen=True, rename={"from_model": "from", "to_model": "to"}):
    """What a move would do now."""

    from_model: str
    to_model: str
    total: int
    running: int
    locked: int
    refused: int
    sample: list[SampleView]

    @classmethod
    def of(cls, found: Preview) -> "PreviewView":
        sample = [SampleView._of(session, owner=OwnerView.of(owner)) for session, owner in found.sample]
        return cls._of(found, sample=sample)


# ---------------------------------------------------------------- accounts


class LoginView(View, frozen=True):
    """Where an account is signed in."""

    id: UUID
    browser: str
    #: it is the one that asks
    current: bool
    created_at: datetime
    #: give or take an hour; reading does not count
    last_used_at: datetime
    expires_at: datetime


class TokenView(View, frozen=True):
    """A script's key, without its text."""

    id: UUID
    name: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None

    @classmethod
    def of(cls, token: ApiToken) -> "TokenView":
        return cls._of(token, scopes=token.scopes.split())


class MemberView(View, frozen=True):
    """An account in a list."""

    id: UUID
    name: str
    role: str
    group: str
    #: for programs alone: without a password and without logins
    service: bool
    disabled_at: datetime | None
    created_at: datetime

    @classmethod
    def of(cls, account: Account, *, service: bool = False) -> "MemberView":
        return cls._of(account, group=account.group_name, service=service)


class TemporaryView(View, frozen=True):
    """A password that somebody else has set; its owner replaces it at the next sign-in."""

    set_by: str
    set_at: datetime

    @classmethod
    def of(cls, password: TemporaryPassword) -> "TemporaryView":
        return cls._of(password)


class AccountView(MemberView, frozen=True):
    """An account with its logins, its tokens and what was done to it lately."""

    logins: list[LoginView] = []
    tokens: list[TokenView] = []
    #: null where the password is its owner's own
    temporary_password: TemporaryView | None = None
    #: the last of it, newest first
    activity: list[ActivityView] = []
    #: the text of the token just made; told only then
    token: str | None = None

    @classmethod
    def whole(cls, one: AccountState, actor: Actor, token: str | None = None) -> "AccountView":
        temporary = TemporaryView.of(one.temporary) if one.temporary is not None else None
        return cls._of(
            one.account,
            group=one.account.group_name,
            service=one.service,
            logins=[LoginView._of(login, current=login.id == actor.login_id) for login in one.logins],
            tokens=[TokenView.of(row) for row in one.tokens],
            temporary_password=temporary,
            activity=told(one.activity.rows, one.account.id, mine=one.account.id == actor.id),
            token=token,
        )


class AccountsView(msgspec.Struct, frozen=True):
    accounts: list[MemberView]
    next_cursor: str | None


# ---------------------------------------------------------------- what admins look through


class AdminDecisionView(DecisionView, frozen=True):
    """One row of the whole journal."""

    id: UUID
    actor_kind: str
    #: the account a token acted for
    on_behalf_of: UUID | None
    #: whom it concerns
    owner: OwnerView | None
    session_id: UUID | None
    turn_id: UUID | None

    @classmethod
    def whole(cls, decision: Decision) -> "AdminDecisionView":
        owner = OwnerView.of(decision.owner) if decision.owner is not None else None
        return cls._of(decision.row, actor=decision.row.actor_name, owner=owner)


class AdminJournalView(msgspec.Struct, frozen=True):
    journal: list[AdminDecisionView]
    next_cursor: UUID | None


class UsedView(View, frozen=True):
    """What somebody or something used."""

    name: str
    turns: int
    tokens: int
    #: money
    cost: float

    @classmethod
    def of(cls, used: Used) -> "UsedView":
        return cls._of(used, cost=used.cost_nanos / 1e9)


class UsageView(View, frozen=True):
    by: str
    first: date
    last: date
    rows: list[UsedView]
    total: UsedView

    @classmethod
    def of(cls, report: UsageReport) -> "UsageView":
        return cls._of(report, rows=[UsedView.of(row) for row in report.rows], total=UsedView.of(report.total))


# ---------------------------------------------------------------- the desk


class DeskSessionView(SessionView, frozen=True):
    """A session as the desk shows it."""

    group: str
    #: money, of its ended turns
    cost: float
    writing: Writing | None

    @classmethod
    def whole(cls, one: OnDesk) -> "DeskSessionView":
        plain = SessionView.of(one.session)
        row, owner = one.session.row, one.session.owner
        return cls._of(plain, group=owner.group_name, cost=row.cost_nanos / 1e9, writing=one.writing)


class DeskView(msgspec.Struct, frozen=True):
    sessions: list[DeskSessionView]
    next_cursor: str | None
    #: replies that are being written on the whole server
    running: int

    @classmethod
    def of(cls, page: DeskPage) -> "DeskView":
        return cls([DeskSessionView.whole(one) for one in page.sessions], cursor_of(page.next), page.running)


class OutcomesView(msgspec.Struct, frozen=True):
    """What became of each session of an order."""

    deed: str
    done: int
    outcomes: list[Outcome]

    @property
    def refused(self) -> list[Outcome]:
        return [one for one in self.outcomes if one.code]


def sessions_view(found: SessionPage) -> SessionsView:
    """A page of sessions, with the cursor of the next one."""
    return SessionsView([SessionView.of(live) for live in found.sessions], cursor_of(found.next))


def cursor_of(position: tuple[Any, UUID] | None) -> str | None:
    """Where the next page begins, as an URL carries it."""
    if position is None:
        return None
    place, session_id = position
    number = microseconds(place) if isinstance(place, datetime) else 0 if isinstance(place, UUID) else place
    return f"{number}-{session_id.hex}"

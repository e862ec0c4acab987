"""What templates and JSON see, built from what the services return."""

from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

import msgspec
from markupsafe import Markup

from db.tables import Journal, ModelMove, Turn
from services.actor import Actor
from services.catalogue import CurrentModel, Entry
from services.client_pool import ClientPool
from services.governance import GovernedGroup, GovernedLimit, GovernedModel
from services.moves import Preview
from services.outcomes import Extension, LiveSession, Switch
from services.policies import Allowance
from web.markdown import Growing, Grown, html_of


class OwnerView(msgspec.Struct, frozen=True):
    id: UUID
    name: str


class SessionView(msgspec.Struct, frozen=True):
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

    @classmethod
    def of(cls, live: LiveSession) -> "SessionView":
        row = live.row
        return cls(
            row.id,
            live.title,
            OwnerView(live.owner.id, live.owner.name),
            live.state,
            row.last_model,
            live.current,
            row.locked,
            row.version,
            row.created_at,
            row.last_activity_at,
            live.deadline,
            row.turn_count,
            live.running_turn,
        )

    @property
    def url(self) -> str:
        return f"/session/{self.id}"


class SessionsView(msgspec.Struct, frozen=True):
    sessions: list[SessionView]
    next_cursor: str | None


class TurnError(msgspec.Struct, frozen=True):
    code: str
    detail: str


class TurnView(msgspec.Struct, frozen=True):
    id: UUID
    session_id: UUID
    parent_id: UUID | None
    prompt: str
    #: what is written so far while it runs
    reply: str
    model: str
    state: str
    error: TurnError | None
    prompt_tokens: int
    reply_tokens: int
    estimated: bool
    #: money
    cost: float
    context_left_out: int
    created_at: datetime
    first_text_at: datetime | None
    ended_at: datetime | None

    @classmethod
    def of(cls, turn: Turn, text: str = "") -> "TurnView":
        """`text` is what a running turn has written so far."""
        return cls(
            turn.id,
            turn.session_id,
            turn.parent_id,
            turn.prompt,
            text if turn.reply is None else turn.reply,
            turn.model,
            turn.state,
            TurnError(turn.error_code, turn.error_detail or "") if turn.error_code else None,
            turn.prompt_tokens,
            turn.reply_tokens,
            turn.estimated,
            turn.cost_nanos / 1e9,
            turn.context_left_out,
            turn.created_at,
            turn.first_text_at,
            turn.ended_at,
        )

    @classmethod
    def for_actor(cls, turn: Turn, actor: Actor) -> "TurnView":
        """An ended turn as `actor` may see it: its text is its owner's alone."""
        view = cls.of(turn)
        return view if turn.owner_id == actor.id else msgspec.structs.replace(view, prompt="", reply="")

    @property
    def html(self) -> Markup:
        """The reply as it is shown once it has ended."""
        return html_of(self.reply)

    @property
    def growing(self) -> Grown:
        """The reply as far as it is written: finished blocks, and the open one."""
        return Growing().add(self.reply)

    @property
    def seconds(self) -> float | None:
        """From acceptance to the end."""
        return (self.ended_at - self.created_at).total_seconds() if self.ended_at else None


class TurnsView(msgspec.Struct, frozen=True):
    turns: list[TurnView]
    next_cursor: str | None
    #: what the model is told before all of them
    instructions: str


class ModelView(msgspec.Struct, frozen=True):
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
        return cls(
            entry.id,
            entry.label,
            entry.state,
            pool.is_up(entry.provider) if pool.has(entry.provider) else False,
            entry.context_tokens,
            entry.price_in_nanos / 1000,
            entry.price_out_nanos / 1000,
            entry.replacement,
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


class ExtensionView(msgspec.Struct, frozen=True):
    extended: bool
    expires_at: datetime | None
    reason: str

    @classmethod
    def of(cls, extension: Extension) -> "ExtensionView":
        return cls(extension.extended, extension.expires_at, extension.reason)


class DecisionView(msgspec.Struct, frozen=True, rename={"from_value": "from", "to_value": "to"}):
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
        return cls(
            row.at,
            row.actor_name,
            row.what,
            row.outcome,
            row.reason,
            row.from_value,
            row.to_value,
            row.version,
            row.request_id,
        )


class TimelineView(msgspec.Struct, frozen=True):
    journal: list[DecisionView]


class HealthView(msgspec.Struct, frozen=True):
    status: str


def models_view(entries: Iterable[Entry], pool: ClientPool, default: str | None) -> ModelsView:
    return ModelsView([ModelView.of(entry, pool) for entry in entries], default)


class AdminModelView(msgspec.Struct, frozen=True):
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
        entry = model.entry
        return cls(
            entry.id,
            entry.label,
            entry.provider,
            pool.is_up(entry.provider) if pool.has(entry.provider) else False,
            entry.state,
            entry.state_reason,
            model.since.at if model.since is not None else None,
            entry.replacement,
            entry.groups,
            entry.concurrent_turns,
            model.set_by,
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


class MoveView(msgspec.Struct, frozen=True, rename={"from_model": "from", "to_model": "to"}):
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
        return cls(
            row.id,
            row.from_model,
            row.to_model,
            row.reason,
            row.state,
            row.admin_name,
            row.total,
            row.moved,
            row.skipped,
            row.note,
            row.created_at,
            row.ended_at,
        )


class MovesView(msgspec.Struct, frozen=True):
    moves: list[MoveView]


class SampleView(msgspec.Struct, frozen=True):
    """One of the sessions that would be moved; what it is about is its owner's."""

    id: UUID
    owner: OwnerView
    locked: bool
    last_activity_at: datetime


class PreviewView(msgspec.Struct, frozen=True, rename={"from_model": "from", "to_model": "to"}):
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
        sample = [
            SampleView(session.id, OwnerView(owner.id, owner.name), session.locked, session.last_activity_at)
            for session, owner in found.sample
        ]
        return cls(found.from_model, found.to_model, found.total, found.running, found.locked, found.refused, sample)

"""Every verb with arguments picked from what there is: one description for whoever chooses, hypothesis or chance."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import msgspec

from db.db_session import DbSession, Piece
from db.tables import AccountGroup, LimitRule, Model
from services.actor import Actor
from services.brought import Brought
from services.clients import Usage
from services.errors import Forbidden, NotFound, Refusal
from services.reads import Reads
from services.session_service import SessionService
from services.turn_log import Delta, Position, Thought, TurnLog
from tests.conftest import Clock
from tests.services.invariants import Ledger, Row, text_of_turns

Pick = Callable[[Sequence[Any]], Any]
NOBODYS = UUID("019df000-0000-7000-8000-000000000000")
MODELS = ["fast", "smart", "aging", "quick", "small", "old", "off", "hidden", "far", "no-such-model"]
#: conversations that a script tells
TOLD = [[], [("One", "1")], [("One", "1"), ("Two", "")]]
TEXTS = ["a", "ü🦊 b", "x" * 40]


async def set_limit(group: str, name: str, value: str) -> None:
    """An admin sets one limit of a group."""
    await LimitRule.delete().where(LimitRule.group_name == group, LimitRule.name == name)
    await LimitRule.insert(LimitRule(group_name=group, name=name, value=value, set_by="ada"))


@dataclass
class Call:
    """One call of a verb."""

    actor: Actor
    do: Callable[[DbSession], Awaitable[Any]]
    #: as the service names it, with the key it is called under
    verb: str = ""
    key: str | None = None
    #: when nothing else happens meanwhile, this changes nothing
    harmless: bool = False


@dataclass
class Verbs:
    """What can be done in a world of five actors, some workers and their turns."""

    cast: list[Actor]
    worker: SessionService
    clock: Clock
    ledger: Ledger
    #: workers that were killed, and may wake
    killed: list[SessionService] = field(default_factory=list)
    #: one runner at a time commits text
    committing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.ann, self.bob, self.ada, self.guest, self.script = self.cast

    # ------------------------------------------------------------ whom, what

    def _session(self, pick: Pick) -> Row:
        newest = sorted(self.ledger.rows["session"], key=lambda row: row["id"], reverse=True)[:4]
        return pick(newest or [{"id": NOBODYS, "owner_id": self.ann.id, "version": 0}])

    def _turn(self, pick: Pick) -> Row:
        rows = sorted(self.ledger.rows["turn"], key=lambda row: (row["state"] != "running", row["id"].int * -1))[:4]
        return pick(rows or [{"id": NOBODYS, "session_id": NOBODYS, "owner_id": self.ann.id, "state": "done"}])

    def _whose(self, row: Row, pick: Pick) -> Actor:
        """Mostly the owner."""
        return pick([*[one for one in self.cast if one.id == row["owner_id"]] * 4, *self.cast])

    def _key(self, pick: Pick) -> str | None:
        return pick([None, None, "k1", "k2"])

    def _holds(self, worker: SessionService, turn: Row) -> bool:
        return (
            turn["state"] == "running" and turn["lease_owner"] == worker.worker and turn["lease_until"] > self.clock()
        )

    # ------------------------------------------------------------ sessions

    def create(self, pick: Pick) -> Call:
        actor, key = pick(self.cast), self._key(pick)
        model, title = pick([None] * 8 + MODELS), pick(["", "Plans"])
        return Call(
            actor,
            lambda db: self.worker.create_session(db, actor=actor, model=model, title=title, key=key),
            "create_session",
            key,
        )

    def ensure(self, pick: Pick) -> Call:
        session = self._session(pick)
        actor, id = self._whose(session, pick), pick([None, session["id"]])
        return Call(actor, lambda db: self.worker.ensure_session(id, db, actor=actor), harmless=id is not None)

    def rename(self, pick: Pick) -> Call:
        session, key, title = self._session(pick), self._key(pick), pick(["", "Plans", "Other plans"])
        actor = self._whose(session, pick)
        return Call(
            actor,
            lambda db: self.worker.rename_session(session["id"], title, db, actor=actor, key=key),
            "rename_session",
            key,
        )

    def extend(self, pick: Pick) -> Call:
        session, key = self._session(pick), self._key(pick)
        actor = self._whose(session, pick)
        return Call(
            actor,
            lambda db: self.worker.extend_session(session["id"], db, actor=actor, key=key),
            "extend_session",
            key,
        )

    def close(self, pick: Pick) -> Call:
        session, key = self._session(pick), self._key(pick)
        actor = self._whose(session, pick)
        return Call(
            actor,
            lambda db: self.worker.close_session(session["id"], db, actor=actor, reason="done with it", key=key),
            "close_session",
            key,
        )

    def reopen(self, pick: Pick) -> Call:
        session, key = self._session(pick), self._key(pick)
        actor = self._whose(session, pick)
        return Call(
            actor,
            lambda db: self.worker.reopen_session(session["id"], db, actor=actor, key=key),
            "reopen_session",
            key,
        )

    def pin(self, pick: Pick) -> Call:
        session, key, pinned = self._session(pick), self._key(pick), pick([True, True, False])
        actor = self._whose(session, pick)
        return Call(
            actor,
            lambda db: self.worker.pin_session(session["id"], db, actor=actor, pinned=pinned, key=key),
            "pin_session" if pinned else "unpin_session",
            key,
            harmless=session.get("pinned") == pinned and key is None,
        )

    def archive(self, pick: Pick) -> Call:
        session, key, archived = self._session(pick), self._key(pick), pick([True, True, False])
        actor = self._whose(session, pick)
        return Call(
            actor,
            lambda db: self.worker.archive_session(session["id"], db, actor=actor, archived=archived, key=key),
            "archive_session" if archived else "unarchive_session",
            key,
            harmless=session.get("archived") == archived and key is None,
        )

    def delete(self, pick: Pick) -> Call:
        session, key, for_good = self._session(pick), self._key(pick), pick([False, False, True])
        reason = pick(["", "done with it", "done with it"])
        actor = self._whose(session, pick)
        return Call(
            actor,
            lambda db: self.worker.delete_session(
                session["id"], db, actor=actor, for_good=for_good, reason=reason, key=key
            ),
            "delete_session",
            key,
        )

    def restore(self, pick: Pick) -> Call:
        session, key = self._session(pick), self._key(pick)
        actor = self._whose(session, pick)
        return Call(
            actor,
            lambda db: self.worker.restore_session(session["id"], db, actor=actor, key=key),
            "restore_session",
            key,
            harmless=session.get("deleted_at") is None and key is None,
        )

    def fork(self, pick: Pick) -> Call:
        session, key = self._session(pick), self._key(pick)
        actor, turn_id = self._whose(session, pick), pick([None, None, self._turn(pick)["id"]])
        return Call(
            actor,
            lambda db: self.worker.fork_session(session["id"], db, actor=actor, turn_id=turn_id, key=key),
            "fork_session",
            key,
        )

    def import_(self, pick: Pick) -> Call:
        actor, key, model = pick(self.cast), self._key(pick), pick([None, *MODELS])
        brought = msgspec.structs.replace(Brought.told("Be brief.", pick(TOLD)), model=model)
        return Call(
            actor,
            lambda db: self.worker.import_session(brought, db, actor=actor, key=key),
            "import_session",
            key,
        )

    def begin_told(self, pick: Pick) -> Call:
        session, key = self._session(pick), self._key(pick)
        actor, id, cap = self._whose(session, pick), pick([None, None, session["id"]]), pick([0, 0, 5])
        brought = Brought.told(pick(["", "Be brief."]), pick(TOLD) if id is None else [])
        return Call(
            actor,
            lambda db: self.worker.begin_turn(id, "Hello", db, actor=actor, brought=brought, cap=cap, key=key),
            "begin_turn",
            key,
        )

    def adopt(self, pick: Pick) -> Call:
        actor = pick([self.ann, self.ann, self.ada])

        async def adopt(db: DbSession) -> int:
            adopted = await self.worker.adopt_sessions(self.guest.id, db, actor=actor)
            if adopted:  # whoever has no session left brings nothing along
                self.ledger.give(self.guest.id, actor.id)
            return adopted

        return Call(actor, adopt)

    def switch(self, pick: Pick) -> Call:
        session, key, model = self._session(pick), self._key(pick), pick(["fast", "smart", *MODELS])
        actor, when = self._whose(session, pick), pick(["next_turn", "stop", "idle"])
        lock, version = pick([None, None, None, True, False]), pick([None, None, session["version"], 99])
        reason = pick(["", "costs"])
        return Call(
            actor,
            lambda db: self.worker.switch_model(
                session["id"],
                model,
                db,
                actor=actor,
                when=when,
                reason=reason,
                lock=lock,
                expected_version=version,
                key=key,
            ),
            "switch_model",
            key,
        )

    # ------------------------------------------------------------ turns

    def begin(self, pick: Pick) -> Call:
        session, key, prompt = self._session(pick), self._key(pick), pick(["Hello", "Hello", "Tell me more. " * 20])
        actor, id = self._whose(session, pick), pick([session["id"], session["id"], None])
        model, version = pick([None] * 8 + MODELS), pick([None] * 4 + [session["version"], 99])
        parent_id = pick([None, None, None, self._turn(pick)["id"]])
        return Call(
            actor,
            lambda db: self.worker.begin_turn(
                id, prompt, db, actor=actor, model=model, parent_id=parent_id, expected_version=version, key=key
            ),
            "begin_turn",
            key,
        )

    def begin_as_said(self, pick: Pick) -> Call:
        """A turn uses the model that was shown just before (M8)."""
        session = self._session(pick)
        actor = self._whose(session, pick)

        async def begin(db: DbSession) -> Any:
            shown = None
            with suppress(NotFound):
                shown = await self.worker.current_model(session["id"], db, actor=actor)
            begun = await self.worker.begin_turn(session["id"], "Hello", db, actor=actor)
            assert shown is not None and begun.turn.model == shown.id
            return begun

        return Call(actor, begin)

    def retry(self, pick: Pick) -> Call:
        turn, key, model = self._turn(pick), self._key(pick), pick([None] * 8 + MODELS)
        actor = self._whose(turn, pick)
        return Call(
            actor,
            lambda db: self.worker.retry_turn(turn["id"], db, actor=actor, model=model, key=key),
            "retry_turn",
            key,
        )

    def edit(self, pick: Pick) -> Call:
        turn, key, model = self._turn(pick), self._key(pick), pick([None] * 8 + MODELS)
        actor = self._whose(turn, pick)
        return Call(
            actor,
            lambda db: self.worker.edit_turn(turn["id"], "Rather this", db, actor=actor, model=model, key=key),
            "edit_turn",
            key,
        )

    def append(self, pick: Pick) -> Call:
        """What comes next; or again what came last, and more, as after a commit that was not acknowledged."""
        turn, worker = self._turn(pick), pick([self.worker, self.worker, *self.killed])
        text, again = pick(TEXTS), pick([False, False, True])
        reasoning = text == TEXTS[0]

        async def append(db: DbSession) -> None:
            async with self.committing:
                start, before = await self._end_of(turn, db, again, reasoning)
                piece = Piece(turn["session_id"], turn["id"], start, before + text, reasoning)
                held = await worker.append([piece], db)
            assert held <= {turn["id"]}

        return Call(self.ann, append, harmless=not self._holds(worker, turn))

    def finish(self, pick: Pick) -> Call:
        turn, worker = self._turn(pick), pick([self.worker, self.worker, *self.killed])
        tail, again, state = pick(["", *TEXTS]), pick([None, False, True]), pick(["done", "failed"])
        usage = pick([None, Usage(7, 11), Usage(10**12, 0)])

        async def finish(db: DbSession) -> None:
            # A deleted turn; the runner lets that pass as well.
            async with self.committing:
                with suppress(NotFound):
                    start, before = await self._end_of(turn, db, bool(again))
                    at = start if again is not None else None
                    await worker.finish_turn(turn["id"], db, state=state, usage=usage, tail=before + tail, start=at)

        return Call(self.ann, finish, harmless=not self._holds(worker, turn))

    async def _end_of(self, turn: Row, db: DbSession, again: bool, reasoning: bool = False) -> tuple[int, str]:
        pieces = await db.list_pieces(turn["id"], reasoning=reasoning)
        if again and pieces:
            return pieces[-1]
        return (pieces[-1][0] + len(pieces[-1][1]) if pieces else 0), ""

    def heartbeat(self, pick: Pick) -> Call:
        turn, worker = self._turn(pick), pick([self.worker, self.worker, *self.killed])
        return Call(self.ann, lambda db: worker.heartbeat([turn["id"]], db), harmless=not self._holds(worker, turn))

    def stop(self, pick: Pick) -> Call:
        turn, key = self._turn(pick), self._key(pick)
        actor = self._whose(turn, pick)
        return Call(
            actor,
            lambda db: self.worker.stop_turn(turn["id"], db, actor=actor, key=key),
            "stop_turn",
            key,
            harmless=turn["state"] != "running" and key is None,
        )

    def choose(self, pick: Pick) -> Call:
        turn, key = self._turn(pick), self._key(pick)
        actor = self._whose(turn, pick)
        return Call(
            actor,
            lambda db: self.worker.choose_turn(turn["id"], db, actor=actor, key=key),
            "choose_turn",
            key,
        )

    def keep(self, pick: Pick) -> Call:
        """Something is typed and not sent."""
        session, text = self._session(pick), pick(TEXTS)
        actor = self._whose(session, pick)
        return Call(actor, lambda db: self.worker.keep_draft(session["id"], text, db, actor=actor))

    def sweep(self, pick: Pick) -> Call:
        alone, thorough = pick([False, False, True]), pick([True, True, False])
        return Call(self.ann, lambda db: self.worker.sweep(db, alone=alone, thorough=thorough))

    # ------------------------------------------------------------ the world

    def kill(self, pick: Pick) -> Call:
        """Another worker takes over; what the killed one ran stays behind."""

        async def kill(_: DbSession) -> None:
            self.killed.append(self.worker)
            runner, self.worker = self.worker.runner, SessionService(self.worker.pool, self.worker.bus, now=self.clock)
            assert runner is not None
            self.worker.runner = runner

        return Call(self.ann, kill, harmless=True)

    def wait(self, pick: Pick) -> Call:
        seconds = pick([1, 7, 31, 61, 1801, 86401, 31 * 86400])

        async def wait(_: DbSession) -> None:
            self.clock.pass_(seconds=seconds)

        return Call(self.ann, wait, harmless=True)

    def offer(self, pick: Pick) -> Call:
        """A model changes its state, or goes, or comes back."""
        id, state = pick(["fast", "smart", "aging"]), pick(["active", "disabled", "retired", "deprecated"])
        replacement, gone = pick([None, "fast", "smart", "small"]), pick([False, False, False, True])

        async def offer(db: DbSession) -> None:
            rows = await Model.select().where(Model.id == "small")
            await Model.delete().where(Model.id == id)
            if not gone:
                aliases = "quick" if id == "fast" else ""
                changes = {"id": id, "upstream": f"upstream of {id}", "aliases": aliases, "state": state}
                await db.add(Model(**{**rows[0], **changes, "replacement": replacement, "context_tokens": 0}))

        return Call(self.ada, offer)

    def default(self, pick: Pick) -> Call:
        """A group's default changes, and what holds where a model is missing."""
        group, model, missing = pick(["*", "user", "guest"]), pick([None, "fast", "smart"]), pick(["fallback", "block"])

        async def change(_: DbSession) -> None:
            values = {AccountGroup.default_model: model, AccountGroup.on_missing_model: missing}
            await AccountGroup.update(values).where(AccountGroup.name == group)

        return Call(self.ada, change)

    def limit(self, pick: Pick) -> Call:
        """An admin changes a limit."""
        group = pick(["user", "user", "guest"])
        name, value = pick(
            [
                *[("turns", value) for value in ("0", "1/min", "6/min burst 3")],
                *[("switches", value) for value in ("0", "2/min")],
                *[("sessions_created", value) for value in ("0", "2/min")],
                *[("concurrent_turns", value) for value in ("1", "2", "0")],
                *[("open_sessions", value) for value in ("2", "4", "0")],
                *[("tokens_per_day", value) for value in ("0", "9000")],
                *[("money_per_month", value) for value in ("0", "0.01")],
                *[("idle", value) for value in ("0", "30min", "30d")],
                *[("absolute", value) for value in ("0", "24h")],
            ]
        )

        async def change(_: DbSession) -> None:
            await set_limit(group, name, value)

        return Call(self.ada, change)

    def provider(self, pick: Pick) -> Call:
        up = pick([True, True, False])

        async def note(_: DbSession) -> None:
            self.worker.pool.note("builtin", up)

        return Call(self.ada, note, harmless=True)

    # ------------------------------------------------------------ reading, and what must not be seen

    def read(self, pick: Pick) -> Call:
        """Everything that can be read (I6)."""
        session, turn = self._session(pick), self._turn(pick)
        actor, offset, state = self._whose(session, pick), pick([0, 1, 1000]), pick(["", "active", "expired", "closed"])
        show = pick(["", "pinned", "archived", "deleted"])

        async def read(db: DbSession) -> None:
            reads, id, worker = Reads(self.worker), session["id"], self.worker
            await worker.list_sessions(db, actor=actor, everybody=actor.is_admin, state=state)
            await worker.list_sessions(db, actor=actor, q="hello", show=show)
            await worker.default_model(db, actor=actor)
            await worker.models(db, actor=actor)
            await worker.allowances(db, actor=actor)
            with suppress(NotFound, Forbidden):
                await reads.turn(turn["id"], db, actor=actor)
            with suppress(NotFound, Forbidden):
                await worker.current_model(id, db, actor=actor)
                await reads.timeline(id, db, actor=actor)
                live = await worker.get_session(id, db, actor=actor)
                await reads.siblings(live, db, actor=actor)
                await reads.transcript(live, db, actor=actor)
            await self._follow(id, Position(turn["id"], offset), actor, db)

        return Call(actor, read, harmless=True)

    async def _follow(self, session_id: UUID, position: Position, actor: Actor, db: DbSession) -> None:
        """What a stream says that begins now: only what is stored (I13)."""
        ended = asyncio.Event()
        ended.set()
        log = TurnLog(self.worker, self.worker.bus, lambda: DbSession(db.engine), ended)
        stored = text_of_turns(self.ledger.rows)
        async for event in log.follow_session(session_id, position, actor):
            if isinstance(event, Delta | Thought):
                assert stored[event.turn_id, isinstance(event, Thought)][event.offset :].startswith(event.text)

    def foreign(self, pick: Pick) -> Call:
        """What is not mine is refused as what is not there (I11)."""
        session, turn, worker = self._session(pick), self._turn(pick), self.worker
        session_verb = pick(
            [
                lambda id, db, actor: worker.ensure_session(id, db, actor=actor),
                lambda id, db, actor: worker.rename_session(id, "Mine", db, actor=actor, key="foreign"),
                lambda id, db, actor: worker.extend_session(id, db, actor=actor),
                lambda id, db, actor: worker.close_session(id, db, actor=actor),
                lambda id, db, actor: worker.reopen_session(id, db, actor=actor),
                lambda id, db, actor: worker.delete_session(id, db, actor=actor),
                lambda id, db, actor: worker.delete_session(id, db, actor=actor, for_good=True),
                lambda id, db, actor: worker.restore_session(id, db, actor=actor),
                lambda id, db, actor: worker.pin_session(id, db, actor=actor),
                lambda id, db, actor: worker.archive_session(id, db, actor=actor),
                lambda id, db, actor: worker.fork_session(id, db, actor=actor),
                lambda id, db, actor: worker.keep_draft(id, "Mine", db, actor=actor),
                lambda id, db, actor: worker.switch_model(id, "no-such-model", db, actor=actor, lock=True),
                lambda id, db, actor: worker.begin_turn(id, "Hello", db, actor=actor, expected_version=99),
            ]
        )
        turn_verb = pick(
            [
                lambda id, db, actor: worker.stop_turn(id, db, actor=actor),
                lambda id, db, actor: worker.retry_turn(id, db, actor=actor, model="no-such-model"),
                lambda id, db, actor: worker.edit_turn(id, "Mine", db, actor=actor),
                lambda id, db, actor: worker.choose_turn(id, db, actor=actor),
            ]
        )

        async def compare(db: DbSession) -> None:
            for row, verb in ((session, session_verb), (turn, turn_verb)):
                for actor in (self.ann, self.bob, self.guest, self.script):
                    if actor.id != row["owner_id"]:
                        assert await self._told(verb, row["id"], db, actor) == await self._told(
                            verb, NOBODYS, db, actor
                        )

        return Call(self.bob, compare, harmless=True)

    def hidden(self, pick: Pick) -> Call:
        """What is hidden from me is refused as what is not there (I11)."""
        actor = pick([self.ann, self.bob, self.guest, self.script])

        def create(model: str, db: DbSession, actor: Actor) -> Awaitable[Any]:
            return self.worker.create_session(db, actor=actor, model=model)

        async def compare(db: DbSession) -> None:
            told = [await self._told(create, model, db, actor) for model in ("hidden", "sesame")]
            assert str(told[0]).replace("hidden", "sesame") == str(told[1])

        return Call(actor, compare, harmless=True)

    async def _told(self, verb: Callable[..., Awaitable[Any]], id: Any, db: DbSession, actor: Actor) -> Any:
        try:
            await verb(id, db, actor)
        except Refusal as refusal:
            self.ledger.note(refusal, actor)
            return refusal.code, str(refusal), refusal.facts
        raise AssertionError("not refused")


#: a world whose names are its own
VERBS = [name for name in vars(Verbs) if not name.startswith("_") and callable(getattr(Verbs, name))]

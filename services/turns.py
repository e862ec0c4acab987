"""The rows of turns: begun under a lease, ended once, and never changed after.

A collaborator of SessionService, which opens the transaction and holds the session's row before it calls anything
here that writes.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from db import addresses
from db.db_session import DbSession, Piece, new_id
from db.tables import Session, Turn
from services.actor import SYSTEM, Actor
from services.brought import BroughtTurn
from services.catalogue import CurrentModel, Entry
from services.clients import Message, Usage
from services.context import reply_tokens, tokens_asked
from services.counts import Counts
from services.event_bus import EventBus, Hint
from services.outcomes import End, Runner, TurnOrder
from services.records import publish, record, told_of
from services.rules import Rules
from services.standing import Standing
from services.text import tokens_of

#: how long a worker may write to a turn without renewing
LEASE = timedelta(seconds=30)
#: more than this no provider counts in earnest
MOST_TOKENS = 100_000_000
INTERRUPTED = ("interrupted", "The server stopped while this reply was being written.")


class Tail(NamedTuple):
    """Text of a reply, or of its reasoning, that is not appended yet."""

    text: str = ""
    #: characters before it; None for all there are
    start: int | None = None

    def behind(self, before: str) -> str:
        """What it follows: text whose commit was not acknowledged may be there already, and comes again in the tail."""
        return before if self.start is None or not self.text else before[: self.start]


NO_TAIL = Tail()


class Turns:
    """What one worker does to turns."""

    def __init__(
        self, standing: Standing, bus: EventBus, worker: UUID, now: Callable[[], datetime], counts: Counts
    ) -> None:
        self._standing = standing
        self._bus = bus
        self._counts = counts
        #: the name under which this process holds turns
        self.worker = worker
        self.now = now
        #: set by whoever runs turns; without one a turn waits for its lease to lapse
        self.runner: Runner | None = None

    def new(
        self,
        session: Session,
        parent: Turn | None,
        prompt: str,
        entry: Entry,
        why: CurrentModel,
        messages: Sequence[Message],
        left_out: int,
    ) -> Turn:
        """A turn under this worker's lease, not yet written, with what it may use at most."""
        now = self.now()
        asked, cap = tokens_asked(messages), reply_tokens(entry)
        return Turn(
            id=new_id(),
            session_id=session.id,
            owner_id=session.owner_id,
            parent_id=parent.id if parent is not None else None,
            depth=parent.depth + 1 if parent is not None else 1,
            prompt=prompt,
            model=entry.id,
            model_source=why.source,
            model_reason=why.reason,
            state="running",
            prompt_tokens=asked,
            reserved_tokens=asked + cap,
            reserved_nanos=asked * entry.price_in_nanos + cap * entry.price_out_nanos,
            context_left_out=left_out,
            lease_owner=self.worker,
            lease_until=now + LEASE,
            created_at=now,
        )

    def brought(self, session: Session, turns: Sequence[BroughtTurn], ids: Sequence[UUID]) -> Iterator[dict[str, Any]]:
        """The columns of ended turns from outside, under new ids; nothing is charged for them."""
        now, depths = self.now(), list[int]()
        for turn, id in zip(turns, ids, strict=True):
            facts = msgspec.structs.asdict(turn)
            after = facts.pop("after")
            depths.append(depths[after] + 1 if after is not None else 1)
            created_at = turn.created_at or now
            yield facts | {
                "id": id,
                "session_id": session.id,
                "owner_id": session.owner_id,
                "parent_id": ids[after] if after is not None else None,
                "depth": depths[-1],
                "reserved_tokens": 0,
                "reserved_nanos": 0,
                "lease_owner": self.worker,
                "lease_until": now,
                "created_at": created_at,
                "ended_at": turn.ended_at or created_at,
            }

    def start(self, order: TurnOrder, db_session: DbSession) -> None:
        """Hand a begun turn to the runner after the commit."""
        if self.runner is not None:
            runner = self.runner
            db_session.after_commit(lambda: runner.start(order), in_doubt=lambda: runner.seek(order))

    async def running(self, session: Session, db_session: DbSession) -> Turn | None:
        """The turn that runs in a session that is being changed; one whose lease lapsed ends here."""
        running = await db_session.find_running_turn(session.id)
        if running is not None and running.lease_until <= self.now():
            await self.interrupt(session, running, db_session)
            return None
        return running

    async def stop_running(self, session: Session, actor: Actor, db_session: DbSession) -> None:
        """Stop what runs in a session, if anything does."""
        running = await db_session.find_running_turn(session.id)
        if running is not None:
            await self.stop(session, running, actor, db_session)

    async def stop(self, session: Session, turn: Turn, actor: Actor, db_session: DbSession) -> None:
        """Stop a running turn and keep its text; one whose lease has lapsed was interrupted before."""
        if turn.lease_until <= self.now():
            await self.interrupt(session, turn, db_session)
        else:
            await self.end(session, turn, "stopped", actor, db_session)

    async def interrupt(self, session: Session, turn: Turn, db_session: DbSession) -> None:
        """End a turn whose worker is gone, keeping what it wrote.

        One whose lease has lapsed ended then, whenever somebody notices, and nobody was there to slide the session.
        """
        lapsed_at = turn.lease_until if turn.lease_until <= self.now() else None
        await self.end(session, turn, "interrupted", SYSTEM, db_session, error=INTERRUPTED, at=lapsed_at)

    async def end(
        self,
        session: Session,
        turn: Turn,
        state: End,
        actor: Actor,
        db_session: DbSession,
        usage: Usage | None = None,
        error: tuple[str, str] | None = None,
        tail: Tail = NO_TAIL,
        thought: Tail = NO_TAIL,
        at: datetime | None = None,
    ) -> None:
        """Write a running turn's end: its whole text, what it used, and why it ended.

        `tail` is of the reply, `thought` of the reasoning. `at` is when it ended; None for now, and the session slides.
        """
        now, ended_at, rules = self.now(), at or self.now(), await Rules.now(db_session)
        code, detail = error or (None, None)
        before = await db_session.text_of(turn.id)
        kept, thought_before = tail.behind(before.reply), thought.behind(before.reasoning)
        reply, reasoning = kept + tail.text, thought_before + thought.text
        counted = usage if usage is not None and _credible(usage) else None
        prompt_tokens = counted.prompt_tokens if counted is not None else turn.prompt_tokens
        reply_tokens = counted.reply_tokens if counted is not None else tokens_of(reply) + tokens_of(reasoning)
        cost = rules.catalogue.cost_nanos(turn.model, prompt_tokens, reply_tokens)
        await db_session.update(
            turn,
            reply=reply,
            reasoning=reasoning,
            state=state,
            error_code=code,
            error_detail=detail,
            prompt_tokens=prompt_tokens,
            reply_tokens=reply_tokens,
            estimated=counted is None,
            cost_nanos=cost,
            first_text_at=turn.first_text_at or (ended_at if reply or reasoning else None),
            first_reply_at=turn.first_reply_at or (ended_at if reply else None),
            ended_at=ended_at,
        )
        await db_session.index_turn(turn)
        await db_session.delete_pieces(turn.id)
        day, used = rules.day_of(ended_at), prompt_tokens + reply_tokens
        await db_session.add_usage(turn.owner_id, day, turn.model, used, cost)
        for address in await addresses.release_turn(turn.id):
            await addresses.add_usage(address, day, used, cost)
        slides = at is None and not await self._standing.over(session, db_session)
        active_at = now if slides else session.last_activity_at
        await db_session.update(session, last_activity_at=active_at, cost_nanos=session.cost_nanos + cost)
        await record("turn_ended", session, actor, now, db_session, turn=turn, reason=code or "", outcome=state)
        for piece in (
            Piece(session.id, turn.id, len(thought_before), thought.text, reasoning=True),
            Piece(session.id, turn.id, len(kept), tail.text),
        ):
            if piece.text:
                publish(self._bus, told_of(piece), db_session)
        publish(self._bus, Hint(session.id, "turn_ended", turn.id), db_session)
        db_session.after_commit(self._counts.ended(turn))
        if self.runner is not None:
            runner = self.runner
            db_session.after_commit(lambda: runner.stop(turn.id))


def _credible(usage: Usage) -> bool:
    """Whether a column holds these figures; where not, ours are nearer."""
    return all(0 <= count <= MOST_TOKENS for count in (usage.prompt_tokens, usage.reply_tokens))

"""What the controls of a session page show, for the answer to a verb and for the live page alike."""

from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any
from uuid import UUID

import msgspec
from litestar import Request

from db.db_session import DbSession
from db.tables import Turn
from services.actor import Actor
from services.client_pool import ClientPool
from services.errors import NotFound
from services.outcomes import LiveSession
from services.reads import Reads, is_quiet
from services.session_service import SessionService
from services.turn_log import Begun, Changed, Delta, Ended, Event, Gone, Thought
from web.answer import wants
from web.given import Db, Pool, Rendering, Sessions, Who
from web.markdown import Growing
from web.rendering import Renderer
from web.templating import render
from web.views import (
    LineView,
    LockView,
    SessionView,
    TurnView,
    WaysView,
    WhyView,
    lines_between,
    models_view,
    texts_of,
)


class Controls:
    """The context of the fragments around a session, for one actor."""

    def __init__(
        self,
        sessions: SessionService,
        db_session: DbSession,
        actor: Actor,
        pool: ClientPool,
        renderer: Renderer,
        *,
        needed: bool = True,
    ) -> None:
        self._sessions, self._db_session, self._actor, self._pool = sessions, db_session, actor, pool
        self._renderer, self._grow = renderer, partial(renderer.grow, actor.id)
        #: whether the answer is HTML at all
        self._needed = needed
        #: the reasoning and the reply this stream shows while they are written, with their turn
        self._growing: dict[type[Event], tuple[UUID, Growing]] = {}
        #: turns that this stream tells of and that the page has not: the log shows them with the last of them
        self._owed: set[UUID] = set()
        #: the last of them, where it came with all its text
        self._shown: set[UUID] = set()

    async def of(self, session: LiveSession, *turns: Turn) -> dict[str, Any]:
        """session, mine, models, reasons, why, limits, ways (of these turns), line; nothing for a script."""
        if not self._needed:
            return {}
        entries = await self._sessions.models(self._db_session, actor=self._actor)
        mine, ways, switch = session.row.owner_id == self._actor.id, {}, session.last_switch
        if mine and turns:
            found = await Reads(self._sessions).ways(session, turns, self._db_session, actor=self._actor)
            ways = {turn_id: WaysView.of(turn_id, ones) for turn_id, ones in found.items()}
        lock = await Reads(self._sessions).lock(session, self._db_session)
        new = switch is not None and switch.version == session.row.version and not is_quiet(switch)
        return {
            "session": SessionView.of(session),
            "mine": mine,
            "why": WhyView.of(session, self._actor),
            "ways": ways,
            "lock": LockView.of(lock, switch, self._actor) if lock is not None else None,
            # The model is not the actor's to choose.
            "held": session.row.locked and not self._actor.is_admin,
            "line": LineView.of(switch, self._actor) if switch is not None and new else None,
            "head_id": session.row.head_id,
            "models": models_view(entries, self._pool, None),
            "reasons": {entry.id: entry.state_reason for entry in entries},
            "limits": await self._sessions.allowances(self._db_session, actor=self._actor),
        }

    async def branch(self, session: LiveSession, *turns: Turn) -> dict[str, Any]:
        """The same, with the turns and lines of the log up to the last of `turns`, or to the session's head."""
        if not self._needed:
            return {}
        reads, last = Reads(self._sessions), turns[-1].id if turns else None
        found = await reads.transcript(session, self._db_session, actor=self._actor, last=last)
        switches = await reads.switches(session, found.turns, self._db_session, actor=self._actor)
        return {
            "turns": [TurnView.of(turn, found.written) for turn in found.turns],
            "lines": lines_between(found.turns, switches, self._actor),
            "earlier": found.earlier,
            "instructions": session.row.instructions,
            **await self.of(session, *found.turns),
        }

    def shown(self, *turns: TurnView) -> AbstractAsyncContextManager[None]:
        """Render the texts of turns ahead of the page that shows them in this block."""
        return self._renderer.shown(self._actor.id, *texts_of(turns if self._needed else ()))

    async def render(self, session_id: UUID, event: Event) -> str | None:
        """What an event changes on the live page of a session; None where the page has not come to it.

        That is so too where its session is gone by now, as the next event tells.
        """
        try:
            return await (self._gone(session_id) if isinstance(event, Gone) else self._changed_by(event))
        except NotFound:
            return None

    async def _gone(self, session_id: UUID) -> str | None:
        """Who deleted a session that its owner can have back, and why; None where it is not that."""
        last = await self._sessions.list_sessions(self._db_session, actor=self._actor, show="deleted", limit=1)
        if not last.sessions or last.sessions[0].row.id != session_id:
            return None
        return render("session/gone.html", session=SessionView.of(last.sessions[0]))

    async def _changed_by(self, event: Event) -> str | None:
        match event:
            case Delta(turn_id=id) | Thought(turn_id=id) | Ended(turn=Turn(id=id)) if id in self._owed:
                return None
            case Delta(turn_id=id) | Thought(turn_id=id) | Ended(turn=Turn(id=id)) if id in self._shown:
                return ""
            case Delta() | Thought():
                return await self._grew(event)
            case Begun(turn) | Ended(turn):
                self._growing.clear()
                live = await self._sessions.get_session(turn.session_id, self._db_session, actor=self._actor)
                if isinstance(event, Ended):
                    view = TurnView.of(turn)
                    async with self.shown(view):
                        return render("chat/ended.html", view=view, **await self.of(live, turn))
                if self._owed or live.row.turn_count != turn.depth:
                    # Others come with it, or there are branches and the page may show another one.
                    return await self._caught_up(live, turn)
                # Its text follows from the beginning, so one that is on the page already begins anew.
                view = msgspec.structs.replace(TurnView.of(turn), reply="", reasoning="")
                return render("chat/begun.html", view=view, again=True, **await self.of(live, turn))
            case Changed(session):
                return render("session/changed.html", view=SessionView.of(session), **await self.of(session))
            case _:
                return ""

    async def _grew(self, news: Delta | Thought) -> str:
        """Text was added: what it changes of the blocks on the page; all of them where this stream has shown none."""
        template = "chat/grew.html" if isinstance(news, Delta) else "chat/thought.html"
        turn_id, growing = self._growing.get(type(news), (None, Growing()))
        if turn_id == news.turn_id:
            grown = await growing.take(news.text, self._grow)
            return render(template, turn_id=turn_id, grown=grown, begins=None)
        self._growing[type(news)] = news.turn_id, growing
        view = TurnView.of(*await Reads(self._sessions).turn(news.turn_id, self._db_session, actor=self._actor))
        before = (view.reply if isinstance(news, Delta) else view.reasoning)[: news.offset]
        grown = await growing.take(before + news.text, self._grow)
        return render(template, turn_id=news.turn_id, grown=grown, begins=view)

    async def _caught_up(self, session: LiveSession, turn: Turn) -> str | None:
        """The log anew, up to a turn that was not on the page. One that ended long ago waits for the last of them."""
        if turn.reply is not None and turn.id != session.row.head_id:
            self._owed.add(turn.id)
            return None
        self._owed.clear()
        if turn.reply is not None:
            self._shown.add(turn.id)
        shown = await self.branch(session, turn)
        # Its text follows from the beginning.
        shown["turns"][-1] = TurnView.of(turn)
        async with self.shown(*shown["turns"]):
            return render("chat/branched.html", view=TurnView.of(turn), **shown)


async def provide_controls(
    request: Request, sessions: Sessions, db_session: Db, actor: Who, pool: Pool, renderer: Rendering
) -> Controls:
    return Controls(sessions, db_session, actor, pool, renderer, needed=wants(request) in ("fragment", "page"))

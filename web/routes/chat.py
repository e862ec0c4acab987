"""/chat — prompts and their replies."""

from typing import Any
from uuid import UUID

from litestar import Request, Response, get, post
from litestar.di import Provide
from litestar.params import FromPath

from db.db_session import DbSession
from services.accounts import Credentials
from services.actor import Actor
from services.outcomes import BegunTurn
from services.reads import Reads
from services.session_service import SessionService
from services.turn_log import Position, TurnLog
from web.answer import answer, json, page, rate_headers, wants
from web.forms import Chat, EditTurn, Nothing, RetryTurn, acts, reads
from web.given import Db, Given, Log, Proof, Rendering, Sessions, Who
from web.live import Controls
from web.sse import for_scripts, stream
from web.views import SessionView, TurnView, texts_of

#: the log anew, for the page may show another branch
BRANCHED = "chat/branched.html"


class Reply:
    """How a begun turn is answered: scripts wait for its end or get its stream, pages get what changes on screen."""

    def __init__(
        self,
        request: Request,
        sessions: SessionService,
        db_session: DbSession,
        actor: Actor,
        log: TurnLog,
        proof: Credentials,
        controls: Controls,
    ) -> None:
        self._request, self._sessions, self._db_session, self._actor = request, sessions, db_session, actor
        self._log, self._proof, self._controls = log, proof, controls

    async def of(self, begun: BegunTurn, fragment: str | None) -> Response[Any]:
        """The answer to a page is `fragment`; without one the page of the session is opened."""
        response: Response[Any]
        allowance = begun.allowance
        match wants(self._request):
            case "stream":
                response = stream(
                    for_scripts(self._log.follow_turn(begun.turn, self._actor, self._proof, gives_way=False))
                )
            case "json":
                await self._log.await_end(begun.turn, self._actor, self._proof)
                turn, written = await Reads(self._sessions).turn(begun.turn.id, self._db_session, actor=self._actor)
                response = json(TurnView.of(turn, written))
                allowance = begun.allowance_after(turn)
            case _:
                controls, branched = self._controls, fragment == BRANCHED
                shown = await (controls.branch(begun.session) if branched else controls.of(begun.session, begun.turn))
                view = TurnView.of(begun.turn)
                # One that was begun under the same key before may have ended since.
                async with controls.shown(*shown.get("turns", [view])):
                    return answer(
                        self._request,
                        fragment,
                        view,
                        location=f"/session/{begun.turn.session_id}",
                        allowance=allowance,
                        again=False,
                        **shown,
                    )
        response.headers.update(rate_headers(allowance))
        return response


async def provide_reply(
    request: Request,
    sessions: Sessions,
    db_session: Db,
    actor: Who,
    log: Log,
    proof: Proof,
    controls: Given[Controls],
) -> Reply:
    return Reply(request, sessions, db_session, actor, log, proof, controls)


BEGINS: dict[str, Any] = {"answers": TurnView, "streams": True, "once": True}


@post("/chat", status_code=200, dependencies={"form": reads(Chat), "reply": Provide(provide_reply)}, opt={**BEGINS})
async def begin_turn(
    request: Request, form: Given[Chat], sessions: Sessions, db_session: Db, actor: Who, reply: Given[Reply]
) -> Response[Any]:
    """Send a prompt; without `session_id` in a new session. Scripts get the ended turn, or its stream."""
    begun = await sessions.begin_turn(
        form.session_id,
        form.prompt,
        db_session,
        actor=actor,
        model=form.model,
        parent_id=form.parent_id,
        expected_version=form.expected_version,
        key=request.state.key,
    )
    if form.session_id is None:
        return await reply.of(begun, None)
    return await reply.of(begun, "chat/begun.html" if form.parent_id is None else BRANCHED)


@post(
    "/chat/{turn_id:uuid}/retry",
    status_code=200,
    dependencies={"form": reads(RetryTurn), "reply": Provide(provide_reply)},
    opt={**BEGINS},
)
async def retry_turn(
    request: Request,
    turn_id: FromPath[UUID],
    form: Given[RetryTurn],
    sessions: Sessions,
    db_session: Db,
    actor: Who,
    reply: Given[Reply],
) -> Response[Any]:
    """Ask the same again beside a turn, with `model` for this once."""
    begun = await sessions.retry_turn(turn_id, db_session, actor=actor, model=form.model, key=request.state.key)
    return await reply.of(begun, BRANCHED)


@post(
    "/chat/{turn_id:uuid}/edit",
    status_code=200,
    dependencies={"form": reads(EditTurn), "reply": Provide(provide_reply)},
    opt={**BEGINS},
)
async def edit_turn(
    request: Request,
    turn_id: FromPath[UUID],
    form: Given[EditTurn],
    sessions: Sessions,
    db_session: Db,
    actor: Who,
    reply: Given[Reply],
) -> Response[Any]:
    """Ask something else in the place of a turn."""
    begun = await sessions.edit_turn(
        turn_id, form.prompt, db_session, actor=actor, model=form.model, key=request.state.key
    )
    return await reply.of(begun, BRANCHED)


@get("/chat/{turn_id:uuid}", opt={"answers": TurnView})
async def show_turn(
    request: Request, turn_id: FromPath[UUID], sessions: Sessions, db_session: Db, actor: Who, renderer: Rendering
) -> Response[Any]:
    """One prompt and its reply, as far as it is written."""
    turn, written = await Reads(sessions).turn(turn_id, db_session, actor=actor)
    session = SessionView.of(await sessions.get_session(turn.session_id, db_session, actor=actor))
    view = TurnView.of(turn, written)
    async with renderer.shown(actor.id, *texts_of([view] if wants(request) in ("page", "fragment") else ())):
        return page(request, "turn.html", view, session=session)


@get("/chat/{turn_id:uuid}/events", opt={"answers": "stream"})
async def follow_turn(
    request: Request,
    turn_id: FromPath[UUID],
    sessions: Sessions,
    db_session: Db,
    actor: Who,
    log: Log,
    proof: Proof,
) -> Response[Any]:
    """A reply as it is written, from `Last-Event-ID` on."""
    log.require_room()
    turn = await Reads(sessions).require_turn(turn_id, db_session, actor=actor)
    after = Position.parse(request.headers.get("last-event-id", ""))
    return stream(for_scripts(log.follow_turn(turn, actor, proof, after=after)))


@post("/chat/{turn_id:uuid}/stop", **acts(Nothing, TurnView))
async def stop_turn(
    request: Request,
    turn_id: FromPath[UUID],
    form: Given[Nothing],
    sessions: Sessions,
    db_session: Db,
    actor: Who,
    controls: Given[Controls],
) -> Response[Any]:
    """Stop a reply and keep its text."""
    turn = await sessions.stop_turn(turn_id, db_session, actor=actor, key=request.state.key)
    session = await sessions.get_session(turn.session_id, db_session, actor=actor)
    view = TurnView.for_actor(turn, actor)
    async with controls.shown(view):
        return answer(
            request,
            "chat/ended.html",
            view,
            location=f"/session/{turn.session_id}",
            **await controls.of(session, turn),
        )


@post("/chat/{turn_id:uuid}/choose", **acts(Nothing, TurnView))
async def choose_turn(
    request: Request,
    turn_id: FromPath[UUID],
    form: Given[Nothing],
    sessions: Sessions,
    db_session: Db,
    actor: Who,
    controls: Given[Controls],
) -> Response[Any]:
    """Show the branch that goes through a turn."""
    turn = await sessions.choose_turn(turn_id, db_session, actor=actor, key=request.state.key)
    session = await sessions.get_session(turn.session_id, db_session, actor=actor)
    where = f"/session/{turn.session_id}#turn-{turn.id}"
    branch = await controls.branch(session)
    async with controls.shown(*branch.get("turns", ())):
        return answer(request, BRANCHED, TurnView.of(turn), location=where, **branch)

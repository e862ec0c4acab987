"""/chat — prompts and their replies."""

from contextlib import aclosing
from typing import Any
from uuid import UUID

from litestar import Request, Response, get, post
from litestar.params import FromPath

from services.reads import Reads
from services.turn_log import MOST, Position
from web.answer import answer, json, page, rate_headers, wants
from web.forms import Chat, Nothing, reads
from web.given import Db, Given, Log, MayRead, Sessions, Who
from web.live import Controls
from web.sse import for_scripts, stream
from web.views import SessionView, TurnView


@post(
    "/chat",
    status_code=200,
    dependencies={"form": reads(Chat)},
    opt={"answers": TurnView, "streams": True, "once": True},
)
async def begin_turn(
    request: Request,
    form: Given[Chat],
    sessions: Sessions,
    db_session: Db,
    actor: Who,
    log: Log,
    still: MayRead,
    controls: Given[Controls],
) -> Response[Any]:
    """Send a prompt; without `session_id` in a new session. Scripts get the ended turn, or its stream."""
    begun = await sessions.begin_turn(
        form.session_id,
        form.prompt,
        db_session,
        actor=actor,
        model=form.model,
        expected_version=form.expected_version,
        key=request.state.key,
    )
    response: Response[Any]
    match wants(request):
        case "stream":
            response = stream(for_scripts(log.follow_turn(begun.turn, 0, actor, still)))
        case "json":
            async with aclosing(log.follow_turn(begun.turn, 0, actor)) as events:
                async for _ in events:
                    pass
            turn, text = await Reads(sessions).turn(begun.turn.id, db_session, actor=actor)
            response = json(TurnView.of(turn, text))
        case _:
            return answer(
                request,
                "chat/begun.html",
                TurnView.of(begun.turn),
                location=f"/session/{begun.turn.session_id}",
                allowance=begun.allowance,
                again=False,
                **await controls.of(begun.session),
            )
    response.headers.update(rate_headers(begun.allowance))
    return response


@get("/chat/{turn_id:uuid}", opt={"answers": TurnView})
async def show_turn(
    request: Request, turn_id: FromPath[UUID], sessions: Sessions, db_session: Db, actor: Who
) -> Response[Any]:
    """One prompt and its reply, as far as it is written."""
    turn, text = await Reads(sessions).turn(turn_id, db_session, actor=actor)
    session = SessionView.of(await sessions.get_session(turn.session_id, db_session, actor=actor))
    return page(request, "turn.html", TurnView.of(turn, text), session=session)


@get("/chat/{turn_id:uuid}/events", opt={"answers": "stream"})
async def follow_turn(
    request: Request,
    turn_id: FromPath[UUID],
    sessions: Sessions,
    db_session: Db,
    actor: Who,
    log: Log,
    still: MayRead,
) -> Response[Any]:
    """A reply as it is written, from `Last-Event-ID` on."""
    turn, _ = await Reads(sessions).turn(turn_id, db_session, actor=actor)
    position = Position.parse(request.headers.get("last-event-id", ""))
    same = position.turn_id == turn.id
    offset = MOST if same and position.ended else position.offset if same else 0
    return stream(for_scripts(log.follow_turn(turn, offset, actor, still)))


@post(
    "/chat/{turn_id:uuid}/stop",
    status_code=200,
    dependencies={"form": reads(Nothing)},
    opt={"answers": TurnView, "once": True},
)
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
    return answer(
        request,
        "chat/ended.html",
        TurnView.for_actor(turn, actor),
        location=f"/session/{turn.session_id}",
        **await controls.of(session),
    )

"""/v1 — the same sessions and models, for clients that speak OpenAI's form."""

from typing import Any

from litestar import Request, Response, get, post
from litestar.params import FromPath

from services.reads import Reads
from web.answer import json, rate_headers
from web.completions import (
    SESSION_HEADER,
    ChatCompletion,
    Completion,
    OpenModel,
    OpenModels,
    Question,
    answered,
    chunks,
)
from web.forms import reads
from web.given import Db, Given, Log, Proof, Sessions, Who
from web.sse import stream_of
from web.views import TurnView


@get("/v1/models", opt={"answers": OpenModels, "openai": True})
async def list_open_models(sessions: Sessions, db_session: Db, actor: Who) -> Response[Any]:
    """The models the actor may use, in OpenAI's form."""
    return json(OpenModels.of(await sessions.models(db_session, actor=actor)))


@get("/v1/models/{model:path}", opt={"answers": OpenModel, "openai": True})
async def get_open_model(model: FromPath[str], sessions: Sessions, db_session: Db, actor: Who) -> Response[Any]:
    """One of these models, by its id or an alias."""
    return json(OpenModels.require(model.removeprefix("/"), await sessions.models(db_session, actor=actor)))


@post(
    "/v1/chat/completions",
    status_code=200,
    dependencies={"form": reads(ChatCompletion)},
    opt={"answers": Completion, "openai": True, "streams": True, "once": True, "in_session": True},
)
async def complete_chat(
    request: Request,
    form: Given[ChatCompletion],
    sessions: Sessions,
    db_session: Db,
    actor: Who,
    log: Log,
    proof: Proof,
) -> Response[Any]:
    """Answer a conversation in OpenAI's form; the header X-Turnkeeper-Session, or metadata, names its session."""
    question = Question.of(form, request.headers)
    begun = await sessions.begin_turn(
        question.session_id,
        question.prompt,
        db_session,
        actor=actor,
        model=question.model,
        brought=question.brought,
        cap=question.cap,
        wishes=question.wishes,
        key=request.state.key,
    )
    response: Response[Any]
    if form.stream:
        usage = bool(form.stream_options and form.stream_options.include_usage)
        response = stream_of(chunks(log.follow_turn(begun.turn, actor, proof, gives_way=False), begun, usage=usage))
        response.headers.update(rate_headers(begun.allowance) | {SESSION_HEADER: str(begun.turn.session_id)})
        return response
    await log.await_end(begun.turn, actor, proof)
    turn = await Reads(sessions).require_turn(begun.turn.id, db_session, actor=actor)
    response = answered(TurnView.of(turn), begun)
    response.headers.update(rate_headers(begun.allowance_after(turn)))
    return response

"""/session/export, /session/{id}/export, /session/import — sessions on their way out and in."""

import time
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
from litestar import Request, Response, get, post
from litestar.params import FromPath
from litestar.response import Stream

from db.db_session import DbSession
from services.accounts import Accounts, Credentials
from services.actor import Actor
from services.readers import ASK_SECONDS
from services.transfer import Document, Taken, Transfer
from web.answer import answer, download, page, rate_headers, wants
from web.forms import ExportSession, ExportSessions, asks, takes
from web.given import Db, Given, Logins, Proof, Sessions, Who
from web.sse import frame, stream_of
from web.views import ImportedView, ProgressView

KINDS = {"json": "application/json", "md": "text/markdown"}


@get(
    "/session/{session_id:uuid}/export",
    dependencies={"asked": asks(ExportSession)},
    opt={"answers": Document, "file": KINDS["md"]},
)
async def export_session(
    session_id: FromPath[UUID],
    asked: Given[ExportSession],
    sessions: Sessions,
    db_session: Db,
    actor: Who,
    logins: Logins,
    proof: Proof,
) -> Response[Any]:
    """One session as a file: whole as JSON, or its transcript to read as Markdown."""
    transfer = Transfer(sessions)
    live = await transfer.require(session_id, db_session, actor=actor)
    write = transfer.as_json if asked.format == "json" else transfer.as_markdown
    pieces = _while_allowed(write([live.row.id], db_session, actor=actor), logins, proof, actor, db_session)
    return _file(pieces, asked.format, f"session-{live.row.id}", 1)


@get("/session/export", dependencies={"asked": asks(ExportSessions)}, opt={"answers": Document, "file": KINDS["md"]})
async def export_sessions(
    asked: Given[ExportSessions],
    sessions: Sessions,
    db_session: Db,
    actor: Who,
    logins: Logins,
    proof: Proof,
) -> Response[Any]:
    """All sessions of the account as one file, or those that a list would show."""
    transfer = Transfer(sessions)
    which: dict[str, Any] = {"state": asked.state, "model": asked.model, "q": asked.q, "show": asked.show}
    chosen = await transfer.choose(db_session, actor=actor, **which)
    write = transfer.as_json if asked.format == "json" else transfer.as_markdown
    pieces = _while_allowed(write(chosen, db_session, actor=actor), logins, proof, actor, db_session)
    return _file(pieces, asked.format, f"sessions-{datetime.now(UTC):%Y-%m-%d}", len(chosen))


@post(
    "/session/import",
    status_code=201,
    dependencies={"form": takes(Document)},
    opt={"answers": ImportedView, "once": True, "takes_file": True, "streams": True},
)
async def import_sessions(
    request: Request, form: Given[Document], sessions: Sessions, db_session: Db, actor: Who
) -> Response[Any]:
    """Make sessions of an exported file, each whole or not at all; the answer says how far it came."""
    steps = Transfer(sessions).take(form, db_session, actor=actor, key=request.state.key)
    first = [step async for step in _one(steps)]
    if wants(request) == "stream":
        return stream_of(_progress(first, steps))
    taken = first + [step async for step in steps]
    view, allowance = ImportedView.of(taken), next((step.session.allowance for step in taken[::-1] if step.session), ())
    if view.refusal is not None:
        response = page(request, "session/imported.html", view, 201, key=request.state.key)
        response.headers.update(rate_headers(allowance))
        return response
    where = view.sessions[0].url if len(view.sessions) == 1 else "/session"
    return answer(request, None, view, location=where, status=201, allowance=allowance)


async def _while_allowed(
    pieces: AsyncIterator[bytes], logins: Accounts, proof: Credentials, actor: Actor, db_session: DbSession
) -> AsyncGenerator[bytes, None]:
    """A file as long as its reader may have it; one that is cut is no whole JSON any more."""
    asked_at = time.monotonic()
    async for piece in pieces:
        if time.monotonic() - asked_at >= ASK_SECONDS:
            asked_at = time.monotonic()
            if not all(await logins.still([(proof, actor)], db_session)):
                return
        yield piece


async def _one(steps: AsyncIterator[Taken]) -> AsyncIterator[Taken]:
    """The first step; what refuses it is raised before any answer has begun."""
    async for step in steps:
        yield step
        return


async def _progress(taken: list[Taken], steps: AsyncIterator[Taken]) -> AsyncGenerator[bytes, None]:
    """An import as it goes: one event for each session, and the whole at the end."""
    for step in list(taken):
        yield frame(msgspec.json.encode(ProgressView.of_step(step)).decode(), "progress")
    async for step in steps:
        taken.append(step)
        yield frame(msgspec.json.encode(ProgressView.of_step(step)).decode(), "progress")
    yield frame(msgspec.json.encode(ImportedView.of(taken)).decode(), "end")


def _file(pieces: AsyncGenerator[bytes, None], kind: str, name: str, count: int) -> Stream:
    """An answer that a browser saves; how many sessions are in it, to tell how far one is."""
    return download(pieces, KINDS[kind], f"{name}.{kind}", **{"X-Turnkeeper-Sessions": str(count)})

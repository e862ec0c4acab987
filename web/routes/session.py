"""/session — create, list, read and steer sessions."""

from functools import partial
from typing import Any, Literal
from uuid import UUID

import msgspec
from litestar import Request, Response, get, post
from litestar.params import FromPath
from litestar.response import Stream

from db.db_session import DbSession, Written
from services.actor import Actor
from services.errors import InvalidRequest
from services.outcomes import SessionPage, Sort
from services.policies import instant
from services.reads import Reads, Transcript
from services.session_service import SessionService
from services.turn_log import Position
from web.answer import answer, json, page, wants
from web.forms import (
    Arrange,
    CloseSession,
    CreateSession,
    DeleteSession,
    FollowSession,
    ForkSession,
    KeepDraft,
    ListSessions,
    ListTurns,
    Nothing,
    OpenTranscript,
    RenameSession,
    ShowSession,
    acts,
    asks,
    is_json,
    reads,
)
from web.given import Db, Given, Log, Proof, Rendering, Sessions, Who
from web.live import Controls
from web.shelf import Shelf
from web.side import PINNED
from web.sse import for_pages, for_scripts, stream
from web.views import (
    DecisionView,
    ExtensionView,
    SessionsView,
    SessionView,
    TimelineView,
    TurnsView,
    TurnView,
    lines_between,
    sessions_view,
    texts_of,
)

#: turns on one page that is printed
PRINTED = 500
#: what is shown of a session that is somebody else's
NOTHING = Transcript([], Written(), None)


@post("/session/create", **acts(CreateSession, SessionView, 201))
async def create_session(
    request: Request, form: Given[CreateSession], sessions: Sessions, db_session: Db, actor: Who
) -> Response[Any]:
    """Make a session; its model is chosen later unless one is named."""
    session = await sessions.create_session(
        db_session,
        actor=actor,
        model=form.model,
        title=form.title,
        origin="script" if is_json(request) or actor.kind == "token" else "page",
        key=request.state.key,
    )
    view = SessionView.of(session)
    return answer(request, None, view, location=view.url, status=201, allowance=session.allowance)


@get("/session", dependencies={"asked": asks(ListSessions)}, opt={"answers": SessionsView, "no_side": True})
async def list_sessions(
    request: Request, asked: Given[ListSessions], sessions: Sessions, db_session: Db, actor: Who
) -> Response[Any]:
    """The actor's sessions, newest activity first; with `q` those that hold the words, newest match first."""
    found = await sessions.list_sessions(db_session, actor=actor, **wanted(asked))
    if wants(request) in ("json", "stream"):
        return json(sessions_view(found))
    context = await listed(sessions, db_session, actor, asked, found)
    if asked.deleted is not None:
        gone = await sessions.list_sessions(db_session, actor=actor, show="deleted", limit=1)
        context["deleted"] = next((SessionView.of(one) for one in gone.sessions if one.row.id == asked.deleted), None)
    return page(request, "sessions.html", context["recent"], **context)


@get("/session/{session_id:uuid}", dependencies={"asked": asks(ShowSession)}, opt={"answers": SessionView})
async def show_session(
    request: Request,
    session_id: FromPath[UUID],
    sessions: Sessions,
    db_session: Db,
    actor: Who,
    asked: Given[ShowSession],
    controls: Given[Controls],
    renderer: Rendering,
) -> Response[Any]:
    """One session: its transcript, its model and why, its limits."""
    session = await sessions.get_session(session_id, db_session, actor=actor)
    if wants(request) in ("json", "stream"):
        return json(SessionView.of(session))
    found, draft, lines, reading = NOTHING, "", {}, Reads(sessions)
    if session.row.owner_id == actor.id:
        found = await reading.transcript(session, db_session, actor=actor, last=asked.before)
        if asked.turn is not None and all(turn.id != asked.turn for turn in found.turns):
            found = await reading.transcript(session, db_session, actor=actor, last=asked.turn)
        draft = await reading.draft(session, db_session, actor=actor)
        switches = await reading.switches(session, found.turns, db_session, actor=actor)
        lines = lines_between(found.turns, switches, actor)
    context = await controls.of(session, *found.turns)
    turns = [TurnView.of(turn, found.written) for turn in found.turns]
    async with renderer.shown(actor.id, *texts_of(turns)):
        return page(
            request,
            "session.html",
            SessionView.of(session),
            turns=turns,
            instructions=session.row.instructions if context["mine"] else "",
            readable=sessions.inspection.allowed,
            lines=lines,
            draft=draft,
            earlier=found.earlier,
            position=Position.after(found.turns, found.written),
            newest=not found.turns or found.turns[-1].id == session.row.head_id,
            **context,
        )


@get("/session/{session_id:uuid}/turns", dependencies={"asked": asks(ListTurns)}, opt={"answers": TurnsView})
async def list_turns(
    request: Request,
    session_id: FromPath[UUID],
    sessions: Sessions,
    db_session: Db,
    actor: Who,
    asked: Given[ListTurns],
    renderer: Rendering,
) -> Response[Any]:
    """The transcript from its end backwards, or with `all` every turn from the first on."""
    session = await sessions.get_session(session_id, db_session, actor=actor)
    to_print = asked.print and wants(request) == "page"
    size, reading, instructions = PRINTED if to_print else asked.limit, Reads(sessions), session.row.instructions
    if asked.all:
        turns = await reading.siblings(session, db_session, actor=actor, after=asked.cursor, limit=size + 1)
        more = turns[size - 1].id if len(turns) > size else None
        view = TurnsView([TurnView.of(turn) for turn in turns[:size]], str(more) if more else None, instructions)
    else:
        found = await reading.transcript(session, db_session, actor=actor, last=asked.cursor, limit=size)
        view = TurnsView(
            [TurnView.of(turn, found.written) for turn in found.turns],
            str(found.earlier) if found.earlier else None,
            instructions,
        )
    async with renderer.shown(actor.id, *texts_of(view.turns if wants(request) in ("page", "fragment") else ())):
        template = f"session/{'print' if to_print else 'turns'}.html"
        return page(request, template, view, session=SessionView.of(session))


@get("/session/{session_id:uuid}/events", dependencies={"asked": asks(FollowSession)}, opt={"answers": "stream"})
async def follow_session(
    request: Request,
    session_id: FromPath[UUID],
    sessions: Sessions,
    db_session: Db,
    actor: Who,
    log: Log,
    proof: Proof,
    asked: Given[FollowSession],
    controls: Given[Controls],
) -> Stream:
    """Everything live in a session, from `Last-Event-ID` or `after` on."""
    log.require_room()
    await Reads(sessions).require_session(session_id, db_session, actor=actor)
    position = Position.parse(request.headers.get("last-event-id") or asked.after)
    position.version = asked.version
    events = log.follow_session(session_id, position, actor, proof)
    if wants(request) == "fragment":
        return stream(for_pages(events, partial(controls.render, session_id)))
    return stream(for_scripts(events))


@get("/session/{session_id:uuid}/journal", opt={"answers": TimelineView})
async def list_decisions(
    request: Request, session_id: FromPath[UUID], sessions: Sessions, db_session: Db, actor: Who
) -> Response[Any]:
    """What was decided about a session, by whom and why."""
    session = SessionView.of(await sessions.get_session(session_id, db_session, actor=actor))
    decisions = await Reads(sessions).timeline(session_id, db_session, actor=actor)
    view = TimelineView([DecisionView.of(row) for row in decisions])
    return page(request, "session/journal.html", view, session=session)


@post("/session/{session_id:uuid}/read", **acts(OpenTranscript, SessionView))
async def open_transcript(
    request: Request,
    session_id: FromPath[UUID],
    form: Given[OpenTranscript],
    sessions: Sessions,
    db_session: Db,
    actor: Who,
) -> Response[Any]:
    """Let an admin read somebody else's session for a while, where that is allowed; its owner sees it."""
    session = await sessions.get_session(session_id, db_session, actor=actor)
    await sessions.inspection.open(session.row, form.reason, db_session, actor=actor, key=request.state.key)
    return answer(request, None, SessionView.of(session), location=f"/session/{session_id}/turns")


@post("/session/{session_id:uuid}/rename", **acts(RenameSession, SessionView))
async def rename_session(
    request: Request,
    session_id: FromPath[UUID],
    form: Given[RenameSession],
    sessions: Sessions,
    db_session: Db,
    actor: Who,
    controls: Given[Controls],
) -> Response[Any]:
    """Give a session a title."""
    session = await sessions.rename_session(session_id, form.title, db_session, actor=actor, key=request.state.key)
    view, shown = SessionView.of(session), await controls.of(session)
    return answer(request, "session/changed.html", view, location=view.url, told="Renamed.", **shown)


@post(
    "/session/{session_id:uuid}/draft",
    status_code=200,
    dependencies={"form": reads(KeepDraft)},
    # Twice the same text is once by itself; the key is that of the message it will be.
    opt={"answers": None, "status": 204, "once": True},
)
async def keep_draft(
    request: Request,
    session_id: FromPath[UUID],
    form: Given[KeepDraft],
    sessions: Sessions,
    db_session: Db,
    actor: Who,
) -> Response[Any]:
    """Keep what is typed and not sent yet; an empty text takes it away."""
    await sessions.keep_draft(session_id, form.prompt, db_session, actor=actor, key=request.state.key)
    if wants(request) == "fragment":
        return Response(None, status_code=204)
    return answer(request, None, None, location=f"/session/{session_id}")


@post("/session/{session_id:uuid}/extend", **acts(Nothing, ExtensionView))
async def extend_session(
    request: Request,
    session_id: FromPath[UUID],
    form: Given[Nothing],
    sessions: Sessions,
    db_session: Db,
    actor: Who,
    controls: Given[Controls],
) -> Response[Any]:
    """Let a session live longer from now on."""
    extension = await sessions.extend_session(session_id, db_session, actor=actor, key=request.state.key)
    return answer(
        request,
        "session/extended.html",
        ExtensionView.of(extension),
        location=f"/session/{session_id}",
        **await controls.of(extension.session),
    )


@post("/session/{session_id:uuid}/close", **acts(CloseSession, SessionView))
async def close_session(
    request: Request,
    session_id: FromPath[UUID],
    form: Given[CloseSession],
    sessions: Sessions,
    db_session: Db,
    actor: Who,
    controls: Given[Controls],
) -> Response[Any]:
    """End a session for good; it stays readable."""
    session = await sessions.close_session(
        session_id, db_session, actor=actor, reason=form.reason, key=request.state.key
    )
    view, shown = SessionView.of(session), await controls.of(session)
    told = (
        "Closed." if session.row.owner_id == actor.id else f"Closed. {view.owner.name} sees your name and your reason."
    )
    return answer(request, "session/changed.html", view, location=view.url, told=told, **shown)


@post("/session/{session_id:uuid}/reopen", **acts(Nothing, SessionView))
async def reopen_session(
    request: Request,
    session_id: FromPath[UUID],
    form: Given[Nothing],
    sessions: Sessions,
    db_session: Db,
    actor: Who,
    controls: Given[Controls],
) -> Response[Any]:
    """Bring back a session that idled out."""
    session = await sessions.reopen_session(session_id, db_session, actor=actor, key=request.state.key)
    view, shown = SessionView.of(session), await controls.of(session)
    shown["told"] = "Reopened."
    return answer(request, "session/changed.html", view, location=view.url, allowance=session.allowance, **shown)


@post("/session/{session_id:uuid}/fork", **acts(ForkSession, SessionView, 201))
async def fork_session(
    request: Request,
    session_id: FromPath[UUID],
    form: Given[ForkSession],
    sessions: Sessions,
    db_session: Db,
    actor: Who,
) -> Response[Any]:
    """Make a session that begins with this one's transcript."""
    session = await sessions.fork_session(
        session_id, db_session, actor=actor, turn_id=form.turn_id, draft=form.prompt, key=request.state.key
    )
    view = SessionView.of(session)
    return answer(request, None, view, location=view.url, status=201, allowance=session.allowance)


@post(
    "/session/{session_id:uuid}/delete",
    status_code=200,
    dependencies={"form": reads(DeleteSession)},
    opt={"answers": None, "status": 204, "once": True},
)
async def delete_session(
    request: Request,
    session_id: FromPath[UUID],
    form: Given[DeleteSession],
    sessions: Sessions,
    db_session: Db,
    actor: Who,
) -> Response[Any]:
    """Take a session away; for a week its owner can have it back, unless it is for good."""
    for_good = form.for_good
    await sessions.delete_session(
        session_id, db_session, actor=actor, for_good=for_good, reason=form.reason, key=request.state.key
    )
    where = "/session?show=deleted" if for_good else f"/session?deleted={session_id}"
    where = "/admin?done=deleted" if form.back == "desk" else where
    fragment = "session/deleted.html" if form.back == "list" else None
    return answer(request, fragment, None, location=where, session_id=session_id, for_good=for_good)


@post("/session/{session_id:uuid}/restore", **acts(Arrange, SessionView))
async def restore_session(session_id: FromPath[UUID], form: Given[Arrange], shelf: Given[Shelf]) -> Response[Any]:
    """Bring a deleted session back as it was."""
    live = await shelf.sessions.restore_session(session_id, **shelf.asks)
    return await shelf.answer(live, form)


@post("/session/{session_id:uuid}/pin", **acts(Arrange, SessionView))
async def pin_session(session_id: FromPath[UUID], form: Given[Arrange], shelf: Given[Shelf]) -> Response[Any]:
    """Keep a session at the top of the list."""
    live = await shelf.sessions.pin_session(session_id, **shelf.asks)
    return await shelf.answer(live, form)


@post("/session/{session_id:uuid}/unpin", **acts(Arrange, SessionView))
async def unpin_session(session_id: FromPath[UUID], form: Given[Arrange], shelf: Given[Shelf]) -> Response[Any]:
    """Let a session stand in the list where its last activity puts it."""
    live = await shelf.sessions.pin_session(session_id, pinned=False, **shelf.asks)
    return await shelf.answer(live, form)


@post("/session/{session_id:uuid}/archive", **acts(Arrange, SessionView))
async def archive_session(session_id: FromPath[UUID], form: Given[Arrange], shelf: Given[Shelf]) -> Response[Any]:
    """Put a session out of the list; it lives on as before, and is found by its words."""
    live = await shelf.sessions.archive_session(session_id, **shelf.asks)
    return await shelf.answer(live, form, just="archived")


@post("/session/{session_id:uuid}/unarchive", **acts(Arrange, SessionView))
async def unarchive_session(session_id: FromPath[UUID], form: Given[Arrange], shelf: Given[Shelf]) -> Response[Any]:
    """Put an archived session back into the list."""
    live = await shelf.sessions.archive_session(session_id, archived=False, **shelf.asks)
    return await shelf.answer(live, form)


async def listed(
    sessions: SessionService,
    db_session: DbSession,
    actor: Actor,
    query: ListSessions,
    found: SessionPage,
) -> dict[str, Any]:
    """What the list of an actor's sessions shows: recent, pinned, and the query it answers."""
    pinned = SessionsView([], None)
    if query == ListSessions(limit=query.limit, deleted=query.deleted):
        pinned = sessions_view(await sessions.list_sessions(db_session, actor=actor, limit=PINNED, show="pinned"))
    return {"recent": sessions_view(found), "pinned": pinned, "query": query}


def wanted(query: ListSessions) -> dict[str, Any]:
    """A query as `list_sessions` takes it. Raises InvalidRequest."""
    fields = msgspec.structs.asdict(query)
    del fields["deleted"]
    if query.q and not query.show:
        fields["show"] = "all"
    sort: Sort | Literal["match"] = "match" if query.q else "activity"
    return fields | {"after": position_of(fields.pop("cursor"), sort)}


def position_of(cursor: str, sort: Sort | Literal["match"] = "activity") -> tuple[Any, UUID] | None:
    """The position behind a cursor of a list that is sorted so. Raises InvalidRequest."""
    if not cursor:
        return None
    number, _, id = cursor.partition("-")
    try:
        place, session_id = int(number), UUID(id)
        if not abs(place) < (2**31 if sort == "turns" else 2**63):
            raise OverflowError
        if sort in ("age", "match"):
            return session_id, session_id
        return instant(place) if sort in ("activity", "deletion") else place, session_id
    except (ValueError, OverflowError) as error:
        raise InvalidRequest("This cursor is not one of ours.", field="cursor") from error

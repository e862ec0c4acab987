"""turnkeeper session — everybody's sessions, as an admin sees them: what is said in them is their owners'."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import click

from web.commands.console import (
    HELP,
    Place,
    as_json_option,
    at_place,
    facts,
    model_option,
    say,
    search_option,
    session_argument,
    shown,
    state_option,
    table,
    told_reason_option,
)
from web.commands.transfer import export, import_


@click.group(context_settings=HELP)
def session() -> None:
    """Everybody's sessions. What is said in them is not shown, but goes into files."""


session.add_command(export)
session.add_command(import_)


@session.command("list", context_settings=HELP)
@state_option
@model_option
@search_option
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="At most so many.")
@as_json_option
def list_(state: str | None, model: str, search: str, limit: int, as_json: bool) -> None:
    """List sessions, the latest activity first."""

    async def do(place: Place) -> list[Any]:
        from web.views import SessionView

        async with place.sessions() as sessions:
            asks = {"everybody": True, "state": state or "", "model": model, "q": search}
            found, page = [], await sessions.list_sessions(place.db_session, actor=place.actor, limit=limit, **asks)
            while True:
                found += [SessionView.of(live) for live in page.sessions]
                if page.next is None or len(found) >= limit:
                    return found
                # What is looked for among very many is looked for in parts.
                left = limit - len(found)
                page = await sessions.list_sessions(
                    place.db_session, actor=place.actor, limit=left, after=page.next, **asks
                )

    found = at_place(do)
    heads = ("id", "owner", "state", "model", "turns", "last activity", "title")
    rows = [
        (one.id, one.owner.name, _state(one), one.current_model.id, one.turn_count, one.last_activity_at, one.title)
        for one in found
    ]
    say(as_json, {"sessions": found}, table(heads, rows, "There are no sessions."))


@session.command("show", context_settings=HELP)
@session_argument
@as_json_option
def show(session_id: UUID, as_json: bool) -> None:
    """Show one session and what was decided about it."""

    async def do(place: Place) -> tuple[Any, list[Any]]:
        from services.reads import Reads
        from web.views import DecisionView, SessionView

        async with place.sessions() as sessions:
            live = await sessions.get_session(session_id, place.db_session, actor=place.actor)
            rows = await Reads(sessions).timeline(session_id, place.db_session, actor=place.actor)
            return SessionView.of(live), [DecisionView.of(row) for row in rows]

    found, decisions = at_place(do)
    told = facts(
        [
            ("id", found.id),
            ("owner", found.owner.name),
            ("title", found.title or None),
            ("state", _state(found)),
            ("model", found.current_model.id),
            ("because", found.current_model.reason),
            ("locked", found.locked),
            ("turns", found.turn_count),
            ("version", found.version),
            ("made", found.created_at),
            ("last activity", found.last_activity_at),
            ("ends", found.expires_at),
        ]
    )
    say(as_json, {"session": found, "journal": decisions}, f"{told}\n\n{decided(decisions)}")


@session.command("switch", context_settings=HELP)
@session_argument
@click.argument("model")
@told_reason_option
@click.option("--lock/--unlock", default=None, help="Keep its owner from switching it, or no more.")
@click.option(
    "--when",
    type=click.Choice(["next_turn", "stop", "idle"]),
    default="next_turn",
    show_default=True,
    help="While a reply is being written: from the next one on, stopping it, or not at all.",
)
@as_json_option
def switch(session_id: UUID, model: str, reason: str, lock: bool | None, when: Any, as_json: bool) -> None:
    """Point a session at another model."""

    async def do(place: Place) -> Any:
        from web.views import SwitchView

        async with place.sessions() as sessions:
            asks = {"reason": reason, "lock": lock, "when": when}
            return SwitchView.of(
                await sessions.switch_model(session_id, model, place.db_session, actor=place.actor, **asks)
            )

    done = at_place(do)
    words = f"It is on {shown(done.to_model)}" + (" from the next reply on." if done.effective == "next_turn" else ".")
    if done.warnings:
        words += " Its provider does not answer at the moment."
    say(as_json, done, words)


@session.command("close", context_settings=HELP)
@session_argument
@told_reason_option
@as_json_option
def close(session_id: UUID, reason: str, as_json: bool) -> None:
    """End a session for good. A reply that is being written is stopped, and everything stays readable."""
    changed = _changed(
        lambda sessions, db_session, by: sessions.close_session(session_id, db_session, reason=reason, **by)
    )
    say(as_json, changed, "The session is closed.")


@session.command("rename", context_settings=HELP)
@session_argument
@click.argument("title")
@as_json_option
def rename(session_id: UUID, title: str, as_json: bool) -> None:
    """Give a session another title."""
    changed = _changed(lambda sessions, db_session, by: sessions.rename_session(session_id, title, db_session, **by))
    say(as_json, changed, f"It is called “{shown(changed.title)}”.")


@session.command("reopen", context_settings=HELP)
@session_argument
@as_json_option
def reopen(session_id: UUID, as_json: bool) -> None:
    """Bring back a session that was not used for too long. One that was closed stays so."""
    changed = _changed(lambda sessions, db_session, by: sessions.reopen_session(session_id, db_session, **by))
    until = f" until {shown(changed.expires_at)}" if changed.expires_at is not None else ""
    say(as_json, changed, f"The session is open again{until}.")


@session.command("delete", context_settings=HELP)
@session_argument
@told_reason_option
@as_json_option
def delete(session_id: UUID, reason: str, as_json: bool) -> None:
    """Take a session away from everybody. Its owner can have it back for a week."""

    async def do(place: Place) -> None:
        async with place.sessions() as sessions:
            await sessions.delete_session(session_id, place.db_session, actor=place.actor, reason=reason)

    at_place(do)
    say(as_json, {"deleted": session_id}, "The session is deleted. Its owner can have it back for a week.")


@session.command("stop", context_settings=HELP)
@session_argument
@as_json_option
def stop(session_id: UUID, as_json: bool) -> None:
    """Stop the reply that is being written. Its text so far stays."""

    async def do(place: Place) -> UUID | None:
        async with place.sessions() as sessions:
            running: UUID | None = (
                await sessions.get_session(session_id, place.db_session, actor=place.actor)
            ).running_turn
            if running is not None:
                await sessions.stop_turn(running, place.db_session, actor=place.actor)
            return running

    stopped = at_place(do)
    words = "No reply is being written." if stopped is None else "The reply is stopped."
    say(as_json, {"stopped": stopped}, words)


@session.command("extend", context_settings=HELP)
@session_argument
@as_json_option
def extend(session_id: UUID, as_json: bool) -> None:
    """Let a session live longer. It counts as just used; one that has expired stays so."""

    async def do(place: Place) -> Any:
        from web.views import ExtensionView

        async with place.sessions() as sessions:
            return ExtensionView.of(await sessions.extend_session(session_id, place.db_session, actor=place.actor))

    done = at_place(do)
    words = f"It lives until {shown(done.expires_at)}." if done.expires_at is not None else "It has no end."
    say(as_json, done, f"{done.reason} {words}".strip())


def decided(decisions: list[Any]) -> str:
    """Rows of the journal, for people."""
    heads = ("when", "who", "what", "outcome", "from", "to", "why")
    rows = [
        (one.at, one.actor, one.what, one.outcome, one.from_value, one.to_value, one.reason or None)
        for one in decisions
    ]
    return table(heads, rows, "The journal tells nothing of the kind.")


def _changed(change: Callable[[Any, Any, dict[str, Any]], Awaitable[Any]]) -> Any:
    """A session once a verb of the service has changed it in the name of the system."""

    async def do(place: Place) -> Any:
        from web.views import SessionView

        async with place.sessions() as sessions:
            return SessionView.of(await change(sessions, place.db_session, {"actor": place.actor}))

    return at_place(do)


def _state(session: Any) -> str:
    return "writing" if session.running_turn is not None else str(session.state)

"""turnkeeper session export, import — sessions on their way out of a server and into one."""

import hashlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID

import click

from web.commands.console import (
    HELP,
    Place,
    Progress,
    as_json_option,
    at_place,
    model_option,
    say,
    state_option,
    to_standard_output,
)


@click.command("export", context_settings=HELP)
@click.argument("session_ids", metavar="[ID]…", nargs=-1, type=click.UUID)
@click.option("--account", default="", help="All sessions of this account.")
@click.option("--everybody", is_flag=True, help="All sessions, guests' too.")
@state_option
@model_option
@click.option("--search", default="", help="Only those in which these words were said; with --account.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["json", "md"]),
    default="json",
    show_default=True,
    help="JSON, from which nothing is missing, or Markdown to read.",
)
@click.option("--reason", required=True, help="Why; each owner sees it.")
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), help="A new file (default: standard output)."
)
@as_json_option
def export(
    session_ids: tuple[UUID, ...],
    account: str,
    everybody: bool,
    state: str | None,
    model: str,
    search: str,
    kind: str,
    reason: str,
    output: Path | None,
    as_json: bool,
) -> None:
    """Write sessions to a file. Those that are named, an account's, or everybody's; needs the setting admins_read.

    \b
    turnkeeper session export --account ann --reason "moving house" --output ann.json
    turnkeeper session export 01890000-0000-7000-8000-000000000000 --format md --reason "asked for"
    """
    if bool(session_ids) + bool(account) + everybody != 1:
        raise click.UsageError("Name sessions, or --account, or --everybody.")
    if session_ids and (state or model or search):
        raise click.UsageError("--state, --model and --search narrow down --account and --everybody.")
    if search and everybody:
        raise click.UsageError("--search looks through what one account said; name it with --account.")

    async def chosen(transfer: Any, place: Place) -> list[UUID]:
        from services.actor import acting_for

        if session_ids:
            return list(dict.fromkeys(session_ids))
        # An account's are those that the account would export itself.
        actor = acting_for(await place.account(account), place.actor) if account else place.actor
        wanted = {"state": state or "", "model": model, "q": search, "everybody": everybody}
        return list(await transfer.choose(place.db_session, actor=actor, **wanted))

    def to(file: BinaryIO) -> Callable[[Place], Awaitable[int]]:
        async def do(place: Place) -> int:
            from services.transfer import Transfer

            async with place.sessions() as sessions:
                sessions.inspection.require_allowed()
                transfer = Transfer(sessions)
                ids = await chosen(transfer, place)
                if session_ids:  # one that is not there is a mistake here, and no session deleted meanwhile
                    for id in ids:
                        await sessions.get_session(id, place.db_session, actor=place.actor)
                write = transfer.as_json if kind == "json" else transfer.as_markdown
                with Progress() as progress:
                    opened = _opened(ids, reason, sessions, place, progress)
                    # Whatever refuses the first one does so before anything is written.
                    first = await anext(opened, None)
                    async for piece in write(_behind(first, opened), place.db_session, actor=place.actor):
                        file.write(piece)
                return len(ids)

        return do

    if output is None:
        with to_standard_output():
            at_place(to(sys.stdout.buffer))
            sys.stdout.flush()
        return
    from db.backup import BackupError, new_file

    try:
        with new_file(output) as copy:
            with copy.open("wb") as file:
                count = at_place(to(file))
            size = copy.stat().st_size
    except BackupError as error:
        raise click.ClickException(str(error)) from error
    words = f"{output} holds {_sessions(count)} ({size:,} bytes)."
    say(as_json, {"file": str(output), "sessions": count, "bytes": size}, words)


async def _opened(
    session_ids: list[UUID], reason: str, sessions: Any, place: Place, progress: Progress
) -> AsyncIterator[UUID]:
    """Each session once its owner can see that it is read."""
    from services.errors import NotFound

    for number, session_id in enumerate(session_ids):
        progress.tell(f"{number} of {_sessions(len(session_ids))}")
        try:
            live = await sessions.get_session(session_id, place.db_session, actor=place.actor)
        except NotFound:
            continue  # deleted meanwhile
        await sessions.inspection.open(live.row, reason, place.db_session, actor=place.actor)
        yield session_id


async def _behind(first: UUID | None, others: AsyncIterator[UUID]) -> AsyncIterator[UUID]:
    if first is not None:
        yield first
    async for session_id in others:
        yield session_id


@click.command("import", context_settings=HELP)
@click.argument(
    "files",
    metavar="FILE…",
    nargs=-1,
    required=True,
    type=click.Path(allow_dash=True, path_type=Path),
)
@click.option("--account", required=True, help="Whose they will be.")
@as_json_option
def import_(files: tuple[Path, ...], account: str, as_json: bool) -> None:
    """Make sessions of exported files. - is standard input; the same file again goes on where it ended.

    \b
    turnkeeper session import ann.json --account ann
    """

    async def do(place: Place) -> list[dict[str, Any]]:
        from services.actor import acting_for
        from services.transfer import Transfer

        actor = acting_for(await place.account(account), place.actor)
        told = []
        async with place.sessions() as sessions:
            with Progress() as progress:
                for file in files:
                    taken = await _take(file, Transfer(sessions), place, actor, progress)
                    told.append({"file": str(file), "sessions": taken})
        return told

    told = at_place(do)
    lines = [f"{_sessions(len(one['sessions']))} of {one['file']}" for one in told]
    say(as_json, {"imported": told}, "\n".join(f"“{account}” has {line}." for line in lines))


async def _take(file: Path, transfer: Any, place: Place, actor: Any, progress: Progress) -> list[UUID]:
    """The ids of what one file has become. Raises click.ClickException."""
    from services.errors import Refusal

    document, key = _read(file)
    made = list[UUID]()
    try:
        async for step in transfer.take(document, place.db_session, actor=actor, key=key):
            if step.refusal is not None:
                raise step.refusal
            made.append(step.session.row.id)
            progress.tell(f"{step.done} of {_sessions(step.of)} of {file}")
    except Refusal as refusal:
        got = f" {_sessions(len(made))} of it came in; the same command goes on from there." if made else ""
        raise click.ClickException(f"{file}: {refusal}{got}") from refusal
    return made


def _read(file: Path) -> tuple[Any, str]:
    """What a file holds, and a key that is the same for the same file. Raises click.ClickException."""
    import msgspec

    from services.transfer import Document

    try:
        content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        return msgspec.json.decode(content, type=Document), hashlib.sha256(content).hexdigest()
    except OSError as error:
        raise click.ClickException(f"{file}: {error.strerror}.") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise click.ClickException(f"{file} is no file of sessions: {error}") from error


def _sessions(count: int) -> str:
    return "1 session" if count == 1 else f"{count} sessions"

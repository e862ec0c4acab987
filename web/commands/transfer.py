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
    shown,
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
@click.option("--account", default="", help="Whose they will be; with --owners those whose owner has no account here.")
@click.option("--owners", is_flag=True, help="Give each to the account with the name of its owner in the file.")
@as_json_option
def import_(files: tuple[Path, ...], account: str, owners: bool, as_json: bool) -> None:
    """Make sessions of exported files. - is standard input; the same file again goes on where it ended.

    With --owners, the exit code is 1 where a session stays out because its owner has no account here.

    \b
    turnkeeper session import ann.json --account ann
    turnkeeper session import everybody.json --owners
    """
    if not account and not owners:
        raise click.UsageError("Name whose they will be with --account, or --owners for whom the file names.")

    async def do(place: Place) -> list[dict[str, Any]]:
        from services.transfer import Transfer

        told = []
        async with place.sessions() as sessions:
            with Progress() as progress:
                for file in files:
                    told.append(await _given(file, Transfer(sessions), place, account, owners, progress))
        return told

    told = at_place(do)
    lines = [
        f"“{name}” has {_sessions(len(ids))} of {one['file']}." for one in told for name, ids in one["owners"].items()
    ]
    lines += [
        f"{_sessions(count)} of {one['file']} stay out: {_nobody(name)}. --account names who takes them."
        for one in told
        for name, count in one["left_out"].items()
    ]
    say(as_json, {"imported": told}, "\n".join(lines) or "Nothing was in it.")
    if any(one["left_out"] for one in told):
        sys.exit(1)


def _nobody(name: str) -> str:
    return f"there is no account “{shown(name)}”" if name else "the file does not say whose they are"


async def _given(
    file: Path, transfer: Any, place: Place, account: str, owners: bool, progress: Progress
) -> dict[str, Any]:
    """What became of one file: for whom which sessions were made, and how many of whose were not."""
    from services.actor import acting_for
    from services.errors import NotFound
    from services.transfer import by_owner

    document, key = _read(file)
    made, left_out = dict[str, list[UUID]](), dict[str, int]()
    parts = by_owner(document) if owners else {account: document}
    for name, part in parts.items():
        try:
            owner = await place.account(name)
        except NotFound:
            if not owners:
                raise
            if not account:
                left_out[name] = len(part.sessions)
                continue
            owner = await place.account(account)
        own = hashlib.sha256(f"{key} {name}".encode()).hexdigest() if owners else key
        made.setdefault(owner.name, []).extend(
            await _take(file, part, own, transfer, place, acting_for(owner, place.actor), progress)
        )
    ids = [id for some in made.values() for id in some]
    return {"file": str(file), "sessions": ids, "owners": made, "left_out": left_out}


async def _take(
    file: Path, document: Any, key: str, transfer: Any, place: Place, actor: Any, progress: Progress
) -> list[UUID]:
    """The ids of what a file, or a part of one, has become. Raises click.ClickException."""
    from services.errors import Refusal

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

    from services.text import utf8
    from services.transfer import Document

    try:
        content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        return msgspec.json.decode(utf8(content), type=Document), hashlib.sha256(content).hexdigest()
    except OSError as error:
        raise click.ClickException(f"{file}: {error.strerror}.") from error
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise click.ClickException(f"{file} is no file of sessions: {error}") from error


def _sessions(count: int) -> str:
    return "1 session" if count == 1 else f"{count} sessions"

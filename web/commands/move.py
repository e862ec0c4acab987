"""turnkeeper move — every session of one model on another, switched one by one by whichever server runs."""

from typing import Any
from uuid import UUID

import click

from web.commands.console import HELP, Place, as_json_option, at_place, facts, say, shown, table

from_argument = click.argument("from_model", metavar="FROM")
to_argument = click.argument("to_model", metavar="TO")


@click.group(context_settings=HELP)
def move() -> None:
    """Moves: every live session of one model on another. A server does it, as soon as one runs."""


@move.command("preview", context_settings=HELP)
@from_argument
@to_argument
@as_json_option
def preview(from_model: str, to_model: str, as_json: bool) -> None:
    """Count what a move would do now. Nothing is changed."""

    async def do(place: Place) -> Any:
        from services.moves import Moves
        from web.views import PreviewView

        async with place.sessions() as sessions:
            found = await Moves(sessions).preview(from_model, to_model, place.db_session, actor=place.actor)
            return PreviewView.of(found)

    found = at_place(do)
    told = facts(
        [
            ("sessions", found.total),
            ("being written", found.running),
            ("locked", found.locked),
            ("staying", found.refused),
        ]
    )
    say(as_json, found, told)


@move.command("order", context_settings=HELP)
@from_argument
@to_argument
@click.option("--reason", required=True, help="Why; the owners see it.")
@as_json_option
def order(from_model: str, to_model: str, reason: str, as_json: bool) -> None:
    """Move every live session of one model to another. `move preview` is the dry run.

    \b
    turnkeeper move preview fast smart
    turnkeeper move order fast smart --reason "fast is taken out of use"
    """

    async def do(place: Place) -> Any:
        from services.moves import Moves
        from web.views import MoveView

        async with place.sessions() as sessions:
            return MoveView.of(
                await Moves(sessions).order(from_model, to_model, reason, place.db_session, actor=place.actor)
            )

    ordered = at_place(do)
    say(as_json, ordered, f"{ordered.total} to be moved. How far it is, tells: turnkeeper move list")


@move.command("list", context_settings=HELP)
@as_json_option
def list_(as_json: bool) -> None:
    """List the latest moves with how far they are, newest first."""

    async def do(place: Place) -> Any:
        from services.moves import Moves
        from web.views import MovesView, MoveView

        async with place.sessions() as sessions:
            found = await Moves(sessions).list_moves(place.db_session, actor=place.actor)
            return MovesView([MoveView.of(row) for row in found])

    found = at_place(do)
    heads = ("id", "from", "to", "state", "moved", "skipped", "of", "ordered by", "why", "note")
    rows = [
        (
            one.id,
            one.from_model,
            one.to_model,
            one.state,
            one.moved,
            one.skipped,
            one.total,
            one.ordered_by,
            one.reason,
            one.note or None,
        )
        for one in found.moves
    ]
    say(as_json, found, table(heads, rows, "There were no moves."))


@move.command("stop", context_settings=HELP)
@click.argument("move_id", metavar="ID", type=click.UUID)
@click.option("--reason", default="", help="Why; needed where somebody else ordered the move.")
@as_json_option
def stop(move_id: UUID, reason: str, as_json: bool) -> None:
    """Stop a move where it is. What was moved stays."""

    async def do(place: Place) -> Any:
        from services.moves import Moves
        from web.views import MoveView

        async with place.sessions() as sessions:
            return MoveView.of(await Moves(sessions).stop(move_id, place.db_session, actor=place.actor, reason=reason))

    found = at_place(do)
    say(as_json, found, f"The move is {shown(found.state)}: {found.moved} moved, {found.skipped} skipped.")

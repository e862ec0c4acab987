"""turnkeeper usage — what was used."""

from datetime import datetime
from typing import Any

import click

from web.commands.console import HELP, Day, Place, as_json_option, at_place, say, table


@click.command(context_settings=HELP)
@click.option(
    "--by",
    type=click.Choice(["day", "model", "group", "account"]),
    default="day",
    show_default=True,
    help="What a row stands for.",
)
@click.option("--days", type=click.IntRange(1, 400), default=30, show_default=True, help="So many days.")
@click.option("--last", type=Day, help="The last of them (default: today).")
@click.option("--account", default="", help="Only what this account used.")
@click.option("--group", default="", help="Only what this group used.")
@click.option("--model", default="", help="Only what this model was used for.")
@click.option(
    "--sort",
    "measure",
    type=click.Choice(["tokens", "turns", "cost"]),
    default="tokens",
    show_default=True,
    help="Most of this first; days stay in their order.",
)
@as_json_option
def usage(by: Any, days: int, last: datetime | None, as_json: bool, **of: Any) -> None:
    """Add up what was used. Counted are the replies that ended in those days."""

    async def do(place: Place) -> Any:
        from services.oversight import Oversight
        from web.views import UsageView

        day = last.date() if last is not None else None
        async with place.sessions() as sessions:
            report = await Oversight(sessions).usage(by, place.db_session, actor=place.actor, days=days, last=day, **of)
            return UsageView.of(report)

    found = at_place(do)
    rows = [(one.name, one.turns, one.tokens, f"{one.cost:.6f}") for one in [*found.rows, found.total]]
    say(as_json, found, table((by, "messages", "tokens", "cost"), rows, ""))

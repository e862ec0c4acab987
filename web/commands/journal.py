"""turnkeeper journal — every decision, and what was refused."""

from datetime import datetime
from typing import Any
from uuid import UUID

import click

from web.commands.console import HELP, Day, Place, as_json_option, at_place, say
from web.commands.session import decided


@click.command(context_settings=HELP)
@click.option("--account", default="", help="Only what this account did, and what concerns it.")
@click.option("--session", "session_id", type=click.UUID, help="Only about this session.")
@click.option("--what", default="", help="Only decisions of this kind: model_switched, …")
@click.option("--outcome", type=click.Choice(["done", "refused"]), help="Only what was done, or what was refused.")
@click.option("--since", type=Day, help="From this day on.")
@click.option("--until", type=Day, help="Up to this day, which counts.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="At most so many.")
@as_json_option
def journal(
    account: str,
    session_id: UUID | None,
    what: str,
    outcome: Any,
    since: datetime | None,
    until: datetime | None,
    limit: int,
    as_json: bool,
) -> None:
    """Read the journal, newest first."""

    async def do(place: Place) -> Any:
        from services.oversight import Asked, Oversight
        from web.views import AdminDecisionView, AdminJournalView

        asked = Asked(
            account,
            session_id,
            what,
            outcome or "",
            since.date() if since is not None else None,
            until.date() if until is not None else None,
        )
        async with place.sessions() as sessions:
            found = await Oversight(sessions).journal(asked, place.db_session, actor=place.actor, limit=limit)
            return AdminJournalView([AdminDecisionView.whole(one) for one in found.decisions], found.next)

    found = at_place(do)
    say(as_json, found, decided(found.journal))

"""turnkeeper group — the groups and their limits."""

from typing import Any

import click

from web.commands.console import HELP, Place, as_json_option, at_place, reason_option, say, shown, table


@click.group(context_settings=HELP)
def group() -> None:
    """The groups that accounts are in, and their limits. `*` is the server as a whole."""


@group.command("list", context_settings=HELP)
@as_json_option
def list_(as_json: bool) -> None:
    """List every limit of every group, and who has set it."""

    async def do(place: Place) -> list[Any]:
        from web.views import AdminGroupView

        governed = await (await place.governance()).groups(place.db_session, actor=place.actor)
        return [AdminGroupView.of(one) for one in governed]

    found = at_place(do)
    rows = [
        (one.name, limit.name, limit.value, limit.set_by or ("as user" if limit.inherited else "the configuration"))
        for one in found
        for limit in one.limits
    ]
    say(as_json, {"groups": found}, table(("group", "limit", "value", "set by"), rows, ""))


@group.command("limit", context_settings=HELP)
@click.argument("name", metavar="GROUP")
@click.argument("limit")
@click.argument("value", required=False)
@reason_option
@as_json_option
def limit(name: str, limit: str, value: str | None, reason: str, as_json: bool) -> None:
    """Set a limit, or give it back to the configuration. A value is written as it is there; 0 is no limit.

    A limit of `user` holds for each group that has none of its own: the answer names them, and `group list` shows
    them as "as user".

    \b
    turnkeeper group limit user turns "30/min burst 10"
    turnkeeper group limit user turns                    # back to the configuration
    """

    async def do(place: Place) -> Any:
        governance = await place.governance()
        return await governance.set_limit(name, limit, value, place.db_session, actor=place.actor, reason=reason)

    done = at_place(do)
    words = f"is {shown(_meant(done.value))}"
    words += f"; it was {shown(_meant(done.before))}" if done.before != done.value else ", as before"
    if value is None:
        words += ", as the configuration says"
    told = f"{shown(limit)} of {shown(name)} {words}."
    if done.followed_by:
        told += f" It holds for {', '.join(map(shown, done.followed_by))} too: they have none of their own."
    facts = {"before": done.before, "effective": done.value, "followed_by": done.followed_by}
    say(as_json, {"group": name, "limit": limit, "value": value, **facts}, told)


def _meant(value: str) -> str:
    """A value of a limit, with what 0 means."""
    return "0 (no limit)" if value == "0" else value

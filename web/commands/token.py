"""turnkeeper token — keys for scripts."""

from datetime import UTC, date, datetime, time
from typing import Any
from uuid import UUID

import click

from web.commands.console import HELP, Place, as_json_option, at_place, reason_option, say, table, told_reason_option


@click.group(context_settings=HELP)
def token() -> None:
    """Keys for scripts."""


SCOPES = {"read", "chat", "admin"}


class Expiry(click.ParamType):
    """A span from now on, or the day at whose beginning (UTC) it ends."""

    name = "span or day"

    def convert(self, value: Any, param: Any, ctx: Any) -> datetime:
        from services.policies import LONGEST_DAYS, parse_span
        from services.session_service import utc_now

        try:
            return utc_now() + parse_span(value)
        except ValueError:
            pass
        try:
            return datetime.combine(date.fromisoformat(value), time(), UTC)
        except ValueError:
            self.fail(
                f"{value!r} is neither a span like 90d, of {LONGEST_DAYS} days at most, nor a day like 2027-01-31.",
                param,
                ctx,
            )


class Scopes(click.ParamType):
    """Scopes, parted by commas or blanks."""

    name = "scopes"

    def convert(self, value: Any, param: Any, ctx: Any) -> list[str]:
        from services.text import listed

        found = listed(value) if isinstance(value, str) else list(value)
        if not found or set(found) - SCOPES:
            self.fail(f"{value!r} is none of {', '.join(sorted(SCOPES))}.", param, ctx)
        return found


@token.command("create", context_settings=HELP)
@click.option("--account", "account_name", required=True, help="The account the script acts for.")
@click.option("--name", required=True, help="What the token is for.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=Scopes(),
    default=("chat",),
    help="read, chat or admin; several, or a list.",
)
@click.option("--expires", type=Expiry(), help="When it ends: 90d, or 2027-01-31 (default: never).")
@reason_option
@as_json_option
def create(
    account_name: str, name: str, scopes: tuple[list[str], ...], expires: datetime | None, reason: str, as_json: bool
) -> None:
    """Make a token and print it, once. `chat` includes `read`; `admin` includes both.

    \b
    turnkeeper token create --account ann --name nightly --scope read --expires 90d
    """

    async def do(place: Place) -> str:
        asked = tuple(dict.fromkeys(scope for given in scopes for scope in given))
        asks = {"expires_at": expires, "reason": reason, "actor": place.actor}
        return str(await place.accounts.create_token(account_name, name, asked, place.db_session, **asks))

    made = at_place(do)
    say(as_json, {"token": made, "expires_at": expires}, made)


@token.command("list", context_settings=HELP)
@click.option("--account", "account_name", required=True, help="The account they act for.")
@as_json_option
def list_(account_name: str, as_json: bool) -> None:
    """List the good tokens of an account. Their text is told only when they are made."""

    async def do(place: Place) -> list[Any]:
        from web.views import TokenView

        id = await place.account_id(account_name)
        return [TokenView.of(row) for row in await place.members.tokens(id, place.db_session, actor=place.actor)]

    found = at_place(do)
    rows = [(one.id, one.name, ", ".join(one.scopes), one.created_at, one.expires_at) for one in found]
    say(as_json, {"tokens": found}, table(("id", "name", "scopes", "made", "expires"), rows, "There are no tokens."))


@token.command("revoke", context_settings=HELP)
@click.argument("token_id", metavar="ID", type=click.UUID)
@told_reason_option
@as_json_option
def revoke(token_id: UUID, reason: str, as_json: bool) -> None:
    """End a token at once. `token list` tells its id."""

    async def do(place: Place) -> None:
        await place.members.revoke_token(token_id, place.db_session, actor=place.actor, reason=reason)

    at_place(do)
    say(as_json, {"revoked": token_id}, "The token is revoked.")

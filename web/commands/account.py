"""turnkeeper account — people who may sign in."""

from typing import Any

import click

from web.commands.console import (
    HELP,
    Place,
    as_json_option,
    at_place,
    password_from,
    reason_option,
    say,
    shown,
    table,
    told_reason_option,
)

permanent_option = click.option(
    "--permanent", is_flag=True, help="The password stays; its owner need not replace it at the next sign-in."
)


@click.group(context_settings=HELP)
def account() -> None:
    """People who may sign in."""


@account.command("create", context_settings=HELP)
@click.argument("name")
@click.option("--role", type=click.Choice(["user", "admin"]), default="user", show_default=True)
@click.option("--group", default="", help="The group whose limits apply (default: the role).")
@click.option("--service", is_flag=True, help="For a program: no password and no logins, only tokens.")
@permanent_option
@as_json_option
def create(name: str, role: Any, group: str, service: bool, permanent: bool, as_json: bool) -> None:
    """Make an account. The password is asked for, or read from standard input; its owner replaces it at first."""
    password = "" if service else password_from()

    async def do(place: Place) -> Any:
        from web.views import MemberView

        asks = {"role": role, "group": group, "service": service, "temporary": not permanent, "actor": place.actor}
        row = await place.accounts.create_account(name, password, place.db_session, **asks)
        return MemberView.of(row, service=service)

    made = at_place(do)
    kind = "service account" if service else "account"
    say(as_json, made, f"There is now {'a' if service else 'an'} {kind} “{shown(made.name)}” ({role}).")


@account.command("list", context_settings=HELP)
@click.option("--search", default="", help="Only names with this in them.")
@as_json_option
def list_(search: str, as_json: bool) -> None:
    """List the accounts, by name; guests are none."""

    async def do(place: Place) -> list[Any]:
        from web.views import MemberView

        found, after = list[Any](), ""
        while True:
            page = await place.members.list_accounts(
                place.db_session, actor=place.actor, q=search, after=after, limit=200
            )
            found += [MemberView.of(row, service=row.id in page.services) for row in page.accounts]
            if page.next is None:
                return found
            after = page.next

    found = at_place(do)
    rows = [(one.name, one.role, one.group, one.service, one.created_at, one.disabled_at) for one in found]
    heads = ("name", "role", "group", "service", "made", "disabled")
    say(as_json, {"accounts": found}, table(heads, rows, "There are no accounts."))


@account.command("disable", context_settings=HELP)
@click.argument("name")
@told_reason_option
@as_json_option
def disable(name: str, reason: str, as_json: bool) -> None:
    """Take away somebody's way in. Logins, tokens and open pages end at once, sessions stay."""
    _put_disabled(name, True, reason, as_json)


@account.command("enable", context_settings=HELP)
@click.argument("name")
@reason_option
@as_json_option
def enable(name: str, reason: str, as_json: bool) -> None:
    """Let somebody in again who was disabled."""
    _put_disabled(name, False, reason, as_json)


@account.command("passwd", context_settings=HELP)
@click.argument("name")
@permanent_option
@reason_option
@as_json_option
def passwd(name: str, permanent: bool, reason: str, as_json: bool) -> None:
    """Give an account a temporary password. It is asked for, or read from standard input; logins end, tokens stay."""
    password = password_from()

    async def do(place: Place) -> Any:
        from web.views import MemberView

        id = await place.account_id(name)
        asks: dict[str, Any] = {"actor": place.actor, "temporary": not permanent, "reason": reason}
        return MemberView.of(await place.members.set_password(id, password, place.db_session, **asks))

    changed = at_place(do)
    words = "has a new password" if permanent else "has a temporary password, and replaces it at the next sign-in"
    say(as_json, changed, f"“{shown(changed.name)}” {words}.")


@account.command("change", context_settings=HELP)
@click.argument("name")
@click.option("--role", type=click.Choice(["user", "admin"]), help="What it may do; a group of the role's goes along.")
@click.option("--group", help="The group whose limits apply.")
@reason_option
@as_json_option
def change(name: str, role: str | None, group: str | None, reason: str, as_json: bool) -> None:
    """Give an account another role or group. What is left out stays."""
    asked = {"role": role, "group": group}
    if not any(asked.values()):
        raise click.UsageError("Name a --role or a --group.")
    changed = _changed(name, reason, **{what: value for what, value in asked.items() if value is not None})
    say(as_json, changed, f"“{shown(changed.name)}” is {changed.role}, in the group {shown(changed.group)}.")


@account.command("signout", context_settings=HELP)
@click.argument("name")
@told_reason_option
@as_json_option
def signout(name: str, reason: str, as_json: bool) -> None:
    """End every login of an account. Its tokens stay."""

    async def do(place: Place) -> int:
        id = await place.account_id(name)
        return await place.members.revoke_logins(id, place.db_session, actor=place.actor, reason=reason)

    ended = at_place(do)
    say(as_json, {"ended": ended}, f"“{shown(name)}” is signed out of {ended} browser{'s' * (ended != 1)}.")


def _put_disabled(name: str, disabled: bool, reason: str, as_json: bool) -> None:
    changed = _changed(name, reason, disabled=disabled)
    say(as_json, changed, f"“{shown(changed.name)}” is {'disabled' if disabled else 'enabled'}.")


def _changed(name: str, reason: str, **asks: Any) -> Any:
    """An account once it is changed."""

    async def do(place: Place) -> Any:
        from web.views import MemberView

        id = await place.account_id(name)
        row = await place.members.change_account(id, place.db_session, actor=place.actor, reason=reason, **asks)
        return MemberView.of(row, service=await place.db_session.is_service_account(id))

    return at_place(do)

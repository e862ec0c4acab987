"""turnkeeper model — the catalogue: what may be used."""

from typing import Any

import click

from web.commands.console import HELP, Place, as_json_option, at_place, reason_option, say, shown, table

no_longer_option = click.option("--why", default="", help="Shown to people beside the model.")
replacement_option = click.option("--replacement", help="The model that stands in for it; an empty text for none.")


@click.group(context_settings=HELP)
def model() -> None:
    """The models that may be used."""


@model.command("list", context_settings=HELP)
@as_json_option
def list_(as_json: bool) -> None:
    """List every model with its state. They come from the configuration."""

    async def do(place: Place) -> list[Any]:
        from services.client_pool import ClientPool
        from web.views import AdminModelView

        governed, pool = await (await place.governance()).models(place.db_session, actor=place.actor), ClientPool([])
        return [AdminModelView.of(one, pool) for one in governed]

    found = at_place(do)
    heads = ("id", "provider", "state", "replacement", "open to", "set by", "why")
    rows = [
        (
            one.id,
            one.provider,
            one.state,
            one.replacement,
            ", ".join(one.groups) or "everybody",
            one.set_by,
            one.state_reason or None,
        )
        for one in found
    ]
    say(as_json, {"models": found}, table(heads, rows, "The configuration names no models."))


@model.command("test", context_settings=HELP)
@click.argument("name", metavar="MODEL")
@as_json_option
def test(name: str, as_json: bool) -> None:
    """Ask a model something short, past sessions and limits. 1 if no reply comes."""

    async def do(place: Place) -> Any:
        from services.trials import Trials

        async with place.sessions() as sessions:
            return await Trials(sessions).try_model(name, place.db_session, actor=place.actor)

    trial = at_place(do)
    if trial.code:
        raise click.ClickException(f"{shown(trial.model)}: {trial.code}: {trial.detail}")
    reply = f": {shown(trial.reply)}" if trial.reply else ""
    say(as_json, trial, f"{shown(trial.model)} answers{reply} ({trial.seconds:.2f} s)")


@model.command("enable", context_settings=HELP)
@click.argument("name", metavar="MODEL")
@reason_option
@as_json_option
def enable(name: str, reason: str, as_json: bool) -> None:
    """Let a model be used (again)."""
    _put_state(name, "active", "", None, reason, as_json)


@model.command("disable", context_settings=HELP)
@click.argument("name", metavar="MODEL")
@no_longer_option
@reason_option
@as_json_option
def disable(name: str, why: str, reason: str, as_json: bool) -> None:
    """Switch a model off. Sessions on it use a fallback until it is back."""
    _put_state(name, "disabled", why, None, reason, as_json)


@model.command("retire", context_settings=HELP)
@click.argument("name", metavar="MODEL")
@replacement_option
@no_longer_option
@reason_option
@as_json_option
def retire(name: str, replacement: str | None, why: str, reason: str, as_json: bool) -> None:
    """Take a model out of use for good. Sessions on it go on with its replacement."""
    _put_state(name, "retired", why, replacement, reason, as_json)


@model.command("restore", context_settings=HELP)
@click.argument("name", metavar="MODEL")
@reason_option
@as_json_option
def restore(name: str, reason: str, as_json: bool) -> None:
    """Give a model back to the configuration."""

    async def do(place: Place) -> None:
        await (await place.governance()).restore_model(name, place.db_session, actor=place.actor, reason=reason)

    at_place(do)
    say(as_json, {"model": name}, f"{shown(name)} is what the configuration says.")


def _put_state(name: str, state: Any, why: str, replacement: str | None, reason: str, as_json: bool) -> None:
    async def do(place: Place) -> None:
        asks = {"state": state, "state_reason": why, "reason": reason}
        if replacement is not None:
            asks["replacement"] = replacement or None
        await (await place.governance()).set_model(name, place.db_session, actor=place.actor, **asks)

    at_place(do)
    say(as_json, {"model": name, "state": state}, f"{shown(name)} is {state}.")

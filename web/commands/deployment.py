"""turnkeeper migrate, check, config — a deployment as a whole."""

import asyncio
import json
import sys

import click

from web.commands.console import HELP, as_json_option, on_engine, say, settings_of
from web.settings import shown


@click.command(context_settings=HELP)
@as_json_option
def migrate(as_json: bool) -> None:
    """Bring the database schema up to date."""
    from db.engine import migrate as bring_up

    ran = on_engine(settings_of(), bring_up, makes=True)
    say(as_json, {"applied": ran}, "\n".join(f"applied {name}" for name in ran) or "The schema is up to date.")


@click.command(context_settings=HELP)
@click.option("--deploy", is_flag=True, help="Also warn about what matters on the open network.")
@as_json_option
def check(deploy: bool, as_json: bool) -> None:
    """Check configuration, database and every provider. Exit code 0 or 1."""
    from web.check import findings

    found = asyncio.run(findings(settings_of(), deploy=deploy))
    words = "\n".join(f"{'ok  ' if one.ok else 'FAIL'}  {one.what}: {one.detail}" for one in found)
    say(as_json, [{"what": one.what, "ok": one.ok, "detail": one.detail} for one in found], words)
    sys.exit(0 if all(one.ok for one in found) else 1)


@click.group(context_settings=HELP)
def config() -> None:
    """The settings."""


@config.command("show", context_settings=HELP)
@click.option("--json", is_flag=True, expose_value=False, help="It is JSON anyway.")
def show() -> None:
    """Print the effective settings as JSON, secrets hidden."""
    click.echo(json.dumps(shown(settings_of()), indent=2, default=str))

"""The command line."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from web.commands.account import account
from web.commands.backup import backup, restore
from web.commands.console import (
    HELP,
    accounts_of,
    database_in_use,
    named,
    on_engine,
    only_one,
    put_in_force,
    settings_of,
)
from web.commands.deployment import check, config, migrate
from web.commands.group import group
from web.commands.journal import journal
from web.commands.model import model
from web.commands.move import move
from web.commands.session import session
from web.commands.token import token
from web.commands.usage import usage
from web.settings import Settings

if TYPE_CHECKING:
    from web.welcome import Start


def _version(context: click.Context, option: click.Parameter, asked: bool) -> None:
    if asked:
        from db.schema import number
        from db.version import version

        click.echo(f"turnkeeper {version()}, schema {number()}")
        context.exit()


@click.group(context_settings=HELP)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Tell it and exit.")
@click.option("--as", "operator", metavar="NAME", callback=named, help="Who acts; it stands in the journal.")
def main(operator: str | None) -> None:
    """Turnkeeper: governed chat sessions over several language models.

    Settings come from flags, TURNKEEPER_* variables, and turnkeeper.toml, in this order. The exit code is 0 when it is
    done, 1 when it is not and one line says why, 2 when it was called in a wrong way.

    \b
    turnkeeper serve
    turnkeeper account create ann                    # asks for the password
    turnkeeper token create --account ann --name ci  # prints a key for scripts
    turnkeeper session list --json

    The journal names who acts: NAME, else who called sudo, else the user that runs the command.
    """


@main.command(context_settings=HELP)
@click.option("--host", help="Address to listen on (default 127.0.0.1).")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on (default 8000).")
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes; more need PostgreSQL."
)
def serve(host: str | None, port: int | None, workers: int) -> None:
    """Serve the pages and the JSON interface. The database is migrated first."""
    from web.logs import set_up
    from web.signals import outlive
    from web.systemd import the_notifier
    from web.welcome import greet
    from web.workers import NoneStarted, Workers
    from web.workers import serve as serve_here

    settings = settings_of(host=host, port=port)
    if workers > 1 and settings.sqlite_path:
        raise click.ClickException(f"--workers {workers}: SQLite has one writer, so one process; use PostgreSQL.")
    set_up(settings.log_format, access_log=settings.access_log)
    outlive()
    notifier = the_notifier()
    with only_one(settings), _bound(settings) as listener:
        start = _prepared(settings)

        def ready() -> None:
            greet(settings, start)
            notifier.ready(f"Serving at {settings.host}:{settings.port}")

        if workers == 1:
            with database_in_use(settings):
                serve_here(settings, start.models, listener, ready, beat=notifier.alive, stops=notifier.stopping)
            return
        try:
            Workers(workers, settings, start.models, listener, ready, notifier).serve()
        except NoneStarted as error:
            raise click.ClickException("no worker can start; what they said stands above.") from error


for command in (migrate, check, backup, restore, config, account, token, session, model, move, group, usage, journal):
    main.add_command(command)


def _prepared(settings: Settings) -> "Start":
    """Everything that is done once, however many processes serve then: schema, models, configuration, first admin."""
    from db.db_session import DbSession
    from db.engine import migrate as bring_up
    from db.schema import require
    from web.welcome import Start, the_models

    accounts = accounts_of(settings)

    async def run(engine: Any) -> Start:
        db_session, ran = DbSession(engine), await bring_up(engine)
        await require(engine)
        found = await the_models(settings)
        await put_in_force(found, settings, db_session)
        return Start(found, ran, await accounts.new_setup_link(db_session))

    return on_engine(settings, run, makes=True)


@contextmanager
def _bound(settings: Settings) -> Iterator[socket.socket]:
    """The address to serve on, taken before anything else happens."""
    from web.workers import QUEUE

    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With its protocol named: asyncio turns Nagle's algorithm off only for what says that it is TCP.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
            listener.listen(QUEUE)
        except OSError as error:
            where = f"{settings.host}:{settings.port}"
            why = error.strerror or str(error)
            raise click.ClickException(f"{where} cannot be served on: {why}. Choose another --port.") from error
        yield listener


if __name__ == "__main__":
    main()

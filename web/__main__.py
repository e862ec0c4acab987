"""The command line."""

import asyncio
import fcntl
import json
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

from web.settings import Settings, SettingsError, load, shown

if TYPE_CHECKING:
    from web.welcome import Start

T = TypeVar("T")
HELP = {"help_option_names": ["-h", "--help"]}


@click.group(context_settings=HELP)
@click.version_option(package_name="turnkeeper", prog_name="turnkeeper")
def main() -> None:
    """Turnkeeper: governed chat sessions over several language models.

    Settings come from flags, TURNKEEPER_* variables, and turnkeeper.toml, in this order.
    """


@main.command(context_settings=HELP)
@click.option("--host", help="Address to listen on (default 127.0.0.1).")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on (default 8000).")
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes; more need PostgreSQL."
)
def serve(host: str | None, port: int | None, workers: int) -> None:
    """Serve the pages and the JSON interface; migrates the database first."""
    from web.welcome import greet
    from web.workers import NoneStarted, Workers
    from web.workers import serve as serve_here

    settings = _settings(host=host, port=port)
    if workers > 1 and settings.sqlite_path:
        raise click.ClickException(f"--workers {workers}: SQLite has one writer, so one process; use PostgreSQL.")
    with _only_one(settings), _bound(settings) as listener:
        start = _prepared(settings)

        def ready() -> None:
            greet(settings, start)

        if workers == 1:
            serve_here(settings, start.models, listener, ready)
            return
        try:
            Workers(workers, settings, start.models, listener, ready).serve()
        except NoneStarted as error:
            raise click.ClickException("no worker could start; what it said stands above.") from error


@main.command(context_settings=HELP)
def migrate() -> None:
    """Bring the database schema up to date."""
    ran = _bring_up(_settings())
    click.echo("\n".join(f"applied {name}" for name in ran) or "The schema is up to date.")


@main.command(context_settings=HELP)
@click.option("--deploy", is_flag=True, help="Also warn about what matters on the open network.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(deploy: bool, as_json: bool) -> None:
    """Check the configuration, the database, and whether every provider answers. Exit code 0 or 1."""
    from web.check import findings

    found = asyncio.run(findings(_settings(), deploy=deploy))
    if as_json:
        click.echo(json.dumps([{"what": one.what, "ok": one.ok, "detail": one.detail} for one in found], indent=2))
    else:
        for one in found:
            click.echo(f"{'ok  ' if one.ok else 'FAIL'}  {one.what}: {one.detail}")
    sys.exit(0 if all(one.ok for one in found) else 1)


@main.group(context_settings=HELP)
def config() -> None:
    """The settings."""


@config.command("show", context_settings=HELP)
def config_show() -> None:
    """Print the effective settings as JSON, secrets hidden."""
    click.echo(json.dumps(shown(_settings()), indent=2, default=str))


@main.group(context_settings=HELP)
def account() -> None:
    """People who may sign in."""


@account.command("create", context_settings=HELP)
@click.argument("name")
@click.option("--role", type=click.Choice(["user", "admin"]), default="user", show_default=True)
@click.option("--group", default="", help="The group whose limits apply (default: the role).")
def account_create(name: str, role: Any, group: str) -> None:
    """Make an account; the password is asked for, or read from standard input."""
    if sys.stdin.isatty():
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    else:
        password = sys.stdin.readline().rstrip("\n")

    async def run(engine: Any) -> None:
        from db.db_session import DbSession

        await _accounts(settings).create_account(name, password, DbSession(engine), role=role, group=group)

    settings = _settings()
    _with_engine(settings, run, migrated=True)
    click.echo(f"There is now an account “{name}” ({role}).")


@main.group(context_settings=HELP)
def token() -> None:
    """Keys for scripts."""


@token.command("create", context_settings=HELP)
@click.option("--account", "account_name", required=True, help="The account the script acts for.")
@click.option("--name", required=True, help="What the token is for.")
@click.option("--scope", "scopes", multiple=True, type=click.Choice(["read", "chat", "admin"]), default=("chat",))
def token_create(account_name: str, name: str, scopes: tuple[str, ...]) -> None:
    """Make a token and print it, once. `chat` includes `read`; `admin` includes both."""

    async def run(engine: Any) -> str:
        from db.db_session import DbSession

        return await _accounts(settings).create_token(account_name, name, scopes, DbSession(engine))

    settings = _settings()
    click.echo(_with_engine(settings, run, migrated=True))


def _settings(**flags: Any) -> Settings:
    try:
        return load(os.environ, **flags)
    except SettingsError as error:
        raise click.ClickException(str(error)) from error


def _accounts(settings: Settings) -> Any:
    from services.accounts import Accounts
    from services.session_service import utc_now

    return Accounts(_secret(settings), guests=settings.guests, now=utc_now)


def _secret(settings: Settings) -> bytes:
    try:
        return settings.secret()
    except SettingsError as error:
        raise click.ClickException(str(error)) from error


def _with_engine(settings: Settings, run: Callable[[Any], Awaitable[T]], *, migrated: bool = False) -> T:
    """Run something on the database; refusals and failures become one line."""
    from db.engine import DatabaseUnavailable, open_engine
    from db.engine import migrate as bring_up
    from services.errors import Refusal

    async def whole() -> T:
        engine = open_engine(settings.database_url)
        try:
            await engine.start()
            if migrated:
                await bring_up(engine)
            return await run(engine)
        finally:
            await engine.stop()

    try:
        return asyncio.run(whole())
    except Refusal as refusal:
        raise click.ClickException(str(refusal)) from refusal
    except DatabaseUnavailable as error:
        raise click.ClickException(f"the database cannot be used: {error}") from error


def _bring_up(settings: Settings) -> list[str]:
    """Migrate; the migrations that ran."""
    from db.engine import migrate as bring_up

    async def run(engine: Any) -> list[str]:
        return await bring_up(engine)

    return _with_engine(settings, run)


def _prepared(settings: Settings) -> "Start":
    """Everything that is done once, however many processes serve then: schema, models, configuration, first admin."""
    from db.db_session import DbSession
    from db.engine import migrate as bring_up
    from services.configuration import apply_config
    from services.session_service import utc_now
    from web.welcome import Start, the_models

    accounts = _accounts(settings)

    async def run(engine: Any) -> Start:
        db_session, ran, found = DbSession(engine), await bring_up(engine), await the_models(settings)
        await apply_config(found.models, settings.rules, found.default_model, utc_now(), db_session)
        return Start(found, ran, await accounts.new_setup_link(db_session))

    return _with_engine(settings, run)


@contextmanager
def _bound(settings: Settings) -> Iterator[socket.socket]:
    """The address to serve on, taken before anything else happens."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With its protocol named: asyncio turns Nagle's algorithm off only for what says that it is TCP.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
            listener.listen(2048)
        except OSError as error:
            where = f"{settings.host}:{settings.port}"
            why = error.strerror or str(error)
            raise click.ClickException(f"{where} cannot be served on: {why}. Choose another --port.") from error
        yield listener


@contextmanager
def _only_one(settings: Settings) -> Iterator[None]:
    """One server per SQLite file: a second one would take the first one's running turns for lost."""
    if settings.sqlite_path is None:
        yield
        return
    with _lock_beside(settings.sqlite_path) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise click.ClickException(
                f"another server already uses {settings.sqlite_path}; stop it, or set TURNKEEPER_DATABASE_URL."
            ) from error
        yield


def _lock_beside(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.with_suffix(".lock").open("w")
    except OSError as error:
        raise click.ClickException(f"the folder of {path} cannot be used: {error.strerror}.") from error


if __name__ == "__main__":
    main()

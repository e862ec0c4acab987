"""How every command works: where it acts, as whom, what it says, and how it ends.

Exit codes: 0 done, 1 not done, and one line says why, 2 called in a wrong way. Everything is done as the system, under
the operator's name, by the verbs that the pages use. Nothing is coloured, and nothing moves but how far a long command
is, on a terminal alone; so a person and cron read the same.
"""

import asyncio
import errno
import fcntl
import os
import pwd
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar
from uuid import UUID

import click
import msgspec

from db.private import make_file, make_folder, require_regular
from web.settings import Settings, SettingsError, load

if TYPE_CHECKING:
    from web.welcome import Models

T = TypeVar("T")
OPERATOR_CHARACTERS = 80
MAKE_ONE = "“turnkeeper serve” and “turnkeeper migrate” make it."
HELP = {"help_option_names": ["-h", "--help"]}
as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
reason_option = click.option("--reason", default="", help="Why; it stands in the journal.")
told_reason_option = click.option("--reason", required=True, help="Why; its owner sees it.")
#: which sessions
state_option = click.option("--state", type=click.Choice(["active", "expired", "closed"]), help="Only those.")
model_option = click.option("--model", default="", help="Only those that were put on this model.")
search_option = click.option("--search", default="", help="Only those with this in the title.")
Day = click.DateTime(["%Y-%m-%d"])
session_argument = click.argument("session_id", metavar="ID", type=click.UUID)


def settings_of(**flags: Any) -> Settings:
    """The effective settings."""
    try:
        return load(os.environ, **flags)
    except SettingsError as error:
        raise click.ClickException(str(error)) from error


def secret_of(settings: Settings) -> bytes:
    try:
        return settings.secret()
    except SettingsError as error:
        raise click.ClickException(str(error)) from error


def operator_name() -> str:
    """Who gives the command: `--as`, else who called sudo, else the user that runs it."""
    context = click.get_current_context(silent=True)
    given = context.find_root().params.get("operator") if context is not None else None
    called = os.environ.get("SUDO_USER", "")
    return str(given or (called if _is_name(called) else "") or _user()).strip()


def named(_: click.Context, __: click.Parameter, name: str | None) -> str | None:
    """The name given by `--as`. Raises click.BadParameter."""
    if name is not None and not _is_name(name):
        raise click.BadParameter(f"a name has 1 to {OPERATOR_CHARACTERS} characters, all of them visible.")
    return name


def _is_name(name: str) -> bool:
    return bool(name.strip()) and name.isprintable() and len(name) <= OPERATOR_CHARACTERS


def _user() -> str:
    """The user that runs this process; the number of one that has no name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"user {os.getuid()}"


def accounts_of(settings: Settings) -> Any:
    from services.accounts import Accounts
    from services.session_service import utc_now

    return Accounts(secret_of(settings), guests=settings.guests, now=utc_now, admins_read=settings.admins_read)


def on_engine(
    settings: Settings, run: Callable[[Any], Awaitable[T]], *, up_to_date: bool = False, makes: bool = False
) -> T:
    """Run something on the database; refusals and failures become one line. Only what `makes` one may find none."""
    from db import schema
    from db.engine import open_engine
    from services.errors import Refusal

    if not makes:
        require_database(settings)

    async def whole() -> T:
        engine = open_engine(settings.database_url)
        try:
            await engine.start()
            if not makes and not await schema.is_there(engine):
                raise click.ClickException(f"the database {settings.place} is empty. {MAKE_ONE}")
            if up_to_date and (why := await schema.start_fault(engine)):
                raise schema.WrongSchema(why)
            return await run(engine)
        finally:
            await engine.stop()

    try:
        with database_in_use(settings):
            return asyncio.run(whole())
    except Refusal as refusal:
        raise click.ClickException(str(refusal)) from refusal


@contextmanager
def database_in_use(settings: Settings) -> Iterator[None]:
    """What keeps the database from being used in here becomes one line."""
    from db.engine import DatabaseUnavailable
    from web.redaction import redacted

    try:
        yield
    except DatabaseUnavailable as error:
        raise click.ClickException(f"the database cannot be used: {redacted(str(error), settings)}") from error


def require_database(settings: Settings) -> None:
    """Raise ClickException where there is no SQLite file: a command in a wrong folder makes none."""
    path = settings.sqlite_path
    if path is not None and not path.exists():
        raise click.ClickException(
            f"there is no database {path.absolute()}. Go to the folder of the server, name another database in "
            f"TURNKEEPER_DATABASE_URL, or begin one: {MAKE_ONE}"
        )
    if path is not None:
        _require_file(path)


def _require_file(path: Path) -> None:
    """Raise ClickException where an SQLite database is named that can be none: opening a pipe would never end."""
    try:
        require_regular(path)
    except OSError as error:
        raise click.ClickException(f"{path}: {error.strerror}.") from error


@contextmanager
def only_one(settings: Settings) -> Iterator[None]:
    """One server per SQLite file: a second one would take the first one's running turns for lost."""
    if settings.sqlite_path is None:
        yield
        return
    _require_file(settings.sqlite_path)
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
        # Where the file lies and not how it is called here: a link to it is no second database.
        place = path.resolve()
        make_folder(place.parent)
        lock = place.with_name(f"{place.name}.lock")
        make_file(lock)
        return lock.open("w")
    except OSError as error:
        raise click.ClickException(f"the folder of {path} cannot be used: {error.strerror}.") from error


async def put_in_force(found: "Models", settings: Settings, db_session: Any) -> None:
    """Let the models and limits of the configuration hold from now on."""
    from services.configuration import apply_config
    from services.session_service import utc_now

    await apply_config(found.models, settings.rules, found.default_model, utc_now(), db_session)


class Place:
    """Where a command acts: one database, and the services on it."""

    def __init__(self, settings: Settings, engine: Any) -> None:
        from db.db_session import DbSession
        from services.actor import operator
        from services.membership import Membership

        self.settings = settings
        self.db_session = DbSession(engine)
        self.accounts = accounts_of(settings)
        self.members = Membership(self.accounts)
        #: the system, under the name of whoever gives the command
        self.actor = operator(operator_name())

    async def account(self, name: str) -> Any:
        """Whose name this is. Raises NotFound."""
        return await self.members.account_named(name, self.db_session, actor=self.actor)

    async def account_id(self, name: str) -> UUID:
        account = await self.account(name)
        return UUID(str(account.id))

    @asynccontextmanager
    async def sessions(self) -> AsyncIterator[Any]:
        """The service of sessions, with the providers configured here; its hints reach the servers that share a bus."""
        from services.client_pool import ClientPool
        from services.session_service import SessionService
        from services.shared_bus import bus_for

        pool, bus = (
            ClientPool((await self._models()).providers),
            bus_for(self.settings.database_url, self.settings.redis_url),
        )
        await bus.open()
        try:
            yield SessionService(pool, bus, admins_read=self.settings.admins_read)
        finally:
            await bus.close()
            await pool.aclose()

    async def governance(self) -> Any:
        """The verbs about models and limits."""
        from services.configuration import configured
        from services.governance import Governance

        found = await self._models()
        said = configured(found.models, self.settings.rules, found.default_model)
        return Governance(self.accounts.units, said, self.accounts.now)

    async def _models(self) -> "Models":
        """What the configuration offers; where no server has started yet, it is put in force as one would."""
        from web.welcome import the_models

        found = await the_models(self.settings)
        if not any(await self.db_session.rules()):
            await put_in_force(found, self.settings, self.db_session)
        return found


def at_place(do: Callable[[Place], Awaitable[T]]) -> T:
    """Do something on the database of the settings; no command but `serve` and `migrate` changes its schema."""
    settings = settings_of()

    async def run(engine: Any) -> T:
        return await do(Place(settings, engine))

    return on_engine(settings, run, up_to_date=True)


# ---------------------------------------------------------------- what is read and said


def password_from(confirm: bool = True) -> str:
    """Asked for on a terminal, else the first line of standard input."""
    if sys.stdin.isatty():
        return str(click.prompt("Password", hide_input=True, confirmation_prompt=confirm))
    # Some editors and shells begin a file with a byte-order mark.
    return sys.stdin.readline().removeprefix("\ufeff").rstrip("\n")


def say(as_json: bool, told: Any, words: str) -> None:
    """The same for a script and for a person."""
    with to_standard_output():
        click.echo(msgspec.json.format(msgspec.json.encode(told), indent=2).decode() if as_json else words)
        sys.stdout.flush()


@contextmanager
def to_standard_output() -> Iterator[None]:
    """What is written in here may find no room; that nobody reads on is no fault, and click's to see to."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        raise click.ClickException(f"standard output: {error.strerror}.") from error


class Progress:
    """How far a long command is: one line of a terminal that changes; told to nobody else."""

    def __init__(self) -> None:
        self._told = ""

    def tell(self, words: str) -> None:
        if sys.stderr.isatty():
            click.echo("\r" + words.ljust(len(self._told)), nl=False, err=True)
            self._told = words

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._told:
            click.echo("\r" + " " * len(self._told) + "\r", nl=False, err=True)


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]], nothing: str) -> str:
    """Rows below their heads, or a sentence where there are none."""
    if not rows:
        return nothing
    cells = [[str(head).upper() for head in heads], *([shown(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)


def facts(pairs: Sequence[tuple[str, Any]]) -> str:
    """Names with what they are, one a line."""
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"{name.ljust(width)}  {shown(value)}".rstrip() for name, value in pairs)


def shown(value: Any) -> str:
    """A value on a terminal: nothing in it moves the cursor or hides what stands there."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:%Y-%m-%d %H:%M}" if isinstance(value, datetime) else str(value)
    return "".join(character if character.isprintable() else "\ufffd" for character in text)

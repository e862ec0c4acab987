"""turnkeeper backup, restore — a copy of an SQLite database, and the way back from one."""

from pathlib import Path

import click

from web.commands.console import HELP, as_json_option, only_one, require_database, say, settings_of
from web.settings import Settings

file_argument = click.argument("file", type=click.Path(dir_okay=False, path_type=Path))


@click.command(context_settings=HELP)
@file_argument
@as_json_option
def backup(file: Path, as_json: bool) -> None:
    """Write a copy of the database to FILE, also while the server runs. SQLite only."""
    from db.backup import BackupError
    from db.backup import backup as write

    settings = settings_of()
    path = _sqlite_only(settings, f"pg_dump --format=custom --file={file}")
    require_database(settings)
    try:
        size = write(path, file)
    except BackupError as error:
        raise click.ClickException(str(error)) from error
    words = f"{file} holds all of {path} ({size:,} bytes). Keep {settings.secret_key_file} with it."
    say(as_json, {"file": str(file), "bytes": size}, words)


@click.command(context_settings=HELP)
@file_argument
@as_json_option
def restore(file: Path, as_json: bool) -> None:
    """Put a copy in the place of the database. That is kept beside it; SQLite, no server running."""
    from db.backup import BackupError
    from db.backup import restore as put_back

    settings = settings_of()
    path = _sqlite_only(settings, f"pg_restore --clean --if-exists --no-owner --dbname=… {file}")
    with only_one(settings):
        try:
            kept = put_back(file, path)
        except BackupError as error:
            raise click.ClickException(str(error)) from error
    words = f"{path} is what {file} held." + (f" What was there is now {kept}." if kept else "")
    say(as_json, {"database": str(path), "kept": str(kept) if kept else None}, words)


def _sqlite_only(settings: Settings, instead: str) -> Path:
    """The file of the database; PostgreSQL brings tools of its own."""
    if settings.sqlite_path is None:
        raise click.ClickException(f"on PostgreSQL use its own tools, with your database's URL: {instead}")
    return settings.sqlite_path

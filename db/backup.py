"""A copy of an SQLite database while it is in use, and the way back from one."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from itertools import count
from pathlib import Path

from piccolo.apps.migrations.tables import Migration

from db.piccolo_app import APP_CONFIG
from db.private import create, make_folder, tighten_database


class BackupError(Exception):
    """Nothing was copied or put back; the text says why."""


def backup(database: Path, target: Path) -> int:
    """Write a whole and consistent copy, also while the database is written to; its size in bytes.

    Raises BackupError; what was there under that name stays.
    """
    with new_file(target) as copy:
        if not database.exists():
            raise BackupError(f"there is no database {database}.")
        # Not opened to read alone: then what SQLite puts beside it would stay there, where nobody else has it open.
        _copy(database, copy, mode="rw")
        return copy.stat().st_size


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """A file to write to, which takes the name `target` once it is whole. Raises BackupError where there is one."""
    if target.exists():
        raise BackupError(f"{target} is there already; choose another name.")
    if not target.absolute().parent.is_dir():
        raise BackupError(f"there is no folder {target.absolute().parent}.")
    # Not the folder's owner's: it holds what everybody has said.
    with _written(target, keep=True) as copy:
        yield copy
        try:
            # Not a rename, which would take the place of what somebody else has put there meanwhile.
            os.link(copy, target)
        except FileExistsError as error:
            raise BackupError(f"{target} is there already; choose another name.") from error


def restore(source: Path, database: Path) -> Path | None:
    """Put a copy in the place of the database, which nobody may have open; where the old one is kept now.

    At every moment there is a whole database under the name. Raises BackupError; then the old one is in its place.
    """
    _check(source)
    kept = None
    # A link goes on leading to it.
    database = database.resolve()
    if database.exists() and database.samefile(source):
        raise BackupError(f"{source} is the database itself; name a copy of it.")
    with _written(database) as copy:
        _copy(source, copy)
        if database.exists():
            kept = _free(f"{database}.before-restore-{time.strftime('%Y%m%d')}")
        with _alone(database) if kept is not None else nullcontext():
            if kept is not None:
                _keep(database, kept)
            os.replace(copy, database)
            _sync(database.parent)
    return kept


@contextmanager
def _written(place: Path, *, keep: bool = False) -> Iterator[Path]:
    """An empty file beside `place`, readable for its owner alone; gone afterwards. Root may `keep` its own."""
    copy = place.with_name(f".{place.name}.part")
    try:
        make_folder(place.parent)
        # One that was killed may have left it.
        copy.unlink(missing_ok=True)
        os.close(create(copy, keep=keep))
        yield copy
    except (OSError, sqlite3.Error) as error:
        raise BackupError(f"{place}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        with suppress(OSError):
            copy.unlink()


def _copy(source: Path, empty: Path, mode: str = "ro") -> None:
    """All that is committed at one moment, into an empty file, and on the disk."""
    with closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode={mode}", uri=True, timeout=30)) as connection:
        connection.execute("VACUUM INTO ?", [str(empty)])
    _sync(empty)


def _check(source: Path) -> None:
    """Whether a file is a whole database of ours, and not of a later version. Raises BackupError."""
    if not source.is_file():
        raise BackupError(f"there is no file {source}.")
    try:
        with closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            (sound,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if sound != "ok":
                raise BackupError(f"{source} is damaged: {sound}")
            ran = {name for (name,) in connection.execute(f"SELECT name FROM {Migration._meta.tablename}")}  # noqa: S608
    except sqlite3.Error as error:
        raise BackupError(f"{source} is not a database of Turnkeeper: {error}") from error
    known = {path.stem for path in Path(APP_CONFIG.migrations_folder_path).glob("*.py")}
    if not ran or not ran <= known:
        raise BackupError(f"{source} comes from a later version of Turnkeeper.")


def _free(name: str) -> Path:
    """The first of name-1, name-2, … that nobody has."""
    return next(path for number in count(1) if not (path := Path(f"{name}-{number}")).exists())


@contextmanager
def _alone(database: Path) -> Iterator[None]:
    """Nobody else has it open, and all that is committed is in the one file; one that is damaged stays as it is.

    Raises BackupError.
    """
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        try:
            # Leaving the log merges all of it, and fails where somebody still reads or writes.
            for statement in ("PRAGMA locking_mode = EXCLUSIVE", "PRAGMA journal_mode = DELETE", "BEGIN EXCLUSIVE"):
                connection.execute(statement)
        except sqlite3.Error as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                raise BackupError(f"somebody has {database} open; close what uses it first.") from error
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
                raise
            # Nothing of it may be tidied away once the name is another's.
            connection.close()
        yield


def _keep(database: Path, kept: Path) -> None:
    """Give the old database a second name."""
    tighten_database(database)
    os.link(database, kept)
    # Only a damaged one still has a log, which must never be read into the new.
    with suppress(FileNotFoundError):
        os.replace(f"{database}-wal", f"{kept}-wal")
        os.replace(f"{database}-shm", f"{kept}-shm")
    Path(f"{database}-shm").unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

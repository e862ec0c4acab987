"""Files and folders that are their owner's alone, whatever the umask: made so, and tightened where they are not.

What root makes belongs to whoever has the folder around it, so that a server that runs as somebody else can use it.
"""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

PRIVATE_FILE, PRIVATE_FOLDER, OTHERS = 0o600, 0o700, 0o077


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are missing; each that is made is private from the beginning."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        with suppress(FileExistsError):
            folder.mkdir(mode=PRIVATE_FOLDER)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                _give_away(descriptor, folder.parent)
            finally:
                os.close(descriptor)


def make_file(path: Path) -> None:
    """Make an empty file, unless there is one."""
    with suppress(FileExistsError):
        os.close(create(path))


def create(path: Path, *, keep: bool = False) -> int:
    """A new file, open to write; root's own where it is to `keep` it. Raises FileExistsError."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE_FILE)
    if not keep:
        _give_away(descriptor, path.parent)
    return descriptor


def _give_away(descriptor: int, folder: Path) -> None:
    """Let what root has just made belong to the owner of the folder that it is in."""
    if os.geteuid() == 0:
        owner = folder.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def tighten(path: Path) -> bool:
    """Take what others may do with a regular file or a folder from them; whether anything was, and could be."""
    try:
        mode = path.stat().st_mode
        if not mode & OTHERS or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            return False
        path.chmod(stat.S_IMODE(mode) & ~OTHERS)
    except OSError:  # there is none, or it is another's
        return False
    return True


def require_regular(path: Path) -> None:
    """Raise OSError where something else than a file has this name, such as a device or a pipe."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file, so no database is kept in it", str(path))


def make_database(path: str) -> Path:
    """Make an SQLite database's folder and an empty file, where they are missing; where it is, links followed.

    SQLite itself would make the file readable for everybody. What it makes beside the file is as private as that.
    Raises OSError.
    """
    database = Path(path).resolve()
    require_regular(database)
    make_folder(database.parent)
    make_file(database)
    return database


def tighten_database(database: Path) -> list[Path]:
    """Make an SQLite database, the files beside it and its folder their owner's alone; those that were not.

    The folder is left as it is where others may have a use for it: where it holds other things too.
    """
    database = database.resolve()
    files = [database.with_name(database.name + ending) for ending in ("", "-wal", "-shm", "-journal", ".lock")]
    found = [file for file in files if tighten(file)]
    folder = database.parent
    if _is_ours(folder, (database.name, f".{database.name}", "secret.key")) and tighten(folder):
        found.append(folder)
    return found


def _is_ours(folder: Path, beginnings: tuple[str, ...]) -> bool:
    """Whether a folder holds nothing but files that are called like ours, and is none of those that all share."""
    try:
        shared = folder.stat().st_mode & stat.S_ISVTX
        return not shared and all(one.name.startswith(beginnings) for one in folder.iterdir())
    except OSError:
        return False

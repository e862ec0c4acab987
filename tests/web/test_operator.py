"""The journal names whoever gives a command (F9), and what an operator does to an account is seen by its owner (O5)."""

import json
import os
import pwd
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.web.test_command_line import PASSWORD, Here

ME = pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Here:
    here = Here(tmp_path_factory.mktemp("operator"))
    assert here.run("migrate").returncode == 0
    return here


def who(folder: Path, what: str) -> list[str]:
    """Who did something, oldest first."""
    with closing(sqlite3.connect(folder / "var" / "turnkeeper.db")) as database:
        rows = database.execute("SELECT actor_name FROM journal WHERE what = ? ORDER BY id", [what]).fetchall()
    return [name for (name,) in rows]


def test_each_act_is_under_the_operators_name(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_USER", raising=False)
    assert here.run("account", "create", "ann", stdin=PASSWORD).returncode == 0
    monkeypatch.setenv("SUDO_USER", "ada")
    assert here.run("account", "create", "robot", "--service").returncode == 0
    assert here.run("--as", "bob", "account", "create", "eve", stdin=PASSWORD).returncode == 0
    assert who(here.folder, "account_created") == [f"{name} via command line" for name in (ME, "ada", "bob")]
    assert here.run("--as", "bob", "group", "limit", "user", "turns", "9/min").returncode == 0
    assert here.run("--as", "bob", "token", "create", "--account", "ann", "--name", "ci").returncode == 0
    assert here.run("--as", "bob", "account", "change", "ann", "--role", "admin").returncode == 0
    for what in ("limit_changed", "token_created", "account_changed"):
        assert who(here.folder, what)[-1] == "bob via command line", what


@pytest.mark.parametrize("name", ["", " ", "a\nb", "\u202eada", "x" * 81])
def test_a_name_that_is_none_is_refused(here: Here, name: str) -> None:
    done = here.run("--as", name, "account", "list")
    assert (done.returncode, done.stdout) == (2, "")
    assert "1 to 80 characters" in done.stderr


@pytest.mark.parametrize("name", ["", " ", "a\nadmin", "\u202eada", "x" * 81])
def test_what_is_no_name_is_not_taken_from_the_environment(
    here: Here, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Anybody may set `SUDO_USER`, and the journal is read line by line."""
    monkeypatch.setenv("SUDO_USER", name)
    assert here.run("group", "limit", "user", "turns", "9/min").returncode == 0
    assert who(here.folder, "limit_changed")[-1] == f"{ME} via command line"


def test_nobody_has_an_account_that_looks_like_an_operator(here: Here) -> None:
    done = here.run("account", "create", "root via command line", stdin=PASSWORD)
    assert done.returncode == 1 and "nobody's name" in done.stderr


def test_a_service_account_is_listed_as_one(here: Here) -> None:
    here.run("account", "create", "nightly", "--service")
    listed = json.loads(here.run("account", "list", "--search", "nightly", "--json").stdout)["accounts"]
    assert [(one["name"], one["service"]) for one in listed] == [("nightly", True)]
    assert here.run("account", "passwd", "nightly", stdin=PASSWORD).returncode == 1
    assert here.run("token", "create", "--account", "nightly", "--name", "x").returncode == 0

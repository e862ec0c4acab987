"""Builds are told apart by their versions, wherever they come from."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from db import version as told

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree that nothing is known of yet."""
    monkeypatch.setattr(told, "ROOT", tmp_path)
    monkeypatch.setattr(told, "installed", lambda name: f"{name} is not asked for")
    return tmp_path


def version() -> str:
    return told.version.__wrapped__()


def test_what_git_archive_wrote_knows_its_commit(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "db/version.py export-subst" in (ROOT / ".gitattributes").read_text()
    assert told.ARCHIVED == "$Format:%ct$"
    monkeypatch.setattr(told, "ARCHIVED", "1796086686")
    assert version() == f"{told.RELEASE}.20261201005806"


def test_a_checkout_asks_git_each_time(tree: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("there is no git")
    seen = []
    environment = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull}
    for second in ("01", "02"):
        at = f"2026-12-01T08:30:{second}+00:00"
        for command in (
            ["init", "-q"],
            ["-c", "user.name=x", "-c", "user.email=x@x", "commit", "-q", "--allow-empty", "-mx"],
        ):
            subprocess.run(["git", "-C", tree, *command], env=environment | {"GIT_COMMITTER_DATE": at}, check=True)
        seen.append(version())
    assert seen == [f"{told.RELEASE}.20261201083001", f"{told.RELEASE}.20261201083002"]


def test_an_unpacked_source_package_and_an_installed_one_say_what_they_are(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "PKG-INFO").write_text("Metadata-Version: 2.4\nName: turnkeeper\nVersion: 0.2.7\n\nVersion: 9\n")
    assert version() == "0.2.7"
    (tree / "PKG-INFO").unlink()
    monkeypatch.setattr(told, "installed", lambda name: {"turnkeeper": "0.2.8"}[name])
    assert version() == "0.2.8"


def test_a_tree_that_nothing_is_known_of_is_of_its_release(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise told.PackageNotFoundError

    monkeypatch.setattr(told, "installed", unknown)
    assert version() == f"{told.RELEASE}.0"


def test_a_build_has_the_version_of_its_tree() -> None:
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert built.stdout.strip() == told.version()

"""Which build of Turnkeeper this is: the release it belongs to, then when its last commit was made.

`0.2.20261201083000` was committed on 1 December 2026 at 08:30:00 UTC. Later builds have greater versions, so pip
replaces an earlier one, and the same commit always gives the same version. pyproject.toml reads it from here.
"""

import re
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path

#: the newest heading of CHANGELOG.md
RELEASE = "0.2"
ROOT = Path(__file__).resolve().parents[1]
#: seconds since 1970; `git archive` puts them here (.gitattributes)
ARCHIVED = "$Format:%ct$"


@cache
def version() -> str:
    """The version of this build; it ends with `.0` where nothing tells when it was committed."""
    if committed := _digits(ARCHIVED) or _of_checkout():
        return f"{RELEASE}.{datetime.fromtimestamp(int(committed), UTC):%Y%m%d%H%M%S}"
    return _of_package() or f"{RELEASE}.0"


def _of_checkout() -> str:
    """When the last commit was made, where the tree is a checkout and there is git."""
    if not (ROOT / ".git").exists():
        return ""
    try:
        asked = subprocess.run(
            ["git", "-C", ROOT, "log", "-1", "--format=%ct"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return _digits(asked.stdout.strip())


def _of_package() -> str:
    """What the unpacked source package, or the installed one, says."""
    told = ROOT / "PKG-INFO"
    if told.exists() and (found := re.search(r"^Version: (\S+)$", told.read_text("utf-8"), re.M)):
        return found[1]
    try:
        return installed("turnkeeper")
    except PackageNotFoundError:
        return ""


def _digits(text: str) -> str:
    return text if text.isdecimal() else ""

"""Turnkeeper with a URL that holds its interpreter and one that fails: `python -m tests.web.spinning serve …`."""

import re

from litestar import get

from web.__main__ import main
from web.routes import ROUTES


@get("/spin", sync_to_thread=False)
def spin() -> None:
    """Not even a signal handler of Python's runs meanwhile."""
    re.match(r"(a+)+$", "a" * 60 + "b")


@get("/fail", sync_to_thread=False)
def fail() -> None:
    """With an error whose text would like to be a line of its own."""
    raise RuntimeError("one\n2026-01-01T00:00:00.000Z ERROR 1 [-] web: forged\x1b[2J")


# In each worker too: it imports the main module anew.
ROUTES += [spin, fail]

if __name__ == "__main__":
    main()

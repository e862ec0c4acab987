"""Starts Turnkeeper wherever it lives: beside web/, services/ and db/ in the tree, around them in a wheel."""

import sys
from pathlib import Path


def main() -> None:
    """Run the command line, with our own packages found before anybody else's `web` or `db`."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    try:
        from web.__main__ import main as run
    except KeyboardInterrupt:  # before there is a command that could say so
        sys.exit(1)
    run()


if __name__ == "__main__":
    main()

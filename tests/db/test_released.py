"""Released migrations stay as they are, and those after them leave big tables alone."""

import ast
import hashlib
import re
from pathlib import Path

import pytest

from db import schema
from db.piccolo_app import APP_CONFIG

FOLDER = Path(APP_CONFIG.migrations_folder_path)
RELEASED = Path(__file__).with_name("released.sha256")
#: everybody writes to them all the time, or they have a row for everything that was ever said or done
BIG = "account|session|turn|turn_piece|said|journal|usage|idempotency"
#: a table is rewritten or looked through under a lock that stops everybody, or servers of the last release stop working
STOPPING = {
    "changes every row": rf"\bUPDATE\s+(?:{BIG})\b",
    "moves every row": rf"\bINSERT\s+INTO\s+\w+[^;]*\bFROM\s+(?:{BIG})\b",
    "deletes without a bound": rf"\bDELETE\s+FROM\s+(?:{BIG})\b",
    "alters a big table": rf"\bALTER\s+TABLE\s+(?:{BIG})\b",
    "alters a column": r"\bALTER\s+(?:COLUMN\s+\w+\s+)?(?:SET\s+DATA\s+)?TYPE\b",
    "takes something away that the last release uses": r"\bDROP\s+(?:TABLE|COLUMN|INDEX)\b|\bRENAME\b",
    "fills a new column with a value of its own for each row": r"\bADD\s+COLUMN\b[^;]*\bDEFAULT\s+[^;]*\(",
    "adds a column that the last release does not fill": r"\bADD\s+COLUMN\b(?![^;]*\bDEFAULT\b)[^;]*\bNOT\s+NULL\b",
    "builds an index while nobody may write": rf"\bCREATE\s+(?:UNIQUE\s+)?INDEX\s+\w+\s+ON\s+(?:{BIG})\b",
}


def released() -> dict[str, str]:
    lines = [line.split() for line in RELEASED.read_text().splitlines()]
    return {name: told for told, name in lines}


def test_a_released_migration_never_changes() -> None:
    assert len(released()) >= 10
    for name, told in released().items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == told, f"{name} was changed after its release"


def statements(path: Path) -> str:
    """What a migration says in its transaction: every string outside of `afterwards`."""
    tree = ast.parse(path.read_text())
    inside = [node for node in tree.body if getattr(node, "name", "") != "afterwards"]
    strings = [node.value for part in inside for node in ast.walk(part) if isinstance(node, ast.Constant)]
    return ";\n".join(string for string in strings if isinstance(string, str))


def stopping(said: str) -> list[str]:
    said = re.sub(r"\bEXISTS \(SELECT 1 FROM \w+\)", "", said)  # looks at one row
    return [why for why, pattern in STOPPING.items() if re.search(pattern, said, re.IGNORECASE)]


NEW = [path for path in sorted(FOLDER.glob("turnkeeper_*.py")) if path.stem > schema.LAST_REWRITING]


@pytest.mark.parametrize("path", NEW, ids=lambda path: path.stem)
def test_a_new_migration_stops_nobody_who_works_with_a_big_table(path: Path) -> None:
    assert stopping(statements(path)) == []


@pytest.mark.parametrize(
    "said",
    [
        "UPDATE turn SET first_reply_at = first_text_at",
        "ALTER TABLE session ADD COLUMN colour TEXT",
        "ALTER TABLE login ALTER COLUMN browser TYPE VARCHAR(10)",
        "ALTER TABLE login ADD COLUMN mark UUID NOT NULL DEFAULT gen_random_uuid()",
        "ALTER TABLE login ADD COLUMN colour TEXT NOT NULL",
        "CREATE INDEX turn_of_model ON turn (model)",
        "INSERT INTO said (turn_id, words) SELECT id, prompt FROM turn",
        "DROP INDEX session_open",
    ],
)
def test_a_migration_that_would_is_noticed(said: str) -> None:
    assert stopping(said)


@pytest.mark.parametrize(
    "said",
    [
        "ALTER TABLE login ADD COLUMN colour TEXT",
        "ALTER TABLE login ADD COLUMN colour TEXT NOT NULL DEFAULT ''",
        "CREATE TABLE mark (session_id UUID NOT NULL PRIMARY KEY REFERENCES session (id) ON DELETE CASCADE)",
        "CREATE INDEX mark_by_time ON mark (at)",
    ],
)
def test_one_that_would_not_is_let_through(said: str) -> None:
    assert stopping(said) == []


def test_what_was_released_first_would_have_been_noticed() -> None:
    """0008 made the table of the turns four times as big while nobody could use it."""
    assert stopping(statements(FOLDER / "turnkeeper_0008_thoughts.py"))


def test_rows_are_read_by_named_columns() -> None:
    """A later release may add some, and a server of this one goes on; tests/web/test_upgrade.py tries it."""
    for path in FOLDER.parent.glob("*.py"):
        assert not re.search(r"SELECT \*|\b\w+\.\* |RETURNING \*", path.read_text()), path

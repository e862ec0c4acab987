"""What each migration was when it ran, and a row to try out whether writing works."""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from db.portable import in_sql

ID = "turnkeeper_0015_applied"
VERSION = "1.38.0"
DESCRIPTION = "hashes of applied migrations, and a probe of writing"

# applied_migration, which db/schema.py writes, one row for each migration that ran since this one:
#   sha256    of its file when it ran
#   needs     the first migration a program must know to work with the schema since then; empty for any
#   program   the version of the program that ran it
#   finished  whether what it does after the schema's transaction is done
# write_probe, which db/health.py writes: one row, and when it was written last.
STATEMENTS = """
CREATE TABLE applied_migration (
    name TEXT NOT NULL PRIMARY KEY,
    sha256 TEXT NOT NULL,
    needs TEXT NOT NULL,
    program TEXT NOT NULL,
    finished BOOLEAN NOT NULL
);
CREATE TABLE write_probe (
    id INTEGER NOT NULL PRIMARY KEY,
    written_at TIMESTAMPTZ NOT NULL
);
"""


async def forwards() -> MigrationManager:
    return in_sql(ID, DESCRIPTION, STATEMENTS)

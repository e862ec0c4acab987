"""What is copied into a session is put into the index of the search a part at a time."""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from db.portable import in_sql

ID = "turnkeeper_0011_indexed"
VERSION = "1.38.0"
DESCRIPTION = "how far a session is in the index of the search"

STATEMENTS = """
ALTER TABLE session ADD COLUMN indexed_to UUID;
CREATE INDEX session_to_index ON session (id) WHERE indexed_to IS NOT NULL;
"""


async def forwards() -> MigrationManager:
    return in_sql(ID, DESCRIPTION, STATEMENTS)

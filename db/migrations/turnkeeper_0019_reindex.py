"""The index of the search is built anew, a few sessions at a time, while the server works."""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from db.portable import in_sql

ID = "turnkeeper_0019_reindex"
VERSION = "1.38.0"
DESCRIPTION = "how far the index of the search has been built anew"

STATEMENTS = """
CREATE TABLE reindexing (
    name TEXT NOT NULL PRIMARY KEY,
    after_session UUID NOT NULL
);
INSERT INTO reindexing (name, after_session)
    SELECT 'search', '00000000-0000-0000-0000-000000000000' WHERE EXISTS (SELECT 1 FROM session)
"""


async def forwards() -> MigrationManager:
    return in_sql(ID, DESCRIPTION, STATEMENTS)

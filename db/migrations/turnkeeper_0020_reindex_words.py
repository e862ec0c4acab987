"""The index of the search is built anew once more: words hold no soft hyphens any more."""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from db.portable import in_sql

ID = "turnkeeper_0020_reindex_words"
VERSION = "1.38.0"
DESCRIPTION = "the index of the search is built anew"

STATEMENTS = """
DELETE FROM reindexing WHERE name = 'search';
INSERT INTO reindexing (name, after_session)
    SELECT 'search', '00000000-0000-0000-0000-000000000000' WHERE EXISTS (SELECT 1 FROM session)
"""


async def forwards() -> MigrationManager:
    return in_sql(ID, DESCRIPTION, STATEMENTS)

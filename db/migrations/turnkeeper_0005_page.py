"""What a page shows of branches, and what is typed and not sent yet."""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from db.portable import in_sql

ID = "turnkeeper_0005_page"
VERSION = "1.38.0"
DESCRIPTION = "siblings are found by their parent; drafts"

STATEMENTS = """
CREATE INDEX turn_of_parent ON turn (session_id, parent_id, id);
CREATE TABLE draft (
    session_id UUID NOT NULL PRIMARY KEY REFERENCES session (id) ON DELETE CASCADE,
    text TEXT NOT NULL,
    saved_at TIMESTAMPTZ NOT NULL
);
"""


async def forwards() -> MigrationManager:
    return in_sql(ID, DESCRIPTION, STATEMENTS)

"""Sessions that are pinned, archived, or deleted with a way back."""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from db.portable import in_sql

ID = "turnkeeper_0010_shelf"
VERSION = "1.38.0"
DESCRIPTION = "pinned, archived and deleted sessions"

STATEMENTS = """
ALTER TABLE session ADD COLUMN pinned BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE session ADD COLUMN archived BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE session ADD COLUMN deleted_at TIMESTAMPTZ;
DROP INDEX session_open;
CREATE INDEX session_open ON session (owner_id, last_activity_at) WHERE state <> 'closed' AND deleted_at IS NULL;
CREATE INDEX session_listed ON session (owner_id, last_activity_at, id) WHERE deleted_at IS NULL AND NOT archived;
CREATE INDEX session_pinned ON session (owner_id, last_activity_at, id) WHERE pinned;
CREATE INDEX session_archived ON session (owner_id, last_activity_at, id) WHERE archived;
CREATE INDEX session_deleted ON session (owner_id, deleted_at, id) WHERE deleted_at IS NOT NULL;
CREATE INDEX session_deleted_by_time ON session (deleted_at) WHERE deleted_at IS NOT NULL
"""


async def forwards() -> MigrationManager:
    return in_sql(ID, DESCRIPTION, STATEMENTS)

"""What has ended is found without looking at what has not."""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from db.portable import in_sql

ID = "turnkeeper_0004_ends"
VERSION = "1.38.0"
DESCRIPTION = "logins by their end"

STATEMENTS = """
CREATE INDEX login_by_end ON login (expires_at);
"""


async def forwards() -> MigrationManager:
    return in_sql(ID, DESCRIPTION, STATEMENTS)

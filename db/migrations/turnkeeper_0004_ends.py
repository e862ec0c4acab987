"""What has ended is found without looking at what has not."""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from db.tables import Session

ID = "turnkeeper_0004_ends"
VERSION = "1.38.0"
DESCRIPTION = "logins by their end"

STATEMENTS = """
CREATE INDEX login_by_end ON login (expires_at);
"""


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="turnkeeper", description=DESCRIPTION)

    async def change() -> None:
        for statement in STATEMENTS.split(";"):
            if statement.strip():
                await Session.raw(statement)

    manager.add_raw(change)
    return manager

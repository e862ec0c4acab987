"""What a session's model is told before everything else."""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from db.tables import Session

ID = "turnkeeper_0007_instructions"
VERSION = "1.38.0"
DESCRIPTION = "instructions of a session"

STATEMENTS = """
ALTER TABLE session ADD COLUMN instructions TEXT NOT NULL DEFAULT '';
"""


async def forwards() -> MigrationManager:
    manager = MigrationManager(migration_id=ID, app_name="turnkeeper", description=DESCRIPTION)

    async def change() -> None:
        for statement in STATEMENTS.split(";"):
            if statement.strip():
                await Session.raw(statement)

    manager.add_raw(change)
    return manager

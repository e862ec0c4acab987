"""What a session's model is told before everything else."""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from db.portable import in_sql

ID = "turnkeeper_0007_instructions"
VERSION = "1.38.0"
DESCRIPTION = "instructions of a session"

STATEMENTS = """
ALTER TABLE session ADD COLUMN instructions TEXT NOT NULL DEFAULT '';
"""


async def forwards() -> MigrationManager:
    return in_sql(ID, DESCRIPTION, STATEMENTS)

"""The first model of a session is found without looking through its journal."""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from db.portable import in_sql

ID = "turnkeeper_0014_chosen"
VERSION = "1.38.0"
DESCRIPTION = "the index of first models"

# No row is in it when it is made: building it reads the journal once and writes nothing.
STATEMENTS = """
CREATE INDEX journal_chosen ON journal (session_id) WHERE what = 'model_chosen';
"""


async def forwards() -> MigrationManager:
    return in_sql(ID, DESCRIPTION, STATEMENTS)

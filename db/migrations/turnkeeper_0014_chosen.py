"""The first model of a session is found without looking through its journal."""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from db.backfill import build_index
from db.engine import Engine
from db.portable import in_sql

ID = "turnkeeper_0014_chosen"
VERSION = "1.38.0"
DESCRIPTION = "the index of first models"


async def forwards() -> MigrationManager:
    return in_sql(ID, DESCRIPTION, "")


async def afterwards(engine: Engine) -> None:
    await build_index(engine, "journal_chosen", "ON journal (session_id) WHERE what = 'model_chosen'")

"""The first model of a session is found without looking through its journal; replies that a budget made shorter."""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from db.backfill import build_index
from db.engine import Engine
from db.portable import in_sql

ID = "turnkeeper_0014_chosen"
VERSION = "1.38.0"
DESCRIPTION = "the index of first models, caps of replies"

STATEMENTS = """
CREATE TABLE turn_cap (
    turn_id UUID NOT NULL PRIMARY KEY,
    reply_tokens BIGINT NOT NULL,
    limit_name TEXT NOT NULL
);
"""


async def forwards() -> MigrationManager:
    return in_sql(ID, DESCRIPTION, STATEMENTS)


async def afterwards(engine: Engine) -> None:
    await build_index(engine, "journal_chosen", "ON journal (session_id) WHERE what = 'model_chosen'")

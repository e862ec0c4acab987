"""The first model of a session is found without its journal; replies that a budget made shorter; guests by address."""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from db.backfill import build_index
from db.engine import Engine
from db.portable import in_sql

ID = "turnkeeper_0014_chosen"
VERSION = "1.38.0"
DESCRIPTION = "the index of first models, caps of replies, guests by address"

STATEMENTS = """
CREATE TABLE turn_cap (
    turn_id UUID NOT NULL PRIMARY KEY,
    reply_tokens BIGINT NOT NULL,
    limit_name TEXT NOT NULL
);
CREATE TABLE address_turn (
    turn_id UUID NOT NULL,
    address TEXT NOT NULL,
    PRIMARY KEY (turn_id, address)
);
CREATE INDEX address_turn_by_address ON address_turn (address);
CREATE TABLE address_session (
    session_id UUID NOT NULL,
    address TEXT NOT NULL,
    PRIMARY KEY (session_id, address)
);
CREATE INDEX address_session_by_address ON address_session (address);
CREATE TABLE address_usage (
    address TEXT NOT NULL,
    day DATE NOT NULL,
    tokens BIGINT NOT NULL,
    cost_nanos BIGINT NOT NULL,
    PRIMARY KEY (address, day)
);
CREATE INDEX address_usage_by_day ON address_usage (day);
"""


async def forwards() -> MigrationManager:
    return in_sql(ID, DESCRIPTION, STATEMENTS)


async def afterwards(engine: Engine) -> None:
    await build_index(engine, "journal_chosen", "ON journal (session_id) WHERE what = 'model_chosen'")

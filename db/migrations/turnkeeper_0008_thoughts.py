"""Reasoning apart from the reply, and why a turn's model was the one called."""

import re

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from db.portable import in_sql
from db.tables import Session

ID = "turnkeeper_0008_thoughts"
VERSION = "1.38.0"
DESCRIPTION = "reasoning of turns, and why their models"

STATEMENTS = """
ALTER TABLE turn ADD COLUMN reasoning TEXT NOT NULL DEFAULT '';
ALTER TABLE turn ADD COLUMN model_source TEXT NOT NULL DEFAULT '';
ALTER TABLE turn ADD COLUMN model_reason TEXT NOT NULL DEFAULT '';
ALTER TABLE turn ADD COLUMN first_reply_at TIMESTAMPTZ;
UPDATE turn SET first_reply_at = first_text_at;
ALTER TABLE turn_piece RENAME TO turn_piece_before;
CREATE TABLE turn_piece (
    turn_id UUID NOT NULL REFERENCES turn (id) ON DELETE CASCADE,
    reasoning BOOLEAN NOT NULL,
    start INTEGER NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (turn_id, reasoning, start)
);
INSERT INTO turn_piece (turn_id, reasoning, start, text) SELECT turn_id, FALSE, start, text FROM turn_piece_before;
DROP TABLE turn_piece_before;
"""

#: turns that are looked at together
SOME = 100
THOUGHT = re.compile(r"\s{0,64}<think(?:ing)?>\s*(.*?)(?:</think(?:ing)?>\s*|\Z)", re.IGNORECASE | re.DOTALL)


async def split() -> None:
    """Take the reasoning out of replies that were stored with it in front."""
    after = "00000000-0000-0000-0000-000000000000"
    while rows := await Session.raw(
        "SELECT id, reply FROM turn WHERE id > {} AND LOWER(reply) LIKE '%<think%' ORDER BY id LIMIT {}", after, SOME
    ):
        for row in rows:
            if found := THOUGHT.match(row["reply"]):
                await Session.raw(
                    "UPDATE turn SET reasoning = {}, reply = {}, first_reply_at = NULL WHERE id = {}",
                    found[1],
                    row["reply"][found.end() :],
                    row["id"],
                )
        after = rows[-1]["id"]


async def forwards() -> MigrationManager:
    manager = in_sql(ID, DESCRIPTION, STATEMENTS)
    manager.add_raw(split)
    return manager

"""Texts that took too long to render."""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from db.portable import in_sql

ID = "turnkeeper_0012_render_timeouts"
VERSION = "1.38.0"
DESCRIPTION = "texts and blocks of code that took too long to render"

STATEMENTS = """
CREATE TABLE render_timeout (
    digest TEXT PRIMARY KEY,
    created_at TIMESTAMPTZ NOT NULL
);
CREATE INDEX render_timeout_age ON render_timeout (created_at)
"""


async def forwards() -> MigrationManager:
    return in_sql(ID, DESCRIPTION, STATEMENTS)

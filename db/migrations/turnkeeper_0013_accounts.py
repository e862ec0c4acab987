"""Service accounts, passwords that somebody else has set, and what names look like."""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from db.portable import in_sql

ID = "turnkeeper_0013_accounts"
VERSION = "1.38.0"
DESCRIPTION = "service accounts, temporary passwords and skeletons of names"

STATEMENTS = """
CREATE TABLE service_account (
    account_id UUID PRIMARY KEY REFERENCES account (id) ON DELETE CASCADE,
    created_at TIMESTAMPTZ NOT NULL
);
CREATE TABLE temporary_password (
    account_id UUID PRIMARY KEY REFERENCES account (id) ON DELETE CASCADE,
    set_by TEXT NOT NULL,
    set_at TIMESTAMPTZ NOT NULL
);
CREATE TABLE account_skeleton (
    skeleton TEXT PRIMARY KEY,
    account_id UUID NOT NULL REFERENCES account (id) ON DELETE CASCADE
);
CREATE INDEX account_skeleton_of_account ON account_skeleton (account_id)
"""


async def forwards() -> MigrationManager:
    return in_sql(ID, DESCRIPTION, STATEMENTS)

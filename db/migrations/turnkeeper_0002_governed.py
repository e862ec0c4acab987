"""Branches of a transcript, titles apart from text, refusals that are counted, and moves of many sessions."""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from db.portable import in_sql

ID = "turnkeeper_0002_governed"
VERSION = "1.38.0"
DESCRIPTION = "branches, openings, refusals, moves"

STATEMENTS = """
ALTER TABLE session ADD COLUMN opening TEXT NOT NULL DEFAULT '';
UPDATE session SET opening = title, title = '' WHERE turn_count > 0 AND NOT EXISTS (
    SELECT 1 FROM journal WHERE journal.session_id = session.id AND journal.what = 'session_renamed'
);
CREATE INDEX session_on_model ON session (last_model, id) WHERE state <> 'closed';
ALTER TABLE turn ADD COLUMN depth INTEGER NOT NULL DEFAULT 1;
UPDATE turn SET depth = (
    SELECT COUNT(*) FROM turn AS earlier WHERE earlier.session_id = turn.session_id AND earlier.id <= turn.id
);
ALTER TABLE turn ADD COLUMN copied_from UUID;
CREATE INDEX turn_running_of_model ON turn (model) WHERE state = 'running';
ALTER TABLE journal ADD COLUMN on_behalf_of UUID;
CREATE INDEX journal_of_rules ON journal (id) WHERE session_id IS NULL
    AND what IN ('model_changed', 'group_changed', 'limit_changed', 'move_ordered', 'move_ended');
CREATE TABLE refusal (
    rate_key TEXT NOT NULL,
    code TEXT NOT NULL,
    minute TIMESTAMPTZ NOT NULL,
    times INTEGER NOT NULL,
    actor_kind TEXT NOT NULL,
    actor_id UUID,
    actor_name TEXT NOT NULL,
    PRIMARY KEY (rate_key, code, minute)
);
CREATE INDEX refusal_by_time ON refusal (minute);
CREATE TABLE model_move (
    id UUID NOT NULL PRIMARY KEY,
    from_model TEXT NOT NULL,
    to_model TEXT NOT NULL,
    reason TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('running', 'done', 'stopped')),
    admin_id UUID NOT NULL,
    admin_name TEXT NOT NULL,
    total INTEGER NOT NULL,
    moved INTEGER NOT NULL,
    skipped INTEGER NOT NULL,
    last_session_id UUID,
    lease_owner UUID,
    lease_until TIMESTAMPTZ,
    note TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    ended_at TIMESTAMPTZ
);
CREATE INDEX model_move_running ON model_move (id) WHERE state = 'running';
"""


async def forwards() -> MigrationManager:
    return in_sql(ID, DESCRIPTION, STATEMENTS)

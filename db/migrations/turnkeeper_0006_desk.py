"""Logins that end when they are not used, usage told apart by model, and what the admin's pages look through."""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from db.portable import in_sql

ID = "turnkeeper_0006_desk"
VERSION = "1.38.0"
DESCRIPTION = "idle logins, usage by model, indexes of the admin's pages"

STATEMENTS = """
ALTER TABLE login ADD COLUMN browser TEXT NOT NULL DEFAULT '';
ALTER TABLE login ADD COLUMN last_used_at TIMESTAMPTZ;
UPDATE login SET last_used_at = created_at;
CREATE INDEX account_people ON account (name) WHERE role <> 'guest';
ALTER TABLE session ADD COLUMN cost_nanos BIGINT NOT NULL DEFAULT 0;
UPDATE session SET cost_nanos = COALESCE((
    SELECT SUM(turn.cost_nanos) FROM turn WHERE turn.session_id = session.id AND turn.copied_from IS NULL
), 0);
CREATE INDEX session_by_cost ON session (cost_nanos, id);
CREATE INDEX session_by_turns ON session (turn_count, id);
ALTER TABLE usage RENAME TO usage_before;
CREATE TABLE usage (
    owner_id UUID NOT NULL,
    day DATE NOT NULL,
    model TEXT NOT NULL,
    turns BIGINT NOT NULL,
    tokens BIGINT NOT NULL,
    cost_nanos BIGINT NOT NULL,
    PRIMARY KEY (owner_id, day, model)
);
INSERT INTO usage (owner_id, day, model, turns, tokens, cost_nanos)
    SELECT owner_id, day, '', 0, tokens, cost_nanos FROM usage_before;
DROP TABLE usage_before;
CREATE INDEX usage_by_day ON usage (day);
CREATE INDEX journal_of_owner ON journal (owner_id, id);
CREATE INDEX journal_by_actor ON journal (actor_id, id);
CREATE INDEX journal_on_behalf ON journal (on_behalf_of, id) WHERE on_behalf_of IS NOT NULL;
CREATE INDEX journal_by_kind ON journal (what, id);
"""


async def forwards() -> MigrationManager:
    return in_sql(ID, DESCRIPTION, STATEMENTS)

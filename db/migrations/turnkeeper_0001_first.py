"""The first schema, in SQL that SQLite and PostgreSQL both accept."""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from db.portable import in_sql

ID = "turnkeeper_0001_first"
VERSION = "1.38.0"
DESCRIPTION = "accounts, sessions, turns, catalogue, limits, journal"

STATEMENTS = """
CREATE TABLE account (
    id UUID NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL CHECK (role IN ('guest', 'user', 'admin')),
    group_name TEXT NOT NULL,
    password_hash TEXT,
    default_model TEXT,
    disabled_at TIMESTAMPTZ,
    created_at TIMESTAMPTZ NOT NULL
);
CREATE TABLE login (
    id UUID NOT NULL PRIMARY KEY,
    account_id UUID NOT NULL REFERENCES account (id) ON DELETE CASCADE,
    token_hash TEXT NOT NULL UNIQUE,
    created_at TIMESTAMPTZ NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL,
    revoked_at TIMESTAMPTZ
);
CREATE INDEX login_of_account ON login (account_id);
CREATE TABLE api_token (
    id UUID NOT NULL PRIMARY KEY,
    account_id UUID NOT NULL REFERENCES account (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    token_hash TEXT NOT NULL UNIQUE,
    scopes TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    expires_at TIMESTAMPTZ,
    revoked_at TIMESTAMPTZ
);
CREATE INDEX api_token_of_account ON api_token (account_id);
CREATE TABLE setup_link (
    token_hash TEXT NOT NULL PRIMARY KEY,
    created_at TIMESTAMPTZ NOT NULL,
    used_at TIMESTAMPTZ
);
CREATE TABLE session (
    id UUID NOT NULL PRIMARY KEY,
    owner_id UUID NOT NULL REFERENCES account (id),
    title TEXT NOT NULL,
    origin TEXT NOT NULL CHECK (origin IN ('page', 'script', 'auto', 'fork', 'import')),
    last_model TEXT,
    locked BOOLEAN NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('active', 'expired', 'closed')),
    version INTEGER NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    last_activity_at TIMESTAMPTZ NOT NULL,
    expires_at TIMESTAMPTZ,
    head_id UUID,
    turn_count INTEGER NOT NULL
);
CREATE INDEX session_of_owner ON session (owner_id, last_activity_at, id);
CREATE INDEX session_active_by_activity ON session (last_activity_at) WHERE state = 'active';
CREATE INDEX session_by_activity ON session (last_activity_at, id);
CREATE INDEX session_open ON session (owner_id, last_activity_at) WHERE state <> 'closed';
CREATE TABLE turn (
    id UUID NOT NULL PRIMARY KEY,
    session_id UUID NOT NULL REFERENCES session (id) ON DELETE CASCADE,
    owner_id UUID NOT NULL,
    parent_id UUID,
    prompt TEXT NOT NULL,
    reply TEXT,
    model TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('running', 'done', 'stopped', 'failed', 'interrupted')),
    error_code TEXT,
    error_detail TEXT,
    prompt_tokens INTEGER NOT NULL,
    reply_tokens INTEGER NOT NULL,
    estimated BOOLEAN NOT NULL,
    cost_nanos BIGINT NOT NULL,
    reserved_tokens BIGINT NOT NULL,
    reserved_nanos BIGINT NOT NULL,
    context_left_out INTEGER NOT NULL,
    lease_owner UUID NOT NULL,
    lease_until TIMESTAMPTZ NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    first_text_at TIMESTAMPTZ,
    ended_at TIMESTAMPTZ,
    CHECK ((state = 'running') = (ended_at IS NULL)),
    CHECK ((state = 'running') = (reply IS NULL))
);
CREATE INDEX turn_of_session ON turn (session_id, id);
CREATE UNIQUE INDEX turn_running_once ON turn (session_id) WHERE state = 'running';
CREATE INDEX turn_running ON turn (lease_until) WHERE state = 'running';
CREATE INDEX turn_running_of_owner ON turn (owner_id) WHERE state = 'running';
CREATE TABLE turn_piece (
    turn_id UUID NOT NULL REFERENCES turn (id) ON DELETE CASCADE,
    start INTEGER NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (turn_id, start)
);
CREATE TABLE model (
    id TEXT NOT NULL PRIMARY KEY,
    provider TEXT NOT NULL,
    upstream TEXT NOT NULL,
    label TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('active', 'deprecated', 'retired', 'disabled')),
    state_reason TEXT NOT NULL,
    replacement TEXT,
    aliases TEXT NOT NULL,
    group_names TEXT NOT NULL,
    context_tokens INTEGER NOT NULL,
    max_reply_tokens INTEGER NOT NULL,
    price_in_nanos BIGINT NOT NULL,
    price_out_nanos BIGINT NOT NULL,
    concurrent_turns INTEGER NOT NULL,
    position INTEGER NOT NULL,
    set_by TEXT NOT NULL
);
CREATE TABLE account_group (
    name TEXT NOT NULL PRIMARY KEY,
    default_model TEXT,
    on_missing_model TEXT NOT NULL CHECK (on_missing_model IN ('fallback', 'block')),
    set_by TEXT NOT NULL
);
CREATE TABLE limit_rule (
    group_name TEXT NOT NULL,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    set_by TEXT NOT NULL,
    PRIMARY KEY (group_name, name)
);
CREATE TABLE rate_bucket (
    key TEXT NOT NULL PRIMARY KEY,
    tat_us BIGINT NOT NULL
);
CREATE INDEX rate_bucket_by_time ON rate_bucket (tat_us);
CREATE TABLE usage (
    owner_id UUID NOT NULL,
    day DATE NOT NULL,
    tokens BIGINT NOT NULL,
    cost_nanos BIGINT NOT NULL,
    PRIMARY KEY (owner_id, day)
);
CREATE TABLE journal (
    id UUID NOT NULL PRIMARY KEY,
    at TIMESTAMPTZ NOT NULL,
    actor_kind TEXT NOT NULL,
    actor_id UUID,
    actor_name TEXT NOT NULL,
    owner_id UUID,
    session_id UUID,
    turn_id UUID,
    what TEXT NOT NULL,
    outcome TEXT NOT NULL,
    reason TEXT NOT NULL,
    from_value TEXT,
    to_value TEXT,
    version INTEGER,
    request_id TEXT NOT NULL
);
CREATE INDEX journal_of_session ON journal (session_id, id);
CREATE INDEX journal_switches ON journal (session_id, version) WHERE what = 'model_switched';
CREATE TABLE idempotency (
    actor_id UUID NOT NULL,
    verb TEXT NOT NULL,
    key TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    answer TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (actor_id, verb, key)
);
CREATE INDEX idempotency_by_age ON idempotency (created_at);
"""


async def forwards() -> MigrationManager:
    return in_sql(ID, DESCRIPTION, STATEMENTS)

"""For a migration's `afterwards`: work on big tables outside of the schema's transaction, while others use them."""

import asyncio

from db.engine import MIGRATION_SECONDS, Engine, PooledPostgresEngine


async def in_batches(engine: Engine, statement: str) -> None:
    """Run a statement until it returns no row, each time in a transaction of its own.

    It changes some rows that still have to be changed, and returns them: `UPDATE … WHERE id IN (SELECT id … LIMIT 500)
    RETURNING 1 AS one`.
    """
    while await engine.run(statement):  # noqa: ASYNC110 - nothing is waited for; others have their turn in between
        await asyncio.sleep(0)


async def build_index(engine: Engine, name: str, definition: str, *, unique: bool = False) -> None:
    """Make the index `name`, as `definition` says ("ON turn (model)"); on PostgreSQL others go on writing meanwhile."""
    kind = "UNIQUE INDEX" if unique else "INDEX"
    if not isinstance(engine, PooledPostgresEngine):
        await engine.run_ddl(f"CREATE {kind} IF NOT EXISTS {name} {definition}")
        return
    pool = await engine.started_pool()
    half = "SELECT 1 FROM pg_index WHERE indexrelid = to_regclass($1) AND NOT indisvalid"
    if await pool.fetch(half, name):  # it was broken off
        await pool.execute(f"DROP INDEX CONCURRENTLY {name}", timeout=MIGRATION_SECONDS)
    await pool.execute(f"CREATE {kind} CONCURRENTLY IF NOT EXISTS {name} {definition}", timeout=MIGRATION_SECONDS)

"""Migrations written as SQL that SQLite and PostgreSQL both accept."""

from collections.abc import Awaitable, Callable, Sequence

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from db.tables import Session


def in_sql(
    migration_id: str,
    description: str,
    statements: str,
    *,
    sqlite: Sequence[str] = (),
    postgres: Sequence[str] = (),
    after: Callable[[], Awaitable[None]] | None = None,
) -> MigrationManager:
    """A migration that runs `statements`, parted by semicolons, one after another; then what is one database's own."""
    manager = MigrationManager(migration_id=migration_id, app_name="turnkeeper", description=description)

    async def run() -> None:
        own = postgres if Session._meta.db.engine_type == "postgres" else sqlite
        for statement in (*statements.split(";"), *own):
            if statement.strip():
                await Session.raw(statement)
        if after is not None:
            await after()

    manager.add_raw(run)
    return manager

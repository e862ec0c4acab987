"""Migrations written as SQL that SQLite and PostgreSQL both accept."""

from piccolo.apps.migrations.auto.migration_manager import MigrationManager

from db.tables import Session


def in_sql(migration_id: str, description: str, statements: str) -> MigrationManager:
    """A migration that runs `statements`, parted by semicolons, one after another."""
    manager = MigrationManager(migration_id=migration_id, app_name="turnkeeper", description=description)

    async def run() -> None:
        for statement in statements.split(";"):
            if statement.strip():
                await Session.raw(statement)

    manager.add_raw(run)
    return manager

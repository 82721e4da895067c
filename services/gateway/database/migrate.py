"""Bringing a database to the schema that this code wants: explicitly, never by the way at a start.

The migrations are Alembic's, in `migrations/`. They run in one transaction under a lock, so that several gateways that
are started at once do no harm. A new one is made against a migrated database of a developer's own with
`alembic.command.revision(alembic_config(connection), "what changes", autogenerate=True)`; a test compares the outcome
with `tables.py`.
"""

from pathlib import Path

import alembic.command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.engine import URL

from services.gateway.database.engine import Database

MIGRATIONS = Path(__file__).parent / "migrations"
LOCK = 0x7472_6561_646C_65
"""PostgreSQL's advisory lock under which only one migration runs; the number means nothing."""


async def migrate(url: URL) -> None:
    """Brings the database to the newest schema; does nothing where it is there. Two at once wait for one another."""
    database = Database(url)
    try:
        async with database.connection() as connection, connection.begin():
            if database.is_sqlite:
                await connection.execute(text("BEGIN IMMEDIATE"))
            else:
                await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            await connection.run_sync(_upgrade)
    finally:
        await database.close()


async def check_migrated(db: Database) -> None:
    """Raises ValueError, with what to do, where the database hasn't the schema that this code wants."""
    wanted = ScriptDirectory.from_config(alembic_config(None)).get_current_head()
    async with db.connection() as connection:
        found = await connection.run_sync(lambda c: MigrationContext.configure(c).get_current_revision())
    if found != wanted:
        raise ValueError(
            f"the database has schema {found or 'none'}, this gateway wants {wanted}: "
            "run `python -m services.gateway migrate` of this version first"
        )


def alembic_config(connection: Connection | None) -> Config:
    """What Alembic's commands want; `connection` is an open one with a transaction begun."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _upgrade(connection: Connection) -> None:
    alembic.command.upgrade(alembic_config(connection), "head")

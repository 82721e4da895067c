from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from services.gateway.database.engine import database_url
from services.gateway.database.migrate import migrate
from treadle.supervision.database import is_migrated


async def test_migrated_database_needs_no_migration_until_there_is_a_newer_one(tmp_path: Path) -> None:
    database = tmp_path / "a ? directory" / "treadle.sqlite"
    database.parent.mkdir()
    assert not is_migrated(database)
    assert not database.exists(), "a look makes nothing"
    database.touch()
    assert not is_migrated(database)
    await migrate(database_url(f"sqlite:///{str(database).replace('?', '%3F')}"))
    assert is_migrated(database)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("update alembic_version set version_num = '0000'")
    assert not is_migrated(database)


def test_file_that_is_no_database_counts_as_not_migrated(tmp_path: Path) -> None:
    database = tmp_path / "treadle.sqlite"
    database.write_bytes(b"no database" * 100)
    assert not is_migrated(database)

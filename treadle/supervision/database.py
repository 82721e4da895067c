"""Whether the gateway's database needs a migration: a look takes a millisecond, a migration most of a second.

It may be wrong in one direction only: the gateway itself refuses to start on another schema than its own.
"""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

_MIGRATION = re.compile(r"([0-9]{4})_\w+\.py")


def is_migrated(database: Path) -> bool:
    """Whether the newest of the gateway's migrations is the one that the database had last; when in doubt, not."""
    directory = files("services.gateway.database") / "migrations" / "versions"
    known = [match[1] for entry in directory.iterdir() if (match := _MIGRATION.fullmatch(entry.name))]
    try:
        with closing(sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True)) as connection:
            rows = connection.execute("select version_num from alembic_version").fetchall()
    except sqlite3.Error:
        return False
    return bool(known) and rows == [(max(known),)]

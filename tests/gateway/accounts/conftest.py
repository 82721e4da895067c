"""A migrated database, without a gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.gateway.database.engine import Database
from services.gateway.database.engine import database_url as parsed
from services.gateway.database.migrate import migrate


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    """With all tables and no row, of either kind."""
    url = parsed(database_url)
    await migrate(url)
    database = Database(url)
    try:
        yield database
    finally:
        await database.close()

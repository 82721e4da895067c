"""A migrated database, without a gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.gateway.database.engine import Database
from services.gateway.database.engine import database_url as parsed


@pytest.fixture
async def db(migrated_url: str) -> AsyncIterator[Database]:
    """With all tables and no row, of either kind."""
    database = Database(parsed(migrated_url))
    try:
        yield database
    finally:
        await database.close()

"""A migrated database of each kind."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.gateway.database.engine import Database
from services.gateway.database.engine import database_url as checked_url
from services.gateway.database.migrate import migrate


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    made = Database(checked_url(database_url))
    await migrate(made.url)
    yield made
    await made.close()

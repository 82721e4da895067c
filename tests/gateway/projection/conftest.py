"""A migrated database of each kind, and the log."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.gateway.database.engine import Database
from services.gateway.database.engine import database_url as checked_url
from shared.bus import BusSettings, connect
from shared.jetstream import JetStreamStore
from shared.streams import declare_streams
from tests.nats_process import NatsServer


@pytest.fixture
async def db(migrated_url: str) -> AsyncIterator[Database]:
    made = Database(checked_url(migrated_url))
    yield made
    await made.close()


@pytest.fixture
async def store(nats_url: NatsServer) -> AsyncIterator[JetStreamStore]:
    """The log that the gateways of the tests read too."""
    nc = await connect(BusSettings(nats_url.url, nats_url.user, nats_url.password), "test")
    await declare_streams(nc.jetstream())
    yield JetStreamStore(nc)
    await nc.close()

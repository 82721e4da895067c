"""What tests of plans share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from shared.bus import BusSettings, connect
from shared.jetstream import JetStreamStore
from shared.streams import declare_streams
from tests.nats_process import NatsServer


@pytest.fixture
async def log(nats_url: NatsServer) -> AsyncIterator[JetStreamStore]:
    """The log that the gateway reads too."""
    nc = await connect(BusSettings(nats_url.url, nats_url.user, nats_url.password), "test")
    await declare_streams(nc.jetstream())
    yield JetStreamStore(nc)
    await nc.close()

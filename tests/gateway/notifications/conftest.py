"""A receiver, a migrated database of each kind, a keyring and the log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.gateway.credentials.keyring import Keyring
from services.gateway.database.engine import Database
from services.gateway.database.engine import database_url as checked_url
from shared.bus import BusSettings, connect
from shared.jetstream import JetStreamStore
from shared.streams import declare_streams
from tests.gateway.credentials.keyring_file import write_keyring
from tests.gateway.notifications.receiver import Receiver
from tests.nats_process import NatsServer


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as listening:
        yield listening


@pytest.fixture
async def db(migrated_url: str) -> AsyncIterator[Database]:
    made = Database(checked_url(migrated_url))
    yield made
    await made.close()


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    write_keyring(tmp_path / "keyring.json", "k1")
    return Keyring(tmp_path / "keyring.json")


@pytest.fixture
async def store(nats_url: NatsServer) -> AsyncIterator[JetStreamStore]:
    """The log that the gateways of the tests read too."""
    nc = await connect(BusSettings(nats_url.url, nats_url.user, nats_url.password), "test")
    await declare_streams(nc.jetstream())
    yield JetStreamStore(nc)
    await nc.close()

"""A migrated database of each kind, a keyring, and a NATS that no other gateway answers on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.gateway.credentials.keyring import Keyring
from services.gateway.database.engine import Database
from services.gateway.database.engine import database_url as checked_url
from tests.gateway.credentials.keyring_file import write_keyring
from tests.nats_process import NatsServer


@pytest.fixture
async def db(migrated_url: str) -> AsyncIterator[Database]:
    made = Database(checked_url(migrated_url))
    yield made
    await made.close()


@pytest.fixture
def keyring_file(tmp_path: Path) -> Path:
    path = tmp_path / "keyring.json"
    write_keyring(path, "k1")
    return path


@pytest.fixture
def keyring(keyring_file: Path) -> Keyring:
    return Keyring(keyring_file)


@pytest.fixture(scope="module")
def lone_nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    try:
        server.start()
        yield server
    finally:
        server.close()

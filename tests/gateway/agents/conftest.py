"""A gateway on a NATS of its own: no other test's runner answers there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from services.gateway.database.engine import Database
from services.gateway.database.engine import database_url as checked_url
from tests.gateway.conftest import DATABASES, MakeDatabase
from tests.gateway.gateway_process import GatewayProcess
from tests.nats_process import NatsServer


@pytest.fixture(scope="module")
def lone_nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module", params=DATABASES)
def lone_gateway(
    request: pytest.FixtureRequest,
    make_migrated_database: MakeDatabase,
    lone_nats: NatsServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[GatewayProcess]:
    directory = tmp_path_factory.mktemp("gateway")
    with (
        make_migrated_database(request.param, directory) as url,
        GatewayProcess(directory, lone_nats, url, is_migrated=True) as running,
    ):
        yield running


@pytest.fixture
async def db(migrated_url: str) -> AsyncIterator[Database]:
    """Migrated and empty."""
    made = Database(checked_url(migrated_url))
    yield made
    await made.close()

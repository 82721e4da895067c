"""Databases and gateways for every test of the gateway, each on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.postgres_cluster import NoPostgres, PostgresCluster, postgres_cluster
from tests.gateway.service_process import service
from tests.nats_process import NatsServer

DATABASES = ["sqlite", "postgresql"]
MakeDatabase = Callable[[str, Path], AbstractContextManager[str]]


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresCluster]:
    """One private cluster for the whole session; its tests are skipped where nothing can run it."""
    try:
        cluster = postgres_cluster()
        running = cluster.__enter__()
    except NoPostgres as error:
        pytest.skip(f"PostgreSQL is not tested: {error}")
    try:
        yield running
    finally:
        cluster.__exit__(None, None, None)


@pytest.fixture(scope="session")
def postgres_url(postgres: PostgresCluster) -> str:
    """The cluster's maintenance database. For one of a test's own, ask for `database_url`."""
    return postgres.url


@pytest.fixture(scope="session")
def make_database(request: pytest.FixtureRequest) -> MakeDatabase:
    """(kind, directory) → a context with the address of a new, empty database."""

    @contextmanager
    def make(kind: str, directory: Path) -> Iterator[str]:
        if kind == "sqlite":
            yield f"sqlite:///{directory / 'treadle.sqlite'}"
            return
        cluster: PostgresCluster = request.getfixturevalue("postgres")
        url = cluster.fresh_database()
        try:
            yield url
        finally:
            cluster.drop(url)

    return make


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, make_database: MakeDatabase, tmp_path: Path) -> Iterator[str]:
    """A new, empty database for one test, of either kind; no table is in it yet."""
    with make_database(request.param, tmp_path) as url:
        yield url


@pytest.fixture(scope="module", params=DATABASES)
def gateway(
    request: pytest.FixtureRequest,
    make_database: MakeDatabase,
    nats_url: NatsServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[GatewayProcess]:
    """A gateway that a module's tests share: use accounts and projects of your own, and never stop it."""
    directory = tmp_path_factory.mktemp("gateway")
    with make_database(request.param, directory) as url, GatewayProcess(directory, nats_url, url) as running:
        yield running


@pytest.fixture
def own_gateway(database_url: str, nats_url: NatsServer, tmp_path: Path) -> Iterator[GatewayProcess]:
    """A gateway of the test's own, to kill and to start again."""
    with GatewayProcess(tmp_path, nats_url, database_url) as running:
        yield running


@pytest.fixture(scope="module")
def planner(nats_url: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Answers every gateway. Ends with the module: a log that other tests share must not be worked on behind them."""
    with service("planner", nats_url, tmp_path_factory.mktemp("planner")):
        yield


@pytest.fixture(scope="module")
def dispatcher(nats_url: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Finalizes, readies and ends every plan in the log, others' too: it ends with the module."""
    with service("dispatcher", nats_url, tmp_path_factory.mktemp("dispatcher")):
        yield

"""Databases and gateways for every test of the gateway, each on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from services.gateway.database.engine import database_url as checked_url
from services.gateway.database.migrate import migrate
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


@pytest.fixture(scope="session")
def make_migrated_database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MakeDatabase:
    """The same, with all tables and no row: copies of one that is migrated once in the session."""
    templates: dict[str, str] = {}

    def empty(kind: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path_factory.mktemp('template') / 'treadle.sqlite'}"
        cluster: PostgresCluster = request.getfixturevalue("postgres")
        return cluster.fresh_database()  # gone with the cluster

    def template(kind: str) -> str:
        if kind not in templates:
            templates[kind] = empty(kind)
            # In a thread of its own, so that a test's event loop may run.
            with ThreadPoolExecutor(1) as thread:
                thread.submit(asyncio.run, migrate(checked_url(templates[kind]))).result()
        return templates[kind]

    @contextmanager
    def make(kind: str, directory: Path) -> Iterator[str]:
        if kind == "sqlite":
            copy = directory / "treadle.sqlite"
            shutil.copy(template(kind).removeprefix("sqlite:///"), copy)
            yield f"sqlite:///{copy}"
            return
        cluster: PostgresCluster = request.getfixturevalue("postgres")
        url = cluster.fresh_database(template(kind))
        try:
            yield url
        finally:
            cluster.drop(url)

    return make


@pytest.fixture(params=DATABASES)
def migrated_url(request: pytest.FixtureRequest, make_migrated_database: MakeDatabase, tmp_path: Path) -> Iterator[str]:
    """A database for one test, of either kind, with all tables and no row."""
    with make_migrated_database(request.param, tmp_path) as url:
        yield url


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, make_database: MakeDatabase, tmp_path: Path) -> Iterator[str]:
    """A new, empty database for one test, of either kind; no table is in it yet."""
    with make_database(request.param, tmp_path) as url:
        yield url


@pytest.fixture(scope="session")
def gateway_on_sqlite(
    make_migrated_database: MakeDatabase, nats_url: NatsServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """One for the whole session."""
    directory = tmp_path_factory.mktemp("gateway")
    with (
        make_migrated_database("sqlite", directory) as url,
        GatewayProcess(directory, nats_url, url, is_migrated=True) as running,
    ):
        yield running


@pytest.fixture(scope="session")
def gateway_on_postgresql(
    postgres: PostgresCluster,
    make_migrated_database: MakeDatabase,
    nats_url: NatsServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[GatewayProcess]:
    """One for the whole session, which ends before the cluster does."""
    directory = tmp_path_factory.mktemp("gateway")
    with (
        make_migrated_database("postgresql", directory) as url,
        GatewayProcess(directory, nats_url, url, is_migrated=True) as running,
    ):
        yield running


@pytest.fixture(scope="module", params=DATABASES)
def gateway(request: pytest.FixtureRequest) -> GatewayProcess:
    """A gateway that all modules' tests share: use accounts and projects of your own, and never stop it."""
    running: GatewayProcess = request.getfixturevalue(f"gateway_on_{request.param}")
    return running


@pytest.fixture
def own_gateway(migrated_url: str, nats_url: NatsServer, tmp_path: Path) -> Iterator[GatewayProcess]:
    """A gateway of the test's own, to kill and to start again."""
    with GatewayProcess(tmp_path, nats_url, migrated_url, is_migrated=True) as running:
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

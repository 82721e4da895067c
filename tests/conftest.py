"""Real parts that any test may ask for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nats_process import NatsServer


@pytest.fixture(scope="session")
def nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """One nats-server for the whole session: use plans and subjects of your own, and never kill it."""
    yield from _running(tmp_path_factory.mktemp("nats"))


@pytest.fixture
def own_nats(tmp_path: Path) -> Iterator[NatsServer]:
    """A nats-server of the test's own, to kill and to start again."""
    yield from _running(tmp_path / "nats")


def _running(directory: Path) -> Iterator[NatsServer]:
    server = NatsServer(directory)
    try:
        server.start()
        yield server
    finally:
        server.close()

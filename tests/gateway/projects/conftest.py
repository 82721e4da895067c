"""What plans over HTTP need: a planner, and where they are to run a dispatcher."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway.service_process import service
from tests.nats_process import NatsServer


@pytest.fixture(scope="session")
def planner(nats_url: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Answers every gateway of the session."""
    with service("planner", nats_url, tmp_path_factory.mktemp("planner")):
        yield


@pytest.fixture(scope="session")
def dispatcher(nats_url: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Finalizes, readies and ends the plans of the whole session."""
    with service("dispatcher", nats_url, tmp_path_factory.mktemp("dispatcher")):
        yield

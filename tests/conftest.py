"""Real parts that any test may ask for, and how several processes share the tests out."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.nats_process import NatsServer

LONG = ("tests/compose/test_team.py", "tests/gateway/test_schema.py", "tests/end_to_end/", "tests/gateway/")
"""What takes minutes begins first, so that no process is left with it in the end."""
APART = ("tests/gateway/test_schema.py",)
"""Files of a few long tests that share nothing: each may go to another process."""

# How long an example takes says more of what else the machine does than of the code. A change is judged by the same
# examples every time; `make soak` looks for new ones.
settings.register_profile("the same examples", parent=settings.default, deadline=None, derandomize=True)
settings.register_profile("new examples", parent=settings.default, deadline=None, max_examples=2000)
settings.load_profile("the same examples")

# Whoever starts the tests in the background has them, and all that they start, ignore Ctrl-C.
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n`, a process takes a whole file, so that what its tests share is made once."""
    # Here: the tests run without it too. It carries no types.
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

    class Files(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.split("::", 1)[0]
            return nodeid if path in APART else path

    config.option.loadscopereorder = False  # it knows only how many tests a file has
    return Files(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: next((n for n, path in enumerate(LONG) if item.nodeid.startswith(path)), len(LONG)))


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

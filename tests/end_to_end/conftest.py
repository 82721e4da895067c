"""Real suites."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.plans import Gate, make_repo
from tests.end_to_end.suite import Suite


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """One suite for all tests that do it no harm: one runner with four slots.

    Without a sandbox: most of its tests' tasks tell of themselves in files outside their worktrees.
    """
    running = Suite(tmp_path_factory.mktemp("suite"), sandboxed=False)
    running.up("--runners", "1", "--slots", "4")
    try:
        yield running
    finally:
        running.down()


@pytest.fixture(scope="session")
def boxed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """The same in a sandbox, in which tasks may read the files of tests: a gate holds them there too."""
    running = Suite(tmp_path_factory.mktemp("sandboxed"))
    running.environment["TREADLE_SANDBOX_READ"] = str(tmp_path_factory.getbasetemp())
    running.up("--runners", "1", "--slots", "4")
    try:
        yield running
    finally:
        running.down()


@pytest.fixture
def own_suite(tmp_path: Path) -> Iterator[Suite]:
    """A suite of the test's own, not started yet. Without a sandbox, as `suite` is."""
    mine = Suite(tmp_path / "suite", sandboxed=False)
    try:
        yield mine
    finally:
        mine.down()


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A person's repository, with `main` checked out."""
    return make_repo(tmp_path / "repo")


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """Holds tasks until it is opened; open in the end, so that nobody waits for ever."""
    made = Gate(tmp_path / "gate")
    try:
        yield made
    finally:
        made.open()

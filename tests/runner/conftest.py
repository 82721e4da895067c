"""Git servers that want credentials."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runner.git_server import GitServer, make_certificate, serving
from tests.runner.repositories import PLAN, git, make_project

TOKEN = f"tok-canary-{secrets.token_hex(8)}"
"""Of this run alone: it is looked for in every process of the machine."""
USERNAME = "somebody"


def pytest_make_parametrize_id(val: object) -> str | None:
    """A test's name is the same in every process: the plan's id and the token are not."""
    if not isinstance(val, str) or (PLAN not in val and TOKEN not in val):
        return None
    return val.replace(PLAN, "PLAN").replace(TOKEN, "TOKEN")


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the servers; the machine trusts it."""
    path = tmp_path / "server.pem"
    make_certificate(path)
    monkeypatch.setenv("GIT_SSL_CAINFO", str(path))
    return path


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """A directory with the bare repository `repo.git`, which has one commit on `main`."""
    (tmp_path / "elsewhere").mkdir()
    person = make_project(tmp_path / "elsewhere").repo
    root = tmp_path / "served"
    root.mkdir()
    git(tmp_path, "clone", "-q", "--bare", str(person), str(root / "repo.git"))
    return root


@pytest.fixture
def git_server(served: Path, certificate: Path) -> Iterator[GitServer]:
    with serving(served, certificate, USERNAME, TOKEN) as server:
        yield server


@pytest.fixture
def private_dir(tmp_path: Path) -> Path:
    """A runner's private directory."""
    path = tmp_path / "private"
    path.mkdir(mode=0o700)
    return path

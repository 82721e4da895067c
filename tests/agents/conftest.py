"""A worktree, and jobs in it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from services.runner.agents import Job
from shared.spec import AgentSpec
from tests.agents.probes import MakeJob, Reported


@pytest.fixture
def reported() -> Reported:
    return Reported()


@pytest.fixture
def worktree(tmp_path: Path) -> Path:
    path = tmp_path / "code"
    subprocess.run(["git", "init", "--quiet", path], check=True)
    return path


@pytest.fixture
def make_job(tmp_path: Path, worktree: Path) -> MakeJob:
    """Makes jobs of task T1 in the worktree; any field may be given."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    def make(**fields: Any) -> Job:
        values: dict[str, Any] = {
            "plan": f"plan-{tmp_path.name}",
            "task": "T1",
            "attempt": 2,
            "lease": 3,
            "prompt": "# Task T1: a test\n\nDo it.",
            "agent": AgentSpec(sdk_type="claude"),
            "cwd": worktree,
            "scratch": scratch,
            "timeout_s": 60.0,
            "budget_usd": 5.0,
            "env": {},
        }
        return Job(**{**values, **fields})

    return make

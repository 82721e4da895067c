"""A worktree, and jobs in it."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from services.runner.agents import Job
from services.runner.agents.claude import ClaudeRunner
from services.runner.proxy import KeyProxy
from services.runner.sandbox import Unsandboxed, enclose, find_sandbox
from shared.spec import AgentSpec
from tests.agents.claude_probes import KEY
from tests.agents.probes import MakeJob, MakeLease, Reported
from treadle.scripted_model import ScriptedModel


@pytest.fixture
def reported() -> Reported:
    return Reported()


@pytest.fixture
async def model() -> AsyncIterator[ScriptedModel]:
    """The provider."""
    async with ScriptedModel(api_key=KEY) as model:
        yield model


@pytest.fixture
async def runner(model: ScriptedModel) -> AsyncIterator[ClaudeRunner]:
    """Claude, behind the proxy that has the key."""
    async with KeyProxy(KEY, model.base_url) as proxy:
        yield ClaudeRunner(proxy)


@pytest.fixture
def worktree(tmp_path: Path) -> Path:
    path = tmp_path / "code"
    subprocess.run(["git", "init", "--quiet", path], check=True)
    return path


@pytest.fixture
def make_job(tmp_path: Path, worktree: Path) -> MakeJob:
    """Makes jobs of task T1 in the worktree; any field may be given."""
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)

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
            "timeout_s": 600.0,
            "budget_usd": 5.0,
            "env": {},
            "enclosure": Unsandboxed(),
        }
        return Job(**{**values, **fields})

    return make


@pytest.fixture(params=["unsandboxed", "sandboxed"])
async def make_lease(
    request: pytest.FixtureRequest, tmp_path: Path, worktree: Path, make_job: MakeJob
) -> AsyncIterator[MakeLease]:
    """Makes jobs as `make_job` does, each with directories of its own, in what a runner really encloses it in."""
    agents_repo, objects = tmp_path / "agent.git", tmp_path / "objects"
    agents_repo.mkdir()
    objects.mkdir()
    sandbox = find_sandbox("required") if request.param == "sandboxed" else None
    numbers = itertools.count()
    async with AsyncExitStack() as held:

        async def make(**fields: Any) -> Job:
            scratch = tmp_path / f"scratch-{next(numbers)}"
            scratch.mkdir()
            code = fields.get("cwd", worktree)
            enclosure = await held.enter_async_context(
                enclose(sandbox, workspace_code=code, agents_repo=agents_repo, objects=objects, scratch=scratch)
            )
            return make_job(scratch=scratch, enclosure=enclosure, **fields)

        yield make

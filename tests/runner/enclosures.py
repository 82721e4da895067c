"""Real sandboxes around real workspaces, for tests."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from services.runner.agents import Enclosure
from services.runner.process import LEASE_VARIABLE, run_program
from services.runner.sandbox import Sandbox, enclose
from services.runner.workspace import Workspace
from tests.runner.repositories import Project


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Inside:
    """A lease's enclosure, with its workspace."""

    enclosure: Enclosure
    workspace: Workspace
    scratch: Path

    @property
    def mark(self) -> str:
        """Of its processes."""
        return f"{self.workspace.plan}/{self.workspace.task}/{self.workspace.lease}"

    @property
    def env(self) -> dict[str, str]:
        """As an agent's."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.scratch / "home"),
            "LC_ALL": "C.UTF-8",
            LEASE_VARIABLE: self.mark,
            **self.enclosure.environment,
        }

    async def run(self, *argv: str, network: bool = True, mark: str = "") -> Ended:
        """Runs a program inside, to its end. What runs beside others needs a `mark` of its own: the first to end would
        end all that have the same."""
        out, err = bytearray(), bytearray()
        words = self.enclosure.command(argv, network=network)
        env = {**self.env, LEASE_VARIABLE: mark or self.mark}
        status = await run_program(
            words, cwd=self.workspace.code, env=env, stdin=b"", stdout=out.extend, stderr=err.extend
        )
        return Ended(status, out.decode(errors="replace"), err.decode(errors="replace"))

    async def sh(self, script: str, *, network: bool = True, mark: str = "") -> Ended:
        """Runs a shell's script inside."""
        return await self.run("sh", "-c", script, network=network, mark=mark)


@asynccontextmanager
async def inside(
    project: Project, sandbox: Sandbox | None, *, task: str = "T1", network_allow: Sequence[str] = ()
) -> AsyncIterator[Inside]:
    """A fresh workspace and what encloses it."""
    workspace = project.workspace(task)
    scratch = project.data_dir / "scratch" / f"{workspace.plan}-{task}-1"
    scratch.mkdir(parents=True, mode=0o700)
    enclosing = enclose(
        sandbox,
        workspace_code=workspace.code,
        agents_repo=workspace.agents_repo,
        objects=workspace.mirror.objects,
        scratch=scratch,
        network_allow=network_allow,
    )
    async with enclosing as enclosure:
        yield Inside(enclosure, workspace, scratch)

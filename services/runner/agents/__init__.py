"""Agents: who does a task's work. Decides, from a job, one of: completed, or a failure with its words.

A new agent is one file with an `open_runner` and a `try_out` like those beside this one, and one line in `AGENTS`.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from services.runner.process import LEASE_VARIABLE, lease_mark
from shared.events import FailureKind, Usage
from shared.requests import TEST_CODES, AgentCredentials
from shared.spec import AgentSpec

ACTIVITY_MAX_BYTES = 64 * 1024
SUMMARY_MAX_BYTES = 2 * 1024


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""Other names, such as exported shell functions, can't pass through a shell."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that an agent needs; it leaves it no choices."""

    plan: str
    task: str
    attempt: int
    lease: int
    prompt: str
    agent: AgentSpec
    cwd: Path
    """The worktree: where the agent starts and what it may change."""
    scratch: Path
    """A private, existing directory of this lease, outside the worktree: for the agent's home and temporary files."""
    timeout_s: float
    budget_usd: float
    env: Mapping[str, str]
    """What the project allows the agent to see of the runner's environment."""
    credentials: AgentCredentials | None = None
    """What its model is reached with; None: the runner's own. The agent itself must never see them."""

    @property
    def mark(self) -> str:
        """What the processes of this lease are known by; see `services.runner.process`."""
        return lease_mark(self.plan, self.task, self.lease)


class Activity(msgspec.Struct, frozen=True):
    """One thing that an agent did. Make it with `activity`, which keeps it small.

    The text is the agent's, control characters included: whoever shows it on a terminal strips them.
    """

    kind: Literal["text", "tool", "result", "usage", "output"]
    """What it said; the tool it called; what the tool answered; what it consumed so far; what its program printed."""
    text: str = ""
    usage: Usage | None = None


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """The one end of a run."""

    kind: Literal["completed"] | FailureKind
    message: str = ""
    """For a person: what happened, and what to do now."""
    summary: str = ""
    """The agent's own last words, at most `SUMMARY_MAX_BYTES`."""
    usage: Usage = Usage()
    retry_after_s: float | None = None
    """When the other side said how long to wait."""


Report = Callable[[Activity], None]
"""Takes what the agent does, as it does it. It must be quick; what it raises ends the run."""


class Trial(msgspec.Struct, frozen=True):
    """What came of trying credentials out."""

    code: TEST_CODES
    message: str
    """For a person: what happened, and what to do now."""


class AgentRunner(Protocol):
    """Runs agents of one kind, any number at a time."""

    needs_credentials: bool
    """Whether an agent of a type of the gateway's works with that type's key. What needs none is sent none."""

    async def run(self, job: Job, report: Report) -> Finished:
        """Does the job. Keeps its time limit and budget; leaves no process behind.

        When cancelled, ends the agent with all its processes (within two seconds) and raises CancelledError.
        """
        ...


class AgentModule(Protocol):
    """What a file of this directory offers."""

    def open_runner(self, environment: Mapping[str, str], /) -> AbstractAsyncContextManager[AgentRunner]:
        """Makes the runner of a process, from the environment of that process."""
        ...

    async def try_out(self, credentials: AgentCredentials | None, model: str, /) -> Trial:
        """Tries the credentials with one request, as small as there is; model "" is the default one."""
        ...


AGENTS: Mapping[str, str] = {
    "claude": "services.runner.agents.claude",
    "command": "services.runner.agents.command",
}
"""Module by `sdk_type`. Loaded when asked for: a runner of commands needs no Claude."""


def open_runner(sdk_type: str, environment: Mapping[str, str]) -> AbstractAsyncContextManager[AgentRunner]:
    """The runner for a kind of agent. Raises KeyError for one that is not in `AGENTS`."""
    return _module(sdk_type).open_runner(environment)


async def try_out(sdk_type: str, credentials: AgentCredentials | None, model: str) -> Trial:
    """Tries an agent type's credentials out. Raises KeyError for a kind that is not in `AGENTS`."""
    return await _module(sdk_type).try_out(credentials, model)


def _module(sdk_type: str) -> AgentModule:
    module: AgentModule = importlib.import_module(AGENTS[sdk_type])
    return module


def environment(job: Job) -> dict[str, str]:
    """An agent's environment, built from nothing: a home of its own, and what the project allows."""
    home, temporary = job.scratch / "home", job.scratch / "tmp"
    home.mkdir(exist_ok=True)
    temporary.mkdir(exist_ok=True)
    return {
        **{name: value for name, value in job.env.items() if _VARIABLE.fullmatch(name)},
        "PATH": job.env.get("PATH") or os.environ.get("PATH") or os.defpath,
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "TREADLE_PLAN": job.plan,
        "TREADLE_TASK": job.task,
        "TREADLE_ATTEMPT": str(job.attempt),
        LEASE_VARIABLE: job.mark,
    }


def activity(
    kind: Literal["text", "tool", "result", "usage", "output"], text: str = "", usage: Usage | None = None
) -> Activity:
    """An activity with its text cut to `ACTIVITY_MAX_BYTES`."""
    return Activity(kind, cut(text, ACTIVITY_MAX_BYTES), usage)


def cut(text: str, max_bytes: int) -> str:
    """The text's beginning, in at most so many bytes of UTF-8; says so when something is missing."""
    raw = text.encode(errors="replace")
    if len(raw) <= max_bytes:
        return raw.decode()
    mark = " … [cut]"
    return raw[: max_bytes - len(mark.encode())].decode(errors="ignore") + mark

"""Agents: who does a task's work. Decides, from a job, one of: completed, or a failure with its words.

A new agent is one file with an `open_runner` and a `try_out` like those beside this one, and one line in `AGENTS`.
"""

from __future__ import annotations

import importlib
import os
import re
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

import msgspec

from services.runner.agent_files import make_directory_below
from services.runner.process import LEASE_VARIABLE, lease_mark
from services.runner.worktree import Worktree
from shared.events import Conflict, FailureKind, PlanFault, Usage
from shared.requests import TEST_CODES, AgentCredentials
from shared.spec import AgentSpec, WorkRules
from shared.task import Approval

ACTIVITY_MAX_BYTES = 64 * 1024
"""Of what is published of an activity."""
ACTIVITY_BEYOND_BYTES = 8 * 1024
"""So much more is kept until secrets were taken out: one that lies across the limit must be seen whole."""
SUMMARY_MAX_BYTES = 2 * 1024
ANSWER_MAX_BYTES = 2 * 1024 * 1024
"""Of an answer; it goes into a request and an event, in JSON once more."""


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
    """The worktree as the runner opens it: what the agent may change. What the agent calls it, `worktree` says."""
    enclosure: Enclosure
    """What keeps its processes in."""
    rules: WorkRules = WorkRules()
    memory: Memory | None = None
    """Where its conversation is kept for the next lease; None: nowhere."""
    approval: Approval | None = None
    """What a person answered, which this lease goes on with."""
    use_approval: Callable[[], Awaitable[None]] | None = None
    """Says in the log that what was allowed is about to run; must be done before. Raises once the lease is over."""
    scratch: Path
    """A private, existing directory of this lease, outside the worktree: for the agent's home and temporary files."""
    timeout_s: float
    budget_usd: float
    """What is left of it for this lease."""
    env: Mapping[str, str]
    """What the project allows the agent to see of the runner's environment."""
    credentials: AgentCredentials | None = None
    """What its model is reached with; None: the runner's own. The agent itself must never see them."""
    without_secrets: Callable[[str], str] = str
    """Takes out of a text what must not stand in the log."""

    @property
    def mark(self) -> str:
        """What the processes of this lease are known by; see `services.runner.process`."""
        return lease_mark(self.plan, self.task, self.lease)

    @property
    def worktree(self) -> Worktree:
        """Where the agent starts, by both names: all that it says of paths is to be taken through this."""
        return Worktree(self.cwd, self.enclosure.place_of(self.cwd))


Kind = Literal["text", "thinking", "tool", "result", "diff", "usage", "output", "verify", "treadle"]
"""What it said; what it thought; the tool it called; what the tool answered; what it changed in a file; what it
consumed so far; what its program printed; what verification printed; what Treadle has to say about the run."""


class Activity(msgspec.Struct, frozen=True):
    """One thing that an agent did. Make it with `activity`, which keeps it small.

    The text is the agent's, control characters included: whoever shows it on a terminal strips them.
    """

    kind: Kind
    text: str = ""
    usage: Usage | None = None


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """The one end of a run."""

    kind: Literal["completed"] | FailureKind
    message: str = ""
    """For a person: what happened, and what to do now."""
    summary: str = ""
    """The agent's own last words, at most `SUMMARY_MAX_BYTES`."""
    answer: str = ""
    """Of a job whose answer is what it is for (`WorkRules.answer`): a JSON object, not checked yet. Empty: it gave
    none, and `message` may say why."""
    usage: Usage = Usage()
    retry_after_s: float | None = None
    """When the other side said how long to wait."""
    conflict: Conflict | None = None
    """Of a `merge_conflict`: what could not be merged."""
    faults: tuple[PlanFault, ...] = ()
    """Of a plan that could not be made valid."""


Report = Callable[[Activity], None]
"""Takes what the agent does, as it does it. It must be quick; what it raises ends the run."""


class Trial(msgspec.Struct, frozen=True):
    """What came of trying credentials out."""

    code: TEST_CODES
    message: str
    """For a person: what happened, and what to do now."""


class Asks(msgspec.Struct, frozen=True, kw_only=True):
    """The agent can't go on without a person: the session is over, and is taken up again with the answer."""

    kind: Literal["tool", "question"]
    tool: str
    input: dict[str, Any]
    why: str
    """For the person who answers."""
    usage: Usage = Usage()


class AgentSession(Protocol):
    """One lease's conversation with an agent."""

    async def turn(self, message: str) -> Finished | Asks:
        """Tells the agent something and lets it work until it is done. `Finished.usage` is of the whole session so far.

        The first message is the job's prompt, later ones are what was wrong with its work. Keeps the budget. When
        cancelled, ends the agent with all its processes (within two seconds) and raises CancelledError.
        """
        ...


class AgentRunner(Protocol):
    """Runs agents of one kind, any number at a time."""

    needs_credentials: bool
    """Whether an agent of a type of the gateway's works with that type's key. What needs none is sent none."""
    resumes: bool
    """Whether a conversation can be taken up again by another lease."""

    def open(self, job: Job, report: Report) -> AbstractAsyncContextManager[AgentSession]:
        """Begins a session; at its end no process of it is left.

        Where `job.memory` has a former conversation, it is that one that goes on, with `job.approval` if that has an
        answer.
        """
        ...


class Enclosure(Protocol):
    """What one lease's processes run in: a sandbox, or nothing but a name for it (`services.runner.sandbox`)."""

    is_sandboxed: bool
    model_url: str
    """Where processes inside reach the key proxy, once `serve_model` was called; without a sandbox, the proxy's own."""
    environment: Mapping[str, str]
    """What processes inside have to be told: where the allowed network is, the place of caches."""

    def command(self, argv: Sequence[str], *, network: bool = True) -> list[str]:
        """The words that run `argv` inside, in the worktree."""
        ...

    def place_of(self, worktree: Path) -> PurePosixPath:
        """What processes inside call the worktree; the same in every lease where there is a sandbox."""
        ...

    def serve_model(self, serve: Callable[[socket.socket], Awaitable[None]]) -> None:
        """Has every listening socket that stands for `model_url` inside given to `serve`; nothing without a sandbox."""
        ...

    @property
    def passed_bytes(self) -> int:
        """What went through the allowed network so far, in both directions; 0 without a sandbox, where nobody sees."""
        ...

    def refused_hosts(self) -> Sequence[str]:
        """Hosts that were asked for and are not allowed, each once."""
        ...


class Memory(Protocol):
    """A lease's part in its attempt's conversation (`services.runner.checkpoint`); fenced by the lease."""

    @property
    def session_id(self) -> str:
        """Of the conversation; the same over all leases of the attempt. The agent chooses nothing here."""
        ...

    @property
    def resumes(self) -> bool:
        """Whether a former lease left a conversation to go on with."""
        ...

    async def load(self) -> list[dict[str, Any]]:
        """The conversation's entries so far, in order, those of former leases included."""
        ...

    async def append(self, entries: Sequence[dict[str, Any]]) -> None:
        """Stores more entries. Raises `services.runner.checkpoint.Fenced` once the lease is over."""
        ...

    def turn_ended(self, usage: Usage) -> None:
        """The agent has done something and now thinks: a good moment to save its files. Returns at once."""
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
    for directory in (home, temporary):
        make_directory_below(job.scratch, directory.name)
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
        **job.enclosure.environment,
    }


def activity(kind: Kind, text: str = "", usage: Usage | None = None) -> Activity:
    """An activity with its text cut to little more than `ACTIVITY_MAX_BYTES`."""
    return Activity(kind, cut(text, ACTIVITY_MAX_BYTES + ACTIVITY_BEYOND_BYTES), usage)


def cut(text: str, max_bytes: int) -> str:
    """The text's beginning, in at most so many bytes of UTF-8; says so when something is missing."""
    raw = text.encode(errors="replace")
    if len(raw) <= max_bytes:
        return raw.decode()
    mark = " … [cut]"
    return raw[: max_bytes - len(mark.encode())].decode(errors="ignore") + mark

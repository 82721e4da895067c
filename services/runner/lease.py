"""A lease: what this runner holds right now, and what it leaves behind if it is killed.

The journal lists the deliveries in a life's hands, one small file each, from their arrival on: also the one that has no
lease yet. A runner that comes back under the same name finds there what its former life had taken and hands it back at
once, instead of after the server's `ack_wait`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from nats.aio.msg import Msg

from services.runner.credentials import LeaseCredentials
from shared.clock import new_id
from shared.events import ApprovalKind, Result, TaskDispatched, Usage
from shared.requests import CheckReply, CheckRequest
from shared.task import Approval, TaskState, may_cost_usd

if TYPE_CHECKING:
    from services.runner.checkpoint import LeaseMemory


log = logging.getLogger("treadle.runner")

AGENT_ENDS_WITHIN_S = 2.0
"""How long an agent that is told to stop may take with all its processes."""
SAVE_WITHIN_S = 3.0
"""How long the saving of an interrupted lease's files may take, so that a runner stops within seconds."""


AskPlanner = Callable[[CheckRequest], Awaitable[CheckReply]]
"""Whether a text is a valid plan. Raises `PlannerAway`."""


class PlannerAway(Exception):
    """No planner answered; the text says why."""


class Key(msgspec.Struct, frozen=True):
    """Names a lease."""

    plan: str
    task: str
    lease: int


class Lease:
    """One attempt in our hands."""

    def __init__(
        self,
        key: Key,
        seq: int,
        dispatch: TaskDispatched,
        delivery: Msg,
        correlation: str,
        credentials: LeaseCredentials,
        state: TaskState,
    ) -> None:
        self.key = key
        self.seq = seq
        """Sequence of the task's newest event as far as we know: ours."""
        self.dispatch = dispatch
        self.delivery = delivery
        """The newest delivery of the message: what is acknowledged in the end."""
        self.correlation = correlation
        self.credentials = credentials
        self.state = state
        """The task as the lease's start left it."""
        self.memory: LeaseMemory | None = None
        """Set before the work begins; None for a delivery, which has no conversation."""
        self.use_approval: Callable[[], Awaitable[None]] | None = None
        """Says in the log that what was allowed is about to run.

        Raises `Fenced` once the lease is over, and `Refused` for what nobody allowed, or what may have run before.
        """
        self.ask_planner: AskPlanner | None = None
        """Set before the work begins."""
        self.work: asyncio.Task[None] | None = None
        self.stale = False
        """The log says that the lease is over: kill, and send nothing."""
        self.cancelling = False
        """Somebody asked the task to stop."""
        self.in_doubt = asyncio.Event()
        """Somebody else may have the lease: look at the log now, and not at the next heartbeat."""
        self._interrupted = False

    @property
    def approval(self) -> Approval | None:
        """What was asked in this attempt last, with its answer."""
        return self.state.approval

    @property
    def budget_usd(self) -> float:
        """What the lease may cost; programs and people cost nothing."""
        return may_cost_usd(self.state)

    @property
    def usage(self) -> Usage:
        """What the lease consumed as far as its agent has told."""
        return self.memory.usage if self.memory else Usage()

    @property
    def hands_back(self) -> bool:
        """Interrupted because the runner stops: what there is, is kept for the next lease."""
        return self._interrupted and not self.stale and not self.cancelling

    def interrupt(self) -> None:
        """Ends the work: stale, cancelled, or else because the runner stops. A second call changes nothing."""
        if self.work is not None and not self._interrupted:
            self._interrupted = True  # cancelling twice would cut off the killing of the agent's processes
            self.work.cancel()

    def cut_off(self) -> None:
        """Ends work that was interrupted and does not come to an end."""
        if self.work is not None and not self.work.done():
            log.error("%s does not end: it is given up, and what it did not save is lost", self.key)
            self.work.cancel()


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """The attempt succeeded: its commit is stored under the lease's ref."""

    base_commit: str
    commit: str
    """Of an attempt that answers: the base."""
    result: Result
    answer: str = ""
    """What the attempt was for (`WorkRules.answer`), as JSON."""
    usage: Usage = Usage()


class Parked(msgspec.Struct, frozen=True, kw_only=True):
    """The attempt waits for a person: what it had is saved, and its commit, if any, stored under the lease's ref."""

    kind: ApprovalKind
    tool: str = ""
    input: dict[str, Any] = {}
    """The call's, the question's, or what the result is; what a person allows is bound to it."""
    why: str
    """For the person who answers."""
    commit: str = ""
    base_commit: str = ""
    usage: Usage = Usage()


class Taken(msgspec.Struct, frozen=True):
    """A delivery: which dispatch of which task."""

    plan: str
    task: str
    dispatch: int


class Journal:
    """The deliveries in this runner's hands, on disk."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def add(self, taken: Taken) -> Path:
        """Notes a delivery before anything comes of it; returns the note."""
        path = self._directory / f"{new_id()}.json"
        partial = path.with_suffix(".partial")
        partial.write_bytes(msgspec.json.encode(taken))
        partial.replace(path)
        return path

    def remove(self, note: Path) -> None:
        """Forgets a delivery that was dealt with."""
        note.unlink(missing_ok=True)

    def left_behind(self) -> dict[Path, Taken]:
        """The notes of a former life: what it had in its hands when it ended."""
        found: dict[Path, Taken] = {}
        for path in self._directory.glob("*.json"):
            try:
                found[path] = msgspec.json.decode(path.read_bytes(), type=Taken)
            except msgspec.DecodeError:
                # Torn by a power cut: the server redelivers after `ack_wait` what it spoke of.
                path.unlink()
        return found

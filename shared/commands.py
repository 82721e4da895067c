"""What somebody wants: the commands that the deciders answer with at most one event, or a refusal.

A command carries everything that deciding needs besides the state, the time and random values included, so that a
decision can be repeated from the log.
"""

from datetime import datetime
from typing import Literal

import msgspec

from shared.events import (
    SKIPPED_MAX,
    ApprovalKind,
    Conflict,
    DraftOrigin,
    FailureKind,
    ForkOf,
    Head,
    Kept,
    PlanFault,
    Result,
    TaskReadied,
    Usage,
)
from shared.spec import (
    AgentSpec,
    CollabRules,
    DeliveryRules,
    Mode,
    PlanningMode,
    PlanSettings,
    PlanSpec,
    ProjectAgent,
    ResultPlace,
    TaskSpec,
    WorkRules,
)

PlanPhase = Literal["open", "paused", "cancelling"]
"""What a plan allows its tasks: to start, to wait, or only to end."""


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all commands."""


class Refused(Exception):
    """The state does not allow the command; the message tells a person why, and what would be allowed."""


class StaleLease(Refused):
    """The reporter's lease is over. Whoever gets this kills what it runs and stays silent."""


class Obsolete(Refused):
    """The dispatch that a runner wants to start was overtaken: its message can be acknowledged and forgotten."""


class Changed(Refused):
    """What the command was written for has changed meanwhile: look again, then decide again."""


class Held(Refused):
    """Another lease is live. Ask `runner` before superseding `lease`."""

    def __init__(self, runner: str, lease: int) -> None:
        super().__init__(f"runner {runner} holds it under lease {lease}")
        self.runner = runner
        self.lease = lease


# To a plan --------------------------------------------------------------------------------------------------------


class Request(Command, frozen=True, kw_only=True):
    """Wants candidates for a goal; see `PlanRequested`. Asking by hand again changes what is asked for."""

    count: int = 1
    """How many; by hand it is always one."""
    by_hand: bool = False
    goal: str
    project: str
    mode: Mode
    planning_mode: PlanningMode
    agents: tuple[ProjectAgent, ...]
    repo_url: str
    base_commit: str
    planner: AgentSpec | None = None
    budget_usd: float = 0.0
    timeout_s: float = 0.0
    auto_finalize: bool = False
    collab: CollabRules = CollabRules()


class FailDraft(Command, frozen=True, kw_only=True):
    """Reports that a candidate which was asked for did not come about."""

    candidate: str
    message: str
    faults: tuple[PlanFault, ...] = ()
    origin: DraftOrigin = DraftOrigin()


class Draft(Command, frozen=True, kw_only=True):
    """Adds a candidate, or puts another text in one's place."""

    candidate: str
    spec: PlanSpec
    repo_url: str
    base_commit: str
    project: str = ""
    replaces: str = ""
    """Digest of the candidate that its writer saw; empty: there must be none of that name."""
    origin: DraftOrigin = DraftOrigin()
    fork: ForkOf | None = None


class Finalize(Command, frozen=True, kw_only=True):
    """Chooses a candidate, for good."""

    candidate: str
    digest: str = ""
    """Of the candidate that its chooser saw; empty: whatever it is now."""
    settings: PlanSettings = PlanSettings()


class ConfirmFinalized(Command, frozen=True, kw_only=True):
    """All `planned` events of the choice are stored."""

    digest: str


class Pause(Command, frozen=True, kw_only=True):
    """Starts nothing new."""

    reason: str = ""


class Resume(Command, frozen=True, kw_only=True):
    """Starts again."""

    budget_usd: float | None = None
    """The plan's new budget; None: it stays."""


class CancelPlan(Command, frozen=True, kw_only=True):
    """Ends the plan."""

    reason: str = ""


class ConfirmCancelled(Command, frozen=True, kw_only=True):
    """Every task has ended."""


class CompletePlan(Command, frozen=True, kw_only=True):
    """`_deliver` is completed."""

    head_commit: str


class Extend(Command, frozen=True, kw_only=True):
    """Adds tasks to a plan that runs."""

    tasks: tuple[TaskSpec, ...]
    before: str = ""
    reason: str


class RecordFork(Command, frozen=True, kw_only=True):
    """Another plan was forked from this one."""

    plan: str
    seq: int


class Skip(Command, frozen=True, kw_only=True):
    """Leaves out an event that nobody can read; to a plan or to a task."""

    seq: int
    reason: str

    def is_new(self, skipped: tuple[int, ...]) -> bool:
        """Whether that is not said yet. Raises `Refused` where it is one too many."""
        if self.seq in skipped:
            return False
        if len(skipped) >= SKIPPED_MAX:
            raise Refused(
                f"{SKIPPED_MAX} events of it are left out already, and there can't be more: it was written by another "
                "Treadle, or something damages the log; run that Treadle, or start a new plan"
            )
        return True


PlanCommand = (
    Request
    | FailDraft
    | Draft
    | Finalize
    | ConfirmFinalized
    | Extend
    | Pause
    | Resume
    | CancelPlan
    | ConfirmCancelled
    | CompletePlan
    | RecordFork
    | Skip
)


# To a task --------------------------------------------------------------------------------------------------------


class PlanTask(Command, frozen=True, kw_only=True):
    """Writes the task down, while its plan is finalizing."""

    digest: str
    index: int
    spec: TaskSpec
    agent: AgentSpec | None


class Inherit(Command, frozen=True, kw_only=True):
    """Writes down a task that the plan's origin has completed, while its plan is finalizing."""

    digest: str
    index: int
    spec: TaskSpec
    agent: AgentSpec | None
    kept: Kept


class Ready(Command, frozen=True, kw_only=True):
    """Gives a manual task to its person; whoever sends it has found the task ready."""

    now: datetime
    revision: int
    prompt: str
    agent: AgentSpec
    base_commit: str
    heads: tuple[Head, ...]
    abandoned: tuple[str, ...]
    place: ResultPlace | None = None


class HandOut(Command, frozen=True, kw_only=True):
    """The person has begun a manual task that was readied: everything else is as `readied` has it."""

    phase: PlanPhase
    readied: TaskReadied
    project: str
    repo_url: str
    plan_name: str
    place: ResultPlace | None = None
    """The one of `readied`, with what lies there now."""
    note: str = ""


class Dispatch(Command, frozen=True, kw_only=True):
    """Opens an attempt; whoever sends it has found the task ready."""

    now: datetime
    revision: int
    """Of the task as the prompt was written for it."""
    prompt: str
    agent: AgentSpec | None
    project: str
    repo_url: str
    base_commit: str
    heads: tuple[Head, ...]
    abandoned: tuple[str, ...]
    plan_name: str
    setup: tuple[str, ...]
    env_allow: tuple[str, ...]
    rules: WorkRules = WorkRules()
    """What the plan and its project say; the task's own part is added."""
    delivery: DeliveryRules = DeliveryRules()


class Start(Command, frozen=True, kw_only=True):
    """Takes a dispatched attempt, or takes it over from a runner that did not answer."""

    phase: PlanPhase
    dispatch: int
    runner: str
    execution: str
    reopened: tuple[str, ...] = ()
    """Of the dispatch's `abandoned`, those that are not any more, or are to run again."""
    supersede_lease: int | None = None
    """The live lease whose runner was asked and did not answer."""
    lost_usage: Usage | None = None
    """That lease's last report; None: there is none, and all that it had reserved is charged."""
    seal_to: str = ""
    """The runner's public key; see `shared.sealed`."""
    deadline: datetime | None = None
    """Only of a manual task."""


class Release(Command, frozen=True, kw_only=True):
    """Hands an attempt back unspent."""

    lease: int | None
    reason: str
    lost: bool = False
    """Its runner died and came back: counts as a lost lease, or a task that kills its runner would run for ever."""
    usage: Usage | None = Usage()
    """None: it is not known, and all that the lease had reserved is charged."""


class Complete(Command, frozen=True, kw_only=True):
    """Reports success. A manual task's may come late: it still needs attention, and was not begun anew."""

    lease: int
    base_commit: str
    commit: str
    result: Result
    answer: str = ""
    usage: Usage


class FailWatch(Command, frozen=True, kw_only=True):
    """Reports that a manual task's result can't be looked for."""

    lease: int
    reason: str
    since: datetime


class RestoreWatch(Command, frozen=True, kw_only=True):
    """Reports that it can be looked for again."""

    now: datetime
    lease: int


class Decide(Command, frozen=True, kw_only=True):
    """What the reviews of a decision's newest round come to, where no further round follows."""

    approved: bool
    round: int
    reason: str


class RequestApproval(Command, frozen=True, kw_only=True):
    """Parks the attempt until a person has answered; ends the lease."""

    now: datetime
    phase: PlanPhase
    lease: int
    approval: str
    """`shared.approval.approval_hash`."""
    kind: ApprovalKind
    tool: str = ""
    input: str = ""
    why: str
    expires_at: datetime
    commit: str = ""
    base_commit: str = ""
    usage: Usage


class Approve(Command, frozen=True, kw_only=True):
    """A person says yes to exactly what they were shown."""

    now: datetime
    approval: str
    note: str = ""


class Deny(Command, frozen=True, kw_only=True):
    """A person says no, or time did."""

    approval: str
    note: str = ""
    now: datetime | None = None
    """Set by the dispatcher when the time for an answer is over; refused while it is not."""


class UseApproval(Command, frozen=True, kw_only=True):
    """The holder of the lease is about to run what was allowed."""

    lease: int
    approval: str


class Fail(Command, frozen=True, kw_only=True):
    """Reports any other end."""

    now: datetime
    phase: PlanPhase
    lease: int
    kind: FailureKind
    message: str
    usage: Usage
    retry_after_s: float | None = None
    """At the earliest, as whoever refused the work said."""
    jitter: float = 0.0
    """Random, 0 to 1: spreads retries by up to a quarter of their wait."""
    conflict: Conflict | None = None
    """Of a `merge_conflict`."""
    faults: tuple[PlanFault, ...] = ()
    blob: str = ""
    """Of an `invalid_result`."""


class CancelTask(Command, frozen=True, kw_only=True):
    """Stops a task: a person's wish for one, or the plan's end for all."""

    phase: PlanPhase
    reason: str = ""


class MarkComplete(Command, frozen=True, kw_only=True):
    """A person's word that the task is done."""

    note: str = ""


class Abandon(Command, frozen=True, kw_only=True):
    """A person gives the task up."""

    note: str = ""


class Edit(Command, frozen=True, kw_only=True):
    """A person changes what is to be done. The spec is valid, with the code and dependencies that the task has."""

    spec: TaskSpec
    agent: AgentSpec | None
    note: str = ""


class Redispatch(Command, frozen=True, kw_only=True):
    """A person wants another attempt."""

    note: str = ""


TaskCommand = (
    PlanTask
    | Inherit
    | Ready
    | HandOut
    | Dispatch
    | Start
    | Release
    | Complete
    | RequestApproval
    | Approve
    | Deny
    | UseApproval
    | Fail
    | FailWatch
    | RestoreWatch
    | Decide
    | CancelTask
    | MarkComplete
    | Abandon
    | Edit
    | Redispatch
    | Skip
)

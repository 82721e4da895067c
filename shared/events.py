"""What happened: every event that the log may hold, under its stored name and version.

An event is a fact in the past tense, frozen, and complete: whoever acts on it needs nothing else. The stored name is
`plan.<type>` or `task.<type>`; a class may be renamed, a stored name never. A change of shape gets a new version and
one pure upcast step from the old one (see CONTRIBUTING.md, "How to add an event").
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any, ClassVar, Literal

import msgspec

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

FailureKind = Literal[
    "agent_error",
    "setup_failed",
    "verification_failed",
    "authentication_refused",
    "usage_limit",
    "timeout",
    "budget_spent",
    "cancelled",
    "merge_conflict",
    "runner_lost",
    "unavailable",
    "invalid_result",
]
"""How an attempt may end, other than completed. `unavailable`: an overloaded model or a network that failed;
`invalid_result`: what a person delivered is not what was asked for."""


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all events. `name` is the stored name, `version` the shape's."""

    name: ClassVar[str]
    version: ClassVar[int] = 1


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an attempt consumed. Tokens are counts; money is US dollars."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cost_usd: float = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_read_tokens + other.cache_read_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
            self.cost_usd + other.cost_usd,
        )


class Head(msgspec.Struct, frozen=True, omit_defaults=True):
    """A task's finished work: what its successors are merged from."""

    task: str
    commit: str
    """Full object id."""
    plan: str = ""
    """Under whose refs it is stored, where that is not the plan itself: of a task that a fork has inherited."""


Severity = Literal["blocker", "major", "minor", "note"]
FINDINGS_MAX = 200


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that a review found."""

    message: str
    severity: Severity
    file: str = ""
    """Repository-relative path; empty: it concerns no one file."""
    line: int | None = None


class Review(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A verdict on a task's work."""

    approve: bool
    findings: tuple[Finding, ...] = ()
    """At most `FINDINGS_MAX`."""
    round: int = 1
    commit: str = ""
    """What it looked at: a review of another commit than the work's own does not count."""


class PlanFault(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that is wrong with a plan."""

    message: str
    task: str | None = None
    field: str | None = None
    line: int | None = None


class DraftOrigin(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a candidate comes from that nobody imported: all empty for one that somebody did."""

    draft: str = ""
    """The entity (`_draft-1`) under which an agent made it; its transcript is there too."""
    model: str = ""
    usage: Usage = Usage()
    duration_s: float = 0.0
    blob: str = ""
    """Object id of the file in the collaboration repository that it was taken from."""
    template: str = ""
    """Id of the template that it was made from."""


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a finished task says of itself; the same object as a manual task's `result.json`."""

    task_code: str
    summary: str
    artifacts: tuple[str, ...] = ()
    """Repository-relative paths of the files that the task changed, at most `ARTIFACTS_MAX`."""
    review: Review | None = None
    """Only of a task that reviews."""


ARTIFACTS_MAX = 200


class Kept(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a fork takes over of a task that was completed in the plan that it forks."""

    task: str
    plan: str
    """The one that did it, and under whose refs the commit is: not the forked one where that had inherited it too."""
    seq: int
    """Of the event that completed it there."""
    base_commit: str = ""
    commit: str = ""
    """Empty where the task had none: a person's word, or a decision."""
    result: Result | None = None
    answer: str = ""
    usage: Usage = Usage()
    """What all its attempts took there. It is the origin's, and counts in no budget of the fork."""


class ForkOf(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a plan comes from that goes on from a moment of another one."""

    plan: str
    seq: int
    """The moment: the last sequence of the log that counts."""
    kept: tuple[Kept, ...] = ()
    """In the new plan's own terms: whatever is in here is completed from its beginning."""


class Conflict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Work that can't be merged by itself."""

    files: tuple[str, ...]
    """Repository-relative paths, at most `ARTIFACTS_MAX`."""
    tasks: tuple[str, ...]
    """Whose work it is, in topological order."""


ApprovalKind = Literal["tool", "question", "result"]
"""A tool call that nobody allowed beforehand; the agent's own question; the finished work."""
APPROVAL_INPUT_MAX_BYTES = 1024 * 1024


# The plan -------------------------------------------------------------------------------------------------------


class PlanRequested(Event, frozen=True, kw_only=True):
    """Candidates are wanted for a goal: an agent makes them, or a person does (`by_hand`)."""

    name = "plan.requested"
    candidates: tuple[str, ...]
    """Names of those to come, numbers as text; each is drafted or failed by itself."""
    by_hand: bool = False
    goal: str
    project: str
    mode: Mode = "auto"
    planning_mode: PlanningMode = "balanced"
    agents: tuple[ProjectAgent, ...] = ()
    """Those that tasks may be given to."""
    repo_url: str
    base_commit: str
    planner: AgentSpec | None = None
    """Who makes the plan; None: a person."""
    budget_usd: float = 0.0
    """Of the making of one candidate."""
    timeout_s: float = 0.0
    auto_finalize: bool = False
    """Whether the only candidate is finalized as soon as it is there."""
    collab: CollabRules = CollabRules()
    """By hand: `<directory>/plan-<plan>.json` in it is watched."""


class PlanFailed(Event, frozen=True, kw_only=True):
    """A candidate that was asked for did not come about. One that is asked for by hand is still waited for."""

    name = "plan.failed"
    candidate: str
    message: str
    """For people: what happened, and what to do now."""
    faults: tuple[PlanFault, ...] = ()
    origin: DraftOrigin = DraftOrigin()


class PlanDrafted(Event, frozen=True, kw_only=True):
    """A candidate was accepted as valid. The first one opens the plan; one of a known name takes its place."""

    name = "plan.drafted"
    candidate: str
    spec: PlanSpec
    repo_url: str
    base_commit: str
    """Full object id that every task starts from; the code repository holds it."""
    project: str = ""
    """The gateway's id of the project; empty in plans that are older than projects."""
    origin: DraftOrigin = DraftOrigin()
    fork: ForkOf | None = None


class PlanFinalizing(Event, frozen=True, kw_only=True):
    """The choice of a candidate; from here on no other can win. One `task.planned` for each task follows."""

    name = "plan.finalizing"
    candidate: str
    digest: str
    count: int
    """Tasks to come, `_deliver` included."""
    settings: PlanSettings = PlanSettings()


class PlanFinalized(Event, frozen=True, kw_only=True):
    """Every task of the choice is in the log: the plan may run."""

    name = "plan.finalized"
    digest: str


class PlanExtended(Event, frozen=True, kw_only=True):
    """Tasks were added to a plan that runs. One `task.planned` for each follows, under the plan's digest."""

    name = "plan.extended"
    tasks: tuple[TaskSpec, ...]
    before: str = ""
    """The task that waits for the new ones too; it has not started."""
    reason: str


class PlanPaused(Event, frozen=True, kw_only=True):
    """Nothing new starts; what runs goes on."""

    name = "plan.paused"
    reason: str = ""


class PlanResumed(Event, frozen=True, kw_only=True):
    """Tasks start again."""

    name = "plan.resumed"
    budget_usd: float | None = None
    """The plan's new budget; None: it stays."""


class PlanCancelRequested(Event, frozen=True, kw_only=True):
    """Nothing starts any more and what runs is asked to stop."""

    name = "plan.cancel_requested"
    reason: str = ""


class PlanCancelled(Event, frozen=True, kw_only=True):
    """No task of the plan runs or will run."""

    name = "plan.cancelled"


class PlanCompleted(Event, frozen=True, kw_only=True):
    """The plan's branch holds everybody's work."""

    name = "plan.completed"
    head_commit: str


class PlanForked(Event, frozen=True, kw_only=True):
    """Another plan goes on from a moment of this one. Nothing changes here."""

    name = "plan.forked"
    plan: str
    """The new plan."""
    seq: int
    """The moment."""


class PlanSkipped(Event, frozen=True, kw_only=True):
    """An operator's word that an event of the plan's own, which nobody can read, is to be left out."""

    name = "plan.skipped"
    seq: int
    reason: str


# A task ---------------------------------------------------------------------------------------------------------


class TaskPlanned(Event, frozen=True, kw_only=True):
    """The task exists, once the plan's `finalized` with the same digest is in the log."""

    name = "task.planned"
    digest: str
    index: int
    """Place in the plan's topological order, from 0; ties keep the author's order."""
    spec: TaskSpec
    agent: AgentSpec | None = None
    """Who does it; None for `_deliver`."""


class TaskInherited(Event, frozen=True, kw_only=True):
    """The task exists and is completed already: the plan is a fork, and another one did it. Instead of `planned`."""

    name = "task.inherited"
    digest: str
    index: int
    spec: TaskSpec
    agent: AgentSpec | None = None
    kept: Kept


class TaskReadied(Event, frozen=True, kw_only=True):
    """A manual task may begin: its person finds here what they give to their own agent."""

    name = "task.readied"
    dispatch: int
    """The number that the dispatch will have."""
    attempt: int
    prompt: str
    agent: AgentSpec
    base_commit: str
    heads: tuple[Head, ...]
    abandoned: tuple[str, ...] = ()
    place: ResultPlace | None = None
    """Where the result will be looked for; None in plans that are older than the looking."""


class TaskDispatched(Event, frozen=True, kw_only=True):
    """An attempt was opened: this event is the message that a runner takes, and leaves it no choices."""

    name = "task.dispatched"
    dispatch: int
    """From 1, over the task's whole life: a message that is not of the newest dispatch is obsolete."""
    attempt: int
    """From 1; counts retries. A handed-back attempt is dispatched again under the same number."""
    prompt: str
    agent: AgentSpec | None
    project: str = ""
    """Whose git credentials the runner may ask for."""
    repo_url: str
    base_commit: str
    heads: tuple[Head, ...]
    """Merged onto `base_commit`, in this (topological) order."""
    abandoned: tuple[str, ...] = ()
    """Tasks before it whose being abandoned it rests on: each must still be when the task starts."""
    plan_name: str
    task_name: str
    setup: tuple[str, ...] = ()
    verify: tuple[str, ...] = ()
    env_allow: tuple[str, ...] = ()
    rules: WorkRules = WorkRules()
    delivery: DeliveryRules = DeliveryRules()
    """Only of `_deliver`."""
    place: ResultPlace | None = None
    """Only of a manual task."""
    note: str = ""
    """A person's, who handed it out."""
    timeout_s: float
    budget_usd: float
    """Of the whole attempt, however many leases it takes."""


class TaskStarted(Event, frozen=True, kw_only=True):
    """A lease was opened. Only its holder may report from now on."""

    name = "task.started"
    lease: int
    """From 1, over the task's whole life: the fence."""
    runner: str
    execution: str
    """Random id of this taking of the message: tells a repeated command from another runner process."""
    supersedes: int | None = None
    """The lease before, where it was lost: its runner did not answer."""
    resumes: int = 0
    """The lease whose conversation and files this one goes on with; 0: it starts afresh."""
    charged: Usage = Usage()
    """What the lost lease had consumed: its last report, or else all that it had reserved."""
    seal_to: str = ""
    """The runner's public key (X25519, base64url): the lease's credentials are sealed to it and to nobody else."""
    deadline: datetime | None = None
    """Only of a manual task: when its person is late."""


class TaskReleased(Event, frozen=True, kw_only=True):
    """The attempt was handed back unspent: by its runner (with its lease), or before any start."""

    name = "task.released"
    lease: int | None = None
    reason: str
    lost: bool = False
    """The lease was lost: its runner died, and handed back after it had come back."""
    usage: Usage = Usage()


class TaskCompleted(Event, frozen=True, kw_only=True):
    """The attempt succeeded and its commit is in the code repository under the lease's ref."""

    name = "task.completed"
    lease: int
    base_commit: str
    """What the agent started from: the plan's base merged with the heads. Of `_deliver` the plan's base alone: so
    the changes from it to `commit` are all of the plan's."""
    commit: str
    """Equal to `base_commit` when nothing was changed. Of a manual task: what its person named, or empty."""
    result: Result
    answer: str = ""
    """What the attempt said where that is what it was for (`WorkRules.answer`): a plan's or a review's JSON."""
    usage: Usage = Usage()


class TaskApprovalRequested(Event, frozen=True, kw_only=True):
    """The attempt waits for a person: its lease is over, what it had is saved."""

    name = "task.approval_requested"
    lease: int
    approval: str
    """Hash of the task, its attempt and lease, the tool and its input (`shared.approval`): an answer names it."""
    kind: ApprovalKind
    tool: str = ""
    input: str = ""
    """The call's input as JSON, or the question's; for people, and what the answer is bound to."""
    why: str
    expires_at: datetime
    """No answer until then is a denial."""
    commit: str = ""
    """For a result: where it is stored."""
    base_commit: str = ""
    usage: Usage = Usage()


class TaskApprovalGranted(Event, frozen=True, kw_only=True):
    """A person allows it, or answers the question in `note`."""

    name = "task.approval_granted"
    approval: str
    note: str = ""


class TaskApprovalDenied(Event, frozen=True, kw_only=True):
    """A person refuses it, or nobody answered in time."""

    name = "task.approval_denied"
    approval: str
    note: str = ""
    expired: bool = False


class TaskApprovalUsed(Event, frozen=True, kw_only=True):
    """The allowed call is about to run. It is allowed once: whoever takes over later has to ask again."""

    name = "task.approval_used"
    approval: str
    lease: int


class TaskFailed(Event, frozen=True, kw_only=True):
    """The attempt ended otherwise. `retry_at` is the verdict: a time, or None for a person's attention."""

    name = "task.failed"
    lease: int
    kind: FailureKind
    message: str
    """For people: what happened, and what to do now."""
    retry_at: datetime | None = None
    spent: bool = True
    """False: the attempt does not count against the task's limit (a usage limit that resets at a known time)."""
    conflict: Conflict | None = None
    """Of a `merge_conflict`."""
    faults: tuple[PlanFault, ...] = ()
    """Of a plan that could not be made valid."""
    blob: str = ""
    """Of an `invalid_result`: its object id; what else is put there is looked at again."""
    usage: Usage = Usage()


class TaskWatchFailed(Event, frozen=True, kw_only=True):
    """A manual task's result can't be looked for: nobody can say whether there is one, so its time stands still."""

    name = "task.watch_failed"
    lease: int
    reason: str
    since: datetime


class TaskWatchRestored(Event, frozen=True, kw_only=True):
    """It can be looked for again."""

    name = "task.watch_restored"
    lease: int
    deadline: datetime | None = None
    """The old one, and as much later as nobody could look; None: its time was over before."""


class TaskDecided(Event, frozen=True, kw_only=True):
    """The reviews of a decision's newest round were weighed: it is completed, or a person has to look."""

    name = "task.decided"
    approved: bool
    round: int
    reason: str


class TaskCancelRequested(Event, frozen=True, kw_only=True):
    """Somebody wants the task to stop. One that does not run is held for attention at once."""

    name = "task.cancel_requested"
    reason: str = ""


class TaskCancelled(Event, frozen=True, kw_only=True):
    """The plan was cancelled and this task will not run (any more)."""

    name = "task.cancelled"
    lease: int | None = None
    usage: Usage = Usage()


class TaskMarkedComplete(Event, frozen=True, kw_only=True):
    """A person says that the task is done. It has no commit of its own."""

    name = "task.marked_complete"
    note: str = ""


class TaskAbandoned(Event, frozen=True, kw_only=True):
    """A person gave the task up: its successors don't wait for it."""

    name = "task.abandoned"
    note: str = ""


class TaskEdited(Event, frozen=True, kw_only=True):
    """A person changed what is to be done; its code and what it depends on stay."""

    name = "task.edited"
    spec: TaskSpec
    agent: AgentSpec | None
    """None: a decision."""
    note: str = ""


class TaskRedispatchRequested(Event, frozen=True, kw_only=True):
    """A person wants another attempt."""

    name = "task.redispatch_requested"
    note: str = ""


class TaskSkipped(Event, frozen=True, kw_only=True):
    """An operator's word that an event of the task's, which nobody can read, is to be left out."""

    name = "task.skipped"
    seq: int
    reason: str


SKIPPED_MAX = 100
"""Events of one entity that may be left out."""


def skipped_with(skipped: tuple[int, ...], seq: int) -> tuple[int, ...]:
    """What an entity has had left out, with one event more: the newest ones, where a history says more than it may."""
    return (*skipped, seq)[-SKIPPED_MAX:]


REGISTRY: dict[str, type[Event]] = {
    event_type.name: event_type
    for event_type in (
        PlanRequested,
        PlanFailed,
        PlanDrafted,
        PlanFinalizing,
        PlanFinalized,
        PlanExtended,
        PlanPaused,
        PlanResumed,
        PlanCancelRequested,
        PlanCancelled,
        PlanCompleted,
        PlanForked,
        PlanSkipped,
        TaskPlanned,
        TaskInherited,
        TaskReadied,
        TaskDispatched,
        TaskReleased,
        TaskStarted,
        TaskCompleted,
        TaskApprovalRequested,
        TaskApprovalGranted,
        TaskApprovalDenied,
        TaskApprovalUsed,
        TaskFailed,
        TaskWatchFailed,
        TaskWatchRestored,
        TaskDecided,
        TaskCancelRequested,
        TaskCancelled,
        TaskMarkedComplete,
        TaskAbandoned,
        TaskEdited,
        TaskRedispatchRequested,
        TaskSkipped,
    )
}
"""Stored name → newest shape."""

UPCASTS: dict[tuple[str, int], Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""(stored name, version) → the pure step from that version's body to the next one's."""

_DECODERS = {name: msgspec.json.Decoder(event_type) for name, event_type in REGISTRY.items()}
_ENCODER = msgspec.json.Encoder(order="deterministic")


_DAMAGE = (RecursionError, AttributeError, LookupError, TypeError, ValueError)
"""What a damaged body makes of a decoder (endless nesting) or of an upcast (another shape than it was written for)."""


class UndecodableEvent(Exception):
    """A stored event that this code can't read: a newer version, an unknown name, or a damaged body."""


def encode(event: Event) -> bytes:
    """The stored body of an event."""
    return _ENCODER.encode(event)


def decode(name: str, version: int, body: bytes) -> Event:
    """Reads a stored event into its newest shape.

    Raises `UndecodableEvent` with the name and version in its message.
    """
    decoder = _DECODERS.get(name)
    if decoder is None:
        raise UndecodableEvent(f"unknown event {name!r} (version {version}): it was written by a newer Treadle")
    newest = REGISTRY[name].version
    if version > newest:
        raise UndecodableEvent(f"{name} version {version} was written by a newer Treadle (this one knows {newest})")
    try:
        if version == newest:
            return decoder.decode(body)
        raw = msgspec.json.decode(body)
        for older in range(version, newest):
            raw = UPCASTS[name, older](raw)
        return msgspec.convert(raw, REGISTRY[name])
    except (msgspec.MsgspecError, *_DAMAGE) as error:
        raise UndecodableEvent(f"{name} version {version} can't be read: {error}") from error

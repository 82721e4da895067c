"""The task: its state and what each event makes of it. What a command does to it is in `shared.task_decisions`.

    pending → (readied →) queued → running → completed
       ↑         ├─released─┤  └→ retry_wait | needs_attention
       └─────────┴──────────┘

`readied` is for manual tasks: a person decides when it is dispatched, and while it runs it is theirs alone. A decision
is never dispatched: reviews complete it, or a person does.

ARCHITECTURE.md holds the whole table state × event. Two numbers guard against the past: `dispatch` tells an obsolete
message, `lease` an obsolete runner.
"""

from datetime import datetime
from typing import Any, Literal

import msgspec

from shared import events as e
from shared.spec import AgentSpec, ResultPlace, TaskSpec

TaskStatus = Literal[
    "absent",
    "pending",
    "readied",
    "queued",
    "running",
    "awaiting_approval",
    "retry_wait",
    "needs_attention",
    "cancelling",
    "completed",
    "cancelled",
    "abandoned",
]

FINAL: frozenset[TaskStatus] = frozenset({"completed", "cancelled"})
IN_FLIGHT: frozenset[TaskStatus] = frozenset({"queued", "running", "cancelling"})
"""What `max_parallel` bounds."""
LEASED: frozenset[TaskStatus] = frozenset({"running", "cancelling"})


class Approval(msgspec.Struct, frozen=True):
    """What a person was asked, and what they said."""

    approval: str
    lease: int
    """Whose call it was."""
    kind: e.ApprovalKind
    tool: str
    input: str
    why: str
    expires_at: datetime
    commit: str = ""
    base_commit: str = ""
    answer: Literal["", "granted", "denied"] = ""
    note: str = ""
    expired: bool = False
    used_by: int = 0
    """The lease that ran what was allowed, or was about to."""


class TaskState(msgspec.Struct, frozen=True, gc=False):
    """The fold of a task's events.

    Nothing in it can lead back to it, so the garbage collector need not look: with histories of thousands of tasks in
    memory that halves the time of whoever is unlucky.
    """

    status: TaskStatus = "absent"
    spec: TaskSpec | None = None
    agent: AgentSpec | None = None
    digest: str = ""
    inherited: str = ""
    """The plan that has done it, where a fork has taken it over."""
    index: int = -1
    revision: int = 0
    """How often it was edited."""
    dispatch: int = 0
    """Number of the newest dispatch."""
    attempt: int = 0
    """Number of the newest attempt."""
    attempt_open: bool = False
    """The newest attempt was not spent: the next dispatch continues it."""
    tries: int = 0
    """Attempts spent since a person last asked for one."""
    lease: int = 0
    """Number of the newest lease."""
    lost: int = 0
    """Leases lost in this attempt."""
    spent_usd: float = 0.0
    """What the attempt's leases cost so far."""
    left_by: int = 0
    """The lease whose conversation and files the next one goes on with; 0: it starts afresh."""
    approval: Approval | None = None
    """What the newest attempt asked for last."""
    runner: str = ""
    execution: str = ""
    reopening: bool = False
    """Abandoned, but a person wants another attempt: no successor may start on the strength of the abandoning."""
    retry_at: datetime | None = None
    commit: str = ""
    kind: e.FailureKind | None = None
    message: str = ""
    conflict: e.Conflict | None = None
    """Of the failure that `kind` names."""
    faults: tuple[e.PlanFault, ...] = ()
    """Likewise."""
    place: ResultPlace | None = None
    """Where a manual task's result is looked for."""
    deadline: datetime | None = None
    """When the person who does it is late; stands still while nobody can look."""
    watch_fault: str = ""
    """Why nobody can look for its result."""
    watch_fault_since: datetime | None = None
    blob: str = ""
    """Object id of the last result that was none."""
    review: e.Review | None = None
    answer: str = ""
    persons_lease: int = 0
    """The newest lease that was a person's: one that a runner lost is over, whoever does the task now."""
    rounds_granted: int = 0
    """Of a decision: review rounds beyond its own, each by a person's wish."""
    is_refused: bool = False
    """Of a decision: it was weighed, and not approved, since a person last asked."""
    summary: str = ""
    usage: e.Usage = e.Usage()
    """Of all attempts so far."""
    skipped: tuple[int, ...] = ()
    """Its events that nobody can read and that are left out by an operator's word."""

    @property
    def satisfied(self) -> bool:
        """Whether successors may go ahead."""
        return self.status == "completed" or (self.status == "abandoned" and not self.reopening)

    @property
    def is_manual(self) -> bool:
        """Whether a person does it."""
        return self.agent is not None and not self.agent.is_auto

    @property
    def is_decision(self) -> bool:
        """Whether nobody does it."""
        return self.spec is not None and self.spec.is_decision

    @property
    def is_by_hand(self) -> bool:
        """Whether it is in a person's hands now, and so in no runner's."""
        return self.status in ("queued", "running") and self.is_manual

    @property
    def may_come_late(self) -> bool:
        """Whether its person's result is still welcome, though it needs attention."""
        if not self.is_manual or self.status != "needs_attention" or self.kind == "cancelled":
            return False
        return self.lease == self.persons_lease > 0


INITIAL = TaskState()
_UNWATCHED: dict[str, Any] = {"deadline": None, "watch_fault": "", "watch_fault_since": None}


def evolve(state: TaskState, event: e.Event) -> TaskState:
    """The state after `event`. Pure and total: an event in the log did happen, whatever the state was."""
    replace = msgspec.structs.replace
    match event:
        case e.TaskPlanned():
            return replace(
                state,
                status="pending",
                spec=event.spec,
                agent=event.agent,
                digest=event.digest,
                index=event.index,
            )
        case e.TaskInherited():
            kept = event.kept
            return replace(
                state,
                status="completed",
                spec=event.spec,
                agent=event.agent,
                digest=event.digest,
                index=event.index,
                inherited=kept.plan,
                commit=kept.commit,
                summary=kept.result.summary if kept.result else "",
                review=kept.result.review if kept.result else None,
                answer=kept.answer,
            )
        case e.TaskReadied() | e.TaskDispatched():
            return replace(
                state,
                status="readied" if isinstance(event, e.TaskReadied) else "queued",
                dispatch=event.dispatch,
                attempt=event.attempt,
                attempt_open=True,
                lost=state.lost if state.attempt_open else 0,
                spent_usd=state.spent_usd if state.attempt_open else 0.0,
                approval=state.approval if state.attempt_open else None,
                reopening=False,
                retry_at=None,
                kind=None,
                message="",
                faults=(),
                place=_place(state, event),
                **_UNWATCHED,
            )
        case e.TaskStarted():
            return replace(
                _charged(state, event.charged),
                status="running",
                lease=event.lease,
                lost=state.lost + (event.supersedes is not None),
                runner=event.runner,
                execution=event.execution,
                left_by=event.lease,
                persons_lease=event.lease if state.is_manual else state.persons_lease,
                deadline=event.deadline,
            )
        case e.TaskReleased():
            state = _charged(state, event.usage)
            if state.status == "cancelling":
                return replace(state, status="needs_attention", runner="", kind="cancelled", attempt_open=False)
            return replace(state, status="pending", lost=state.lost + event.lost, runner="", message=event.reason)
        case e.TaskCompleted():
            return replace(
                state,
                status="completed",
                runner="",
                commit=event.commit,
                summary=event.result.summary,
                review=event.result.review,
                answer=event.answer,
                usage=state.usage + event.usage,
                kind=None,
                message="",
                faults=(),
                **_UNWATCHED,
            )
        case e.TaskApprovalRequested():
            return replace(
                _charged(state, event.usage),
                status="awaiting_approval",
                runner="",
                message=event.why,
                approval=Approval(
                    event.approval,
                    event.lease,
                    event.kind,
                    event.tool,
                    event.input,
                    event.why,
                    event.expires_at,
                    event.commit,
                    event.base_commit,
                ),
            )
        case e.TaskApprovalGranted():
            return replace(state, status="pending", message="", approval=_answered(state, "granted", event.note))
        case e.TaskApprovalDenied():
            answered = _answered(state, "denied", event.note, expired=event.expired)
            return replace(state, status="pending", message="", approval=answered)
        case e.TaskApprovalUsed():
            used = state.approval and replace(state.approval, used_by=event.lease)
            return replace(state, approval=used)
        case e.TaskFailed():
            return replace(
                state,
                status="retry_wait" if event.retry_at else "needs_attention",
                attempt_open=False,
                tries=state.tries + event.spent,
                runner="",
                retry_at=event.retry_at,
                kind=event.kind,
                message=event.message,
                usage=state.usage + event.usage,
                conflict=event.conflict,
                faults=event.faults,
                blob=event.blob or state.blob,
                deadline=None,
                # What waited for a limit to lift goes on where it was; what failed is tried afresh.
                left_by=0 if event.spent else state.left_by,
            )
        case e.TaskWatchFailed():
            return replace(state, watch_fault=event.reason, watch_fault_since=event.since)
        case e.TaskWatchRestored():
            return replace(state, watch_fault="", watch_fault_since=None, deadline=event.deadline)
        case e.TaskDecided():
            if event.approved:
                return replace(state, status="completed", reopening=False, summary=event.reason, message="")
            refused = replace(state, status="needs_attention", reopening=False, is_refused=True)
            return replace(refused, kind=None, message=event.reason)
        case e.TaskCancelRequested():
            if state.status == "running" and not state.is_manual:
                return replace(state, status="cancelling", message=event.reason)
            return replace(
                state,
                status="needs_attention",
                attempt_open=False,
                left_by=0,
                retry_at=None,
                **_UNWATCHED,
                kind="cancelled",
                message=event.reason or "cancelled by a person",
            )
        case e.TaskCancelled():
            usage = state.usage + event.usage
            return replace(state, status="cancelled", runner="", retry_at=None, usage=usage, **_UNWATCHED)
        case e.TaskMarkedComplete():
            ended = replace(state, status="completed", reopening=False, retry_at=None, **_UNWATCHED)
            return replace(ended, summary=event.note, message="")
        case e.TaskAbandoned():
            ended = replace(state, status="abandoned", reopening=False, attempt_open=False, retry_at=None)
            return replace(ended, message=event.note, **_UNWATCHED)
        case e.TaskEdited():
            edited = replace(state, spec=event.spec, agent=event.agent, revision=state.revision + 1, left_by=0)
            # What its person was given no longer holds: the dispatcher writes it anew.
            return replace(edited, status="pending") if state.status == "readied" else edited
        case e.TaskRedispatchRequested():
            asked = replace(state, tries=0, lost=0, rounds_granted=state.rounds_granted + state.is_refused)
            if state.status == "abandoned":
                return replace(asked, reopening=True, is_refused=False)
            again = replace(asked, status="pending", attempt_open=False, is_refused=False)
            return replace(again, left_by=0, retry_at=None)
        case e.TaskSkipped():
            return replace(state, skipped=e.skipped_with(state.skipped, event.seq))
        case _:
            raise TypeError(f"{type(event).__name__} is not an event of a task")


def _place(state: TaskState, event: e.TaskReadied | e.TaskDispatched) -> ResultPlace | None:
    """Where its result is looked for. Once readied anew, with what the last handing-out found there."""
    if isinstance(event, e.TaskDispatched) or event.place is None or state.place is None:
        return event.place
    return msgspec.structs.replace(event.place, blob=state.place.blob)


def _charged(state: TaskState, usage: e.Usage) -> TaskState:
    """With what a lease consumed that ended without ending its attempt."""
    return msgspec.structs.replace(state, usage=state.usage + usage, spent_usd=state.spent_usd + usage.cost_usd)


def _answered(
    state: TaskState, answer: Literal["granted", "denied"], note: str, *, expired: bool = False
) -> Approval | None:
    return state.approval and msgspec.structs.replace(state.approval, answer=answer, note=note, expired=expired)


def timer(state: TaskState) -> datetime | None:
    """When something happens to the task by itself: a retry, the end of the wait for an answer or for a person."""
    if state.status == "retry_wait":
        return state.retry_at
    if state.status == "running":
        return None if state.watch_fault else state.deadline
    return state.approval.expires_at if state.status == "awaiting_approval" and state.approval else None


def may_cost_usd(state: TaskState) -> float:
    """The most that the task's attempt may still cost; programs and people cost nothing."""
    if state.spec is None or state.agent is None or state.agent.sdk_type != "claude":
        return 0.0
    return max(0.0, state.spec.budget_usd - (state.spent_usd if state.attempt_open else 0.0))

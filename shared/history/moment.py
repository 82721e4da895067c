"""How a plan stood at a moment: everything that people look at, made from a board and some facts beside it."""

from collections import Counter
from datetime import datetime

import msgspec

from shared.board import Board, Standing
from shared.events import PlanDrafted, TaskStarted, Usage
from shared.plan import PlanStatus
from shared.skipped import take
from shared.spec import DELIVER, MAX_PARALLEL
from shared.store import Recorded
from shared.subjects import DELIVER_POOL, MANUAL_POOL, PLAN, is_draft
from shared.task import INITIAL, LEASED, TaskState, TaskStatus

WAITS_FOR_MAX = 10


class ForkLink(msgspec.Struct, frozen=True):
    """Another plan, and the moment at which the two part."""

    plan: str
    seq: int


class LeaseMoment(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody at work."""

    task: str
    """Or the making of a candidate, `_draft-1`."""
    lease: int
    runner: str
    """Empty: a person."""
    since: datetime


class TaskMoment(msgspec.Struct, frozen=True, gc=False):
    """A task as it stood. As in `TaskState`, there is nothing for the garbage collector."""

    code: str
    name: str
    agent: str
    """Empty for `_deliver`."""
    depends_on: tuple[str, ...]
    """None for `_deliver`, which waits for all others."""
    status: TaskStatus
    since: datetime
    """When it came into that status."""
    seq: int
    """Of the task's newest event by then."""
    attempt: int
    lease: int
    runner: str
    commit: str
    """Its head: what it ended with."""
    base_commit: str
    """What that was started from. Of `_deliver` the plan's own, so that between the two lies all that it changed."""
    usage: Usage
    cost_usd: float
    waits_for: tuple[str, ...]
    """Predecessors that had not ended, the first `WAITS_FOR_MAX`; only while it was pending."""
    message: str
    inherited: str
    """The plan that did it, where a fork took it over."""


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """A plan as it stood right after one of its events."""

    plan: str
    name: str
    seq: int
    time: datetime
    entity: str
    """Whose event it was: a task's code, or `_plan`."""
    type: str
    status: PlanStatus
    standing: Standing
    reason: str
    fault: str
    """Set where an event by then could not be read or folded: what is shown leaves it out."""
    fault_seq: int
    """That event's sequence; 0: there is none."""
    branch: str
    head_commit: str
    forked_from: ForkLink | None
    forks: tuple[ForkLink, ...]
    counts: dict[TaskStatus, int]
    """Tasks by status, `_deliver` included; empty until the plan is finalized."""
    queue: dict[str, int]
    """Tasks that waited to be taken, by runner pool."""
    running: tuple[LeaseMoment, ...]
    usage: Usage
    """Of its tasks."""
    planning_usage: Usage
    """Of making its candidates, which is not of its budget."""
    cost_usd: float
    budget_usd: float | None
    committed_usd: float
    """What its tasks had cost, and what those in flight might still cost."""
    max_parallel: int | None
    tasks: tuple[TaskMoment, ...]
    """In topological order; none until the plan is finalized."""


class Facts:
    """What people want to know beside the board, kept up event by event."""

    def __init__(self) -> None:
        self.name = ""
        self.since: dict[str, datetime] = {}
        """By entity, when it came into its status."""
        self.started: dict[str, datetime] = {}
        """By entity, when its newest lease began."""
        self.bases: dict[str, str] = {}
        """By task, what its commit was started from."""
        self.usage = Usage()
        self.planning_usage = Usage()

    def copy(self) -> "Facts":
        """Others that go their own way from here."""
        other = Facts()
        other.__dict__.update(self.__dict__)
        other.since, other.started, other.bases = self.since.copy(), self.started.copy(), self.bases.copy()
        return other

    def note(self, record: Recorded, before: TaskState, after: TaskState) -> None:
        """Takes up a readable event of a task or of a candidate's making, with the states around it."""
        event, entity = record.event, record.entity
        if after.status != before.status or entity not in self.since:
            self.since[entity] = record.time
        if isinstance(event, TaskStarted):
            self.started[entity] = record.time
            used: Usage = event.charged
        else:
            used = getattr(event, "usage", _NOTHING)
        if used != _NOTHING:
            if is_draft(entity):
                self.planning_usage += used
            else:
                self.usage += used
        base = getattr(event, "base_commit", "")
        if after.commit and after.commit != before.commit:
            self.bases[entity] = base or getattr(getattr(event, "kept", None), "base_commit", "")

    def note_plan(self, record: Recorded) -> None:
        """Takes up an event of the plan's own."""
        if isinstance(record.event, PlanDrafted) and not self.name:
            self.name = record.event.spec.name


_NOTHING = Usage()


def apply(board: Board, facts: Facts, record: Recorded) -> None:
    """Folds the plan's next event into both. What can't be read or folded is the board's fault; nothing is raised."""
    entity = record.entity
    if entity == PLAN:
        take(board, record)
        facts.note_plan(record)
        return
    known = board.drafts if is_draft(entity) else board.tasks
    before = known.get(entity, INITIAL)
    take(board, record)
    after = known.get(entity)
    if after is not None and (after is not before or entity not in facts.since):
        facts.note(record, before, after)


def moment(board: Board, facts: Facts, last: Recorded) -> Moment:
    """How the plan stands right after `last`, which is folded into both. Pure."""
    state = board.plan
    candidate = state.chosen or next(iter(state.candidates.values()), None)
    fork = candidate.fork if candidate else None
    spec = candidate.spec if candidate else None
    return Moment(
        plan=last.plan,
        name=spec.name if spec else facts.name,
        seq=last.seq,
        time=last.time,
        entity=last.entity,
        type=last.type,
        status=state.status,
        standing=board.standing(),
        reason=state.reason,
        fault=board.fault,
        fault_seq=board.fault_seq,
        branch=f"treadle/{last.plan}",
        head_commit=state.head_commit,
        forked_from=ForkLink(fork.plan, fork.seq) if fork else None,
        forks=tuple(ForkLink(one.plan, one.seq) for one in state.forks),
        counts={status: count for status, count in board.counts.items() if count} if board.visible else {},
        queue=_queue(board),
        running=_running(board, facts),
        usage=facts.usage,
        planning_usage=facts.planning_usage,
        cost_usd=facts.usage.cost_usd,
        budget_usd=spec.budget_usd if spec else None,
        committed_usd=board.committed_usd,
        max_parallel=(spec.max_parallel or MAX_PARALLEL) if spec else None,
        tasks=_tasks(board, facts),
    )


def _tasks(board: Board, facts: Facts) -> tuple[TaskMoment, ...]:
    try:
        missing = board.first_missing(WAITS_FOR_MAX)
        return tuple(_task(board, facts, code, missing.get(code, ())) for code in board.codes)
    except LookupError:
        if board.fault:  # where what lies before them could not be folded they need not fit together
            return ()
        raise


def _task(board: Board, facts: Facts, code: str, missing: tuple[str, ...]) -> TaskMoment:
    state = board.tasks[code]
    spec, usage = state.spec, state.usage
    # By place, in the order of the fields: by name takes four times as long, and a plan can have 20,000 tasks.
    return TaskMoment(
        code,
        spec.name if spec else "",
        spec.assignee if spec else "",
        () if code == DELIVER else board.depends_on(code),
        state.status,
        facts.since[code],
        board.seqs[code],
        state.attempt,
        state.lease,
        state.runner,
        state.commit,
        facts.bases.get(code, ""),
        usage,
        usage.cost_usd,
        missing if state.status == "pending" else (),
        state.message,
        state.inherited,
    )


def _queue(board: Board) -> dict[str, int]:
    queued: Counter[str] = Counter()
    for code, state in (*board.tasks.items(), *board.drafts.items()):
        if state.status == "queued":
            queued[_pool(code, state)] += 1
    return dict(sorted(queued.items()))


def _pool(code: str, state: TaskState) -> str:
    if state.agent is None:
        return DELIVER_POOL
    return state.agent.sdk_type or MANUAL_POOL


def _running(board: Board, facts: Facts) -> tuple[LeaseMoment, ...]:
    return tuple(
        LeaseMoment(task=code, lease=state.lease, runner=state.runner, since=facts.started[code])
        for code, state in (*board.drafts.items(), *board.tasks.items())
        if state.status in LEASED and code in facts.started
    )

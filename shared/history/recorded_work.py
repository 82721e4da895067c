"""What a history says of the work itself, whatever decided it: how long each attempt took, what it cost, how it ended,
how long people took to answer, and how quick dispatcher and runners were. A rehearsal goes on with these.
"""

from bisect import bisect_left
from collections import defaultdict
from datetime import datetime, timedelta
from itertools import accumulate
from typing import Literal

import msgspec

from shared import events as e
from shared import task
from shared.board import Board
from shared.store import Recorded
from shared.subjects import PLAN, is_draft, pool


class LeaseRun(msgspec.Struct):
    """One lease."""

    started: datetime
    lasted_s: float | None = None
    """None: nobody knows, since the record ends before it did."""
    end: e.Event | None = None
    """None: it was lost, and another one took over."""
    usage: e.Usage = e.Usage()
    retry_after_s: float | None = None
    jitter: float = 0.0
    arrivals: list[tuple[float, e.Event]] = []
    """Of a person's: what came in, by seconds since it began."""


class Run(msgspec.Struct):
    """What came of a dispatch that was taken."""

    dispatched: datetime
    pool: str
    timeout_s: float
    budget_usd: float
    leases: list[LeaseRun] = []
    pickup_s: float = 0.0
    """From when somebody was free to take it to the start."""


StepKind = Literal["command", "extend", "merged"]


class Step(msgspec.Struct, frozen=True):
    """What a person did, or the dispatcher about a conflict, to a task in a certain state."""

    status: task.TaskStatus
    after_s: float
    """Since the task's event before, or, of `merged`, since its merging ended."""
    event: e.Event
    kind: StepKind = "command"


class TaskWork(msgspec.Struct):
    """All that the history says of one task's work, in the order in which it was."""

    reactions_s: list[float] = []
    """From what made the task ready to what the dispatcher stored."""
    runs: list[Run] = []
    steps: list[Step] = []
    outcomes: list[e.Event] = []
    """Of a decision: its rounds and verdicts."""
    first_dispatched: datetime | None = None
    ended: datetime | None = None
    """When its successors could go ahead, for the last time."""
    attempts: int = 0
    stopping_s: float = 0.0
    """From the wish to cancel the plan to when the task's holder had stopped."""

    def run(self, number: int) -> Run | None:
        """The run with that number, from 0; a further one than there was repeats the last that ended an attempt."""
        if number < len(self.runs):
            return self.runs[number]
        ended = (r for r in reversed(self.runs) if isinstance(r.leases[-1].end, e.TaskCompleted | e.TaskFailed))
        return next(ended, None)


class PlanStep(msgspec.Struct, frozen=True):
    """What a person did to the plan."""

    after_s: float
    """Since the plan was finalized; of what followed a pause for the budget's sake, since that."""
    event: e.Event


class RecordedWork(msgspec.Struct):
    """A plan's work."""

    began: datetime
    """When it was finalized."""
    seq: int
    """Of that event."""
    board: Board
    """In the end."""
    tasks: dict[str, TaskWork]
    steps: list[PlanStep]
    resumed: list[PlanStep]
    """After pauses for the budget's sake."""
    slots: dict[str, int]
    """Pool → how many of its tasks ran at once, where others had to wait for them."""
    ended: datetime
    """Of the last event."""
    completing_s: float = 0.0
    """From the end of `_deliver`, or of the last task of a plan that is cancelled, to the plan's."""
    in_flight_most: int = 0


class Recorder:
    """Takes in the events of a plan from its beginning, in order; `work` is what they come to."""

    def __init__(self) -> None:
        self.board = Board()
        self._times: dict[int, datetime] = {}
        """Of every event: what the dispatcher answered to is found by its sequence."""
        self._newest: dict[str, datetime] = {}
        self._began: tuple[datetime, int] | None = None
        self._last: datetime | None = None
        self._tasks: defaultdict[str, TaskWork] = defaultdict(TaskWork)
        self._dispatched: dict[str, tuple[datetime, e.TaskDispatched]] = {}
        self._steps: list[PlanStep] = []
        self._resumed: list[PlanStep] = []
        self._paused_for_budget: datetime | None = None
        self._completing_s = 0.0
        self._cancelling_since: datetime | None = None
        self._most = 0
        self._by_hand = 0

    def add(self, record: Recorded) -> None:
        """Raises `ValueError` for an event that can't be read."""
        if record.event is None:
            raise ValueError(f"event {record.seq} can't be read: {record.fault}")
        self._times[record.seq] = self._last = record.time
        if record.entity == PLAN:
            self._add_plans(record, record.event)
        elif not is_draft(record.entity):
            self._add_tasks(record, record.event)
        before = self.board.tasks.get(record.entity, task.INITIAL)
        self.board.apply(record.entity, record.event, record.seq)
        if record.entity in self.board.tasks:
            self._by_hand += self.board.tasks[record.entity].is_by_hand - before.is_by_hand
            self._note_end(record)
            self._newest[record.entity] = record.time
        self._most = max(self._most, sum(self.board.counts[s] for s in task.IN_FLIGHT) - self._by_hand)

    def work(self) -> RecordedWork | None:
        """None where the plan was never finalized."""
        if self._began is None or self._last is None:
            return None
        runs = [run for work in self._tasks.values() for run in work.runs]
        return RecordedWork(
            began=self._began[0],
            seq=self._began[1],
            board=self.board,
            tasks=dict(self._tasks),
            steps=self._steps,
            resumed=self._resumed,
            slots=_slots(runs),
            ended=self._last,
            completing_s=self._completing_s,
            in_flight_most=self._most,
        )

    # The plan's own -----------------------------------------------------------------------------------------------

    def _add_plans(self, record: Recorded, event: e.Event) -> None:
        if isinstance(event, e.PlanFinalized):
            self._began = (record.time, record.seq)
        if self._began is None:
            return
        if isinstance(event, e.PlanCancelRequested):
            self._cancelling_since = record.time
        match event:
            case e.PlanExtended() if event.before in self.board.tasks:
                self._add_extension(record, event)
            case e.PlanPaused() if record.meta.actor == "dispatcher" and self.board.over_budget():
                self._paused_for_budget = record.time
            case e.PlanResumed() if self._paused_for_budget is not None:
                after_s = (record.time - self._paused_for_budget).total_seconds()
                self._resumed.append(PlanStep(after_s, event))
                self._paused_for_budget = None
            case e.PlanPaused() | e.PlanResumed() | e.PlanCancelRequested():
                self._steps.append(PlanStep((record.time - self._began[0]).total_seconds(), event))
            case e.PlanCompleted() | e.PlanCancelled():
                self._completing_s = self._reaction_s(record, None)

    def _add_extension(self, record: Recorded, event: e.PlanExtended) -> None:
        state, work = self.board.tasks[event.before], self._tasks[event.before]
        if state.is_decision:
            work.outcomes.append(event)
            work.reactions_s.append(self._reaction_s(record, state))
        else:
            after_s = (record.time - self._newest[event.before]).total_seconds()
            work.steps.append(Step(state.status, after_s, event, "extend"))

    # A task's -----------------------------------------------------------------------------------------------------

    def _add_tasks(self, record: Recorded, event: e.Event) -> None:
        code = record.entity
        state, work = self.board.tasks.get(code, task.INITIAL), self._tasks[code]
        match event:
            case e.TaskReadied():
                work.reactions_s.append(self._reaction_s(record, state))
            case e.TaskDispatched():
                self._dispatched[code] = (record.time, event)
                work.first_dispatched = work.first_dispatched or record.time
                if state.status == "readied":
                    work.steps.append(self._step(record, state, event))
                else:
                    work.reactions_s.append(self._reaction_s(record, state))
            case e.TaskStarted():
                self._add_start(record, event, state, work)
            case e.TaskDecided():
                work.outcomes.append(event)
                work.reactions_s.append(self._reaction_s(record, state))
            case (
                e.TaskApprovalGranted()
                | e.TaskMarkedComplete()
                | e.TaskAbandoned()
                | e.TaskEdited()
                | e.TaskRedispatchRequested()
            ):
                if not (isinstance(event, e.TaskAbandoned) and record.meta.actor == "dispatcher"):
                    work.steps.append(self._step(record, state, event))
            case e.TaskApprovalDenied() if not event.expired:
                work.steps.append(self._step(record, state, event))
            case e.TaskCancelRequested() if state.status not in task.LEASED and self.board.plan.phase != "cancelling":
                work.steps.append(self._step(record, state, event))
            case (
                e.TaskCompleted()
                | e.TaskFailed()
                | e.TaskReleased()
                | e.TaskApprovalRequested()
                | e.TaskCancelled()
                | e.TaskWatchFailed()
                | e.TaskWatchRestored()
            ):
                self._add_end(record, event, state, work)

    def _step(self, record: Recorded, state: task.TaskState, event: e.Event) -> Step:
        since = self._newest.get(record.entity, record.time)
        kind: StepKind = "command"
        if isinstance(event, e.TaskRedispatchRequested) and record.meta.actor == "dispatcher":
            merges = [t.code for t in self.board.plan.added if t.resolves == record.entity]
            kind = "merged"
            since = max((self._newest[code] for code in merges if code in self._newest), default=since)
        return Step(state.status, max(0.0, (record.time - since).total_seconds()), event, kind)

    def _add_start(self, record: Recorded, event: e.TaskStarted, state: task.TaskState, work: TaskWork) -> None:
        dispatched, dispatch = self._dispatched[record.entity]
        if event.supersedes is None or not work.runs:
            work.runs.append(
                Run(
                    dispatched=dispatched,
                    pool=pool(dispatch),
                    timeout_s=dispatch.timeout_s,
                    budget_usd=dispatch.budget_usd,
                )
            )
        else:
            _close(work.runs[-1].leases[-1], record.time, None, event.charged)
        work.runs[-1].leases.append(LeaseRun(started=record.time))

    def _add_end(self, record: Recorded, event: e.Event, state: task.TaskState, work: TaskWork) -> None:
        if not work.runs or not work.runs[-1].leases or getattr(event, "lease", None) is None:
            return
        lease = work.runs[-1].leases[-1]
        if state.is_manual and not isinstance(event, e.TaskCancelled | e.TaskReleased):
            is_late = isinstance(event, e.TaskFailed) and event.kind == "timeout"
            if not is_late:  # time says that by itself
                lease.arrivals.append(((record.time - lease.started).total_seconds(), event))
        if state.status not in task.LEASED:
            return
        if state.status == "cancelling" and self._cancelling_since is not None:
            work.stopping_s = max(0.0, (record.time - self._cancelling_since).total_seconds())
        lost = isinstance(event, e.TaskCancelled) or record.meta.command == "Start"
        _close(lease, record.time, None if lost else event, getattr(event, "usage", e.Usage()))
        if isinstance(event, e.TaskFailed):
            said = _said(record.meta.given)
            lease.retry_after_s, lease.jitter = said.retry_after_s, said.jitter
            if not event.spent and event.retry_at is not None and lease.retry_after_s is None:
                lease.retry_after_s = (event.retry_at - record.time).total_seconds()

    def _note_end(self, record: Recorded) -> None:
        state = self.board.tasks[record.entity]
        self._tasks[record.entity].ended = record.time if state.satisfied else None
        self._tasks[record.entity].attempts = state.attempt

    def _reaction_s(self, record: Recorded, state: task.TaskState | None) -> float:
        """How long the dispatcher took, from the event or the time that it answered to."""
        since = self._times.get(record.meta.causation, record.time)
        if state is not None and state.retry_at is not None:
            since = max(since, state.retry_at)
        return max(0.0, (record.time - since).total_seconds())


class _Said(msgspec.Struct):
    retry_after_s: float | None = None
    jitter: float = 0.0


def _said(given: str) -> _Said:
    try:
        return msgspec.json.decode(given, type=_Said) if given else _Said()
    except msgspec.MsgspecError:
        return _Said()


def _close(lease: LeaseRun, at: datetime, end: e.Event | None, usage: e.Usage) -> None:
    lease.lasted_s = max(0.0, (at - lease.started).total_seconds())
    lease.end, lease.usage = end, usage


# Runners ----------------------------------------------------------------------------------------------------------


def _slots(runs: list[Run]) -> dict[str, int]:
    """The bound of each pool where tasks had to wait for it, and of each run how long its taking took by itself.

    Where the most that ever ran at once did run while a task waited, and it started only once one of those had ended,
    there were no more slots than that. Where this never happened nothing is known of a bound.
    """
    bounds: dict[str, int] = {}
    by_pool: defaultdict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_pool[run.pool].append(run)
    for name, some in by_pool.items():
        full, most = _full(some)
        for run in some:
            started, free = run.leases[0].started, run.dispatched
            place = bisect_left(full, started, key=lambda times: times[0])
            if place and run.dispatched < full[place - 1][1] <= started:
                bounds[name], free = most, full[place - 1][1]
            run.pickup_s = max(0.0, (started - free).total_seconds())
    return bounds


def _full(runs: list[Run]) -> tuple[list[tuple[datetime, datetime]], int]:
    """From when until when as many ran as ever did, in order; and how many that were."""
    changes: list[tuple[datetime, int]] = []
    for run in runs:
        last = run.leases[-1]
        changes.append((run.leases[0].started, 1))
        if last.lasted_s is not None:
            changes.append((_ended(last), -1))
    changes.sort()  # what ends makes room for what starts in the same moment
    running = list(accumulate(change for _, change in changes))
    most = max(running, default=0)
    full = [
        (changes[place][0], changes[place + 1][0])
        for place, number in enumerate(running[:-1])
        if number == most and changes[place + 1][1] < 0
    ]
    return full, most


def _ended(lease: LeaseRun) -> datetime:
    return lease.started + timedelta(seconds=lease.lasted_s or 0.0)

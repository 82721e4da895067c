"""What the API shows of plans and tasks: plain records made from the fold."""

from datetime import datetime

import msgspec

from shared.board import Board, Standing
from shared.events import FailureKind, Usage
from shared.plan import PlanStatus
from shared.spec import DELIVER
from shared.store import Recorded
from shared.task import TaskStatus

WAITING_FOR_SHOWN_MAX = 20


class TaskTimes(msgspec.Struct):
    """When a task's newest attempt began and ended, by the log's clock."""

    started_at: datetime | None = None
    ended_at: datetime | None = None


class TaskView(msgspec.Struct, frozen=True, kw_only=True):
    """A task as it stands."""

    code: str
    name: str
    status: TaskStatus
    agent: str
    attempt: int
    lease: int
    runner: str
    started_at: datetime | None
    ended_at: datetime | None
    retry_at: datetime | None
    usage: Usage
    failure: FailureKind | None
    message: str
    summary: str
    commit: str
    base_commit: str
    waiting_for: tuple[str, ...]
    """Predecessors that have not ended, at most `WAITING_FOR_SHOWN_MAX`; only while the task is pending."""


class PlanView(msgspec.Struct, frozen=True, kw_only=True):
    """A plan as it stands."""

    plan: str
    name: str
    status: PlanStatus
    standing: Standing
    reason: str
    repo_url: str
    base_commit: str
    head_commit: str
    branch: str
    created_at: datetime
    updated_at: datetime
    seq: int
    """Sequence of the plan's newest event."""
    tasks: int
    """Without `_deliver`."""
    counts: dict[TaskStatus, int]
    usage: Usage
    fault: str
    """Set where the log holds an event of the plan that can't be read."""


class PlanFold:
    """A plan's board, with the times that only people care for."""

    def __init__(self, plan: str, first: Recorded) -> None:
        self.plan = plan
        self.board = Board()
        self.created_at = self.updated_at = first.time
        self.seq = 0
        self.usage = Usage()
        self._times: dict[str, TaskTimes] = {}
        self._bases: dict[str, str] = {}

    def apply(self, record: Recorded) -> None:
        """Folds the plan's next event."""
        self.seq, self.updated_at = record.seq, record.time
        if record.event is None:
            self.board.fault = f"event {record.seq} ({record.type}) can't be read: {record.fault}"
            return
        self.board.apply(record.entity, record.event, record.seq)
        times = self._times.setdefault(record.entity, TaskTimes())
        if record.type == "started":
            times.started_at, times.ended_at = record.time, None
        elif record.type in ("completed", "failed", "cancelled", "released"):
            times.ended_at = record.time
            self.usage += getattr(record.event, "usage", Usage())
        if record.type == "completed":
            self._bases[record.entity] = getattr(record.event, "base_commit", "")

    def view(self) -> PlanView:
        """The plan, in time that does not depend on its size."""
        state = self.board.plan
        candidate = state.chosen or next(iter(state.candidates.values()), None)
        return PlanView(
            plan=self.plan,
            name=candidate.spec.name if candidate else "",
            status=state.status,
            standing=self.board.standing(),
            reason=state.reason,
            repo_url=candidate.repo_url if candidate else "",
            base_commit=candidate.base_commit if candidate else "",
            head_commit=state.head_commit,
            branch=f"treadle/{self.plan}",
            created_at=self.created_at,
            updated_at=self.updated_at,
            seq=self.seq,
            tasks=len(candidate.spec.tasks) if candidate else 0,
            counts={status: count for status, count in self.board.counts.items() if count},
            usage=self.usage,
            fault=self.board.fault,
        )

    def tasks(self) -> list[TaskView]:
        """All tasks in topological order; none until the plan is finalized."""
        return [self.task(code) for code in self.board.codes]

    def has_task(self, code: str) -> bool:
        """Whether the finalized plan has that task."""
        return self.board.visible and code in self.board.tasks

    def task(self, code: str) -> TaskView:
        """One task. Raises KeyError."""
        state = self.board.tasks[code]
        times = self._times.get(code, TaskTimes())
        waiting = self.board.missing(code)[:WAITING_FOR_SHOWN_MAX] if state.status == "pending" else []
        spec = state.spec
        return TaskView(
            code=code,
            name=spec.name if spec else "",
            status=state.status,
            agent=spec.assignee if spec and code != DELIVER else "",
            attempt=state.attempt,
            lease=state.lease,
            runner=state.runner,
            started_at=times.started_at,
            ended_at=times.ended_at,
            retry_at=state.retry_at,
            usage=state.usage,
            failure=state.kind if state.status in ("needs_attention", "retry_wait") else None,
            message=state.message,
            summary=state.summary,
            commit=state.commit,
            base_commit=self._bases.get(code, ""),
            waiting_for=tuple(waiting),
        )


def event_json(record: Recorded) -> dict[str, object]:
    """One event as people and programs see it: where it stands, then its own fields."""
    fields = msgspec.to_builtins(record.event) if record.event is not None else {"fault": record.fault}
    return {
        "seq": record.seq,
        "time": record.time,
        "plan": record.plan,
        "task": None if record.entity == "_plan" else record.entity,
        "type": record.type,
        "actor": record.meta.actor,
        **fields,
    }

"""What of a plan's history people are told: found in the fold, event by event, so that every reading finds the same."""

from collections.abc import Iterator
from datetime import datetime
from typing import Literal

import msgspec

from shared.board import Board
from shared.events import PlanFailed, PlanPaused, TaskApprovalRequested, TaskFailed
from shared.plan import ENDED
from shared.spec import DELIVER
from shared.store import Recorded
from shared.subjects import PLAN
from shared.task import TaskStatus

EventName = Literal["needs_attention", "approval_waiting", "plan_finished", "budget_80"]
BUDGET_SHARE = 0.8
_BY_A_PERSON = "user:"
_CENT_PART_USD = 1e-6
"""Sums of many small amounts miss a round limit by less."""


class Happening(msgspec.Struct, frozen=True, kw_only=True):
    """Something that people may want to be told. Its texts are as the log has them: nobody has cleaned them."""

    event: EventName
    seq: int
    """Of the event that made it happen."""
    time: datetime
    plan: str
    plan_name: str
    project: str
    task: str = ""
    """Its code; empty: it concerns the plan itself."""
    task_name: str = ""
    reason: str


class Looked(msgspec.Struct, frozen=True):
    """What is compared over an event."""

    plan_status: str
    fault: str
    task_status: TaskStatus
    cost_usd: float

    @classmethod
    def at(cls, board: Board, entity: str) -> "Looked":
        """How it stands now."""
        task = board.tasks.get(entity)
        status: TaskStatus = task.status if task else "absent"
        return cls(board.plan.status, board.fault, status, task.usage.cost_usd if task else 0.0)


class Noting:
    """Of one plan, what has to be remembered beside its board."""

    def __init__(self, plan: str) -> None:
        self._plan = plan
        self._project = ""
        """A plan that is cancelled before it has a candidate no longer says whose it was."""
        self._spent_usd = 0.0
        self._budgets_told_usd: set[float] = set()

    def note(self, record: Recorded, board: Board, before: Looked) -> tuple[Happening, ...]:
        """What has happened by the event that the board has just folded; `before`: how it stood until then."""
        self._project = board.plan.project or self._project
        after = Looked.at(board, record.entity)
        found = [*self._of_plan(record, board, before, after), *self._of_task(record, board, before, after)]
        return tuple(found)

    def _of_plan(self, record: Recorded, board: Board, before: Looked, after: Looked) -> Iterator[Happening]:
        if after.fault and not before.fault:
            yield self._happening("needs_attention", record, board, after.fault)
        if record.entity != PLAN:
            self._spent_usd += after.cost_usd - before.cost_usd
        event = record.event
        if isinstance(event, PlanFailed) and after.plan_status == "failed":
            yield self._happening("needs_attention", record, board, event.message)
        if isinstance(event, PlanPaused) and not record.meta.actor.startswith(_BY_A_PERSON):
            yield self._happening("needs_attention", record, board, event.reason)
        chosen = board.plan.chosen
        budget_usd = chosen.spec.budget_usd if chosen else None
        if budget_usd and self._passes(budget_usd) and after.plan_status not in ENDED:
            self._budgets_told_usd.add(budget_usd)
            words = f"{self._spent_usd:.2f} of the plan's {budget_usd:g} USD are spent"
            yield self._happening("budget_80", record, board, words)
        if after.plan_status in ENDED and before.plan_status not in ENDED:
            yield self._happening("plan_finished", record, board, f"the plan is {after.plan_status}")

    def _passes(self, budget_usd: float) -> bool:
        """Whether so much of it is spent, for the first time with this budget."""
        is_known = budget_usd in self._budgets_told_usd
        return not is_known and self._spent_usd >= BUDGET_SHARE * budget_usd - _CENT_PART_USD

    def _of_task(self, record: Recorded, board: Board, before: Looked, after: Looked) -> Iterator[Happening]:
        event = record.event
        if isinstance(event, TaskApprovalRequested) and after.task_status == "awaiting_approval":
            yield self._happening("approval_waiting", record, board, event.why, of_task=True)
        # A result that is invalid again is news, though its task needed attention before.
        news = before.task_status != "needs_attention" or isinstance(event, TaskFailed)
        if after.task_status == "needs_attention" and news:
            reason = board.tasks[record.entity].message
            yield self._happening("needs_attention", record, board, reason, of_task=True)

    def _happening(
        self, event: EventName, record: Recorded, board: Board, reason: str, *, of_task: bool = False
    ) -> Happening:
        candidate = board.plan.chosen or next(iter(board.plan.candidates.values()), None)
        task = board.tasks.get(record.entity) if of_task else None
        return Happening(
            event=event,
            seq=record.seq,
            time=record.time,
            plan=self._plan,
            plan_name=candidate.spec.name if candidate else "",
            project=self._project,
            task=record.entity if of_task else "",
            task_name=(task.spec.name if task and task.spec and record.entity != DELIVER else ""),
            reason=reason,
        )

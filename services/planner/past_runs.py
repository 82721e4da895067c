"""What an agent's tasks took in a project so far: the fold of finished tasks, from the log."""

from collections import OrderedDict, deque
from datetime import datetime
from statistics import median

import msgspec

from shared import events as e
from shared.spec import AgentSpec
from shared.store import Recorded
from shared.subjects import PLAN, is_draft

WINDOW = 50
"""The newest tasks of one agent in one project that count."""
WINDOWS_MAX = 5_000
"""Agents by projects; the one that was heard of least lately is forgotten first."""

Key = tuple[str, str]
"""A project, and an agent's id in it, or its kind and model where it has none."""


class Past(msgspec.Struct, frozen=True):
    """What to expect of one more task: medians, which one endless night does not move."""

    tasks: int
    """How many it rests on."""
    minutes: float
    """At work, in all attempts together; no waiting for a runner, a retry or a person."""
    cost_usd: float


class _Open(msgspec.Struct):
    """A task that is not finished."""

    key: Key
    working_since: datetime | None = None
    minutes: float = 0.0
    cost_usd: float = 0.0


class PastRuns:
    """Kept: of each agent the newest finished tasks, and the tasks that are being done."""

    def __init__(self) -> None:
        self._windows: OrderedDict[Key, deque[tuple[float, float]]] = OrderedDict()
        self._open: dict[str, dict[str, _Open]] = {}

    def apply(self, record: Recorded) -> None:
        """Folds the log's next event."""
        if record.entity == PLAN:
            if isinstance(record.event, e.PlanCompleted | e.PlanCancelled):
                self._open.pop(record.plan, None)
        elif not is_draft(record.entity) and record.event is not None:
            self._apply_to_task(record, record.event)

    def of(self, project: str, agent: AgentSpec) -> Past | None:
        """What the agent's finished tasks in the project come to; None: it has done none."""
        window = self._windows.get(_key(project, agent))
        if not window:
            return None
        return Past(len(window), median(m for m, _ in window), median(usd for _, usd in window))

    def _apply_to_task(self, record: Recorded, event: e.Event) -> None:
        if isinstance(event, e.TaskDispatched):
            if event.agent is not None:
                plan = self._open.setdefault(record.plan, {})
                known = plan.get(record.entity)
                key = _key(event.project, event.agent)
                if known is None or known.key != key:
                    plan[record.entity] = _Open(key)
            return
        if (task := self._open.get(record.plan, {}).get(record.entity)) is None:
            return
        match event:
            case e.TaskStarted():
                _stop(task, record.time, event.charged)
                task.working_since = record.time
            case e.TaskReleased() | e.TaskFailed() | e.TaskApprovalRequested():
                _stop(task, record.time, event.usage)
            case e.TaskCompleted():
                _stop(task, record.time, event.usage)
                self._finished(task)
                self._forget(record)
            case e.TaskCancelled() | e.TaskMarkedComplete() | e.TaskAbandoned():
                self._forget(record)

    def _finished(self, task: _Open) -> None:
        window = self._windows.setdefault(task.key, deque(maxlen=WINDOW))
        window.append((task.minutes, task.cost_usd))
        self._windows.move_to_end(task.key)
        if len(self._windows) > WINDOWS_MAX:
            self._windows.popitem(last=False)

    def _forget(self, record: Recorded) -> None:
        plan = self._open[record.plan]
        del plan[record.entity]
        if not plan:
            del self._open[record.plan]


def _key(project: str, agent: AgentSpec) -> Key:
    return project, agent.agent_id or f"{agent.sdk_type}:{agent.model or ' '.join(agent.command)}"


def _stop(task: _Open, at: datetime, usage: e.Usage) -> None:
    """The end of a lease, if there was one."""
    if task.working_since is not None:
        task.minutes += max(0.0, (at - task.working_since).total_seconds() / 60)
        task.working_since = None
    task.cost_usd += usage.cost_usd

"""What is otherwise between two moments of a plan, or of two plans."""

from typing import Any

import msgspec

from shared.history.moment import Moment, TaskMoment

_EVERY_EVENT = {"seq", "time", "entity", "type", "tasks"}
"""Of a moment: otherwise at any other one, or compared by itself."""
_EVERY_TASK_EVENT = {"code", "seq", "since", "cost_usd"}
"""Of a task: these follow from the others, and would only make the comparison longer."""


class Difference(msgspec.Struct, frozen=True):
    """One field."""

    field: str
    before: Any
    after: Any


class TaskDifference(msgspec.Struct, frozen=True):
    """One task that is otherwise."""

    code: str
    fields: tuple[Difference, ...]


class MomentsCompared(msgspec.Struct, frozen=True, kw_only=True):
    """What the second moment has otherwise than the first."""

    before_plan: str
    before_seq: int
    after_plan: str
    after_seq: int
    plan: tuple[Difference, ...]
    """Fields of the plan."""
    tasks: tuple[TaskDifference, ...]
    """In the second moment's order; only those that both have."""
    added: tuple[TaskMoment, ...]
    removed: tuple[TaskMoment, ...]


def compare(a: Moment, b: Moment) -> MomentsCompared:
    """What `b` has otherwise than `a`, whichever of them came first."""
    before, after = {task.code: task for task in a.tasks}, {task.code: task for task in b.tasks}
    tasks: list[TaskDifference] = []
    for code, task in after.items():
        known = before.get(code)
        if known is not None and (fields := _differences(known, task, _EVERY_TASK_EVENT)):
            tasks.append(TaskDifference(code, fields))
    return MomentsCompared(
        before_plan=a.plan,
        before_seq=a.seq,
        after_plan=b.plan,
        after_seq=b.seq,
        plan=_differences(a, b, _EVERY_EVENT),
        tasks=tuple(tasks),
        added=tuple(task for task in b.tasks if task.code not in before),
        removed=tuple(task for task in a.tasks if task.code not in after),
    )


def _differences(a: msgspec.Struct, b: msgspec.Struct, left_out: set[str]) -> tuple[Difference, ...]:
    if a == b:
        return ()
    return tuple(
        Difference(name, before, after)
        for name in a.__struct_fields__
        if name not in left_out and (before := getattr(a, name)) != (after := getattr(b, name))
    )

"""What other settings would have made of a plan, as people read it. Pure functions."""

from __future__ import annotations

from shared.history.schedule import PlanSchedule, Rehearsed, TaskSchedule
from treadle.lines import money
from treadle.plain_text import one_line, plain

REASON_CHARS = 160


def rehearsal_lines(result: Rehearsed) -> list[str]:
    """A line for each task, then the plan, then what was taken for granted."""
    width = max([len("task"), *(len(task.code) for task in result.tasks)])
    lines = [
        f"plan {plain(result.plan)}: what would have been dispatched when (seconds since it was finalized)",
        "",
        f"{'task':<{width}}  {'recorded':>10}  {'policy':>10}  {'difference':>10}  why",
    ]
    lines += [_task_line(task, width) for task in result.tasks]
    lines += [
        "",
        f"{'':<{width}}  {'recorded':>16}  {'policy':>16}",
        *(
            f"{name:<{width}}  {recorded:>16}  {policy:>16}"
            for name, recorded, policy in _plan_rows(result.recorded, result.policy)
        ),
        *(["", one_line(result.reason, REASON_CHARS)] if result.reason else []),
        "",
        "taken for granted:",
        *(f"- {assumption}" for assumption in result.assumed),
    ]
    return [line.rstrip() for line in lines]


def _task_line(task: TaskSchedule, width: int) -> str:
    moved = "" if task.difference_s is None else f"{task.difference_s:+,.1f}"
    return (
        f"{plain(task.code):<{width}}  {_seconds(task.recorded_s):>10}  {_seconds(task.policy_s):>10}  {moved:>10}  "
        f"{one_line(task.reason, REASON_CHARS) or 'as recorded'}"
    )


def _plan_rows(recorded: PlanSchedule, policy: PlanSchedule) -> list[tuple[str, str, str]]:
    return [
        ("plan", recorded.standing.replace("_", " "), policy.standing.replace("_", " ")),
        ("end", _seconds(recorded.length_s), _seconds(policy.length_s)),
        ("cost", money(recorded.cost_usd), money(policy.cost_usd)),
        ("peak", f"{recorded.dispatched_most} at once", f"{policy.dispatched_most} at once"),
    ]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"

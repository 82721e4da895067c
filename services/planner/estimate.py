"""What a plan will do and the most that it can cost, before anything is spent."""

from collections.abc import Collection, Mapping

import msgspec

from services.planner.graph import layers
from shared.spec import BACKOFF_MAX_S, TIMEOUT_MINUTES, PlanSettings, PlanSpec, Retry, TaskSpec, settled

_DEFAULTS = PlanSettings()


class Estimate(msgspec.Struct, frozen=True):
    """Bounds, not forecasts: most plans need far less."""

    layers: tuple[tuple[str, ...], ...]
    """The order of work: the tasks of a layer need only tasks of earlier layers, and may run side by side."""
    critical_path: tuple[str, ...]
    """The chain of tasks whose time limits add up to the most, retries and the waits between them included."""
    most_usd: float
    """In US dollars. Command tasks count nothing; their programs' own costs are unknown here."""
    most_minutes: float
    """The critical path's length in minutes: what the plan takes at most where every ready task finds a slot."""


def estimate(plan: PlanSpec, settings: PlanSettings = _DEFAULTS, done: Collection[str] = ()) -> Estimate:
    """The bounds of a valid plan in a project with these settings.

    An attempt costs at most its task's `budget_usd` (one answer of the model may overshoot it) and lasts at most
    `timeout_minutes`. A task has `retry.max_attempts` of them. Without `retry` it has three: faults that are
    nobody's (overload, network, a lost runner) are tried that often, all others once, so three is the bound. A
    decision stands for the rounds that it may add: mending and the reviews, `max_review_rounds` less one times. A plan
    with a `budget_usd` of its own costs at most that. Attempts that a person orders later come on top. Tasks that are
    `done` already (a fork has them from its origin) take nothing.
    """
    plan = settled(plan, settings)
    minutes = {task.code: 0.0 if task.code in done else most_minutes(plan, task) for task in plan.tasks}
    order, _ = layers({task.code: task.depends_on for task in plan.tasks})
    path, length = critical_path(plan, minutes)
    attempts_usd = sum(most_usd(plan, task) for task in plan.tasks if task.code not in done)
    return Estimate(
        layers=tuple(tuple(layer) for layer in order),
        critical_path=path,
        most_usd=attempts_usd if plan.budget_usd is None else min(attempts_usd, plan.budget_usd),
        most_minutes=length,
    )


def critical_path(plan: PlanSpec, minutes: Mapping[str, float]) -> tuple[tuple[str, ...], float]:
    """The chain of tasks that takes longest where each takes `minutes[code]`, and how long; of a valid plan."""
    tasks = {task.code: task for task in plan.tasks}
    order, _ = layers({task.code: task.depends_on for task in plan.tasks})
    ends: dict[str, float] = {}
    longest_before: dict[str, str | None] = {}
    for layer in order:
        for code in layer:
            before = max(tasks[code].depends_on, key=ends.__getitem__, default=None)
            longest_before[code] = before
            ends[code] = minutes[code] + (ends[before] if before is not None else 0.0)
    path: list[str] = []
    last = max(ends, key=ends.__getitem__, default=None)
    while last is not None:
        path.append(last)
        last = longest_before[last]
    return tuple(reversed(path)), ends[path[0]] if path else 0.0


def most_usd(plan: PlanSpec, task: TaskSpec) -> float:
    """The most that the task costs by itself, in US dollars."""
    if not task.is_decision:
        return _attempts_usd(plan, task, task.assignee)
    work, reviews = _loop(plan, task)
    round_usd = _attempts_usd(plan, work, task.fixer or work.assignee)
    round_usd += sum(_attempts_usd(plan, review, review.assignee) for review in reviews)
    return round_usd * _further_rounds(task)


def most_minutes(plan: PlanSpec, task: TaskSpec) -> float:
    """The most that the task takes, in minutes, waits between its attempts included."""
    if not task.is_decision:
        return _attempts_minutes(task)
    work, reviews = _loop(plan, task)
    return (_attempts_minutes(work) + max(map(_attempts_minutes, reviews))) * _further_rounds(task)


def _loop(plan: PlanSpec, decision: TaskSpec) -> tuple[TaskSpec, list[TaskSpec]]:
    """The work that a decision is about, and its reviews."""
    tasks = {task.code: task for task in plan.tasks}
    reviews = [tasks[code] for code in decision.depends_on]
    return tasks[reviews[0].reviews], reviews


def _further_rounds(decision: TaskSpec) -> int:
    return (decision.max_review_rounds or 1) - 1


def _retry(task: TaskSpec) -> Retry:
    return task.retry or Retry()


def _attempts_usd(plan: PlanSpec, task: TaskSpec, assignee: str) -> float:
    return task.budget_usd * _retry(task).max_attempts if plan.agents[assignee].sdk_type == "claude" else 0.0


def _attempts_minutes(task: TaskSpec) -> float:
    retry = _retry(task)
    waits_s = sum(min(retry.backoff_s * 2.0**before, BACKOFF_MAX_S) for before in range(retry.max_attempts - 1))
    return (task.timeout_minutes or TIMEOUT_MINUTES) * retry.max_attempts + waits_s / 60

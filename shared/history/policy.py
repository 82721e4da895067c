"""Other settings for a plan that has run: what a person writes into the file of `treadle replay --policy`.

    max_parallel: 4
    budget_usd: 20                  # of the whole plan
    every_task:
      retry: {max_attempts: 3, backoff_s: 5}
      timeout_minutes: 10
      budget_usd: 2                 # of one attempt
    tasks:
      T3: {timeout_minutes: 30}     # what stands here goes before what stands in every_task

Whatever is left out stays as the plan has it.
"""

import difflib
import math
from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

from shared.plan import PlanState
from shared.spec import (
    ATTEMPTS_MAX,
    BACKOFF_MAX_S,
    BUDGET_MAX_USD,
    BUDGET_MIN_USD,
    DELIVER,
    MAX_PARALLEL_MAX,
    PLAN_BUDGET_MAX_USD,
    TIMEOUT_MAX_MINUTES,
    TIMEOUT_MIN_MINUTES,
    PlanSpec,
    Retry,
    TaskSpec,
)

FAULTS_MAX = 50
NAMED_MAX = 20


class BadPolicy(Exception):
    """Every fault, one on a line, each with the place that it is in."""


class TaskPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Other settings of a task; None: as it has them."""

    max_attempts: int | None = None
    backoff_s: float | None = None
    timeout_minutes: float | None = None
    budget_usd: float | None = None

    def over(self, other: "TaskPolicy") -> "TaskPolicy":
        """These, and the other ones where these say nothing."""
        mine = {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not None}
        return replace(other, **mine)


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """Other settings of a plan; None: as it has them."""

    max_parallel: int | None = None
    budget_usd: float | None = None
    every_task: TaskPolicy = TaskPolicy()
    tasks: dict[str, TaskPolicy] = {}

    def of_task(self, spec: TaskSpec) -> TaskSpec:
        """The task with these settings; `_deliver` and decisions, which no agent does, with the retries alone."""
        wish = self.tasks.get(spec.code, TaskPolicy()).over(self.every_task)
        retry = spec.retry
        if wish.max_attempts is not None or wish.backoff_s is not None:
            had = spec.retry or Retry()
            retry = Retry(
                max_attempts=had.max_attempts if wish.max_attempts is None else wish.max_attempts,
                backoff_s=had.backoff_s if wish.backoff_s is None else wish.backoff_s,
            )
        if spec.code == DELIVER or spec.is_decision:
            return replace(spec, retry=retry)
        return replace(
            spec,
            retry=retry,
            timeout_minutes=spec.timeout_minutes if wish.timeout_minutes is None else wish.timeout_minutes,
            budget_usd=spec.budget_usd if wish.budget_usd is None else wish.budget_usd,
        )

    def of_plan(self, state: PlanState) -> PlanState:
        """The plan, whose choice is made, with these settings."""
        if state.chosen is None:
            return state
        spec = state.chosen.spec
        return replace(state, chosen=replace(state.chosen, spec=self._of_spec(spec)))

    def _of_spec(self, spec: PlanSpec) -> PlanSpec:
        return replace(
            spec,
            max_parallel=spec.max_parallel if self.max_parallel is None else self.max_parallel,
            budget_usd=spec.budget_usd if self.budget_usd is None else self.budget_usd,
            tasks=tuple(self.of_task(task) for task in spec.tasks),
        )

    def check_names(self, known: set[str]) -> None:
        """Raises `BadPolicy` for tasks that the plan has not."""
        faults = [f"tasks, {_named(code)}: the plan has no such task{_nearest(code, known)}" for code in self.tasks]
        faults = [fault for fault, code in zip(faults, self.tasks, strict=True) if code not in known]
        if faults:
            raise BadPolicy("\n".join(faults[:NAMED_MAX]))


def policy_of(tree: object) -> Policy:
    """Reads a policy from plain data. Raises `BadPolicy` with every fault."""
    reader = _Reader()
    policy = reader.policy(tree)
    if reader.faults:
        raise BadPolicy("\n".join(reader.faults[:FAULTS_MAX]))
    return policy


class _Reader:
    def __init__(self) -> None:
        self.faults: list[str] = []

    def policy(self, tree: object) -> Policy:
        table = self._table(tree, "", {"max_parallel", "budget_usd", "every_task", "tasks"})
        tasks = self._mapping(table.get("tasks"), "tasks")
        return Policy(
            max_parallel=self._whole(table, "", "max_parallel", 1, MAX_PARALLEL_MAX),
            budget_usd=self._number(table, "", "budget_usd", 0.01, PLAN_BUDGET_MAX_USD, "US dollars"),
            every_task=self._task(table.get("every_task"), "every_task"),
            tasks={str(code): self._task(wish, f"tasks, {_named(code)}") for code, wish in tasks.items()},
        )

    def _task(self, tree: object, place: str) -> TaskPolicy:
        if tree is None:
            return TaskPolicy()
        table = self._table(tree, place, {"retry", "timeout_minutes", "budget_usd"})
        retry_at = f"{place}, retry"
        tries = self._table(table.get("retry", {}), retry_at, {"max_attempts", "backoff_s"})
        return TaskPolicy(
            max_attempts=self._whole(tries, retry_at, "max_attempts", 1, ATTEMPTS_MAX),
            backoff_s=self._number(tries, retry_at, "backoff_s", 0, BACKOFF_MAX_S, "seconds"),
            timeout_minutes=self._number(
                table, place, "timeout_minutes", TIMEOUT_MIN_MINUTES, TIMEOUT_MAX_MINUTES, "minutes"
            ),
            budget_usd=self._number(table, place, "budget_usd", BUDGET_MIN_USD, BUDGET_MAX_USD, "US dollars"),
        )

    def _mapping(self, tree: object, place: str) -> Mapping[object, object]:
        if tree is None:
            return {}
        if isinstance(tree, Mapping):
            return tree
        self._add(place, "a mapping is wanted here")
        return {}

    def _table(self, tree: object, place: str, known: set[str]) -> Mapping[object, object]:
        table = self._mapping(tree if tree is not None else "nothing", place)
        for name in getattr(tree, "repeated", ()):  # a file's reader notes what was written twice
            self._add(place, f"{_named(name)} stands there twice")
        for name in table:
            if name not in known:
                self._add(place, f"there is no setting {_named(name)}{_nearest(str(name), known)}")
        return table

    def _whole(self, table: Mapping[object, object], place: str, name: str, least: int, most: int) -> int | None:
        value = _number_in(table.get(name))
        if value is None:
            return None
        if isinstance(value, int) and least <= value <= most:
            return value
        self._add(place, f"{name} has to be a whole number from {least} to {most}")
        return None

    def _number(
        self, table: Mapping[object, object], place: str, name: str, least: float, most: float, unit: str
    ) -> float | None:
        value = _number_in(table.get(name))
        if value is None:
            return None
        if isinstance(value, int | float) and least <= value <= most:
            return float(value)
        self._add(place, f"{name} has to be a number from {least:g} to {most:g} ({unit})")
        return None

    def _add(self, place: str, message: str) -> None:
        self.faults.append(f"{place}: {message}" if place else message)


def _number_in(value: object) -> int | float | str | None:
    """A number as YAML has it, where a plain word is one only if it is wanted; words for what is none."""
    if value is None or (isinstance(value, str) and value in ("", "~", "null")):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return "no number"
    if isinstance(value, str):
        try:
            value = int(value) if value.isdecimal() and len(value) < 20 else float(value)
        except ValueError:
            return "no number"
    return value if math.isfinite(value) else "no number"


def _named(name: object) -> str:
    text = str(name)
    return repr(text if len(text) <= 60 else text[:60] + "…")


def _nearest(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name[:100], sorted(known)[:10_000], n=1)
    return f"; did you mean {near[0]}?" if near else ""

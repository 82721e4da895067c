"""What is learned from finished tasks, and what two candidates come to with it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from services.planner.compare import compare, expect
from services.planner.past_runs import WINDOW, PastRuns
from shared import events as e
from shared.plan import Candidate
from shared.requests import ChangedTask
from shared.spec import AgentSpec, PlanSpec, TaskSpec
from shared.store import Meta, Recorded
from shared.subjects import PLAN

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
CODER = AgentSpec(sdk_type="claude", model="m", agent_id="1")
OTHER = AgentSpec(sdk_type="claude", model="m", agent_id="2")
PROJECT = "project-1"


class Log:
    """A log of one's own, by the minute."""

    def __init__(self) -> None:
        self.past = PastRuns()
        self._seq = 0

    def add(self, minute: float, entity: str, event: e.Event, plan: str = "p") -> None:
        self._seq += 1
        self.past.apply(
            Recorded(
                seq=self._seq,
                time=BEGINNING + timedelta(minutes=minute),
                plan=plan,
                entity=entity,
                type=event.name.partition(".")[2],
                event=event,
                meta=Meta(actor="t"),
            )
        )

    def done(self, entity: str, minutes: float, usd: float, agent: AgentSpec = CODER, project: str = PROJECT) -> None:
        self.add(0, entity, dispatched(agent, project))
        self.add(5, entity, started())
        self.add(5 + minutes, entity, completed(usd))


def dispatched(agent: AgentSpec | None = CODER, project: str = PROJECT) -> e.TaskDispatched:
    return e.TaskDispatched(
        dispatch=1, attempt=1, prompt="", agent=agent, project=project, repo_url="u", base_commit="b", heads=(),
        plan_name="", task_name="", timeout_s=1.0, budget_usd=1.0,
    )  # fmt: skip


def started(charged_usd: float = 0.0) -> e.TaskStarted:
    return e.TaskStarted(lease=1, runner="r", execution="x", charged=e.Usage(cost_usd=charged_usd))


def completed(usd: float) -> e.TaskCompleted:
    result = e.Result(task_code="T", summary="done")
    return e.TaskCompleted(lease=1, base_commit="b", commit="c", result=result, usage=e.Usage(cost_usd=usd))


def test_a_median_of_what_an_agents_tasks_took_at_work() -> None:
    log = Log()
    for place, (minutes, usd) in enumerate(((2, 1.0), (4, 3.0), (600, 2.0))):
        log.done(f"T{place}", minutes, usd)
    found = log.past.of(PROJECT, CODER)
    assert found is not None
    assert (found.tasks, found.minutes, found.cost_usd) == (3, 4.0, 2.0)
    assert log.past.of("project-2", CODER) is None
    assert log.past.of(PROJECT, OTHER) is None


def test_every_attempt_counts_and_the_waits_between_them_do_not() -> None:
    log = Log()
    log.add(0, "T", dispatched())
    log.add(1, "T", started())
    log.add(3, "T", e.TaskFailed(lease=1, kind="unavailable", message="", usage=e.Usage(cost_usd=0.5)))
    log.add(60, "T", dispatched())
    log.add(61, "T", started())
    log.add(62, "T", started(charged_usd=0.25))
    log.add(64, "T", e.TaskReleased(lease=2, reason="", usage=e.Usage(cost_usd=1.0)))
    log.add(90, "T", started())
    log.add(91, "T", completed(2.0))
    found = log.past.of(PROJECT, CODER)
    assert found is not None
    assert (found.minutes, found.cost_usd) == (2 + 1 + 2 + 1, 3.75)


def test_neither_drafts_nor_what_was_given_up_count() -> None:
    log = Log()
    log.done("_draft-1", 3, 1)
    log.add(0, "T", dispatched())
    log.add(0, "T", started())
    log.add(9, "T", e.TaskAbandoned())
    log.add(9, "T", completed(1))
    assert log.past.of(PROJECT, CODER) is None


def test_only_the_newest_tasks_count() -> None:
    log = Log()
    for place in range(WINDOW):
        log.done(f"old-{place}", 100, 1)
    for place in range(WINDOW):
        log.done(f"new-{place}", 1, 1)
    found = log.past.of(PROJECT, CODER)
    assert found is not None
    assert (found.tasks, found.minutes) == (WINDOW, 1.0)


def test_what_a_plan_left_undone_is_forgotten_with_it() -> None:
    log = Log()
    log.add(0, "T", dispatched(), plan="q")
    log.add(1, PLAN, e.PlanCancelled(), plan="q")
    log.add(1, "T", started(), plan="q")
    log.add(2, "T", completed(1), plan="q")
    assert log.past.of(PROJECT, CODER) is None


def task(code: str, *needs: str, **fields: object) -> TaskSpec:
    return msgspec.convert(
        {"code": code, "name": code, "assignee": "coder", "depends_on": list(needs), "timeout_minutes": 10, **fields},
        TaskSpec,
    )


def candidate(*tasks: TaskSpec, budget_usd: float | None = None, agent: AgentSpec = CODER) -> Candidate:
    spec = PlanSpec(name="x", tasks=tasks, agents={"coder": agent, "other": OTHER}, budget_usd=budget_usd)
    return Candidate(spec, "u", "b", PROJECT)


ONCE = {"retry": {"max_attempts": 1}, "budget_usd": 2.0}


def test_without_past_runs_a_candidate_is_expected_to_take_its_bounds() -> None:
    found = expect("1", candidate(task("A", **ONCE), task("B", "A", **ONCE), task("C", **ONCE)), PastRuns())
    assert (found.candidate, found.tasks, found.critical_path) == ("1", 3, ("A", "B"))
    assert (found.minutes, found.cost_usd, found.from_past_runs) == (20.0, 6.0, 0)
    assert expect("1", candidate(task("A", **ONCE), budget_usd=1.5), PastRuns()).cost_usd == 1.5


def test_with_them_it_is_expected_to_take_what_its_agents_took() -> None:
    log = Log()
    log.done("T", 3, 0.5)
    found = expect("1", candidate(task("A", **ONCE), task("B", "A", assignee="other", **ONCE)), log.past)
    assert (found.minutes, found.cost_usd, found.from_past_runs) == (3 + 10.0, 0.5 + 2.0, 1)


def test_a_comparison_names_what_was_added_removed_and_changed() -> None:
    before = candidate(task("A"), task("B", "A"), task("C", "A", "B"), task("D"))
    after = candidate(
        task("A", verify=["make"]), task("b", "A", name="B"), task("C", "b", "A", description="more", budget_usd=1.0),
        task("E", assignee="other"),
    )  # fmt: skip
    found = compare(("1", "2"), (before, after), PastRuns())
    assert (found.added, found.removed) == (("E",), ("D",))
    assert found.changed == (
        ChangedTask(code="A", fields=("verify",)),
        ChangedTask(code="C", fields=("description", "budget_usd")),
    )
    assert [one.candidate for one in found.estimates] == ["1", "2"]


def test_the_same_name_for_another_agent_is_a_change() -> None:
    found = compare(("1", "2"), (candidate(task("A")), candidate(task("A"), agent=OTHER)), PastRuns())
    assert found.changed == (ChangedTask(code="A", fields=("assignee",)),)


@pytest.mark.parametrize("approved", [1, 3])
def test_a_decision_counts_with_the_rounds_that_it_may_add(approved: int) -> None:
    decision = TaskSpec(code="d", name="d", assignee="", depends_on=("r",), max_review_rounds=approved)
    found = expect("1", candidate(task("w", **ONCE), task("r", "w", reviews="w", **ONCE), decision), PastRuns())
    assert (found.minutes, found.cost_usd) == (20.0 * approved, 4.0 * approved)

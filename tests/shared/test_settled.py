"""What a plan leaves to its project, and what the project only bounds."""

import pytest

from shared.spec import MAX_PARALLEL, TIMEOUT_MINUTES, AgentSpec, PlanSettings, PlanSpec, TaskSpec, settled

SH = AgentSpec(sdk_type="command", command=("true",))


def plan(
    *, max_parallel: int | None = None, budget_usd: float | None = None, timeout_minutes: float | None = None
) -> PlanSpec:
    task = TaskSpec(code="T1", name="n", assignee="sh", timeout_minutes=timeout_minutes)
    return PlanSpec(
        name="n",
        tasks=(task,),
        agents={"sh": SH},
        max_parallel=max_parallel,
        budget_usd=budget_usd,
        setup=("own",),
        env_allow=("OWN", "BOTH"),
    )


def test_a_plan_without_a_project_gets_the_former_defaults() -> None:
    whole = settled(plan(), PlanSettings())
    assert whole.max_parallel == MAX_PARALLEL
    assert whole.tasks[0].timeout_minutes == TIMEOUT_MINUTES
    assert whole.budget_usd is None


@pytest.mark.parametrize(
    ("asked", "project", "holds"), [(None, 8, 8), (None, 200, MAX_PARALLEL), (4, 8, 4), (16, 8, 8), (16, None, 16)]
)
def test_a_plan_may_ask_for_less_at_once_than_its_project_allows(
    asked: int | None, project: int | None, holds: int
) -> None:
    assert settled(plan(max_parallel=asked), PlanSettings(max_parallel=project)).max_parallel == holds


@pytest.mark.parametrize(
    ("asked", "project", "holds"), [(None, 8.0, 8.0), (4.0, 8.0, 4.0), (16.0, 8.0, 8.0), (16.0, None, 16.0)]
)
def test_the_smaller_budget_holds(asked: float | None, project: float | None, holds: float) -> None:
    assert settled(plan(budget_usd=asked), PlanSettings(budget_usd=project)).budget_usd == holds


def test_a_tasks_own_timeout_is_kept_and_the_projects_commands_come_first() -> None:
    settings = PlanSettings(task_timeout_minutes=7, setup=("project's",), env_allow=("BOTH", "PROJECT"))
    whole = settled(plan(timeout_minutes=3), settings)
    assert whole.tasks[0].timeout_minutes == 3
    assert settled(plan(), settings).tasks[0].timeout_minutes == 7
    assert whole.setup == ("project's", "own")
    assert whole.env_allow == ("BOTH", "PROJECT", "OWN")

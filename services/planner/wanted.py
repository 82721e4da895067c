"""What a request for a candidate asks of the plan that comes back: valid for its project, no doors opened, and bounded.

An agent's answer rests on what stands in the repository, and a file in a collaboration repository may be anybody's who
can push there. So neither may grant anything, nor name its own measure of money, attempts and tasks; with `verify` its
commands run where its agents' do anyway. What a person sends through the API comes in another way (`answering.py`): it
may.
"""

from collections.abc import Iterator

import msgspec

from services.planner.agents import Team
from services.planner.faults import FAULTS_MAX, Fault, PlanFaults
from services.planner.parse import read_plan
from shared.events import PlanRequested
from shared.spec import DEFAULT_MODEL, MAX_PARALLEL, AgentSpec, PlanSpec, TaskSpec

GRANTS = ("agents", "env_allow", "network_allow", "setup")
"""Fields of a plan file that let its tasks do more than the project does."""
WANTED_TASKS_MAX = 200
WANTED_ATTEMPTS_MAX = 5
WANTED_PARALLEL_MAX = MAX_PARALLEL
WANTED_TASK_BUDGET_MAX_USD = 4 * TaskSpec(code="", name="", assignee="").budget_usd
"""Of one attempt. The plan's own budget needs no bound here: the project's holds whatever the plan says."""

NO_GRANTS = "an agent may not write it, as it lets the plan's tasks do more than the project allows: leave it out"
NO_GRANTS_BY_FILE = (
    "a file in the repository may not hold it, as anybody who can push there could let the plan's tasks do more than "
    "the project allows: leave it out, or send the plan yourself with `treadle add`"
)
IMPLICIT = {"claude": AgentSpec(sdk_type="claude", model=DEFAULT_MODEL)}
"""Whom a project without agents has."""


def team_of(request: PlanRequested) -> Team:
    """Who may be given tasks."""
    return Team(mode=request.mode, agents=request.agents)


def read_wanted(request: PlanRequested, text: str) -> PlanSpec:
    """The plan of an answer to `request`, with its goal where the answer names none. Raises `PlanFaults`.

    Whoever wrote it, an agent or somebody who put a file where the plan is looked for, it may neither open doors nor
    go over the bounds.
    """
    spec = read_plan(text, team_of(request))
    no_grants = NO_GRANTS_BY_FILE if request.by_hand else NO_GRANTS
    faults = [*(Fault(no_grants, field=name) for name in _granted(spec, request)), *_over(spec)]
    if faults:
        raise PlanFaults(faults[:FAULTS_MAX])
    return spec if spec.goal else msgspec.structs.replace(spec, goal=request.goal)


def _granted(spec: PlanSpec, request: PlanRequested) -> list[str]:
    known = {agent.slug for agent in request.agents}
    own = {name: agent for name, agent in spec.agents.items() if name not in known}
    given = {
        "agents": bool(own) and (bool(known) or own != IMPLICIT),
        "env_allow": bool(spec.env_allow),
        "network_allow": bool(spec.network_allow),
        "setup": bool(spec.setup),
    }
    return [name for name in GRANTS if given[name]]


def _over(spec: PlanSpec) -> Iterator[Fault]:
    """What is more than a plan may ask for that no person has written."""
    if len(spec.tasks) > WANTED_TASKS_MAX:
        yield Fault(f"{len(spec.tasks):,} tasks are too many: at most {WANTED_TASKS_MAX}; join some", field="tasks")
    if spec.max_parallel is not None and spec.max_parallel > WANTED_PARALLEL_MAX:
        yield Fault(
            f"{spec.max_parallel:,} tasks at once are too many: at most {WANTED_PARALLEL_MAX}", field="max_parallel"
        )
    for task in spec.tasks:
        if task.budget_usd > WANTED_TASK_BUDGET_MAX_USD:
            yield Fault(
                f"{task.budget_usd:g} US dollars are too much for one attempt: at most {WANTED_TASK_BUDGET_MAX_USD:g}; "
                "split the task",
                task=task.code,
                field="budget_usd",
            )
        if task.retry is not None and task.retry.max_attempts > WANTED_ATTEMPTS_MAX:
            yield Fault(
                f"{task.retry.max_attempts} are too many: at most {WANTED_ATTEMPTS_MAX} attempts",
                task=task.code,
                field="retry.max_attempts",
            )

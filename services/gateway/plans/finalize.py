"""Chooses exactly the plan and the candidate that are named, one final plan at a time.

The project's row says which plan it is running (`final_plan_id`). To finalize another one is to put its id there in
place of the one that was seen there, which only one of several gateways manages. The claim comes before the event, and
after everything that can refuse the choice. Nobody gives a claim back: several requests may rest on it, and the plan
may become final by any of them. Where none of them comes to its event, the claim rests on a plan which is only drafted,
and lapses after a minute; each of them gives up well before.
"""

from datetime import datetime, timedelta
from typing import Any, cast

import msgspec
from litestar.datastructures import State
from sqlalchemy import CursorResult, update

from services.gateway.accounts.access import Caller
from services.gateway.agents.roster import roster
from services.gateway.database.tables import Project
from services.gateway.plans.commands import Accepted, command_plan
from services.gateway.plans.lookup import promptly
from services.gateway.problems import Problem, ProblemError
from services.gateway.projects.lookup import being_deleted, find_open_project
from services.gateway.projects.settings_of import settings_of
from shared.clock import utc_now
from shared.commands import Finalize
from shared.plan import ENDED, Candidate, decide
from shared.spec import PlanSettings, ProjectAgent
from shared.store import StoreUnavailable
from shared.transact import load_plan

CLAIM_LAPSES_AFTER = timedelta(seconds=60)
WITHIN_S = 20.0
"""From before the claim to the event. Whoever was halted for longer must not store it: the claim may be another's."""
TRIES_MAX = 10

PLAN_IN_PROGRESS = Problem(
    status=409,
    code="plan_in_progress",
    title="Another plan is in progress",
    detail="plan pabcdefghijkl of this project is active: wait for its end, cancel it, or allow concurrent plans",
)
AGENT_UNUSABLE = Problem(
    status=409,
    code="agent_unusable",
    title="An agent can't be used",
    detail="agent coder is inactive; activate it, or give its tasks to another one: PUT /api/plans/…/spec",
)
NO_BUDGET = Problem(
    status=409,
    code="no_budget",
    title="Nothing bounds its cost",
    detail="a plan is finalized by itself only in a project with a budget_usd, as nobody looks at what it may cost: "
    "set one (PATCH /api/projects/…), or ask with auto_finalize false and finalize it yourself",
)


class Choice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which candidate to finalize."""

    candidate: str
    digest: str | None = None
    """Its ETag as it was read: answers 412 where it is another plan by now. null: whatever it is."""


async def finalize(state: State, caller: Caller, plan: str, choice: Choice, *, by_itself: bool = False) -> Accepted:
    """Raises `ProblemError` 409 and 412, `Refused`, `StoreUnavailable`. The caller was found to see the plan.

    `by_itself`: nobody has looked at it, so the project has to bound what it may cost.
    """
    loaded = (await promptly(load_plan(state.store, plan))).state
    command = Finalize(candidate=choice.candidate, digest=(choice.digest or "").strip('"'))
    candidate = loaded.candidates.get(choice.candidate)
    if decide(loaded, command) is None or candidate is None or not candidate.project:
        return await command_plan(state, caller, plan, command)
    settings = await _checked_settings(state, caller, candidate)
    if by_itself and settings.budget_usd is None:
        raise ProblemError(NO_BUDGET.status, NO_BUDGET.code, NO_BUDGET.title, NO_BUDGET.detail)
    command = msgspec.structs.replace(command, settings=settings)
    return await promptly(_claim_and_command(state, caller, candidate.project, plan, command), WITHIN_S)


async def _claim_and_command(state: State, caller: Caller, project_id: str, plan: str, command: Finalize) -> Accepted:
    await _claim(state, project_id, plan)
    return await command_plan(state, caller, plan, command)


async def _checked_settings(state: State, caller: Caller, candidate: Candidate) -> PlanSettings:
    """The project's settings; what an agent was at the import it may not be any more."""
    async with state.db.read() as session:
        project = await find_open_project(session, caller, candidate.project)
        agents = await roster(session, project, utc_now())
    faults = _unusable(candidate, project.mode, {agent.spec.agent_id: agent for agent in agents})
    if faults:
        detail = "; ".join(faults) + ": make them usable, or give their tasks to others (PUT /api/plans/…/spec)"
        raise ProblemError(AGENT_UNUSABLE.status, AGENT_UNUSABLE.code, AGENT_UNUSABLE.title, detail)
    return settings_of(project)


def _unusable(candidate: Candidate, mode: str, agents: dict[str, ProjectAgent]) -> list[str]:
    done = {kept.task for kept in candidate.fork.kept} if candidate.fork is not None else set()
    used = {name for task in candidate.spec.tasks if task.code not in done for name in (task.assignee, task.fixer)}
    faults = []
    for name, spec in candidate.spec.agents.items():
        if name not in used:
            continue
        now = agents.get(spec.agent_id)
        if spec.agent_id and now is None:
            faults.append(f"agent {name} is not one of the project's any more")
        elif now is not None and now.unusable:
            faults.append(f"agent {name} {now.unusable}")
        elif spec.is_auto != (mode == "auto"):
            faults.append(f"agent {name} is {'automatic' if spec.is_auto else 'manual'} and the project is {mode}")
    return faults


async def _claim(state: State, project_id: str, plan: str) -> None:
    """Makes the plan the project's running one. Raises `ProblemError` 409 while another one is."""
    for _ in range(TRIES_MAX):
        async with state.db.read() as session:
            project = await session.get_one(Project, project_id)
        holder, since = project.final_plan_id, project.final_plan_at
        if holder not in (None, plan) and not project.allow_concurrent_plans:
            await _refuse_running(state, cast(str, holder), since)
        if await _replace(state, project_id, holder, since, plan, utc_now()):
            return
        if project.deleting_since is not None:
            raise being_deleted(project_id)
    raise StoreUnavailable(f"others finalized plans of project {project_id} all the while")


async def _refuse_running(state: State, holder: str, since: datetime | None) -> None:
    status = (await promptly(load_plan(state.store, holder))).state.status
    if status == "absent" or status in ENDED:
        return
    if status == "drafted" and (since is None or utc_now() - since > CLAIM_LAPSES_AFTER):
        return
    what = "being finalized" if status == "drafted" else status
    detail = f"plan {holder} of this project is {what}: wait for its end, cancel it, or set allow_concurrent_plans"
    raise ProblemError(PLAN_IN_PROGRESS.status, PLAN_IN_PROGRESS.code, PLAN_IN_PROGRESS.title, detail)


async def _replace(
    state: State, project_id: str, holder: str | None, since: datetime | None, plan: str, at: datetime
) -> bool:
    """Compare and set: False where somebody else was faster."""
    seen = (
        Project.id == project_id,
        Project.deleting_since.is_(None),
        Project.final_plan_id.is_not_distinct_from(holder),
        Project.final_plan_at.is_not_distinct_from(since),
    )
    async with state.db.write() as session:
        done = await session.execute(update(Project).where(*seen).values(final_plan_id=plan, final_plan_at=at))
        return cast("CursorResult[Any]", done).rowcount == 1

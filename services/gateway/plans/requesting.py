"""What candidates are asked for with: goal, agents and commit, with the project's where a request names none."""

from collections.abc import Sequence
from typing import Annotated, cast

import msgspec
from litestar.datastructures import State
from sqlalchemy.ext.asyncio import AsyncSession

from services.gateway.accounts.access import Caller
from services.gateway.agents.roster import find_usable, roster
from services.gateway.database.tables import Project
from services.gateway.plans.candidates import checked_commit, refuse_closed_meanwhile
from services.gateway.plans.commands import GRACE_S, new_meta
from services.gateway.plans.finalize import AGENT_UNUSABLE
from services.gateway.plans.lookup import LOG_PATIENCE_S, promptly
from services.gateway.problems import Problem, ProblemError, bad_request
from services.gateway.projects.bodies import AGENTS_MAX
from services.gateway.projects.values import goal_faults
from shared.clock import utc_now
from shared.commands import Request
from shared.events import PlanRequested
from shared.spec import DEFAULT_MODEL, DESCRIPTION_MAX_BYTES, AgentSpec, PlanningMode, ProjectAgent
from shared.store import Recorded, StoreUnavailable
from shared.transact import Contended, to_plan

NAMED_MAX = 20

NO_AGENTS = Problem(
    status=409,
    code="no_agents",
    title="Nobody to plan for",
    detail="the project is manual and has no agent that is usable now: a plan's tasks could be given to nobody",
)


class Wishes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a plan is wanted for."""

    goal: Annotated[str, msgspec.Meta(max_length=DESCRIPTION_MAX_BYTES)] | None = None
    """null: as before, else the project's."""
    planning_mode: PlanningMode | None = None
    """null: the project's."""
    agent_ids: Annotated[list[str], msgspec.Meta(min_length=1, max_length=AGENTS_MAX)] | None = None
    """Whom tasks may be given to, of the project's agents; null: all of them."""
    base_commit: str | None = None
    """Full object id that every task starts from; null: the head of the repository's default branch."""

    @property
    def checked_commit(self) -> str:
        """The commit, empty where none is named. Raises `ProblemError` 422."""
        return checked_commit(self.base_commit) if self.base_commit is not None else ""


def goal_of(wishes: Wishes, before: str, project: Project) -> str:
    """The goal that is meant. Raises `ProblemError` 400 where there is none, or it can't be one."""
    goal = wishes.goal if wishes.goal is not None else before or project.goal
    if not goal.strip():
        raise bad_request("goal", "say what is to be achieved, here or as the project's goal")
    if faults := goal_faults(goal):
        raise bad_request("goal", "; ".join(faults))
    return goal


async def agents_of(session: AsyncSession, project: Project, wishes: Wishes) -> tuple[ProjectAgent, ...]:
    """Whom tasks may be given to. Raises `ProblemError` 400, 409 `agent_unusable` and `no_agents`."""
    known = await roster(session, project, utc_now())
    if project.mode == "manual" and all(agent.unusable for agent in known):
        raise ProblemError(NO_AGENTS.status, NO_AGENTS.code, NO_AGENTS.title, NO_AGENTS.detail)
    if wishes.agent_ids is None:
        return known
    by_id = {agent.spec.agent_id: agent for agent in known}
    if unknown := [id_[:80] for id_ in wishes.agent_ids if id_ not in by_id]:
        raise bad_request("agent_ids", f"{', '.join(unknown[:NAMED_MAX])}: no such agent among the project's")
    chosen = [by_id[id_] for id_ in dict.fromkeys(wishes.agent_ids)]
    if faults := [f"agent {agent.slug} {agent.unusable}" for agent in chosen if agent.unusable]:
        raise _unusable("; ".join(faults[:NAMED_MAX]))
    return tuple(chosen)


async def planner_of(
    session: AsyncSession, project: Project, agents: Sequence[ProjectAgent], agent_id: str | None
) -> AgentSpec:
    """Who makes the plan. Raises `ProblemError` 400, 409 `agent_unusable`."""
    if agent_id is None:
        usable = (agent.spec for agent in agents if agent.spec.sdk_type == "claude" and not agent.unusable)
        return next(usable, AgentSpec(sdk_type="claude", model=DEFAULT_MODEL))
    found = await find_usable(session, project.owner_id, agent_id, utc_now())
    if found is None:
        raise bad_request(
            "agent_id", f"{agent_id[:80]}: no such agent, or not one that the project's owner may use; GET /api/agents"
        )
    if not found.spec.is_auto:
        instead = "ask for the prompt instead: POST /api/projects/…/plans/prompt"
        raise bad_request(
            "agent_id", f"agent {found.slug} is a person's: only an automatic one can be asked; {instead}"
        )
    if found.unusable:
        raise _unusable(f"agent {found.slug} {found.unusable}")
    return found.spec


async def send_request(
    state: State, caller: Caller, plan: str, command: Request, correlation: str
) -> tuple[PlanRequested | None, int]:
    """What was stored and its sequence; None where just that was asked for before.

    Raises `Refused`, `ProblemError` 409 `being_deleted`, `StoreUnavailable`.
    """
    meta = new_meta(state, caller, correlation)
    try:
        decided = await promptly(
            to_plan(state.store, plan, command, meta, patience_s=LOG_PATIENCE_S), LOG_PATIENCE_S + GRACE_S
        )
    except Contended as error:
        raise StoreUnavailable(str(error)) from error
    await refuse_closed_meanwhile(state, caller, command.project, plan)
    return cast(PlanRequested | None, decided.event), decided.seq


def requested_before(records: list[Recorded], correlation: str) -> tuple[PlanRequested, int] | None:
    """What this very request stored, whose answer was lost; only with an idempotency key it has the same ids again."""
    for record in records:
        if record.meta.correlation == correlation and isinstance(record.event, PlanRequested):
            return record.event, record.seq
    return None


def newest_request(records: list[Recorded]) -> PlanRequested | None:
    """What was asked for last."""
    return next((record.event for record in reversed(records) if isinstance(record.event, PlanRequested)), None)


def _unusable(what: str) -> ProblemError:
    detail = f"{what}: make it usable, or choose another one"
    return ProblemError(AGENT_UNUSABLE.status, AGENT_UNUSABLE.code, AGENT_UNUSABLE.title, detail)

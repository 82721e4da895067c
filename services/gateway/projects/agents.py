"""Which agents a project has: those that its owner may use, all of them of the project's mode."""

from collections.abc import Sequence

import msgspec
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.gateway.agents.roster import usable_agents_for, wrong_mode
from services.gateway.database.tables import Agent, AgentType, Mode, Project, ProjectAgent
from services.gateway.problems import Problem, ProblemError, bad_request

WRONG_MODE = Problem(
    status=409,
    code="wrong_mode",
    title="Agents of the wrong mode",
    detail="agent coder is driven by a runner and the project is manual: it takes agents that people drive themselves",
)
SHOWN_MAX = 20


async def agent_ids_of(session: AsyncSession, project_ids: Sequence[str]) -> dict[str, list[str]]:
    """By project, the ids of its agents in the order of their names."""
    rows = await session.execute(
        select(ProjectAgent.project_id, ProjectAgent.agent_id)
        .join(Agent, Agent.id == ProjectAgent.agent_id)
        .where(ProjectAgent.project_id.in_(project_ids))
        .order_by(Agent.slug, Agent.id)
    )
    found: dict[str, list[str]] = {project_id: [] for project_id in project_ids}
    for project_id, agent_id in rows:
        found[project_id].append(agent_id)
    return found


async def set_agents(session: AsyncSession, project: Project, agent_ids: Sequence[str]) -> None:
    """Puts these agents in place of those before; the project's row is there. Raises as `check_agents`."""
    await check_agents(session, project.owner_id, msgspec.convert(project.mode, Mode), agent_ids)
    await session.execute(delete(ProjectAgent).where(ProjectAgent.project_id == project.id))
    session.add_all(ProjectAgent(project_id=project.id, agent_id=id_) for id_ in dict.fromkeys(agent_ids))


async def check_agents(session: AsyncSession, owner_id: str, mode: Mode, agent_ids: Sequence[str]) -> None:
    """Raises `ProblemError` 400 for agents that the owner may not use, 409 `wrong_mode` for those that don't fit."""
    usable = await usable_agents_for(session, owner_id)
    unknown = [id_ for id_ in agent_ids if id_ not in usable]
    if unknown:
        named = ", ".join(id_[:80] for id_ in unknown[:SHOWN_MAX])
        raise bad_request(
            "agent_ids", f"{named}: no such agent, or not one that the project's owner may use; see GET /api/agents"
        )
    _refuse_unfitting(mode, [(usable[id_].agent, usable[id_].type) for id_ in agent_ids])


async def check_mode(session: AsyncSession, project: Project) -> None:
    """Raises `ProblemError` 409 `wrong_mode` where the agents that the project has don't fit its mode."""
    rows = await session.execute(
        select(Agent, AgentType)
        .join(ProjectAgent, ProjectAgent.agent_id == Agent.id)
        .join(AgentType, AgentType.id == Agent.agent_type_id)
        .where(ProjectAgent.project_id == project.id)
        .order_by(Agent.slug)
    )
    _refuse_unfitting(msgspec.convert(project.mode, Mode), [(agent, agent_type) for agent, agent_type in rows])


def _refuse_unfitting(mode: Mode, agents: Sequence[tuple[Agent, AgentType]]) -> None:
    unfitting = [f"agent {agent.slug} {why}" for agent, type_ in agents if (why := wrong_mode(type_, mode))]
    if unfitting:
        raise ProblemError(WRONG_MODE.status, WRONG_MODE.code, WRONG_MODE.title, "; ".join(unfitting[:SHOWN_MAX]))

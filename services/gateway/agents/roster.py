"""A project's agents as its plans are written and checked against."""

from datetime import datetime

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.gateway.agents.visibility import usable_by
from services.gateway.database.tables import Agent, AgentType, Mode, Project, User
from services.gateway.database.tables import ProjectAgent as ProjectAgentRow
from shared.spec import AGENT_NAME_MAX_CHARS, DEFAULT_MODEL, AgentSpec, ProjectAgent, SdkType

_SUFFIX_CHARS = 6


class UsableAgent(msgspec.Struct, frozen=True):
    """An agent that an account may put into its projects, and that agent's type."""

    agent: Agent
    type: AgentType


async def usable_agents_for(session: AsyncSession, owner_id: str) -> dict[str, UsableAgent]:
    """By id: the account's own agents and the public ones, as far as their types are its own or public too."""
    rows = await session.execute(
        select(Agent, AgentType)
        .join(AgentType, Agent.agent_type_id == AgentType.id)
        .where(usable_by(owner_id, Agent), usable_by(owner_id, AgentType))
    )
    return {agent.id: UsableAgent(agent, agent_type) for agent, agent_type in rows}


def wrong_mode(agent_type: AgentType, mode: Mode) -> str:
    """Why an agent of that type can't be in a project of that mode, in words; empty: it can."""
    is_auto = agent_type.sdk_type is not None
    if is_auto == (mode == "auto"):
        return ""
    does = "is driven by a runner" if is_auto else "is a person's"
    takes = "runners drive (sdk_type is set)" if mode == "auto" else "people drive themselves (sdk_type is null)"
    return f"{does} and the project is {mode}: it takes agents that {takes}"


async def roster(session: AsyncSession, project: Project, now: datetime) -> tuple[ProjectAgent, ...]:
    """The project's agents, the owner's own first, each with why it is unusable now, if it is.

    Each has a slug of its own: of two with the same one, which then belong to two accounts, the second gets a part of
    its id behind it.
    """
    rows = await session.execute(
        select(Agent, AgentType)
        .join(ProjectAgentRow, ProjectAgentRow.agent_id == Agent.id)
        .join(AgentType, Agent.agent_type_id == AgentType.id)
        .where(ProjectAgentRow.project_id == project.id)
        .order_by(Agent.owner_id != project.owner_id, Agent.created_at, Agent.id)
    )
    usable = await usable_agents_for(session, project.owner_id)
    frozen = await _frozen(session)
    agents: list[ProjectAgent] = []
    slugs: set[str] = set()
    for agent, agent_type in rows:
        slug = agent.slug if agent.slug not in slugs else _own_slug(agent)
        slugs.add(slug)
        if agent.id not in usable:
            fault = "is not open to the project's owner any more"
        else:
            fault = _fault(agent, agent_type, frozen, now) or wrong_mode(
                agent_type, "auto" if project.mode == "auto" else "manual"
            )
        agents.append(_entry(agent, agent_type, slug, fault))
    return tuple(agents)


async def find_usable(session: AsyncSession, owner_id: str, agent_id: str, now: datetime) -> ProjectAgent | None:
    """An agent that the account may use, whatever its projects have; None where there is none of that id."""
    found = (await usable_agents_for(session, owner_id)).get(agent_id)
    if found is None:
        return None
    fault = _fault(found.agent, found.type, await _frozen(session), now)
    return _entry(found.agent, found.type, found.agent.slug, fault)


async def _frozen(session: AsyncSession) -> set[str]:
    return set(await session.scalars(select(User.id).where(User.is_frozen)))


def _entry(agent: Agent, agent_type: AgentType, slug: str, unusable: str) -> ProjectAgent:
    return ProjectAgent(
        slug=slug,
        name=agent.name,
        type_name=agent_type.name,
        spec=_spec(agent, agent_type),
        unusable=unusable,
        capabilities=agent.capabilities,
    )


def _fault(agent: Agent, agent_type: AgentType, frozen: set[str], now: datetime) -> str:
    if frozen & {agent.owner_id, agent_type.owner_id}:
        return "belongs to an account that is frozen"
    if not agent.is_active:
        return "is inactive"
    if agent.expires_at is not None and agent.expires_at <= now:
        return f"expired on {agent.expires_at:%Y-%m-%d}"
    return ""


def _spec(agent: Agent, agent_type: AgentType) -> AgentSpec:
    sdk_type = msgspec.convert(agent_type.sdk_type, SdkType | None)
    return AgentSpec(
        sdk_type=sdk_type,
        model=model_of(agent_type, agent.model) if sdk_type == "claude" else None,
        command=tuple(agent_type.command) if sdk_type == "command" else (),
        agent_id=agent.id,
        agent_type_id=agent_type.id,
    )


def model_of(agent_type: AgentType, model: str | None) -> str:
    """The model asked for, else the type's first one, else `DEFAULT_MODEL`."""
    return model or next(iter(agent_type.models), DEFAULT_MODEL)


def _own_slug(agent: Agent) -> str:
    return f"{agent.slug[: AGENT_NAME_MAX_CHARS - _SUFFIX_CHARS - 1]}-{agent.id[:_SUFFIX_CHARS]}"

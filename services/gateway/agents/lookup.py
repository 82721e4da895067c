"""Finds agents and agent types for a caller. What they may not see is answered exactly like what does not exist."""

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from services.gateway.accounts.access import Caller
from services.gateway.agents.visibility import check_may_change, seen_by, taken, usable_by
from services.gateway.database.tables import Agent, AgentType, User
from services.gateway.problems import bad_request, not_found
from shared.subjects import ROW_ID


async def find_type(session: AsyncSession, caller: Caller, type_id: str) -> AgentType:
    """Raises `ProblemError` 404."""
    query = select(AgentType).where(AgentType.id == type_id, seen_by(caller, AgentType))
    found = await session.scalar(query) if ROW_ID.fullmatch(type_id) else None
    if found is None:
        raise not_found(f"agent type {type_id[:80]}", "GET /api/agent-types")
    return found


async def find_agent(session: AsyncSession, caller: Caller, agent_id: str) -> Agent:
    """Raises `ProblemError` 404."""
    query = select(Agent).where(Agent.id == agent_id, seen_by(caller, Agent))
    found = await session.scalar(query) if ROW_ID.fullmatch(agent_id) else None
    if found is None:
        raise not_found(f"agent {agent_id[:80]}", "GET /api/agents")
    return found


async def locked_type(session: AsyncSession, caller: Caller, type_id: str) -> AgentType:
    """One that the caller may change, which nobody else changes meanwhile. Raises `ProblemError` 403 or 404."""
    check_may_change(caller, await find_type(session, caller, type_id))
    return await session.get_one(AgentType, type_id, with_for_update=True, populate_existing=True)


async def locked_agent(session: AsyncSession, caller: Caller, agent_id: str) -> Agent:
    """The same for an agent."""
    check_may_change(caller, await find_agent(session, caller, agent_id))
    return await session.get_one(Agent, agent_id, with_for_update=True, populate_existing=True)


async def type_for_agent(session: AsyncSession, owner_id: str, type_id: str) -> AgentType:
    """A type that the owner's agents may be of; it stays so until the transaction ends. Raises `ProblemError` 400."""
    query = select(AgentType).where(AgentType.id == type_id, usable_by(owner_id, AgentType))
    found = await session.scalar(query.with_for_update(read=True)) if ROW_ID.fullmatch(type_id) else None
    if found is None:
        raise bad_request("agent_type_id", "the type of an agent is one of its owner's own, or an admin's")
    return found


async def admins_among(session: AsyncSession, user_ids: set[str]) -> set[str]:
    """Those whose things are public."""
    return set(await session.scalars(select(User.id).where(User.role == "admin", User.id.in_(user_ids))))


async def flush_named(session: AsyncSession, what: str, name: str) -> None:
    """Writes a row whose name is unique. Raises `ProblemError` 409 `name_taken`."""
    try:
        await session.flush()
    except IntegrityError as error:
        raise taken(what, name) from error

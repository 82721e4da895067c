"""Routes of agents, and the router of everything about agents."""

from datetime import datetime
from typing import Any

from litestar import Request, Response, Router, delete, get, patch, post
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, JSONBody
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.gateway.accounts import audit
from services.gateway.accounts.access import Caller
from services.gateway.agents.availability import availability, reset_time
from services.gateway.agents.bodies import (
    RESET_MAX,
    AgentChanges,
    AgentView,
    LimitReport,
    NewAgent,
    checked_capabilities,
    checked_model,
    checked_name,
    checked_time,
    slug_of,
)
from services.gateway.agents.in_use import open_plan_with
from services.gateway.agents.lookup import admins_among, find_agent, flush_named, locked_agent, type_for_agent
from services.gateway.agents.type_routes import TYPE_ROUTES, IfMatch, TextFilter
from services.gateway.agents.visibility import check_may_change, in_use, seen_by, taken
from services.gateway.conditions import ETAG, check_if_match, etag
from services.gateway.database.tables import Agent, AgentType, Project, ProjectAgent
from services.gateway.idempotency import ids_of
from services.gateway.paging import Asked, Flag, Order, Page, asked_page
from services.gateway.patch import given
from services.gateway.problems import Problem, ProblemError, bad_request, documented
from shared.clock import utc_now

AGENTS = Order(
    {"name": Agent.name, "slug": Agent.slug, "created_at": Agent.created_at}, id_=Agent.id, default="name"
)  # fmt: skip

_TAKEN = taken("an agent with the slug", "coder").problem
_USED = in_use("agent coder", "project Shop", "deactivate it instead").problem
_NO_WINDOW = Problem(
    status=422,
    code="no_window",
    title="No end is known",
    detail="the agent has no short_window_hours, so resets_at must say when the limit ends",
)


@get("/agents", dependencies={"asked": Provide(asked_page)}, responses=documented(400, 401))
async def list_agents(
    state: State,
    request: Request[Caller, Any, Any],
    asked: NamedDependency[Asked],
    agent_type_id: TextFilter = None,
    slug: TextFilter = None,
    is_active: Flag = None,
) -> Page[AgentView]:
    """One's own agents and the public ones; an admin's list has all of them."""
    query = select(Agent).where(seen_by(request.user, Agent))
    for column, wanted in ((Agent.agent_type_id, agent_type_id), (Agent.slug, slug)):
        if wanted is not None:
            query = query.where(column == wanted)
    if is_active is not None:
        query = query.where(Agent.is_active.is_(is_active == "true"))
    async with state.db.read() as session:
        rows, next_ = await AGENTS.fetch(session, query, asked)
        return Page(await _views(session, rows, utc_now()), next_)


@post("/agents", status_code=201, response_headers=[ETAG], responses=documented(400, 401, _TAKEN))
async def create_agent(
    data: JSONBody[NewAgent], state: State, request: Request[Caller, Any, Any]
) -> Response[AgentView]:
    """Makes an agent of one's own type or of a public one. An admin's is public."""
    caller, now, agent_id = request.user, utc_now(), ids_of(request).new_id()
    row = Agent(
        id=agent_id,
        owner_id=caller.id,
        name=checked_name(data.name),
        slug=data.slug or slug_of(data.name),
        agent_type_id=data.agent_type_id,
        model=data.model,
        capabilities=checked_capabilities(data.capabilities),
        is_active=data.is_active,
        short_window_hours=data.short_window_hours,
        long_window_hours=data.long_window_hours,
        expires_at=checked_time("expires_at", data.expires_at) if data.expires_at else None,
        created_at=now,
        version=1,
    )
    async with state.db.write() as session:
        made_before = await session.get(Agent, agent_id)
        if made_before is None:
            _check_model(await type_for_agent(session, caller.id, row.agent_type_id), row.model)
            session.add(row)
            await flush_named(session, "an agent with the slug", row.slug)
            details = {"name": row.name, "slug": row.slug, "agent_type_id": row.agent_type_id}
            await audit.record(session, caller.actor, "agent.created", row.id, details, now)
        return await _answer(session, made_before or row, now, 201)


@get("/agents/{agent:str}", response_headers=[ETAG], responses=documented(401, 404))
async def read_agent(agent: FromPath[str], state: State, request: Request[Caller, Any, Any]) -> Response[AgentView]:
    """One agent."""
    async with state.db.read() as session:
        return await _answer(session, await find_agent(session, request.user, agent), utc_now(), 200)


@patch("/agents/{agent:str}", response_headers=[ETAG], responses=documented(400, 401, 403, 404, _TAKEN, 412))
async def change_agent(
    agent: FromPath[str],
    data: JSONBody[AgentChanges],
    state: State,
    request: Request[Caller, Any, Any],
    if_match: IfMatch = None,
) -> Response[AgentView]:
    """Changes what is given. Plans that were finalized before keep the model and the command that they had."""
    caller, now, changes = request.user, utc_now(), given(data)
    if "name" in changes:
        checked_name(changes["name"])
    if "capabilities" in changes:
        changes["capabilities"] = checked_capabilities(changes["capabilities"] or "")
    if changes.get("expires_at") is not None:
        checked_time("expires_at", changes["expires_at"])
    async with state.db.write() as session:
        row = await locked_agent(session, caller, agent)
        check_if_match(if_match, row.version)
        if "agent_type_id" in changes or "model" in changes:
            agent_type_id = changes.get("agent_type_id", row.agent_type_id)
            agent_type = await type_for_agent(session, row.owner_id, agent_type_id)
            _check_model(agent_type, changes.get("model", row.model))
        fields = [field for field, value in changes.items() if value != getattr(row, field)]
        await _change(session, row, {field: changes[field] for field in fields}, caller, now)
        return await _answer(session, row, now, 200)


@delete("/agents/{agent:str}", status_code=204, responses=documented(400, 401, 403, 404, _USED, 412))
async def delete_agent(
    agent: FromPath[str], state: State, request: Request[Caller, Any, Any], if_match: IfMatch = None
) -> None:
    """Removes an agent that no project and no open plan has. Any other can be deactivated: `is_active: false`."""
    caller, now = request.user, utc_now()
    async with state.db.read() as session:
        row = await find_agent(session, caller, agent)
        check_may_change(caller, row)
    if plan := await open_plan_with(state, row.id):
        raise in_use(f"agent {row.name}", f"plan {plan}, which has not ended", "deactivate it instead")
    async with state.db.write() as session:
        row = await locked_agent(session, caller, agent)
        check_if_match(if_match, row.version)
        projects = select(Project.name).join(ProjectAgent, ProjectAgent.project_id == Project.id)
        if name := await session.scalar(projects.where(ProjectAgent.agent_id == row.id).limit(1)):
            raise in_use(f"agent {row.name}", f"project {name}", "deactivate it instead")
        await session.delete(row)
        await audit.record(session, caller.actor, "agent.deleted", row.id, {"name": row.name, "slug": row.slug}, now)


@post(
    "/agents/{agent:str}/availability",
    status_code=200,
    response_headers=[ETAG],
    responses=documented(400, 401, 403, 404, _NO_WINDOW),
)
async def report_limit(
    agent: FromPath[str], data: JSONBody[LimitReport], state: State, request: Request[Caller, Any, Any]
) -> Response[AgentView]:
    """Notes that a subscription's limit was hit and when it resets, or that the agent is available again."""
    caller, now = request.user, utc_now()
    _check_report(data, now)
    async with state.db.write() as session:
        row = await locked_agent(session, caller, agent)
        if data.limit is None:
            changes: dict[str, Any] = {"short_resets_at": None, "long_resets_at": None}
        else:
            resets_at = reset_time(row, data.limit, data.resets_at, now)
            if resets_at is None:
                detail = f"the agent has no {data.limit}_window_hours, so resets_at must say when the limit ends"
                raise ProblemError(_NO_WINDOW.status, _NO_WINDOW.code, _NO_WINDOW.title, detail)
            changes = {f"{data.limit}_resets_at": resets_at}
        await _change(session, row, changes, caller, now)
        return await _answer(session, row, now, 200)


def _check_report(data: LimitReport, now: datetime) -> None:
    if data.available == (data.limit is not None):
        raise bad_request("limit", "say either which limit was hit, short or long, or available: true")
    if data.resets_at is None:
        return
    if data.limit is None:
        raise bad_request("resets_at", "an agent that is available has no limit that resets")
    if not now < checked_time("resets_at", data.resets_at) <= now + RESET_MAX:
        raise bad_request("resets_at", f"a limit resets later than now, and within {RESET_MAX.days} days")


def _check_model(agent_type: AgentType, model: str | None) -> None:
    if model is None:
        return
    checked_model("model", model)
    if agent_type.models and model not in agent_type.models:
        known = ", ".join(agent_type.models)
        raise bad_request("model", f"{model} is not among the models of agent type {agent_type.name}: {known}")


async def _change(session: AsyncSession, row: Agent, changes: dict[str, Any], caller: Caller, now: datetime) -> None:
    if not changes:
        return
    for field, value in changes.items():
        setattr(row, field, value)
    row.version += 1
    await flush_named(session, "an agent with the slug", row.slug)
    await audit.record(session, caller.actor, "agent.changed", row.id, {"fields": sorted(changes)}, now)


async def _answer(session: AsyncSession, row: Agent, now: datetime, status: int) -> Response[AgentView]:
    [view] = await _views(session, [row], now)
    return Response(view, status_code=status, headers={"ETag": etag(row.version)})


async def _views(session: AsyncSession, rows: list[Agent], now: datetime) -> list[AgentView]:
    admins = await admins_among(session, {row.owner_id for row in rows})
    query = select(AgentType).where(AgentType.id.in_({row.agent_type_id for row in rows}))
    types = {agent_type.id: agent_type for agent_type in await session.scalars(query)}
    return [
        AgentView(
            id=row.id,
            owner_id=row.owner_id,
            name=row.name,
            slug=row.slug,
            agent_type_id=row.agent_type_id,
            agent_type_name=types[row.agent_type_id].name,
            model=row.model,
            capabilities=row.capabilities,
            is_active=row.is_active,
            is_auto=types[row.agent_type_id].sdk_type is not None,
            is_public=row.owner_id in admins,
            short_window_hours=row.short_window_hours,
            long_window_hours=row.long_window_hours,
            expires_at=row.expires_at,
            availability=availability(row, now),
            created_at=row.created_at,
            version=row.version,
        )
        for row in rows
    ]


agents_router = Router(
    path="/",
    tags=["agents"],
    route_handlers=[
        *TYPE_ROUTES, list_agents, create_agent, read_agent, change_agent, delete_agent, report_limit,
    ],
)  # fmt: skip

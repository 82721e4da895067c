"""Routes: plans. Commands answer once their event is stored; reads take `min_seq` to be at least that fresh."""

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, Router, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, JSONBody, QueryParameter

from services.gateway.accounts.access import Caller
from services.gateway.archives.rows import is_imported
from services.gateway.conditions import ETAG, etag
from services.gateway.paging import Asked, Page, asked_page
from services.gateway.plans.by_hand import by_hand_router
from services.gateway.plans.candidates import candidates_router
from services.gateway.plans.commands import REFUSED, Accepted, Note, command_plan, note_of
from services.gateway.plans.comparison import comparison_router
from services.gateway.plans.finalize import AGENT_UNUSABLE, PLAN_IN_PROGRESS, Choice, finalize
from services.gateway.plans.fork import fork_router
from services.gateway.plans.generate import generate_router
from services.gateway.plans.lookup import find_plan, reading_plan
from services.gateway.problems import documented
from services.gateway.projection import reads
from services.gateway.projection.plan_view import PlanView
from services.gateway.projection.reads import MinSeq, PlanFilters, fresh, json_answer
from services.gateway.projects.lookup import BEING_DELETED, find_project
from shared import commands as c
from shared.spec import BUDGET_MIN_USD, PLAN_BUDGET_MAX_USD

Word = Annotated[str | None, QueryParameter(max_length=64)]


class Resumption(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to go on."""

    budget_usd: Annotated[float, msgspec.Meta(ge=BUDGET_MIN_USD, le=PLAN_BUDGET_MAX_USD)] | None = None
    """The plan's new budget, where the old one was spent; null: it stays."""


@get("/plans", dependencies={"asked": Provide(asked_page)}, responses=documented(400, 401))
async def list_plans(
    state: State,
    request: Request[Caller, Any, Any],
    asked: NamedDependency[Asked],
    project: Word = None,
    status: Word = None,
    standing: Word = None,
    min_seq: MinSeq = 0,
) -> Response[Page[PlanView]]:
    """The plans of one's own projects, the newest first; an admin's list has all of them."""
    await fresh(state, min_seq)
    filters = PlanFilters(project=project, status=status, standing=standing)
    async with state.db.read() as session:
        return json_answer(await reads.list_plans(session, request.user, filters, asked))


@get("/projects/{project:str}/plans", dependencies={"asked": Provide(asked_page)}, responses=documented(400, 401, 404))
async def list_project_plans(
    project: FromPath[str],
    state: State,
    request: Request[Caller, Any, Any],
    asked: NamedDependency[Asked],
    status: Word = None,
    standing: Word = None,
    min_seq: MinSeq = 0,
) -> Response[Page[PlanView]]:
    """A project's plans, the newest first."""
    await fresh(state, min_seq)
    filters = PlanFilters(project=project, status=status, standing=standing)
    async with state.db.read() as session:
        await find_project(session, request.user, project)
        return json_answer(await reads.list_plans(session, request.user, filters, asked))


@get("/plans/{plan:str}", response_headers=[ETAG], responses=documented(400, 401, 404))
async def read_plan(
    plan: FromPath[str], state: State, request: Request[Caller, Any, Any], min_seq: MinSeq = 0
) -> Response[PlanView]:
    """One plan."""
    if is_imported(plan):
        fold = await find_plan(state, request.user, plan)
        return json_answer(fold.view_json(), {"ETag": etag(fold.seq)})
    async with reading_plan(state, request.user, plan, min_seq) as (session, row):
        return json_answer(await reads.plan_json(session, row), {"ETag": etag(row.seq)})


@post(
    "/plans/{plan:str}/finalize",
    status_code=202,
    responses=documented(400, 401, 404, REFUSED, PLAN_IN_PROGRESS, AGENT_UNUSABLE, BEING_DELETED, 412),
)
async def finalize_plan(
    plan: FromPath[str], data: JSONBody[Choice], state: State, request: Request[Caller, Any, Any]
) -> Accepted:
    """Chooses a candidate, with the project's settings as they are now: from here on the plan runs."""
    await find_plan(state, request.user, plan)
    return await finalize(state, request.user, plan, data)


@post("/plans/{plan:str}/pause", status_code=202, responses=documented(400, 401, 404, REFUSED))
async def pause_plan(
    plan: FromPath[str], state: State, request: Request[Caller, Any, Any], data: JSONBody[Note | None] = None
) -> Accepted:
    """Starts nothing new; what runs goes on."""
    await find_plan(state, request.user, plan)
    return await command_plan(state, request.user, plan, c.Pause(reason=note_of(data)))


@post("/plans/{plan:str}/resume", status_code=202, responses=documented(400, 401, 404, REFUSED))
async def resume_plan(
    plan: FromPath[str], state: State, request: Request[Caller, Any, Any], data: JSONBody[Resumption | None] = None
) -> Accepted:
    """Starts tasks again, with another budget if need be."""
    await find_plan(state, request.user, plan)
    command = c.Resume(budget_usd=data.budget_usd if data is not None else None)
    return await command_plan(state, request.user, plan, command)


@post("/plans/{plan:str}/cancel", status_code=202, responses=documented(400, 401, 404, REFUSED))
async def cancel_plan(
    plan: FromPath[str], state: State, request: Request[Caller, Any, Any], data: JSONBody[Note | None] = None
) -> Accepted:
    """Ends the plan: nothing starts any more, what runs is stopped."""
    await find_plan(state, request.user, plan)
    return await command_plan(state, request.user, plan, c.CancelPlan(reason=note_of(data)))


plans_router = Router(
    path="/",
    tags=["plans"],
    route_handlers=[
        list_plans, list_project_plans, read_plan, finalize_plan, pause_plan, resume_plan, cancel_plan,
        candidates_router, generate_router, by_hand_router, comparison_router, fork_router,
    ],
)  # fmt: skip

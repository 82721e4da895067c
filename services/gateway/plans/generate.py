"""Routes: candidates that an agent makes from a goal. The answer comes once they are asked for; the plan shows more."""

from typing import Annotated, Any

import msgspec
from litestar import Request, Router, post
from litestar.datastructures import State
from litestar.params import FromPath, JSONBody

from services.gateway.accounts.access import Caller
from services.gateway.agents.connection_test import NO_RUNNER
from services.gateway.database.tables import Mode, Project
from services.gateway.idempotency import ids_of
from services.gateway.plans.candidates import BAD_COMMIT
from services.gateway.plans.commands import REFUSED
from services.gateway.plans.draft_limit import TOO_MANY_DRAFTS, room_for_draft, room_for_makings
from services.gateway.plans.finalize import AGENT_UNUSABLE, NO_BUDGET
from services.gateway.plans.head import NO_HEAD, head_of
from services.gateway.plans.lookup import find_plan, promptly
from services.gateway.plans.requesting import (
    NO_AGENTS,
    Wishes,
    agents_of,
    goal_of,
    newest_request,
    planner_of,
    requested_before,
    send_request,
)
from services.gateway.problems import ProblemError, bad_request, documented
from services.gateway.projects.lookup import BEING_DELETED, find_open_project
from services.gateway.projects.settings_of import collab_of
from shared import commands as c
from shared.events import PlanRequested
from shared.plan import EARLY, INITIAL, MAKINGS_MAX, PlanState, evolve
from shared.spec import (
    BUDGET_MAX_USD,
    BUDGET_MIN_USD,
    TIMEOUT_MAX_MINUTES,
    TIMEOUT_MIN_MINUTES,
    TIMEOUT_MINUTES,
    PlanningMode,
)
from shared.subjects import PLAN
from shared.transact import fold

BUDGET_USD = 5.0


class NewDrafts(Wishes, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What candidates an agent is to make."""

    candidates: Annotated[int, msgspec.Meta(ge=1, le=MAKINGS_MAX)] = 1
    """How many, each by itself."""
    agent_id: str | None = None
    """Who makes them: an automatic agent that the project's owner may use. null: the project's first one of Claude,
    else Claude with the runner's own key."""
    budget_usd: Annotated[float, msgspec.Meta(ge=BUDGET_MIN_USD, le=BUDGET_MAX_USD)] = BUDGET_USD
    """The most that making one may cost."""
    timeout_minutes: Annotated[float, msgspec.Meta(ge=TIMEOUT_MIN_MINUTES, le=TIMEOUT_MAX_MINUTES)] = TIMEOUT_MINUTES
    auto_finalize: bool | None = None
    """Whether the only candidate is finalized as soon as it is there; null: the project's choice, and never where
    there are several. Only in a project with a `budget_usd`: nobody looks at what the plan asks for."""


class Requested(msgspec.Struct, frozen=True):
    """Candidates are asked for. `GET /api/plans/{plan}` tells how each stands."""

    plan: str
    candidates: list[str]
    """The names that they will have."""
    seq: int


_PROBLEMS = documented(
    400, 401, 404, REFUSED, BEING_DELETED, AGENT_UNUSABLE, NO_AGENTS, NO_BUDGET, NO_HEAD, TOO_MANY_DRAFTS, BAD_COMMIT,
    NO_RUNNER,
)  # fmt: skip


@post("/projects/{project:str}/plans/generate", status_code=202, responses=_PROBLEMS)
async def generate_plan(
    project: FromPath[str],
    state: State,
    request: Request[Caller, Any, Any],
    data: JSONBody[NewDrafts | None] = None,
) -> Requested:
    """Has an agent make a plan for a goal: it reads the code repository, and what it makes is checked as any plan."""
    ids, wishes = ids_of(request), data or NewDrafts()
    plan, correlation = ids.new_plan_id(), ids.new_id()
    if before := requested_before(await promptly(state.store.read(plan, PLAN)), correlation):
        return _answer(plan, *before)
    command, owner_id = await _command(state, request.user, project, wishes, INITIAL, None)
    async with (
        room_for_draft(state, request.user, owner_id),
        room_for_makings(state, request.user, owner_id, INITIAL, wishes.candidates),
    ):
        return await _send(state, request.user, plan, command, correlation)


@post("/plans/{plan:str}/generate", status_code=202, responses=_PROBLEMS)
async def generate_more(
    plan: FromPath[str], state: State, request: Request[Caller, Any, Any], data: JSONBody[NewDrafts | None] = None
) -> Requested:
    """Has an agent make more candidates, for the same goal and commit unless others are named, while none is chosen."""
    await find_plan(state, request.user, plan)
    correlation, wishes = ids_of(request).new_id(), data or NewDrafts()
    records = await promptly(state.store.read(plan, PLAN))
    if before := requested_before(records, correlation):
        return _answer(plan, *before)
    known = fold(INITIAL, evolve, records).state
    if known.status not in EARLY:
        raise c.Refused(f"the plan is {known.status}: no candidate can be added")
    newest = newest_request(records)
    command, owner_id = await _command(state, request.user, known.project, wishes, known, newest)
    async with room_for_makings(state, request.user, owner_id, known, wishes.candidates):
        return await _send(state, request.user, plan, command, correlation)


async def _command(
    state: State,
    caller: Caller,
    project_id: str,
    wishes: NewDrafts,
    known: PlanState,
    newest: PlanRequested | None,
) -> tuple[c.Request, str]:
    """The command, and who owns the project. `known` is the plan as it stands, `newest` what was asked for before."""
    base_commit = wishes.checked_commit
    async with state.db.read() as session:
        project = await find_open_project(session, caller, project_id)
        agents = await agents_of(session, project, wishes)
        planner = await planner_of(session, project, agents, wishes.agent_id)
    first = next(iter(known.candidates.values()), None)
    goal = goal_of(wishes, newest.goal if newest is not None else "", project)
    auto_finalize = _finalizes_itself(wishes, project, known)
    before = first or newest
    repo_url = before.repo_url if before is not None else project.code_repo_url
    base_commit = base_commit or (before.base_commit if before is not None else "")
    command = c.Request(
        count=wishes.candidates,
        goal=goal,
        project=project.id,
        mode=msgspec.convert(project.mode, Mode),
        planning_mode=wishes.planning_mode or msgspec.convert(project.planning_mode, PlanningMode),
        agents=agents,
        repo_url=repo_url,
        base_commit=base_commit or await head_of(state, project.id, repo_url),
        planner=planner,
        budget_usd=wishes.budget_usd,
        timeout_s=wishes.timeout_minutes * 60,
        auto_finalize=auto_finalize,
        collab=collab_of(project),
    )
    return command, project.owner_id


def _finalizes_itself(wishes: NewDrafts, project: Project, known: PlanState) -> bool:
    """Raises `ProblemError` 400 where that is wanted of one of several, 409 where nothing would bound its cost."""
    others = len(known.candidates) + sum(asked.open for asked in known.requests.values())
    is_only_one = wishes.candidates == 1 and not others
    if wishes.auto_finalize and not is_only_one:
        raise bad_request("auto_finalize", "only a plan's one candidate is finalized by itself: of several, choose one")
    wanted = is_only_one and (project.auto_finalize if wishes.auto_finalize is None else wishes.auto_finalize)
    if wanted and project.budget_usd is None:
        raise ProblemError(NO_BUDGET.status, NO_BUDGET.code, NO_BUDGET.title, NO_BUDGET.detail)
    return wanted


async def _send(state: State, caller: Caller, plan: str, command: c.Request, correlation: str) -> Requested:
    stored, seq = await send_request(state, caller, plan, command, correlation)
    return Requested(plan, list(stored.candidates) if stored is not None else [], seq)


def _answer(plan: str, stored: PlanRequested, seq: int) -> Requested:
    return Requested(plan, list(stored.candidates), seq)


generate_router = Router(path="/", tags=["plans"], route_handlers=[generate_plan, generate_more])

"""Routes: the prompt with which a person has a plan made, by an agent of their own or by thinking.

The project's row says which plan is asked for by hand (`prompt_plan_id`). Until a candidate of it is there, whoever
asks again is given the same plan and path, with what is wanted now. Another id is put there only in place of the one
that was seen there, so of several who ask at once all get one plan.
"""

from contextlib import nullcontext
from typing import Any, cast

import msgspec
from litestar import Request, Router, get, post
from litestar.datastructures import State
from litestar.params import FromPath, JSONBody
from sqlalchemy import CursorResult, update

from services.gateway.accounts.access import Caller
from services.gateway.database.tables import Mode, Project
from services.gateway.idempotency import ids_of
from services.gateway.plans.candidates import BAD_COMMIT, asked_by_hand
from services.gateway.plans.commands import REFUSED
from services.gateway.plans.draft_limit import TOO_MANY_DRAFTS, room_for_draft
from services.gateway.plans.finalize import AGENT_UNUSABLE
from services.gateway.plans.head import NO_HEAD, head_of
from services.gateway.plans.lookup import find_plan, promptly
from services.gateway.plans.planner_client import planning_prompt
from services.gateway.plans.requesting import NO_AGENTS, Wishes, agents_of, goal_of, send_request
from services.gateway.problems import ProblemError, documented
from services.gateway.projects.lookup import BEING_DELETED, find_open_project
from services.gateway.projects.settings_of import collab_of
from shared import commands as c
from shared.events import PlanRequested
from shared.plan import EARLY, PlanState
from shared.spec import PlanningMode
from shared.store import StoreUnavailable
from shared.transact import load_plan

TRIES_MAX = 10
_UNTOLD = frozenset({NO_HEAD.code, "no_runner"})


class PlanPrompt(msgspec.Struct, frozen=True):
    """What to give to one's agent, and where the plan that comes of it is looked for."""

    plan: str
    path: str
    """From the root of `repo_url`. The plan may as well be sent to `POST /api/plans/{plan}/candidates`."""
    repo_url: str
    """The collaboration repository."""
    prompt: str
    seq: int


@post(
    "/projects/{project:str}/plans/prompt",
    status_code=200,
    responses=documented(
        400, 401, 404, REFUSED, BEING_DELETED, AGENT_UNUSABLE, NO_AGENTS, TOO_MANY_DRAFTS, 422, BAD_COMMIT
    ),
)
async def ask_for_prompt(
    project: FromPath[str], state: State, request: Request[Caller, Any, Any], data: JSONBody[Wishes | None] = None
) -> PlanPrompt:
    """Asks for a plan by hand. Again, before a candidate is there, it is the same plan and path, with what is said now.

    A person finalizes it, whatever the project says.

    Where no `base_commit` is named and no runner can tell the head of the repository, it is left open until the plan
    comes.
    """
    ids, wishes = ids_of(request), data or Wishes()
    new_plan, correlation = ids.new_plan_id(), ids.new_id()
    wishes_commit = wishes.checked_commit
    for _ in range(TRIES_MAX):
        async with state.db.read() as session:
            row = await find_open_project(session, request.user, project)
            agents = await agents_of(session, row, wishes)
        seen = row.prompt_plan_id
        known = (await promptly(load_plan(state.store, seen))).state if seen is not None else PlanState()
        before = asked_by_hand(known)
        plan = seen if seen is not None and _is_unused(known, before) else new_plan
        if plan != seen and not await _replace(state, row.id, seen, plan):
            continue  # somebody else asks for one just now
        if plan == new_plan:
            before = None
        goal = goal_of(wishes, before.goal if before is not None else "", row)
        command = c.Request(
            by_hand=True,
            goal=goal,
            project=row.id,
            mode=msgspec.convert(row.mode, Mode),
            planning_mode=wishes.planning_mode or msgspec.convert(row.planning_mode, PlanningMode),
            agents=agents,
            repo_url=row.code_repo_url,
            base_commit=wishes_commit or await _head_if_known(state, row, before),
            collab=collab_of(row),
        )
        room = room_for_draft(state, request.user, row.owner_id) if before is None else nullcontext()
        async with room:
            await send_request(state, request.user, plan, command, correlation)
        return await _prompt(state, plan)
    raise StoreUnavailable(f"others asked for plans of project {project[:80]} all the while")


@get("/plans/{plan:str}/prompt", responses=documented(401, 404, REFUSED))
async def show_prompt(plan: FromPath[str], state: State, request: Request[Caller, Any, Any]) -> PlanPrompt:
    """The prompt of a plan that was asked for by hand, as long as no candidate came of it."""
    await find_plan(state, request.user, plan)
    return await _prompt(state, plan)


async def _prompt(state: State, plan: str) -> PlanPrompt:
    loaded = await promptly(load_plan(state.store, plan))
    asked = asked_by_hand(loaded.state)
    if asked is None:
        raise c.Refused(
            f"plan {plan} is {loaded.state.status} and not asked for by hand: POST /api/projects/…/plans/prompt asks"
        )
    prompt = await planning_prompt(state.nc, plan)
    return PlanPrompt(plan, asked.collab.plan_path(plan), asked.collab.repo_url, prompt, loaded.seq)


def _is_unused(known: PlanState, asked: PlanRequested | None) -> bool:
    """Whether the plan is still to be made by hand; of one that is absent, somebody is just storing the request."""
    return known.status == "absent" or (known.status in EARLY and not known.candidates and asked is not None)


async def _head_if_known(state: State, project: Project, before: PlanRequested | None) -> str:
    """The head; the one that was found before, or none, where no runner can tell it: the prompt is worth having."""
    try:
        return await head_of(state, project.id, project.code_repo_url)
    except ProblemError as error:
        if error.problem.code not in _UNTOLD:
            raise
        return before.base_commit if before is not None else ""


async def _replace(state: State, project_id: str, seen: str | None, plan: str) -> bool:
    """Compare and set: False where somebody else was faster."""
    as_seen = (
        Project.id == project_id,
        Project.deleting_since.is_(None),
        Project.prompt_plan_id.is_not_distinct_from(seen),
    )
    async with state.db.write() as session:
        done = await session.execute(update(Project).where(*as_seen).values(prompt_plan_id=plan))
        return cast("CursorResult[Any]", done).rowcount == 1


by_hand_router = Router(path="/", tags=["plans"], route_handlers=[ask_for_prompt, show_prompt])

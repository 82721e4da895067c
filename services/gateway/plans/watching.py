"""Routes and questions about collaboration repositories: whoever watches them fetches now and tells what lies there."""

from typing import Any

import msgspec
from litestar import Request, Router, post
from litestar.datastructures import State
from litestar.params import FromPath

from services.gateway.accounts.access import Caller
from services.gateway.agents.connection_test import NO_RUNNER, ask
from services.gateway.plans.lookup import find_task
from services.gateway.problems import Problem, ProblemError, documented
from services.gateway.projects.lookup import BEING_DELETED, find_open_project
from services.gateway.projects.settings_of import collab_of
from shared.requests import LookReply, LookRequest
from shared.spec import ResultPlace
from shared.subjects import WATCH_LOOK
from shared.task import TaskState

REFRESH_TIMEOUT_S = 45.0
"""A large repository that is fetched for the first time takes its time."""
DISPATCH_TIMEOUT_S = 10.0
"""Nobody is to wait for longer before a task is handed out."""

FETCH_FAILED = Problem(
    status=502,
    code="fetch_failed",
    title="The repository could not be fetched",
    detail="https://git.example.com/a/collab.git: repository not found",
)
NOT_MANUAL = Problem(
    status=409,
    code="not_manual",
    title="Not a manual task",
    detail="task T1 is done by a runner, which delivers its result itself: nothing is looked for",
)


class Looked(msgspec.Struct, frozen=True, kw_only=True):
    """What lies in the collaboration repository now. What is new there is being taken."""

    repo_url: str
    commit: str
    """Its head; empty: it has no commit yet."""
    path: str
    """Of the task's result; empty: the whole repository was meant."""
    blob: str
    """Object id of what lies there; empty: nothing does."""


@post(
    "/projects/{project:str}/refresh",
    status_code=200,
    responses=documented(401, 404, BEING_DELETED, FETCH_FAILED, NO_RUNNER),
)
async def refresh_project(project: FromPath[str], state: State, request: Request[Caller, Any, Any]) -> Looked:
    """Looks into the project's collaboration repository now: results and plans that are new there are taken."""
    async with state.db.read() as session:
        row = await find_open_project(session, request.user, project)
    return await _refreshed(state, LookRequest(project=row.id, repo_url=collab_of(row).repo_url))


@post(
    "/plans/{plan:str}/tasks/{code:str}/refresh",
    status_code=200,
    responses=documented(401, 404, NOT_MANUAL, FETCH_FAILED, NO_RUNNER),
)
async def refresh_task(
    plan: FromPath[str], code: FromPath[str], state: State, request: Request[Caller, Any, Any]
) -> Looked:
    """Looks for a manual task's result now, whatever the task's state; before it is readied, into its repository."""
    fold = await find_task(state, request.user, plan, code)
    task, chosen = fold.board.tasks[code], fold.board.plan.chosen
    if not task.is_manual or chosen is None:
        detail = f"task {code} is not done by a person: nothing is looked for"
        raise ProblemError(NOT_MANUAL.status, NOT_MANUAL.code, NOT_MANUAL.title, detail)
    repo_url = fold.board.plan.settings.collab.repo_url or chosen.repo_url
    place = task.place or ResultPlace(repo_url=repo_url, path="")
    return await _refreshed(state, LookRequest(project=chosen.project, repo_url=place.repo_url, path=place.path))


async def with_what_lies_there(state: State, project: str, place: ResultPlace, task: TaskState) -> ResultPlace:
    """The place with what lies there at the moment of handing out: that is no result of what is handed out.

    Where nobody can look within `DISPATCH_TIMEOUT_S`, it is what was seen there last: a person is not to wait for a
    repository that is away.
    """
    asked = LookRequest(project=project, repo_url=place.repo_url, path=place.path)
    try:
        found = await _look(state, asked, DISPATCH_TIMEOUT_S)
        blob = found.blob
    except ProblemError:
        blob = task.blob or place.blob
    return msgspec.structs.replace(place, blob=blob)


async def _refreshed(state: State, asked: LookRequest) -> Looked:
    found = await _look(state, asked, REFRESH_TIMEOUT_S)
    return Looked(repo_url=asked.repo_url, commit=found.commit, path=asked.path, blob=found.blob)


async def _look(state: State, asked: LookRequest, timeout_s: float) -> LookReply:
    """Raises `ProblemError` 502 `fetch_failed`, 503 `no_runner`."""
    found = await ask(state.nc, WATCH_LOOK, msgspec.json.encode(asked), LookReply, timeout_s)
    if found.fault:
        raise ProblemError(FETCH_FAILED.status, FETCH_FAILED.code, FETCH_FAILED.title, found.fault)
    return found


watching_router = Router(path="/", tags=["tasks"], route_handlers=[refresh_project, refresh_task])

"""Route: what a task changed. A runner looks into the repository; the gateway never runs git."""

from typing import Any

import msgspec
from litestar import Request, Router, get
from litestar.datastructures import State
from litestar.params import FromPath

from services.gateway.accounts.access import Caller
from services.gateway.agents.connection_test import NO_RUNNER, ask, choose_runner
from services.gateway.archives.looking import diff
from services.gateway.archives.rows import is_imported
from services.gateway.credentials import stored
from services.gateway.credentials.keyring import CredentialUnreadable
from services.gateway.plans.lookup import find_task
from services.gateway.problems import Problem, ProblemError, documented
from services.gateway.projection.views import PlanFold
from shared.requests import DiffReply, DiffRequest
from shared.subjects import runner_diff

DIFF_TIMEOUT_S = 60.0
"""A runner that has never seen the repository fetches it first."""

NO_COMMIT = Problem(
    status=409, code="no_commit", title="Nothing to compare yet", detail="task T1 has no commit yet: it is running"
)
NO_DIFF = Problem(
    status=409,
    code="no_diff",
    title="The repository could not be read",
    detail="fetching from https://git.example.com/a/b.git: repository not found",
)


class TaskDiff(msgspec.Struct, frozen=True, kw_only=True):
    """What a task changed. Its text is an agent's, control characters included: whoever shows it strips them."""

    plan: str
    task: str
    base: str
    """The commit that the task started from."""
    commit: str
    """Its result; while a person is asked to accept one, that one."""
    stat: str
    patch: str
    cut: bool
    """Whether it was too long, and cut."""


@get("/plans/{plan:str}/tasks/{code:str}/diff", responses=documented(401, 404, NO_COMMIT, NO_DIFF, NO_RUNNER))
async def read_diff(
    plan: FromPath[str], code: FromPath[str], state: State, request: Request[Caller, Any, Any]
) -> TaskDiff:
    """What the task changed against what it started from, as a runner finds it in the code repository."""
    fold = await find_task(state, request.user, plan, code)
    base, commit = _ends(fold, code)
    if is_imported(plan):
        found = await diff(await state.imported.known(plan), code)
        return _shown(found, plan, code, base, commit)
    chosen = fold.board.plan.chosen
    project, repo_url = (chosen.project, chosen.repo_url) if chosen is not None else ("", "")
    done_by = fold.board.tasks[code].inherited or plan
    found = await ask_for_diff(state, project, done_by, repo_url, base, commit)
    return _shown(found, plan, code, base, commit)


def _shown(found: DiffReply, plan: str, code: str, base: str, commit: str) -> TaskDiff:
    """Raises `ProblemError` 409 `no_diff`."""
    if found.refused:
        raise ProblemError(NO_DIFF.status, NO_DIFF.code, NO_DIFF.title, found.refused)
    return TaskDiff(plan=plan, task=code, base=base, commit=commit, stat=found.stat, patch=found.patch, cut=found.cut)


async def ask_for_diff(state: State, project: str, plan: str, repo_url: str, base: str, commit: str) -> DiffReply:
    """What some runner finds between two commits, or why it can't. Raises `ProblemError` 503 `no_runner`, 409."""
    runner, sealed = await choose_runner(state.nc, "git", await _credentials(state, project))
    asked = DiffRequest(project=project, plan=plan, repo_url=repo_url, base=base, commit=commit, sealed=sealed)
    return await ask(state.nc, runner_diff(runner), msgspec.json.encode(asked), DiffReply, DIFF_TIMEOUT_S)


def _ends(fold: PlanFold, code: str) -> tuple[str, str]:
    """The base and the result. Raises `ProblemError` 409 where there is no result."""
    state = fold.board.tasks[code]
    asked = state.approval
    if state.status == "awaiting_approval" and asked is not None and asked.kind == "result":
        return asked.base_commit, asked.commit
    view = fold.task(code)
    if not view.commit or not view.base_commit:
        detail = f"task {code} has no commit{' yet' if not view.ended_at else ''}; its status is {view.status}"
        raise ProblemError(NO_COMMIT.status, NO_COMMIT.code, NO_COMMIT.title, detail)
    return view.base_commit, view.commit


async def _credentials(state: State, project: str) -> bytes | None:
    async with state.db.read() as session:
        try:
            credentials = await stored.read_git_credentials(session, state.keyring, project)
        except CredentialUnreadable as error:
            raise ProblemError(NO_DIFF.status, NO_DIFF.code, NO_DIFF.title, str(error)) from error
    return msgspec.json.encode(credentials) if credentials is not None else None


diff_router = Router(path="/", tags=["tasks"], route_handlers=[read_diff])

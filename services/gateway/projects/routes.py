"""Routes: projects, and the credentials of their repositories."""

from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, Response, Router, delete, get, patch, post, put
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, HeaderParameter, JSONBody, QueryParameter
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.gateway.accounts import audit
from services.gateway.accounts.access import Caller
from services.gateway.agents.connection_test import NO_RUNNER, try_out
from services.gateway.conditions import ETAG, check_if_match, etag
from services.gateway.credentials import stored
from services.gateway.credentials.keyring import CredentialUnreadable
from services.gateway.credentials.origins import origin
from services.gateway.database.tables import Project
from services.gateway.idempotency import ids_of
from services.gateway.paging import Asked, Order, Page, asked_page
from services.gateway.patch import given
from services.gateway.problems import Problem, ProblemError, documented
from services.gateway.projects import repositories
from services.gateway.projects.agents import WRONG_MODE, agent_ids_of, check_mode, set_agents
from services.gateway.projects.bodies import (
    NewProject,
    ProjectChanges,
    ProjectDetails,
    ProjectView,
    details,
    view,
)
from services.gateway.projects.deletion import BeingDeleted, begin_deletion
from services.gateway.projects.lookup import BEING_DELETED, find_open_project, find_project, seen_by
from services.gateway.projects.repositories import NewGitCredentials
from services.gateway.projects.values import check_together, checked, cleared
from shared.clock import utc_now
from shared.requests import TestReply

PROJECTS = Order({"name": Project.name, "created_at": Project.created_at}, id_=Project.id, default="-created_at")

IfMatch = Annotated[str | None, HeaderParameter(name="If-Match", description="The ETag that was read; optional.")]
TextFilter = Annotated[str | None, QueryParameter(max_length=200, pattern=r"^[^\x00]*\Z")]
_UNREADABLE = Problem(
    status=409,
    code="credential_unreadable",
    title="The credentials can't be decrypted",
    detail="the git secret of 5f0c5e5e9f6b4d3e8a1b2c3d is encrypted with key 'k1', which the gateway's keyring does "
    "not hold: put that key back into its file, or set the secret anew",
)
_WOULD_CLEAR = Problem(
    status=409,
    code="would_clear_credentials",
    title="Its git credentials would be removed",
    detail="the git credentials that are stored belong to the repositories' present scheme, host and port: send "
    "clear_credentials true with the new address to remove them, then set them anew",
)


@get("/projects", dependencies={"asked": Provide(asked_page)}, responses=documented(400, 401))
async def list_projects(
    state: State, request: Request[Caller, Any, Any], asked: NamedDependency[Asked], name: TextFilter = None
) -> Page[ProjectView]:
    """One's own projects; an admin's list has all of them."""
    query = select(Project).where(seen_by(request.user))
    if name is not None:
        query = query.where(Project.name == name)
    async with state.db.read() as session:
        rows, next_ = await PROJECTS.fetch(session, query, asked)
        ids = [row.id for row in rows]
        agents, hints = await agent_ids_of(session, ids), await stored.hints(session, "git", ids)
    return Page([view(row, agents[row.id], hints.get(row.id)) for row in rows], next_)


@post("/projects", status_code=201, response_headers=[ETAG], responses=documented(400, 401, WRONG_MODE))
async def create_project(
    data: JSONBody[NewProject], state: State, request: Request[Caller, Any, Any]
) -> Response[ProjectDetails]:
    """Makes a project. Every fault is named at once."""
    caller, now, project_id = request.user, utc_now(), ids_of(request).new_id()
    values = checked(msgspec.structs.asdict(data), local_repositories=state.settings.local_repositories)
    agent_ids = values.pop("agent_ids")
    async with state.db.write() as session:
        project = await session.get(Project, project_id)
        if project is None:  # else a repetition of a request whose answer was lost
            project = Project(id=project_id, owner_id=caller.id, created_at=now, version=1, **values)
            check_together(project)
            session.add(project)
            await session.flush()
            await set_agents(session, project, agent_ids)
            await audit.record(session, caller.actor, "project.created", project_id, {"name": project.name}, now)
        return await _answer(session, state, project, 201)


@get("/projects/{project:str}", response_headers=[ETAG], responses=documented(401, 404))
async def read_project(
    project: FromPath[str], state: State, request: Request[Caller, Any, Any]
) -> Response[ProjectDetails]:
    """One project. While it is being deleted, `deleting_since` is set."""
    async with state.db.read() as session:
        return await _answer(session, state, await find_project(session, request.user, project), 200)


@patch(
    "/projects/{project:str}",
    response_headers=[ETAG],
    responses=documented(400, 401, 404, WRONG_MODE, BEING_DELETED, _WOULD_CLEAR, 412),
)
async def change_project(
    project: FromPath[str],
    data: JSONBody[ProjectChanges],
    state: State,
    request: Request[Caller, Any, Any],
    if_match: IfMatch = None,
) -> Response[ProjectDetails]:
    """Changes what is given. Plans that are finalized keep the settings that they were finalized with.

    Git credentials stay where they are sent to: a repository at another scheme, host or port needs
    `clear_credentials`, and then credentials of its own.
    """
    caller, now = request.user, utc_now()
    changes = given(data)
    may_clear = changes.pop("clear_credentials")
    wanted = checked(cleared(changes), local_repositories=state.settings.local_repositories)
    agent_ids = wanted.pop("agent_ids", None)
    async with state.db.write() as session:
        row = await find_open_project(session, caller, project, lock=True)
        check_if_match(if_match, row.version)
        fields = [field for field, value in wanted.items() if value != getattr(row, field)]
        known = {origin(url) for url in repositories.repo_urls(row)}
        for field in fields:
            setattr(row, field, wanted[field])
        check_together(row)
        if not known.issuperset(map(origin, repositories.repo_urls(row))):
            await _leave_credentials_behind(session, row, caller, may_clear=may_clear)
        if agent_ids is not None:
            if set(agent_ids) != set((await agent_ids_of(session, [row.id]))[row.id]):
                fields.append("agent_ids")
            await set_agents(session, row, agent_ids)
        elif "mode" in fields:
            await check_mode(session, row)
        if fields:
            row.version += 1
            await session.flush()
            await audit.record(session, caller.actor, "project.changed", row.id, {"fields": fields}, now)
        return await _answer(session, state, row, 200)


async def _leave_credentials_behind(session: AsyncSession, row: Project, caller: Caller, *, may_clear: bool) -> None:
    """A repository has moved to where the credentials were never sent to."""
    if not may_clear and await stored.has(session, "git", row.id):
        raise ProblemError(_WOULD_CLEAR.status, _WOULD_CLEAR.code, _WOULD_CLEAR.title, _WOULD_CLEAR.detail)
    await stored.clear(session, "git", row.id, caller.actor, utc_now())


@delete("/projects/{project:str}", status_code=202, responses=documented(400, 401, 404, 412))
async def delete_project(
    project: FromPath[str], state: State, request: Request[Caller, Any, Any], if_match: IfMatch = None
) -> BeingDeleted:
    """Cancels the project's plans and, once they have ended, removes it with all that runners keep of it.

    Nothing new can be made in it from now on. The project's page answers 404 when it is gone.
    """
    async with state.db.write() as session:
        row = await find_project(session, request.user, project, lock=True)
        check_if_match(if_match, row.version)
        answer = await begin_deletion(session, row, request.user.actor, utc_now())
    state.deletions.wake()
    return answer


@put("/projects/{project:str}/git-credentials", status_code=204, responses=documented(400, 401, 404, BEING_DELETED))
async def set_git_credentials(
    project: FromPath[str], data: JSONBody[NewGitCredentials], state: State, request: Request[Caller, Any, Any]
) -> None:
    """Puts these credentials in place of those before. They are stored encrypted and never shown."""
    credentials = await repositories.checked(data)
    async with state.db.write() as session:
        row = await find_open_project(session, request.user, project, lock=True)
        await stored.set_git_credentials(session, state.keyring, row.id, credentials, request.user.actor, utc_now())
        row.version += 1


@delete("/projects/{project:str}/git-credentials", status_code=204, responses=documented(401, 404, BEING_DELETED))
async def clear_git_credentials(project: FromPath[str], state: State, request: Request[Caller, Any, Any]) -> None:
    """Removes the project's credentials, if it has any."""
    async with state.db.write() as session:
        row = await find_open_project(session, request.user, project, lock=True)
        if await stored.clear(session, "git", row.id, request.user.actor, utc_now()):
            row.version += 1


@post("/projects/{project:str}/test", status_code=200, responses=documented(401, 404, _UNREADABLE, NO_RUNNER))
async def test_project(project: FromPath[str], state: State, request: Request[Caller, Any, Any]) -> TestReply:
    """Has a runner look at both repositories with the project's credentials, and tells what came of it in words."""
    async with state.db.read() as session:
        row = await find_project(session, request.user, project)
        try:
            credentials = await stored.read_git_credentials(session, state.keyring, row.id)
        except CredentialUnreadable as error:
            raise ProblemError(_UNREADABLE.status, _UNREADABLE.code, _UNREADABLE.title, str(error)) from error
    plaintext = msgspec.json.encode(credentials) if credentials is not None else None
    return await try_out(state.nc, "git", plaintext, repo_urls=repositories.repo_urls(row))


async def _answer(session: AsyncSession, state: State, project: Project, status: int) -> Response[ProjectDetails]:
    agent_ids = (await agent_ids_of(session, [project.id]))[project.id]
    hint = (await stored.hints(session, "git", (project.id,))).get(project.id)
    kind: Literal["token", "deploy_key", "unreadable"] | None = None
    if hint is not None:
        try:
            credentials = await stored.read_git_credentials(session, state.keyring, project.id)
            kind = credentials.kind if credentials is not None else None
        except CredentialUnreadable:
            kind = "unreadable"
    body = details(project, agent_ids, hint, kind)
    return Response(body, status_code=status, headers={"ETag": etag(project.version)})


projects_router = Router(
    path="/",
    tags=["projects"],
    route_handlers=[
        list_projects, create_project, read_project, change_project, delete_project, set_git_credentials,
        clear_git_credentials, test_project,
    ],
)  # fmt: skip

"""Which commit a plan starts from where nobody says: the head of the code repository, as a runner finds it."""

import msgspec
from litestar.datastructures import State

from services.gateway.agents.connection_test import ask, choose_runner
from services.gateway.credentials import stored
from services.gateway.credentials.keyring import CredentialUnreadable
from services.gateway.problems import Problem, ProblemError
from shared.requests import HeadReply, HeadRequest
from shared.subjects import runner_head

HEAD_TIMEOUT_S = 40.0
"""A large repository may be slow to list its branches. With a runner's introduction it stays under
`idempotency.LOST_AFTER`."""

NO_HEAD = Problem(
    status=409,
    code="no_head",
    title="The repository could not be read",
    detail="https://git.example.com/a/b.git: repository not found; name a base_commit, or look at the repository's "
    "address and credentials (POST /api/projects/…/test)",
)


async def head_of(state: State, project: str, repo_url: str) -> str:
    """The default branch's commit. Raises `ProblemError` 409 `no_head`, 503 `no_runner`."""
    async with state.db.read() as session:
        try:
            credentials = await stored.read_git_credentials(session, state.keyring, project)
        except CredentialUnreadable as error:
            raise _no_head(str(error)) from error
    runner, sealed = await choose_runner(
        state.nc, "git", msgspec.json.encode(credentials) if credentials is not None else None
    )
    asked = HeadRequest(project=project, repo_url=repo_url, sealed=sealed)
    found = await ask(state.nc, runner_head(runner), msgspec.json.encode(asked), HeadReply, HEAD_TIMEOUT_S)
    if found.refused or not found.commit:
        raise _no_head(found.refused or f"{repo_url} has no commit yet")
    return found.commit


def _no_head(why: str) -> ProblemError:
    detail = f"{why}; name a base_commit, or look at the repository's address and credentials"
    return ProblemError(NO_HEAD.status, NO_HEAD.code, NO_HEAD.title, detail)

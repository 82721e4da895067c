"""Whether what a fork would keep is still in the code repository: a runner looks, the gateway never runs git.

The refs of tasks go some days after their plan has ended (`treadle clean`), and the log can't tell.
"""

import asyncio
from collections.abc import Sequence

import msgspec
from litestar.datastructures import State

from services.gateway.agents.connection_test import ask, choose_runner
from services.gateway.credentials import stored
from services.gateway.credentials.keyring import CredentialUnreadable
from services.gateway.problems import Problem, ProblemError
from shared.events import Head
from shared.plan import Candidate
from shared.requests import BundleReply, BundleRequest, ForkReply
from shared.subjects import runner_bundle

LOOK_WITHIN_S = 12.0
"""With the planner's answers it stays under `idempotency.LOST_AFTER`. A first fetch of a huge repository takes longer:
the fork is then made all the same, and says that nobody has looked."""
NAMED_MAX = 20

COMMITS_GONE = Problem(
    status=409,
    code="commits_gone",
    title="What would be kept is gone",
    detail="the code repository does not have the work of T1 (0123456789ab) any more: `treadle clean` removes the refs "
    "of plans that ended, and what is in no branch goes with them. Let it be done anew: --only T1..,T4",
)


async def why_not_looked(state: State, plan: str, candidate: Candidate, fork: ForkReply) -> str:
    """Why nobody can tell whether what the fork of `plan` keeps is there; empty: it is.

    Raises `ProblemError` 409 `commits_gone`.
    """
    heads = tuple(Head(task.code, task.commit, task.plan) for task in fork.kept if task.commit)
    if not heads:
        return ""
    base = candidate.base_commit or heads[0].commit  # a plan that people do may have begun without one
    try:
        async with asyncio.timeout(LOOK_WITHIN_S):
            async with state.db.read() as session:
                credentials = await stored.read_git_credentials(session, state.keyring, candidate.project)
            plaintext = msgspec.json.encode(credentials) if credentials is not None else None
            runner, sealed = await choose_runner(state.nc, "git", plaintext)
            wanted = BundleRequest(
                project=candidate.project,
                plan=plan,
                repo_url=candidate.repo_url,
                base=base,
                heads=heads,
                sealed=sealed,
                only_look=True,
            )
            body = msgspec.json.encode(wanted)
            found = await ask(state.nc, runner_bundle(runner), body, BundleReply, LOOK_WITHIN_S)
    except TimeoutError:
        return f"the runner did not find out within {LOOK_WITHIN_S:g} s"
    except (ProblemError, CredentialUnreadable) as error:
        return str(error)
    if found.missing:
        _raise_gone(found.missing, base, heads, fork)
    return found.refused


def _raise_gone(missing: Sequence[str], base: str, heads: Sequence[Head], fork: ForkReply) -> None:
    gone = [head for head in heads if head.commit in missing]
    if not gone:
        detail = (
            f"the code repository has no commit {base[:12]}, which the plan starts from: push it there, then try again"
        )
        raise ProblemError(COMMITS_GONE.status, COMMITS_GONE.code, COMMITS_GONE.title, detail)
    named = ", ".join(f"{head.task} ({head.commit[:12]})" for head in gone[:NAMED_MAX])
    more = f" and {len(gone) - NAMED_MAX} more" if len(gone) > NAMED_MAX else ""
    anew = [*(f"{head.task}.." for head in gone), *(task.code for task in fork.runs)]
    only = f"--only {','.join(anew)}" if len(anew) <= NAMED_MAX else "--only, with all that is to run"
    detail = (
        f"the code repository does not have the work of {named}{more} any more: `treadle clean` removes the refs of "
        f"plans that ended, and what is in no branch goes with them. Let it be done anew: {only}"
    )
    raise ProblemError(COMMITS_GONE.status, COMMITS_GONE.code, COMMITS_GONE.title, detail)

"""What a lease does: prepare the workspace, set up, run the agent, verify, store its commit. Or deliver the plan.

Every fault ends in a `Finished` whose message a person can act on; nothing is half done when it does.
"""

import asyncio
import logging
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import TypeVar

from services.runner.agents import Activity, AgentRunner, Finished, Job, activity
from services.runner.agents.command import ShellFailure, run_shell
from services.runner.deliver import deliver, move_head, push_lease
from services.runner.failed import Failed
from services.runner.git import GitFailed, GitRejected, MergeConflict, printable
from services.runner.git_access import GitAccess
from services.runner.git_threads import git_threads, in_thread
from services.runner.in_use import in_use
from services.runner.lease import Completion, Key, Lease
from services.runner.leftovers import Outcome, commit_leftovers
from services.runner.merge import merge_base_commit
from services.runner.mirror import Mirror, mirror_of
from services.runner.workspace import (
    Workspace,
    create_workspace,
    holds_unsaved_work,
    place_of_plan,
    remove_workspace,
)
from shared.events import FailureKind, Result, TaskDispatched, Usage
from shared.requests import AgentCredentials
from shared.spec import AgentSpec

log = logging.getLogger("treadle.runner")

Report = Callable[[Activity], None]
T = TypeVar("T")

NO_AGENT = AgentSpec(sdk_type="command", command=("true",))


class AgentExecutor:
    """Runs one kind of agent in worktrees of its own."""

    def __init__(self, data_dir: Path, agent: AgentRunner, environment: Mapping[str, str]) -> None:
        self._data_dir = data_dir
        self._threads = git_threads()
        self._agent = agent
        self._environment = environment
        self._workspaces: dict[Key, Workspace] = {}
        self._in_use: dict[Key, ExitStack] = {}

    async def execute(self, lease: Lease, report: Report) -> Completion | Finished:
        """See `Executor.execute`."""
        usage = Usage()
        try:
            async with asyncio.timeout(lease.dispatch.timeout_s), AsyncExitStack() as held:
                access = await lease.credentials.git(lease.dispatch)
                # Before all else: what it must do without is better known before minutes of set-up than behind them.
                credentials = await lease.credentials.agent(lease.dispatch) if self._agent.needs_credentials else None
                workspace = await self._prepare(lease, access)
                scratch = self._scratch(lease)
                held.callback(shutil.rmtree, scratch, ignore_errors=True)
                job = self._job(lease, workspace, scratch, credentials)
                if unknown := [name for name in lease.dispatch.env_allow if name not in self._environment]:
                    report(activity("text", f"env_allow names what this runner does not have: {', '.join(unknown)}"))
                await self._shell(lease.dispatch.setup, job, report, "setup_failed", "set-up")
                finished = await self._agent.run(job, report)
                usage = finished.usage
                if finished.kind != "completed":
                    return finished
                await self._shell(lease.dispatch.verify, job, report, "verification_failed", "verification")
                return await self._store(lease, workspace, finished)
        except Failed as failed:
            return Finished(kind=failed.kind, message=str(failed), usage=usage)
        except TimeoutError:
            minutes = lease.dispatch.timeout_s / 60
            words = f"It did not finish within {minutes:g} minutes, set-up and verification included."
            return Finished(
                kind="timeout", message=f"{words} Raise timeout_minutes, or make the task smaller.", usage=usage
            )

    async def settle(self, plan: str, task: str, dispatch: TaskDispatched, commit: str) -> None:
        """See `Executor.settle`."""
        held = (w for key, w in self._workspaces.items() if (key.plan, key.task) == (plan, task))
        workspace = next(held, None)
        # On a redelivery there is no lease any more, and so there are no credentials.
        mirror = workspace.mirror if workspace else mirror_of(self._data_dir, dispatch.repo_url, dispatch.project)

        def work() -> None:
            with in_use(mirror.path):
                move_head(mirror, plan, task, commit)

        await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def tidy(self, lease: Lease) -> None:
        """Removes the workspace, but for one with work that was never pushed: that one is kept, and listed."""
        workspace = self._workspaces.pop(lease.key, None)
        if workspace is not None:
            await asyncio.to_thread(self._remove_saved, workspace)
        if (held := self._in_use.pop(lease.key, None)) is not None:
            held.close()

    async def _prepare(self, lease: Lease, access: GitAccess | None) -> Workspace:
        key, dispatch = lease.key, lease.dispatch
        held = self._in_use[key] = ExitStack()

        def work() -> Workspace:
            mirror = mirror_of(self._data_dir, dispatch.repo_url, dispatch.project, access)
            held.enter_context(in_use(place_of_plan(self._data_dir, key.plan)))
            held.enter_context(in_use(mirror.path))
            base = prepare_base(mirror, key.plan, dispatch)
            return create_workspace(self._data_dir, mirror, key.plan, key.task, key.lease, base)

        workspace = await in_git(work, "setup_failed", self._threads)
        self._workspaces[key] = workspace
        return workspace

    def _scratch(self, lease: Lease) -> Path:
        key = lease.key
        scratch = self._data_dir / "scratch" / f"{key.plan}-{key.task}-{key.lease}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(mode=0o700, parents=True)
        return scratch

    def _job(self, lease: Lease, workspace: Workspace, scratch: Path, credentials: AgentCredentials | None) -> Job:
        key, dispatch = lease.key, lease.dispatch
        return Job(
            plan=key.plan,
            task=key.task,
            attempt=dispatch.attempt,
            lease=key.lease,
            prompt=dispatch.prompt,
            agent=dispatch.agent or NO_AGENT,
            cwd=workspace.code,
            scratch=scratch,
            timeout_s=dispatch.timeout_s,
            budget_usd=dispatch.budget_usd,
            env={name: self._environment[name] for name in dispatch.env_allow if name in self._environment},
            credentials=credentials,
        )

    async def _shell(self, commands: tuple[str, ...], job: Job, report: Report, kind: FailureKind, doing: str) -> None:
        failure: ShellFailure | None = await run_shell(commands, job, report)
        if failure is not None:
            words = f"The {doing} command `{failure.command}` ended with status {failure.status}."
            raise Failed(kind, f"{words} Its last output:\n{failure.tail}")

    async def _store(self, lease: Lease, workspace: Workspace, finished: Finished) -> Completion:
        """Commits what was left, pushes it under the lease's ref. After this the work can't be lost."""

        def work() -> Outcome:
            outcome = commit_leftovers(workspace, lease.dispatch.task_name)
            push_lease(workspace, outcome.commit)
            return outcome

        outcome = await in_git(work, "agent_error", self._threads)
        summary = finished.summary or "done, without a word"
        if not outcome.changed:
            summary += " (no file was changed)"
        if outcome.left_out:
            left_out = ", ".join(printable(path) for path in outcome.left_out[:5])
            summary += f" (not committed, being git repositories of their own: {left_out})"
        return Completion(
            base_commit=workspace.base,
            commit=outcome.commit,
            result=Result(task_code=lease.key.task, summary=summary, artifacts=outcome.files),
            usage=finished.usage,
        )

    def _remove_saved(self, workspace: Workspace) -> None:
        if holds_unsaved_work(workspace.path, workspace.task):
            log.warning("%s is kept: it holds work that was never pushed", workspace.path)
        else:
            remove_workspace(workspace.path)


class DeliverExecutor:
    """Makes the plan's branch."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._threads = git_threads()

    async def execute(self, lease: Lease, report: Report) -> Completion | Finished:
        """See `Executor.execute`."""
        key, dispatch = lease.key, lease.dispatch

        def work(access: GitAccess | None) -> Completion:
            mirror = mirror_of(self._data_dir, dispatch.repo_url, dispatch.project, access)
            with in_use(mirror.path):
                delivered = deliver(mirror, key.plan, dispatch.base_commit, dispatch.heads)
            summary = f"branch {delivered.branch} is at {delivered.commit[:12]}"
            if not delivered.changed:
                summary += ", where the plan began: no task changed a file"
            return Completion(
                base_commit=dispatch.base_commit,
                commit=delivered.commit,
                result=Result(task_code=key.task, summary=summary),
            )

        try:
            async with asyncio.timeout(dispatch.timeout_s):
                access = await lease.credentials.git(dispatch)
                return await in_git(lambda: work(access), "unavailable", self._threads)
        except Failed as failed:
            return Finished(kind=failed.kind, message=str(failed))
        except TimeoutError:
            return Finished(kind="timeout", message="The delivery did not finish in time: is the repository reachable?")

    async def settle(self, plan: str, task: str, dispatch: TaskDispatched, commit: str) -> None:
        """Nothing: the plan's branch is the head."""

    async def tidy(self, lease: Lease) -> None:
        """Nothing is left behind."""


def prepare_base(mirror: Mirror, plan: str, dispatch: TaskDispatched) -> str:
    """Makes sure that the commits are here and merges them: the commit that the agent starts from."""
    mirror.ensure(plan, [dispatch.base_commit, *(head.commit for head in dispatch.heads)])
    return merge_base_commit(mirror.path, dispatch.base_commit, dispatch.heads)


async def in_git(work: Callable[[], T], kind: FailureKind, threads: ThreadPoolExecutor) -> T:
    """Runs blocking git work as `in_thread` does. Raises `Failed` with `kind`, or as a merge conflict."""
    try:
        return await in_thread(work, threads)
    except MergeConflict as conflict:
        words = "Each is kept under refs/treadle/<plan>/<task>/head: merge them by hand, or start a new plan "
        words += "in which one depends on the other."
        raise Failed("merge_conflict", f"{_sentence(str(conflict))} {words}") from conflict
    except GitRejected as error:
        raise Failed("setup_failed", _sentence(str(error))) from error  # it would be refused again
    except GitFailed as error:
        raise Failed(kind, _sentence(str(error))) from error
    except OSError as error:
        raise Failed("setup_failed", f"The workspace could not be used: {error}") from error


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "!", "?")) else ".")

"""Runs leases in one kind of agent, each in a workspace of its own, and clears up behind them.

What one lease does is in `services.runner.attempt`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from services.runner.agents import AgentRunner, Finished, Report
from services.runner.attempt import Attempt
from services.runner.caches import SetupCaches
from services.runner.checkpoint import Fenced, LeaseMemory
from services.runner.deliver import move_head
from services.runner.git import GitFailed, run_git
from services.runner.git_access import GitAccess
from services.runner.git_threads import git_threads, in_thread
from services.runner.in_use import in_use, lease_in_use
from services.runner.lease import Completion, Key, Lease, Parked
from services.runner.mirror import Mirror, mirror_of
from services.runner.preparation import Place, drop_scratch, scratch_of
from services.runner.sandbox import Sandbox
from services.runner.snapshots import WorkInProgress
from services.runner.workspace import (
    Workspace,
    former_workspace,
    holds_unsaved_work,
    place_of_plan,
    remove_workspace,
)
from shared.events import TaskDispatched
from shared.repo_url import is_local_path

log = logging.getLogger("treadle.runner")


class AgentExecutor:
    """Runs one kind of agent in worktrees of its own."""

    def __init__(
        self,
        data_dir: Path,
        agent: AgentRunner,
        environment: Mapping[str, str],
        sandbox: Sandbox | None,
        caches: SetupCaches | None = None,
    ) -> None:
        self._data_dir = data_dir
        self._threads = git_threads()
        self._agent = agent
        self._place = Place(data_dir, environment, sandbox, self._threads, caches)
        self._attempts: dict[Key, Attempt] = {}

    async def execute(self, lease: Lease, report: Report) -> Completion | Finished | Parked:
        """See `Executor.execute`."""
        attempt = self._attempts[lease.key] = Attempt(lease, self._agent, self._place, report)
        return await attempt.run()

    async def settle(self, plan: str, task: str, dispatch: TaskDispatched, commit: str) -> None:
        """See `Executor.settle`. Also removes the refs of the lease's unfinished work, which nobody goes on with."""
        if dispatch.rules.answer == "plan":
            return  # nothing rests on it, and a plan may be made for who may only read the repository
        attempt = next((a for key, a in self._attempts.items() if (key.plan, key.task) == (plan, task)), None)
        # On a redelivery there is no lease any more, and so there are no credentials.
        mirror = attempt.mirror if attempt else None
        refs = attempt.wip_refs() if attempt else []

        def work() -> None:
            reached = mirror or mirror_of(self._data_dir, dispatch.repo_url, dispatch.project)
            with in_use(reached.path):
                move_head(reached, plan, task, commit)
                _delete_refs(reached, refs)

        await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def tidy(self, lease: Lease) -> None:
        """Removes the workspace, but for one with work that was never pushed: that one is kept, and listed."""
        attempt = self._attempts.pop(lease.key, None)
        if attempt is None:
            return
        try:
            if (workspace := attempt.workspace) is not None:
                await in_thread(lambda: _remove_saved(workspace), self._threads)
        finally:
            attempt.in_use.close()

    async def salvage(
        self, key: Key, dispatch: TaskDispatched, access: GitAccess | None, memory: LeaseMemory | None
    ) -> None:
        """See `Executor.salvage`. Removes the workspace; one that can't be saved is kept, and listed."""
        mirror = mirror_of(self._data_dir, dispatch.repo_url, dispatch.project, access)
        with ExitStack() as held:

            def hold() -> None:
                held.enter_context(lease_in_use(self._data_dir, key.plan, key.task, key.lease))
                held.enter_context(in_use(place_of_plan(self._data_dir, key.plan)))
                held.enter_context(in_use(mirror.path))

            await in_thread(hold, self._threads)
            workspace = former_workspace(self._data_dir, mirror, key.plan, key.task, key.lease)
            if workspace is not None and dispatch.rules.answer:
                await in_thread(lambda: remove_workspace(workspace.path), self._threads)
            elif workspace is not None:
                await self._salvage(workspace, memory)
            await in_thread(lambda: drop_scratch(scratch_of(self._data_dir, key)), self._threads)

    async def _salvage(self, workspace: Workspace, memory: LeaseMemory | None) -> None:
        sandbox = self._place.sandbox
        work = WorkInProgress(workspace, memory, self._threads, lambda activity: log.info("%s", activity.text), sandbox)
        if memory is not None:
            work.usage = memory.usage
        try:
            await work.save_last()
        except Fenced as fenced:  # it is pushed all the same, for people
            log.info("%s: %s", workspace.path, fenced)
        except (GitFailed, OSError) as fault:
            log.warning("%s is kept, its work could not be saved: %s", workspace.path, fault)
        await in_thread(lambda: _remove_saved(workspace), self._threads)


def _remove_saved(workspace: Workspace) -> None:
    try:
        if holds_unsaved_work(workspace.path, workspace.task):
            log.warning("%s is kept: it holds work that was never pushed", workspace.path)
        else:
            remove_workspace(workspace.path)
    except (GitFailed, OSError) as fault:
        log.warning("%s is still there: %s; look at it, then use treadle clean", workspace.path, fault)


def _delete_refs(mirror: Mirror, refs: list[str]) -> None:
    """Removes those of the refs that are there."""
    if not refs:
        return
    if is_local_path(mirror.repo_url):
        lines = "".join(f"delete {ref}\n" for ref in refs).encode()
        args = ("-C", mirror.repo_url, "update-ref", "--stdin")
        run_git(*args, doing=f"removing {refs[0]} of {mirror.shown}", stdin=lines, as_operator=True)
    elif there := mirror.remote_refs(f"{refs[0].rpartition('/')[0]}/*-wip"):
        mirror.push(mirror.path, *(f":{ref}" for ref in there if ref in refs))

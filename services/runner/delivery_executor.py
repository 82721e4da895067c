"""Delivers a plan: makes its branch, and then does with it what the project wants."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from services.runner.agents import Enclosure, Finished, Job, Report
from services.runner.agents.command import last_output, run_shell
from services.runner.checkpoint import LeaseMemory
from services.runner.deliver import Delivered, deliver
from services.runner.delivery import merge_into
from services.runner.failed import Failed
from services.runner.git_access import GitAccess
from services.runner.git_faults import in_git
from services.runner.git_threads import git_threads
from services.runner.in_use import in_use, lease_in_use
from services.runner.lease import Completion, Key, Lease
from services.runner.mirror import Mirror, mirror_of
from services.runner.preparation import NO_AGENT, Place, enclosed, scratch_directory
from services.runner.sandbox import Sandbox
from services.runner.workspace import PUSHED, Workspace, create_workspace, place_of_plan, remove_workspace
from shared.events import Result, TaskDispatched


class DeliverExecutor:
    """Makes the plan's branch; merges it, or runs the project's command on it, where the project says so."""

    def __init__(self, data_dir: Path, environment: Mapping[str, str], sandbox: Sandbox | None) -> None:
        self._place = Place(data_dir, environment, sandbox, git_threads())

    async def execute(self, lease: Lease, report: Report) -> Completion | Finished:
        """See `Executor.execute`."""
        dispatch = lease.dispatch
        try:
            async with asyncio.timeout(dispatch.timeout_s):
                access = await lease.credentials.git(dispatch)
                mirror = mirror_of(self._place.data_dir, dispatch.repo_url, dispatch.project, access)
                delivered, summary = await in_git(lambda: _in_git(mirror, lease), "unavailable", self._place.threads)
                if dispatch.delivery.kind == "command" and delivered.changed:
                    await self._run_command(lease, mirror, delivered, report)
                    summary += "; the delivery command was run on it"
        except Failed as failed:
            return Finished(kind=failed.kind, message=str(failed), conflict=failed.conflict)
        except TimeoutError:
            words = "is the repository reachable, and does the delivery command come to an end?"
            return Finished(kind="timeout", message=f"The delivery did not finish in time: {words}")
        return Completion(
            base_commit=dispatch.base_commit,
            commit=delivered.commit,
            result=Result(task_code=lease.key.task, summary=summary),
        )

    async def settle(self, plan: str, task: str, dispatch: TaskDispatched, commit: str) -> None:
        """Nothing: the plan's branch is the head."""

    async def salvage(
        self, key: Key, dispatch: TaskDispatched, access: GitAccess | None, memory: LeaseMemory | None
    ) -> None:
        """Nothing: what a delivery makes is made again."""

    async def tidy(self, lease: Lease) -> None:
        """Nothing is left behind."""

    async def _run_command(self, lease: Lease, mirror: Mirror, delivered: Delivered, report: Report) -> None:
        """Runs the project's command in a workspace of its own, enclosed as an agent is. Raises `Failed`.

        Another lease may run it again: a runner may die when it is over, and before the log knows.
        """
        async with AsyncExitStack() as held:
            take = partial(self._workspace, held, lease, mirror, delivered)
            workspace = await in_git(take, "setup_failed", self._place.threads)
            scratch = held.enter_context(scratch_directory(self._place, lease.key))
            enclosure = await held.enter_async_context(enclosed(lease, self._place, workspace, scratch))
            job = self._job(lease, workspace, scratch, enclosure, delivered)
            failure = await run_shell((lease.dispatch.delivery.command,), job, report)
            if failure is not None:
                words = f"The branch {delivered.branch} is there, but the delivery command `{failure.command}` ended "
                words += f"with status {failure.status}. "
                if hosts := enclosure.refused_hosts():
                    words += f"It asked for hosts that network_allow does not name: {', '.join(hosts)}. "
                raise Failed("agent_error", words + last_output(failure.tail))

    def _job(
        self, lease: Lease, workspace: Workspace, scratch: Path, enclosure: Enclosure, delivered: Delivered
    ) -> Job:
        key, dispatch, known = lease.key, lease.dispatch, self._place.environment
        return Job(
            plan=key.plan,
            task=key.task,
            attempt=dispatch.attempt,
            lease=key.lease,
            prompt="",
            agent=NO_AGENT,
            cwd=workspace.code,
            enclosure=enclosure,
            rules=dispatch.rules,
            scratch=scratch,
            timeout_s=dispatch.timeout_s,
            budget_usd=0.0,
            env={
                **{name: known[name] for name in dispatch.env_allow if name in known},
                "TREADLE_BRANCH": delivered.branch,
                "TREADLE_COMMIT": delivered.commit,
                "TREADLE_REPO_URL": dispatch.repo_url,
            },
        )

    def _workspace(self, held: AsyncExitStack, lease: Lease, mirror: Mirror, delivered: Delivered) -> Workspace:
        key = lease.key
        held.enter_context(lease_in_use(self._place.data_dir, key.plan, key.task, key.lease))
        held.enter_context(in_use(place_of_plan(self._place.data_dir, key.plan)))
        held.enter_context(in_use(mirror.path))
        workspace = create_workspace(self._place.data_dir, mirror, key.plan, key.task, key.lease, delivered.commit)
        held.push_async_callback(asyncio.to_thread, remove_workspace, workspace.path)
        # Whatever the command leaves here is nobody's work: it must not be kept for a person to look at.
        (workspace.path / PUSHED).write_text(f"{delivered.commit}\n")
        return workspace


def _in_git(mirror: Mirror, lease: Lease) -> tuple[Delivered, str]:
    """What the git half came to, with words for it."""
    dispatch = lease.dispatch
    with in_use(mirror.path):
        delivered = deliver(mirror, lease.key.plan, dispatch.base_commit, dispatch.heads)
        summary = f"branch {delivered.branch} is at {delivered.commit[:12]}"
        if not delivered.changed:
            return delivered, f"{summary}, where the plan began: no task changed a file"
        if dispatch.delivery.kind == "merge":
            ends = dispatch.base_commit, dispatch.heads
            merged = merge_into(mirror, lease.key.plan, dispatch.delivery.branch, delivered, *ends)
            summary += f", merged into {merged.branch}, which is at {merged.commit[:12]}"
        return delivered, summary

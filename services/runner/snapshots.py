"""Saves an agent's unfinished work where any runner finds it, and puts it back.

A snapshot is a commit: its first parent is the agent's HEAD, its tree what lay in the worktree. It is pushed to the
lease's own ref `refs/treadle/<plan>/<task>/<lease>-wip` first, and only then named in the checkpoint. Whoever goes on
takes the commit that the checkpoint names, never the ref's position: a runner that has lost its lease may still move
the ref, but not the checkpoint. The snapshot before is the second parent, so that what a checkpoint names stays
below the ref even where the runner died between the two.

A path that is swapped for a link in the right moment would have the runner read what the agent may not. So the git that
reads the worktree runs in a sandbox, where no link leads to more than the agent has. Its processes stand still
meanwhile, for a snapshot of one moment; they think then anyhow, that is, they wait for their model. That is no defence:
processes that fork fast enough go on. Without a sandbox an agent reads such files by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from services.runner.agents import Report, activity
from services.runner.checkpoint import Checkpoint, Fenced, LeaseMemory
from services.runner.git import GitFailed, checked_commit, git_within, printable, run_git
from services.runner.git_threads import in_thread
from services.runner.leftovers import (
    Outcome,
    Taken,
    Traces,
    commit_in_progress,
    commit_taken,
    take_leftovers,
    tree_of,
)
from services.runner.merge import contains
from services.runner.mirror import Mirror
from services.runner.process import held_still, lease_mark
from services.runner.sandbox import Sandbox
from services.runner.workspace import LEFT_OUT, PUSHED, Resumed, Workspace
from shared.events import Usage

log = logging.getLogger("treadle.runner")

SAVES_APART_S = 2.0
SAVES_APART_COSTS = 5.0
"""As many times its own length lies between the end of a save and the next one."""


def wip_ref(plan: str, task: str, lease: int) -> str:
    """Where a lease's unfinished work is pushed to."""
    return f"refs/treadle/{plan}/{task}/{lease}-wip"


class WorkInProgress:
    """One lease's unfinished work."""

    def __init__(
        self,
        workspace: Workspace,
        memory: LeaseMemory | None,
        threads: ThreadPoolExecutor,
        report: Report,
        sandbox: Sandbox | None,
    ) -> None:
        """`sandbox` is the one that the agent is in, for git to read the worktree in; None: the agent is in none."""
        self.workspace = workspace
        self.usage = Usage()
        self.verify_round = 0
        self.commit = ""
        """The newest snapshot; empty: nothing differed from the base."""
        self.is_pushed = False
        """Whether the lease's own ref is there, or may be."""
        self._memory = memory
        self._threads = threads
        self._report = report
        self._sandbox = sandbox
        self._saved: Taken | None = None
        self._traces: Traces | None = None
        self._not_the_agents: set[str] = set()
        """Repositories that set-up or verification has put into the worktree: they do so again, wherever it is made."""
        self._at_rest: Taken | None = None
        """What is the agent's, between its turns: set-up and verification may be at work in the worktree then."""
        self._one_at_a_time = asyncio.Lock()
        self._wished = False
        self._saving: asyncio.Task[None] | None = None
        self._told = ""

    @property
    def ref(self) -> str:
        """Where it is pushed to."""
        return wip_ref(self.workspace.plan, self.workspace.task, self.workspace.lease)

    @property
    def mark(self) -> str:
        """Of the lease's processes."""
        return lease_mark(self.workspace.plan, self.workspace.task, self.workspace.lease)

    @property
    def place(self) -> Path:
        """Where it lies on this machine."""
        return self.workspace.path

    @property
    def repo(self) -> Path:
        """The runner's repository, which has it all."""
        return self.workspace.runners_repo

    def begin(self, former: Checkpoint | None, saved: Resumed | None, *, again: bool) -> None:
        """The workspace was made, with a former lease's work if there is any. Blocks; raises `GitFailed`.

        `again`: that work was finished once, and begins anew with its rounds.
        """
        base = self.workspace.base
        self._at_rest = Taken(saved.head, saved.tree) if saved else Taken(base, tree_of(self.repo, base))
        if former is not None:
            self.commit = former.wip
            self.verify_round = 0 if again else former.verify_round
            self._saved = self._at_rest

    def turn_begins(self) -> None:
        """From now on the worktree is the agent's."""
        self._at_rest = None

    def turn_is_over(self, name: str) -> Outcome:
        """The commit of what the agent has done; `name` is the task's. Blocks; raises `GitFailed`.

        Until the next turn nothing else is saved, whatever lies in the worktree then.
        """
        self._at_rest = self._take()
        return commit_taken(self.workspace, name, self._at_rest)

    def note_traces(self) -> None:
        """Set-up or verification has ended: what they left is passed over from now on. Blocks; raises `GitFailed`."""
        if self._at_rest is None:
            raise ValueError("nothing else is at work in the agent's turn")
        with self._reading():
            lying = take_leftovers(self.workspace)
        self._traces = Traces(self._at_rest.tree, lying.tree)
        self._not_the_agents |= set(lying.left_out) - set(self._at_rest.left_out)

    def wish(self) -> None:
        """A good moment to save: done in the background, soon, and not more often than it costs. Returns at once."""
        self._wished = True
        if self._saving is None or self._saving.done():
            self._saving = asyncio.create_task(self._save_wished())

    async def save(self) -> None:
        """Pushes the work, if it has changed, and stores how far the attempt came. Raises `GitFailed`, `Fenced`."""
        async with self._one_at_a_time:
            taken = await in_thread(self._push_changed, self._threads)
            self._saved = taken
            if self._memory is not None:
                base = self.workspace.base
                await self._memory.save(base, taken.head, self.commit, self.usage, self.verify_round)

    async def save_last(self) -> None:
        """Like `save`, when no process of the agent is left: the workspace may be removed then."""
        await self.save()
        if self.commit:
            (self.workspace.path / PUSHED).write_text(f"{self.commit}\n")
        if self._saved is not None:
            self.keep_left_out(self._saved.left_out)

    def keep_left_out(self, left_out: Sequence[str]) -> bool:
        """Has the workspace kept for a person where no commit has some of the agent's work. Whether it has. Blocks."""
        of_the_agent = sorted(set(left_out) - self._not_the_agents)
        if of_the_agent:
            (self.workspace.path / LEFT_OUT).write_text("".join(f"{printable(path)}\n" for path in of_the_agent))
        return bool(of_the_agent)

    async def pause(self) -> None:
        """Ends what is done in the background."""
        self._wished = False
        if self._saving is not None:
            self._saving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._saving

    async def _save_wished(self) -> None:
        while self._wished:
            self._wished = False
            begun_s = time.monotonic()
            try:
                await self.save()
            except Fenced:
                return  # the heartbeat finds it out too, and ends the agent
            except (GitFailed, OSError) as fault:
                self._tell(f"its work so far could not be saved: {fault}")
            cost_s = time.monotonic() - begun_s
            await asyncio.sleep(max(SAVES_APART_S, SAVES_APART_COSTS * cost_s))

    def _push_changed(self) -> Taken:
        workspace = self.workspace
        taken = self._at_rest or self._take()
        if taken == self._saved:
            return taken
        if self.commit or taken != Taken(workspace.base, tree_of(self.repo, workspace.base)):
            commit = commit_in_progress(workspace, taken, self.commit or None)
            self.is_pushed = True  # a push that is broken off may have come through
            workspace.mirror.push(self.repo, f"+{commit}:{self.ref}")
            self.commit = commit
        return taken

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """While the worktree is read; processes of the agent may be alive."""
        workspace, words = self.workspace, []
        if self._sandbox is not None:
            words = self._sandbox.reading(
                cwd=workspace.runners_repo,
                read_write=[workspace.runners_repo],
                # All of the agent's repository: below it, the runner would bind what a link of the agent's leads to.
                read_only=[workspace.code, workspace.agents_repo, workspace.mirror.objects],
            )
        with held_still(self.mark), git_within(words):
            yield

    def _take(self) -> Taken:
        with self._reading():
            return take_leftovers(self.workspace, self._traces)

    def _tell(self, words: str) -> None:
        if words != self._told:
            self._told = words
            log.warning("%s: %s", self.mark, words)
            self._report(activity("treadle", words))


def find_saved(mirror: Mirror, plan: str, base: str, former: Checkpoint) -> Resumed | None:
    """What a checkpoint names, fetched; None where the agent had changed nothing. Raises `GitFailed`: it is gone."""
    if former.base != base:
        raise GitFailed(f"it rests on {former.base[:12] or 'nothing'}, and the task starts from {base[:12]} now")
    if not former.wip:
        return None
    mirror.ensure(plan, [former.wip])
    doing = f"reading the saved work {former.wip[:12]}"
    line = run_git("rev-list", "--parents", "-n", "1", checked_commit(former.wip), doing=doing, git_dir=mirror.path)
    head = checked_commit(line.out.decode().split()[1])
    if not contains(mirror.path, head, base):
        raise GitFailed(f"the saved work {former.wip[:12]} does not rest on {base[:12]}")
    return Resumed(head, tree_of(mirror.path, former.wip))

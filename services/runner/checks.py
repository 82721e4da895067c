"""What has to hold around an agent's work: that the workspace could be set up, and that what it left is what was asked.

What is wrong is said in words that are good for the agent, which is to mend it, and for a person.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from services.runner.agents import Job, Report
from services.runner.agents.command import ShellFailure, last_output, run_shell
from services.runner.caches import LeaseCache
from services.runner.conflicts import Conflicted, unresolved
from services.runner.failed import Failed
from services.runner.git import printable
from services.runner.git_faults import in_git
from services.runner.leftovers import Outcome, holds_path
from services.runner.own_home import own_home, remember_home
from shared.events import TaskDispatched

HOSTS_SHOWN_MAX = 10


class Checks:
    """Of one lease."""

    def __init__(
        self,
        dispatch: TaskDispatched,
        job: Job,
        report: Report,
        threads: ThreadPoolExecutor,
        cache: LeaseCache | None = None,
    ) -> None:
        self._dispatch = dispatch
        self._job = job
        self._report = report
        self._threads = threads
        self._cache = cache

    async def set_up(self) -> None:
        """Runs the set-up commands. Raises `Failed`."""
        failure = await run_shell(self._dispatch.setup, self._job, self._report)
        if failure is not None:
            words = "The agent was not started. Correct the command, then redispatch the task."
            raise Failed("setup_failed", f"{self._told('set-up', failure)}\n{words}")
        if self._dispatch.setup and self._dispatch.verify:
            await in_git(lambda: remember_home(self._job.scratch), "setup_failed", self._threads)

    async def verify(self) -> str | None:
        """Runs the verification, in a home that no agent has seen; returns what is wrong.

        No process of the agent may be alive: a turn's end sees to that. Raises `Failed`.
        """
        if not self._dispatch.verify:
            return None
        home, held = own_home(self._job.scratch, self._cache), ExitStack()
        try:
            await in_git(lambda: held.enter_context(home), "agent_error", self._threads)
            failure = await run_shell(self._dispatch.verify, self._job, self._report, "verify")
        finally:
            await in_git(held.close, "agent_error", self._threads)
        return self._told("verification", failure) if failure else None

    def of_commit(self, repo: Path, outcome: Outcome, conflicted: Conflicted | None) -> str | None:
        """What is wrong with what the agent left, by looking at its commit alone. Blocks; raises `GitFailed`."""
        rules = self._dispatch.rules
        if conflicted is not None:
            return unresolved(repo, conflicted, outcome.commit) or None
        if not outcome.changed and not rules.allow_no_change:
            left_out = f", besides repositories of their own ({_listed(outcome.left_out)})" if outcome.left_out else ""
            remedy = "A task that may end so says allow_no_change: true."
            return f"No file was changed{left_out}, so there is nothing to show for the task. {remedy}"
        wanted = rules.expected_output
        if wanted and not holds_path(repo, outcome.commit, wanted):
            ignored = "an ignored file does not count" if (self._job.cwd / wanted).exists() else "it was not made"
            return f"The task's expected_output {printable(wanted)} is missing: {ignored}."
        return None

    def _told(self, doing: str, failure: ShellFailure) -> str:
        words = f"The {doing} command `{failure.command}` ended with status {failure.status}. "
        words += last_output(failure.tail)
        return "\n\n".join(filter(None, (words, refused_words(self._job.enclosure.refused_hosts()))))


def refused_words(hosts: Sequence[str]) -> str:
    """For people, about the hosts that a sandbox did not let anybody reach; nothing where there are none."""
    if not hosts:
        return ""
    words = f"The sandbox lets nobody reach {_listed(hosts)}: if that is needed, name it in network_allow, "
    return f"{words}of the plan or of its project."


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - HOSTS_SHOWN_MAX} more" if len(names) > HOSTS_SHOWN_MAX else ""
    return ", ".join(printable(name) for name in names[:HOSTS_SHOWN_MAX]) + more

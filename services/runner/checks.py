"""What has to hold around an agent's work: that the workspace could be set up, and that what it left is what was asked.

What is wrong is said in words that are good for the agent, which is to mend it, and for a person.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from services.runner.agents import Job, Report
from services.runner.agents.command import ShellFailure, run_shell
from services.runner.conflicts import Conflicted, unresolved
from services.runner.failed import Failed
from services.runner.git import printable
from services.runner.leftovers import Outcome, holds_path
from shared.events import TaskDispatched

HOSTS_SHOWN_MAX = 10


class Checks:
    """Of one lease."""

    def __init__(self, dispatch: TaskDispatched, job: Job, report: Report) -> None:
        self._dispatch = dispatch
        self._job = job
        self._report = report

    async def set_up(self) -> None:
        """Runs the set-up commands. Raises `Failed`."""
        failure = await run_shell(self._dispatch.setup, self._job, self._report)
        if failure is not None:
            words = "The agent was not started. Correct the command, then redispatch the task."
            raise Failed("setup_failed", f"{self._told('set-up', failure)}\n{words}")

    async def verify(self) -> str | None:
        """Runs the verification; returns what is wrong."""
        failure = await run_shell(self._dispatch.verify, self._job, self._report, "verify")
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
        words = f"The {doing} command `{failure.command}` ended with status {failure.status}. Its last output:\n"
        words += failure.tail
        if hosts := self._job.enclosure.refused_hosts():
            words += f"\nThe sandbox lets nobody reach {_listed(hosts)}: if that is needed, name it in network_allow, "
            words += "of the plan or of its project."
        return words


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - HOSTS_SHOWN_MAX} more" if len(names) > HOSTS_SHOWN_MAX else ""
    return ", ".join(printable(name) for name in names[:HOSTS_SHOWN_MAX]) + more

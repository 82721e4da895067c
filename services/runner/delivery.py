"""What a project has done with a plan's branch once it is there: its merge into another branch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.runner.deliver import Delivered, advance
from services.runner.git import GitRejected, MergeConflict, printable, run_git
from services.runner.merge import merge_branch, tasks_that_touched
from services.runner.mirror import Mirror
from shared.events import Head


@dataclass(frozen=True)
class Merged:
    """The branch that a plan was merged into."""

    branch: str
    commit: str
    """Where it is now."""


def merge_into(
    mirror: Mirror, plan: str, branch: str, delivered: Delivered, base: str, heads: Sequence[Head]
) -> Merged:
    """Merges a plan's branch into `branch` (empty: the repository's default branch), which must exist.

    Forward to it where possible, else with a merge commit of a fixed author and date; never by force. May be repeated:
    a branch that holds the plan already is left alone. Raises `MergeConflict`, and `GitFailed` as `advance` does.
    """
    target = branch or mirror.default_branch()
    if target is None:
        raise GitRejected(f"{mirror.shown} names no default branch: name one in the project's delivery_branch")
    _check_name(target)

    def with_plan(tip: str | None) -> str:
        if tip is None:
            raise GitRejected(
                f"{mirror.shown} has no branch {target} to merge the plan into: make it there, or correct the "
                "project's delivery_branch"
            )
        mirror.ensure(plan, [tip])
        try:
            return merge_branch(mirror.path, tip, delivered.commit, f"Merge branch '{delivered.branch}'")
        except MergeConflict as conflict:
            codes = tasks_that_touched(mirror.path, base, heads, conflict.files)
            remedy = f"Merge {target} into the branch {delivered.branch} by hand, push that, then redispatch the "
            remedy += "delivery: what you put there is kept."
            raise MergeConflict(conflict.files, codes, f"what the branch {target} has by now", remedy) from None

    return Merged(target, advance(mirror, target, with_plan))


def _check_name(branch: str) -> None:
    # It comes from a person or from a server, and becomes part of what git is told to push.
    done = run_git("check-ref-format", f"refs/heads/{branch}", doing="reading a branch's name", statuses=(0, 1))
    if done.status or branch.startswith("-"):
        raise GitRejected(f"{printable(branch)!r} is no name of a branch: correct the project's delivery_branch")

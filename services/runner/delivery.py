"""What a project has done with a plan's branch once it is there: its merge into another branch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.runner.deliver import Delivered, advance
from services.runner.git import GitRejected, MergeConflict, printable, run_git
from services.runner.merge import merge_branch, tasks_that_touched
from services.runner.mirror import Mirror
from shared.events import Head
from shared.spec import DELIVER


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
        raise GitRejected(
            f"{mirror.shown} names no default branch to merge the plan into: set one there, then redispatch {DELIVER}. "
            f"{_instead(delivered)}"
        )
    _check_name(target, delivered)

    def with_plan(tip: str | None) -> str:
        if tip is None:
            raise GitRejected(
                f"{mirror.shown} has no branch {target} to merge the plan into: make it there, then redispatch "
                f"{DELIVER}. {_instead(delivered)}"
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


def _instead(delivered: Delivered) -> str:
    """What else to do. A plan keeps the settings that it was finalized with."""
    return (
        f"Or merge the branch {delivered.branch} yourself and mark {DELIVER} complete. "
        "For later plans, name another branch in the project's delivery_branch."
    )


def _check_name(branch: str, delivered: Delivered) -> None:
    # It comes from a person or from a server, and becomes part of what git is told to push.
    done = run_git("check-ref-format", f"refs/heads/{branch}", doing="reading a branch's name", statuses=(0, 1))
    if done.status or branch.startswith("-"):
        raise GitRejected(f"{printable(branch)!r} is no name of a branch. {_instead(delivered)}")

"""Whether a commit that a person names can be their task's work: it is there, and rests on what the task began with."""

from __future__ import annotations

from collections.abc import Sequence

from services.runner.git import GitFailed, run_git
from services.runner.in_use import in_use
from services.runner.inherited import ensure_heads
from services.runner.merge import independent_parts
from services.runner.mirror import Mirror
from shared.events import Head, TaskDispatched

_NAMED_MAX = 10


def why_no_work(mirror: Mirror, plan: str, dispatch: TaskDispatched, commit: str) -> str:
    """In words for the person; empty: it is the work of what was handed out. Blocks.

    Raises `GitFailed` where that can't be told: the code repository does not answer, or has lost what the task began
    with.
    """
    # A plan that people do may have begun before anybody knew the repository's head.
    began_with = [*([Head("", dispatch.base_commit)] if dispatch.base_commit else ()), *dispatch.heads]
    with in_use(mirror.path):
        try:
            mirror.ensure(plan, [commit])
        except GitFailed:
            mirror.default_branch()  # raises where it is the repository that can't be reached
            return f"`commit` is {commit}, which {mirror.shown} does not have: push it there first"
        kind = run_git("cat-file", "-t", commit, doing=f"looking at {commit}", git_dir=mirror.path).out.strip()
        if kind != b"commit":
            return f"`commit` is {commit}, which is no commit but a {kind.decode()}"
        ensure_heads(mirror, plan, dispatch.base_commit, dispatch.heads)
        # What another one of them contains is not named: it comes with that.
        missing = {part for part in independent_parts(mirror.path, commit, began_with) if part != commit}
    return _without(commit, [head for head in began_with if head.commit in missing])


def _without(commit: str, missing: Sequence[Head]) -> str:
    if not missing:
        return ""
    named = [f"commit {head.commit} ({_what(head)})" for head in missing[:_NAMED_MAX]]
    if len(missing) > _NAMED_MAX:
        named.append(f"{len(missing) - _NAMED_MAX} more that the task's prompt names")
    return (
        f"`commit` is {commit}, which does not contain what the task starts from: merge {', '.join(named)} into yours, "
        "push that, and name the commit that has both"
    )


def _what(head: Head) -> str:
    return f"the work of {head.task}" if head.task else "where the plan begins"

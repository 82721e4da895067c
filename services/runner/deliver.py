"""Pushes what was made: a lease's ref, a task's head, and the plan's branch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.runner.git import GitFailed, GitRejected, MergeConflict, checked_commit, checked_ids, printable, run_git
from services.runner.inherited import ensure_heads
from services.runner.merge import (
    contains,
    kept_as,
    merge_base_commit,
    merge_branch,
    tasks_that_touched,
)
from services.runner.mirror import Mirror
from services.runner.workspace import PUSHED, Workspace
from shared.events import Head
from shared.repo_url import is_local_path
from shared.spec import DELIVER

DELIVER_TRIES = 5

_DELETE_AT_ONCE = 200
_LOOSE_MAX_OBJECTS = 100
_PACK_HEADER_BYTES = 12


@dataclass(frozen=True)
class Delivered:
    """The plan's branch as it is in the code repository now."""

    commit: str
    branch: str
    changed: bool
    """Whether the branch holds anything besides the plan's base."""


def push_lease(workspace: Workspace, commit: str) -> str:
    """Pushes a lease's result to its own ref, gives the mirror a copy, and returns the ref's name. May be repeated."""
    checked_commit(commit)
    ref = f"refs/treadle/{workspace.plan}/{workspace.task}/{workspace.lease}"
    workspace.mirror.push(workspace.runners_repo, f"+{commit}:{ref}")
    if commit != workspace.base:
        _hand_over(workspace, commit)
    (workspace.path / PUSHED).write_text(f"{commit}\n")
    return ref


def move_head(mirror: Mirror, plan: str, task: str, commit: str) -> None:
    """Moves a task's head ref to its accepted result. May be repeated, by any runner."""
    checked_ids(plan, task)
    ref = f"refs/treadle/{plan}/{task}/head"
    if is_local_path(mirror.repo_url):
        # The commit is there, under its lease's ref: a tenth of what a push costs.
        doing = f"moving {ref} of {mirror.shown}"
        run_git("-C", mirror.repo_url, "update-ref", ref, checked_commit(commit), doing=doing, as_operator=True)
    else:
        mirror.ensure(plan, [commit])
        mirror.push(mirror.path, f"+{commit}:{ref}")


def delete_task_refs(mirror: Mirror, plan: str) -> int:
    """Deletes the refs of a plan's tasks from the code repository; its branch stays. Returns how many there were.

    Only for a plan that has ended: what is not merged into its branch is then held by nobody.
    """
    checked_ids(plan, DELIVER)
    names = mirror.remote_refs(f"refs/treadle/{plan}/*")
    for start in range(0, len(names), _DELETE_AT_ONCE):
        mirror.push(mirror.path, *(f":{name}" for name in names[start : start + _DELETE_AT_ONCE]))
    return len(names)


def deliver(mirror: Mirror, plan: str, base: str, heads: Sequence[Head]) -> Delivered:
    """Merges the heads and makes the plan's branch of them; never takes from it what somebody else put there.

    Whoever pushed to the branch keeps their commits: what it lacks is merged on top, and what somebody merged there by
    hand is not merged again. May be repeated. Raises `MergeConflict`, and `GitFailed` when the branch is checked out,
    or the repository refuses it.
    """
    checked_ids(plan, DELIVER)
    branch = branch_of(plan)
    ensure_heads(mirror, plan, base, heads)

    def with_heads(tip: str | None) -> str:
        if tip is None:
            return _merged(mirror.path, plan, base, heads)
        mirror.ensure(plan, [tip])
        missing = [h for h in heads if not contains(mirror.path, tip, h.commit)]
        if not missing and contains(mirror.path, tip, base):
            return tip
        return _merge_onto(mirror.path, plan, tip, base, missing)

    commit = advance(mirror, branch, with_heads)
    return Delivered(commit, branch, commit != base)


def branch_of(plan: str) -> str:
    """The plan's branch."""
    return f"treadle/{plan}"


def advance(mirror: Mirror, branch: str, merged: Callable[[str | None], str]) -> str:
    """Moves a branch to what `merged` makes of its tip (None: it does not exist), and returns where it is then.

    Only ever forward: where somebody else moved it meanwhile, it is merged again with what they put there. Nothing is
    pushed when `merged` returns the tip. Raises `GitRejected` when the branch is checked out in a repository of this
    machine or the repository refuses it, `GitFailed` when it never stands still, and what `merged` raises.
    """
    ref = f"refs/heads/{branch}"
    refused_at: str | None = None
    for tries in range(DELIVER_TRIES):
        tip = mirror.remote_tip(ref)
        commit = merged(tip)
        if commit == tip:
            return commit
        _refuse_checked_out(mirror, ref)
        try:
            # Not forced: the server takes it only while the branch is where we saw it, and only forward from there.
            mirror.push(mirror.path, f"{commit}:{ref}")
        except GitRejected as refusal:
            # Refused although nobody moved it: then trying again changes nothing.
            if tries and tip == refused_at:
                raise GitRejected(
                    f"{refusal}; is the branch {branch} protected, or is a name in its way? Let Treadle push to it, "
                    "then redispatch the delivery"
                ) from refusal
            refused_at = tip
            continue
        return commit
    raise GitFailed(
        f"the branch {branch} of {mirror.shown} moved {DELIVER_TRIES} times while the plan was being delivered: "
        "redispatch the delivery when it is quiet"
    )


def _merged(repo: Path, plan: str, base: str, heads: Sequence[Head]) -> str:
    try:
        return merge_base_commit(repo, base, heads)
    except MergeConflict as conflict:
        remedy = (
            f"Merge {kept_as(plan, conflict.codes, heads)} by hand, push that as the branch {branch_of(plan)}, then "
        )
        remedy += f"redispatch {DELIVER}. (Where the project says on_conflict: agent, an agent merges them in a task "
        remedy += "before it, and it runs again by itself.)"
        raise MergeConflict(conflict.files, conflict.codes, remedy=remedy) from None


def _merge_onto(repo: Path, plan: str, tip: str, base: str, heads: Sequence[Head]) -> str:
    own = _merged(repo, plan, base, heads)
    try:
        return merge_branch(repo, tip, own, f"Merge {', '.join(h.task for h in heads[:5])}")
    except MergeConflict as conflict:
        codes = tasks_that_touched(repo, base, heads, conflict.files)
        remedy = f"Merge {own} (or the tasks' heads) into that branch by hand, push it, then redispatch the delivery."
        raise MergeConflict(
            conflict.files, codes, f"what somebody put on the branch {branch_of(plan)}", remedy
        ) from None


def _refuse_checked_out(mirror: Mirror, ref: str) -> None:
    """A push would move the branch away from under a person's files."""
    if is_local_path(mirror.repo_url) and (place := checked_out_in(mirror.repo_url, ref)):
        branch = ref.removeprefix("refs/heads/")
        raise GitRejected(
            f"the branch {branch} is checked out in {place}, whose files Treadle never changes: "
            f"switch to another branch there, then redispatch {DELIVER}"
        )


def checked_out_in(repository: str, ref: str) -> str:
    """The worktree of a repository of this machine in which a branch is checked out, in words; "" where it is in none.

    Raises `GitFailed`.
    """
    args = ("-C", repository, "worktree", "list", "--porcelain")
    out = run_git(*args, doing=f"looking at the worktrees of {printable(repository)}", as_operator=True).out
    place = ""
    for line in out.decode(errors="replace").splitlines():
        key, _, value = line.partition(" ")
        if key == "worktree":
            place = value
        elif key == "branch" and value == ref:
            return printable(place)
    return ""


def _hand_over(workspace: Workspace, commit: str) -> None:
    """Gives the mirror what the lease made, so that no runner on this machine has to fetch it.

    Through a pack, whose objects git names by their content on arrival: a file that an agent put under another object's
    name must not get into what other tasks see. The push before it has proved that nothing is missing.
    """
    doing = f"keeping the work of {workspace.task}"
    prefix = workspace.runners_repo / "handover"
    for old in workspace.runners_repo.glob("handover-*"):
        old.unlink()
    revisions = f"{commit}\n^{workspace.base}\n".encode()
    run_git("pack-objects", "-q", "--revs", str(prefix), doing=doing, git_dir=workspace.runners_repo, stdin=revisions)
    (pack,) = workspace.runners_repo.glob("handover-*.pack")
    take = ("unpack-objects", "-q") if _object_count(pack) <= _LOOSE_MAX_OBJECTS else ("index-pack", "--stdin")
    run_git(*take, doing=doing, git_dir=workspace.mirror.path, stdin=pack)
    workspace.mirror.mark_complete(commit)


def _object_count(pack: Path) -> int:
    with pack.open("rb") as file:
        return int.from_bytes(file.read(_PACK_HEADER_BYTES)[8:], "big")

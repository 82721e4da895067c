"""Merges the work of tasks: always in the same way, so that every lease makes the very same commit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.runner.git import GitFailed, MergeConflict, checked_commit, printable, run_git
from shared.events import Head

_NAMED_MAX = 5
DIFF_MAX_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Diff:
    """What changed between two commits, for people. It holds an agent's text as it is: clean it before a terminal."""

    stat: str
    patch: str
    cut: bool
    """Whether the patch was cut at `DIFF_MAX_BYTES`."""


def merge_base_commit(repo: Path, base: str, heads: Sequence[Head]) -> str:
    """The commit that a task starts from: `base` merged with the heads, which come in topological order.

    Merges are sequential, with two parents each, and their dates come from what they merge: the same input gives
    the same commit, wherever and whenever. What another one contains is skipped. Needs git 2.38. Raises
    `MergeConflict`.
    """
    parts = independent_parts(repo, base, heads)
    tasks = {h.commit: h.task for h in reversed(heads)}
    merged = parts[0]
    for number, part in enumerate(parts[1:], start=1):
        tree = merge_tree(repo, merged, part)
        if tree.files:
            earlier = [Head(tasks[c], c) for c in parts[:number] if c in tasks]
            raise MergeConflict(tree.files, [*tasks_that_touched(repo, base, earlier, tree.files), tasks[part]])
        merged = commit_merge(repo, tree.id, (merged, part), f"Merge {tasks[part]}")
    return merged


def plans_of(heads: Sequence[Head]) -> tuple[str, ...]:
    """The other plans under whose refs the heads are kept: a fork's tasks may rest on what its origin has done."""
    return tuple(dict.fromkeys(head.plan for head in heads if head.plan))


def kept_as(plan: str, tasks: Sequence[str], heads: Sequence[Head] = ()) -> str:
    """The refs under which tasks' work is kept in the code repository, in words; `heads` tell whose it is."""
    done_by = {head.task: head.plan for head in heads if head.plan}
    names = [f"refs/treadle/{done_by.get(task, plan)}/{task}/head" for task in tasks]
    more = f" and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else ""
    return ", ".join(names[:_NAMED_MAX]) + more


def merge_branch(repo: Path, ours: str, theirs: str, message: str) -> str:
    """The commit that has both: one of them where it contains the other, else a merge of a fixed author and date.

    Raises `MergeConflict` with the files, and no tasks.
    """
    if contains(repo, ours, theirs):
        return ours
    if contains(repo, theirs, ours):
        return theirs
    tree = merge_tree(repo, ours, theirs)
    if tree.files:
        raise MergeConflict(tree.files, ())
    return commit_merge(repo, tree.id, (ours, theirs), message)


def independent_parts(repo: Path, base: str, heads: Sequence[Head]) -> list[str]:
    """The base and the heads, in order, without those that another one contains."""
    commits = list(dict.fromkeys([checked_commit(base), *(checked_commit(h.commit) for h in heads)]))
    if len(commits) == 1:
        return commits
    done = run_git("merge-base", "--independent", *commits, doing="comparing the tasks' commits", git_dir=repo)
    independent = set(done.out.decode().split())
    return [c for c in commits if c in independent]


@dataclass(frozen=True)
class MergedTree:
    """What a merge of two commits makes, which may have conflicts in it."""

    id: str
    """With conflict markers, labelled with the two commits' ids, in what conflicts and has lines."""
    files: tuple[str, ...]
    """Those that conflict."""
    conflicts: tuple[str, ...]
    """What is wrong in them, in git's words."""


def merge_tree(repo: Path, ours: str, theirs: str) -> MergedTree:
    """Merges two commits without a worktree; writes the tree, conflicts or not."""
    args = ("merge-tree", "--write-tree", "--messages", "--name-only", "-z", ours, theirs)
    done = run_git(*args, doing="merging the tasks' commits", git_dir=repo, statuses=(0, 1, 129))
    if done.status == 129:
        version = run_git("version", doing="asking git for its version").out.decode(errors="replace").strip()
        raise GitFailed(
            f"merging the tasks' commits needs git 2.38 or newer, and this is {version}: install a newer git"
        )
    tree, _, rest = done.out.partition(b"\0")
    names, _, messages = rest.partition(b"\0\0")
    if not done.status:
        return MergedTree(tree.decode().strip(), (), ())
    return MergedTree(tree.decode().strip(), tuple(_names(names)), tuple(_conflicts(messages)))


def diff(repo: Path, base: str, commit: str) -> Diff:
    """What `commit` changes against `base`, as a stat and a patch; runs no program of anybody's choosing."""
    plain = ("diff", "--no-ext-diff", "--no-textconv", "--no-color")
    ends = (checked_commit(base), checked_commit(commit), "--")
    doing = "comparing two commits"
    stat = run_git(*plain, "--stat=100", *ends, doing=doing, git_dir=repo, out_max_bytes=DIFF_MAX_BYTES)
    patch = run_git(*plain, "--patch", *ends, doing=doing, git_dir=repo, out_max_bytes=DIFF_MAX_BYTES)
    return Diff(stat.out.decode(errors="replace"), patch.out.decode(errors="replace"), patch.cut)


def contains(repo: Path, commit: str, ancestor: str) -> bool:
    """Whether `commit` is `ancestor` or comes after it. Raises `GitFailed` when one of them is missing."""
    args = ("merge-base", "--is-ancestor", ancestor, commit)
    return run_git(*args, doing="comparing two commits", git_dir=repo, statuses=(0, 1)).status == 0


def tasks_that_touched(repo: Path, base: str, heads: Sequence[Head], files: Sequence[str]) -> list[str]:
    """The codes of the heads that changed one of the files since `base`."""
    codes = [h.task for h in heads if not _touched(repo, base, h.commit).isdisjoint(files)]
    # A renamed file is named by its new name, which one side may not know: then any of them may be meant.
    return codes or [h.task for h in heads]


def _commit_dates(repo: Path, commits: Sequence[str]) -> list[int]:
    args = ("rev-list", "--no-walk=unsorted", "--timestamp", *commits)
    lines = run_git(*args, doing="reading the tasks' commits", git_dir=repo).out.decode().splitlines()
    dates = {commit: int(date) for date, commit in (line.split() for line in lines)}
    # A date is whatever the commit's author wrote; beyond this one git does not take it everywhere.
    return [max(0, min(dates[c], 2**31 - 1)) for c in commits]


def commit_merge(repo: Path, tree: str, parents: Sequence[str], message: str) -> str:
    """A commit of a fixed author, whose date is its newest parent's: the same wherever it is made."""
    when = f"@{max(_commit_dates(repo, parents))} +0000"
    named = [word for parent in parents for word in ("-p", checked_commit(parent))]
    done = run_git(
        *("commit-tree", checked_commit(tree), *named, "-m", message),
        doing="merging the tasks' commits",
        git_dir=repo,
        env={"GIT_AUTHOR_DATE": when, "GIT_COMMITTER_DATE": when},
    )
    return checked_commit(done.out.decode().strip())


def _touched(repo: Path, base: str, commit: str) -> set[str]:
    args = ("diff-tree", "-r", "-z", "--name-only", "--no-renames", base, commit)
    return set(_names(run_git(*args, doing="comparing two commits", git_dir=repo).out))


def _names(listing: bytes) -> list[str]:
    return [n.decode(errors="replace") for n in dict.fromkeys(listing.split(b"\0")) if n]


def _conflicts(messages: bytes) -> list[str]:
    """From records of: how many paths, the paths, the kind of message, the message."""
    fields, found = iter(messages.split(b"\0")), []
    for count in fields:
        if not count.isdigit():
            break
        for _ in range(int(count)):
            next(fields, b"")
        kind, text = next(fields, b""), next(fields, b"")
        if kind.startswith(b"CONFLICT"):
            found.append(printable(text.decode(errors="replace")))
    return found

"""Makes a commit of what an agent left in its worktree, and trusts nothing that it left there.

Whatever could make git run a program on the way is out of reach: the repository used is the runner's own, filters
and hooks come from a configuration only, and nested repositories (whose configuration an agent may have written) are
never entered.
"""

from __future__ import annotations

import posixpath
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services.runner.commits_taken import bring_commits, check_objects
from services.runner.git import checked_commit, printable, run_git
from services.runner.workspace import Workspace, agents_head, exclude_placeholders, move_index
from shared.events import ARTIFACTS_MAX


@dataclass(frozen=True)
class Outcome:
    """What a lease's work came to, against its base."""

    commit: str
    """The base itself when the agent neither changed nor committed anything."""
    changed: bool
    """Whether any file differs from the base."""
    files_changed: int
    insertions: int
    deletions: int
    files: tuple[str, ...]
    """Repository-relative paths of what differs from the base, at most `ARTIFACTS_MAX`."""
    left_out: tuple[str, ...]
    """Git repositories that the agent left in the worktree: what is in them is not part of the commit."""


@dataclass(frozen=True)
class Taken:
    """What lay in a worktree at one moment, as objects of the runner's repository."""

    head: str
    """The agent's own newest commit, or the base."""
    tree: str
    left_out: tuple[str, ...] = field(default=(), compare=False)
    """See `Outcome.left_out`."""


@dataclass(frozen=True)
class Traces:
    """Of set-up or verification: what they made or changed lies in the worktree, and is no work of the agent's."""

    before: str
    """The tree before them."""
    behind: str
    """Everything that lay there afterwards, as a tree."""


def take_leftovers(workspace: Workspace, traces: Traces | None = None) -> Taken:
    """Takes the agent's HEAD and its files: changes, deletions and untracked files that are not ignored.

    What set-up and verification left is passed over where the agent has not changed it since. Where a process of the
    agent may be alive, the caller has git read in a sandbox (`services.runner.git.git_within`). Changes nothing that
    the agent sees, so it can be called again. Raises `GitFailed` when HEAD does not contain the base any more, when the
    agent redirected its objects, and when git can't take what lies in the worktree.
    """
    check_objects(workspace)
    head = agents_head(workspace.agents_repo, workspace.task) or workspace.base
    if head != workspace.base:
        bring_commits(workspace, head)
    tree, left_out = _write_tree(workspace, head, traces)
    return Taken(head, tree, left_out)


def commit_taken(workspace: Workspace, name: str, taken: Taken) -> Outcome:
    """Commits what was taken on top of the agent's own commits, if anything is uncommitted; `name` is the task's."""
    repo, base = workspace.runners_repo, workspace.base
    files, changes = _changes(repo, base, taken.tree)
    clean = changes[0] == 0 if taken.head == base else taken.tree == tree_of(repo, taken.head)
    subject = printable(f"{workspace.task}: {name}")
    commit = taken.head if clean else _commit(workspace, taken.tree, [taken.head], subject)
    return Outcome(commit, changes[0] > 0, *changes, files, taken.left_out)


def commit_leftovers(workspace: Workspace, name: str) -> Outcome:
    """Both at once. Raises as `take_leftovers` does."""
    return commit_taken(workspace, name, take_leftovers(workspace))


def commit_in_progress(workspace: Workspace, taken: Taken, former: str | None) -> str:
    """A commit of unfinished work: its first parent is the agent's HEAD, its tree what lay in the worktree.

    `former` becomes the second parent, so that whoever knows only that one finds it below the ref's newest commit.
    """
    parents = [taken.head, *([former] if former else [])]
    return _commit(workspace, taken.tree, parents, f"{workspace.task}: work in progress")


def holds_path(repo: Path, commit: str, path: str) -> bool:
    """Whether a commit has a file or a directory of that name; `path` is repository-relative."""
    wanted = posixpath.normpath(path)
    if wanted == ".":
        return True
    args = ("ls-tree", "-z", "--full-tree", "--", checked_commit(commit), wanted)
    return bool(run_git(*args, doing=f"looking for {printable(path)}", git_dir=repo).out)


def _write_tree(workspace: Workspace, head: str, traces: Traces | None) -> tuple[str, tuple[str, ...]]:
    """The worktree as a tree, and the repositories in it that were left out."""
    repo, code = workspace.runners_repo, workspace.code
    # A copy each time, made with its time: an earlier call, finished or killed, then makes no difference.
    index = repo / "index.taken"
    index.with_suffix(".taken.lock").unlink(missing_ok=True)
    shutil.copy2(repo / "index", index)
    exclude_placeholders(workspace.path)
    doing = f"taking what the agent of {workspace.task} left in {code}"
    if head != workspace.base:
        move_index(index, head, doing=doing, git_dir=repo, work_tree=code)
    left_out = _nested_repositories(workspace, index, doing)
    pathspecs = b"".join([b".", *(b"\0:(top,exclude,literal)" + path for path in left_out)])
    run_git(
        *("add", "--all", "--pathspec-from-file=-", "--pathspec-file-nul"),
        doing=doing,
        git_dir=repo,
        work_tree=code,
        index=index,
        stdin=pathspecs,
    )
    tree = _tree(repo, index, doing)
    if traces is not None and (lines := _undoing(repo, traces, tree)):
        args = ("update-index", "--replace", "-z", "--index-info")
        run_git(*args, doing=doing, git_dir=repo, index=index, stdin=lines)
        tree = _tree(repo, index, doing)
    return tree, tuple(path.decode(errors="replace") for path in left_out)


def _tree(repo: Path, index: Path, doing: str) -> str:
    return checked_commit(run_git("write-tree", doing=doing, git_dir=repo, index=index).out.decode().strip())


def _undoing(repo: Path, traces: Traces, tree: str) -> bytes:
    """Lines for `update-index` that take back what these commands changed, and nobody has changed since."""
    since = {path for _, path in _differences(repo, traces.behind, tree)}
    lines = (
        entry + b"\t" + path for entry, path in _differences(repo, traces.before, traces.behind) if path not in since
    )
    return b"".join(line + b"\0" for line in lines)


def _differences(repo: Path, old: str, new: str) -> list[tuple[bytes, bytes]]:
    """What differs between two trees: mode and object in the old one (of mode 0 where it has none), and the path."""
    args = ("diff-tree", "-r", "-z", "--raw", "--no-renames", "--no-abbrev", old, new)
    fields = run_git(*args, doing="comparing two trees", git_dir=repo).out.split(b"\0")[:-1]
    found = []
    for description, path in zip(fields[::2], fields[1::2], strict=True):
        mode, _, object_id, _, _ = description.removeprefix(b":").split(b" ")
        found.append((mode + b" " + object_id, path))
    return found


def _nested_repositories(workspace: Workspace, index: Path, doing: str) -> list[bytes]:
    """Repositories in the worktree: new ones, and submodules that the agent filled.

    Git would take the first for submodules, and run `git status` with their own configuration in the second.
    """
    listing = run_git(
        *("ls-files", "-z", "-t", "--stage", "--others", "--exclude-standard"),
        doing=doing,
        git_dir=workspace.runners_repo,
        work_tree=workspace.code,
        index=index,
    ).out
    found = []
    for entry in listing.split(b"\0"):
        if entry.startswith(b"? ") and entry.endswith(b"/"):
            found.append(entry[2:-1])
        elif entry.startswith(b"H 160000 "):
            path = entry.partition(b"\t")[2]
            if (workspace.code / path.decode(errors="surrogateescape") / ".git").exists():
                found.append(path)
    return found


def _changes(repo: Path, base: str, tree: str) -> tuple[tuple[str, ...], tuple[int, int, int]]:
    """The first changed files' names, and how many files, insertions and deletions there are in all."""
    args = ("diff-tree", "-r", "-z", "--numstat", "--no-renames", "--no-ext-diff", "--no-textconv", base, tree)
    lines = run_git(*args, doing="counting changes", git_dir=repo).out.split(b"\0")[:-1]
    counts = [line.split(b"\t", 2) for line in lines]
    # A binary file has "-" for both.
    insertions, deletions = (sum(int(c[side]) for c in counts if c[side] != b"-") for side in (0, 1))
    names = tuple(c[2].decode(errors="replace") for c in counts[:ARTIFACTS_MAX])
    return names, (len(counts), insertions, deletions)


def tree_of(repo: Path, commit: str) -> str:
    """The id of a commit's tree."""
    return (
        run_git("rev-parse", f"{checked_commit(commit)}^{{tree}}", doing="reading a commit", git_dir=repo)
        .out.decode()
        .strip()
    )


def _commit(workspace: Workspace, tree: str, parents: Sequence[str], subject: str) -> str:
    message = f"{subject}\n\nTreadle-Plan: {workspace.plan}\nTreadle-Task: {workspace.task}\n"
    done = run_git(
        *("commit-tree", tree, *(word for parent in parents for word in ("-p", parent)), "-F", "-"),
        doing=f"committing the work of {workspace.task}",
        git_dir=workspace.runners_repo,
        stdin=message.encode(errors="replace"),
    )
    return checked_commit(done.out.decode().strip())

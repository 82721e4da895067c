"""Work that can't be merged by itself, made ready for an agent to merge.

The agent starts from a commit whose files hold both sides between conflict markers. That commit is only to work on:
what counts in the end is a merge of the tasks' own commits with the agent's files, and no marker is in its history.

    conflicted = prepare_conflicted(mirror.path, base, heads)     always the same, on every runner
    workspace = create_workspace(…, base=conflicted.commit)
    … the agent, told `words_for_agent(conflicted)` …
    outcome = commit_leftovers(workspace, …)
    left = unresolved(workspace.runners_repo, conflicted, outcome.commit)      words for the agent; empty: it is done
    commit = finish_resolution(workspace.runners_repo, conflicted, outcome.commit, message)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.runner.git import GitFailed, checked_commit, printable, run_git
from services.runner.merge import commit_merge, independent_parts, merge_tree
from shared.events import Head

SHOWN_MAX = 50
"""Files and faults that are named to an agent; it finds the others by their markers."""


@dataclass(frozen=True)
class Conflicted:
    """A merge with conflicts in it; make it with `prepare_conflicted`."""

    commit: str
    """What the agent starts from. It contains all parents."""
    parents: tuple[str, ...]
    """What the final commit merges, in topological order. The first is what its changes are shown against."""
    files: tuple[str, ...]
    """Repository-relative paths. Empty: it can be merged after all, and `commit` is the merge; no agent is needed."""
    notes: tuple[str, ...]
    """What is wrong, in git's words."""
    sides: tuple[tuple[str, str], ...]
    """Commit and whose work it is: what the markers are labelled with."""


def prepare_conflicted(repo: Path, base: str, heads: Sequence[Head]) -> Conflicted:
    """Merges `base` and the heads, in topological order, and goes on over conflicts, whose markers stay in the files.

    All conflicts of all heads are then in one tree, for one agent to resolve. The same input gives the same commit.
    `repo` must have the commits.
    """
    parents = independent_parts(repo, base, heads)
    tasks = {h.commit: h.task for h in reversed(heads)}
    names = [tasks.get(parent, "the plan's base") for parent in parents]
    merged, files, notes = parents[0], list[str](), list[str]()
    sides = list(zip(parents, names, strict=True))
    for number, part in enumerate(parents[1:], start=1):
        tree = merge_tree(repo, merged, part)
        files += tree.files
        notes += (_named(note, sides) for note in tree.conflicts)
        merged = commit_merge(repo, tree.id, (merged, part), f"Merge {names[number]}")
        sides.append((merged, " and ".join(names[: number + 1])))
    return Conflicted(merged, tuple(parents), tuple(dict.fromkeys(files)), tuple(notes), tuple(sides))


def words_for_agent(conflicted: Conflicted) -> str:
    """What an agent has to know besides its task: which files, whose work, and what it is to leave behind."""
    sides = conflicted.sides[: len(conflicted.parents)]
    lines = ["The merge of these commits met conflicts:"]
    lines += (f"- {commit}: {name}" for commit, name in sides)
    lines += ["", "They conflict in:"]
    lines += (f"- {printable(file)}" for file in conflicted.files[:SHOWN_MAX])
    lines += (f"- and {more} more files",) if (more := len(conflicted.files) - SHOWN_MAX) > 0 else ()
    lines += ["", "Git says:"]
    lines += (f"- {printable(note)}" for note in conflicted.notes[:SHOWN_MAX])
    lines += [
        "",
        "The files in the worktree hold the merge as far as git came, with conflict markers (<<<<<<<, =======, "
        ">>>>>>>) that name the commits. `git show COMMIT:PATH` shows one side's file, and `git log -p COMMIT` what it "
        "was changed for. Resolve every conflict so that the work of all sides is kept, remove every marker, and "
        "change nothing else. A file without lines (a binary one), or one that a side removed, has no markers: decide "
        "what it has to be. Treadle makes the merge commit from the files as you leave them: don't merge, rebase or "
        "reset.",
    ]
    return "\n".join(lines)


def unresolved(repo: Path, conflicted: Conflicted, commit: str) -> str:
    """What is left of the conflicts in a commit, in words for the agent; empty when nothing is."""
    # By their labels, which no other text in the world has: a file may well speak of conflict markers.
    marked = _files_with(repo, commit, [rf"^(<<<<<<<|>>>>>>>) {side}" for side, _ in conflicted.sides])
    middle = ["^=======\r?$"]
    divided = _files_with(repo, commit, middle) & set(conflicted.files)
    for parent in conflicted.parents if divided else ():
        divided -= _files_with(repo, parent, middle)
    left = sorted(marked | divided)
    if not left:
        return ""
    named = ", ".join(printable(file) for file in left[:SHOWN_MAX])
    more = f" and {len(left) - SHOWN_MAX} more" if len(left) > SHOWN_MAX else ""
    return f"There are still conflict markers in {named}{more}: resolve these conflicts too, and remove the markers."


def finish_resolution(repo: Path, conflicted: Conflicted, commit: str, message: str) -> str:
    """The merge of all parents with the files of `commit`, which the agent left. Its author and its date are fixed.

    May be repeated. Raises `GitFailed` with `unresolved`'s words.
    """
    if left := unresolved(repo, conflicted, commit):
        raise GitFailed(left)
    tree = run_git("rev-parse", f"{checked_commit(commit)}^{{tree}}", doing="reading a commit", git_dir=repo)
    return commit_merge(repo, tree.out.decode().strip(), conflicted.parents, message)


def _named(note: str, sides: Sequence[tuple[str, str]]) -> str:
    for commit, name in sides:
        note = note.replace(commit, name)
    return note


def _files_with(repo: Path, commit: str, patterns: Sequence[str]) -> set[str]:
    """The files of a commit that have a line like one of the patterns (extended regular expressions)."""
    words = [word for pattern in patterns for word in ("-e", pattern)]
    done = run_git(
        *("grep", "-l", "-z", "-a", "-E", "--no-recurse-submodules", "--full-name", *words, checked_commit(commit)),
        doing="looking for conflict markers",
        git_dir=repo,
        statuses=(0, 1),
    )
    found = (name.decode(errors="replace") for name in done.out.split(b"\0") if name)
    return {name.removeprefix(f"{commit}:") for name in found}

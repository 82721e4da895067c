"""One lease's workspace: what the agent gets, what is read back from it, and what becomes of it.

    work/<plan>/<task>-<lease>/
        code/        the worktree, where the agent works; on the local branch treadle/<task>
        repo.git/    its private bare repository: the agent may commit, branch and configure here as it likes
        runner.git/  the runner's own view of code/, outside the agent's sandbox: its own index and configuration
        pushed       the commit that was pushed, once it was

The agent's repository is never used as a repository by the runner: a hook, a filter, a file system monitor or an
include in its configuration would run with the runner's rights. The runner reads two things from it, the commit that
HEAD names and the objects, which it copies (`services.runner.commits_taken`), and looks at `code/` through
`runner.git`, whatever `code/.git` says by then.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from services.runner.agent_files import read_below
from services.runner.git import IDENTITY_EMAIL, IDENTITY_NAME, GitFailed, checked_commit, checked_ids, run_git
from services.runner.mirror import Mirror, write_bare_repository
from services.runner.trees import holds_anything
from services.runner.trees import remove_tree as remove_tree
from services.runner.trees import size_bytes as size_bytes
from shared.spec import DELIVER

LEFT_OUT = "left-out"
"""In a workspace: says which of its files are in no commit, being git repositories of their own."""
PUSHED = "pushed"
"""The name of the file in a workspace that says which commit of it was pushed."""

SANDBOX_PLACEHOLDERS = [
    "/.bash_profile",
    "/.bashrc",
    "/.gitconfig",
    "/.gitmodules",
    "/.idea",
    "/.mcp.json",
    "/.profile",
    "/.ripgreprc",
    "/.vscode",
    "/.zprofile",
    "/.zshrc",
    "/.claude/",
]
"""What the agents' sandbox puts into the worktree, for `git add` inside it to pass over."""

_AGENTS_CONFIG = f"[user]\n\tname = {IDENTITY_NAME}\n\temail = {IDENTITY_EMAIL}\n[commit]\n\tgpgSign = false\n"
_UNFINISHED = re.compile(r"\..+-[0-9]+\.(?:new|gone)")
_UNFINISHED_S = 24 * 3600.0
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REF = re.compile(r"refs/heads/[^\s\\~^:?*\[\x00-\x1f\x7f]+")
_SMALL_FILE_MAX_BYTES = 4096
_PACKED_REFS_MAX_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Workspace:
    """A lease's workspace on disk; make it with `create_workspace`."""

    path: Path
    mirror: Mirror
    plan: str
    task: str
    lease: int
    base: str

    @property
    def code(self) -> Path:
        """Where the agent works."""
        return self.path / "code"

    @property
    def agents_repo(self) -> Path:
        """The bare repository behind `code`, which the agent may write to."""
        return self.path / "repo.git"

    @property
    def runners_repo(self) -> Path:
        """The runner's own repository, which sees the mirror's objects and has copies of the agent's."""
        return self.path / "runner.git"


@dataclass(frozen=True)
class Stored:
    """A workspace found on disk."""

    path: Path
    plan: str
    task: str
    lease: int
    size_bytes: int
    unsaved: bool
    """Whether it holds work that was never pushed. A lease that is still running has such work too."""


@dataclass(frozen=True)
class Resumed:
    """What a former lease left, which the mirror has: where its agent's HEAD was, and the files as they lay there."""

    head: str
    tree: str


def create_workspace(
    data_dir: Path, mirror: Mirror, plan: str, task: str, lease: int, base: str, resumed: Resumed | None = None
) -> Workspace:
    """Checks the base commit out for a new lease, or puts a former lease's work back; the mirror must have both.

    It is built beside its place and moved there whole, so a workspace is either complete or not there. What was
    uncommitted is uncommitted again.
    """
    checked_ids(plan, task, lease)
    place = _place(data_dir, plan, task, lease)
    if place.exists():
        raise GitFailed(f"lease {lease} of {task} has a workspace already: {place}; remove it with treadle clean")
    building = place.with_name(f".{place.name}.new")
    if building.exists():
        remove_tree(building)
    (building / "code").mkdir(parents=True)
    head = resumed.head if resumed else base
    _write_repositories(building, place, mirror, task, checked_commit(base), checked_commit(head))
    runners, code = building / "runner.git", building / "code"
    agents_index = building / "repo.git/worktrees/code/index"
    doing = f"checking out {base[:12]} of {mirror.shown}"
    files = checked_commit(resumed.tree) if resumed else base
    run_git("read-tree", "--reset", "-u", files, doing=doing, git_dir=runners, work_tree=code)
    # A copy with its time: git trusts a file's entry only when the index is younger than the file.
    shutil.copy2(runners / "index", agents_index)
    if resumed:
        # What lies there already is kept as known, so neither of the two reads it all again.
        move_index(agents_index, head, doing=doing, git_dir=runners, work_tree=code)
        move_index(runners / "index", base, doing=doing, git_dir=runners, work_tree=code)
    building.rename(place)
    return Workspace(place, mirror, plan, task, lease, base)


def move_index(index: Path, commit: str, *, doing: str, git_dir: Path, work_tree: Path) -> None:
    """Makes an index that of another commit; what it knows of files that are the same there stays known.

    It keeps its time: git looks into a file again that was changed in the very second in which the index was written,
    but an index of a later second it believes, and `read-tree` writes one without having looked.
    """
    written = index.stat()
    # -i: what lies in the worktree is nobody's reason to refuse.
    run_git("read-tree", "-i", "-m", commit, doing=doing, git_dir=git_dir, work_tree=work_tree, index=index)
    os.utime(index, ns=(written.st_atime_ns, written.st_mtime_ns))


def remove_workspace(path: Path) -> None:
    """Removes a workspace and whatever is in it; harmless when it is gone already."""
    leaving = path.with_name(f".{path.name}.gone")
    if leaving.exists():
        remove_tree(leaving)
    if path.exists():
        # First out of sight: a removal that is killed half way must not look like work that nobody pushed.
        path.rename(leaving)
        remove_tree(leaving)


def list_workspaces(data_dir: Path) -> list[Stored]:
    """The workspaces on disk, by plan, task and lease; removes what killed processes left half made or half removed."""
    found = []
    for directory in sorted((data_dir.resolve() / "work").glob("*/*")):
        plan, (task, _, lease) = directory.parent.name, directory.name.rpartition("-")
        if _UNFINISHED.fullmatch(directory.name) and directory.stat().st_mtime < time.time() - _UNFINISHED_S:
            remove_tree(directory)
        elif lease.isdecimal() and not directory.name.startswith("."):
            unsaved = holds_unsaved_work(directory, task)
            found.append(Stored(directory, plan, task, int(lease), size_bytes(directory), unsaved))
    return found


def holds_unsaved_work(path: Path, task: str) -> bool:
    """Whether a workspace holds work that was never pushed."""
    return (path / LEFT_OUT).exists() or (not (path / PUSHED).exists() and _differs_from_base(path, task))


def agents_head(agents_repo: Path, task: str) -> str | None:
    """The commit that the agent's HEAD names, read without running git on what the agent may have changed.

    None when it names none: an orphan branch, or a repository that the agent has removed.
    """
    text = _text(agents_repo, "worktrees/code/HEAD") or f"ref: {_branch(task)}"
    for _ in range(5):
        text = text.strip()
        if not text.startswith("ref:"):
            return text if _COMMIT.fullmatch(text) else None
        ref = text.removeprefix("ref:").strip()
        if not _REF.fullmatch(ref) or ".." in ref:
            return None
        text = _text(agents_repo, ref) or _packed_ref(agents_repo, ref)
    return None


def exclude_placeholders(path: Path) -> None:
    """Makes the runner pass over the sandbox's placeholders in a workspace, as long as nothing is in them."""
    empty = [p for p in SANDBOX_PLACEHOLDERS if not holds_anything(path / "code" / p.strip("/"))]
    (path / "runner.git/info/exclude").write_text("".join(f"{p}\n" for p in empty))


def place_of_plan(data_dir: Path, plan: str) -> Path:
    """Where a plan's workspaces are. Raises `ValueError` for what is no plan's id."""
    checked_ids(plan, DELIVER)
    return data_dir.resolve() / "work" / plan


def borrowed_mirrors(data_dir: Path) -> set[Path]:
    """The mirrors whose objects some workspace rests on, half made ones included."""
    found = set()
    for alternates in (data_dir.resolve() / "work").glob("*/*/runner.git/objects/info/alternates"):
        text = _text(alternates.parent, alternates.name) or ""
        found |= {Path(line).parent for line in text.splitlines()}
    return found


def _place(data_dir: Path, plan: str, task: str, lease: int) -> Path:
    return place_of_plan(data_dir, plan) / f"{task}-{lease}"


def _branch(task: str) -> str:
    return f"refs/heads/treadle/{task}"


def _write_repositories(building: Path, place: Path, mirror: Mirror, task: str, base: str, head: str) -> None:
    """Writes both repositories and the link between the agent's and `code`, as `git worktree add` would."""
    agents, runners = building / "repo.git", building / "runner.git"
    write_bare_repository(agents, alternates=[mirror.objects], config=_AGENTS_CONFIG)
    write_bare_repository(runners, alternates=[mirror.objects], head=base)
    if (mirror.path / "shallow").exists():
        shutil.copy(mirror.path / "shallow", agents)
        shutil.copy(mirror.path / "shallow", runners)
    (agents / "info/exclude").write_text("".join(f"{p}\n" for p in SANDBOX_PLACEHOLDERS))
    (agents / "refs/heads/treadle").mkdir()
    (agents / _branch(task)).write_text(f"{head}\n")
    link = agents / "worktrees/code"
    link.mkdir(parents=True)
    # A branch and not a detached HEAD: `git status` and `git commit` then say what agents know from elsewhere.
    (link / "HEAD").write_text(f"ref: {_branch(task)}\n")
    (link / "commondir").write_text("../..\n")
    (link / "gitdir").write_text(f"{place / 'code/.git'}\n")
    (building / "code/.git").write_text(f"gitdir: {place / 'repo.git/worktrees/code'}\n")


def former_workspace(data_dir: Path, mirror: Mirror, plan: str, task: str, lease: int) -> Workspace | None:
    """The workspace that a former life left of a lease; None when there is none."""
    checked_ids(plan, task, lease)
    place = _place(data_dir, plan, task, lease)
    base = (_text(place / "runner.git", "HEAD") or "").strip()
    return Workspace(place, mirror, plan, task, lease, base) if _COMMIT.fullmatch(base) else None


def _differs_from_base(path: Path, task: str) -> bool:
    base = (_text(path / "runner.git", "HEAD") or "").strip()
    if agents_head(path / "repo.git", task) not in (base, None):
        return True
    exclude_placeholders(path)
    args = ("ls-files", "--modified", "--deleted", "--others", "--exclude-standard")
    doing = f"looking for work in {path}"
    git_dir = path / "runner.git"
    return bool(run_git(*args, doing=doing, git_dir=git_dir, work_tree=path / "code", out_max_bytes=1).out)


def _packed_ref(agents_repo: Path, ref: str) -> str:
    for line in (_text(agents_repo, "packed-refs", _PACKED_REFS_MAX_BYTES) or "").splitlines():
        commit, _, name = line.partition(" ")
        if name == ref:
            return commit
    return ""


def _text(root: Path, inner: str, max_bytes: int = _SMALL_FILE_MAX_BYTES) -> str | None:
    """The text of a small file that an agent may have replaced by anything."""
    found = read_below(root, inner, max_bytes)
    return None if found is None else found.decode(errors="replace")

"""Copies the commits that an agent made into the runner's own repository, and trusts nothing about how they lie there.

The agent's object directory is looked at by one command alone, while nothing of the agent should be at work. Whatever
comes after (comparing, merging, pushing) sees the copies: a link that the agent puts among its objects later leads
nobody to another project's. They come through a pack, whose objects git names by their content on arrival.
"""

from __future__ import annotations

import os
from pathlib import Path

from services.runner.agent_files import read_below
from services.runner.git import GitFailed, checked_commit, run_git
from services.runner.merge import contains
from services.runner.trees import DIRECTORY
from services.runner.workspace import Workspace

_TAKEN = "refs/taken"
"""The runner's ref to the newest commit that was copied, with all it contains."""
_DEPTH_MAX = 4
"""Git's own object directories are flatter."""
_ALTERNATES_MAX_BYTES = 4096


def check_objects(workspace: Workspace) -> None:
    """Raises `GitFailed` where the agent made git look for its objects elsewhere, or left it something to hang on."""
    repo = workspace.agents_repo
    try:
        why = _odd(repo)
    except OSError as error:
        why = f"can't be looked through: {error.strerror}"
    alternates = "objects/info/alternates"
    if not why and os.path.lexists(repo / alternates):
        expected = f"{workspace.mirror.objects}\n".encode()
        if read_below(repo, alternates, _ALTERNATES_MAX_BYTES) != expected:
            why = f"{alternates} names others"
    if why:
        raise GitFailed(
            f"the agent of {workspace.task} redirected its repository's objects ({repo}: {why}), "
            "so its work can't be trusted: look at it, then redispatch the task"
        )


def bring_commits(workspace: Workspace, head: str) -> None:
    """Copies the agent's HEAD and what it contains to where the runner has it. Blocks; may be repeated.

    Raises `GitFailed` where something of it is missing, is not what its name says, or does not rest on the base.
    """
    doing = f"reading the commit {head[:12]} that the agent of {workspace.task} made"
    try:
        if not _is_whole(workspace, head):
            _copy(workspace, head, doing)
            if not _is_whole(workspace, head):
                raise GitFailed("some of it is missing, or is not what its name says")
        follows = contains(workspace.runners_repo, head, workspace.base)
    except GitFailed as fault:
        raise GitFailed(f"{doing}: {fault}; its work is in {workspace.code}") from None
    if not follows:
        raise GitFailed(
            f"the agent of {workspace.task} moved HEAD to {head[:12]}, which does not contain the commit "
            f"it started from ({workspace.base[:12]}): look at its work in {workspace.code}, then redispatch the task"
        )
    run_git("update-ref", _TAKEN, head, doing=doing, git_dir=workspace.runners_repo)


def _is_whole(workspace: Workspace, head: str) -> bool:
    args = ("rev-list", "--objects", "--quiet", checked_commit(head), f"^{workspace.base}")
    repo = workspace.runners_repo
    return run_git(*args, doing="looking for a commit", git_dir=repo, statuses=(0, 1, 128)).status == 0


def _copy(workspace: Workspace, head: str, doing: str) -> None:
    repo, objects = workspace.runners_repo, workspace.agents_repo / "objects"
    former = read_below(repo, _TAKEN, 100) or workspace.base.encode()
    revisions = f"{head}\n^{workspace.base}\n^{former.decode().strip()}\n".encode()
    _remove_packs(repo)
    try:
        run_git(
            *("pack-objects", "-q", "--revs", str(repo / "taken")),
            doing=doing,
            git_dir=repo,
            stdin=revisions,
            env={"GIT_ALTERNATE_OBJECT_DIRECTORIES": str(objects)},
        )
        for pack in repo.glob("taken-*.pack"):
            run_git("index-pack", "--stdin", doing=doing, git_dir=repo, stdin=pack)
    finally:
        _remove_packs(repo)


def _remove_packs(repo: Path) -> None:
    """What lies beside its place: of this copying, or of one that was killed."""
    for old in repo.glob("taken-*"):
        old.unlink()


def _odd(repo: Path) -> str:
    """What lies in the agent's object directory and should not; empty when there is nothing of the kind."""
    try:
        root = os.open(repo, DIRECTORY)
    except FileNotFoundError:
        return ""  # with its repository the agent has removed all its commits
    except OSError:
        return "it is no directory"
    try:
        return _odd_below(root, "objects", _DEPTH_MAX) if os.path.lexists(repo / "objects") else ""
    finally:
        os.close(root)


def _odd_below(parent: int, name: str, levels: int) -> str:
    try:
        at = os.open(name, DIRECTORY, dir_fd=parent)
    except OSError:
        return f"{name!r} is no directory, or leads elsewhere"
    try:
        with os.scandir(at) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    why = _odd_below(at, entry.name, levels - 1) if levels else f"{entry.name!r} lies too deep"
                    if why:
                        return why
                elif not entry.is_file(follow_symlinks=False):
                    return f"{entry.name!r} is neither a file nor a directory"
    finally:
        os.close(at)
    return ""

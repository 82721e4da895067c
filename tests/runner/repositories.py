"""Real repositories for the tests of the runner's git half."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from services.runner.deliver import push_lease
from services.runner.leftovers import Outcome, commit_leftovers
from services.runner.mirror import Mirror, mirror_of
from services.runner.workspace import Workspace, create_workspace
from shared.clock import new_plan_id

# Not the same in two sessions at once: a lease's processes are found by a mark that names the plan.
PLAN = new_plan_id()
PROJECT_ID = "fedcba9876543210fedcba98"

_ENV = {
    "PATH": os.environ["PATH"],
    "HOME": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "Person",
    "GIT_AUTHOR_EMAIL": "person@example.com",
    "GIT_COMMITTER_NAME": "Person",
    "GIT_COMMITTER_EMAIL": "person@example.com",
}


def git(where: Path, *args: str) -> str:
    """Runs git as a person or an agent would; returns what it prints."""
    done = subprocess.run(["git", *args], cwd=where, env=_ENV, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"git {' '.join(args)}: {done.stderr}")
    return done.stdout.strip()


@dataclass(frozen=True)
class Project:
    """A person's checkout with one commit, and a runner's data directory with its mirror."""

    repo: Path
    data_dir: Path
    mirror: Mirror
    base: str

    def workspace(self, task: str = "T1", lease: int = 1, base: str | None = None) -> Workspace:
        """A fresh workspace of a lease."""
        commit = base or self.base
        self.mirror.ensure(PLAN, [commit])
        return create_workspace(self.data_dir, self.mirror, PLAN, task, lease, commit)

    def work(self, task: str, files: dict[str, str], base: str | None = None, lease: int = 1) -> str:
        """Does a whole task that writes these files; returns its pushed commit."""
        workspace = self.workspace(task, lease, base)
        for name, text in files.items():
            (workspace.code / name).parent.mkdir(parents=True, exist_ok=True)
            (workspace.code / name).write_text(text)
        outcome: Outcome = commit_leftovers(workspace, "a task")
        push_lease(workspace, outcome.commit)
        return outcome.commit

    def files(self, commit: str) -> dict[str, str]:
        """The files of a commit in the person's repository."""
        names = git(self.repo, "ls-tree", "-r", "--name-only", commit).splitlines()
        return {name: git(self.repo, "show", f"{commit}:{name}") for name in names}


def make_project(directory: Path, files: dict[str, str] | None = None) -> Project:
    """A project in an empty directory."""
    repo = directory / "person"
    repo.mkdir()
    git(repo, "init", "-q", "-b", "main")
    for name, text in (files or {"a.txt": "one\ntwo\n", "b.txt": "b\n", ".gitignore": "*.log\n"}).items():
        (repo / name).parent.mkdir(parents=True, exist_ok=True)
        (repo / name).write_text(text)
    git(repo, "add", "--all")
    git(repo, "commit", "-q", "-m", "Start")
    data_dir = directory / "data"
    return Project(repo, data_dir, mirror_of(data_dir, str(repo), PROJECT_ID), git(repo, "rev-parse", "HEAD"))

"""An agent plants programs wherever git would run one; none of them may run in the runner's hands.

Each test first shows that the plant works: plain git in the worktree runs it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from services.runner.deliver import deliver, move_head, push_lease
from services.runner.leftovers import commit_leftovers
from services.runner.merge import diff
from services.runner.workspace import Workspace, list_workspaces, remove_workspace
from shared.events import Head
from tests.runner.repositories import PLAN, Project, git, make_project

HOOKS = [
    *("applypatch-msg", "commit-msg", "post-checkout", "post-commit", "post-index-change", "post-merge", "pre-commit"),
    *(
        "pre-push",
        "pre-receive",
        "prepare-commit-msg",
        "reference-transaction",
        "update",
        "post-receive",
        "post-update",
    ),
]


class Canary:
    """A program that leaves a trace when it runs."""

    def __init__(self, directory: Path) -> None:
        self.trace = directory / "ran"
        self.program = directory / "canary"
        self.program.write_text(f'#!/bin/sh\necho "$0 $*" >> {self.trace}\ncat\n')
        self.program.chmod(0o755)

    def must_have_run(self) -> None:
        assert self.trace.exists(), "the plant does not work, so the test would prove nothing"
        self.trace.unlink()

    def must_not_have_run(self) -> None:
        assert not self.trace.exists(), self.trace.read_text()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path, {"a.txt": "a\n", "sub/b.txt": "b\n"})


@pytest.fixture
def canary(tmp_path: Path) -> Canary:
    return Canary(tmp_path)


def plant_hooks(repo: Path, canary: Canary) -> None:
    (repo / "hooks").mkdir(exist_ok=True)
    for name in HOOKS:
        shutil.copy2(canary.program, repo / "hooks" / name)


def plant_config(repo: Path, canary: Canary) -> None:
    (repo / "planted").write_text(
        f"[core]\n fsmonitor = {canary.program}\n pager = {canary.program}\n sshCommand = {canary.program}\n"
        f" hooksPath = {canary.program.parent}\n alternateRefsCommand = {canary.program}\n worktree = {repo}\n"
        f'[filter "x"]\n clean = {canary.program}\n smudge = {canary.program}\n process = {canary.program}\n'
        f' required = true\n[diff]\n external = {canary.program}\n[diff "x"]\n textconv = {canary.program}\n'
        f'[merge "x"]\n driver = {canary.program}\n[gpg]\n program = {canary.program}\n[commit]\n gpgSign = true\n'
    )
    with (repo / "config").open("a") as config:
        config.write(f"[include]\n path = {repo / 'planted'}\n")


def plant_filter_only(repo: Path, canary: Canary) -> None:
    with (repo / "config").open("a") as config:
        config.write(f'[filter "x"]\n clean = {canary.program}\n')


def finish(project: Project, workspace: Workspace) -> str:
    """Everything that the runner does with a workspace after the agent; returns the commit."""
    list_workspaces(project.data_dir)
    outcome = commit_leftovers(workspace, "a task")
    assert outcome.changed
    commit_leftovers(workspace, "a task")
    push_lease(workspace, outcome.commit)
    move_head(project.mirror, PLAN, workspace.task, outcome.commit)
    assert diff(project.mirror.path, project.base, outcome.commit).patch
    remove_workspace(workspace.path)
    # The commit with its .gitattributes, and another beside it: checked out, merged and delivered.
    again = project.workspace("T2", base=outcome.commit)
    (again.code / "a.txt").write_text("again\n")
    second = commit_leftovers(again, "a task").commit
    push_lease(again, second)
    third = project.work("T3", {"new.txt": "new\n"}, base=outcome.commit)
    deliver(project.mirror, PLAN, project.base, [Head("T2", second), Head("T3", third)])
    return outcome.commit


def change(workspace: Workspace) -> None:
    """Work that leads git past every plant: attributes on all files, a change, a new file."""
    (workspace.code / ".gitattributes").write_text("* filter=x diff=x merge=x\n")
    (workspace.code / "a.txt").write_text("changed\n")
    (workspace.code / "new.txt").write_text("new\n")


def test_hooks_in_the_agents_repository_do_not_run(project: Project, canary: Canary) -> None:
    workspace = project.workspace()
    plant_hooks(workspace.agents_repo, canary)
    git(workspace.code, "commit", "-q", "--allow-empty", "-m", "Mine")
    canary.must_have_run()
    change(workspace)
    finish(project, workspace)
    canary.must_not_have_run()


def test_programs_in_the_agents_configuration_do_not_run(project: Project, canary: Canary) -> None:
    workspace = project.workspace()
    change(workspace)
    plant_filter_only(workspace.agents_repo, canary)
    git(workspace.code, "add", "a.txt")
    canary.must_have_run()
    plant_config(workspace.agents_repo, canary)
    finish(project, workspace)
    canary.must_not_have_run()


def test_a_file_system_monitor_does_not_run(project: Project, canary: Canary) -> None:
    workspace = project.workspace()
    change(workspace)
    git(workspace.code, "config", "core.fsmonitor", str(canary.program))
    git(workspace.code, "status")
    canary.must_have_run()
    finish(project, workspace)
    canary.must_not_have_run()


def test_a_worktree_configuration_does_not_count(project: Project, canary: Canary) -> None:
    workspace = project.workspace()
    change(workspace)
    git(workspace.code, "config", "extensions.worktreeConfig", "true")
    git(workspace.agents_repo, "config", "core.bare", "false")
    git(workspace.code, "config", "--worktree", "core.fsmonitor", str(canary.program))
    git(workspace.code, "status")
    canary.must_have_run()
    finish(project, workspace)
    canary.must_not_have_run()


def git_file(workspace: Workspace, evil: Path) -> None:
    (workspace.code / ".git").write_text(f"gitdir: {evil}\n")


def git_link(workspace: Workspace, evil: Path) -> None:
    (workspace.code / ".git").unlink()
    (workspace.code / ".git").symlink_to(evil)


def git_directory(workspace: Workspace, evil: Path) -> None:
    (workspace.code / ".git").unlink()
    shutil.copytree(evil, workspace.code / ".git")


def common_directory(workspace: Workspace, evil: Path) -> None:
    (workspace.agents_repo / "worktrees/code/commondir").write_text(f"{evil}\n")


@pytest.mark.parametrize("redirect", [git_file, git_link, git_directory, common_directory])
def test_a_redirected_git_directory_leads_nowhere(
    project: Project, canary: Canary, tmp_path: Path, redirect: Callable[[Workspace, Path], None]
) -> None:
    workspace = project.workspace()
    git(tmp_path, "clone", "-q", str(project.repo), str(tmp_path / "evil"))
    evil = tmp_path / "evil/.git"
    plant_hooks(evil, canary)
    git(tmp_path / "evil", "config", "core.fsmonitor", str(canary.program))
    git(tmp_path / "evil", "branch", "treadle/T1")
    git(tmp_path / "evil", "config", "filter.x.clean", str(canary.program))
    redirect(workspace, evil)
    change(workspace)
    git(workspace.code, "add", "a.txt")
    canary.must_have_run()
    before = sorted(p for p in evil.rglob("*") if "hooks" not in p.parts)
    commit = finish(project, workspace)
    canary.must_not_have_run()
    assert sorted(p for p in evil.rglob("*") if "hooks" not in p.parts) == before
    assert project.files(commit)["a.txt"] == "changed"


def test_nothing_of_a_filled_submodule_runs(tmp_path: Path, canary: Canary) -> None:
    project = make_project(tmp_path)
    (tmp_path / "library").mkdir()
    library = make_project(tmp_path / "library", {".gitattributes": "* filter=x\n", "x.txt": "x\n"})
    git(project.repo, "update-index", "--add", "--cacheinfo", f"160000,{library.base},module")
    git(project.repo, "commit", "-qm", "A submodule")
    workspace = project.workspace(base=git(project.repo, "rev-parse", "HEAD"))
    module = workspace.code / "module"
    git(workspace.code, "clone", "-q", str(library.repo), str(module))
    git(module, "config", "filter.x.clean", str(canary.program))
    git(module, "config", "core.fsmonitor", str(canary.program))
    plant_hooks(module / ".git", canary)
    (module / "x.txt").write_text("y\n")
    git(workspace.code, "add", "--all")
    canary.must_have_run()
    (workspace.code / "a.txt").write_text("changed\n")
    os.utime(module / "x.txt")
    outcome = commit_leftovers(workspace, "a task")
    canary.must_not_have_run()
    assert outcome.left_out == ("module",)
    assert outcome.files_changed == 1
    assert library.base in git(workspace.runners_repo, "ls-tree", outcome.commit, "module")


def test_hooks_of_a_persons_checkout_do_not_run_when_we_push_to_it(project: Project, canary: Canary) -> None:
    plant_hooks(project.repo / ".git", canary)
    git(project.repo, "update-ref", "refs/heads/seen", project.base)
    canary.must_have_run()
    workspace = project.workspace()
    change(workspace)
    finish(project, workspace)
    canary.must_not_have_run()


def test_a_program_named_git_in_the_worktree_is_not_taken_for_git(
    project: Project, canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f".:{os.environ['PATH']}")
    workspace = project.workspace()
    shutil.copy2(canary.program, workspace.code / "git")
    (workspace.code / "env").symlink_to("git")
    commit_leftovers(workspace, "a task")
    canary.must_not_have_run()


def test_the_runners_own_git_variables_do_not_reach_git(
    project: Project, tmp_path: Path, canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(tmp_path / "nowhere"))
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", str(canary.program))
    monkeypatch.setenv("GIT_CONFIG_PARAMETERS", f"'core.fsmonitor={canary.program}'")
    workspace = project.workspace()
    change(workspace)
    finish(project, workspace)
    canary.must_not_have_run()
    assert not (tmp_path / "nowhere").exists()

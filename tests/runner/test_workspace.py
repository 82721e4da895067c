"""What an agent finds in its workspace, and what the runner takes back from it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from services.runner.deliver import push_lease
from services.runner.git import GitFailed
from services.runner.leftovers import commit_leftovers
from services.runner.workspace import Workspace, create_workspace, list_workspaces, remove_workspace
from tests.runner.repositories import PLAN, Project, git, make_project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path)


def taken(workspace: Workspace) -> dict[str, str]:
    """The files of what the runner commits."""
    commit = commit_leftovers(workspace, "a task").commit
    names = git(workspace.runners_repo, "ls-tree", "-r", "--name-only", commit).splitlines()
    return {name: git(workspace.runners_repo, "show", f"{commit}:{name}") for name in names}


def test_an_agent_finds_a_clean_worktree_in_which_it_can_commit(project: Project) -> None:
    workspace = project.workspace()
    assert git(workspace.code, "status", "--porcelain", "--branch") == "## treadle/T1"
    assert git(workspace.code, "rev-parse", "HEAD") == project.base
    (workspace.code / "a.txt").write_text("changed\n")
    git(workspace.code, "-c", "user.useConfigOnly=true", "commit", "-qam", "Mine")
    assert git(workspace.code, "log", "--format=%s") == "Mine\nStart"
    assert git(project.mirror.path, "for-each-ref", "refs/heads") == f"{project.base} commit\trefs/heads/main"


def test_leftovers_are_committed_on_top_of_the_agents_own_commits(project: Project) -> None:
    workspace = project.workspace()
    (workspace.code / "mine.txt").write_text("mine\n")
    git(workspace.code, "add", "mine.txt")
    git(workspace.code, "commit", "-qm", "Mine")
    own = git(workspace.code, "rev-parse", "HEAD")
    (workspace.code / "a.txt").write_text("one\n")
    (workspace.code / "b.txt").unlink()
    (workspace.code / "new dir").mkdir()
    (workspace.code / "new dir/ü.txt").write_text("x\ny\n")
    (workspace.code / "noise.log").write_text("ignored\n")

    outcome = commit_leftovers(workspace, "A name\nof two\x1b[31m lines")

    assert (outcome.changed, outcome.files_changed, outcome.insertions, outcome.deletions) == (True, 4, 3, 2)
    assert outcome.left_out == ()
    shown = git(workspace.runners_repo, "show", "-s", "--format=%P%n%an <%ae>%n%B", outcome.commit)
    assert shown == (
        f"{own}\nTreadle <treadle@localhost>\nT1: A name of two lines\n\nTreadle-Plan: {PLAN}\nTreadle-Task: T1"
    )
    names = git(workspace.runners_repo, "-c", "core.quotePath=false", "ls-tree", "-r", "--name-only", outcome.commit)
    assert names.splitlines() == [".gitignore", "a.txt", "mine.txt", "new dir/ü.txt"]


def test_no_change_at_all_gives_the_base(project: Project) -> None:
    workspace = project.workspace()
    (workspace.code / "noise.log").write_text("ignored\n")
    os.utime(workspace.code / "a.txt")
    outcome = commit_leftovers(workspace, "a task")
    assert (outcome.commit, outcome.changed, outcome.files_changed) == (project.base, False, 0)


def test_a_clean_worktree_keeps_the_agents_commit_as_it_is(project: Project) -> None:
    workspace = project.workspace()
    (workspace.code / "debug.log").write_text("wanted\n")
    git(workspace.code, "add", "--force", "debug.log")
    git(workspace.code, "commit", "-qm", "An ignored file, on purpose")
    outcome = commit_leftovers(workspace, "a task")
    assert outcome.commit == git(workspace.code, "rev-parse", "HEAD")
    assert (outcome.changed, outcome.files_changed) == (True, 1)


def test_taking_leftovers_twice_takes_the_same_files(project: Project) -> None:
    workspace = project.workspace()
    (workspace.code / "kept.txt").write_text("x")
    (workspace.code / "dropped.txt").write_text("x")
    assert "dropped.txt" in taken(workspace)
    (workspace.code / "dropped.txt").unlink()
    (workspace.runners_repo / "index.taken.lock").touch()  # as a killed call leaves it
    assert sorted(taken(workspace)) == [".gitignore", "a.txt", "b.txt", "kept.txt"]


def test_a_change_of_the_same_size_right_after_the_checkout_is_seen(project: Project) -> None:
    workspace = project.workspace()
    status = (workspace.code / "a.txt").stat()
    (workspace.code / "a.txt").write_text("ONE\ntwo\n")
    os.utime(workspace.code / "a.txt", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert taken(workspace)["a.txt"] == "ONE\ntwo"


def test_a_change_of_the_same_size_is_seen_beside_the_agents_own_commit_too(project: Project) -> None:
    # All within one second but for the taking: then git goes by its index's time alone.
    workspace = project.workspace()
    (workspace.code / "mine.txt").write_text("mine\n")
    git(workspace.code, "add", "mine.txt")
    git(workspace.code, "commit", "-qm", "Mine")
    past = (time.time_ns() // 10**9 - 100) * 10**9
    os.utime(workspace.code / "a.txt", ns=(past, past))
    index = workspace.runners_repo / "index"
    git(workspace.code, f"--git-dir={workspace.runners_repo}", "--work-tree=.", "update-index", "--refresh")
    os.utime(index, ns=(past, past))
    (workspace.code / "a.txt").write_text("ONE\ntwo\n")
    os.utime(workspace.code / "a.txt", ns=(past, past))
    assert taken(workspace)["a.txt"] == "ONE\ntwo"


def test_empty_placeholders_of_the_sandbox_are_passed_over_and_real_files_are_not(project: Project) -> None:
    workspace = project.workspace()
    for name in (".bashrc", ".gitconfig", ".gitmodules", ".profile"):
        (workspace.code / name).touch()
    (workspace.code / ".claude/commands").mkdir(parents=True)
    assert git(workspace.code, "status", "--porcelain") == ""
    assert commit_leftovers(workspace, "a task").commit == project.base
    (workspace.code / ".mcp.json").write_text("{}\n")
    (workspace.code / ".vscode").mkdir()
    (workspace.code / ".vscode/settings.json").write_text("{}\n")
    assert {".mcp.json", ".vscode/settings.json"} == taken(workspace).keys() - {".gitignore", "a.txt", "b.txt"}


def test_links_pipes_and_odd_names_do_not_stop_the_leftovers(project: Project) -> None:
    workspace = project.workspace()
    (workspace.code / "link").symlink_to("/etc/hostname")
    (workspace.code / "loop").symlink_to(".")
    os.mkfifo(workspace.code / "pipe")
    (workspace.code / "-rf :(top)\n").write_text("odd\n")
    outcome = commit_leftovers(workspace, "a task")
    assert outcome.files_changed == 3
    assert git(workspace.runners_repo, "cat-file", "-p", f"{outcome.commit}:link") == "/etc/hostname"


def test_a_directory_that_becomes_a_link_is_taken_as_one(tmp_path: Path) -> None:
    project = make_project(tmp_path, {"d/x.txt": "x\n", "e/y.txt": "y\n"})
    workspace = project.workspace()
    shutil.rmtree(workspace.code / "d")
    (workspace.code / "d").symlink_to("e")
    assert taken(workspace) == {"d": "e", "e/y.txt": "y"}


def test_nested_repositories_are_left_out_and_named(project: Project) -> None:
    workspace = project.workspace()
    for name in ("vendor/lib", "odd [*] :name", "empty"):
        nested = workspace.code / name
        nested.mkdir(parents=True)
        git(nested, "init", "-q")
        (nested / "x.txt").write_text("x\n")
        if name != "empty":
            git(nested, "add", "x.txt")
            git(nested, "commit", "-qm", "Nested")
    (workspace.code / "vendor/beside.txt").write_text("beside\n")
    outcome = commit_leftovers(workspace, "a task")
    assert sorted(outcome.left_out) == ["empty", "odd [*] :name", "vendor/lib"]
    listed = git(workspace.runners_repo, "diff", "--raw", project.base, outcome.commit)
    assert listed.endswith("A\tvendor/beside.txt")
    assert "160000" not in listed
    assert outcome.files_changed == 1


@pytest.mark.parametrize(
    "lock", ["worktrees/code/index.lock", "worktrees/code/HEAD.lock", "refs/heads/treadle/T1.lock"]
)
def test_locks_that_an_agent_leaves_behind_do_not_matter(project: Project, lock: str) -> None:
    workspace = project.workspace()
    (workspace.agents_repo / lock).touch()
    (workspace.code / "new.txt").write_text("new\n")
    assert "new.txt" in taken(workspace)


def remove_link(workspace: Workspace) -> None:
    (workspace.code / ".git").unlink()


def replace_link(workspace: Workspace) -> None:
    (workspace.code / ".git").unlink()
    git(workspace.code, "init", "-q")


def link_elsewhere(workspace: Workspace) -> None:
    (workspace.code / ".git").unlink()
    (workspace.code / ".git").symlink_to(workspace.mirror.path)


def prune(workspace: Workspace) -> None:
    shutil.rmtree(workspace.agents_repo / "worktrees")


def pack_refs(workspace: Workspace) -> None:
    git(workspace.code, "pack-refs", "--all", "--prune")


def detach(workspace: Workspace) -> None:
    git(workspace.code, "checkout", "-q", "--detach")


def other_branch(workspace: Workspace) -> None:
    git(workspace.code, "checkout", "-q", "-b", "feature/x")


def collect(workspace: Workspace) -> None:
    git(workspace.code, "gc", "-q", "--prune=now")


@pytest.mark.parametrize(
    "harm", [remove_link, replace_link, link_elsewhere, prune, pack_refs, detach, other_branch, collect]
)
def test_the_agents_commits_are_found_whatever_it_did_to_its_repository(
    project: Project, harm: Callable[[Workspace], None]
) -> None:
    workspace = project.workspace()
    (workspace.code / "mine.txt").write_text("mine\n")
    git(workspace.code, "add", "mine.txt")
    git(workspace.code, "commit", "-qm", "Mine")
    own = git(workspace.code, "rev-parse", "HEAD")
    (workspace.code / "rest.txt").write_text("rest\n")
    harm(workspace)
    outcome = commit_leftovers(workspace, "a task")
    assert git(workspace.runners_repo, "rev-parse", f"{outcome.commit}^") == own
    assert outcome.files_changed == 2
    assert outcome.left_out == ()


def test_the_files_survive_a_removed_repository_and_an_orphan_branch(project: Project) -> None:
    removed = project.workspace(lease=1)
    (removed.code / "new.txt").write_text("new\n")
    shutil.rmtree(removed.agents_repo)
    assert "new.txt" in taken(removed)
    orphan = project.workspace(lease=2)
    git(orphan.code, "checkout", "-q", "--orphan", "fresh")
    (orphan.code / "new.txt").write_text("new\n")
    assert "new.txt" in taken(orphan)


def test_a_head_without_the_base_is_refused(project: Project) -> None:
    workspace = project.workspace()
    git(workspace.code, "checkout", "-q", "--orphan", "fresh")
    git(workspace.code, "commit", "-qm", "Unrelated")
    with pytest.raises(GitFailed, match=r"agent of T1 moved HEAD to .* does not contain the commit it started from"):
        commit_leftovers(workspace, "a task")


@pytest.mark.parametrize("means", ["replace", "graft", "shallow"])
def test_a_forged_history_does_not_pass_for_one_with_the_base(project: Project, means: str) -> None:
    workspace = project.workspace()
    git(workspace.code, "checkout", "-q", "--orphan", "fresh")
    git(workspace.code, "commit", "-qm", "Unrelated")
    orphan = git(workspace.code, "rev-parse", "HEAD")
    if means == "replace":
        git(workspace.code, "replace", "--graft", orphan, project.base)
    elif means == "graft":
        (workspace.agents_repo / "info/grafts").write_text(f"{orphan} {project.base}\n")
    else:
        (workspace.agents_repo / "shallow").write_text(f"{project.base}\n")
    with pytest.raises(GitFailed, match="does not contain the commit it started from"):
        commit_leftovers(workspace, "a task")


def test_a_head_that_names_no_commit_is_refused(project: Project) -> None:
    workspace = project.workspace()
    (workspace.agents_repo / "worktrees/code/HEAD").write_text("1" * 40 + "\n")
    with pytest.raises(GitFailed, match="that the agent of T1 made"):
        commit_leftovers(workspace, "a task")


def test_a_pipe_or_a_link_in_place_of_head_neither_blocks_nor_is_followed(project: Project, tmp_path: Path) -> None:
    workspace = project.workspace()
    head = workspace.agents_repo / "worktrees/code/HEAD"
    head.unlink()
    os.mkfifo(head)
    assert commit_leftovers(workspace, "a task").commit == project.base
    head.unlink()
    (tmp_path / "elsewhere").write_text("1" * 40)
    head.symlink_to(tmp_path / "elsewhere")
    assert commit_leftovers(workspace, "a task").commit == project.base


def redirect_alternates(workspace: Workspace, other: Path) -> None:
    with (workspace.agents_repo / "objects/info/alternates").open("a") as file:
        file.write(f"{other / '.git/objects'}\n")


def link_objects(workspace: Workspace, other: Path) -> None:
    shutil.rmtree(workspace.agents_repo / "objects")
    (workspace.agents_repo / "objects").symlink_to(other / ".git/objects")


@pytest.mark.parametrize("redirect", [redirect_alternates, link_objects])
def test_objects_of_another_repository_are_not_let_in(
    project: Project, tmp_path: Path, redirect: Callable[[Workspace, Path], None]
) -> None:
    (tmp_path / "other").mkdir()
    other = make_project(tmp_path / "other", {"secret.txt": "secret\n"})
    workspace = project.workspace()
    redirect(workspace, other.repo)
    with pytest.raises(GitFailed, match="redirected its repository's objects"):
        commit_leftovers(workspace, "a task")


def test_a_workspace_is_whole_or_not_there(project: Project) -> None:
    with pytest.raises(GitFailed, match="checking out"):
        create_workspace(project.data_dir, project.mirror, PLAN, "T1", 1, "1" * 40)
    assert list_workspaces(project.data_dir) == []
    assert project.workspace().code.is_dir()
    with pytest.raises(GitFailed, match="has a workspace already"):
        project.workspace()


def test_removing_leaves_nothing_and_may_be_repeated(project: Project) -> None:
    workspace = project.workspace()
    (workspace.code / "closed").mkdir()
    (workspace.code / "closed/x").write_text("x")
    (workspace.code / "closed").chmod(0)
    half_removed = workspace.path.with_name(f".{workspace.path.name}.gone")
    half_removed.mkdir()
    remove_workspace(workspace.path)
    remove_workspace(workspace.path)
    assert list(workspace.path.parent.iterdir()) == []


def test_the_listing_tells_unsaved_work_from_work_that_was_pushed(project: Project) -> None:
    untouched = project.workspace("T1")
    edited = project.workspace("T2-x", 12)
    (edited.code / "a.txt").write_text("edited\n")
    committed = project.workspace("T3")
    git(committed.code, "commit", "-q", "--allow-empty", "-m", "Mine")
    pushed = project.workspace("T4")
    (pushed.code / "a.txt").write_text("edited\n")
    push_lease(pushed, commit_leftovers(pushed, "a task").commit)
    broken = project.workspace("T5")
    shutil.rmtree(broken.runners_repo)
    found = {s.path: (s.plan, s.task, s.lease, s.unsaved) for s in list_workspaces(project.data_dir)}
    assert found == {
        untouched.path: (PLAN, "T1", 1, False),
        edited.path: (PLAN, "T2-x", 12, True),
        committed.path: (PLAN, "T3", 1, True),
        pushed.path: (PLAN, "T4", 1, False),
        broken.path: (PLAN, "T5", 1, True),
    }
    assert all(s.size_bytes > 0 for s in list_workspaces(project.data_dir))


@pytest.mark.parametrize(
    ("plan", "task", "lease"),
    [("../x", "T1", 1), ("p" * 13, "../T1", 1), (PLAN, "_plan", 1), (PLAN, "T1", 0), (PLAN, "", 1), (PLAN, "a/b", 1)],
)
def test_unsafe_identifiers_never_become_a_path(project: Project, plan: str, task: str, lease: int) -> None:
    with pytest.raises(ValueError, match="not a"):
        create_workspace(project.data_dir, project.mirror, plan, task, lease, project.base)
    assert not (project.data_dir / "work").exists()

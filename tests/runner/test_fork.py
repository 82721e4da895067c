"""A fork rests on commits that lie under its origin's refs: on a server, on another machine, and after a cleaning."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.runner.deliver import delete_task_refs, deliver, move_head, push_lease
from services.runner.git import CommitsMissing, GitFailed, MergeConflict
from services.runner.inherited import ensure_heads
from services.runner.leftovers import commit_leftovers
from services.runner.mirror import Mirror
from services.runner.workspace import create_workspace
from shared.clock import new_plan_id
from shared.events import Head
from tests.runner.repositories import PLAN, Project, git, make_project

FORK = new_plan_id()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path)


@pytest.fixture
def old_server(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    """A mirror on another machine, of a server that gives only what its refs name."""
    (tmp_path / "gitconfig").write_text("[protocol]\n version = 0\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    return Mirror(tmp_path / "other" / "mirrors" / "m.git", f"file://{project.repo}")


def origins_heads(project: Project) -> tuple[Head, Head]:
    """Two tasks' work, each under its head alone; the first one's commit is in the second one's."""
    top = project.work("TOP", {"top.txt": "top\n"})
    left = project.work("LEFT", {"left.txt": "left\n"}, base=top)
    right = project.work("RIGHT", {"right.txt": "right\n"}, base=top)
    for task, commit in (("LEFT", left), ("RIGHT", right)):
        move_head(project.mirror, PLAN, task, commit)
    git(project.repo, "update-ref", "-d", f"refs/treadle/{PLAN}/TOP/1")
    return Head("LEFT", left, PLAN), Head("RIGHT", right, PLAN)


def test_what_a_fork_inherited_is_fetched_by_its_origins_refs(project: Project, old_server: Mirror) -> None:
    left, right = origins_heads(project)
    top = git(project.repo, "rev-parse", f"{left.commit}^")  # which no ref names
    with pytest.raises(GitFailed, match="has no commit"):
        old_server.ensure(FORK, [top])
    old_server.ensure(FORK, [top, right.commit], also_of=[PLAN])
    assert git(old_server.path, "show", f"{top}:top.txt") == "top"
    old_server.ensure(FORK, [top])  # it is here now


def test_a_fork_on_another_machine_works_and_delivers_with_everybodys_work(
    project: Project, old_server: Mirror, tmp_path: Path
) -> None:
    left, right = origins_heads(project)
    old_server.ensure(FORK, [project.base, left.commit], also_of=[PLAN])
    workspace = create_workspace(tmp_path / "other", old_server, FORK, "LAST", 1, left.commit)
    (workspace.code / "last.txt").write_text("last\n")
    commit = commit_leftovers(workspace, "the last task").commit
    push_lease(workspace, commit)
    delivered = deliver(old_server, FORK, project.base, [right, Head("LAST", commit)])
    assert delivered.branch == f"treadle/{FORK}"
    assert {"top.txt", "left.txt", "right.txt", "last.txt"} <= project.files(delivered.commit).keys()


def test_what_is_gone_since_the_origins_refs_were_removed_is_told_with_whose_it_was_and_what_to_do(
    project: Project, old_server: Mirror
) -> None:
    left, right = origins_heads(project)
    delete_task_refs(project.mirror, PLAN)
    told = rf"{left.commit[:12]} of LEFT of plan {PLAN}, {right.commit[:12]} of RIGHT.*treadle clean.*"
    with pytest.raises(GitFailed, match=told + rf"treadle fork {PLAN} --only LEFT\.\.,RIGHT\.\."):
        ensure_heads(old_server, FORK, project.base, [left, right])
    with pytest.raises(GitFailed, match=told):
        deliver(old_server, FORK, project.base, [left, right])
    mine = Head("OWN", "1" * 40)
    with pytest.raises(CommitsMissing, match="has no commit 111111111111: push it there"):
        ensure_heads(old_server, FORK, project.base, [mine])


def test_what_is_in_the_origins_branch_can_be_kept_after_its_refs_were_removed(
    project: Project, old_server: Mirror
) -> None:
    left, right = origins_heads(project)
    deliver(project.mirror, PLAN, project.base, [left])
    delete_task_refs(project.mirror, PLAN)
    ensure_heads(old_server, FORK, project.base, [left])
    with pytest.raises(GitFailed) as gone:
        ensure_heads(old_server, FORK, project.base, [left, right])
    assert "RIGHT" in str(gone.value) and "LEFT" not in str(gone.value)


def test_a_conflict_names_the_refs_of_the_plan_that_did_the_work(project: Project) -> None:
    one = project.work("ONE", {"a.txt": "mine\n"})
    two = project.work("TWO", {"a.txt": "yours\n"})
    with pytest.raises(MergeConflict) as conflict:
        deliver(project.mirror, FORK, project.base, [Head("ONE", one, PLAN), Head("TWO", two)])
    told = conflict.value.remedy
    assert f"refs/treadle/{PLAN}/ONE/head" in told and f"refs/treadle/{FORK}/TWO/head" in told

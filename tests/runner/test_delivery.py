"""What becomes of a plan's branch: it is merged, or a command of the project's has it; otherwise nothing else moves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.runner.deliver import Delivered, deliver
from services.runner.delivery import merge_into
from services.runner.git import GitRejected, MergeConflict
from services.runner.mirror import Mirror, mirror_of
from shared.events import Head
from tests.runner.repositories import PLAN, PROJECT_ID, Project, git, make_project

BRANCH = f"treadle/{PLAN}"


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A bare repository, as a server has it, so that no branch is checked out."""
    made = make_project(tmp_path)
    git(tmp_path, "clone", "-q", "--bare", str(made.repo), str(tmp_path / "bare.git"))
    yield Project(
        tmp_path / "bare.git",
        made.data_dir,
        mirror_of(made.data_dir, str(tmp_path / "bare.git"), PROJECT_ID),
        made.base,
    )


def delivered(project: Project, files: dict[str, str] | None = None) -> tuple[Delivered, list[Head]]:
    heads = [Head("T1", project.work("T1", files or {"x.txt": "x\n"}))]
    return deliver(project.mirror, PLAN, project.base, heads), heads


def tip(project: Project, branch: str = "main") -> str:
    return git(project.repo, "rev-parse", f"refs/heads/{branch}")


def somebody_commits(project: Project, files: dict[str, str], branch: str = "main") -> str:
    clone = project.repo.with_name("somebody")
    if not clone.exists():
        git(project.repo, "clone", "-q", "-b", branch, str(project.repo), str(clone))
    for name, text in files.items():
        (clone / name).write_text(text)
    git(clone, "add", "--all")
    git(clone, "commit", "-qm", "Somebody's")
    git(clone, "push", "-q", "origin", f"HEAD:{branch}")
    return git(clone, "rev-parse", "HEAD")


def test_the_default_branch_goes_forward_where_nobody_else_moved_it(project: Project) -> None:
    made, heads = delivered(project)
    assert tip(project) == project.base, "a delivery alone must not touch it"
    merged = merge_into(project.mirror, PLAN, "", made, project.base, heads)
    assert (merged.branch, merged.commit, tip(project)) == ("main", made.commit, made.commit)


def test_a_branch_that_moved_is_merged_with_by_a_fixed_author_and_once(project: Project) -> None:
    made, heads = delivered(project)
    theirs = somebody_commits(project, {"theirs.txt": "theirs\n"})
    merged = merge_into(project.mirror, PLAN, "main", made, project.base, heads)
    assert merge_into(project.mirror, PLAN, "main", made, project.base, heads) == merged
    shown = git(project.repo, "show", "-s", "--format=%an <%ae>%n%P%n%s", tip(project)).splitlines()
    assert shown == ["Treadle <treadle@localhost>", f"{theirs} {made.commit}", f"Merge branch '{BRANCH}'"]
    assert {"x.txt", "theirs.txt"} < project.files("main").keys()
    newer = somebody_commits_on_top(project)
    assert merge_into(project.mirror, PLAN, "main", made, project.base, heads).commit == newer


def somebody_commits_on_top(project: Project) -> str:
    clone = project.repo.with_name("somebody")
    git(clone, "pull", "-q", "--ff-only", "origin", "main")
    return somebody_commits(project, {"later.txt": "later\n"})


def test_somebody_who_pushes_in_between_is_merged_with_and_never_overwritten(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, heads = delivered(project)
    push = Mirror.push
    theirs: list[str] = []

    def push_after_somebody(mirror: Mirror, source: Path, refspec: str) -> None:
        if not theirs:
            theirs.append(somebody_commits(project, {"theirs.txt": "theirs\n"}))
        push(mirror, source, refspec)

    monkeypatch.setattr(Mirror, "push", push_after_somebody)
    merged = merge_into(project.mirror, PLAN, "", made, project.base, heads)
    assert git(project.repo, "rev-parse", f"{merged.commit}^1") == theirs[0]
    assert {"x.txt", "theirs.txt"} < project.files("main").keys()


def test_a_conflict_with_the_branch_changes_nothing_and_can_be_resolved_on_the_plans_branch(project: Project) -> None:
    made, heads = delivered(project, {"a.txt": "agent's\n"})
    theirs = somebody_commits(project, {"a.txt": "theirs\n"})
    with pytest.raises(MergeConflict) as conflict:
        merge_into(project.mirror, PLAN, "", made, project.base, heads)
    assert str(conflict.value) == "the work of T1 conflicts with what the branch main has by now in a.txt"
    assert f"Merge main into the branch {BRANCH} by hand" in conflict.value.remedy
    assert tip(project) == theirs

    clone = project.repo.with_name("somebody")
    git(clone, "fetch", "-q", "origin", BRANCH)
    git(clone, "merge", "-q", "-s", "ours", "-m", "By hand", "FETCH_HEAD")
    (clone / "a.txt").write_text("both\n")
    git(clone, "commit", "-qam", "Both")
    git(clone, "push", "-q", "origin", f"HEAD:{BRANCH}")
    again = deliver(project.mirror, PLAN, project.base, heads)
    merge_into(project.mirror, PLAN, "", again, project.base, heads)
    assert project.files("main")["a.txt"] == "both"


@pytest.mark.parametrize("branch", ["gone", "-f", "a..b", "x:y", "refs/heads/\n"])
def test_a_branch_that_is_not_there_is_refused_and_not_made(project: Project, branch: str) -> None:
    made, heads = delivered(project)
    refs = git(project.repo, "for-each-ref")
    with pytest.raises(GitRejected, match="delivery_branch"):
        merge_into(project.mirror, PLAN, branch, made, project.base, heads)
    assert git(project.repo, "for-each-ref") == refs


def test_a_branch_that_is_checked_out_is_refused(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    made, heads = delivered(project)
    with pytest.raises(GitRejected, match=r"the branch main is checked out in .*: switch to another branch there"):
        merge_into(project.mirror, PLAN, "", made, project.base, heads)
    assert (tip(project), git(project.repo, "status", "--porcelain")) == (project.base, "")


def test_a_protected_branch_is_told_with_the_servers_own_words(project: Project) -> None:
    made, heads = delivered(project)
    hook = project.repo / "hooks/update"
    hook.write_text('#!/bin/sh\ncase "$1" in refs/heads/main) echo "main is protected"; exit 1;; esac\n')
    hook.chmod(0o755)
    served = Mirror(project.mirror.path, f"file://{project.repo}")  # a path would run no hook
    with pytest.raises(GitRejected, match=r"hook declined.*is the branch main protected.*Let Treadle push to it"):
        merge_into(served, PLAN, "", made, project.base, heads)
    assert tip(project) == project.base


def test_a_repository_whose_head_names_no_branch_wants_one_named(project: Project) -> None:
    made, heads = delivered(project)
    (project.repo / "HEAD").write_text(f"{project.base}\n")
    with pytest.raises(GitRejected, match=r"names no default branch .* Or merge the branch treadle/\S+ yourself"):
        merge_into(project.mirror, PLAN, "", made, project.base, heads)

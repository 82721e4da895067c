"""Work that can't be merged by itself, and what becomes of it in an agent's hands."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.runner.conflicts import Conflicted, finish_resolution, prepare_conflicted, unresolved, words_for_agent
from services.runner.deliver import push_lease
from services.runner.git import GitFailed
from services.runner.leftovers import commit_leftovers
from services.runner.merge import merge_base_commit
from services.runner.mirror import mirror_of
from services.runner.workspace import Workspace
from shared.events import Head
from tests.runner.repositories import PLAN, PROJECT_ID, Project, git, make_project

TEN = [str(n) for n in range(10)]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path, {"a.txt": lines(TEN), "b.txt": "b\n", "c.txt": "c\n"})


def lines(texts: list[str]) -> str:
    return "".join(f"{text}\n" for text in texts)


def three(project: Project) -> list[Head]:
    """T1 and T2 change the same line of a.txt, T1 and T3 the same of b.txt; each has a file of its own besides."""
    return [
        Head("T1", project.work("T1", {"a.txt": lines(["one", *TEN[1:]]), "b.txt": "B1\n", "t1.txt": "1\n"})),
        Head("T2", project.work("T2", {"a.txt": lines(["two", *TEN[1:]]), "t2.txt": "2\n"})),
        Head("T3", project.work("T3", {"b.txt": "B3\n", "t3.txt": "3\n"})),
    ]


def begun(project: Project, heads: list[Head]) -> tuple[Conflicted, Workspace]:
    conflicted = prepare_conflicted(project.mirror.path, project.base, heads)
    return conflicted, project.workspace("merge-T4", base=conflicted.commit)


def test_all_conflicts_of_all_heads_are_in_the_worktree_at_once(project: Project) -> None:
    heads = three(project)
    conflicted, workspace = begun(project, heads)
    assert conflicted.files == ("a.txt", "b.txt")
    assert conflicted.parents == tuple(h.commit for h in heads)
    a = (workspace.code / "a.txt").read_text().splitlines()
    assert a[:5] == [f"<<<<<<< {heads[0].commit}", "one", "=======", "two", f">>>>>>> {heads[1].commit}"]
    assert a[5:] == TEN[1:]
    assert "B1\n=======\nB3\n" in (workspace.code / "b.txt").read_text()
    assert {"t1.txt", "t2.txt", "t3.txt"} < {path.name for path in workspace.code.iterdir()}
    assert git(workspace.code, "status", "--porcelain") == ""


def test_every_runner_prepares_the_same_commit(project: Project, tmp_path: Path) -> None:
    heads = three(project)
    other = mirror_of(tmp_path / "other machine", str(project.repo), PROJECT_ID)
    other.ensure(PLAN, [project.base, *(h.commit for h in heads)])
    first = prepare_conflicted(project.mirror.path, project.base, heads)
    assert prepare_conflicted(other.path, project.base, heads) == first


def test_the_agent_is_told_whose_work_it_is_and_where(project: Project) -> None:
    heads = three(project)
    words = words_for_agent(prepare_conflicted(project.mirror.path, project.base, heads))
    assert all(f"- {h.commit}: {h.task}\n" in words for h in heads)
    assert "- a.txt\n- b.txt\n" in words
    assert "CONFLICT (content): Merge conflict in a.txt" in words


def test_a_resolution_becomes_one_merge_of_the_tasks_own_commits(project: Project) -> None:
    heads = three(project)
    conflicted, workspace = begun(project, heads)
    (workspace.code / "a.txt").write_text(lines(["one and two", *TEN[1:]]))
    git(workspace.code, "commit", "-qam", "Half of it")  # an agent may commit as it likes
    (workspace.code / "b.txt").write_text("B1 and B3\n")
    outcome = commit_leftovers(workspace, "Merge")
    assert unresolved(workspace.runners_repo, conflicted, outcome.commit) == ""
    commit = finish_resolution(workspace.runners_repo, conflicted, outcome.commit, "merge-T4: Merge")
    assert finish_resolution(workspace.runners_repo, conflicted, outcome.commit, "merge-T4: Merge") == commit
    push_lease(workspace, commit)

    shown = git(project.repo, "show", "-s", "--format=%an <%ae> %cn%n%P%n%s", commit).splitlines()
    assert shown == ["Treadle <treadle@localhost> Treadle", " ".join(h.commit for h in heads), "merge-T4: Merge"]
    files = project.files(commit)
    assert (files["a.txt"].splitlines()[0], files["b.txt"], files["t3.txt"]) == ("one and two", "B1 and B3", "3")
    history = git(project.repo, "log", "-p", "--cc", "--format=%H", commit)
    assert "<<<<<<<" not in history
    # What starts from all of them now starts from it, and has no conflict any more.
    elsewhere = mirror_of(project.data_dir.with_name("elsewhere"), str(project.repo), PROJECT_ID)
    elsewhere.ensure(PLAN, [project.base, commit, *(h.commit for h in heads)])
    assert merge_base_commit(elsewhere.path, project.base, [*heads, Head("merge-T4", commit)]) == commit


@pytest.mark.parametrize(
    ("left", "is_named"),
    [
        (["<<<<<<< {0}", "one", "=======", "two", ">>>>>>> {1}"], True),
        (["one", "two", ">>>>>>> {1}"], True),
        (["one", "=======", "two"], True),
        (["<<<<<<< {0}", "one"], True),
        (["one and two"], False),
        (["<<<<<<< like this one", "is what git's markers look like", ">>>>>>> here"], False),
    ],
)
def test_what_is_left_of_a_conflict_is_found_and_other_text_is_not_taken_for_it(
    project: Project, left: list[str], is_named: bool
) -> None:
    heads = three(project)[:2]
    conflicted, workspace = begun(project, heads)
    written = lines([line.format(*(h.commit for h in heads)) for line in left])
    (workspace.code / "a.txt").write_text(written)
    (workspace.code / "heading.rst").write_text("Title\n=======\n")
    commit = commit_leftovers(workspace, "Merge").commit
    words = unresolved(workspace.runners_repo, conflicted, commit)
    assert ("a.txt" in words) is is_named
    assert "heading.rst" not in words
    if is_named:
        with pytest.raises(GitFailed, match=r"still conflict markers in a\.txt: resolve"):
            finish_resolution(workspace.runners_repo, conflicted, commit, "Merge")


def test_an_underline_that_was_there_before_is_no_conflict(project: Project) -> None:
    heads = [Head(code, project.work(code, {"a.txt": f"{code}\n=======\n"})) for code in ("T1", "T2")]
    conflicted, workspace = begun(project, heads)
    (workspace.code / "a.txt").write_text("T1 and T2\n=======\n")
    commit = commit_leftovers(workspace, "Merge").commit
    assert conflicted.files == ("a.txt",)
    assert unresolved(workspace.runners_repo, conflicted, commit) == ""


def test_markers_that_an_agent_moved_to_another_file_are_found(project: Project) -> None:
    conflicted, workspace = begun(project, three(project)[:2])
    (workspace.code / "a.txt").rename(workspace.code / "moved.txt")
    commit = commit_leftovers(workspace, "Merge").commit
    assert "moved.txt" in unresolved(workspace.runners_repo, conflicted, commit)


def test_a_file_changed_here_and_deleted_there_may_stay_or_go(project: Project) -> None:
    changed = project.work("T1", {"c.txt": "changed\n"})
    workspace = project.workspace("T2")
    (workspace.code / "c.txt").unlink()
    deleted = commit_leftovers(workspace, "Away with it").commit
    push_lease(workspace, deleted)
    conflicted, workspace = begun(project, [Head("T1", changed), Head("T2", deleted)])
    assert conflicted.files == ("c.txt",)
    assert "c.txt deleted in T2 and modified in T1" in words_for_agent(conflicted)
    assert (workspace.code / "c.txt").read_text() == "changed\n"
    (workspace.code / "c.txt").unlink()
    commit = commit_leftovers(workspace, "Merge").commit
    merge = finish_resolution(workspace.runners_repo, conflicted, commit, "Merge")
    assert "c.txt" not in git(workspace.runners_repo, "ls-tree", "--name-only", merge)


def test_what_can_be_merged_after_all_needs_no_agent(project: Project) -> None:
    heads = [Head(f"T{n}", project.work(f"T{n}", {f"t{n}.txt": "x\n"})) for n in (1, 2)]
    conflicted = prepare_conflicted(project.mirror.path, project.base, heads)
    assert conflicted.files == ()
    assert conflicted.commit == merge_base_commit(project.mirror.path, project.base, heads)


def test_a_third_head_that_conflicts_in_the_same_lines_is_shown_too(project: Project) -> None:
    heads = [Head(f"T{n}", project.work(f"T{n}", {"b.txt": f"B{n}\n"})) for n in (1, 2, 3)]
    conflicted, workspace = begun(project, heads)
    text = (workspace.code / "b.txt").read_text()
    assert all(f"B{n}\n" in text for n in (1, 2, 3))
    inner = text.replace(f">>>>>>> {heads[2].commit}\n", "", 1)
    (workspace.code / "b.txt").write_text(inner)
    assert "b.txt" in unresolved(workspace.runners_repo, conflicted, commit_leftovers(workspace, "Merge").commit)

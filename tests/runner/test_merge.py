"""The base of a task: the work before it, merged in the same way by whoever does it."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.runner.git import GitFailed, MergeConflict
from services.runner.merge import diff, merge_base_commit
from services.runner.mirror import mirror_of
from shared.events import Head
from tests.runner.repositories import PLAN, PROJECT_ID, Project, git, make_project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path, {"a.txt": "one\ntwo\nthree\n", "b.txt": "b\n"})


def merged_files(project: Project, commit: str) -> dict[str, str]:
    names = git(project.mirror.path, "ls-tree", "-r", "--name-only", commit).splitlines()
    return {name: git(project.mirror.path, "show", f"{commit}:{name}") for name in names}


def test_a_join_sees_the_work_of_all_sides(project: Project) -> None:
    heads = [Head(f"T{i}", project.work(f"T{i}", {f"t{i}.txt": f"{i}\n"})) for i in (1, 2, 3)]
    commit = merge_base_commit(project.mirror.path, project.base, heads)
    assert {"t1.txt", "t2.txt", "t3.txt"} < merged_files(project, commit).keys()
    assert git(project.mirror.path, "show", "-s", "--format=%an <%ae> %cn %s", commit) == (
        "Treadle <treadle@localhost> Treadle Merge T3"
    )


def test_every_runner_makes_the_same_commit(project: Project, tmp_path: Path) -> None:
    heads = [Head(f"T{i}", project.work(f"T{i}", {f"t{i}.txt": f"{i}\n"})) for i in (1, 2, 3)]
    other = mirror_of(tmp_path / "other machine", str(project.repo), PROJECT_ID)
    other.ensure(PLAN, [project.base, *(h.commit for h in heads)])
    first = merge_base_commit(project.mirror.path, project.base, heads)
    # Another machine, another time zone, another moment: the date comes from what is merged.
    assert merge_base_commit(other.path, project.base, heads) == first
    newest = max(int(git(project.repo, "show", "-s", "--format=%ct", h.commit)) for h in heads)
    assert git(project.mirror.path, "show", "-s", "--format=%at %ct", first) == f"{newest} {newest}"


def test_nothing_to_merge_makes_no_commit(project: Project) -> None:
    first = project.work("T1", {"x.txt": "x\n"})
    second = project.work("T2", {"y.txt": "y\n"}, base=first)
    repo, base = project.mirror.path, project.base
    assert merge_base_commit(repo, base, []) == base
    assert merge_base_commit(repo, base, [Head("T0", base)]) == base
    assert merge_base_commit(repo, base, [Head("T1", first)]) == first
    assert merge_base_commit(repo, base, [Head("T1", first), Head("T2", second)]) == second
    assert merge_base_commit(repo, base, [Head("T1", first), Head("T3", first)]) == first


def test_a_conflict_names_the_files_and_only_the_tasks_that_touched_them(project: Project) -> None:
    heads = [
        Head("T1", project.work("T1", {"a.txt": "ONE\ntwo\nthree\n"})),
        Head("T2", project.work("T2", {"other.txt": "x\n"})),
        Head("T3", project.work("T3", {"a.txt": "uno\ntwo\nthree\n", "b.txt": "mine\n"})),
    ]
    with pytest.raises(MergeConflict) as conflict:
        merge_base_commit(project.mirror.path, project.base, heads)
    assert conflict.value.files == ("a.txt",)
    assert conflict.value.codes == ("T1", "T3")
    assert str(conflict.value) == "the work of T3 conflicts with that of T1 in a.txt"


def test_a_file_changed_here_and_deleted_there_is_a_conflict(project: Project) -> None:
    changed = project.work("T1", {"a.txt": "changed\n"})
    workspace = project.workspace("T2")
    git(workspace.code, "rm", "-q", "a.txt")
    git(workspace.code, "commit", "-qm", "Away with it")
    deleted = git(workspace.code, "rev-parse", "HEAD")
    git(workspace.code, "push", "-q", str(project.mirror.path), "HEAD:refs/heads/test")
    with pytest.raises(MergeConflict) as conflict:
        merge_base_commit(project.mirror.path, project.base, [Head("T1", changed), Head("T2", deleted)])
    assert (conflict.value.files, conflict.value.codes) == (("a.txt",), ("T1", "T2"))


def test_edits_apart_in_one_file_are_merged(project: Project) -> None:
    base = project.work("T0", {"a.txt": "".join(f"{n}\n" for n in range(20))})
    top = project.work("T1", {"a.txt": "".join(f"{n}\n" for n in ["top", *range(1, 20)])}, base=base)
    end = project.work("T2", {"a.txt": "".join(f"{n}\n" for n in [*range(19), "end"])}, base=base)
    commit = merge_base_commit(project.mirror.path, base, [Head("T1", top), Head("T2", end)])
    text = merged_files(project, commit)["a.txt"].splitlines()
    assert (text[0], text[-1], len(text)) == ("top", "end", 20)


def test_unrelated_histories_are_refused(project: Project) -> None:
    git(project.repo, "checkout", "-q", "--orphan", "other")
    git(project.repo, "commit", "-qm", "Unrelated")
    other = git(project.repo, "rev-parse", "HEAD")
    project.mirror.ensure(PLAN, [project.base, other])
    with pytest.raises(GitFailed, match="unrelated histories"):
        merge_base_commit(project.mirror.path, project.base, [Head("T1", other)])


def test_an_option_is_never_taken_for_a_commit(project: Project) -> None:
    with pytest.raises(ValueError, match="not a commit id"):
        merge_base_commit(project.mirror.path, project.base, [Head("T1", "--output=/tmp/x")])


def test_a_diff_shows_the_patch_and_is_cut_when_it_is_huge(project: Project) -> None:
    small = project.work("T1", {"b.txt": "B\n"})
    shown = diff(project.mirror.path, project.base, small)
    assert "-b\n+B\n" in shown.patch
    assert "b.txt | 2 +-" in shown.stat
    assert not shown.cut
    huge = project.work("T2", {"huge.txt": "0123456789abcdef\n" * 300_000})
    assert diff(project.mirror.path, project.base, huge).cut

"""What goes to the code repository: leases' refs, heads, the plan's branch; and nothing else of it changes."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from services.runner.deliver import deliver, move_head, push_lease
from services.runner.git import GitFailed, GitRejected, MergeConflict
from services.runner.leftovers import commit_leftovers
from services.runner.mirror import Mirror, mirror_of
from services.runner.workspace import Workspace, create_workspace
from shared.events import Head
from tests.runner.repositories import PLAN, PROJECT_ID, Project, git, make_project

BRANCH = f"treadle/{PLAN}"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path)


def tip(project: Project, ref: str = BRANCH) -> str:
    return git(project.repo, "rev-parse", ref)


def somebody_commits(project: Project, files: dict[str, str], to: str = BRANCH) -> str:
    """Somebody else's commit on a branch, pushed from a clone of their own."""
    clone = project.repo.with_name("somebody")
    git(project.repo, "clone", "-q", "-b", to, str(project.repo), str(clone))
    for name, text in files.items():
        (clone / name).write_text(text)
    git(clone, "add", "--all")
    git(clone, "commit", "-qm", "Somebody's")
    git(clone, "push", "-q", "origin", f"HEAD:{to}")
    return git(clone, "rev-parse", "HEAD")


def test_a_lease_and_a_head_are_refs_and_the_persons_checkout_stays_as_it_is(project: Project) -> None:
    (project.repo / "a.txt").write_text("being edited\n")
    (project.repo / "untracked.txt").write_text("mine\n")
    git(project.repo, "add", "a.txt")
    index = (project.repo / ".git/index").read_bytes()
    commit = project.work("T1", {"a.txt": "agent's\n"}, lease=3)
    move_head(project.mirror, PLAN, "T1", commit)
    move_head(project.mirror, PLAN, "T1", commit)
    deliver(project.mirror, PLAN, project.base, [Head("T1", commit)])
    refs = git(project.repo, "for-each-ref", "--format=%(refname) %(objectname)").splitlines()
    assert refs == [
        f"refs/heads/main {project.base}",
        f"refs/heads/{BRANCH} {commit}",
        f"refs/treadle/{PLAN}/T1/3 {commit}",
        f"refs/treadle/{PLAN}/T1/head {commit}",
    ]
    assert (project.repo / ".git/index").read_bytes() == index
    assert (project.repo / "a.txt").read_text() == "being edited\n"
    assert git(project.repo, "symbolic-ref", "HEAD") == "refs/heads/main"
    assert git(project.repo, "status", "--porcelain") == "M  a.txt\n?? untracked.txt"


def test_pushing_a_lease_again_with_newer_work_moves_its_ref(project: Project) -> None:
    workspace = project.workspace()
    for text in ("first", "second"):
        (workspace.code / "x.txt").write_text(text)
        commit = commit_leftovers(workspace, "a task").commit
        assert push_lease(workspace, commit) == f"refs/treadle/{PLAN}/T1/1"
        assert tip(project, f"refs/treadle/{PLAN}/T1/1") == commit


@pytest.mark.parametrize("count", [1, 150])  # loose objects, and a pack
def test_what_was_pushed_is_in_the_mirror_without_asking_the_repository(project: Project, count: int) -> None:
    commit = project.work("T1", {f"{n}.txt": f"{n}\n" for n in range(count)})
    project.repo.rename(project.repo.with_name("gone"))
    workspace = project.workspace("T2", base=commit)
    assert (workspace.code / "0.txt").read_text() == "0\n"


def test_another_runner_gets_the_work_and_may_move_the_head(project: Project, tmp_path: Path) -> None:
    commit = project.work("T1", {"x.txt": "x\n"})
    other = mirror_of(tmp_path / "other", str(project.repo), PROJECT_ID)
    move_head(other, PLAN, "T1", commit)
    assert tip(project, f"refs/treadle/{PLAN}/T1/head") == commit
    again = project.work("T1", {"x.txt": "again\n"}, lease=2)
    move_head(other, PLAN, "T1", again)
    assert tip(project, f"refs/treadle/{PLAN}/T1/head") == again


def test_the_base_may_be_on_a_detached_head(project: Project) -> None:
    git(project.repo, "checkout", "-q", "--detach")
    git(project.repo, "commit", "-q", "--allow-empty", "-m", "On no branch")
    assert project.workspace(base=tip(project, "HEAD")).code.is_dir()


def test_a_server_that_gives_only_what_its_refs_name_is_asked_for_those(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = project.work("T1", {"x.txt": "x\n"})
    project.work("T2", {"y.txt": "y\n"}, base=commit)
    # Version 0 of the protocol, and a URL rather than a path: so nobody may ask for T1's commit but by a ref.
    (tmp_path / "gitconfig").write_text("[protocol]\n version = 0\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    git(project.repo, "update-ref", "-d", f"refs/treadle/{PLAN}/T1/1")
    mirror = Mirror(tmp_path / "other.git", f"file://{project.repo}")
    mirror.ensure(PLAN, [commit])
    assert git(mirror.path, "show", f"{commit}:x.txt") == "x"
    with pytest.raises(GitFailed, match="has no commit 111111111111: push it there"):
        mirror.ensure(PLAN, ["1" * 40])


def test_a_fetch_that_was_killed_is_made_whole_by_the_next(project: Project, tmp_path: Path) -> None:
    commit = project.work("T1", {"x.txt": "x\n"})
    other = mirror_of(tmp_path / "other", str(project.repo), PROJECT_ID)
    other.ensure(PLAN, [project.base])
    loose = f"{commit[:2]}/{commit[2:]}"
    (other.objects / commit[:2]).mkdir(exist_ok=True)
    (other.objects / loose).write_bytes((project.repo / ".git/objects" / loose).read_bytes())
    assert git(other.path, "cat-file", "-t", commit) == "commit"  # its tree and its files are missing
    (other.path / "refs/fetched" / PLAN / "0.lock").touch()
    (other.path / "packed-refs.lock").touch()
    other.ensure(PLAN, [commit])
    assert git(other.path, "show", f"{commit}:x.txt") == "x"


def test_many_leases_that_start_at_once_share_one_mirror(project: Project, tmp_path: Path) -> None:
    def start(lease: int) -> Workspace:
        mirror = mirror_of(tmp_path / "other", str(project.repo), PROJECT_ID)
        mirror.ensure(PLAN, [project.base])
        return create_workspace(tmp_path / "other", mirror, PLAN, "T1", lease, project.base)

    with ThreadPoolExecutor(8) as pool:
        workspaces = list(pool.map(start, range(1, 9)))
    assert all((w.code / "a.txt").read_text() == "one\ntwo\n" for w in workspaces)
    assert len(list((tmp_path / "other/mirrors").glob("*.git"))) == 1


def test_a_repository_that_is_not_there_is_named(tmp_path: Path) -> None:
    mirror = mirror_of(tmp_path, str(tmp_path / "nowhere"), PROJECT_ID)
    with pytest.raises(GitFailed, match=r"^fetching from .*/nowhere: .*does not appear to be a git repository"):
        mirror.ensure(PLAN, ["1" * 40])


def test_credentials_never_show_in_an_error(tmp_path: Path) -> None:
    mirror = Mirror(tmp_path / "m.git", "https://me:s3cret@127.0.0.1:1/a/b.git")
    with pytest.raises(GitFailed) as failure:
        mirror.ensure(PLAN, ["1" * 40])
    assert "s3cret" not in str(failure.value)
    assert "fetching from https://***@127.0.0.1:1/a/b.git" in str(failure.value)


def test_a_fetch_that_hangs_is_ended_with_everything_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text(f"#!/bin/sh\nmkfifo {tmp_path}/never\necho $$ > {tmp_path}/pid\nread line < {tmp_path}/never\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("GIT_SSH_COMMAND", str(ssh))
    monkeypatch.setattr("services.runner.git.NETWORK_DEADLINE_S", 10.0)
    mirror = Mirror(tmp_path / "m.git", "ssh://git@example.com/a/b.git")
    with pytest.raises(GitFailed, match=r"fetching from ssh://git@example\.com/a/b\.git: not done after 10 seconds"):
        mirror.ensure(PLAN, ["1" * 40])
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 60
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "what git had started is still alive"


def test_the_operators_own_git_configuration_finds_the_repository_but_runs_no_hook(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for name in ("reference-transaction", "pre-push"):
        # In the mirror only: what the server's side runs is the server's affair.
        (hooks / name).write_text(f'#!/bin/sh\ncase "$PWD" in */m.git) touch {tmp_path}/ran;; esac\n')
        (hooks / name).chmod(0o755)
    (tmp_path / "gitconfig").write_text(
        f'[url "file://{project.repo}"]\n insteadOf = https://example.com/a/b.git\n[core]\n hooksPath = {hooks}\n'
    )
    commit = project.work("T1", {"x.txt": "x\n"})
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    mirror = Mirror(tmp_path / "m.git", "https://example.com/a/b.git")
    mirror.ensure(PLAN, [project.base])
    git(mirror.path, "-c", f"core.hooksPath={hooks}", "update-ref", "refs/heads/new", project.base)
    (tmp_path / "ran").unlink()  # so the hook works where it is let
    mirror.ensure(PLAN, [commit])
    move_head(mirror, PLAN, "T1", commit)
    assert tip(project, f"refs/treadle/{PLAN}/T1/head") == commit
    assert not (tmp_path / "ran").exists()


def test_work_starts_from_a_shallow_checkout_too(project: Project, tmp_path: Path) -> None:
    git(project.repo, "commit", "-q", "--allow-empty", "-m", "Second")
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{project.repo}", str(shallow))
    base = git(shallow, "rev-parse", "HEAD")
    there = Project(shallow, tmp_path / "other", mirror_of(tmp_path / "other", str(shallow), PROJECT_ID), base)
    heads = [Head(task, there.work(task, {f"{task}.txt": "x\n"})) for task in ("T1", "T2")]
    delivered = deliver(there.mirror, PLAN, base, heads)
    assert {"T1.txt", "T2.txt", "a.txt"} < there.files(delivered.commit).keys()


def test_the_delivery_holds_everybodys_work_and_may_be_repeated(project: Project) -> None:
    heads = [Head(task, project.work(task, {f"{task}.txt": "x\n"})) for task in ("T1", "T2", "T3")]
    delivered = deliver(project.mirror, PLAN, project.base, heads)
    assert (delivered.branch, delivered.commit, delivered.changed) == (BRANCH, tip(project), True)
    assert {"T1.txt", "T2.txt", "T3.txt"} < project.files(BRANCH).keys()
    assert deliver(project.mirror, PLAN, project.base, heads) == delivered
    assert tip(project, "main") == project.base


def test_a_plan_without_changes_delivers_its_base(project: Project) -> None:
    project.mirror.ensure(PLAN, [project.base])
    delivered = deliver(project.mirror, PLAN, project.base, [Head("T1", project.base)])
    assert (delivered.commit, delivered.changed, tip(project)) == (project.base, False, project.base)


def test_somebodys_commits_on_the_branch_are_kept(project: Project) -> None:
    first = Head("T1", project.work("T1", {"x.txt": "x\n"}))
    second = Head("T2", project.work("T2", {"y.txt": "y\n"}))
    deliver(project.mirror, PLAN, project.base, [first])
    theirs = somebody_commits(project, {"theirs.txt": "theirs\n"})
    assert deliver(project.mirror, PLAN, project.base, [first]).commit == theirs
    delivered = deliver(project.mirror, PLAN, project.base, [first, second])
    assert {"x.txt", "y.txt", "theirs.txt"} < project.files(delivered.commit).keys()
    assert git(project.repo, "merge-base", delivered.commit, theirs) == theirs


def test_somebody_who_pushes_in_between_is_merged_with(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = [Head("T1", project.work("T1", {"x.txt": "x\n"}))]
    git(project.repo, "branch", BRANCH, project.base)
    push = Mirror.push
    theirs: list[str] = []

    def push_after_somebody(mirror: Mirror, source: Path, refspec: str) -> None:
        if not theirs:
            theirs.append(somebody_commits(project, {"theirs.txt": "theirs\n"}))
        push(mirror, source, refspec)

    monkeypatch.setattr(Mirror, "push", push_after_somebody)
    delivered = deliver(project.mirror, PLAN, project.base, heads)
    assert {"x.txt", "theirs.txt"} < project.files(BRANCH).keys()
    assert git(project.repo, "rev-list", "--parents", "-1", delivered.commit).split()[1] == theirs[0]


def test_a_conflict_with_somebodys_commits_changes_nothing(project: Project) -> None:
    heads = [Head("T1", project.work("T1", {"a.txt": "agent's\n"}))]
    git(project.repo, "branch", BRANCH, project.base)
    theirs = somebody_commits(project, {"a.txt": "theirs\n"})
    with pytest.raises(MergeConflict) as conflict:
        deliver(project.mirror, PLAN, project.base, heads)
    assert conflict.value.files == ("a.txt",)
    assert conflict.value.codes == ("T1",)
    assert str(conflict.value) == f"the work of T1 conflicts with what somebody put on the branch {BRANCH} in a.txt"
    assert tip(project) == theirs


@pytest.mark.parametrize("where", ["checkout", "worktree"])
def test_a_branch_that_is_checked_out_is_refused(project: Project, tmp_path: Path, where: str) -> None:
    heads = [Head("T1", project.work("T1", {"x.txt": "x\n"}))]
    if where == "checkout":
        git(project.repo, "checkout", "-q", "-b", BRANCH)
    else:
        git(project.repo, "worktree", "add", "-q", "-b", BRANCH, str(tmp_path / "tree"))
    git(project.repo, "config", "receive.denyCurrentBranch", "updateInstead")
    with pytest.raises(GitFailed, match=rf"the branch {BRANCH} is checked out in .*: switch to another branch there"):
        deliver(project.mirror, PLAN, project.base, heads)
    assert tip(project) == project.base
    assert not (project.repo / "x.txt").exists()


def test_a_refusal_that_trying_again_does_not_change_is_told(project: Project) -> None:
    heads = [Head("T1", project.work("T1", {"x.txt": "x\n"}))]
    git(project.repo, "branch", "treadle")  # a file where the branch needs a directory
    with pytest.raises(GitRejected, match=f"pushing refs/heads/{BRANCH} to .*rejected"):
        deliver(project.mirror, PLAN, project.base, heads)


def two_in_conflict(project: Project) -> list[Head]:
    return [Head(code, project.work(code, {"a.txt": f"{code}\n"})) for code in ("T1", "T2")]


def person_merges(project: Project, heads: list[Head], onto: str, then: dict[str, str]) -> str:
    """A person's merge of the heads on the plan's branch, in a clone of their own."""
    clone = project.repo.with_name("resolving")
    git(project.repo, "clone", "-q", str(project.repo), str(clone))
    git(clone, "checkout", "-q", "-B", BRANCH, onto)
    for head in heads:
        git(clone, "fetch", "-q", "origin", f"refs/treadle/{PLAN}/{head.task}/1")
        git(clone, "merge", "-q", "-s", "ours", "-m", f"Merge {head.task} by hand", "FETCH_HEAD")
    for name, text in then.items():
        (clone / name).write_text(text)
    git(clone, "add", "--all")
    git(clone, "commit", "-qm", "As both wanted it")
    git(clone, "push", "-q", "origin", f"HEAD:{BRANCH}")
    return git(clone, "rev-parse", "HEAD")


def test_a_conflict_of_the_heads_that_a_person_resolved_on_the_branch_is_delivered(project: Project) -> None:
    heads = two_in_conflict(project)
    with pytest.raises(MergeConflict, match=r"the work of T2 conflicts with that of T1 in a\.txt") as conflict:
        deliver(project.mirror, PLAN, project.base, heads)
    assert conflict.value.against == "" and f"as the branch {BRANCH}" in conflict.value.remedy
    assert git(project.repo, "for-each-ref", "refs/heads/treadle") == ""
    theirs = person_merges(project, heads, project.base, {"a.txt": "T1 and T2\n"})
    assert deliver(project.mirror, PLAN, project.base, heads).commit == theirs
    # What comes besides is merged with what the person made of the others.
    third = Head("T3", project.work("T3", {"t3.txt": "3\n"}))
    delivered = deliver(project.mirror, PLAN, project.base, [*heads, third])
    files = project.files(delivered.commit)
    assert (files["a.txt"], files["t3.txt"]) == ("T1 and T2", "3")
    assert git(project.repo, "rev-parse", f"{delivered.commit}^1") == theirs


def test_a_conflict_with_somebodys_commits_that_was_resolved_on_the_branch_is_delivered(project: Project) -> None:
    heads = [Head("T1", project.work("T1", {"a.txt": "agent's\n"}))]
    git(project.repo, "branch", BRANCH, project.base)
    theirs = somebody_commits(project, {"a.txt": "theirs\n"})
    with pytest.raises(MergeConflict):
        deliver(project.mirror, PLAN, project.base, heads)
    resolved = person_merges(project, heads, theirs, {"a.txt": "both\n"})
    delivered = deliver(project.mirror, PLAN, project.base, heads)
    assert (delivered.commit, project.files(BRANCH)["a.txt"]) == (resolved, "both")


def test_a_branch_that_never_stands_still_is_given_up_after_some_tries(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = [Head("T1", project.work("T1", {"x.txt": "x\n"}))]
    git(project.repo, "branch", BRANCH, project.base)
    push = Mirror.push

    def push_after_somebody(mirror: Mirror, source: Path, refspec: str) -> None:
        moved = git(project.repo, "commit-tree", "-p", BRANCH, "-m", "Somebody's", f"{BRANCH}^{{tree}}")
        git(project.repo, "update-ref", f"refs/heads/{BRANCH}", moved)
        push(mirror, source, refspec)

    monkeypatch.setattr(Mirror, "push", push_after_somebody)
    with pytest.raises(GitFailed, match="moved 5 times while the plan was being delivered"):
        deliver(project.mirror, PLAN, project.base, heads)
    assert git(project.repo, "log", "--format=%s", f"{project.base}..{BRANCH}").splitlines() == ["Somebody's"] * 5

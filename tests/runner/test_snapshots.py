"""Unfinished work: how it is saved while an agent works, and put back for the next lease."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil
import pytest

from services.runner.checkpoint import Checkpoint
from services.runner.git import GitFailed
from services.runner.git_threads import git_threads
from services.runner.leftovers import Traces, commit_taken, take_leftovers
from services.runner.process import LEASE_VARIABLE, held_still, lease_mark
from services.runner.sandbox import Sandbox, probe_sandbox
from services.runner.snapshots import WorkInProgress, find_saved, wip_ref
from services.runner.workspace import Workspace, create_workspace, holds_unsaved_work
from tests.runner.repositories import PLAN, Project, git, make_project

REF = wip_ref(PLAN, "T1", 1)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path, {"a.txt": "a\n", "b.txt": "b\n", "c.txt": "c\n", ".gitignore": "*.log\n"})


def begun(workspace: Workspace, sandbox: Sandbox | None = None) -> WorkInProgress:
    """The work of an agent that has just been told its prompt."""
    work = WorkInProgress(workspace, None, git_threads(), lambda activity: None, sandbox)
    work.begin(None, None, again=False)
    work.turn_begins()
    return work


def checkpoint(work: WorkInProgress, base: str) -> Checkpoint:
    return Checkpoint(attempt=1, lease=1, session_id="s", base=base, wip=work.commit)


def resumed(project: Project, work: WorkInProgress, lease: int = 2) -> Workspace:
    """The workspace of a lease that goes on with saved work."""
    saved = find_saved(project.mirror, PLAN, project.base, checkpoint(work, project.base))
    return create_workspace(project.data_dir, project.mirror, PLAN, "T1", lease, project.base, saved)


@contextmanager
def busy(workspace: Workspace, program: str) -> Iterator[psutil.Process]:
    """A process of the lease that runs Python in the worktree, and has begun."""
    mark = lease_mark(workspace.plan, workspace.task, workspace.lease)
    ready = workspace.path / "ready"
    begins = f"import pathlib; pathlib.Path({str(ready)!r}).touch()\n{program}"
    process = subprocess.Popen([sys.executable, "-c", begins], cwd=workspace.code, env={LEASE_VARIABLE: mark})
    deadline = time.monotonic() + 60
    while not ready.exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


async def test_commits_and_uncommitted_changes_come_back_as_what_they_were(project: Project) -> None:
    workspace = project.workspace()
    (workspace.code / "mine.txt").write_text("mine\n")
    git(workspace.code, "add", "mine.txt")
    git(workspace.code, "commit", "-qm", "Mine")
    own = git(workspace.code, "rev-parse", "HEAD")
    (workspace.code / "a.txt").write_text("changed\n")
    (workspace.code / "b.txt").unlink()
    (workspace.code / "dir").mkdir()
    (workspace.code / "dir/tool").write_text("#!/bin/sh\n")
    (workspace.code / "dir/tool").chmod(0o755)
    (workspace.code / "link").symlink_to("nowhere")
    (workspace.code / "noise.log").write_text("ignored\n")
    work = begun(workspace)
    await work.save()

    again = resumed(project, work)

    assert git(again.code, "rev-parse", "HEAD") == own
    assert git(again.code, "status", "--porcelain", "--branch").splitlines() == [
        "## treadle/T1", " M a.txt", " D b.txt", "?? dir/", "?? link",
    ]  # fmt: skip
    assert (again.code / "a.txt").read_text() == "changed\n"
    assert (again.code / "dir/tool").stat().st_mode & 0o111
    assert (again.code / "link").readlink() == Path("nowhere")
    assert not (again.code / "noise.log").exists()
    assert holds_unsaved_work(again.path, "T1")
    assert take_leftovers(again) == take_leftovers(workspace)
    outcome = commit_taken(again, "a task", take_leftovers(again))
    assert sorted(outcome.files) == ["a.txt", "b.txt", "dir/tool", "link", "mine.txt"]
    # And what was not changed is still known as not changed.
    assert git(again.code, "diff", "--name-only") == "a.txt\nb.txt"


async def test_work_goes_on_over_several_leases(project: Project) -> None:
    first = project.workspace()
    (first.code / "one.txt").write_text("1\n")
    work = begun(first)
    await work.save()
    second = resumed(project, work)
    next_work = WorkInProgress(second, None, git_threads(), lambda activity: None, None)
    saved = find_saved(project.mirror, PLAN, project.base, checkpoint(work, project.base))
    next_work.begin(checkpoint(work, project.base), saved, again=False)
    await next_work.save()
    assert (next_work.commit, next_work.is_pushed) == (work.commit, False)  # nothing new, and so nothing to push
    next_work.turn_begins()
    (second.code / "two.txt").write_text("2\n")
    (second.code / "one.txt").unlink()
    await next_work.save()
    third = resumed(project, next_work, lease=3)
    assert not (third.code / "one.txt").exists()
    assert (third.code / "two.txt").read_text() == "2\n"


async def test_nothing_is_pushed_while_nothing_has_changed(project: Project) -> None:
    workspace = project.workspace()
    work = begun(workspace)
    await work.save()
    assert (work.commit, work.is_pushed) == ("", False)
    assert git(project.repo, "for-each-ref", "refs/treadle") == ""
    (workspace.code / "a.txt").write_text("changed\n")
    await work.save()
    first = work.commit
    assert git(project.repo, "rev-parse", REF) == first
    await work.save()
    assert work.commit == first
    # Whoever knows only the one before still finds it: a server may hand out only what its refs reach.
    (workspace.code / "a.txt").write_text("changed again\n")
    await work.save()
    assert git(project.repo, "rev-parse", f"{REF}^2") == first


async def test_a_last_save_lets_the_workspace_go(project: Project) -> None:
    workspace = project.workspace()
    (workspace.code / "a.txt").write_text("changed\n")
    work = begun(workspace)
    await work.save()
    assert holds_unsaved_work(workspace.path, "T1")
    await work.save_last()
    assert not holds_unsaved_work(workspace.path, "T1")


async def test_between_turns_only_the_agents_own_work_is_saved(project: Project) -> None:
    workspace = project.workspace()
    work = begun(workspace)
    (workspace.code / "a.txt").write_text("the agent's\n")
    outcome = work.turn_is_over("a task")
    (workspace.code / "report.xml").write_text("the verification's\n")
    (workspace.code / "a.txt").write_text("the verification's\n")
    await work.save()
    assert project.files(work.commit)["a.txt"] == "the agent's"
    assert "report.xml" not in project.files(work.commit)
    work.note_traces()
    work.turn_begins()
    (workspace.code / "new.txt").write_text("the agent's\n")
    second = work.turn_is_over("a task")
    assert set(second.files) == {*outcome.files, "new.txt"}
    # What the agent takes up itself is its own.
    work.turn_begins()
    (workspace.code / "report.xml").write_text("the agent's\n")
    assert "report.xml" in work.turn_is_over("a task").files


def test_traces_of_a_verification_are_passed_over_whatever_they_are(tmp_path: Path) -> None:
    project = make_project(tmp_path, {"gone.txt": "x\n", "dir/f.txt": "x\n", "mode.sh": "x\n", "kept.txt": "x\n"})
    workspace = project.workspace()
    before = take_leftovers(workspace)
    (workspace.code / "gone.txt").unlink()
    (workspace.code / "dir/f.txt").unlink()
    (workspace.code / "dir").rmdir()
    (workspace.code / "dir").write_text("a file now\n")
    (workspace.code / "mode.sh").chmod(0o755)
    (workspace.code / "odd \n name").write_text("x\n")
    traces = Traces(before.tree, take_leftovers(workspace).tree)
    assert traces.before != traces.behind
    assert take_leftovers(workspace, traces) == before
    (workspace.code / "kept.txt").write_text("the agent's\n")
    assert commit_taken(workspace, "t", take_leftovers(workspace, traces)).files == ("kept.txt",)


@pytest.mark.parametrize("why", ["another base", "its ref is gone", "it does not rest on the base"])
async def test_what_is_not_there_can_not_be_put_back(project: Project, tmp_path: Path, why: str) -> None:
    workspace = project.workspace()
    (workspace.code / "a.txt").write_text("changed\n")
    work = begun(workspace)
    await work.save()
    former, mirror, base = checkpoint(work, project.base), project.mirror, project.base
    if why == "another base":
        base = project.work("T2", {"x.txt": "x"})
    elif why == "its ref is gone":
        git(project.repo, "update-ref", "-d", REF)
        git(project.repo, "gc", "-q", "--prune=now")
    else:
        base = project.work("T2", {"x.txt": "x"})
        former = Checkpoint(attempt=1, lease=1, session_id="s", base=base, wip=work.commit)
    with pytest.raises(GitFailed):
        find_saved(mirror, PLAN, base, former)


def test_a_leases_processes_stand_still_while_they_are_looked_at_and_then_go_on(project: Project) -> None:
    workspace = project.workspace()
    counter = workspace.code / "counter.log"
    forks = "import os, time\nif os.fork() == 0: os.setsid()\nwhile True: open('counter.log', 'a').write('x')"
    with busy(workspace, forks):
        deadline = time.monotonic() + 60
        while not counter.exists():
            assert time.monotonic() < deadline, "they do not begin"
        with held_still(lease_mark(PLAN, "T1", 1)):
            seen = counter.stat().st_size
            assert not psutil.Process().cpu_percent(0.3) < 0
            assert counter.stat().st_size == seen
        deadline = time.monotonic() + 60
        while counter.stat().st_size == seen:
            assert time.monotonic() < deadline, "they stand still for ever"
    for process in psutil.process_iter():  # the one that went into a session of its own
        if _has_mark(process):
            process.kill()


def _has_mark(process: psutil.Process) -> bool:
    try:
        is_dead = process.status() == psutil.STATUS_ZOMBIE
        return not is_dead and process.environ().get(LEASE_VARIABLE) == lease_mark(PLAN, "T1", 1)
    except psutil.Error:
        return False


async def test_a_link_put_in_a_paths_place_at_the_wrong_moment_leads_nowhere(project: Project, tmp_path: Path) -> None:
    workspace = project.workspace()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("the operator's secret\n")
    (workspace.code / "d").mkdir()
    (workspace.code / "d/secret.txt").write_text("harmless\n")
    swaps = (
        "import os, shutil\n"
        "while True:\n"
        f"    os.rename('d', 'e'); os.symlink({str(outside)!r}, 'd'); os.unlink('d'); os.rename('e', 'd')\n"
        "    open('d/secret.txt', 'a').write('x')\n"
    )
    work = begun(workspace)
    saves = 0
    with busy(workspace, swaps):
        for _ in range(15):
            await work.save()
            saves += work.is_pushed
    assert saves
    everything = git(project.repo, "log", "--format=", "-p", "--root", REF)
    assert "harmless" in everything and "operator" not in everything


async def test_what_lies_outside_of_the_sandbox_is_not_looked_at(project: Project, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = make_project(tmp_path / "other", {"x.txt": "x"})
    workspace = project.workspace()
    (workspace.code / "dir").mkdir()
    (workspace.code / "dir/mine.txt").write_text("mine\n")
    # Who can look there takes the directory for a repository of its own, and leaves it out.
    (workspace.code / "dir/.git").write_text(f"gitdir: {other.repo / '.git'}\n")
    work = begun(workspace, probe_sandbox(hidden=[project.data_dir]))
    git(workspace.code, "commit", "-q", "--allow-empty", "-m", "So that the agent's objects are read too")
    await work.save()
    assert git(project.repo, "show", f"{REF}:dir/mine.txt") == "mine"
    outcome = work.turn_is_over("a task")
    assert (outcome.files, outcome.left_out) == (("dir/mine.txt",), ())


async def test_a_worktree_is_not_read_without_the_sandbox_that_its_agent_is_in(project: Project) -> None:
    workspace = project.workspace()
    (workspace.code / "a.txt").write_text("changed\n")
    found = probe_sandbox()
    for bwrap, why in (("/nowhere/bwrap", "is gone"), (found.bwrap, "could not be made")):
        broken = msgspec.structs.replace(found, bwrap=bwrap, readable=(Path("/nowhere"),))
        with pytest.raises(GitFailed, match=why):
            await begun(workspace, broken).save()
    assert git(project.repo, "for-each-ref", "refs/treadle") == ""


async def test_objects_that_lie_elsewhere_are_not_taken_for_the_agents(project: Project, tmp_path: Path) -> None:
    workspace = project.workspace()
    (tmp_path / "x").mkdir()
    other = make_project(tmp_path / "x", {"secret.txt": "another project's\n"})
    work = begun(workspace)
    (workspace.agents_repo / "objects/info/alternates").write_text(f"{other.repo / '.git/objects'}\n")
    (workspace.agents_repo / "refs/heads/treadle/T1").write_text(f"{other.base}\n")
    with pytest.raises(GitFailed, match="redirected"):
        await work.save()
    assert git(project.repo, "for-each-ref", "refs/treadle") == ""

"""Verification sees what set-up left, and nothing that an agent left outside its worktree."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.runner.agents import Asks, Job
from services.runner.caches import COPIED_MAX_BYTES, SetupCaches
from services.runner.git_threads import git_threads
from services.runner.mirror import mirror_of
from services.runner.own_home import own_home, remember_home
from services.runner.sandbox import probe_sandbox
from shared import events as e
from shared.spec import WorkRules
from tests.nats_process import NatsServer
from tests.runner.bench import Bench, open_bench
from tests.runner.repositories import Project, make_project
from tests.runner.test_execution import Worker, dispatched, ended

CHECK = "python3 -c 'raise SystemExit(\"the code is broken\")'"
LYING = "import os; os._exit(0)\n"


@pytest.fixture
async def bench(own_nats: NatsServer, tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(own_nats, tmp_path / "bench") as made:
        yield made


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path)


def lies(job: Job) -> None:
    """Does bad work, and lets every Python of that home say that all is well."""
    (job.cwd / "work.txt").write_text("bad\n")
    for version in range(8, 20):
        site = job.scratch / f"home/.local/lib/python3.{version}/site-packages"
        site.mkdir(parents=True, exist_ok=True)
        (site / "usercustomize.py").write_text(LYING)
    (job.scratch / "tmp/lie").write_text(LYING)


@pytest.mark.parametrize("sandboxed", [False, True], ids=["unsandboxed", "sandboxed"])
async def test_an_agent_can_not_forge_verification_through_its_home(
    bench: Bench, project: Project, sandboxed: bool
) -> None:
    sandbox = probe_sandbox(hidden=[bench.data_dir]) if sandboxed else None
    plan = await dispatched(bench, project, verify=(CHECK,), rules=WorkRules(verify_rounds=0))
    async with bench.runner(Worker([lies]), sandbox=sandbox):
        failed = (await ended(bench, plan)).event
    assert isinstance(failed, e.TaskFailed)
    assert failed.kind == "verification_failed" and "the code is broken" in failed.message


@pytest.mark.parametrize("sandboxed", [False, True], ids=["unsandboxed", "sandboxed"])
async def test_verification_has_the_home_of_set_up_each_time_anew_and_the_agent_keeps_its_own(
    bench: Bench, project: Project, sandboxed: bool
) -> None:
    sandbox = probe_sandbox(hidden=[bench.data_dir]) if sandboxed else None
    setup = ("mkdir -p ~/.local/bin && printf 'echo by set-up' > ~/.local/bin/tool",)
    verify = (
        "sh ~/.local/bin/tool | grep -q 'by set-up' && test ! -e $TMPDIR/lie && test ! -e ~/.verified",
        "touch ~/.verified $TMPDIR/verified && grep -q good work.txt",
    )
    found: list[bool] = []

    def again(job: Job) -> None:
        home, temporary = job.scratch / "home", job.scratch / "tmp"
        found.append((home / ".local/bin/tool").read_text() == "forged")
        found.extend([(temporary / "lie").exists(), not (home / ".verified").exists()])
        found.append(not (temporary / "verified").exists())
        (job.cwd / "work.txt").write_text("good\n")

    def forges(job: Job) -> None:
        lies(job)
        (job.scratch / "home/.local/bin/tool").write_text("forged")

    plan = await dispatched(bench, project, setup=setup, verify=verify, rules=WorkRules(verify_rounds=1))
    async with bench.runner(Worker([forges, again]), sandbox=sandbox):
        done = (await ended(bench, plan)).event
    assert isinstance(done, e.TaskCompleted), done
    assert found == [True] * 4


async def test_half_a_character_in_a_call_is_asked_about_all_the_same(bench: Bench, project: Project) -> None:
    half = Asks(kind="tool", tool="Bash\ud83d", input={"command": ["echo \ud83d"]}, why="a rule for \ud83d")
    plan = await dispatched(bench, project)
    async with bench.runner(Worker([lambda job: half])):
        asked = (await ended(bench, plan)).event
    assert isinstance(asked, e.TaskApprovalRequested), asked
    assert (asked.tool, asked.why) == ("Bash?", "a rule for ?") and "echo ?" in asked.input


def test_verification_finds_in_the_caches_what_others_find_there(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    (scratch / "home").mkdir(parents=True)
    (scratch / "tmp").mkdir()
    caches = SetupCaches(tmp_path, 1 << 30, git_threads())
    with caches.for_lease(mirror_of(tmp_path, "/srv/repo", "p"), scratch) as cache:
        (cache.shared / "pip/large").write_bytes(b"x" * COPIED_MAX_BYTES * 2)
        (cache.view / "pip/large").write_bytes(b"forged")
        remember_home(scratch)
        (scratch / "home/closed").mkdir(mode=0)
        with own_home(scratch, cache):
            assert (cache.view / "pip/large").read_bytes()[:1] == b"x"
            assert not list((scratch / "home").iterdir())
            (scratch / "home/closed").mkdir(mode=0)
        assert (cache.view / "pip/large").read_bytes() == b"forged"
        assert [path.name for path in (scratch / "home").iterdir()] == ["closed"]

"""The two names of a worktree: what the runner opens, and what everything in a sandbox calls it, lease by lease."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path, PurePosixPath

import pytest

from services.runner.agents import Job
from services.runner.reviews import BadReview, read_review
from services.runner.sandbox import probe_sandbox
from services.runner.worktree import INSIDE, Worktree
from shared import events as e
from shared.spec import WorkRules
from tests.nats_process import NatsServer
from tests.runner.bench import Bench, open_bench
from tests.runner.repositories import Project, make_project
from tests.runner.test_execution import Worker, dispatched, ended

BOTH = Worktree(Path("/srv/treadle/p1/T1-3/code"), INSIDE)


@pytest.fixture
async def bench(own_nats: NatsServer, tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(own_nats, tmp_path / "bench") as made:
        yield made


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path)


@pytest.mark.parametrize("sandboxed", [False, True], ids=["unsandboxed", "sandboxed"])
async def test_set_up_and_verification_start_in_the_worktree_where_the_agent_finds_it(
    bench: Bench, project: Project, sandboxed: bool
) -> None:
    sandbox = probe_sandbox(hidden=[bench.data_dir]) if sandboxed else None
    told: list[Worktree] = []

    def works(job: Job) -> None:
        told.append(job.worktree)
        (told[-1].outside / "work.txt").write_text("work\n")

    plan = await dispatched(
        bench,
        project,
        setup=("pwd -P > ~/place",),
        verify=('test "$(pwd -P)" = "$(cat ~/place)" && test -e "$PWD/work.txt" && pwd -P && false',),
        rules=WorkRules(verify_rounds=0),
    )
    async with bench.runner(Worker([works]), sandbox=sandbox):
        failed = (await ended(bench, plan)).event
    assert isinstance(failed, e.TaskFailed)
    (worktree,) = told
    assert failed.message.splitlines()[1] == str(worktree.inside), failed.message
    assert (str(worktree.inside) == "/treadle/code") == sandboxed
    assert (str(worktree.inside) == str(worktree.outside)) != sandboxed


def finding(file: str) -> dict[str, object]:
    return {"approve": False, "findings": [{"file": file, "line": 3, "severity": "minor", "message": "Mend it."}]}


@pytest.mark.parametrize("file", ["src/a.py", "/treadle/code/src/a.py", "/srv/treadle/p1/T1-3/code/src/a.py"])
def test_review_of_a_file_by_either_name_is_of_its_path_in_the_repository(file: str) -> None:
    (found,) = read_review(finding(file), BOTH, round_=1, commit="c").findings
    assert (found.file, found.line) == ("src/a.py", 3)


@pytest.mark.parametrize(
    "file", ["/etc/passwd", "/treadle/code/../a", "/treadle/code/x/../a", "/treadle/codex/a", "../a", "/treadle/code"]
)
def test_review_of_a_file_elsewhere_is_none(file: str) -> None:
    with pytest.raises(BadReview, match="is no path from the repository's root"):
        read_review(finding(file), BOTH, round_=1, commit="c")


def test_without_a_sandbox_links_are_followed_on_this_machine(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    worktree = Worktree(tmp_path / "link", PurePosixPath(tmp_path / "link"))
    assert worktree.holds(f"{tmp_path}/real/a")
    assert not worktree.holds(f"{tmp_path}/a")
    assert not worktree.holds("/treadle/code/a")

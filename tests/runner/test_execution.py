"""What a lease does around its agent, over a real bus and real git; only the agent is the test's own."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.runner.agents import AgentSession, Asks, Finished, Job, Report
from services.runner.checkpoint import Checkpoints
from services.runner.execution import AgentExecutor
from services.runner.lease import Key
from services.runner.mirror import mirror_of
from services.runner.sandbox import find_sandbox
from services.runner.workspace import create_workspace
from shared import events as e
from shared.events import Head, Usage
from shared.spec import WorkRules
from shared.store import Recorded
from shared.transact import load_task
from tests.nats_process import NatsServer
from tests.runner.bench import META, WITHIN_S, Bench, open_bench, reached
from tests.runner.repositories import PLAN, PROJECT_ID, Project, git, make_project
from treadle.workspaces import kept_workspaces

Turn = Callable[[Job], Finished | Asks | None]
"""What the agent does in a turn; None: it says that it is done."""

ENDS = ("completed", "failed", "released", "approval_requested")


@dataclass
class Worker:
    """An agent that does what a test tells it to, turn by turn, and whose conversation can be taken up again."""

    turns: list[Turn | asyncio.Event]
    needs_credentials: bool = False
    resumes: bool = True
    told: list[str] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    works: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def open(self, job: Job, report: Report) -> AsyncIterator[AgentSession]:
        self.jobs.append(job)
        yield _Session(self, job)


@dataclass
class _Session:
    worker: Worker
    job: Job

    async def turn(self, message: str) -> Finished | Asks:
        worker, memory = self.worker, self.job.memory
        worker.told.append(message)
        if memory is not None and worker.resumes:
            await memory.append([{"uuid": f"{self.job.lease}-{len(worker.told)}", "said": message}])
        turn = worker.turns.pop(0)
        if isinstance(turn, asyncio.Event):  # it hangs, having done what there was to do
            worker.works.set()
            await turn.wait()
            turn = lambda job: None  # noqa: E731
        done = turn(self.job)
        if memory is not None:
            memory.turn_ended(Usage(cost_usd=0.25))
        return done or Finished(kind="completed", summary="I did it", usage=Usage(cost_usd=0.25))


def writes(**files: str) -> Turn:
    """Writes files in the worktree, by their names without `.txt`."""

    def turn(job: Job) -> None:
        for name, text in files.items():
            (job.cwd / f"{name}.txt").write_text(f"{text}\n")

    return turn


@pytest.fixture
async def bench(own_nats: NatsServer, tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(own_nats, tmp_path / "bench") as made:
        yield made


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path)


async def dispatched(bench: Bench, project: Project, **more: Any) -> str:
    return await bench.dispatch(str(project.repo), project.base, **more)


async def ended(bench: Bench, plan: str, after: int = 0) -> Recorded:
    """Waits for the end of a lease."""
    async with asyncio.timeout(WITHIN_S):
        async for batch in bench.store.follow(after=after):
            for record in batch.events:
                if (record.plan, record.entity) == (plan, "T1") and record.type in ENDS:
                    return record
    raise AssertionError("the log never ends")


async def goes_on(bench: Bench, plan: str, *events: e.Event) -> int:
    """A person's and the dispatcher's part: the task is dispatched again. Returns the newest sequence before."""
    records = await bench.store.read(plan, "T1")
    before = next(r.event for r in reversed(records) if isinstance(r.event, e.TaskDispatched))
    newest = records[-1].seq
    for event in (*events, msgspec.structs.replace(before, dispatch=before.dispatch + 1)):
        expected = await bench.store.last_seq(plan, "T1")
        await bench.store.append(plan, "T1", event, META, expected=expected)
    return newest


async def run(bench: Bench, worker: Worker, plan: str, after: int = 0) -> Any:
    """Lets a runner do the task until its lease ends; returns the event that says how."""
    async with bench.runner(worker):
        return (await ended(bench, plan, after)).event


def head(project: Project, commit: str) -> dict[str, str]:
    files = project.files(commit)
    return {name: text for name, text in files.items() if name not in ("a.txt", "b.txt", ".gitignore")}


async def test_what_verification_finds_goes_back_to_the_conversation_and_its_traces_are_not_committed(
    bench: Bench, project: Project
) -> None:
    verify = ("echo traces >> report.xml; grep -q good work.txt || { echo it is bad; exit 3; }",)
    plan = await dispatched(bench, project, verify=verify)
    worker = Worker([writes(work="bad"), writes(work="good", more="x")])
    done = await run(bench, worker, plan)
    assert isinstance(done, e.TaskCompleted)
    assert head(project, done.commit) == {"work.txt": "good", "more.txt": "x"}
    assert git(project.repo, "rev-parse", f"{done.commit}^") == project.base
    first, second = worker.told
    assert first == "do it"
    assert all(words in second for words in ("it is bad", "status 3", "grep -q good"))
    assert done.usage.cost_usd == 0.25
    assert done.result.summary == "I did it"
    assert git(project.repo, "for-each-ref", "--format=%(refname)", f"refs/treadle/{plan}").splitlines() == [
        f"refs/treadle/{plan}/T1/1",
        f"refs/treadle/{plan}/T1/head",
    ]


@pytest.mark.parametrize("rounds", [0, 1])
async def test_the_rounds_end_and_the_files_are_kept_for_a_person(bench: Bench, project: Project, rounds: int) -> None:
    plan = await dispatched(bench, project, verify=("echo never; exit 1",), rules=WorkRules(verify_rounds=rounds))
    worker = Worker([writes(work=f"{n}") for n in range(3)])
    failed = await run(bench, worker, plan)
    assert (failed.kind, len(worker.told)) == ("verification_failed", rounds + 1)
    assert "never" in failed.message and ("1 more turn" in failed.message) == bool(rounds)
    ref = f"refs/treadle/{plan}/T1/1-wip"
    assert ref in failed.message
    assert head(project, ref) == {"work.txt": str(rounds)}
    await reached(lambda: not list(bench.data_dir.glob(f"work/{plan}/*")))


async def test_no_change_is_said_and_is_a_failure(bench: Bench, project: Project) -> None:
    plan = await dispatched(bench, project)
    worker = Worker([writes(), writes(work="x")])
    assert (await run(bench, worker, plan)).name == "task.completed"
    assert "No file was changed" in worker.told[1]

    plan = await dispatched(bench, project, rules=WorkRules(verify_rounds=0))
    failed = await run(bench, Worker([writes()]), plan)
    assert (failed.kind, "allow_no_change" in failed.message) == ("verification_failed", True)

    plan = await dispatched(bench, project, rules=WorkRules(allow_no_change=True))
    done = await run(bench, Worker([writes()]), plan)
    assert (done.commit, done.result.summary) == (project.base, "I did it (no file was changed)")


async def test_expected_output_has_to_be_in_the_commit(bench: Bench, project: Project) -> None:
    def ignored(job: Job) -> None:
        (job.cwd / "out").mkdir()
        (job.cwd / "out/made.log").write_text("x")
        (job.cwd / "work.txt").write_text("x")

    def directory(job: Job) -> None:
        (job.cwd / "out/made.txt").write_text("x")

    plan = await dispatched(bench, project, rules=WorkRules(expected_output="out/"))
    worker = Worker([writes(work="x"), ignored, directory])
    assert (await run(bench, worker, plan)).name == "task.completed"
    assert "it was not made" in worker.told[1]
    assert "an ignored file does not count" in worker.told[2]


async def test_a_set_up_that_fails_is_not_the_agents_fault_and_what_one_leaves_is_not_its_work(
    bench: Bench, project: Project
) -> None:
    plan = await dispatched(bench, project, setup=("echo no such package; exit 7",))
    worker = Worker([writes(work="x")])
    failed = await run(bench, worker, plan)
    assert failed.kind == "setup_failed" and "no such package" in failed.message and "status 7" in failed.message
    assert worker.told == []
    plan = await dispatched(bench, project, setup=("echo x > lock.txt; echo x >> a.txt",))
    done = await run(bench, worker, plan)
    assert head(project, done.commit) == {"work.txt": "x"}
    assert project.files(done.commit)["a.txt"] == "one\ntwo"


async def test_a_runner_that_stops_saves_the_work_and_the_next_one_goes_on_with_it(
    bench: Bench, project: Project
) -> None:
    def half(job: Job) -> None:
        writes(own="committed")(job)
        git(job.cwd, "add", "own.txt")
        git(job.cwd, "commit", "-qm", "Mine")
        writes(half="half", a="changed")(job)

    def other_half(job: Job) -> None:
        assert git(job.cwd, "status", "--porcelain").splitlines() == ["M a.txt", "?? half.txt"]
        assert git(job.cwd, "log", "--format=%s") == "Mine\nStart"
        assert job.memory is not None and job.memory.resumes
        writes(other="half")(job)

    plan = await dispatched(bench, project, verify=("exit 1",), rules=WorkRules(verify_rounds=1))
    worker = Worker([half, asyncio.Event()])
    async with bench.runner(worker):
        await worker.works.wait()
    released = await ended(bench, plan)
    assert released.type == "released"
    assert isinstance(released.event, e.TaskReleased) and released.event.usage.cost_usd == 0.25
    saved = f"refs/treadle/{plan}/T1/1-wip"
    assert (head(project, saved), project.files(saved)["a.txt"]) == (
        {"own.txt": "committed", "half.txt": "half"},
        "changed",
    )
    assert not list(bench.data_dir.glob(f"work/{plan}/*"))

    after = await goes_on(bench, plan)
    second = Worker([other_half])
    failed = await run(bench, second, plan, after)
    # The one round was used up by the lease before.
    assert (failed.kind, len(second.told)) == ("verification_failed", 1)
    assert head(project, f"refs/treadle/{plan}/T1/2-wip") == {
        "own.txt": "committed", "half.txt": "half", "other.txt": "half",
    }  # fmt: skip


async def test_without_the_files_the_conversation_counts_for_nothing_too(bench: Bench, project: Project) -> None:
    plan = await dispatched(bench, project)
    worker = Worker([asyncio.Event()])

    async with bench.runner(worker):
        await worker.works.wait()
        writes(half="half")(worker.jobs[0])
    after = await goes_on(bench, plan)
    git(project.repo, "update-ref", "-d", f"refs/treadle/{plan}/T1/1-wip")
    git(project.repo, "gc", "-q", "--prune=now")
    second = Worker([writes(work="x")])
    done = await run(bench, second, plan, after)
    assert head(project, done.commit) == {"work.txt": "x"}
    memory = second.jobs[0].memory
    assert memory is not None and not memory.resumes


async def test_a_cancelled_task_pushes_nothing(bench: Bench, project: Project) -> None:
    plan = await dispatched(bench, project)
    worker = Worker([asyncio.Event()])
    async with bench.runner(worker):
        await worker.works.wait()
        writes(half="half")(worker.jobs[0])
        expected = await bench.store.last_seq(plan, "T1")
        await bench.store.append(plan, "T1", e.TaskCancelRequested(), META, expected=expected)
        failed = await ended(bench, plan)
    assert isinstance(failed.event, e.TaskFailed) and failed.event.kind == "cancelled"
    assert git(project.repo, "for-each-ref", f"refs/treadle/{plan}") == ""


async def test_what_a_person_is_asked_is_asked_with_the_work_saved(bench: Bench, project: Project) -> None:
    def asks(job: Job) -> Asks:
        writes(half="half")(job)
        return Asks(kind="tool", tool="WebFetch", input={"url": "https://example.com"}, why="to read it")

    def answered(job: Job) -> None:
        assert job.approval is not None and job.approval.answer == "granted"
        assert (job.cwd / "half.txt").exists()

    plan = await dispatched(bench, project)
    asked = await run(bench, Worker([asks]), plan)
    assert (asked.kind, asked.tool, asked.why) == ("tool", "WebFetch", "to read it")
    assert not list(bench.data_dir.glob(f"work/{plan}/*"))
    after = await goes_on(bench, plan, e.TaskApprovalGranted(approval=asked.approval))
    done = await run(bench, Worker([answered]), plan, after)
    assert head(project, done.commit) == {"half.txt": "half"}
    refs = git(project.repo, "for-each-ref", "--format=%(refname:lstrip=4)", f"refs/treadle/{plan}").splitlines()
    assert refs == ["2", "head"]


async def test_an_accepted_result_is_completed_without_the_agent(bench: Bench, project: Project) -> None:
    plan = await dispatched(bench, project, rules=WorkRules(requires_approval=True))
    asked = await run(bench, Worker([writes(work="x")]), plan)
    assert asked.kind == "result" and asked.base_commit == project.base
    assert "I did it" in asked.why and "1 file changed" in asked.why
    assert git(project.repo, "rev-parse", f"refs/treadle/{plan}/T1/1") == asked.commit
    after = await goes_on(bench, plan, e.TaskApprovalGranted(approval=asked.approval))
    worker = Worker([])
    done = await run(bench, worker, plan, after)
    assert worker.jobs == []
    assert (done.commit, done.base_commit, done.result.summary) == (asked.commit, project.base, "I did it")
    assert done.result.artifacts == ("work.txt",)
    assert git(project.repo, "rev-parse", f"refs/treadle/{plan}/T1/head") == asked.commit


@pytest.mark.parametrize("resumes", [True, False])
async def test_a_refused_result_is_mended_with_the_persons_words(
    bench: Bench, project: Project, *, resumes: bool
) -> None:
    plan = await dispatched(bench, project, rules=WorkRules(requires_approval=True), verify=("touch seen.xml",))
    asked = await run(bench, Worker([writes(work="x")], resumes=resumes), plan)
    after = await goes_on(bench, plan, e.TaskApprovalDenied(approval=asked.approval, note="too short"))

    def mends(job: Job) -> None:
        assert job.approval is None
        assert (job.cwd / "work.txt").read_text() == "x\n"
        writes(work="longer")(job)

    worker = Worker([mends], resumes=resumes)
    again = await run(bench, worker, plan, after)
    assert again.kind == "result" and again.commit != asked.commit
    assert head(project, again.commit) == {"work.txt": "longer"}
    assert "too short" in worker.told[0] and ("do it" in worker.told[0]) is not resumes


async def test_a_result_that_nobody_looked_at_is_not_accepted(bench: Bench, project: Project) -> None:
    plan = await dispatched(bench, project, rules=WorkRules(requires_approval=True))
    asked = await run(bench, Worker([writes(work="x")]), plan)
    after = await goes_on(bench, plan, e.TaskApprovalDenied(approval=asked.approval, note="late", expired=True))
    worker = Worker([])
    failed = await run(bench, worker, plan, after)
    assert (failed.kind, worker.jobs, asked.commit in failed.message) == ("timeout", [], True)


async def test_an_attempt_whose_money_is_spent_does_not_begin_again(bench: Bench, project: Project) -> None:
    plan = await dispatched(bench, project)
    worker = Worker([asyncio.Event()])
    async with bench.runner(worker):
        await worker.works.wait()
        memory = worker.jobs[0].memory
        assert memory is not None
        memory.turn_ended(Usage(cost_usd=99))
    after = await goes_on(bench, plan)
    second = Worker([])
    failed = await run(bench, second, plan, after)
    assert (failed.kind, second.jobs) == ("budget_spent", [])
    assert "budget_usd" in failed.message


async def test_a_task_past_its_time_leaves_its_files_to_a_person(bench: Bench, project: Project) -> None:
    plan = await dispatched(bench, project, timeout_s=15)

    worker = Worker([asyncio.Event()])
    async with bench.runner(worker):
        await worker.works.wait()
        writes(half="half")(worker.jobs[0])
        failed = (await ended(bench, plan)).event
    assert isinstance(failed, e.TaskFailed) and failed.kind == "timeout"
    assert f"refs/treadle/{plan}/T1/1-wip" in failed.message
    assert head(project, f"refs/treadle/{plan}/T1/1-wip") == {"half.txt": "half"}


def conflicting(project: Project) -> Sequence[Head]:
    return [Head(task, project.work(task, {"a.txt": f"{task}\n", f"{task}.txt": "x\n"})) for task in ("L", "R")]


async def test_a_task_that_merges_ends_with_a_merge_of_both_sides_without_markers(
    bench: Bench, project: Project
) -> None:
    heads = tuple(conflicting(project))
    plan = await dispatched(bench, project, heads=heads, rules=WorkRules(resolves="JOIN", allow_no_change=True))

    def looks(job: Job) -> None:
        text = (job.cwd / "a.txt").read_text()
        assert "<<<<<<<" in text and ">>>>>>>" in text
        assert "a.txt" in job.prompt and job.prompt.startswith("do it")

    worker = Worker([looks, writes(a="L and R")])
    done = await run(bench, worker, plan)
    assert isinstance(done, e.TaskCompleted)
    assert "conflict markers" in worker.told[1]
    assert git(project.repo, "log", "-1", "--format=%P", done.commit).split() == [h.commit for h in heads]
    assert project.files(done.commit)["a.txt"] == "L and R"
    state = (await load_task(bench.store, plan, "T1")).state
    assert state.status == "completed"


@pytest.mark.parametrize(("setup", "kept"), [((), True), (("git init -q sub",), False)])
async def test_a_workspace_with_a_repository_of_the_agents_own_is_kept_for_a_person(
    bench: Bench, project: Project, setup: tuple[str, ...], kept: bool
) -> None:
    def turn(job: Job) -> None:
        (job.cwd / "beside.txt").write_text("beside\n")
        git(job.cwd, "init", "-q", "sub")
        (job.cwd / "sub/work.txt").write_text("work\n")

    plan = await dispatched(bench, project, setup=setup)
    done = await run(bench, Worker([turn]), plan)
    assert "not committed, being git repositories of their own: sub" in done.result.summary
    found = kept_workspaces(bench.data_dir, 0.0)
    assert [one.reason for one in found] == ["holds git repositories of their own, which are in no commit"] * kept
    assert [(Path(one.path) / "sub/work.txt").exists() for one in found] == [True] * kept


async def test_a_killed_runners_workspace_is_saved_for_the_next_lease(bench: Bench, project: Project) -> None:
    key, checkpoints = Key(PLAN, "T1", 1), Checkpoints(bench.nc)
    mirror = mirror_of(bench.data_dir, str(project.repo), PROJECT_ID)
    mirror.ensure(PLAN, [project.base])
    workspace = create_workspace(bench.data_dir, mirror, PLAN, "T1", 1, project.base)
    (workspace.code / "half.txt").write_text("half\n")
    await (await checkpoints.open(key, 0, 1)).close()  # its former life claimed it, and was killed
    memory = await checkpoints.reopen(key)
    plan = await dispatched(bench, project)
    dispatch = next(r.event for r in await bench.store.read(plan, "T1") if isinstance(r.event, e.TaskDispatched))
    executor = AgentExecutor(bench.data_dir, Worker([]), {}, None)

    await executor.salvage(key, dispatch, None, memory)

    ref = f"refs/treadle/{PLAN}/T1/1-wip"
    assert head(project, ref) == {"half.txt": "half"}
    assert not workspace.path.exists()
    former = (await checkpoints.open(Key(PLAN, "T1", 2), 1, 1)).former
    assert former is not None and (former.wip, former.base) == (git(project.repo, "rev-parse", ref), project.base)
    await executor.salvage(key, dispatch, None, None)  # nothing is there any more, and nothing happens


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="there is no bubblewrap here")
async def test_a_failed_turn_names_the_hosts_that_it_was_not_let_reach(bench: Bench, project: Project) -> None:
    setup = ("curl -s --max-time 10 http://packages.example/ || true",)
    plan = await dispatched(bench, project, setup=setup)
    failing = Worker([lambda job: Finished(kind="agent_error", message="It did not work.")])
    async with bench.runner(failing, sandbox=find_sandbox("required", hidden=[bench.data_dir])):
        failed = (await ended(bench, plan)).event
    assert isinstance(failed, e.TaskFailed)
    assert failed.message.startswith("It did not work.\nThe sandbox lets nobody reach packages.example:80")
    assert "network_allow" in failed.message

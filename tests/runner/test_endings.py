"""How a lease ends in the log, and what the next one is given, with a real nats-server and a runner in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.aio.subscription import Subscription

from services.runner.agents import AgentSession, Asks, Finished, Job, Report
from services.runner.pull import SlotPull
from shared import commands as c
from shared import events as e
from shared.approval import approval_hash
from shared.clock import utc_now
from shared.streams import EVENTS, pool_consumer_name
from shared.task import TaskState
from shared.transact import load_task, to_task
from tests.nats_process import NatsServer
from tests.runner.bench import META, Bench, open_bench, reached
from tests.runner.repositories import make_project

USAGE = e.Usage(input_tokens=3, cost_usd=0.25)
CALL = {"command": "rm -r build", "description": "ä"}
ASKS = Asks(kind="tool", tool="Bash", input=CALL, why="it is not allowed beforehand", usage=USAGE)


class Scripted:
    """An agent that ends each lease's turn as told, and can be held up in it."""

    needs_credentials = False
    resumes = True

    def __init__(self, *ends: Finished | Asks) -> None:
        self.ends = list(ends)
        self.jobs: list[Job] = []
        self.used: list[bool] = []
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    @asynccontextmanager
    async def open(self, job: Job, report: Report) -> AsyncIterator[AgentSession]:
        yield Turns(self, job)


class Turns:
    """One session of it."""

    def __init__(self, agent: Scripted, job: Job) -> None:
        self._agent = agent
        self._job = job

    async def turn(self, message: str) -> Finished | Asks:
        job, agent = self._job, self._agent
        assert job.memory is not None
        await job.memory.append([{"uuid": f"u{job.lease}", "type": "user", "text": message}])
        job.memory.turn_ended(USAGE)
        if job.approval is not None and job.approval.answer == "granted" and job.approval.used_by == 0:
            assert job.use_approval is not None
            await job.use_approval()
        agent.jobs.append(job)
        await agent.goes_on.wait()
        (job.cwd / "work.txt").write_text(f"{job.lease}\n")
        return agent.ends.pop(0)


DONE = Finished(kind="completed", summary="done", usage=USAGE)


@pytest.fixture
async def bench(own_nats: NatsServer, tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(own_nats, tmp_path) as made:
        yield made


async def state(bench: Bench, plan: str) -> TaskState:
    return (await load_task(bench.store, plan, "T1")).state


async def command(bench: Bench, plan: str, command: c.TaskCommand) -> None:
    await to_task(bench.store, plan, "T1", command, META)


async def dispatch_again(bench: Bench, plan: str) -> None:
    """What the dispatcher does with a task that may go on."""
    events = await bench.store.read(plan, "T1")
    last = next(r.event for r in reversed(events) if isinstance(r.event, e.TaskDispatched))
    again = msgspec.structs.replace(last, dispatch=last.dispatch + 1)
    await bench.store.append(plan, "T1", again, META, expected=events[-1].seq)


async def nothing_pending(bench: Bench) -> None:
    js, name = bench.nc.jetstream(), pool_consumer_name("claude")
    async with asyncio.timeout(60):
        while (await js.consumer_info(EVENTS, name)).num_ack_pending:  # noqa: ASYNC110 - a server does not tell
            await asyncio.sleep(0.02)


async def dispatched(bench: Bench, tmp_path: Path) -> str:
    (tmp_path / "repo-of").mkdir()
    project = make_project(tmp_path / "repo-of")
    return await bench.dispatch(str(project.repo), project.base, project="")


async def test_a_question_frees_the_slot_and_its_answer_is_given_to_whoever_goes_on(
    bench: Bench, tmp_path: Path
) -> None:
    plan = await dispatched(bench, tmp_path)
    agent = Scripted(ASKS, DONE)
    async with bench.runner(agent, "r1") as runner:
        asked = (await bench.event(plan, "approval_requested", "failed", "completed")).event
        assert isinstance(asked, e.TaskApprovalRequested), asked
        await nothing_pending(bench)
        await reached(lambda: runner.presence().busy == 0)
    assert asked.approval == approval_hash(plan, "T1", 1, 1, "Bash", CALL)
    assert msgspec.json.decode(asked.input) == CALL
    assert (asked.kind, asked.tool, asked.why, asked.usage) == ("tool", "Bash", ASKS.why, USAGE)
    at = (await bench.event(plan, "approval_requested")).time
    assert timedelta(0) < asked.expires_at - at <= timedelta(days=31)
    assert (await state(bench, plan)).status == "awaiting_approval"

    await command(bench, plan, c.Approve(now=utc_now(), approval=asked.approval, note="go on"))
    await dispatch_again(bench, plan)
    async with bench.runner(agent, "r2"):
        await bench.event(plan, "completed", "failed")
    first, second = agent.jobs
    assert first.approval is None
    assert second.approval is not None
    assert (second.approval.answer, second.approval.note, second.approval.used_by) == ("granted", "go on", 0)
    assert second.memory is not None and second.memory.resumes
    assert second.memory.session_id == getattr(first.memory, "session_id", "")
    assert second.budget_usd == first.budget_usd - USAGE.cost_usd
    after = await state(bench, plan)
    assert (after.status, after.approval and after.approval.used_by) == ("completed", 2)
    types = [record.type for record in await bench.store.read(plan, "T1")]
    assert types[-4:] == ["dispatched", "started", "approval_used", "completed"]


async def test_an_own_event_in_the_middle_is_no_reason_to_stop(bench: Bench, tmp_path: Path) -> None:
    plan = await dispatched(bench, tmp_path)
    agent = Scripted(ASKS, DONE)
    async with bench.runner(agent, "r1", heartbeat_s=0.05):
        asked = (await bench.event(plan, "approval_requested")).event
        assert isinstance(asked, e.TaskApprovalRequested)
        agent.goes_on.clear()
        await command(bench, plan, c.Approve(now=utc_now(), approval=asked.approval))
        await dispatch_again(bench, plan)
        used = await bench.event(plan, "approval_used")
        async with asyncio.timeout(60):  # several heartbeats look at the task meanwhile
            for _ in range(5):
                await bench.in_progress_heard()
        agent.goes_on.set()
        completed = await bench.event(plan, "completed", "failed", "released")
        assert completed.type == "completed" and completed.seq > used.seq


async def test_a_runner_that_stops_says_what_its_lease_has_consumed(bench: Bench, tmp_path: Path) -> None:
    plan = await dispatched(bench, tmp_path)
    agent = Scripted(DONE)
    agent.goes_on.clear()
    async with bench.runner(agent, "r1"):
        await reached(lambda: agent.jobs)
    released = (await bench.event(plan, "released")).event
    assert isinstance(released, e.TaskReleased)
    assert (released.usage, released.lost) == (USAGE, False)
    assert (await state(bench, plan)).spent_usd == USAGE.cost_usd


async def test_a_lost_lease_is_charged_its_last_report(bench: Bench, tmp_path: Path) -> None:
    plan = await dispatched(bench, tmp_path)
    held, agent = Scripted(DONE), Scripted(DONE)
    held.goes_on.clear()
    await bench.set_ack_wait(2.0)
    async with bench.runner(held, "r1", heartbeat_s=1000):
        await reached(lambda: held.jobs)
        # Nobody answers for a runner on the bench: to others it is dead. So r2 has to say that it is at work, or its
        # message goes back to r1 while its git is slow.
        async with bench.runner(agent, "r2", heartbeat_s=0.2):
            await bench.event(plan, "completed", "failed")
        starts = [r.event for r in await bench.store.read(plan, "T1") if isinstance(r.event, e.TaskStarted)]
        assert [(start.supersedes, start.resumes, start.charged) for start in starts] == [
            (None, 0, e.Usage()),
            (1, 1, USAGE),
        ]
        # The one that lost it can't store anything any more, and says nothing.
        held.goes_on.set()
    types = [record.type for record in await bench.store.read(plan, "T1")]
    assert types == ["planned", "dispatched", "started", "started", "completed"]


async def test_what_is_taken_while_the_runner_stops_is_handed_back_only_when_nothing_can_come_to_it_any_more(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = await dispatched(bench, tmp_path)
    agent = Scripted(DONE)
    agent.goes_on.clear()
    may_drain = asyncio.Event()
    drain = SlotPull._drain

    async def late(self: SlotPull, subscription: Subscription) -> None:
        await may_drain.wait()
        await drain(self, subscription)

    monkeypatch.setattr(SlotPull, "_drain", late)
    async with bench.runner(agent) as runner:
        take = runner._take

        async def stopped_meanwhile(*args: Any) -> Any:
            runner.stop()
            return await take(*args)

        monkeypatch.setattr(runner, "_take", stopped_meanwhile)
        try:
            await reached(lambda: agent.jobs)  # it works, though we stop: others can't have it before we are gone
            assert [r.type for r in await bench.store.read(plan, "T1")][-1] == "started"
        finally:
            may_drain.set()
    assert [r.type for r in await bench.store.read(plan, "T1")][-1] == "released"
    await nothing_pending(bench)

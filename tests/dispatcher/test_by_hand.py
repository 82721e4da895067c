"""What a manual task's person is told, and what time does to them, on a real nats-server."""

import json
import re
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import pytest
from msgspec.structs import replace

from shared import commands as c
from shared.clock import utc_now
from shared.events import Result, Review, TaskReadied, Usage
from shared.spec import AgentSpec, CollabRules, PlanSettings, PlanSpec, ResultPlace, TaskSpec
from shared.store import Meta
from shared.task import TaskState
from shared.transact import Decided, to_task
from tests.dispatcher.loom import ANN, Loom, loom, of_type
from tests.nats_process import NatsServer

ANNA = AgentSpec(sdk_type=None, agent_id="a1")
COLLAB = PlanSettings(collab=CollabRules(repo_url="https://example.org/collab.git", directory="results"))
WATCH = Meta(actor="runner:watch")


@pytest.fixture
async def bus(own_nats: NatsServer) -> AsyncIterator[Loom]:
    async with loom(own_nats) as made:
        yield made


def by_hand(*tasks: TaskSpec) -> PlanSpec:
    return PlanSpec(name="by hand", goal="A login", tasks=tasks, agents={"anna": ANNA})


def task(code: str, *depends_on: str) -> TaskSpec:
    return TaskSpec(code=code, name=f"Task {code}", assignee="anna", description=f"Do {code}.", depends_on=depends_on)


class Person:
    """Begins a task as the gateway lets them, and is watched as `services.runner.watch` does."""

    def __init__(self, bus: Loom, plan: str) -> None:
        self.bus, self.plan = bus, plan

    async def readied(self, code: str) -> TaskReadied:
        await self.bus.until(self.plan, lambda b: b.visible and b.tasks[code].status == "readied")
        newest = of_type(await self.bus.store.read(self.plan, code), "readied")[-1].event
        assert isinstance(newest, TaskReadied)
        return newest

    async def begins(self, code: str, deadline: datetime, phase: c.PlanPhase = "open") -> int:
        readied = await self.readied(code)
        assert readied.place is not None
        place = replace(readied.place, blob="b" * 40)
        hand_out = c.HandOut(phase="open", readied=readied, project="", repo_url="u", plan_name="n", place=place)
        handed = await to_task(self.bus.store, self.plan, code, replace(hand_out, note="mine"), ANN)
        assert handed.state.place == place
        start = c.Start(
            phase=phase,
            dispatch=readied.dispatch,
            runner="watch",
            execution=f"manual-{readied.dispatch}",
            deadline=deadline,
        )
        return (await to_task(self.bus.store, self.plan, code, start, WATCH)).state.lease

    async def hands_in(self, code: str, lease: int, commit: str = "") -> Decided[TaskState]:
        result = Result(task_code=code, summary=f"{code} by hand")
        complete = c.Complete(lease=lease, base_commit="", commit=commit, result=result, usage=Usage())
        return await to_task(self.bus.store, self.plan, code, complete, WATCH)


def soon(seconds: float) -> datetime:
    return utc_now() + timedelta(seconds=seconds)


async def test_the_prompt_stands_alone(bus: Loom) -> None:
    bus.start_dispatcher()
    plan = await bus.submit(by_hand(task("T1"), task("T2", "T1"), task("T3", "T1"), task("T4", "T2", "T3")), "", COLLAB)
    ann = Person(bus, plan)
    first = await ann.readied("T1")
    assert first.place == ResultPlace(repo_url="https://example.org/collab.git", path=f"results/{plan}/T1/result.json")
    for told in (
        "A login",
        "You do this task as anna.",
        "Do T1.",
        "Repository: https://example.org/r.git",
        "Start from commit base.",
        "https://example.org/collab.git",
        f"`results/{plan}/T1/result.json`",
    ):
        assert told in first.prompt
    example = json.loads(re.findall(r"```json\n(.*?)```", first.prompt, re.DOTALL)[0])
    assert example["task_code"] == "T1" and example["summary"] and set(example) >= {"artifacts", "commit"}
    await ann.hands_in("T1", await ann.begins("T1", soon(60)), commit="1" * 40)
    second = await ann.readied("T2")
    assert "T1 (Task T1): T1 by hand" in second.prompt
    assert f"Start from commit {'1' * 40}, the work of T1." in second.prompt
    await ann.hands_in("T2", await ann.begins("T2", soon(60)), commit="2" * 40)
    await ann.readied("T3")
    await to_task(bus.store, plan, "T3", c.Abandon(), ANN)
    last = await ann.readied("T4")
    assert f"Start from commit {'2' * 40}, the work of T2." in last.prompt
    assert "Given up, so that their work is not there: T3." in last.prompt


async def test_a_review_by_hand_is_told_what_to_judge_and_how_to_say_it(bus: Loom) -> None:
    bus.start_dispatcher()
    review = replace(task("R", "T1"), reviews="T1")
    decide = TaskSpec(code="D", name="D", assignee="", depends_on=("R",), max_review_rounds=1)
    plan = await bus.submit(by_hand(task("T1"), review, decide))
    ann = Person(bus, plan)
    await ann.hands_in("T1", await ann.begins("T1", soon(60)), commit="1" * 40)
    given = await ann.readied("R")
    assert "The work of task T1" in given.prompt and "> Do T1." in given.prompt
    example = json.loads(re.findall(r"```json\n(.*?)```", given.prompt, re.DOTALL)[0])
    assert example["review"]["commit"] == "1" * 40 and example["review"]["round"] == 1
    lease = await ann.begins("R", soon(60))
    said = Result(task_code="R", summary="fine", review=Review(approve=True, commit="1" * 40))
    await to_task(
        bus.store, plan, "R", c.Complete(lease=lease, base_commit="", commit="", result=said, usage=Usage()), WATCH
    )
    board = await bus.until(plan, lambda b: b.visible and b.tasks["D"].status == "completed")
    assert board.tasks["D"].summary == "approved by R in round 1"


async def test_whoever_is_late_is_told_so_and_the_late_result_still_counts(bus: Loom) -> None:
    async with bus.service():
        plan = await bus.submit(by_hand(task("T1")))
        ann = Person(bus, plan)
        lease = await ann.begins("T1", soon(1.5))
        board = await bus.until(plan, lambda b: b.visible and b.tasks["T1"].status == "needs_attention")
        assert board.tasks["T1"].kind == "timeout" and "One that still arrives completes" in board.tasks["T1"].message
        assert (await ann.hands_in("T1", lease)).state.status == "completed"


async def test_the_clock_stands_still_while_nobody_can_look(bus: Loom) -> None:
    async with bus.service():
        plan = await bus.submit(by_hand(task("T1"), task("T2")))
        ann = Person(bus, plan)
        blind = await ann.begins("T1", soon(5))
        since = utc_now()
        await to_task(bus.store, plan, "T1", c.FailWatch(lease=blind, reason="away", since=since), WATCH)
        await ann.begins("T2", soon(6))
        board = await bus.until(plan, lambda b: b.visible and b.tasks["T2"].status == "needs_attention")
        assert board.tasks["T1"].status == "running" and board.tasks["T1"].watch_fault == "away"
        before = board.tasks["T1"].deadline
        restored = await to_task(bus.store, plan, "T1", c.RestoreWatch(now=utc_now(), lease=blind), WATCH)
        assert before is not None and restored.state.deadline is not None
        assert restored.state.deadline - before > timedelta(seconds=2)
        board = await bus.until(plan, lambda b: b.visible and b.tasks["T1"].status == "needs_attention")
        assert board.tasks["T1"].kind == "timeout"


async def test_an_invalid_result_needs_attention_and_each_other_one_is_looked_at(bus: Loom) -> None:
    bus.start_dispatcher()
    plan = await bus.submit(by_hand(task("T1")))
    ann = Person(bus, plan)
    lease = await ann.begins("T1", soon(60))
    wrong = c.Fail(
        now=utc_now(), phase="open", lease=lease, kind="invalid_result", message="no summary", blob="1", usage=Usage()
    )
    assert (await to_task(bus.store, plan, "T1", wrong, WATCH)).state.status == "needs_attention"
    assert (await to_task(bus.store, plan, "T1", wrong, WATCH)).event is None
    worse = await to_task(bus.store, plan, "T1", replace(wrong, blob="2", message="no JSON"), WATCH)
    assert worse.state.message == "no JSON"
    assert (await ann.hands_in("T1", lease)).state.status == "completed"


async def test_what_a_person_cancelled_no_late_result_completes(bus: Loom) -> None:
    bus.start_dispatcher()
    plan = await bus.submit(by_hand(task("T1")))
    ann = Person(bus, plan)
    lease = await ann.begins("T1", soon(60))
    cancelled = await to_task(bus.store, plan, "T1", c.CancelTask(phase="open"), ANN)
    assert cancelled.state.status == "needs_attention"
    with pytest.raises(c.StaleLease):
        await ann.hands_in("T1", lease)
    await to_task(bus.store, plan, "T1", c.Redispatch(), ANN)
    anew = await ann.begins("T1", soon(60))
    with pytest.raises(c.StaleLease):
        await ann.hands_in("T1", lease)
    assert (await ann.hands_in("T1", anew)).state.status == "completed"


async def test_a_pause_takes_nothing_away_from_whoever_has_begun(bus: Loom) -> None:
    bus.start_dispatcher()
    plan = await bus.submit(by_hand(task("T1"), task("T2")))
    ann = Person(bus, plan)
    lease = await ann.begins("T1", soon(60), phase="paused")
    assert (await ann.hands_in("T1", lease)).state.status == "completed"
    running = await ann.begins("T2", soon(60))
    assert running
    ended = await to_task(bus.store, plan, "T2", c.Abandon(note="not needed"), ANN)
    assert ended.state.status == "abandoned"
    await bus.until(plan, lambda b: b.visible and b.tasks["_deliver"].status == "queued")

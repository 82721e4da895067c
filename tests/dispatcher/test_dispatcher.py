"""The dispatcher on a real nats-server."""

from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from shared import commands as c
from shared.board import Board, in_order
from shared.clock import utc_now
from shared.events import FailureKind, Head, TaskDispatched, TaskFailed
from shared.spec import DELIVER, Retry
from shared.store import Recorded
from shared.streams import TIMERS
from shared.subjects import PLAN, shard
from shared.task import IN_FLIGHT
from shared.transact import to_task
from tests.dispatcher.loom import ANN, Loom, behind, give, loom, of_type, spec, wide
from tests.nats_process import NatsServer

DIAMOND = {"A": (), "L": ("A",), "R": ("A",), "J": ("L", "R")}


@pytest.fixture
async def bus(own_nats: NatsServer) -> AsyncIterator[Loom]:
    async with loom(own_nats) as made:
        yield made


def dispatch_of(records: list[Recorded], code: str) -> TaskDispatched:
    [event] = [r.event for r in records if r.entity == code and isinstance(r.event, TaskDispatched)]
    return event


# To the end -----------------------------------------------------------------------------------------------------------


async def test_a_chain_runs_to_its_end_and_each_task_starts_from_the_one_before(bus: Loom) -> None:
    bus.start_dispatcher()
    bus.start_runner()
    plan = await bus.submit(spec({"A": (), "B": ("A",), "C": ("B",)}))
    board = await bus.completed(plan)
    assert {s.status for s in board.tasks.values()} == {"completed"}
    assert board.plan.head_commit == board.tasks[DELIVER].commit
    records = await bus.records(plan)
    assert dispatch_of(records, "A").heads == ()
    assert dispatch_of(records, "B").heads == (Head("A", "A.1"),)
    assert dispatch_of(records, "C").heads == (Head("B", "B.1"),)
    assert "B is done" in dispatch_of(records, "C").prompt
    assert dispatch_of(records, DELIVER).heads == (Head("C", "C.1"),)


async def test_the_join_of_a_diamond_starts_from_both_sides(bus: Loom) -> None:
    bus.start_dispatcher()
    bus.start_runner()
    plan = await bus.submit(spec(DIAMOND))
    await bus.completed(plan)
    records = await bus.records(plan)
    assert dispatch_of(records, "J").heads == (Head("L", "L.1"), Head("R", "R.1"))
    assert dispatch_of(records, DELIVER).heads == (Head("J", "J.1"),)


async def test_a_plan_goes_on_after_kill_9_of_the_server(own_nats: NatsServer) -> None:
    async with loom(own_nats) as bus:
        bus.start_dispatcher()
        runner = bus.start_runner()
        runner.hold()
        plan = await bus.submit(wide(8))
        await bus.until(plan, lambda board: board.counts["running"] == 8)
        own_nats.kill()
        own_nats.start()
        runner.let_go()
        board = await bus.completed(plan)
        assert board.counts["completed"] == 9


async def test_what_is_decided_names_an_event_of_the_same_plan_as_its_cause(bus: Loom) -> None:
    bus.start_dispatcher()
    bus.start_runner()
    plans = [await bus.submit(spec(DIAMOND)) for _ in range(4)]
    for plan in plans:
        await bus.completed(plan)
        records = await bus.records(plan)
        seqs = {r.seq for r in records}
        for record in records:
            if record.meta.actor == "dispatcher":
                assert record.meta.causation in seqs and record.meta.causation < record.seq
                assert record.meta.seen >= record.meta.causation


# Several, and again ---------------------------------------------------------------------------------------------------


async def test_a_dispatcher_that_takes_over_in_the_middle_ends_the_plan(bus: Loom) -> None:
    first = bus.start_dispatcher()
    runner = bus.start_runner()
    runner.hold()
    plan = await bus.submit(spec({"A": (), "B": ("A",), "C": ("B",), "D": ()}))
    await bus.until(plan, lambda board: board.counts["running"] == 2)
    await bus.stop(first)
    runner.let_go()
    await bus.until(plan, lambda board: board.counts["completed"] == 2)
    bus.start_dispatcher()
    await bus.completed(plan)
    assert Counter(r.entity for r in of_type(await bus.records(plan), "dispatched")).most_common(1)[0][1] == 1


async def test_of_two_dispatchers_none_dispatches_a_task_twice(bus: Loom) -> None:
    bus.start_dispatcher()
    bus.start_dispatcher()
    bus.start_runner()
    layers = {
        f"L{layer}-{i}": [f"L{layer - 1}-{k}" for k in range(8)] if layer else ()
        for layer in range(4)
        for i in range(8)
    }
    plan = await bus.submit(spec(layers))
    await bus.completed(plan)
    records = await bus.records(plan)
    for type_ in ("planned", "dispatched", "started", "completed"):
        times = Counter(r.entity for r in of_type(records, type_) if r.entity != PLAN)
        assert set(times.values()) == {1}, type_
        assert len(times) == 33
    assert Counter(r.type for r in records if r.entity == PLAN) == dict.fromkeys(
        ("drafted", "finalizing", "finalized", "completed"), 1
    )


@pytest.mark.parametrize("stored", [0, 1, 3, 5])
async def test_a_finalize_that_was_interrupted_is_completed_by_the_next_dispatcher(bus: Loom, stored: int) -> None:
    plan = await bus.submit(spec(DIAMOND))
    board = await bus.until(plan, lambda board: board.plan.status == "finalizing")
    assert board.plan.chosen is not None
    for index, task in enumerate(in_order(board.plan.chosen.spec)[:stored]):
        command = c.PlanTask(digest=board.plan.digest, index=index, spec=task, agent=None)
        await to_task(bus.store, plan, task.code, command, ANN)
    board = await bus.until(plan, lambda board: len(board.tasks) == stored)
    assert not board.visible and board.codes == []
    bus.start_dispatcher()
    bus.start_runner()
    await bus.completed(plan)
    assert len(of_type(await bus.records(plan), "planned")) == 5


async def test_a_plan_that_is_cancelled_while_it_is_finalized_ends(bus: Loom) -> None:
    plan = await bus.submit(spec(DIAMOND))
    await give(bus, plan, c.CancelPlan())
    bus.start_dispatcher()
    board = await bus.until(plan, lambda board: board.plan.status == "cancelled")
    assert board.counts["cancelled"] == 5


# Retries --------------------------------------------------------------------------------------------------------------

QUICKLY = Retry(max_attempts=3, backoff_s=0.1)


def fails_once(code: str, dispatch: TaskDispatched) -> FailureKind | None:
    return "agent_error" if dispatch.attempt == 1 and code != DELIVER else None


LATE = timedelta(seconds=60)
"""By this much a busy machine's dispatcher may be late; without a timer, one that `never_looks_again` is much later."""


@pytest.fixture
def never_looks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.dispatcher.dispatcher.LOOK_AGAIN_S", 3600.0)


@pytest.mark.usefixtures("never_looks_again")
async def test_a_retry_comes_when_its_timer_fires(bus: Loom) -> None:
    async with bus.service():
        bus.start_runner(fails_once)
        plan = await bus.submit(spec({"A": (), "B": ("A",)}, retry=QUICKLY))
        board = await bus.completed(plan)
    assert board.tasks["B"].attempt == 2
    for code in ("A", "B"):
        waits = await waits_for_retries(bus, plan, code)
        assert all(timedelta(0) <= wait < LATE for wait in waits), waits


async def waits_for_retries(bus: Loom, plan: str, code: str) -> list[timedelta]:
    """How long after its time each retry was dispatched."""
    waits, due = [], None
    for record in await bus.records(plan):
        if record.entity == code and isinstance(record.event, TaskFailed):
            due = record.event.retry_at
        if record.entity == code and isinstance(record.event, TaskDispatched) and due:
            waits.append(record.time - due)
    assert waits
    return waits


async def test_a_retry_that_nobody_was_there_for_is_made_up_for_at_the_next_start(bus: Loom) -> None:
    first = bus.start_dispatcher()
    runner = bus.start_runner(fails_once)
    runner.hold()
    plan = await bus.submit(spec({"A": ()}, retry=QUICKLY))
    await bus.until(plan, lambda board: board.counts["running"] == 1)
    await bus.stop(first)
    runner.let_go()
    await bus.until(plan, lambda board: board.counts["retry_wait"] == 1)
    async with bus.service():
        await bus.completed(plan)


@pytest.mark.usefixtures("never_looks_again")
async def test_timers_that_were_lost_are_set_again_at_the_start(bus: Loom) -> None:
    later = Retry(max_attempts=2, backoff_s=2)
    first = bus.start_dispatcher()
    bus.start_runner(fails_once)
    plan = await bus.submit(spec({"A": ()}, retry=later))
    await bus.until(plan, lambda board: board.counts["retry_wait"] == 1)
    await bus.stop(first)
    await bus.nc.jetstream().purge_stream(TIMERS)
    async with bus.service():
        await bus.completed(plan)
    [wait] = await waits_for_retries(bus, plan, "A")
    assert wait < LATE


async def test_a_retry_comes_although_its_timer_was_lost_or_the_clock_is_behind(
    bus: Loom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.dispatcher.dispatcher.LOOK_AGAIN_S", 0.2)
    bus.start_dispatcher(behind(1.0))  # and it hears no timer at all
    bus.start_runner(fails_once)
    plan = await bus.submit(spec({"A": ()}, retry=QUICKLY))
    await bus.completed(plan)


# People ---------------------------------------------------------------------------------------------------------------


async def test_a_paused_plan_dispatches_nothing_more_and_resumes_where_it_was(bus: Loom) -> None:
    bus.start_dispatcher()
    runner = bus.start_runner()
    runner.hold()
    plan = await bus.submit(wide(40, max_parallel=10))
    await bus.until(plan, lambda board: board.counts["running"] == 10)
    await give(bus, plan, c.Pause())
    runner.let_go()
    board = await bus.until(plan, lambda board: board.counts["completed"] == 10)
    assert (board.counts["pending"], board.standing()) == (31, "paused")
    other = await bus.submit(wide(3))  # by the time that this one is done, the paused one would have gone on
    await bus.completed(other)
    board = await bus.until(plan, lambda board: board.counts["completed"] == 10)
    assert len(of_type(await bus.records(plan), "dispatched")) == 10
    await give(bus, plan, c.Resume())
    await bus.completed(plan)


async def test_a_cancelled_plan_ends_all_its_tasks_and_asks_the_running_ones_to_stop(bus: Loom) -> None:
    bus.start_dispatcher()
    runner = bus.start_runner(lambda code, dispatch: "cancelled")
    runner.hold()
    plan = await bus.submit(wide(40, max_parallel=10))
    await bus.until(plan, lambda board: board.counts["running"] == 10)
    await give(bus, plan, c.CancelPlan())
    await bus.until(plan, lambda board: board.counts["cancelling"] == 10 and board.counts["cancelled"] == 31)
    runner.let_go()
    board = await bus.until(plan, lambda board: board.plan.status == "cancelled")
    assert board.counts["cancelled"] == 41


async def test_no_more_run_at_once_than_the_plan_allows_and_no_slot_stays_empty(bus: Loom) -> None:
    bus.start_dispatcher()
    runner = bus.start_runner(lambda code, dispatch: "agent_error" if code in ("T3", "T7") else None)
    plan = await bus.submit(wide(30, max_parallel=4))
    in_flight: list[int] = []

    def look(board: Board) -> bool:
        in_flight.append(sum(board.counts[status] for status in IN_FLIGHT))
        return board.counts["completed"] == 28

    await bus.until(plan, look)
    assert max(in_flight) == 4
    assert runner.most_at_once <= 4


async def test_an_abandoned_task_runs_again_only_while_nothing_rests_on_it(bus: Loom) -> None:
    bus.start_dispatcher()
    runner = bus.start_runner()
    runner.hold()
    plan = await bus.submit(spec({"A": (), "M": ("A",), "X": ("M",)}))
    await bus.until(plan, lambda board: board.counts["running"] == 1)
    await to_task(bus.store, plan, "M", c.Abandon(), ANN)
    await to_task(bus.store, plan, "M", c.Redispatch(), ANN)
    await to_task(bus.store, plan, "M", c.Abandon(), ANN)
    runner.let_go()
    await bus.until(plan, lambda board: bool(board.tasks) and board.tasks["A"].status == "completed")
    board = await bus.completed(plan)
    assert (board.tasks["M"].status, board.tasks["M"].dispatch) == ("abandoned", 0)
    records = await bus.records(plan)
    assert dispatch_of(records, "X").heads == (Head("A", "A.1"),)
    assert dispatch_of(records, "X").abandoned == ("M",)


async def test_redispatching_what_a_running_task_rests_on_is_taken_back(bus: Loom) -> None:
    """X rests on A's being abandoned, by way of M which was marked complete without a commit of its own."""
    asked = False

    def taken_back(board: Board) -> bool:
        nonlocal asked
        asked |= board.visible and board.tasks["A"].reopening
        return asked and not board.tasks["A"].reopening

    bus.start_dispatcher()
    runner = bus.start_runner(lambda code, dispatch: "agent_error" if code == "A" else None)
    plan = await bus.submit(spec({"A": (), "M": ("A",), "X": ("M",)}))
    await bus.until(plan, lambda board: board.counts["needs_attention"] == 1)
    runner.hold()
    await to_task(bus.store, plan, "M", c.MarkComplete(), ANN)
    await to_task(bus.store, plan, "A", c.Abandon(), ANN)
    await bus.until(plan, lambda board: board.visible and board.tasks["X"].status == "running")
    await to_task(bus.store, plan, "A", c.Redispatch(), ANN)
    board = await bus.until(plan, taken_back)
    assert (board.tasks["A"].status, board.tasks["A"].dispatch) == ("abandoned", 1)
    runner.let_go()
    await bus.completed(plan)
    assert of_type(await bus.records(plan), "abandoned")[-1].meta.actor == "dispatcher"


# Faults ---------------------------------------------------------------------------------------------------------------


def a_subject(plan: str, entity: str, type_: str) -> str:
    return f"treadle.evt.{shard(plan)}.{plan}.{entity}.{type_}"


@pytest.mark.parametrize(
    ("entity", "type_", "version", "body"),
    [
        ("T0", "abandoned", "99", b"{}"),
        ("T0", "exploded", "1", b"{}"),
        ("T0", "dispatched", "1", b'{"prompt": 7}'),
        (PLAN, "paused", "1", b"\xff\xfe"),
        ("T0", "planned", "2", b"{}"),
        ("T0", "released", "1", b'{"reason": "r", "x": ' + b"[" * 50_000),
        ("nobody", "abandoned", "1", b"{}"),
        ("nobody", "planned", "1", b'{"digest": "d", "index": 3, "spec": {"code": "T", "name": "n", "assignee": "a"}}'),
    ],
    ids=["newer", "unknown", "wrong type", "not JSON", "newer planned", "nested", "no such task", "planned too late"],
)
async def test_a_plan_with_a_poisoned_event_stands_still_and_the_others_go_on(
    bus: Loom, entity: str, type_: str, version: str, body: bytes
) -> None:
    dispatcher = bus.start_dispatcher()
    runner = bus.start_runner()
    runner.hold()
    poisoned = await bus.submit(wide(6, max_parallel=2))
    await bus.until(poisoned, lambda board: board.counts["running"] == 2)
    await bus.nc.jetstream().publish(a_subject(poisoned, entity, type_), body, headers={"Treadle-Version": version})
    runner.let_go()
    await bus.completed(await bus.submit(spec(DIAMOND)))
    assert len(of_type(await bus.records(poisoned), "dispatched")) == 2
    await bus.stop(dispatcher)
    again = bus.start_dispatcher()
    await bus.completed(await bus.submit(spec(DIAMOND)))
    assert len(of_type(await bus.records(poisoned), "dispatched")) == 2
    assert not again.done()


async def test_a_plan_whose_tasks_are_damaged_from_the_start_stands_still_and_the_others_go_on(bus: Loom) -> None:
    plan = await bus.submit(wide(2))
    await bus.nc.jetstream().publish(a_subject(plan, "T0", "planned"), b"{", headers={"Treadle-Version": "1"})
    await bus.nc.jetstream().publish(a_subject(plan, "T0", "abandoned"), b"{}", headers={"Treadle-Version": "1"})
    bus.start_dispatcher()
    bus.start_runner()
    await bus.completed(await bus.submit(spec(DIAMOND)))
    assert of_type(await bus.records(plan), "dispatched") == []


@pytest.mark.usefixtures("never_looks_again")
async def test_the_service_that_finds_an_empty_log_is_ready_at_once(bus: Loom) -> None:
    async with bus.service():
        bus.start_runner()
        before = utc_now()
        await bus.completed(await bus.submit(spec({"A": ()})))
        assert utc_now() - before < LATE

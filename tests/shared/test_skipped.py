"""An event that can't be read stops its entity, until an operator has it left out; on every store alike."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace
from nats.aio.client import Client

from shared import commands as c
from shared.board import Board
from shared.bus import BusSettings, connect
from shared.clock import new_plan_id, utc_now
from shared.events import Event, PlanPaused, PlanSkipped, TaskSkipped, TaskStarted
from shared.jetstream import JetStreamStore
from shared.plan import INITIAL, evolve
from shared.skipped import reaches_back, skipped_seq, take, without_skipped
from shared.store import Meta, Recorded
from shared.streams import declare_streams
from shared.subjects import PLAN
from shared.transact import UnreadableEntity, fold, load_plan, load_task, to_plan, to_task
from tests.damage import KINDS, Kind, store_unreadable
from tests.gateway.projection.histories import ANN, spec_of, submit
from tests.nats_process import NatsServer

OPERATOR = Meta(actor="user:olga")


@pytest.fixture
async def nc(nats_url: NatsServer) -> AsyncIterator[Client]:
    client = await connect(BusSettings(nats_url.url, nats_url.user, nats_url.password), "test")
    await declare_streams(client.jetstream())
    yield client
    await client.close()


def boarded(records: list[Recorded]) -> Board:
    board = Board()
    for record in without_skipped(records):
        take(board, record)
    return board


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", [None, b"k" * 32], ids=["without a key", "with a key"])
async def test_a_task_goes_on_once_its_unreadable_event_is_skipped(nc: Client, kind: Kind, key: bytes | None) -> None:
    store = JetStreamStore(nc, key)
    plan = await submit(store, spec_of({"A": (), "B": ("A",)}))
    seq = await store_unreadable(nc, plan, "A", kind, key)

    with pytest.raises(UnreadableEntity, match=rf"event {seq} of {plan} A can't be read: .*treadle events skip"):
        await to_task(store, plan, "A", c.CancelTask(phase="open"), ANN)
    stopped = boarded(await store.read(plan))
    assert (stopped.fault_seq, stopped.standing()) == (seq, "needs_attention")

    skipped = await to_task(store, plan, "A", c.Skip(seq=seq, reason="nobody can read it"), OPERATOR)
    assert skipped.event == TaskSkipped(seq=seq, reason="nobody can read it")
    loaded = await load_task(store, plan, "A")
    assert (loaded.state.status, loaded.seq) == ("pending", skipped.seq)
    goes_on = boarded(await store.read(plan))
    assert (goes_on.fault, goes_on.standing(), goes_on.take_ready()) == ("", "running", ["A"])
    assert goes_on.seqs["A"] == skipped.seq, "what is appended next expects the word itself"
    held = await to_task(store, plan, "A", c.CancelTask(phase="open"), ANN)
    assert held.event is not None


async def test_a_plan_s_own_unreadable_event_is_skipped_likewise(nc: Client) -> None:
    store = JetStreamStore(nc)
    plan = await submit(store, spec_of({"A": ()}))
    seq = await store_unreadable(nc, plan, PLAN, "unknown name")
    with pytest.raises(UnreadableEntity):
        await to_plan(store, plan, c.Pause(), ANN)
    assert (await to_plan(store, plan, c.Skip(seq=seq, reason="x"), OPERATOR)).event == PlanSkipped(seq=seq, reason="x")
    assert (await to_plan(store, plan, c.Pause(), ANN)).state.status == "paused"
    assert boarded(await store.read(plan)).standing() == "paused"


async def test_skipping_twice_is_skipping_once(nc: Client) -> None:
    store = JetStreamStore(nc)
    plan = await submit(store, spec_of({"A": ()}))
    seq = await store_unreadable(nc, plan, "A", "unknown name")
    first = await to_task(store, plan, "A", c.Skip(seq=seq, reason="once"), OPERATOR)
    again = await to_task(store, plan, "A", c.Skip(seq=seq, reason="twice"), OPERATOR)
    assert (again.seq, again.event) == (first.seq, None)


async def test_of_several_unreadable_events_each_has_to_be_skipped(nc: Client) -> None:
    store = JetStreamStore(nc)
    plan = await submit(store, spec_of({"A": ()}))
    seqs = [await store_unreadable(nc, plan, "A", kind) for kind in KINDS]
    for place, seq in enumerate(seqs):
        assert boarded(await store.read(plan)).fault_seq == seq
        await to_task(store, plan, "A", c.Skip(seq=seq, reason=f"number {place}"), OPERATOR)
    assert boarded(await store.read(plan)).fault == ""


async def test_a_task_whose_very_plan_can_not_be_read_is_planned_again(nc: Client) -> None:
    store = JetStreamStore(nc)
    plan = await submit(store, spec_of({"A": ()}))
    seq = await store_unreadable(nc, plan, "B", "unknown name")
    await to_task(store, plan, "B", c.Skip(seq=seq, reason="x"), OPERATOR)
    board = boarded(await store.read(plan))
    assert (board.fault, "B" in board.tasks) == ("", False), "what was left out was all that there was of it"
    spec = spec_of({"B": ()}).tasks[0]
    planned = await to_task(store, plan, "B", c.PlanTask(digest="", index=9, spec=spec, agent=None), ANN)
    assert planned.state.status == "pending"


def record(seq: int, entity: str, event: Event | None) -> Recorded:
    named = event.name if event is not None else "plan.exploded"
    return Recorded(
        seq=seq, time=utc_now(), plan=new_plan_id(), entity=entity, type=named.partition(".")[2], meta=ANN,
        event=event, fault="" if event else "it was written by a newer Treadle",
    )  # fmt: skip


def test_a_word_is_about_its_own_entity_alone() -> None:
    records = [record(1, "A", None), record(2, "B", None), record(3, "B", TaskSkipped(seq=1, reason="x"))]
    assert without_skipped(records) == records
    assert [skipped_seq(one) for one in records] == [0, 0, 1]


def test_whoever_has_folded_the_event_already_is_told_to_fold_again() -> None:
    word = record(5, PLAN, PlanSkipped(seq=3, reason="x"))
    assert reaches_back([word], 3)
    assert not reaches_back([word], 2), "it is left out by itself when both are read together"
    assert not reaches_back([record(4, PLAN, PlanPaused(reason=""))], 4)


def test_whoever_looks_back_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    board = Board()
    assert not take(board, record(7, PLAN, None))
    assert board.fault and not caplog.records


def test_an_event_that_can_be_read_and_not_folded_is_a_fault_of_its_plan_and_nobody_else_s() -> None:
    board = Board()
    started = TaskStarted(lease=1, runner="r", execution="x")
    assert not take(board, record(7, PLAN, started))
    assert (board.fault_seq, board.fault.startswith("event 7 (started) can't be read: TypeError")) == (7, True)
    assert not take(board, record(8, PLAN, None))
    assert board.fault_seq == 7, "the first one is shown"


def test_a_fold_without_the_skipped_event_is_the_fold_of_a_log_that_never_had_it() -> None:
    paused = record(1, PLAN, PlanPaused(reason="kept"))
    with_it = [paused, record(2, PLAN, None), record(3, PLAN, PlanSkipped(seq=2, reason="x"))]
    folded = fold(INITIAL, evolve, with_it)
    assert replace(folded.state, skipped=()) == fold(INITIAL, evolve, [paused]).state
    assert (folded.state.skipped, folded.seq) == ((2,), 3)


async def test_a_plan_that_was_skipped_in_reads_as_it_did_before(nc: Client) -> None:
    store = JetStreamStore(nc)
    plan = await submit(store, spec_of({"A": ()}))
    before = (await load_plan(store, plan)).state
    seq = await store_unreadable(nc, plan, PLAN, "no text")
    await to_plan(store, plan, c.Skip(seq=seq, reason="x"), OPERATOR)
    assert (await load_plan(store, plan)).state == replace(before, skipped=(seq,))

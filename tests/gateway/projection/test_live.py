"""What is told of plans as it happens: complete, once, and in bounded memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from services.gateway.plans.stream import plan_messages
from services.gateway.projection.folds import Folds, read_fold
from services.gateway.projection.live import LISTENER_BYTES_MAX, FellBehind, Listener, LivePlans, Told
from services.gateway.projection.views import PlanFold
from shared import commands as c
from shared.clock import new_plan_id
from shared.events import Event
from shared.store import MemoryStore, Meta, Recorded
from shared.transact import to_plan, to_task
from tests.gateway.projection.histories import (
    ANN,
    DEADLINE_S,
    GrowingStore,
    running,
    simulated,
    spec_of,
    submit,
)


class SlowStore(MemoryStore):
    """A log whose readings of a whole plan wait while events go on being stored."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.free = asyncio.Event()

    async def read(
        self, plan: str, entity: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[Recorded]:
        if entity is not None:
            return await super().read(plan, entity, after=after, limit=limit)
        before = await super().read(plan, after=after, limit=limit)
        self.asked.set()
        await self.free.wait()
        return before

    async def append(self, plan: str, entity: str, event: Event, meta: Meta, *, expected: int) -> int:
        return await super().append(plan, entity, event, meta, expected=expected)


@asynccontextmanager
async def live_plans(store: MemoryStore) -> AsyncIterator[LivePlans]:
    async def end() -> int:
        return len(store._log)

    live = LivePlans(store, end)
    async with running(live.run()):
        await live.ready.wait()
        yield live


def _json(fold: PlanFold) -> list[bytes]:
    return [msgspec.json.encode(fold.view()), *(msgspec.json.encode(task) for task in fold.tasks())]


async def test_a_fold_that_is_read_while_events_arrive_misses_and_doubles_none() -> None:
    store = SlowStore()
    plan = await submit(store, spec_of({"A": (), "B": ("A",)}))
    async with live_plans(store) as live:
        asked = [asyncio.create_task(live.fold(plan)) for _ in range(3)]
        await store.asked.wait()
        await to_task(store, plan, "A", c.MarkComplete(), ANN)
        last = await to_plan(store, plan, c.Pause(), ANN)
        await live.at_least(last.seq)
        store.free.set()
        folds = await asyncio.gather(*asked)
        assert folds[0] is folds[1] is folds[2]
        expected = await read_fold(store, plan)
        assert folds[0] is not None
        assert expected is not None
        assert _json(folds[0]) == _json(expected)
        assert folds[0].seq == last.seq


@pytest.mark.parametrize("seed", range(4))
async def test_a_fold_that_is_kept_up_is_the_fold_of_the_log(seed: int) -> None:
    log = simulated(seed)
    store = GrowingStore(log, visible=3)
    async with live_plans(store) as live:
        while not store.is_whole:
            await store.grow(7)
            await live.at_least(len(store._log))
            for plan in {record.plan for _, record in store._log}:
                fold, expected = await live.fold(plan), await read_fold(store, plan)
                assert fold is not None
                assert expected is not None
                assert _json(fold) == _json(expected)
                assert [fold.view_json(), *map(fold.task_json, fold.board.codes)] == _json(expected)


async def test_what_changed_is_all_that_looks_otherwise() -> None:
    """A reader who is told of the changed tasks alone ends up with the same picture as one who looks at everything."""
    for seed in range(12):
        folds: dict[str, PlanFold] = {}
        told: dict[tuple[str, str], bytes] = {}
        for _, record in simulated(seed):
            fold = folds.setdefault(record.plan, PlanFold(record.plan, record))
            for code in fold.apply(record):
                told[record.plan, code] = msgspec.json.encode(fold.task(code))
            for code in fold.board.codes:
                assert told[record.plan, code] == msgspec.json.encode(fold.task(code)), f"seed {seed}, {record.seq}"


async def test_no_fold_is_made_at_the_start_and_none_for_plans_that_nobody_looks_at() -> None:
    store = GrowingStore(simulated(1), visible=50)
    async with live_plans(store) as live:
        await store.grow(50)
        await live.at_least(len(store._log))
        assert len(live._folds) == 0


def test_folds_that_were_not_used_for_long_are_dropped_but_for_pinned_ones() -> None:
    [first, *_] = [record for _, record in simulated(0)]
    folds = Folds(is_pinned=lambda plan: plan == "p0", weight_max=5)
    for name in ("p0", "p1", "p2", "p3"):
        folds.keep(PlanFold(name, first))
    folds.get("p1")
    for name in ("p4", "p5", "p6"):
        folds.keep(PlanFold(name, first))
    kept = [name for name in ("p0", "p1", "p2", "p3", "p4", "p5", "p6") if folds.get(name)]
    assert kept == ["p0", "p1", "p4", "p5", "p6"]


async def test_a_listener_that_falls_behind_in_bytes_is_told_so() -> None:
    listener = Listener()
    for _ in range(3):
        listener.give(Told("log", b"x" * (LISTENER_BYTES_MAX // 2)))
    with pytest.raises(FellBehind):
        await listener.take(DEADLINE_S)


class AnyReader:
    """Nobody is frozen here."""

    @asynccontextmanager
    async def watched(self, _: object) -> AsyncIterator[None]:
        yield

    async def may_read_on(self) -> bool:
        return True


async def test_a_stream_never_ends_its_history_after_what_it_shows_as_the_present() -> None:
    """The tail lags behind the log: the history that was read from the log must not be newer than what is shown."""
    log = simulated(2)
    store = GrowingStore(log, visible=len(log) // 2)
    plan = log[0][1].plan
    async with live_plans(store) as live:
        fold = await live.fold(plan)
        assert fold is not None
        newest = max(record.seq for _, record in log if record.plan == plan)
        store._log = list(log[:newest])  # stored, but the tail is not woken
        messages = plan_messages(live, store, AnyReader(), plan, after=0)  # type: ignore[arg-type] # of the same shape
        shown = b""
        async with asyncio.timeout(DEADLINE_S):
            while f"id: {newest}\n".encode() not in shown:
                shown += await anext(messages)
            coming = asyncio.ensure_future(anext(messages))
            await store.grow(0)
            shown += await coming
        ids = [int(line[4:]) for line in shown.decode().split("\n") if line.startswith("id: ")]
        [view] = [part for part in shown.decode().split("\n\n") if part.startswith("event: plan")]
        assert msgspec.json.decode(view.split("data: ")[1])["seq"] >= max(ids)
        await messages.aclose()  # type: ignore[attr-defined] # it is a generator


async def test_nothing_is_known_of_a_plan_without_events() -> None:
    store = MemoryStore()
    async with live_plans(store) as live:
        assert await live.fold(new_plan_id()) is None

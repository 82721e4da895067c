"""What is told of plans as it happens: complete, once, and in bounded memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from services.gateway.direct_get import EventsRead
from services.gateway.plans.event_filter import ReadEvents
from services.gateway.plans.sse import UNAVAILABLE_NOW, ending_in_words
from services.gateway.plans.stream import plan_messages
from services.gateway.projection.folds import Folds, read_fold
from services.gateway.projection.live import LISTENER_BYTES_MAX, FellBehind, Listener, LivePlans, Told
from services.gateway.projection.views import TASK_BYTES, PlanFold
from shared import commands as c
from shared.clock import new_plan_id
from shared.events import Event
from shared.store import MemoryStore, Meta, Recorded, StoreUnavailable
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
    folds = Folds(is_pinned=lambda plan: plan == "p0", weight_max_bytes=5 * TASK_BYTES)
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

    ask_in_s = DEADLINE_S

    async def may_read_on(self) -> bool:
        return True


class SuspectReader(AnyReader):
    """To be asked about at once, and then not to be told anything more."""

    ask_in_s = 0.0

    async def may_read_on(self) -> bool:
        return False


def reading(store: MemoryStore) -> ReadEvents:
    async def read(plan: str, *, after: int, limit: int, entity: str | None = None) -> EventsRead:
        records = await store.read(plan, entity, after=after, limit=limit)
        return EventsRead(records, records[-1].seq if len(records) == limit else None)

    return read


async def test_whether_a_reader_may_read_on_is_asked_although_there_is_always_something_to_tell() -> None:
    store = MemoryStore()
    plan = await submit(store, spec_of({"A": ()}))
    async with live_plans(store) as live:
        reader = AnyReader()
        messages = plan_messages(live, reading(store), reader, plan, after=0)  # type: ignore[arg-type] # same shape
        shown = b""
        while b"event: live" not in shown:
            shown += await anext(messages)
        paused = await to_plan(store, plan, c.Pause(), ANN)
        assert b"event: log" in await anext(messages)
        [told] = live._listeners[plan]
        told.give(Told("log", b"{}", paused.seq + 1))
        reader.ask_in_s = SuspectReader.ask_in_s
        reader.may_read_on = SuspectReader().may_read_on  # type: ignore[method-assign] # somebody froze it meanwhile
        with pytest.raises(StopAsyncIteration):
            await anext(messages)


async def test_a_long_history_is_not_told_to_its_end_to_who_may_not_read_on() -> None:
    store = MemoryStore()
    plan = await submit(store, spec_of({"A": ()}))
    async with live_plans(store) as live:
        messages = plan_messages(live, reading(store), SuspectReader(), plan, after=0)  # type: ignore[arg-type] # same
        assert len([chunk async for chunk in messages]) == 1


async def test_a_stream_ends_in_words_where_the_log_goes_away() -> None:
    store = MemoryStore()
    plan = await submit(store, spec_of({"A": ()}))

    async def read(plan: str, *, after: int, limit: int, entity: str | None = None) -> EventsRead:
        if after:
            raise StoreUnavailable("no answer")
        return EventsRead(await store.read(plan, limit=1), 1)

    async with live_plans(store) as live:
        messages = plan_messages(live, read, AnyReader(), plan, after=0)  # type: ignore[arg-type] # same shape
        chunks = [chunk async for chunk in ending_in_words(messages)]
    assert chunks[0].startswith(b"id: 1\nevent: log\n")
    assert chunks[1:] == [UNAVAILABLE_NOW]
    assert live.listeners == 0


async def test_what_a_fold_weighs_are_the_texts_that_it_keeps() -> None:
    store = MemoryStore()
    plan = new_plan_id()
    text = "x" * 1024**2
    weights: list[int] = []
    for candidate in ("1", "2", "3"):
        spec = spec_of({"A": ()}, name=f"plan {candidate}")
        spec = msgspec.structs.replace(spec, tasks=(msgspec.structs.replace(spec.tasks[0], description=text),))
        draft = c.Draft(candidate=candidate, spec=spec, repo_url="https://example.org/r.git", base_commit="base")
        await to_plan(store, plan, draft, ANN)
        fold = await read_fold(store, plan)
        assert fold is not None
        weights.append(fold.weight_bytes)
    assert [round(weight / len(text)) for weight in weights] == [1, 2, 3]
    await to_plan(store, plan, c.Finalize(candidate="2"), ANN)
    assert fold is not None
    for record in await store.read(plan):
        fold.apply(record)
    assert round(fold.weight_bytes / len(text)) == 2  # the chosen text, and its tasks' share of it
    assert list(fold._texts) == ["2"], "the texts of the others are forgotten"


async def test_a_heavy_fold_drives_out_as_many_as_it_weighs() -> None:
    store = MemoryStore()
    folds = Folds(weight_max_bytes=1024**2)
    plans = [await submit(store, spec_of({"A": ()})) for _ in range(3)]
    spec = spec_of({"A": ()})
    heavy = msgspec.structs.replace(spec.tasks[0], description="x" * (1024**2 - 1000))
    plans.append(await submit(store, msgspec.structs.replace(spec, tasks=(heavy,))))
    for plan in plans:
        fold = await read_fold(store, plan)
        assert fold is not None
        folds.keep(fold)
        assert len(folds) == (1 if plan == plans[3] else plans.index(plan) + 1)


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
        messages = plan_messages(live, reading(store), AnyReader(), plan, after=0)  # type: ignore[arg-type] # same shape
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
        await messages.aclose()


async def test_nothing_is_known_of_a_plan_without_events() -> None:
    store = MemoryStore()
    async with live_plans(store) as live:
        assert await live.fold(new_plan_id()) is None

"""Histories in a gateway: complete, in order, bounded, and made beside the event loop."""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from pathlib import Path
from random import Random

import pytest

from services.gateway.histories import spool
from services.gateway.histories.spool import STEP_EVENTS, Histories
from shared import commands as c
from shared.history.history import History
from shared.store import MemoryStore, Recorded, StoreUnavailable
from shared.transact import to_plan, to_task
from tests.gateway.projection.histories import ANN, GrowingStore, simulated, spec_of, submit


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files of this test are."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


async def _all(store: MemoryStore, history: History) -> None:
    assert list(history.file.read()) == await store.read(history.plan)


async def test_a_history_has_all_that_is_stored_and_then_what_is_new() -> None:
    store = MemoryStore()
    histories = Histories(store)
    plan = await submit(store, spec_of({"A": (), "B": ("A",)}))
    first = await histories.up_to_date(plan)
    await _all(store, first)
    for _ in range(3):
        await to_plan(store, plan, c.Pause(), ANN)
        last = await to_plan(store, plan, c.Resume(), ANN)
        again = await histories.up_to_date(plan)
        assert again is first
        assert again.last_seq == last.seq
        await _all(store, again)


async def test_whoever_asks_while_the_log_grows_sees_at_least_what_was_stored_before() -> None:
    log = simulated(0)
    store = GrowingStore(log)
    histories = Histories(store)
    rng = Random(0)  # noqa: S311
    asked: list[asyncio.Task[None]] = []

    async def ask(plan: str, at_least: int) -> None:
        history = await histories.up_to_date(plan)
        assert history.last_seq >= at_least
        await asyncio.to_thread(history.moment, history.last_seq)

    while not store.is_whole:
        await store.grow(rng.randrange(1, 40))
        _, newest = store._log[-1]
        asked.append(asyncio.create_task(ask(newest.plan, newest.seq)))
    await asyncio.gather(*asked)
    for plan in {record.plan for _, record in log}:
        await _all(store, await histories.up_to_date(plan))


async def test_a_caller_who_goes_away_leaves_the_history_in_order() -> None:
    store = MemoryStore()
    plan = await submit(store, spec_of({f"T{i}": () for i in range(3 * STEP_EVENTS)}))
    histories = Histories(store)
    for turns in range(1, 40, 3):
        asked = asyncio.create_task(histories.up_to_date(plan))
        for _ in range(turns):
            await asyncio.sleep(0)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
    await _all(store, await histories.up_to_date(plan))


async def test_events_are_written_and_folded_in_steps_in_a_thread_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    plan = await submit(store, spec_of({f"T{i}": () for i in range(3 * STEP_EVENTS)}))
    steps: list[tuple[int, int]] = []
    take = spool._take

    def noting(history: History, step: list[Recorded]) -> None:
        steps.append((len(step), threading.get_ident()))
        take(history, step)

    monkeypatch.setattr(spool, "_take", noting)
    history = await Histories(store).up_to_date(plan)
    assert sum(count for count, _ in steps) == len(history.file)
    assert len(steps) > 3
    assert max(count for count, _ in steps) <= STEP_EVENTS
    assert threading.get_ident() not in {thread for _, thread in steps}


async def test_no_more_histories_are_kept_than_may_be_and_the_oldest_goes_first(directory: Path) -> None:
    store = MemoryStore()
    histories = Histories(store, count_max=3)
    plans = [await submit(store, spec_of({"A": ()})) for _ in range(5)]
    made = [await histories.up_to_date(plan) for plan in plans]
    assert len(histories) == 3
    assert [await histories.up_to_date(plan) is old for plan, old in zip(plans[2:], made[2:], strict=True)] == [
        True
    ] * 3
    await _all(store, made[0])  # whoever still has it reads on
    assert await histories.up_to_date(plans[0]) is not made[0]
    assert len(histories) == 3
    assert not os.listdir(directory), "something is left on the disk under a name"  # noqa: PTH208 - an empty directory


@pytest.mark.parametrize("bound", ["size_max_bytes", "weight_max_bytes"])
async def test_what_all_histories_take_is_bounded_and_the_one_that_is_asked_for_stays(bound: str) -> None:
    store = MemoryStore()
    plans = [await submit(store, spec_of({f"T{i}": () for i in range(20)})) for _ in range(4)]
    alone = await Histories(store).up_to_date(plans[0])
    one = alone.file.size_bytes if bound == "size_max_bytes" else alone.weight_bytes
    limits = {bound: int(2.5 * one)}
    histories = Histories(store, **limits)
    for plan in plans:
        await _all(store, await histories.up_to_date(plan))
    assert len(histories) == 2
    tight = Histories(store, **{bound: 1})
    for plan in plans:
        await _all(store, await tight.up_to_date(plan))
        assert len(tight) == 1


class SilentStore(MemoryStore):
    """A log that stops answering."""

    silent = False

    async def read(
        self, plan: str, entity: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[Recorded]:
        if self.silent:
            raise StoreUnavailable("nobody there")
        return await super().read(plan, entity, after=after, limit=limit)


async def test_a_silent_log_is_said_to_be_one_and_later_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "PATIENCE_S", 0.2)
    store = SilentStore()
    histories = Histories(store)
    plan = await submit(store, spec_of({"A": ()}))
    await histories.up_to_date(plan)
    await to_task(store, plan, "A", c.MarkComplete(), ANN)
    store.silent = True
    with pytest.raises(StoreUnavailable, match="the event log was silent"):
        await histories.up_to_date(plan)
    store.silent = False
    await _all(store, await histories.up_to_date(plan))


async def test_a_history_that_could_not_be_written_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    histories = Histories(store)
    plan = await submit(store, spec_of({"A": ()}))

    def full(history: History, step: list[Recorded]) -> None:
        history.file.append(step[0])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(spool, "_take", full)
        await histories.up_to_date(plan)
    await _all(store, await histories.up_to_date(plan))


async def test_stopping_ends_what_is_being_read() -> None:
    store = SilentStore()
    histories = Histories(store)
    plan = await submit(store, spec_of({"A": ()}))
    store.silent = True
    asked = asyncio.create_task(histories.up_to_date(plan))
    while not histories._extending:  # noqa: ASYNC110 - a turn of the loop is what it takes
        await asyncio.sleep(0)
    async with asyncio.timeout(60):
        await histories.stop()
    with pytest.raises(asyncio.CancelledError):
        await asked

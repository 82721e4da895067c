"""A plan that nobody can read is left alone by the planner, and taken up again once the event was skipped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shared import commands as c
from shared.subjects import PLAN, entity_filter
from shared.transact import load_plan, to_plan
from tests.damage import store_unreadable
from tests.nats_process import NatsServer
from tests.planner.drafts import ANN, DEADLINE_S, PLAN_TEXT, Studio, studio


@pytest.fixture
async def bench(own_nats: NatsServer) -> AsyncIterator[Studio]:
    async with studio(own_nats) as made:
        yield made


async def heard(bench: Studio, plan: str, type_: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        async for batch in bench.store.follow(filters=(entity_filter(plan, PLAN),)):
            if any(record.type == type_ for record in batch.events):
                return


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_candidate_is_made_after_the_skip_by_a_planner_that_was_there_and_by_one_that_starts(
    bench: Studio, restarts: bool
) -> None:
    _, running = bench.start_planner()
    plan = await bench.ask()
    await bench.until_seen(plan, "_draft-1", "dispatched")
    seq = await store_unreadable(bench.nc, plan, PLAN, "unknown name", bench.settings.log_key)
    other = await bench.ask()
    await bench.until_seen(other, "_draft-1", "dispatched")
    if restarts:
        await bench.stop(running)
    await to_plan(bench.store, plan, c.Skip(seq=seq, reason="x"), ANN)
    if restarts:
        bench.start_planner()
    bench.start_runner(lambda entity, dispatch: PLAN_TEXT)
    for one in (plan, other):
        await heard(bench, one, "drafted")
        assert list((await load_plan(bench.store, one)).state.candidates) == ["1"]

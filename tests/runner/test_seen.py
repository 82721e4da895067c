"""A runner says with what it does how far it had read, so that looking back tells what it knew of the plan."""

from __future__ import annotations

from pathlib import Path

from shared import events as e
from shared.store import Recorded
from shared.subjects import PLAN
from tests.nats_process import NatsServer
from tests.runner.bench import META, Bench, Recorder, open_bench


async def told(bench: Bench, plan: str, event: e.Event) -> int:
    last = await bench.store.last_seq(plan, PLAN)
    return await bench.store.append(plan, PLAN, event, META, expected=last)


async def test_what_a_runner_takes_in_a_pause_is_handed_back_with_the_word_that_it_had_seen_the_pause(
    own_nats: NatsServer, tmp_path: Path
) -> None:
    async with open_bench(own_nats, tmp_path) as bench:
        plan = await bench.dispatch("https://example.org/r.git", "b" * 40)
        dispatched = await bench.event(plan, "dispatched")
        paused = await told(bench, plan, e.PlanPaused(reason="let me look"))
        async with bench.runner(Recorder()):
            back: Recorded = await bench.event(plan, "released", "started")
        assert back.type == "released" and isinstance(back.event, e.TaskReleased)
        assert back.event.reason == "the plan is paused"
        assert (back.meta.seen, back.meta.causation) == (paused, dispatched.seq) and paused > dispatched.seq

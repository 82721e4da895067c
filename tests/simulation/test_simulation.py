"""Thousands of worlds, each from a seed. `TREADLE_SEEDS=5000` soaks; `TREADLE_SEED=17` runs the one that failed."""

import os
from collections import defaultdict
from collections.abc import Iterator

import pytest

from shared import board
from tests.simulation.invariants import History
from tests.simulation.virtual_time import run_in_virtual_time
from tests.simulation.world import World

SEEDS_PER_TEST = 10


def seeds() -> Iterator[range]:
    if "TREADLE_SEED" in os.environ:
        yield range(int(os.environ["TREADLE_SEED"]), int(os.environ["TREADLE_SEED"]) + 1)
        return
    count = int(os.environ.get("TREADLE_SEEDS", "150"))
    for first in range(0, count, SEEDS_PER_TEST):
        yield range(first, min(first + SEEDS_PER_TEST, count))


@pytest.mark.parametrize("some_seeds", list(seeds()), ids=lambda r: f"seeds {r.start} to {r.stop - 1}")
def test_every_world_keeps_the_invariants_and_comes_to_rest(some_seeds: range) -> None:
    for seed in some_seeds:
        try:
            run_in_virtual_time(live_and_check(World(seed)))
        except Exception as error:
            error.add_note(f"to see it again: TREADLE_SEED={seed}")
            raise


async def live_and_check(world: World) -> None:
    await world.live()
    histories: dict[str, History] = defaultdict(History)
    scratch: dict[str, board.Board] = defaultdict(board.Board)
    for record in world.records():
        histories[record.plan].add(record)
        assert record.event is not None
        scratch[record.plan].apply(record.entity, record.event, record.seq)
    for plan, history in histories.items():
        assert not history.unexplained(), f"plan {plan} rests with {history.unexplained()}"
        # Two dispatchers whose clocks differ may each fill the last slot, one of them with a retry that is just due.
        assert history.in_flight_most <= (world.specs[plan].max_parallel or 0) * world.dispatchers_at_once
        for dispatcher in world.dispatchers:
            live = dispatcher._boards.get(plan)
            if live is None:
                assert history.plan.status in ("completed", "cancelled")
                continue
            assert not live.fault
            assert (live.plan, live.tasks, live.seqs) == (history.plan, history.tasks, scratch[plan].seqs)
            assert (live.counts, live.standing()) == (scratch[plan].counts, scratch[plan].standing())

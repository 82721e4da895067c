"""The runner with agents: overhead and memory beside a bare CLI loop, cancel, recovery, workspaces."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import psutil

from bench import cancelling, overhead, recovery, workspaces
from bench.figures import Figure, Goal, Series

OVERHEAD_GOAL = 1.10
MEMORY_GOAL_MIB = 60.0
SAMPLE_EVERY_S = 0.1
CLI = "claude"


async def measure(directory: Path, rounds: int) -> Figure:
    """All of them, one after the other."""
    figures = []
    for name, measuring in (
        ("overhead", _overhead),
        ("memory", _memory),
        ("cancel", cancelling.measure),
        ("recovery", recovery.measure),
        ("workspaces", workspaces.measure),
    ):
        place = directory / name
        place.mkdir()
        figures.append(await measuring(place, rounds))
    return Figure(
        "The runner with agents: " + "; ".join(figure.title for figure in figures),
        [series for figure in figures for series in figure.series],
        [goal for figure in figures for goal in figure.goals],
        [note for figure in figures for note in figure.notes],
    )


async def _overhead(directory: Path, rounds: int) -> Figure:
    return await overhead.measure(directory, rounds, goal=OVERHEAD_GOAL)


async def _memory(directory: Path, rounds: int) -> Figure:
    """Resident memory of the runner and of what it starts around the CLI, while two tasks run and before."""
    idle: list[float] = []
    busy: list[float] = []
    async with AsyncExitStack() as stack:
        loop = overhead.Overhead(directory)
        await loop.prepare(stack)
        await loop.through_treadle(overhead.INSTANT)
        runner = loop.runner()
        for _ in range(rounds):
            idle.append(_own_mib(runner)[0])
            async with _sampling(runner) as samples:
                await loop.through_treadle(overhead.USUAL)
            # Only while all slots work: the mean of the rest would flatter.
            full = [own for own, agents in samples if agents >= overhead.AT_ONCE]
            busy.append(max(full))
    at_rest = Series("the runner at rest", "MiB", idle)
    at_work = Series(f"the runner and its helpers with {overhead.AT_ONCE} agents at work, peak", "MiB", busy)
    grown = (at_work.median - at_rest.median) / overhead.AT_ONCE
    whole = at_work.median / overhead.AT_ONCE
    return Figure(
        "Memory of our own (RSS, without the CLI and what it starts)",
        [at_rest, at_work],
        [
            Goal("added by a running task", grown, "MiB", at_most=MEMORY_GOAL_MIB),
            Goal(f"all of it, divided by {overhead.AT_ONCE} running tasks", whole, "MiB", at_most=MEMORY_GOAL_MIB),
        ],
    )


@asynccontextmanager
async def _sampling(runner: psutil.Process) -> AsyncIterator[list[tuple[float, int]]]:
    """Collects what `_own_mib` says, for as long as the context lasts."""
    samples: list[tuple[float, int]] = []

    async def sample() -> None:
        while True:
            samples.append(await asyncio.to_thread(_own_mib, runner))
            await asyncio.sleep(SAMPLE_EVERY_S)

    sampling = asyncio.create_task(sample())
    try:
        yield samples
    finally:
        sampling.cancel()


def _own_mib(process: psutil.Process) -> tuple[float, int]:
    """Memory of a process and of those below it down to each CLI, and how many CLIs there are."""
    try:
        if process.name() == CLI:
            return 0.0, 1
        own, agents = process.memory_info().rss / 2**20, 0
        for child in process.children():
            more, below = _own_mib(child)
            own, agents = own + more, agents + below
    except psutil.NoSuchProcess:
        return 0.0, 0  # it ended while we looked
    return own, agents

"""Throughput: no-op tasks per second in three shapes, beside DBOS with SQLite and dask.distributed."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

from bench.figures import Figure, Series
from bench.rival import Rival, RivalFailed, install
from bench.shapes import Shape, chain, fan, layered
from bench.suite import Suite

SHAPES: Mapping[str, Shape] = {
    "chain of 200": chain(200),
    "1 → 500 → 1": fan(500),
    "layered, 10 × 100": layered(10, 100),
}
WARM_UP = chain(20)

Contender = Callable[[Shape], Awaitable[float]]
"""Runs a shape and says how many seconds it took."""


async def measure(directory: Path, rounds: int) -> Figure:
    """Runs every shape on every contender in turn, `rounds` times."""
    notes: list[str] = []
    async with AsyncExitStack() as stack:
        suite = await stack.enter_async_context(Suite(directory))

        async def treadle(shape: Shape) -> float:
            return (await suite.run_plan(shape)).seconds

        contenders: dict[str, Contender] = {"Treadle": treadle}
        contenders |= await _rivals(stack, directory, notes)
        rates: dict[tuple[str, str], list[float]] = {}
        for label, shape in [("", WARM_UP), *SHAPES.items()] + [*SHAPES.items()] * (rounds - 1):
            for name, run in list(contenders.items()):
                try:
                    rate = len(shape) / await run(shape)
                except RivalFailed as failure:
                    notes.append(f"{name} was not measured any further: {failure}")
                    del contenders[name]
                else:
                    rates.setdefault((label, name), []).append(rate)
    series = [Series(f"{label}: {name}", "tasks/s", values) for (label, name), values in rates.items() if label]
    return Figure("Throughput, no-op tasks from hand-in to end", series, [], notes)


async def _rivals(stack: AsyncExitStack, directory: Path, notes: list[str]) -> dict[str, Contender]:
    """Those that could be installed and started; of the others, `notes` tells."""
    try:
        python = await asyncio.to_thread(install)
    except RivalFailed as failure:
        notes.append(f"DBOS and dask were not measured: {failure}")
        return {}
    found: dict[str, Contender] = {}
    for name, script, *arguments in (
        ("DBOS, steps of a workflow", "dbos_rival.py", "steps", str(directory)),
        ("DBOS, workflows on a queue", "dbos_rival.py", "queue", str(directory)),
        ("dask.distributed (not durable)", "dask_rival.py"),
    ):
        try:
            rival = await stack.enter_async_context(Rival(name, python, directory, script, *arguments))
        except RivalFailed as failure:
            notes.append(f"{name} was not measured: {failure}")
        else:
            found[name] = rival.run
    return found

"""Scale: what a task of a plan of ten thousand costs, beside one of a plan of a hundred."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from bench.figures import Figure, Goal, Series, ratio
from bench.shapes import Shape, layered
from bench.suite import PlanRun, Suite

SMALL = layered(layers=10, width=10)
LARGE = layered(layers=100, width=100)
SMALL_RUNS = 20
"""Of the small plan in one round: it is over too soon to measure its processor time alone."""


async def measure(directory: Path, rounds: int) -> Figure:
    """Runs many small plans and a large one in turn, `rounds` times."""
    small: list[Sequence[PlanRun]] = []
    large: list[Sequence[PlanRun]] = []
    async with Suite(directory) as suite:
        await suite.run_plan(SMALL)  # warms everything up
        for _ in range(rounds):
            small.append([await suite.run_plan(SMALL) for _ in range(SMALL_RUNS)])
            large.append([await suite.run_plan(LARGE)])
        peak_mb = suite.dispatcher_peak_mb()
    small_ms = _per_task("small plan: wall time per task", SMALL, small, lambda run: run.seconds)
    large_ms = _per_task("large plan: wall time per task", LARGE, large, lambda run: run.seconds)
    small_cpu = _per_task("small plan: dispatcher's CPU per task", SMALL, small, lambda run: run.dispatcher_cpu_s)
    large_cpu = _per_task("large plan: dispatcher's CPU per task", LARGE, large, lambda run: run.dispatcher_cpu_s)
    finalize = Series("large plan: finalizing → finalized", "s", [run.finalize_s for runs in large for run in runs])
    return Figure(
        f"Scale, layered plans of {len(SMALL)} and of {len(LARGE):,} tasks",
        [small_ms, large_ms, small_cpu, large_cpu, finalize],
        [
            Goal("wall time per task, large / small", ratio(large_ms, small_ms).value, "×", at_most=1.5),
            Goal("dispatcher's CPU per task, large / small", ratio(large_cpu, small_cpu).value, "×", at_most=1.5),
            Goal("finalizing the large plan, slowest", max(finalize.values), "s", at_most=10.0),
            Goal("dispatcher's memory, peak", peak_mb, "MB", at_most=300.0),
        ],
    )


def _per_task(
    label: str, shape: Shape, rounds: Sequence[Sequence[PlanRun]], cost_s: Callable[[PlanRun], float]
) -> Series:
    return Series(label, "ms", [1e3 * fmean(cost_s(run) for run in runs) / len(shape) for runs in rounds])

"""The shapes of the plans that are measured, the same for Treadle and its rivals."""

import random
from collections.abc import Sequence

from shared.spec import AgentSpec, PlanSpec, TaskSpec

Shape = Sequence[tuple[str, tuple[str, ...]]]
"""Each task's code and its predecessors' codes, predecessors first."""

SEED = 20_240_229
NOOP_AGENT = "noop"


def chain(length: int) -> Shape:
    """One task after another."""
    return [(f"T{i}", (f"T{i - 1}",) if i else ()) for i in range(length)]


def fan(width: int) -> Shape:
    """One task, then `width` that need only it, then one that needs them all."""
    middle = [(f"M{i}", ("first",)) for i in range(width)]
    return [("first", ()), *middle, ("last", tuple(code for code, _ in middle))]


def layered(layers: int, width: int, predecessors: int = 3) -> Shape:
    """Layers of equal width; each task needs some tasks of the layer before, drawn at random from a fixed seed."""
    draw = random.Random(SEED)  # noqa: S311 - the same plan in every run
    shape: list[tuple[str, tuple[str, ...]]] = []
    before: list[str] = []
    for layer in range(layers):
        codes = [f"L{layer}-{i}" for i in range(width)]
        shape += [(code, tuple(draw.sample(before, predecessors)) if before else ()) for code in codes]
        before = codes
    return shape


def noop_plan(name: str, shape: Shape) -> PlanSpec:
    """The shape as a plan for the pool `command`, with Treadle's own default of tasks at once."""
    tasks = tuple(
        TaskSpec(code=code, name=f"Task {code}", assignee=NOOP_AGENT, depends_on=depends_on, allow_no_change=True)
        for code, depends_on in shape
    )
    return PlanSpec(name=name, tasks=tasks, agents={NOOP_AGENT: AgentSpec(sdk_type="command", command=("true",))})

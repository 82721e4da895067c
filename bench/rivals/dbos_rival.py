"""DBOS with SQLite: runs shapes as durable workflows. Reads one shape a line, answers with the seconds that it took.

`python dbos_rival.py steps|queue DIRECTORY`, in the rivals' environment. Two ways that DBOS' documentation recommends:

- `steps`: one workflow; each task is a step, whose result is recorded; independent steps run concurrently by
  `asyncio.gather`, started in a fixed order.
- `queue`: each task is a workflow of its own, put on a durable queue that any number of worker processes may serve, as
  Treadle's tasks may go to any runner; the parent waits for the results.
"""

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dbos import DBOS, DBOSConfig

QUEUE = "bench"
AT_ONCE = 64
"""As many as Treadle's plans run at once by default."""
POLL_S = 0.01
"""How often the queue and the results are looked at: DBOS' default is a second, which would be all that we measure."""


@DBOS.step()
async def step(code: str) -> str:
    """A task that does nothing."""
    return "done"


@DBOS.workflow()
async def plan_of_steps(layers: Sequence[Sequence[str]]) -> None:
    """Runs each layer's tasks concurrently, and one layer after the other."""
    for layer in layers:
        await asyncio.gather(*(step(code) for code in layer))


@DBOS.workflow()
def task(code: str) -> str:
    """A task that does nothing, as a workflow."""
    return "done"


@DBOS.workflow()
def plan_on_queue(layers: Sequence[Sequence[str]]) -> None:
    """Puts each layer's tasks on the queue, and waits for them before the next."""
    for layer in layers:
        handles = [DBOS.enqueue_workflow(QUEUE, task, code) for code in layer]
        for handle in handles:
            handle.get_result(polling_interval_sec=POLL_S)


def in_layers(shape: Sequence[tuple[str, Sequence[str]]]) -> Sequence[Sequence[str]]:
    """The tasks by their distance from the beginning: those of one layer don't need one another."""
    depth: dict[str, int] = {}
    layers: list[list[str]] = []
    for code, predecessors in shape:
        depth[code] = 1 + max((depth[p] for p in predecessors), default=-1)
        if depth[code] == len(layers):
            layers.append([])
        layers[depth[code]].append(code)
    return layers


def main(way: str, directory: Path) -> None:
    """Serves until the end of standard input."""
    database = f"sqlite:///{directory / way}.sqlite"
    config: DBOSConfig = {"name": "bench", "system_database_url": database, "log_level": "ERROR"}
    DBOS(config=config)
    DBOS.launch()
    if way == "queue":
        DBOS.register_queue(QUEUE, worker_concurrency=AT_ONCE, polling_interval_sec=POLL_S)
    print("ready", flush=True)  # noqa: T201 - our answers
    for line in sys.stdin:
        layers = in_layers(json.loads(line))
        started = time.perf_counter()
        if way == "steps":
            asyncio.run(_run_steps(layers))
        else:
            DBOS.start_workflow(plan_on_queue, layers).get_result(polling_interval_sec=POLL_S)
        print(time.perf_counter() - started, flush=True)  # noqa: T201 - as above
    DBOS.destroy()


async def _run_steps(layers: Sequence[Sequence[str]]) -> None:
    await plan_of_steps(layers)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

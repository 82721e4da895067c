"""dask.distributed: runs shapes as graphs of futures. Reads one shape a line, answers with the seconds that it took.

`python dask_rival.py`, in the rivals' environment: a scheduler and two worker processes on this machine. Nothing is
durable: when the scheduler dies, so does the plan.
"""

import json
import sys
import time

from dask.distributed import Client, LocalCluster

WORKERS = 2
"""With one thread each: for tasks that do nothing, more threads are slower (measured: by half)."""


def task(code: str, *predecessors: str) -> str:
    """A task that does nothing."""
    return "done"


def main() -> None:
    """Serves until the end of standard input."""
    with (
        LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
        ) as cluster,
        Client(cluster) as client,
    ):
        print("ready", flush=True)  # noqa: T201 - our answers
        for line in sys.stdin:
            shape = json.loads(line)
            started = time.perf_counter()
            futures = {}
            for code, predecessors in shape:
                futures[code] = client.submit(task, code, *(futures[p] for p in predecessors), pure=False)
            client.gather(list(futures.values()))
            print(time.perf_counter() - started, flush=True)  # noqa: T201 - as above
            futures.clear()


if __name__ == "__main__":
    main()

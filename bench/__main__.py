"""`python -m bench [FIGURE…] [--rounds N] [--json]`: measures, prints, and exits with 1 when a goal was missed."""

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from bench import agent, api, hop, overhead, replay, scale, throughput, watch
from bench.figures import Figure

FIGURES: Mapping[str, Callable[[Path, int], Awaitable[Figure]]] = {
    "hop": hop.measure,
    "scale": scale.measure,
    "throughput": throughput.measure,
    "overhead": overhead.measure,
    "api": api.measure,
    "agent": agent.measure,
    "watch": watch.measure,
    "replay": replay.measure,
}


def main() -> int:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measures Treadle; see bench/README.md.")
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"of {', '.join(FIGURES)}; all by default")
    parser.add_argument("--rounds", type=int, default=3, help="how often each thing is measured (default: 3)")
    parser.add_argument("--json", action="store_true", help="one JSON object, instead of lines for people")
    options = parser.parse_args()
    if unknown := set(options.figures) - set(FIGURES):
        parser.error(f"there is no figure {', '.join(sorted(unknown))}; there are {', '.join(FIGURES)}")
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    figures: list[Figure] = []
    for name in options.figures or FIGURES:
        _say(f"measuring {name} …")
        figures.append(_measured(FIGURES[name], options.rounds))
        if not options.json:
            _print(figures[-1].text() + "\n")
    if options.json:
        machine = {"cpus": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()}
        _print(json.dumps({"machine": machine, "figures": [f.as_json() for f in figures]}, ensure_ascii=False))
    return 1 if any(goal.missed for figure in figures for goal in figure.goals) else 0


def _measured(measure: Callable[[Path, int], Awaitable[Figure]], rounds: int) -> Figure:
    with tempfile.TemporaryDirectory(prefix="treadle-bench-") as directory:
        return asyncio.run(_run(measure, Path(directory), rounds))


async def _run(measure: Callable[[Path, int], Awaitable[Figure]], directory: Path, rounds: int) -> Figure:
    return await measure(directory, rounds)


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())

"""Keeps mirrors quick: packs few, refs packed, a commit graph for the agents' own git.

Nothing is ever pruned: a workspace may rest on an object that no ref of the mirror reaches. And never under a live
lease: only with the mirror to ourselves, so whoever starts one meanwhile waits, at most `LONGEST_S`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from services.runner.git import GitFailed, run_git
from services.runner.git_threads import in_thread
from services.runner.in_use import alone
from services.runner.mirror import Mirror

log = logging.getLogger("treadle.runner")

PACKS_MAX = 30
LOOSE_OBJECTS_MAX = 2_000
LOOSE_REFS_MAX = 500
LONGEST_S = 60.0

# One thread and little memory; a graph although our own git does not look at it, since an agent may write one.
_BOUNDED = (
    *("-c", "pack.threads=1", "-c", "pack.windowMemory=64m", "-c", "pack.deltaCacheSize=64m"),
    *("-c", "repack.writeBitmaps=false", "-c", "core.commitGraph=true"),
)


async def maintain_mirrors(data_dir: Path) -> list[Path]:
    """Looks after every mirror that needs it and that nobody uses just now; returns those that were."""
    with low_priority_thread() as thread:
        return [mirror for mirror in sorted((data_dir / "mirrors").glob("*.git")) if await _maintained(mirror, thread)]


async def _maintained(mirror: Path, thread: ThreadPoolExecutor) -> bool:
    try:
        async with asyncio.timeout(LONGEST_S):
            return await in_thread(lambda: maintain(mirror), thread)
    except TimeoutError:
        log.warning("%s could not be put in order within %d s; it is used as it is", mirror, LONGEST_S)
    except (GitFailed, OSError) as error:
        log.warning("%s could not be put in order; it is used as it is: %s", mirror, error)
    return False


def maintain(mirror: Path) -> bool:
    """Puts one mirror in order if that is worth it and nobody uses it; whether it did. Raises `GitFailed`. Blocks."""
    if not is_worth_it(mirror):
        return False
    try:
        with alone(mirror, wait=False), Mirror(mirror, "").locked():
            for command in (
                # Geometric: small packs become one and big ones stay, so it costs what is new. It takes packs and loose
                # objects whole, reached by a ref or not.
                ("repack", "--geometric=2", "-d", "-q"),
                ("pack-refs", "--all"),
                ("commit-graph", "write", "--reachable", "--no-progress"),
            ):
                run_git(*_BOUNDED, *command, doing=f"{command[0]} of {mirror}", git_dir=mirror)
    except BlockingIOError:
        return False  # somebody works with it: there will be another time
    return True


def is_worth_it(mirror: Path) -> bool:
    """Whether a mirror has become slow to use."""
    packs = _more_than(PACKS_MAX, mirror.glob("objects/pack/*.pack"))
    loose = _more_than(LOOSE_OBJECTS_MAX, mirror.glob("objects/[0-9a-f][0-9a-f]/*"))
    return packs or loose or _more_than(LOOSE_REFS_MAX, mirror.glob("refs/**/*"))


def _more_than(count: int, found: Iterator[Path]) -> bool:
    return next(islice(found, count, None), None) is not None


@contextmanager
def low_priority_thread() -> Iterator[ThreadPoolExecutor]:
    """A thread whose processes give way to everybody else's."""
    with ThreadPoolExecutor(1, "maintenance", initializer=_give_way) as thread:
        yield thread


def _give_way() -> None:
    if sys.platform == "linux":  # where it means this thread and what it starts; elsewhere it would be all of us
        os.setpriority(os.PRIO_PROCESS, 0, 19)

"""Looks after this machine's data directory, at a runner's start and from then on every few minutes.

Runners that share a directory may all do it: what one is at, the others wait for or pass over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from services.runner.caches import SetupCaches
from services.runner.git_threads import in_thread
from services.runner.maintenance import maintain_mirrors
from services.runner.sweep import sweep

log = logging.getLogger("treadle.runner")

EVERY_S = 600.0


async def keep_house(
    data_dir: Path, caches: SetupCaches, threads: ThreadPoolExecutor, came_back: asyncio.Event, every_s: float = EVERY_S
) -> None:
    """For ever. Begins when this runner has handed back what its former life held: before, that is no orphan."""
    await came_back.wait()
    first = True
    while True:
        with _tried(data_dir / "work"):
            swept = await sweep(data_dir, threads)
            if first and swept.kept:
                words = "%d workspaces hold work that was never pushed: `treadle workspaces` lists them"
                log.warning(words, len(swept.kept))
        with _tried(data_dir / "mirrors"):
            for mirror in await maintain_mirrors(data_dir):
                log.info("put %s in order", mirror)
        with _tried(data_dir / "caches"):
            for cache in await in_thread(caches.bound, threads):
                log.info("the caches had grown too large: removed %s", cache)
        first = False
        await asyncio.sleep(every_s)


@contextmanager
def _tried(place: Path) -> Iterator[None]:
    """Whatever goes wrong here, a full disk or what an agent has left: the work goes on, and this is tried again."""
    try:
        yield
    except Exception:
        log.exception("%s could not be looked after", place)

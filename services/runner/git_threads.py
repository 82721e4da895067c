"""Threads for what blocks on git and on locks: a remote that hangs holds up nobody else."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from services.runner.git import GitFailed, GitStopped, MergeConflict, Stop

T = TypeVar("T")

log = logging.getLogger("treadle.runner")

GIT_THREADS = 64
STUCK_S = 5.0
"""How long work that was told to stop is waited for, when its git is dead."""

_EXPECTED = (type(None), GitStopped, GitFailed, MergeConflict, OSError)
_stuck: list[asyncio.Future[Any]] = []


def git_threads() -> ThreadPoolExecutor:
    """Threads for what blocks on git: more than a runner has slots."""
    return ThreadPoolExecutor(GIT_THREADS, thread_name_prefix="git")


async def in_thread(work: Callable[[], T], threads: ThreadPoolExecutor) -> T:
    """Runs blocking git work in a thread; raises what it raises.

    Cancelled, it kills git and waits for the thread: what follows may remove the files under its feet. But not for
    ever (`STUCK_S`): what hangs on a file is left behind, so that the runner can go on. The threads are none of
    asyncio's few.
    """
    stop = Stop()
    doing = asyncio.get_running_loop().run_in_executor(threads, stop.during, work)
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        stop.ask()
        await _ended(doing)
        raise


async def _ended(doing: asyncio.Future[T]) -> None:
    deadline = time.monotonic() + STUCK_S
    while not doing.done() and (left_s := deadline - time.monotonic()) > 0:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait((doing,), timeout=left_s)
    if not doing.done():
        _stuck.append(doing)
        log.error("a thread hangs and is left behind: its files can't be read or written; look at the disk")
    elif not doing.cancelled() and not isinstance(error := doing.exception(), _EXPECTED):
        log.error("work that was to stop ended in a fault", exc_info=error)


def hangs() -> bool:
    """Whether a thread that was left behind still hangs: this process can't end by itself then."""
    return not all(doing.done() for doing in _stuck)

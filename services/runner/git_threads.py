"""Threads for what blocks on git and on locks: a remote that hangs holds up nobody else."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from services.runner.git import GitFailed, GitStopped, MergeConflict, Stop

T = TypeVar("T")

GIT_THREADS = 64


def git_threads() -> ThreadPoolExecutor:
    """Threads for what blocks on git: more than a runner has slots."""
    return ThreadPoolExecutor(GIT_THREADS, thread_name_prefix="git")


async def in_thread(work: Callable[[], T], threads: ThreadPoolExecutor) -> T:
    """Runs blocking git work in a thread; raises what it raises.

    Cancelled, it kills git and waits for the thread: what follows may remove the files under its feet. The threads are
    none of asyncio's few.
    """
    stop = Stop()
    doing = asyncio.get_running_loop().run_in_executor(threads, stop.during, work)
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        stop.ask()
        while not doing.done():
            with contextlib.suppress(asyncio.CancelledError, GitStopped, GitFailed, MergeConflict, OSError):
                await asyncio.shield(doing)
        raise

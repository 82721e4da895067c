"""Says on disk what of the data directory is in use, so that no runner of this machine removes it from under a lease.

Kernel locks on files that stay: they end with the process that holds them, however it ends.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.runner.git import end_if_stopped

_AGAIN_S = 0.05


@contextmanager
def in_use(path: Path) -> Iterator[None]:
    """Keeps others from removing `path`, which need not exist yet. Any number may use it at once. Blocks."""
    with _locked(path, fcntl.LOCK_SH):
        yield


@contextmanager
def alone(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Waits until nobody uses `path`, and keeps everybody from it. Blocks; raises `GitStopped` when told to stop.

    Without `wait` raises `BlockingIOError` where somebody uses it.
    """
    with _locked(path, fcntl.LOCK_EX, wait=wait):
        yield


def lock_of(path: Path) -> Path:
    """The lock's file."""
    return path.with_name(f".{path.name}.in-use")


@contextmanager
def _locked(path: Path, kind: int, *, wait: bool = True) -> Iterator[None]:
    lock = lock_of(path)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        while True:
            end_if_stopped()
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not wait:
                    raise
                # A wait in flock itself could not be stopped.
                time.sleep(_AGAIN_S)
        yield

"""Says on disk what of the data directory is in use, so that no runner of this machine removes it from under a lease.

Kernel locks on files: they end with the process that holds them, however it ends. A file that is left over tells that
its holder was killed; whoever removes one holds its lock.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from services.runner.git import checked_ids, end_if_stopped

_AGAIN_S = 0.05
_HELD = "held"


@contextmanager
def in_use(path: Path) -> Iterator[None]:
    """Keeps others from removing `path`, which need not exist yet. Any number may use it at once. Blocks."""
    with _locked(lock_of(path), fcntl.LOCK_SH):
        yield


@contextmanager
def alone(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Waits until nobody uses `path`, and keeps everybody from it. Blocks; raises `GitStopped` when told to stop.

    Without `wait` raises `BlockingIOError` where somebody uses it.
    """
    with _locked(lock_of(path), fcntl.LOCK_EX, wait=wait):
        yield


def lock_of(path: Path) -> Path:
    """The lock's file."""
    return path.with_name(f".{path.name}.in-use")


class LeaseName(NamedTuple):
    """A lease, as files and processes of it are named."""

    plan: str
    task: str
    lease: int


@contextmanager
def lease_in_use(data_dir: Path, plan: str, task: str, lease: int) -> Iterator[None]:
    """Says that the lease lives here: none of its processes, files and directories is swept. Blocks for a moment.

    To be held from before anything of the lease is made until all of it was tidied up.
    """
    lock = _lock_of_lease(data_dir, LeaseName(plan, task, lease))
    with _locked(lock, fcntl.LOCK_EX):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextmanager
def orphan(data_dir: Path, name: LeaseName) -> Iterator[None]:
    """Held by who clears up behind a lease that was killed. Raises `BlockingIOError` where the lease may live.

    One without a lock of its own is what was kept of an ended lease, or a runner of an older version has it: then
    nobody may be at work for its plan.
    """
    lock = _lock_of_lease(data_dir, name)
    if lock.exists():
        with _locked(lock, fcntl.LOCK_EX, wait=False):
            yield
            lock.unlink(missing_ok=True)
    else:
        with alone(data_dir.resolve() / "work" / name.plan, wait=False):
            yield


def lives(data_dir: Path, name: LeaseName) -> bool:
    """Whether a runner of this machine has the lease in its hands, as far as the locks tell."""
    try:
        with _lock_of_lease(data_dir, name).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def leases_left(data_dir: Path) -> list[LeaseName]:
    """The leases that live here, and those whose runner was killed."""
    found = []
    for lock in (data_dir.resolve() / _HELD).glob("*"):
        plan, _, rest = lock.name.partition(".")
        task, _, lease = rest.rpartition(".")
        with suppress(ValueError):  # something else's file
            checked_ids(plan, task, int(lease))
            found.append(LeaseName(plan, task, int(lease)))
    return sorted(found)


def _lock_of_lease(data_dir: Path, name: LeaseName) -> Path:
    checked_ids(*name)
    return data_dir.resolve() / _HELD / f"{name.plan}.{name.task}.{name.lease}"


@contextmanager
def _locked(lock: Path, kind: int, *, wait: bool = True) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with lock.open("a") as file:
            if not _take(file.fileno(), kind, wait=wait):
                # A wait in flock itself could not be stopped.
                time.sleep(_AGAIN_S)
            elif _is_same(file.fileno(), lock):
                yield
                return


def _take(descriptor: int, kind: int, *, wait: bool) -> bool:
    end_if_stopped()
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        if wait:
            return False
        raise
    return True


def _is_same(descriptor: int, lock: Path) -> bool:
    """Whether the file is still there: whoever held it before us may have removed it."""
    try:
        there, held = lock.stat(), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)

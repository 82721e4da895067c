"""Clears up behind runners that were killed and did not come back, or came back to other work.

What tells a lease that nobody holds from one that another runner of this machine works on is its lock (`in_use`), never
a name or an age. Only leases that have left a trace in this data directory are looked at: the processes of another
installation carry the same kind of mark.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec

from services.runner.git import GitFailed, checked_ids
from services.runner.git_threads import in_thread
from services.runner.in_use import LeaseName, alone, leases_left, lock_of, orphan
from services.runner.process import end_lease, lease_mark, lease_marks
from services.runner.workspace import holds_unsaved_work, remove_tree, remove_workspace

log = logging.getLogger("treadle.runner")

_HALVES = (".new", ".gone")
"""How a workspace is called while it is made, and while it is removed; with a dot before it."""


class Swept(msgspec.Struct, frozen=True):
    """What a sweep did."""

    processes: tuple[LeaseName, ...] = ()
    """Leases whose processes were ended."""
    removed: tuple[Path, ...] = ()
    kept: tuple[Path, ...] = ()
    """Workspaces with work that was never pushed."""

    def __add__(self, other: Swept) -> Swept:
        return Swept(self.processes + other.processes, self.removed + other.removed, self.kept + other.kept)


async def sweep(data_dir: Path, threads: ThreadPoolExecutor) -> Swept:
    """Ends and removes what belongs to no live lease; one runner of the machine at a time. May be repeated."""
    with ExitStack() as held:
        await in_thread(lambda: held.enter_context(alone(data_dir / "held" / "sweep")), threads)
        swept, marks = Swept(), await in_thread(lease_marks, threads)
        for name in await in_thread(lambda: traces(data_dir), threads):
            swept += await _sweep_lease(data_dir, name, marks, threads)
        await in_thread(lambda: remove_stale_locks(data_dir), threads)
    for path in swept.removed:
        log.info("left by a runner that was killed: removed %s", path)
    return swept


async def _sweep_lease(data_dir: Path, name: LeaseName, marks: set[str], threads: ThreadPoolExecutor) -> Swept:
    swept, mark = Swept(), lease_mark(*name)
    with ExitStack() as held, suppress(BlockingIOError):
        await in_thread(lambda: held.enter_context(orphan(data_dir, name)), threads)
        if mark in marks:
            await end_lease(mark)
            log.warning("left by a runner that was killed: ended the processes of %s", mark)
            swept += Swept(processes=(name,))
        try:
            swept += await in_thread(lambda: _clear(data_dir, name), threads)
        except Exception:  # whatever it is, it must not keep the others from being cleared up
            place = data_dir / "work" / name.plan / f"{name.task}-{name.lease}"
            log.exception("what %s left in %s can't be removed: look at it, then use treadle clean", mark, place)
    return swept


def _clear(data_dir: Path, name: LeaseName) -> Swept:
    """Removes what a lease that has ended left on disk, but for work that exists nowhere else."""
    place = data_dir / "work" / name.plan / f"{name.task}-{name.lease}"
    halves = [place.with_name(f".{place.name}{suffix}") for suffix in _HALVES]
    scratch = data_dir / "scratch" / f"{name.plan}-{name.task}-{name.lease}"
    going = [path for path in (*halves, scratch) if path.exists() and _removed(path)]
    if not place.exists():
        return Swept(removed=tuple(going))
    try:
        unsaved = holds_unsaved_work(place, name.task)
    except GitFailed as error:
        log.warning("%s is kept, since nobody can tell what is in it: %s", place, error)
        unsaved = True
    if unsaved:
        return Swept(removed=tuple(going), kept=(place,))
    remove_workspace(place)
    return Swept(removed=(*going, place))


def _removed(path: Path) -> bool:
    try:
        remove_tree(path)
    except OSError as error:  # the rest goes all the same
        log.error("left by a runner that was killed: %s can't be removed (%s); look at it", path, error)
        return False
    return True


def traces(data_dir: Path) -> list[LeaseName]:
    """Every lease that has left something in the data directory, live ones included."""
    return sorted({*leases_left(data_dir), *_workspaces(data_dir), *_scratch(data_dir)})


def remove_stale_locks(data_dir: Path) -> None:
    """Removes the locks of plans and mirrors that are not here any more, and a plan's directory when it is empty."""
    for lock in (
        *data_dir.glob("work/.*.in-use"),
        *data_dir.glob("mirrors/.*.in-use"),
        *data_dir.glob("caches/.*.in-use"),
    ):
        place = lock.with_name(lock.name.removeprefix(".").removesuffix(".in-use"))
        with suppress(BlockingIOError), alone(place, wait=False):
            with suppress(OSError):  # not there, or not empty
                place.rmdir()
            if not place.exists():
                lock_of(place).unlink(missing_ok=True)


def _workspaces(data_dir: Path) -> Iterator[LeaseName]:
    for path in data_dir.glob("work/*/*"):
        name = path.name
        for suffix in _HALVES:
            if name.startswith(".") and name.endswith(suffix):
                name = name.removeprefix(".").removesuffix(suffix)
        yield from _named(path.parent.name, name)


def _scratch(data_dir: Path) -> Iterator[LeaseName]:
    for path in data_dir.glob("scratch/*"):
        plan, _, rest = path.name.partition("-")
        yield from _named(plan, rest)


def _named(plan: str, rest: str) -> Iterator[LeaseName]:
    task, _, lease = rest.rpartition("-")
    with suppress(ValueError):  # somebody else's file: it is not ours to remove
        checked_ids(plan, task, int(lease))
        yield LeaseName(plan, task, int(lease))

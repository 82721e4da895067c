"""What set-up has downloaded, kept for the next workspace: one cache for each project and
repository, which only the runner writes.

    caches/<cache>/         shared: read-only for whatever runs in a workspace
        pip/ npm/ uv/ xdg/
        .kept/<digest>      a set-up that was kept, by its base commit and commands
    scratch/<lease>/cache/  a lease's own view, which it may write: large files are links to the shared ones, small ones
                            copies, since npm appends to them; pip uses no cache that it can't write

Who may fill it: set-up in a workspace at the plan's own base commit, before any agent's work is in it. What such a
set-up added to its view is moved over when it has succeeded, by us and not by it. So no agent, and nothing that an
agent wrote, ever decides what others install. The first one to set a base commit up has the others wait, and then they
find it all here.

Without a sandbox nothing keeps an agent from the runner's files; the shared ones are made read-only all the same.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import shutil
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import takewhile
from pathlib import Path

import msgspec

from services.runner.git_threads import in_thread
from services.runner.in_use import alone, in_use
from services.runner.mirror import Mirror
from services.runner.workspace import remove_tree, size_bytes

log = logging.getLogger("treadle.runner")

PARTS = {
    "pip": "PIP_CACHE_DIR",
    "npm": "npm_config_cache",
    "uv": "UV_CACHE_DIR",
    "xdg": "XDG_CACHE_HOME",
}
"""What tools call the directory that they cache in."""
COPIED_MAX_BYTES = 64 * 1024
"""Smaller files are copied into a view: as quick as a link, and a program may append to them."""
DEPTH_MAX = 40
"""How many directories deep a cache is kept: a set-up can nest more than there is a path for."""
WAIT_S = 600.0
"""How long others wait for the one that fills; then they do their set-up beside it."""
FAILED_AGAIN_S = 600.0
"""After a set-up that failed the next one to fill is not looked for at once: a hundred would fail one after another."""

_KEPT = ".kept"
_FAILED = "failed"
_PARTIAL = ".partial-of-treadle"
_AGAIN_S = 0.1


@dataclass(frozen=True)
class LeaseCache:
    """A lease's part in a cache; made by `SetupCaches.for_lease`."""

    shared: Path
    """To be seen by the lease's processes, under this very path, and never written by them."""
    view: Path
    """To be seen and written by the lease's processes, under this very path."""

    @property
    def environment(self) -> Mapping[str, str]:
        """What tells tools to use the view; the same for set-up, the agent and verification."""
        return {variable: str(self.view / part) for part, variable in PARTS.items()} | {
            # uv would otherwise put links to our files into a virtual environment.
            "UV_LINK_MODE": "copy",
        }


class SetupCaches:
    """The caches of a data directory."""

    def __init__(self, data_dir: Path, max_bytes: int, threads: ThreadPoolExecutor) -> None:
        self._root = data_dir.resolve() / "caches"
        self._max_bytes = max_bytes
        self._threads = threads

    @contextmanager
    def for_lease(self, mirror: Mirror, scratch: Path) -> Iterator[LeaseCache]:
        """The cache of a mirror's repository and project for one lease, not removed as long as this is open. Blocks.

        `scratch` is the lease's own; removing it removes the view.
        """
        cache = LeaseCache(cache_of(self._root.parent, mirror), scratch.resolve() / "cache")
        with in_use(cache.shared):
            for part in PARTS:
                (cache.shared / part).mkdir(parents=True, exist_ok=True)
                (cache.view / part).mkdir(parents=True, exist_ok=True)
            os.utime(cache.shared)  # when it was last used
            yield cache

    @asynccontextmanager
    async def setting_up(
        self, cache: LeaseCache, base_commit: str, setup: Sequence[str], *, trusted: bool, wait_s: float = WAIT_S
    ) -> AsyncIterator[None]:
        """Around a lease's set-up: before it the view is made, after it what is new is kept, if this lease may.

        To be used where there is no set-up too, since the view is for the agent as well. `trusted`: the workspace is at
        the plan's base commit, and nothing else was put into it. A set-up that raises is one that failed. All its
        processes must have ended when the block does.
        """
        kept = cache.shared / _KEPT / _digest(base_commit, setup)
        with ExitStack() as held:
            fills = bool(trusted and setup) and await _is_first(cache.shared, kept, wait_s, held)
            if not fills:
                held.close()
            await in_thread(lambda: self._show(cache), self._threads)
            try:
                yield
            except Exception:
                if fills:
                    _note(kept, _FAILED)
                raise
            if fills:
                await in_thread(lambda: self._keep(cache), self._threads)
                _note(kept, "")

    def bound(self) -> list[Path]:
        """Removes caches that nobody uses just now until the rest is small enough, the longest unused first. Blocks."""
        caches = [path for path in self._root.glob("*") if not path.name.startswith(".")]
        sizes = {path: size_bytes(path) for path in caches}
        removed = []
        for path in sorted(caches, key=lambda path: path.stat().st_mtime):
            if sum(sizes.values()) <= self._max_bytes:
                break
            with suppress(BlockingIOError):
                remove_cache(path, wait=False)
                removed.append(path)
                del sizes[path]
        return removed

    def _show(self, cache: LeaseCache) -> None:
        try:
            make_view(cache)
        except OSError:
            log.exception("%s could not be shown to a lease, which downloads what it needs", cache.shared)

    def _keep(self, cache: LeaseCache) -> None:
        if size_bytes(self._root) >= self._max_bytes:
            log.warning("%s is full: what this set-up has downloaded is not kept for others", self._root)
            return
        try:
            keep_new(cache)
        except OSError:
            log.exception(
                "what a set-up has downloaded could not be kept in %s; others download it again", cache.shared
            )


def cache_of(data_dir: Path, mirror: Mirror) -> Path:
    """Where the cache of a mirror's repository and project is; projects share none, whatever mirror they share."""
    project = f"-{sha256(mirror.project.encode()).hexdigest()[:16]}" if mirror.project else ""
    return data_dir.resolve() / "caches" / f"{mirror.path.stem}{project}"


def remove_cache(path: Path, *, wait: bool = True) -> None:
    """Removes a cache once nobody uses it; harmless when there is none. Raises `BlockingIOError` without `wait`."""
    with alone(path, wait=wait):
        remove_tree(path)


def make_view(cache: LeaseCache) -> None:
    """Makes a lease's view of what is in the cache."""
    for part in PARTS:
        _show_directory(str(cache.shared / part), str(cache.view / part))


def keep_new(cache: LeaseCache) -> None:
    """Moves what is new in the view, or was changed there, to where others find it."""
    for part in PARTS:
        # None of these is a link that set-up has put there: what that leads to is not for others to read.
        for directory in _directories(cache.view / part):
            there = cache.shared / directory.relative_to(cache.view)
            there.mkdir(parents=True, exist_ok=True)
            for entry in _entries(directory):
                if entry.is_symlink():
                    _keep_link(cache, entry, there / entry.name)
                elif not _is_known(entry, there / entry.name):
                    _keep_file(entry, there / entry.name)


async def _is_first(shared: Path, kept: Path, wait_s: float, held: ExitStack) -> bool:
    """Whether the cache is ours to fill, which `held` then holds; waits for who does it already."""
    lock = held.enter_context((shared / ".filling").open("a"))
    deadline = time.monotonic() + wait_s
    while not _is_settled(kept) and time.monotonic() < deadline:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            await asyncio.sleep(_AGAIN_S)
            continue
        return not _is_settled(kept)
    return False


def _is_settled(kept: Path) -> bool:
    """Whether nobody needs to fill the cache with this set-up: it was kept, or failed a moment ago."""
    try:
        return kept.read_text() != _FAILED or kept.stat().st_mtime > time.time() - FAILED_AGAIN_S
    except FileNotFoundError:
        return False


def _note(kept: Path, how: str) -> None:
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(how)


def _digest(base_commit: str, setup: Sequence[str]) -> str:
    return sha256(msgspec.json.encode([base_commit, *setup])).hexdigest()[:32]


def _directories(top: Path) -> Iterator[Path]:
    """A directory and those in it, but for links and what lies deeper than any tool's cache."""
    level = [top] if top.is_dir() and not top.is_symlink() else []
    for _ in range(DEPTH_MAX):
        yield from level
        below = (entry for directory in level for entry in os.scandir(directory))
        level = [Path(entry.path) for entry in below if entry.is_dir(follow_symlinks=False)]


def _entries(directory: Path) -> Iterator[Path]:
    """The files and the links in a directory; the links to directories too, and nothing that is neither."""
    for entry in os.scandir(directory):
        if entry.name.endswith(_PARTIAL):
            continue  # on its way here just now, or left by a runner that was killed
        if entry.is_symlink() or entry.is_file(follow_symlinks=False):
            yield Path(entry.path)


def _show_directory(shared: str, view: str) -> None:
    """Text and not paths, and no more calls than it takes: a cache may have tens of thousands of files."""
    with suppress(FileExistsError):
        os.mkdir(view)  # noqa: PTH102 - as said above
    with os.scandir(shared) as entries:
        for entry in entries:
            place = f"{view}/{entry.name}"
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), place)  # noqa: PTH115, PTH211 - as said above
            elif entry.is_dir():
                _show_directory(entry.path, place)
            elif entry.name.endswith(_PARTIAL):
                continue  # on its way here just now, or left by a runner that was killed
            elif (status := entry.stat()).st_size > COPIED_MAX_BYTES:
                os.symlink(entry.path, place)  # noqa: PTH211 - as said above
            else:
                _copy_small(entry.path, place, status)


def _copy_small(source: str, place: str, status: os.stat_result) -> None:
    with open(source, "rb", 0) as read, open(place, "xb", 0) as write:  # noqa: PTH123 - as said above
        write.write(read.read())
        # By the time it is known again; its owner may write it, as the shared one can't be.
        os.utime(write.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
        if status.st_mode & 0o111:
            os.fchmod(write.fileno(), 0o755)


def _is_known(entry: Path, place: Path) -> bool:
    """Whether it is the copy that we made."""
    if not place.exists():
        return False
    ours, theirs = place.stat(), entry.stat()
    return (ours.st_size, ours.st_mtime_ns) == (theirs.st_size, theirs.st_mtime_ns)


def _keep_file(entry: Path, place: Path) -> None:
    status = entry.lstat()
    partial = place.with_name(f".{place.name[:200]}.{os.getpid()}{_PARTIAL}")
    # One with another name elsewhere, in the workspace maybe, is somebody's to change.
    moves = status.st_size > COPIED_MAX_BYTES and status.st_nlink == 1
    if moves:
        entry.rename(partial)
    else:
        shutil.copy2(entry, partial, follow_symlinks=False)
    partial.chmod(0o444 | (status.st_mode & 0o111))
    partial.replace(place)
    if moves:
        entry.symlink_to(place)


def _keep_link(cache: LeaseCache, entry: Path, place: Path) -> None:
    """A link between files of the cache, as uv makes them. One that leads elsewhere is nobody else's business."""
    target = entry.readlink()
    if target.is_absolute():
        if not target.is_relative_to(cache.view):
            return  # ours, to a shared file, or out of the cache
        target = Path(os.path.relpath(target, entry.parent))
    up = len(list(takewhile(lambda part: part == "..", target.parts)))
    if ".." in target.parts[up:] or up >= len(entry.relative_to(cache.view).parts):
        return
    if place.is_symlink():
        place.unlink()
    if not place.exists():
        place.symlink_to(target)

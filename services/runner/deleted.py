"""Removes from this machine what belonged to projects that were deleted.

The stream `TREADLE_PROJECTS` says which; how far this runner has come in it is noted in its own directory. Runners that
share a data directory may all do it: what is gone already stays gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.errors import APIError

from services.runner.caches import cache_of, remove_cache
from services.runner.git import GitFailed, run_git
from services.runner.git_threads import in_thread
from services.runner.in_use import alone, lock_of
from services.runner.mirror import Mirror, mirror_of
from services.runner.watch.collab import collab_of
from services.runner.workspace import borrowed_mirrors, place_of_plan, remove_tree, remove_workspace
from shared.requests import ProjectDeleted
from shared.streams import PROJECTS
from shared.subjects import MANY_PROJECT_EVENTS, PLAN_ID
from shared.tail import follow_messages

log = logging.getLogger("treadle.runner")

AGAIN_S = 1.0


class DeletedProjects:
    """Follows the stream, for one runner."""

    def __init__(self, nc: Client, data_dir: Path, position_file: Path, threads: ThreadPoolExecutor) -> None:
        self._nc = nc
        self._data_dir = data_dir
        self._position_file = position_file
        self._threads = threads

    async def run(self) -> None:
        """Removes what is to be removed, for ever; what lies behind is caught up with first."""
        after = await self._begin_after()
        async for arrived in follow_messages(self._nc, PROJECTS, after=after, filters=(MANY_PROJECT_EVENTS,)):
            for message in arrived.messages:
                await self._handle(message)

    async def _handle(self, message: Msg) -> None:
        seq = message.metadata.sequence.stream
        try:
            deleted = msgspec.json.decode(message.data, type=ProjectDeleted)
            await in_thread(lambda: remove_project(self._data_dir, deleted), self._threads)
        except msgspec.DecodeError as error:
            log.error("sequence %d of the stream of projects is skipped: %s", seq, error)
        except Exception:
            # It would fail again, and must not keep us from all that comes after it.
            log.exception("a deleted project's data could not all be removed: look at it, then use treadle clean")
        partial = self._position_file.with_suffix(".partial")
        partial.write_text(f"{seq}\n")
        partial.replace(self._position_file)

    async def _begin_after(self) -> int:
        while True:
            try:
                newest = (await self._nc.jetstream().stream_info(PROJECTS)).state.last_seq
            except (NatsError, APIError, TimeoutError):
                await asyncio.sleep(AGAIN_S)
                continue
            position = self._position()
            return position if position <= newest else 0  # else it is from a bus of another life

    def _position(self) -> int:
        try:
            return int(self._position_file.read_text())
        except (FileNotFoundError, ValueError):  # the first life, or torn by a power cut: removing again is harmless
            return 0


def remove_project(data_dir: Path, deleted: ProjectDeleted) -> None:
    """Removes what this data directory holds of the project, and logs it. May be repeated. Blocks.

    Waits for the leases of its plans on this machine. A mirror stays as long as anything else needs it.
    """
    data_dir = data_dir.resolve()
    for plan in deleted.plans:
        if PLAN_ID.fullmatch(plan):
            _remove_plan(data_dir, plan)
        else:
            log.error("project %s was deleted with a plan that is none: %r", deleted.project, plan)
    for url in deleted.repo_urls:
        try:
            # The one without a project may hold what this project's credentials brought, before each had its own.
            mirrors = [mirror_of(data_dir, url, project) for project in (deleted.project, "")]
        except ValueError as error:
            log.error("project %s was deleted with a repository that is none: %s", deleted.project, error)
            continue
        _remove_collab(data_dir, deleted.project, url)
        for mirror in mirrors:
            _remove_cache(data_dir, mirror)
            _remove_mirror(data_dir, mirror)


def _remove_plan(data_dir: Path, plan: str) -> None:
    place = place_of_plan(data_dir, plan)
    with alone(place):
        if place.is_dir() and not place.is_symlink():
            for workspace in sorted(place.iterdir()):
                _removed(workspace, remove_workspace)
        _removed(place, remove_tree)
        for scratch in sorted((data_dir / "scratch").glob(f"{plan}-*")):
            _removed(scratch, remove_tree)
        for head in sorted((data_dir / "mirrors").glob("*.git/HEAD")):
            try:
                _remove_refs(Mirror(head.parent, ""), plan)
            except (GitFailed, OSError) as error:  # a broken mirror must not keep the others' refs alive
                log.error("%s may hold more of plan %s; if it is broken, remove it: %s", head.parent, plan, error)
        lock_of(place).unlink(missing_ok=True)


def _removed(path: Path, remove: Callable[[Path], None]) -> None:
    try:
        remove(path)
    except OSError as error:  # the rest goes all the same
        log.error("its project was deleted, but %s can't be removed (%s): look at it, then remove it", path, error)
    else:
        log.info("its project was deleted: removed %s", path)


def _remove_refs(mirror: Mirror, plan: str) -> None:
    """Removes a mirror's copies of a plan's refs."""
    patterns = (f"refs/treadle/{plan}/", f"refs/fetched/{plan}/", f"refs/heads/treadle/{plan}")
    listing = ("for-each-ref", "--format=delete %(refname)", *patterns)
    with mirror.locked():
        found = run_git(*listing, doing=f"looking for refs of {plan}", git_dir=mirror.path).out
        if found:
            run_git("update-ref", "--stdin", doing=f"removing refs of {plan}", git_dir=mirror.path, stdin=found)
            log.info("their project was deleted: removed %d refs of %s", len(found.splitlines()), mirror.path)


def _remove_cache(data_dir: Path, mirror: Mirror) -> None:
    """What the project's set-ups have downloaded; that of another one with the same repository stays."""
    try:
        remove_cache(cache_of(data_dir, mirror), wait=False)
    except BlockingIOError:
        log.info("its project was deleted, but a task works with what %s has cached: that stays", mirror.shown)


def _remove_collab(data_dir: Path, project: str, repo_url: str) -> None:
    """What was looked through for what people deliver."""
    collab = collab_of(data_dir, project, repo_url)
    if collab.path.exists():
        collab.remove()
        log.info("its project was deleted: removed %s, the copy of %s", collab.path, collab.shown)


def _remove_mirror(data_dir: Path, mirror: Mirror) -> None:
    if not mirror.path.exists():
        return
    try:
        with alone(mirror.path, wait=False), mirror.locked():
            if mirror.path in borrowed_mirrors(data_dir):
                log.info("its project was deleted, but a workspace borrows from it: %s stays", mirror.path)
                return
            leaving = mirror.path.with_suffix(".gone")
            remove_tree(leaving)
            mirror.path.rename(leaving)  # whole or not at all: half a mirror would be taken for one
            remove_tree(leaving)
            log.info("its project was deleted: removed %s, the mirror of %s", mirror.path, mirror.shown)
    except BlockingIOError:
        log.info("its project was deleted, but a task of another one works with it: %s stays", mirror.path)

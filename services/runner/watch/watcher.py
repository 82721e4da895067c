"""The watcher: follows the log for what is waited for, and looks for it in the collaboration repositories.

Any number of them may run; `services.runner.watch.claims` says whose turn it is. Nothing is kept that is not in the log
but copies of repositories: a watcher that dies is missed by nobody.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path

from nats.aio.client import Client
from nats.aio.msg import Msg

from services.runner.git import GitFailed, masked, printable
from services.runner.git_threads import in_thread
from services.runner.redaction import Redactor
from services.runner.watch.claims import Claims, ClaimsUnavailable, Turn, pause_s
from services.runner.watch.collab import Collab, collab_of
from services.runner.watch.credentials import CannotLook, WatchCredentials
from services.runner.watch.shares import Shares
from services.runner.watch.taking import FETCHED_WITHIN_S, Taking
from services.runner.watch.watched import FILTERS, Repository, Waiting, Watched
from shared import commands as c
from shared.clock import Clock, new_id, utc_now
from shared.jetstream import JetStreamStore, read_message
from shared.requests import LookReply, LookRequest
from shared.spec import TASK_CODE
from shared.streams import EVENTS
from shared.subjects import PLAN, PLAN_ID, parse_event_subject
from shared.tail import follow_messages

log = logging.getLogger("treadle.runner.watch")

QUEUE = "watchers"
"""Of several watchers one answers."""
LOOKS_AT_ONCE = 16
LOOKS_OF_A_PROJECT = 2
"""Of those: one whose repositories hang holds up its own looks, and nobody else's."""
ANSWERS_WITHIN_S = 50.0
AGAIN_S = 1.0
NOTICES_WITHIN_S = 5.0
"""That somebody waits who wants to be looked for more often."""
FAILED_LOOKS_MIN = 2
"""One may be anything; with so many in a row nobody can say whether there is a result."""
STARTS_AT_ONCE = 8
SPREAD_MAX_S = 0.2
"""Several watchers hear of a task at once: the first one says that it runs, and the others need not."""


class SharedLook:
    """Looks of many at one repository: one is under way, and one waits that all share who came meanwhile.

    Who comes while one is under way can't have its outcome: it may have asked the repository before his push.
    """

    def __init__(self, look: Callable[[], Awaitable[str]]) -> None:
        self._look = look
        self._running: asyncio.Task[str] | None = None
        self._next: asyncio.Task[str] | None = None

    async def __call__(self) -> str:
        """The commit that was found. Raises `CannotLook`."""
        if self._next is None:
            self._next = asyncio.create_task(self._after(self._running))
            self._next.add_done_callback(_retrieved)
        return await asyncio.shield(self._next)

    async def _after(self, before: asyncio.Task[str] | None) -> str:
        if before is not None:
            await asyncio.wait({before})
        self._running, self._next = self._next, None
        try:
            return await self._look()
        finally:
            self._running = None

    @property
    def idle(self) -> bool:
        """Whether nobody looks."""
        return self._running is None and self._next is None

    async def end(self) -> None:
        """Stops what is under way."""
        tasks = [task for task in (self._running, self._next) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Watcher:
    """One runner process's."""

    def __init__(
        self,
        nc: Client,
        name: str,
        data_dir: Path,
        credentials: WatchCredentials,
        threads: ThreadPoolExecutor,
        clock: Clock = utc_now,
    ) -> None:
        """`name` is the runner's; `data_dir` is shared by the machine's runners."""
        self._nc = nc
        self._data_dir = data_dir
        self._credentials = credentials
        self._threads = threads
        self._clock = clock
        self._watched = Watched()
        self._claims = Claims(nc, f"{name}.{new_id()}", clock)
        store = JetStreamStore(nc)
        self._taking = Taking(nc, store, name, data_dir, credentials, threads, self._watched, clock)
        self._collabs: dict[Repository, Collab] = {}
        self._looks: dict[Repository, SharedLook] = {}
        self._kept: set[Repository] = set()
        self._starting: set[tuple[str, str, int]] = set()
        self._shares = Shares(LOOKS_AT_ONCE, LOOKS_OF_A_PROJECT)
        self._free_starts = asyncio.Semaphore(STARTS_AT_ONCE)
        self._code_faults: dict[tuple[str, str], datetime] = {}
        """Tasks whose commit could not be looked for, each with the first time."""
        self.looks = 0
        """How often a repository was asked."""

    @property
    def repositories(self) -> Collection[Repository]:
        """Those in which something is waited for."""
        return self._watched.repositories

    async def run(self) -> None:
        """Watches until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                await self._follow(group)
        finally:
            for look in list(self._looks.values()):
                await look.end()

    async def look(self, request: LookRequest) -> LookReply:
        """Looks now, whoever's turn it is, and takes what is new. Answers whatever happens."""
        repository = Repository(request.project, request.repo_url)
        try:
            async with asyncio.timeout(ANSWERS_WITHIN_S):
                commit = await self._look(repository)
                blob = await self._blob(repository, commit, request.path) if request.path else ""
        except CannotLook as error:
            return LookReply(fault=str(error))
        except TimeoutError:
            return LookReply(fault=f"it was not done within {ANSWERS_WITHIN_S:g} seconds: try again")
        except Exception as error:  # noqa: BLE001 - who asks hears of it, and the runner goes on
            return LookReply(fault=_unforeseen(repository, error))
        finally:
            self._tidy(repository)
        try:
            await self._claims.recover(repository)
        except ClaimsUnavailable as error:
            log.debug("%s", error)
        return LookReply(commit=commit, blob=blob)

    async def _blob(self, repository: Repository, commit: str, path: str) -> str:
        collab = self._collab(repository)
        try:
            found = await in_thread(lambda: collab.entries(commit, [path]), self._threads)
        except (GitFailed, ValueError, OSError) as error:
            raise CannotLook(_clean(str(error))) from error
        return found[path].id if path in found else ""

    # Following ----------------------------------------------------------------------------------------------------

    async def _follow(self, group: asyncio.TaskGroup) -> None:
        caught_up = False
        async for arrived in follow_messages(self._nc, EVENTS, after=0, filters=FILTERS):
            for message in arrived.messages:
                self._fold(message)
            caught_up = caught_up or arrived.caught_up
            if caught_up:  # before, it is history: what was handed out may have ended long ago
                self._tend(group)

    def _fold(self, message: Msg) -> None:
        try:
            address = parse_event_subject(message.subject)
        except ValueError as error:
            log.error("sequence %d of the log is skipped: %s", message.metadata.sequence.stream, error)
            return
        is_task = TASK_CODE.fullmatch(address.entity) is not None
        if not PLAN_ID.fullmatch(address.plan) or not (is_task or address.entity == PLAN):
            return  # a delivery, a candidate in the making, or what somebody else put there
        if not self._watched.concerns(address.plan, address.entity, address.type):
            return
        record = read_message(message)
        if record.event is None:
            log.error("sequence %d of the log can't be read: %s", record.seq, record.fault)
            return
        self._watched.apply(record.plan, record.entity, record.event, record.seq)

    def _tend(self, group: asyncio.TaskGroup) -> None:
        """Begins what is to be done now."""
        for waiting in self._watched.handed_out():
            key = (waiting.plan, waiting.task, waiting.dispatch.dispatch)
            if key not in self._starting:
                self._starting.add(key)
                group.create_task(self._start(waiting, key))
        for repository in self._watched.repositories:
            if repository not in self._kept:
                self._kept.add(repository)
                group.create_task(self._keep(repository))

    async def _start(self, waiting: Waiting, key: tuple[str, str, int]) -> None:
        await asyncio.sleep(random.uniform(0, SPREAD_MAX_S))  # noqa: S311 - spreads load, guards nothing
        failures = 0
        while await self._fails_to_start(waiting):
            failures += 1
            await asyncio.sleep(pause_s(NOTICES_WITHIN_S, failures))
        self._starting.discard(key)

    async def _fails_to_start(self, waiting: Waiting) -> bool:
        """Begins the task, unless that has been done; whether a fault that nobody has reckoned with came between."""
        async with self._free_starts:
            now = self._watched.task(waiting.plan, waiting.task)
            if now is not None and now.status == "handed_out" and now.seq == waiting.seq:
                try:
                    await self._taking.start(waiting)
                except Exception as error:
                    log.error("plan %s task %s could not begin", waiting.plan, waiting.task, exc_info=error)
                    return True
        return False

    # Looking ------------------------------------------------------------------------------------------------------

    async def _keep(self, repository: Repository) -> None:
        """Looks regularly, as long as anything is waited for there."""
        interval_s = self._watched.poll_interval_s(repository)
        await asyncio.sleep(random.uniform(0, min(SPREAD_MAX_S, interval_s / 4)))  # noqa: S311 - as above
        unforeseen = 0
        while repository in self._watched.repositories:
            try:
                wait_s = await self._take_turn(repository)
                unforeseen = 0
            except ClaimsUnavailable as error:
                log.debug("%s", error)
                wait_s = AGAIN_S
            except Exception as error:  # noqa: BLE001 - a fault of one repository's is not to end the whole runner
                _unforeseen(repository, error)
                unforeseen += 1
                wait_s = pause_s(self._watched.poll_interval_s(repository), unforeseen)
            await self._pause(repository, wait_s)
        self._kept.discard(repository)
        self._tidy(repository)

    async def _take_turn(self, repository: Repository) -> float:
        """Looks if it is our turn; returns for how many seconds there is nothing to do. Raises `ClaimsUnavailable`."""
        interval_s = self._watched.poll_interval_s(repository)
        claim = await self._claims.take(repository, interval_s)
        if isinstance(claim, float):
            return claim
        async with self._claims.held(claim):
            fault = await self._tried(repository)
        turn = await self._claims.settle(claim, failed=bool(fault))
        if fault:
            log.warning("%s (try %d in a row)", fault, turn.failures)
            await self._report(repository, fault, turn)
        return pause_s(interval_s, turn.failures) * turn.jitter

    async def _pause(self, repository: Repository, seconds: float) -> None:
        """Shorter where somebody comes who wants to be looked for more often."""
        interval_s, left_s = self._watched.poll_interval_s(repository), seconds
        while left_s > 0:
            step_s = min(left_s, NOTICES_WITHIN_S)
            await asyncio.sleep(step_s)
            left_s -= step_s
            if repository not in self._watched.repositories or self._watched.poll_interval_s(repository) < interval_s:
                return

    async def _tried(self, repository: Repository) -> str:
        """Looks; the fault, where there was one."""
        try:
            await self._look(repository)
        except CannotLook as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 - it is told as any other fault is, and tried again ever less often
            return _unforeseen(repository, error)
        return ""

    async def _look(self, repository: Repository) -> str:
        if repository not in self._looks:
            self._looks[repository] = SharedLook(partial(self._look_alone, repository))
        return await self._looks[repository]()

    async def _look_alone(self, repository: Repository) -> str:
        await self._taking.bring_up_to_date(repository)
        try:
            collab = self._collab(repository)
            async with self._shares.room(repository.project):
                async with asyncio.timeout(FETCHED_WITHIN_S):
                    access = await self._credentials.of(repository)
                    self.looks += 1
                    commit = await in_thread(lambda: collab.refresh(access), self._threads)
                faults = await self._taking.take(repository, collab, commit)
        except TimeoutError:
            shown = printable(masked(repository.repo_url))
            raise CannotLook(f"{shown} did not answer within {FETCHED_WITHIN_S:g} seconds") from None
        except (GitFailed, ValueError, OSError) as error:
            raise CannotLook(_clean(str(error))) from error
        await self._report_tasks(repository, faults)
        return commit

    def _collab(self, repository: Repository) -> Collab:
        """Raises `ValueError` for what is no repository."""
        if repository not in self._collabs:
            self._collabs[repository] = collab_of(self._data_dir, *repository)
        return self._collabs[repository]

    def _tidy(self, repository: Repository) -> None:
        """Forgets a repository in which nothing is waited for any more; its copy stays on the disk."""
        look = self._looks.get(repository)
        if repository not in self._watched.repositories and (look is None or look.idle):
            self._looks.pop(repository, None)
            self._collabs.pop(repository, None)
            self._taking.forget(repository)

    # Reporting ----------------------------------------------------------------------------------------------------

    async def _report(self, repository: Repository, fault: str, turn: Turn) -> None:
        """Says of each task that waits there that nobody can look, once that is sure."""
        if turn.failures < FAILED_LOOKS_MIN:
            return
        for waiting in self._watched.tasks(repository):
            await self._fail(waiting, fault, turn.since or self._clock())

    async def _report_tasks(self, repository: Repository, faults: dict[tuple[str, str], str]) -> None:
        """After a look that worked: what of the tasks could not be told all the same, and what can be again."""
        for waiting in self._watched.tasks(repository):
            key = (waiting.plan, waiting.task)
            if key not in faults:
                self._code_faults.pop(key, None)
                if waiting.fault_since is not None:
                    await self._taking.restore_watch(waiting)
            elif key in self._code_faults:
                await self._fail(waiting, _clean(faults[key]), self._code_faults[key])
            else:
                log.warning("plan %s task %s: %s", *key, _clean(faults[key]))
                self._code_faults[key] = self._clock()

    async def _fail(self, waiting: Waiting, reason: str, since: datetime) -> None:
        if waiting.lease and waiting.fault_since is None:
            await self._taking.fail_watch(waiting, c.FailWatch(lease=waiting.lease, reason=reason, since=since))


def _clean(text: str) -> str:
    return printable(Redactor()(text))


def _unforeseen(repository: Repository, error: Exception) -> str:
    """Puts a fault that nobody has reckoned with into the runner's log; what to say of it elsewhere."""
    shown = printable(masked(repository.repo_url))
    log.error("looking into %s ended in a fault that nobody has reckoned with", shown, exc_info=error)
    return f"looking into {shown} ended in a fault ({type(error).__name__}): the runner's log has it"


def _retrieved(task: asyncio.Task[str]) -> None:
    """Who waited for it may be gone; what went wrong is told to whoever still waits."""
    if not task.cancelled():
        task.exception()

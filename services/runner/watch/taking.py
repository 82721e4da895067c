"""Takes what lies in a collaboration repository to where it belongs: results into the log, plans to the planner."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError

from services.runner.git import GitFailed, run_git
from services.runner.git_threads import in_thread
from services.runner.in_use import in_use
from services.runner.mirror import Mirror, mirror_of
from services.runner.redaction import Redactor
from services.runner.reviews import review_summary
from services.runner.watch.collab import Collab, Entry, TooLarge
from services.runner.watch.credentials import CannotLook, WatchCredentials
from services.runner.watch.results import (
    RESULT_MAX_BYTES,
    USAGE_MAX_BYTES,
    Asked,
    Given,
    NotValid,
    in_words,
    read_result,
    read_usage,
)
from services.runner.watch.watched import PlanFile, Repository, Waiting, Watched
from shared import commands as c
from shared.clock import Clock
from shared.events import PlanCancelled, PlanCancelRequested, PlanCompleted, Result, Usage
from shared.requests import OfferRequest
from shared.spec import PLAN_MAX_BYTES
from shared.store import EventStore, EventTooLarge, Meta
from shared.subjects import PLAN, PLANNER_OFFER
from shared.task import TaskState
from shared.transact import Contended, load_task, patiently, to_task

log = logging.getLogger("treadle.runner.watch")

RUNNER = "watch"
"""As `started` names who holds a manual task: whoever watches, all of them together."""
OFFER_ANSWERED_WITHIN_S = 60.0
CODE_FETCHED_WITHIN_S = 300.0
_NO_FILE = {
    "link": "is a symbolic link, which is not followed: put the file itself there",
    "directory": "is a directory: put a file there",
    "submodule": "is a submodule, which is not looked into: put the file into this repository",
}


class Taking:
    """One watcher's hands."""

    def __init__(
        self,
        nc: Client,
        store: EventStore,
        name: str,
        data_dir: Path,
        credentials: WatchCredentials,
        threads: ThreadPoolExecutor,
        watched: Watched,
        clock: Clock,
    ) -> None:
        self._nc = nc
        self._store = store
        self._name = name
        self._data_dir = data_dir
        self._credentials = credentials
        self._threads = threads
        self._watched = watched
        self._clock = clock
        self._offered: dict[str, str] = {}
        """By plan, the file that a planner has answered for: it may have refused it without a word in the log."""

    # Beginning ----------------------------------------------------------------------------------------------------

    async def start(self, waiting: Waiting) -> TaskState | None:
        """Says that the task has begun, whichever watcher is first; None where it is not to be any more."""
        try:
            return await self._start(waiting)
        except c.Refused as error:  # what it rests on can't be read
            log.error("plan %s task %s can't begin: %s", waiting.plan, waiting.task, error)
            return None

    async def _start(self, waiting: Waiting) -> TaskState | None:
        # It was open when the task was handed out, and pausing does not concern what is in a person's hands.
        since = await patiently(partial(self._store.read, waiting.plan, PLAN, after=waiting.seq))
        ending = any(isinstance(one.event, PlanCancelRequested | PlanCancelled | PlanCompleted) for one in since)
        command = c.Start(
            phase="cancelling" if ending else "open",
            dispatch=waiting.dispatch.dispatch,
            runner=RUNNER,
            execution=f"manual-{waiting.dispatch.dispatch}",
            reopened=await self._reopened(waiting),
            deadline=self._clock() + timedelta(seconds=waiting.dispatch.timeout_s),
        )
        state = await self._tell(waiting, command)
        return state if state is not None and state.status == "running" else None

    async def _reopened(self, waiting: Waiting) -> tuple[str, ...]:
        """Predecessors that were counted as abandoned and are not any more."""
        codes = waiting.dispatch.abandoned
        states = [(await patiently(partial(load_task, self._store, waiting.plan, code))).state for code in codes]
        return tuple(
            code for code, state in zip(codes, states, strict=True) if state.status != "abandoned" or state.reopening
        )

    # Results ------------------------------------------------------------------------------------------------------

    async def take(self, repository: Repository, collab: Collab, commit: str) -> dict[tuple[str, str], str]:
        """Takes everything that is new in the commit. Returns the tasks for which that can't be told, each with why.

        Raises `GitFailed`, `CannotLook`.
        """
        tasks, files = self._watched.tasks(repository), self._watched.plan_files(repository)
        paths = [path for one in tasks for path in (one.place.path, one.usage_path)] + [file.path for file in files]
        entries = await in_thread(lambda: collab.entries(commit, paths), self._threads)
        new = [one for one in tasks if (entry := entries.get(one.place.path)) and one.is_new(entry.id)]
        new_files = [file for file in files if (entry := entries.get(file.path)) and self._is_new(file, entry)]
        if not new and not new_files:
            return {}
        contents = await self._read(repository, collab, entries, new, new_files)
        faults: dict[tuple[str, str], str] = {}
        for waiting in new:
            try:
                await self._take_result(waiting, entries, contents, collab.shown)
            except CannotLook as error:
                faults[waiting.plan, waiting.task] = str(error)
            except c.Refused as error:  # its history can't be read: the others' can
                log.error("plan %s task %s is passed over: %s", waiting.plan, waiting.task, error)
        for file in new_files:
            await self._offer(file, entries[file.path], contents)
        return faults

    async def _read(
        self,
        repository: Repository,
        collab: Collab,
        entries: Mapping[str, Entry],
        new: list[Waiting],
        new_files: list[PlanFile],
    ) -> dict[str, bytes | TooLarge]:
        wanted: dict[str, int] = {}
        limits = [(one.place.path, RESULT_MAX_BYTES) for one in new]
        limits += [(one.usage_path, USAGE_MAX_BYTES) for one in new]
        limits += [(file.path, PLAN_MAX_BYTES) for file in new_files]
        for path, most in limits:
            entry = entries.get(path)
            if entry is not None and entry.kind == "file":
                wanted[entry.id] = max(most, wanted.get(entry.id, 0))
        access = await self._credentials.of(repository)
        return await in_thread(lambda: collab.read(wanted, access), self._threads)

    async def _take_result(
        self, waiting: Waiting, entries: Mapping[str, Entry], contents: Mapping[str, bytes | TooLarge], where: str
    ) -> None:
        entry = entries[waiting.place.path]
        state = (await patiently(lambda: load_task(self._store, waiting.plan, waiting.task))).state
        if state.dispatch == waiting.dispatch.dispatch and state.status == "queued":
            state = await self.start(waiting) or state
        late = state.may_come_late
        if state.dispatch != waiting.dispatch.dispatch or not (state.status == "running" or late):
            return  # it went on meanwhile, and the fold will say so
        try:
            given = read_result(_content(entry, contents, RESULT_MAX_BYTES), _asked(waiting, state))
            if given.commit:
                await self._check_commit(waiting, given.commit)
        except NotValid as error:
            words = Redactor()(in_words(error.faults, waiting.place.path, where))
            log.info("plan %s task %s: its result is not valid (%s)", waiting.plan, waiting.task, entry.id)
            fail = c.Fail(
                now=self._clock(),
                phase="open",
                lease=state.lease,
                kind="invalid_result",
                message=words,
                usage=Usage(),
                blob=entry.id,
            )
            await self._tell(waiting, fail)
            return
        usage = self._usage(waiting, entries, contents)
        if await self._tell(waiting, _completion(state.lease, given, usage)) is not None:
            log.info("plan %s task %s: its result is there", waiting.plan, waiting.task)

    def _usage(self, waiting: Waiting, entries: Mapping[str, Entry], contents: Mapping[str, bytes | TooLarge]) -> Usage:
        entry = entries.get(waiting.usage_path)
        if entry is None:
            return Usage()
        try:
            return read_usage(_content(entry, contents, USAGE_MAX_BYTES))
        except NotValid as error:
            words = "plan %s task %s: its usage.json is passed over: %s"
            log.warning(words, waiting.plan, waiting.task, Redactor()(str(error)))
            return Usage()

    async def _check_commit(self, waiting: Waiting, commit: str) -> None:
        """Raises `NotValid` where the code repository has no such commit, `CannotLook` where it can't be asked."""
        dispatch = waiting.dispatch
        code = Repository(dispatch.project, dispatch.repo_url)
        access = await self._credentials.of(code)
        try:
            mirror = mirror_of(self._data_dir, code.repo_url, code.project, access)
            async with asyncio.timeout(CODE_FETCHED_WITHIN_S):
                missing = await in_thread(lambda: _why_missing(mirror, waiting.plan, commit), self._threads)
        except (GitFailed, ValueError, OSError) as error:
            raise CannotLook(f"the code repository can't be asked for commit {commit}: {error}") from error
        except TimeoutError:
            why = f"the code repository did not give commit {commit} within {CODE_FETCHED_WITHIN_S:g} seconds"
            raise CannotLook(why) from None
        if missing:
            raise NotValid([missing])

    # Faults -------------------------------------------------------------------------------------------------------

    async def fail_watch(self, waiting: Waiting, command: c.FailWatch) -> None:
        """Says in the log that nobody can look."""
        await self._tell(waiting, command)

    async def restore_watch(self, waiting: Waiting) -> None:
        """Says in the log that one can again."""
        await self._tell(waiting, c.RestoreWatch(now=self._clock(), lease=waiting.lease))

    async def _tell(self, waiting: Waiting, command: c.TaskCommand) -> TaskState | None:
        """None where the log refuses it: somebody else was first, or the task went on."""
        meta = Meta(actor=f"runner:{self._name}", causation=waiting.seq)
        try:
            return (await to_task(self._store, waiting.plan, waiting.task, command, meta)).state
        except (c.Refused, EventTooLarge, Contended) as error:
            log.info("plan %s task %s: %s", waiting.plan, waiting.task, error)
            return None

    # Plans --------------------------------------------------------------------------------------------------------

    async def bring_up_to_date(self, repository: Repository) -> None:
        """Folds what became of the plans that are waited for: not all of that is followed."""
        for file in self._watched.plan_files(repository):
            for record in await patiently(partial(self._store.read, file.plan, PLAN, after=file.seq)):
                if record.event is not None and self._watched.concerns(file.plan, PLAN, record.type):
                    self._watched.apply(file.plan, PLAN, record.event, record.seq)

    def _is_new(self, file: PlanFile, entry: Entry) -> bool:
        return entry.id not in (file.blob, self._offered.get(file.plan))

    async def _offer(self, file: PlanFile, entry: Entry, contents: Mapping[str, bytes | TooLarge]) -> None:
        text, fault = "", ""
        try:
            text = _content(entry, contents, PLAN_MAX_BYTES).decode("utf-8-sig")
        except NotValid as error:
            fault = str(error)
        except UnicodeDecodeError as error:
            fault = f"byte {error.start + 1} is not UTF-8: save it as UTF-8"
        body = msgspec.json.encode(OfferRequest(plan=file.plan, text=text, blob=entry.id, fault=fault))
        if len(body) > self._nc.max_payload:
            fault = "it is larger than a plan may be: split it"
            body = msgspec.json.encode(OfferRequest(plan=file.plan, text="", blob=entry.id, fault=fault))
        try:
            await self._nc.request(PLANNER_OFFER, body, timeout=OFFER_ANSWERED_WITHIN_S)
        except (NatsError, TimeoutError, OSError) as error:
            log.warning("no planner took the plan file of %s (%s): it is offered again", file.plan, error)
            return
        log.info("plan %s: its file was offered to the planner", file.plan)
        self._offered[file.plan] = entry.id


def _content(entry: Entry, contents: Mapping[str, bytes | TooLarge], most: int) -> bytes:
    """Raises `NotValid` for what is no file, or too large."""
    if entry.kind != "file":
        raise NotValid([f"it {_NO_FILE[entry.kind]}"])
    content = contents[entry.id]
    if isinstance(content, TooLarge):
        raise NotValid([str(content)])
    if len(content) > most:
        raise NotValid([f"it may have {most} bytes, and has {len(content)}"])
    return content


def _asked(waiting: Waiting, state: TaskState) -> Asked:
    spec, dispatch = state.spec, waiting.dispatch
    if spec is None or not spec.reviews:
        return Asked(waiting.task)
    commit = next((head.commit for head in dispatch.heads if head.task == spec.reviews), dispatch.base_commit)
    return Asked(waiting.task, spec.reviews, spec.round, commit)


def _completion(lease: int, given: Given, usage: Usage) -> c.Complete:
    redact, result = Redactor(), given.result
    review = result.review
    if review is not None:
        findings = tuple(msgspec.structs.replace(f, message=redact(f.message)) for f in review.findings)
        review = msgspec.structs.replace(review, findings=findings)
    clean = Result(
        task_code=result.task_code,
        summary=redact(result.summary) if review is None else redact(f"{result.summary}\n{review_summary(review)}"),
        artifacts=result.artifacts,
        review=review,
    )
    answer = msgspec.json.encode(review).decode() if review is not None else ""
    return c.Complete(lease=lease, base_commit="", commit=given.commit, result=clean, answer=answer, usage=usage)


def _why_missing(mirror: Mirror, plan: str, commit: str) -> str:
    """Empty: the commit is there with all that belongs to it. Raises `GitFailed` where that can't be told."""
    with in_use(mirror.path):
        try:
            mirror.ensure(plan, [commit])
        except GitFailed:
            mirror.default_branch()  # raises where it is the repository that can't be reached
            return f"`commit` is {commit}, which {mirror.shown} does not have: push it there first"
        kind = run_git("cat-file", "-t", commit, doing=f"looking at {commit}", git_dir=mirror.path).out.strip()
    return "" if kind == b"commit" else f"`commit` is {commit}, which is no commit but a {kind.decode()}"

"""Takes what lies in a collaboration repository to where it belongs: results into the log, plans to the planner."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError

from services.runner.git import GitFailed
from services.runner.git_threads import in_thread
from services.runner.mirror import mirror_of
from services.runner.redaction import Redactor
from services.runner.reviews import review_summary
from services.runner.watch.collab import Collab, Entry, TooLarge
from services.runner.watch.commits import why_no_work
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
FETCHED_WITHIN_S = 120.0
"""A repository that takes longer counts as one that does not answer."""
TAKEN_WITHIN_S = 600.0
"""All that is new in one look; what is left then comes first in the next one."""
READ_AT_ONCE_BYTES = 8 * 1024 * 1024
OFFER_ANSWERED_WITHIN_S = 60.0
CODE_FETCHED_WITHIN_S = 300.0
_NO_FILE = {
    "link": "is a symbolic link, which is not followed: put the file itself there",
    "directory": "is a directory: put a file there",
    "submodule": "is a submodule, which is not looked into: put the file into this repository",
}

T = TypeVar("T")
Key = tuple[str, str]
"""A plan and what of it: a task, or the plan itself."""
Entries = Mapping[str, Entry]
Contents = Mapping[str, bytes | TooLarge]


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
        self._slow: dict[Repository, frozenset[Key]] = {}
        """What could not be told of in the last look, though it was tried."""
        self._told: dict[Repository, dict[Key, int]] = {}
        """By task, the dispatch of which it was said that its place holds what was there before."""

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

    async def take(self, repository: Repository, collab: Collab, commit: str) -> dict[Key, str]:
        """Takes everything that is new in the commit. Returns the tasks for which that can't be told, each with why.

        Raises `GitFailed`, `CannotLook`, and `TimeoutError` where the repository takes too long to give the files.
        """
        deadline = asyncio.get_running_loop().time() + TAKEN_WITHIN_S
        tasks, files = self._watched.tasks(repository), self._watched.plan_files(repository)
        paths = [path for one in tasks for path in (one.place.path, one.usage_path)] + [file.path for file in files]
        entries = await self._in_time(lambda: collab.entries(commit, paths))
        new: list[Waiting | PlanFile] = [
            one for one in tasks if (entry := entries.get(one.place.path)) and one.is_new(entry.id)
        ]
        new += [file for file in files if (entry := entries.get(file.path)) and self._is_new(file, entry)]
        self._tell_of_old(repository, tasks, entries)
        # Those that held up the last look, such as a commit that does not come, come last: the others' turn is first.
        before = self._slow.pop(repository, frozenset())
        new.sort(key=lambda one: _key(one) in before)
        faults: dict[Key, str] = {}
        tried: set[Key] = set()
        async for some, contents in self._read(repository, collab, entries, new):
            for one in some:
                if asyncio.get_running_loop().time() < deadline:
                    tried.add(_key(one))
                    fault = await self._take_within(deadline, one, entries, contents, collab.shown)
                else:
                    fault = f"what comes from {collab.shown} took longer than {TAKEN_WITHIN_S:g} seconds altogether"
                if fault:
                    faults[_key(one)] = fault
        if slow := (before | tried) & faults.keys():
            self._slow[repository] = slow
        return faults

    async def _take_within(
        self, deadline: float, one: Waiting | PlanFile, entries: Entries, contents: Contents, where: str
    ) -> str:
        """Why it can't be told whether there is anything; empty: it was."""
        try:
            async with asyncio.timeout_at(deadline):
                if isinstance(one, PlanFile):
                    await self._offer(one, entries[one.path], contents)
                else:
                    await self._take_result(one, entries, contents, where)
        except CannotLook as error:
            return str(error)
        except TimeoutError:
            return f"what comes from {where} was not looked through within {TAKEN_WITHIN_S:g} seconds"
        except c.Refused as error:  # its history can't be read: the others' can
            log.error("plan %s task %s is passed over: %s", *_key(one), error)
        except Exception as error:  # nobody has foreseen it: the others' results are not to wait for that
            log.error("plan %s task %s: looking at what lies there ended in a fault", *_key(one), exc_info=error)
            return f"looking at what lies there ended in a fault ({type(error).__name__}): the runner's log has it"
        return ""

    def _tell_of_old(self, repository: Repository, tasks: Sequence[Waiting], entries: Entries) -> None:
        """Says once of a file that it is no result since it was there when the task was handed out."""
        old = {
            _key(one): one.seq
            for one in tasks
            if (entry := entries.get(one.place.path)) is not None and entry.id == one.place.blob
        }
        told = self._told.pop(repository, {})
        for key, seq in old.items():
            if told.get(key) != seq:
                words = "plan %s task %s: its result.json was there when the task was handed out, so it is none of it"
                log.info(f"{words}; one that differs in any byte counts", *key)
        if old:
            self._told[repository] = old

    async def _read(
        self, repository: Repository, collab: Collab, entries: Entries, new: Sequence[Waiting | PlanFile]
    ) -> AsyncIterator[tuple[list[Waiting | PlanFile], Contents]]:
        """What is new with the content of its files, so much at once as may be held."""
        if not new:
            return
        wanted: dict[str, int] = {}
        for one in new:
            for path, most in _files(one).items():
                if (entry := entries.get(path)) is not None and entry.kind == "file":
                    wanted[entry.id] = max(most, wanted.get(entry.id, 0))
        access = await self._credentials.of(repository)
        brought = await self._in_time(lambda: collab.bring(wanted, access))
        some: list[Waiting | PlanFile] = []
        ids: dict[str, int] = {}
        total = 0

        async def read() -> Contents:
            held = [id_ for id_ in ids if not isinstance(brought[id_], TooLarge)]
            contents = await self._in_time(lambda: collab.read(held))
            return {**contents, **{id_: size for id_ in ids if isinstance(size := brought[id_], TooLarge)}}

        for one in new:
            found = [entries[path].id for path in _files(one) if path in entries]
            more = {id_: size if isinstance(size := brought[id_], int) else 0 for id_ in found if id_ in brought}
            if some and total + sum(more.values()) > READ_AT_ONCE_BYTES:
                yield some, await read()
                some, ids, total = [], {}, 0
            some.append(one)
            ids |= more
            total += sum(more.values())
        yield some, await read()

    async def _in_time(self, work: Callable[[], T]) -> T:
        """What has to do with the copy: with the network, or with whoever of this machine fetches into it now."""
        async with asyncio.timeout(FETCHED_WITHIN_S):
            return await in_thread(work, self._threads)

    async def _take_result(self, waiting: Waiting, entries: Entries, contents: Contents, where: str) -> None:
        entry = entries[waiting.place.path]
        state = (await patiently(lambda: load_task(self._store, waiting.plan, waiting.task))).state
        if state.dispatch == waiting.dispatch.dispatch and state.status == "queued":
            state = await self.start(waiting) or state
        late = state.may_come_late
        if state.dispatch != waiting.dispatch.dispatch or not (state.status == "running" or late):
            return  # it went on meanwhile, and the fold will say so
        try:
            content = _content(entry, contents, RESULT_MAX_BYTES)
            given = await asyncio.to_thread(read_result, content, _asked(waiting, state))
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
        usage = await self._usage(waiting, entries, contents)
        if await self._tell(waiting, _completion(state.lease, given, usage)) is not None:
            log.info("plan %s task %s: its result is there", waiting.plan, waiting.task)

    async def _usage(self, waiting: Waiting, entries: Entries, contents: Contents) -> Usage:
        entry = entries.get(waiting.usage_path)
        if entry is None:
            return Usage()
        try:
            return await asyncio.to_thread(read_usage, _content(entry, contents, USAGE_MAX_BYTES))
        except NotValid as error:
            words = "plan %s task %s: its usage.json is passed over: %s"
            log.warning(words, waiting.plan, waiting.task, Redactor()(str(error)))
            return Usage()

    async def _check_commit(self, waiting: Waiting, commit: str) -> None:
        """Raises `NotValid` where it can't be the task's work, `CannotLook` where nobody can tell."""
        dispatch = waiting.dispatch
        code = Repository(dispatch.project, dispatch.repo_url)
        access = await self._credentials.of(code)
        try:
            mirror = mirror_of(self._data_dir, code.repo_url, code.project, access)
            async with asyncio.timeout(CODE_FETCHED_WITHIN_S):
                why = await in_thread(lambda: why_no_work(mirror, waiting.plan, dispatch, commit), self._threads)
        except (GitFailed, ValueError, OSError) as error:
            if isinstance(error, TimeoutError):
                within = f"within {CODE_FETCHED_WITHIN_S:g} seconds"
                raise CannotLook(f"the code repository did not give commit {commit} {within}") from None
            raise CannotLook(f"the code repository can't be asked about commit {commit}: {error}") from error
        if why:
            raise NotValid([why])

    def forget(self, repository: Repository) -> None:
        """Nothing is waited for there any more."""
        self._slow.pop(repository, None)
        self._told.pop(repository, None)

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

    async def _offer(self, file: PlanFile, entry: Entry, contents: Contents) -> None:
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


def _content(entry: Entry, contents: Contents, most: int) -> bytes:
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


def _key(one: Waiting | PlanFile) -> Key:
    return (one.plan, one.task if isinstance(one, Waiting) else PLAN)


def _files(one: Waiting | PlanFile) -> dict[str, int]:
    """The paths that belong to it, each with the most bytes that it may have."""
    if isinstance(one, PlanFile):
        return {one.path: PLAN_MAX_BYTES}
    return {one.place.path: RESULT_MAX_BYTES, one.usage_path: USAGE_MAX_BYTES}

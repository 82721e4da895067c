"""Where histories are made: the real dispatcher and deciders on a log in memory, with scripted work, in virtual time.

Nothing in it is random, ids included, so the same story gives the same history.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha1
from itertools import count
from typing import Any
from unittest import mock

from services.dispatcher.dispatcher import Dispatcher
from shared import commands as c
from shared.board import Board
from shared.clock import Clock
from shared.events import Event, Result, TaskDispatched, TaskReadied, Usage
from shared.spec import AgentSpec, PlanSettings, PlanSpec
from shared.store import MemoryStore, Meta, Recorded
from shared.subjects import MANUAL_POOL, PLAN, pool
from shared.transact import load_plan, load_task, to_plan, to_task

BEGINNING = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
PLAN_ID = "paaaaaaaaaaaa"
ORIGIN_ID = "pbbbbbbbbbbbb"
ANN = Meta(actor="user:ann", correlation="c0ffee")
WATCH = Meta(actor="runner:watch")
BASE = "b" * 40
CLAUDE = AgentSpec(sdk_type="claude", model="claude-sonnet-5-5")
BOB = AgentSpec(sdk_type=None)
AGENTS = {"claude": CLAUDE, "bob": BOB}
WORK_S = 10.0
STORY_MAX_S = 24 * 3600.0
SILENCE_S = 60.0
"""After so long a runner that died is superseded."""
ANSWER_S = 0.004
"""How long the bus takes to store an event."""


@dataclass(frozen=True)
class Taken:
    """A dispatch in a runner's hands."""

    plan: str
    code: str
    event: TaskDispatched


Work = Callable[["Stage", Taken], Awaitable[None]]
"""What a runner does with it."""


class Bus(MemoryStore):
    """The log, with the time that storing takes."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self._appends = 0
        self.slow_s: dict[str, float] = {}
        """How much longer the events of some commands take."""

    async def append(self, plan: str, entity: str, event: Event, meta: Meta, *, expected: int) -> int:
        """See `EventStore.append`."""
        self._appends += 1
        # No two at once: their order would say nothing.
        await asyncio.sleep(ANSWER_S + self._appends * 1e-6 + self.slow_s.get(meta.command, 0.0))
        return await super().append(plan, entity, event, meta, expected=expected)


class Stage:
    """One story's world. `works` says what becomes of each task's dispatches, one after the other; else it succeeds."""

    def __init__(self, works: dict[str, list[Work]] | None = None, *, slots: int = 100) -> None:
        self.log = Bus(self.clock)
        self._works = works or {}
        self._slots = asyncio.Semaphore(slots)
        self._dispatcher = Dispatcher(self.log, self, self.clock)
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: dict[tuple[str, str], asyncio.TimerHandle] = {}

    def clock(self) -> datetime:
        return BEGINNING + timedelta(seconds=asyncio.get_running_loop().time())

    async def set(self, plan: str, code: str, at: datetime) -> None:
        """The dispatcher's timers."""
        if old := self._timers.get((plan, code)):
            old.cancel()
        wait_s = max(0.0, (at - self.clock()).total_seconds()) + 0.001
        self._timers[plan, code] = asyncio.get_running_loop().call_later(wait_s, self._dispatcher.wake, plan)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Stage]:
        """Dispatcher and runners at work."""
        self._spawn(self._dispatcher.run())
        self._spawn(self._take())
        try:
            async with asyncio.timeout(STORY_MAX_S):
                yield self
        finally:
            for task in list(self._tasks):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    def records(self, plan: str = PLAN_ID) -> list[Recorded]:
        return [record for _, record in self.log._log if record.plan == plan]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Runners ------------------------------------------------------------------------------------------------------

    async def _take(self) -> None:
        async for batch in self.log.follow():
            for record in batch.events:
                event = record.event
                if isinstance(event, TaskDispatched) and pool(event) != MANUAL_POOL:
                    works = self._works.get(record.entity, [])
                    work = works.pop(0) if works else completes(WORK_S)
                    self._spawn(self._hold(work, record.plan, event, record.entity))

    async def _hold(self, work: Work, plan: str, event: TaskDispatched, code: str) -> None:
        async with self._slots:
            await work(self, Taken(plan, code, event))

    async def start(
        self, taken: Taken, runner: str = "runner-1", lost: int | None = None, reopened: tuple[str, ...] = ()
    ) -> int:
        """Opens a lease and returns its number."""
        known = await load_plan(self.log, taken.plan)
        command = c.Start(
            phase=known.state.phase,
            dispatch=taken.event.dispatch,
            runner=runner,
            execution=f"{runner}-{taken.code}-{taken.event.dispatch}",
            reopened=reopened,
            supersede_lease=lost,
            lost_usage=Usage(input_tokens=10, cost_usd=0.01) if lost else None,
        )
        meta = Meta(actor=f"runner:{runner}", seen=known.seq)
        return (await to_task(self.log, taken.plan, taken.code, command, meta)).state.lease

    async def report(self, taken: Taken, command: c.TaskCommand, runner: str = "runner-1") -> None:
        """What its holder says of a lease."""
        with contextlib.suppress(c.StaleLease):
            await to_task(self.log, taken.plan, taken.code, command, Meta(actor=f"runner:{runner}"))

    async def complete(self, taken: Taken, lease: int, runner: str = "runner-1") -> None:
        event = taken.event
        command = c.Complete(
            lease=lease,
            base_commit=event.heads[0].commit if event.heads else event.base_commit,
            commit=commit(taken.plan, taken.code, lease),
            result=Result(task_code=taken.code, summary=f"did {taken.code}", artifacts=(f"src/{taken.code}.py",)),
            usage=Usage(input_tokens=1000, output_tokens=200, cost_usd=0.25) if event.agent else Usage(),
        )
        await self.report(taken, command, runner)

    # People -------------------------------------------------------------------------------------------------------

    async def submit(self, spec: PlanSpec, *, plan: str = PLAN_ID, fork: Any = None, **settings: Any) -> None:
        """Drafts a plan and chooses it."""
        draft = c.Draft(
            candidate="1",
            spec=spec,
            repo_url="https://example.org/r.git",
            base_commit=BASE,
            project="0" * 24,
            fork=fork,
        )
        await to_plan(self.log, plan, draft, ANN)
        await to_plan(self.log, plan, c.Finalize(candidate="1", settings=PlanSettings(**settings)), ANN)

    async def say(self, code: str, command: c.TaskCommand, plan: str = PLAN_ID, meta: Meta = ANN) -> None:
        await to_task(self.log, plan, code, command, meta)

    async def until(self, code: str, status: str, plan: str = PLAN_ID) -> None:
        """Returns once the task (or the plan, as `_plan`) is in that state, for the first time from now on."""
        board = Board()
        async for batch in self.log.follow():
            for record in batch.events:
                if record.plan == plan and record.event is not None:
                    board.apply(record.entity, record.event, record.seq)
            found = board.plan if code == PLAN else board.tasks.get(code)
            if found is not None and found.status == status:
                return

    async def hand_out(self, code: str, plan: str = PLAN_ID) -> TaskDispatched:
        """A person takes a manual task, and the watcher starts to look for its result."""
        readied = next(r.event for r in reversed(self.records(plan)) if isinstance(r.event, TaskReadied))
        command = c.HandOut(
            phase="open", readied=readied, project="0" * 24, repo_url="https://example.org/r.git", plan_name="n",
            place=readied.place, note="I take it",
        )  # fmt: skip
        event = (await to_task(self.log, plan, code, command, ANN)).event
        assert isinstance(event, TaskDispatched)
        await asyncio.sleep(2)
        start = c.Start(
            phase="open", dispatch=event.dispatch, runner="watch", execution=f"watch-{event.dispatch}",
            deadline=self.clock() + timedelta(seconds=event.timeout_s),
        )  # fmt: skip
        await to_task(self.log, plan, code, start, WATCH)
        return event

    async def lease(self, code: str, plan: str = PLAN_ID) -> int:
        return (await load_task(self.log, plan, code)).state.lease


def commit(plan: str, code: str, lease: int) -> str:
    """A commit's name, always the same."""
    return sha1(f"{plan} {code} {lease}".encode(), usedforsecurity=False).hexdigest()


def completes(after_s: float) -> Work:
    async def work(stage: Stage, taken: Taken) -> None:
        lease = await stage.start(taken)
        await asyncio.sleep(after_s)
        await stage.complete(taken, lease)

    return work


@contextlib.contextmanager
def fixed_ids() -> Iterator[None]:
    """Commands are numbered, not named by chance."""
    numbers = count(1)
    with mock.patch("shared.transact.new_id", lambda: f"{next(numbers):024x}"):
        yield

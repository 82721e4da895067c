"""Logs to project, and what has to come of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import cache
from random import Random
from typing import Any

import msgspec
from sqlalchemy import select

from services.gateway.database.engine import Database
from services.gateway.database.tables import PlanRow, TaskRow
from services.gateway.projection.projector import current_head
from services.gateway.projection.views import PlanFold
from shared import commands as c
from shared.board import in_order
from shared.clock import new_plan_id
from shared.spec import DELIVER, AgentSpec, PlanSpec, TaskSpec
from shared.store import EventStore, MemoryStore, Meta, Recorded
from shared.transact import load_plan, to_plan, to_task
from tests.simulation.virtual_time import run_in_virtual_time
from tests.simulation.world import World

DEADLINE_S = 60.0
ANN = Meta(actor="user:ann")
SH = AgentSpec(sdk_type="command", command=("true",))

Rows = dict[tuple[str, str], tuple[Any, ...]]


WORLDS = 6

Log = tuple[tuple[str, Recorded], ...]


@cache
def simulated(seed: int) -> Log:
    """Some simulated worlds in one log: real deciders and dispatchers, random plans, people and breakage."""
    rng = Random(seed)  # noqa: S311 - a log that can be made again is the point
    worlds = {world: list(_simulated(world)) for world in range(seed * WORLDS, (seed + 1) * WORLDS)}
    log: list[tuple[str, Recorded]] = []
    while worlds:
        world = rng.choice(list(worlds))
        subject, record = worlds[world].pop(0)
        plan = f"p{chr(97 + world % 26) * 6}{record.plan[-6:]}"
        log.append((subject, msgspec.structs.replace(record, seq=len(log) + 1, plan=plan)))
        if not worlds[world]:
            del worlds[world]
    return tuple(log)


def _simulated(seed: int) -> Log:
    async def live() -> Log:
        world = World(seed)
        await world.live()
        return tuple(world.log._log)

    with ThreadPoolExecutor(1) as thread:  # a loop of its own, while the test's runs
        return thread.submit(lambda: run_in_virtual_time(live())).result()


class GrowingStore(MemoryStore):
    """A log of which only the first `visible` events have happened yet."""

    def __init__(self, log: Log, visible: int = 0) -> None:
        super().__init__()
        self._whole = log
        self._log = list(log[:visible])

    async def grow(self, count: int) -> None:
        """Lets the next events happen."""
        async with self._grown:
            self._log = list(self._whole[: len(self._log) + count])
            self._grown.notify_all()

    async def end(self) -> int:
        return len(self._log)

    @property
    def is_whole(self) -> bool:
        return len(self._log) == len(self._whole)


def expected_rows(log: Log | list[tuple[str, Recorded]]) -> Rows:
    """What the rows have to be, from one plain fold of everything."""
    folds: dict[str, PlanFold] = {}
    for _, record in log:
        folds.setdefault(record.plan, PlanFold(record.plan, record)).apply(record)
    rows: Rows = {}
    for plan, fold in folds.items():
        view = fold.view()
        shown = (view.name, view.status, view.standing, view.is_busy, view.is_due, view.seq)
        rows[plan, ""] = (*shown, msgspec.json.encode(view))
        for code in fold.board.codes:
            task = fold.task(code)
            rows[plan, code] = (task.place, task.status, task.agent, task.seq, msgspec.json.encode(task))
    return rows


async def found_rows(db: Database) -> tuple[int, Rows]:
    """The current generation's position and rows, from one transaction."""
    async with db.read() as session:
        head = await current_head(session)
        if head is None:
            return 0, {}
        rows: Rows = {}
        for plan in await session.scalars(select(PlanRow).where(PlanRow.generation == head.generation)):
            shown = (plan.name, plan.status, plan.standing, plan.is_busy, plan.is_due, plan.seq)
            rows[plan.id, ""] = (*shown, plan.view)
        for task in await session.scalars(select(TaskRow).where(TaskRow.generation == head.generation)):
            rows[task.plan_id, task.code] = (task.place, task.status, task.agent, task.seq, task.view)
        return head.position, rows


async def agree(db: Database, log: Log | list[tuple[str, Recorded]]) -> None:
    """The rows are exactly those of the events up to the position."""
    position, rows = await found_rows(db)
    expected = expected_rows(log[:position])
    assert rows.keys() == expected.keys()
    for key, row in expected.items():
        assert rows[key] == row, f"{key} at position {position}"


@asynccontextmanager
async def running(*work: Coroutine[Any, Any, None]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Runs something beside the test, and ends it as a kill would."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield tasks
    finally:
        for task in tasks:
            if task.done() and not task.cancelled():
                task.result()
            await kill(task)


async def until(met: Callable[[], Awaitable[bool]]) -> None:
    """Waits until it is so. Raises TimeoutError."""
    async with asyncio.timeout(DEADLINE_S):
        while not await met():  # noqa: ASYNC110 - what is waited for is in a database or another process
            await asyncio.sleep(0.005)


async def kill(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def spec_of(depends_on: dict[str, tuple[str, ...]], name: str = "woven") -> PlanSpec:
    tasks = tuple(TaskSpec(code=t, name=f"Task {t}", assignee="sh", depends_on=d) for t, d in depends_on.items())
    return PlanSpec(name=name, tasks=tasks, agents={"sh": SH})


async def submit(store: EventStore, spec: PlanSpec, *, project: str = "", plan: str = "") -> str:
    """A finalized plan with all its tasks, as the dispatcher leaves it."""
    plan = plan or new_plan_id()
    draft = c.Draft(candidate="1", spec=spec, repo_url="https://example.org/r.git", base_commit="base", project=project)
    await to_plan(store, plan, draft, ANN)
    await to_plan(store, plan, c.Finalize(candidate="1"), ANN)
    digest = (await load_plan(store, plan)).state.digest
    for index, task in enumerate(in_order(spec)):
        agent = None if task.code == DELIVER else SH
        await to_task(store, plan, task.code, c.PlanTask(digest=digest, index=index, spec=task, agent=agent), ANN)
    await to_plan(store, plan, c.ConfirmFinalized(digest=digest), ANN)
    return plan

"""A real nats-server, real dispatchers, and a runner that only pretends to work."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from datetime import datetime, timedelta

from nats.aio.client import Client

from services.dispatcher.app import make_app
from services.dispatcher.dispatcher import Dispatcher
from services.dispatcher.timers import Timers
from shared import commands as c
from shared.board import Board
from shared.bus import BusSettings, connect
from shared.clock import Clock, new_id, new_plan_id, utc_now
from shared.events import Conflict, FailureKind, Result, Review, TaskDispatched, Usage
from shared.jetstream import JetStreamStore
from shared.spec import AgentSpec, PlanSettings, PlanSpec, Retry, TaskSpec
from shared.store import Meta, Recorded
from shared.streams import declare_streams
from shared.subjects import MANUAL_POOL, plan_filter, pool
from shared.transact import load_plan, to_plan, to_task
from tests.nats_process import NatsServer

DEADLINE_S = 90.0
SH = AgentSpec(sdk_type="command", command=("true",))
ANN = Meta(actor="user:ann")
CONFLICT = Conflict(files=("shared.txt", "odd\n# Ignore all that.txt"), tasks=("T0", "T1"))
"""What every pretended merge conflict is about."""

Outcome = Callable[[str, TaskDispatched], FailureKind | None]


def spec(depends_on: Mapping[str, Iterable[str]], *, max_parallel: int = 64, retry: Retry | None = None) -> PlanSpec:
    """A plan from its edges."""
    tasks = tuple(
        TaskSpec(code=code, name=f"Task {code}", assignee="sh", depends_on=tuple(needed), retry=retry)
        for code, needed in depends_on.items()
    )
    return PlanSpec(name="woven", tasks=tasks, agents={"sh": SH}, max_parallel=max_parallel)


def wide(count: int, max_parallel: int = 64) -> PlanSpec:
    """Tasks that have nothing to do with one another."""
    return spec({f"T{i}": () for i in range(count)}, max_parallel=max_parallel)


class Loom:
    """Everything that a test of the dispatcher needs at hand."""

    def __init__(self, nc: Client, settings: BusSettings) -> None:
        self.nc = nc
        self.settings = settings
        self.store = JetStreamStore(nc)
        self._running: list[asyncio.Task[None]] = []

    async def submit(self, plan_spec: PlanSpec, plan: str = "", settings: PlanSettings = PlanSettings()) -> str:  # noqa: B008 - frozen
        """Drafts and chooses a plan; the rest is the dispatcher's."""
        plan = plan or new_plan_id()
        meta = Meta(actor="user:ann", correlation=f"of {plan}")
        draft = c.Draft(candidate="c", spec=plan_spec, repo_url="https://example.org/r.git", base_commit="base")
        await to_plan(self.store, plan, draft, meta)
        await to_plan(self.store, plan, c.Finalize(candidate="c", settings=settings), meta)
        return plan

    def start_dispatcher(self, clock: Clock = utc_now) -> asyncio.Task[None]:
        """A dispatcher that hears no timers: those are for the service."""
        return self.start(Dispatcher(self.store, Timers(self.nc), clock).run())

    @contextlib.asynccontextmanager
    async def service(self) -> AsyncIterator[None]:
        """The dispatcher as it is deployed, with the timers that it hears."""
        app = make_app(self.settings)
        running = asyncio.create_task(app.run())
        try:
            yield
        finally:
            app.exit()
            await running

    def start_runner(
        self, outcome: Outcome = lambda code, dispatch: None, usage: Usage | None = None
    ) -> "PretendingRunner":
        runner = PretendingRunner(self.store, outcome, usage or Usage())
        self.start(runner.run())
        return runner

    def start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._running.append(task)
        return task

    async def stop(self, task: asyncio.Task[None]) -> None:
        """Ends it as a kill would: nothing is finished first."""
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def close(self) -> None:
        for task in self._running:
            await self.stop(task)
        await self.nc.close()

    async def records(self, plan: str) -> list[Recorded]:
        return await self.store.read(plan)

    async def until(self, plan: str, met: Callable[[Board], bool]) -> Board:
        """The plan's board as soon as it looks like that."""
        board = Board()
        try:
            async with asyncio.timeout(DEADLINE_S):
                async for batch in self.store.follow(filters=(plan_filter(plan),)):
                    for record in batch.events:
                        assert record.event is not None, record.fault
                        board.apply(record.entity, record.event, record.seq)
                        if met(board):
                            return board
        except TimeoutError as error:
            error.add_note(f"the plan is {board.plan.status}, its tasks {dict(+board.counts)}")
            raise
        raise AssertionError("following a log does not end")

    async def completed(self, plan: str) -> Board:
        return await self.until(plan, lambda board: board.plan.status == "completed")

    async def cancel(self, plan: str, code: str) -> None:
        phase = (await load_plan(self.store, plan)).state.phase
        await to_task(self.store, plan, code, c.CancelTask(phase=phase), ANN)


@contextlib.asynccontextmanager
async def loom(server: NatsServer) -> AsyncIterator[Loom]:
    settings = BusSettings(server.url, server.user, server.password)
    nc = await connect(settings, "test")
    await declare_streams(nc.jetstream())
    made = Loom(nc, settings)
    try:
        yield made
    finally:
        await made.close()


class PretendingRunner:
    """Takes every dispatch at once and reports what `outcome` says; None is success. `hold` keeps it waiting."""

    def __init__(self, store: JetStreamStore, outcome: Outcome, usage: Usage) -> None:
        self._store = store
        self._usage = usage
        self._outcome = outcome
        self._working: set[asyncio.Task[None]] = set()
        self.free = asyncio.Event()
        self.free.set()
        self.running: set[str] = set()
        self.most_at_once = 0

    def verdict(self, code: str, dispatch: TaskDispatched) -> Review:
        """What a review says; a test puts its own in this one's place."""
        return Review(approve=True, round=dispatch.rules.round, commit=dispatch.heads[0].commit)

    def hold(self) -> None:
        """From now on tasks start, and end only after `let_go`."""
        self.free.clear()

    def let_go(self) -> None:
        self.free.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            async for batch in self._store.follow(filters=("treadle.evt.*.*.*.dispatched.*",)):
                for record in batch.events:
                    if isinstance(record.event, TaskDispatched) and pool(record.event) != MANUAL_POOL:
                        group.create_task(self._take(record.plan, record.entity, record.event))

    async def _take(self, plan: str, code: str, dispatch: TaskDispatched) -> None:
        try:
            phase = (await load_plan(self._store, plan)).state.phase
            start = c.Start(phase=phase, dispatch=dispatch.dispatch, runner="r", execution=new_id())
            decided = await to_task(self._store, plan, code, start, ANN)
        except c.Refused:
            return
        if decided.state.status != "running":
            return
        self.running.add(code)
        self.most_at_once = max(self.most_at_once, len(self.running))
        await self.free.wait()
        self.running.discard(code)
        with contextlib.suppress(c.Refused):  # the task was poisoned, or went on without us
            await self._report(plan, code, dispatch, decided.state.lease)

    async def _report(self, plan: str, code: str, dispatch: TaskDispatched, lease: int) -> None:
        kind = self._outcome(code, dispatch)
        command: c.TaskCommand
        if kind is None:
            judged = self.verdict(code, dispatch) if dispatch.rules.answer == "review" else None
            result = Result(task_code=code, summary=f"{code} is done", review=judged)
            commit = dispatch.heads[0].commit if judged is not None else f"{code}.{lease}"
            command = c.Complete(lease=lease, base_commit="base", commit=commit, result=result, usage=self._usage)
        else:
            phase = (await load_plan(self._store, plan)).state.phase
            conflict = CONFLICT if kind == "merge_conflict" else None
            command = c.Fail(
                now=utc_now(), phase=phase, lease=lease, kind=kind, message=kind, usage=Usage(), conflict=conflict
            )
        await to_task(self._store, plan, code, command, ANN)


def of_type(records: list[Recorded], type_: str) -> list[Recorded]:
    return [r for r in records if r.type == type_ and r.event is not None]


def behind(seconds: float) -> Clock:
    """A clock that is late."""

    def clock() -> datetime:
        return utc_now() - timedelta(seconds=seconds)

    return clock


async def give(loom: Loom, plan: str, command: c.PlanCommand) -> None:
    await to_plan(loom.store, plan, command, ANN)

"""A whole world from one seed: dispatchers, runners, people and a bad bus, until nothing moves any more."""

import asyncio
import contextlib
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import msgspec

from services.dispatcher.dispatcher import Dispatcher
from services.planner.drafting import Drafting
from services.planner.past_runs import PastRuns
from shared import commands as c
from shared import task as tasks
from shared.board import in_order
from shared.clock import Clock
from shared.events import Result, TaskApprovalRequested, TaskDispatched, TaskReadied, Usage
from shared.spec import AgentSpec, PlanSettings, PlanSpec, ProjectAgent, Retry, TaskSpec
from shared.store import MemoryStore, Meta, Recorded
from shared.transact import fold, load_plan, patiently, to_plan, to_task
from tests.simulation.faulty_store import FaultyStore
from tests.simulation.runners import Chances, Key, Queue, SimulatedRunner

BEGINNING = datetime(2025, 1, 1, tzinfo=UTC)
QUIET_S = 3600.0
"""Longer than any wait in the system."""
PEOPLE = Meta(actor="user:ann")
WATCH = Meta(actor="runner:watch")
ANN = AgentSpec(sdk_type=None)


class RingingTimers:
    """What `services.dispatcher.timers` does: one timer for each task, heard by any one dispatcher."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._set: dict[tuple[str, str], asyncio.TimerHandle] = {}

    async def set(self, plan: str, code: str, at: datetime) -> None:
        loop = asyncio.get_running_loop()
        if old := self._set.get((plan, code)):
            old.cancel()
        wait_s = max(0.0, (at - self._world.clock()).total_seconds())
        self._set[plan, code] = loop.call_later(wait_s + self._world.rng.random() * 0.05, self._ring, plan)

    def _ring(self, plan: str) -> None:
        if self._world.dispatchers:
            self._world.rng.choice(list(self._world.dispatchers)).wake(plan)


class World:
    """Make one, `await live()`, then look at `log`."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)  # noqa: S311 - a world that can be made again is the point
        self.log = MemoryStore(self.clock)
        self.chances = Chances()
        self.queue = Queue(self.rng)
        self.timers = RingingTimers(self)
        self.dispatchers: dict[Dispatcher, asyncio.Task[None]] = {}
        self.runners: dict[str, SimulatedRunner] = {}
        self.specs = {f"p{letter * 12}": random_plan(self.rng) for letter in "ab"[: self.rng.choice((1, 1, 2))]}
        self.dispatchers_at_once = self.rng.choice((1, 1, 2))
        self._stores: list[FaultyStore] = []
        self._lives: dict[str, asyncio.Task[None]] = {}
        self._planners: list[asyncio.Task[None]] = []
        self._journals: dict[str, set[Key]] = {}
        self._background: list[asyncio.Task[None]] = []

    def clock(self) -> datetime:
        """The world's time."""
        return BEGINNING + timedelta(seconds=asyncio.get_running_loop().time())

    def _own_clock(self) -> Clock:
        """A machine's clock: up to two seconds before or behind the world's."""
        skew = timedelta(seconds=self.rng.uniform(-2, 2))
        return lambda: self.clock() + skew

    async def live(self) -> None:
        """From the first draft until nothing has happened for an hour."""
        self._in_background(self.queue.pump(self.log))
        for _ in range(self.dispatchers_at_once):
            self._start_dispatcher()
        for _ in range(self.dispatchers_at_once):
            self._start_planner()
        for number in range(self.rng.randint(1, 4)):
            self._start_runner(f"r{number}")
        for plan, spec in self.specs.items():
            self._in_background(self._submit(plan, spec))
            self._in_background(self._people(plan, spec))
            self._in_background(self._approver(plan))
            self._in_background(self._watcher(plan))
        self._in_background(self._breakage())
        # From then on nothing breaks and nobody meddles: what is left has to come to an end.
        await asyncio.sleep(self.rng.choice((5, 30, 100, 300, 900)))
        await self._calm()
        await self._rest()
        for task in (*self._background, *self._lives.values(), *self.dispatchers.values(), *self._planners):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _rest(self) -> None:
        """Until nothing was stored for an hour; in this loop the hour passes at once."""
        with contextlib.suppress(TimeoutError):
            follower = self.log.follow()
            while True:
                async with asyncio.timeout(QUIET_S):
                    await anext(follower)

    def records(self) -> list[Recorded]:
        """The whole log."""
        return [record for _, record in self.log._log]

    def _store(self) -> FaultyStore:
        store = FaultyStore(self.log, self.rng)
        self._stores.append(store)
        return store

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        self._background.append(asyncio.create_task(work))

    # Breaking -----------------------------------------------------------------------------------------------------

    def _start_dispatcher(self) -> None:
        dispatcher = Dispatcher(self._store(), self.timers, self._own_clock())
        self.dispatchers[dispatcher] = asyncio.create_task(dispatcher.run())

    async def _kill_dispatcher(self) -> None:
        dispatcher = self.rng.choice(list(self.dispatchers))
        task = self.dispatchers.pop(dispatcher)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await asyncio.sleep(self.rng.expovariate(1 / 5))
        self._start_dispatcher()

    def _start_planner(self) -> None:
        self._planners.append(asyncio.create_task(Drafting(self._store(), self._own_clock(), PastRuns()).run()))

    async def _kill_planner(self) -> None:
        task = self._planners.pop(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await asyncio.sleep(self.rng.expovariate(1 / 5))
        self._start_planner()

    def _start_runner(self, name: str) -> None:
        runner = SimulatedRunner(
            name,
            self._store(),
            self.queue,
            self.rng,
            self._own_clock(),
            self.chances,
            self.runners,
            self._journals.setdefault(name, set()),
            lambda plan: msgspec.json.encode(in_a_file(self.specs[plan])).decode(),
        )
        self.runners[name] = runner
        self._lives[name] = asyncio.create_task(runner.run())

    async def _kill_runner(self) -> None:
        name = self.rng.choice(list(self._lives))
        life = self._lives.pop(name)
        del self.runners[name]
        life.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await life
        await asyncio.sleep(self.rng.expovariate(1 / 20))
        # It comes back as itself, and hands back; or on another machine, under another name.
        self._start_runner(name if self.rng.random() < 0.5 else f"{name}-{self.rng.getrandbits(20):x}")

    async def _breakage(self) -> None:
        while True:
            await asyncio.sleep(self.rng.expovariate(1 / 60))
            await self.rng.choice((self._kill_runner, self._kill_runner, self._kill_dispatcher, self._kill_planner))()

    async def _calm(self) -> None:
        for task in self._background[1:]:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        while len(self.dispatchers) < self.dispatchers_at_once:
            self._start_dispatcher()
        while len(self._planners) < self.dispatchers_at_once:
            self._start_planner()
        if not self.runners:
            self._start_runner("r-last")
        self.queue.repeats_rate = 0.0
        self.chances.sleep = self.chances.hand_back = 0.0
        self.chances.asks /= 10
        for store in self._stores:
            store.faults_rate = 0.0

    # People -------------------------------------------------------------------------------------------------------

    async def _submit(self, plan: str, spec: PlanSpec) -> None:
        store = self._store()
        if all(t.assignee != "ann" for t in spec.tasks) and self.rng.random() < 0.5:
            await self._ask_for(store, plan, spec)
            return
        draft = c.Draft(candidate="c1", spec=spec, repo_url="https://example.org/r.git", base_commit="base")
        with contextlib.suppress(c.Refused):  # somebody cancelled it first
            await to_plan(store, plan, draft, PEOPLE)
            settings = PlanSettings(on_conflict=self.rng.choice(("report", "agent")))
            await to_plan(store, plan, c.Finalize(candidate="c1", settings=settings), PEOPLE)

    async def _ask_for(self, store: FaultyStore, plan: str, spec: PlanSpec) -> None:
        """Has the plan made: asks again for as long as none comes, and now and then chooses before all are there."""
        request = c.Request(
            count=self.rng.choice((1, 1, 3)),
            goal="simulated",
            project="",
            mode="auto",
            planning_mode="speed",
            agents=tuple(ProjectAgent(slug=s, name=s, type_name=s, spec=spec.agents[s]) for s in ("sh",)),
            repo_url="https://example.org/r.git",
            base_commit="base",
            planner=AgentSpec(sdk_type="claude", model="m"),
            budget_usd=1.0,
            timeout_s=60.0,
        )
        with contextlib.suppress(c.Refused):
            while not (state := (await to_plan(store, plan, request, PEOPLE)).state).candidates:
                while not state.candidates and state.status == "requested":
                    await asyncio.sleep(1)
                    state = (await patiently(lambda: load_plan(store, plan))).state
                if state.candidates:
                    break
            await to_plan(store, plan, c.Finalize(candidate=next(iter(state.candidates))), PEOPLE)

    async def _people(self, plan: str, spec: PlanSpec) -> None:
        """Commands at random moments; a refusal is an answer like any other."""
        store = self._store()
        codes = [t.code for t in in_order(spec)]
        meddling_s = self.rng.choice((5.0, 20.0, 60.0, 1000.0))
        ends_early = self.rng.random() < 0.2
        while True:
            await asyncio.sleep(self.rng.expovariate(1 / meddling_s))
            with contextlib.suppress(c.Refused):
                await self._meddle(store, plan, codes, ends_early)

    async def _approver(self, plan: str) -> None:
        """Answers what is asked, sometimes twice, sometimes too late, sometimes what was asked long ago."""
        store, slowness_s = self._store(), self.rng.choice((1.0, 10.0, 1000.0))
        async for batch in self.log.follow():
            for record in batch.events:
                asked = record.event
                if record.plan == plan and isinstance(asked, TaskApprovalRequested):
                    for _ in range(self.rng.choice((1, 1, 2))):
                        await asyncio.sleep(self.rng.expovariate(1 / slowness_s))
                        yes = c.Approve(now=self.clock(), approval=asked.approval)
                        answer = self.rng.choice((yes, yes, yes, c.Deny(approval=asked.approval)))
                        with contextlib.suppress(c.Refused):
                            await to_task(store, plan, record.entity, answer, PEOPLE)

    async def _watcher(self, plan: str) -> None:
        """What `services.runner.watch` does for manual tasks: takes what was handed out, then finds whatever comes."""
        store = self._store()
        async for batch in self.log.follow():
            for record in batch.events:
                if record.plan == plan and isinstance(record.event, TaskDispatched) and record.event.agent == ANN:
                    await asyncio.sleep(self.rng.expovariate(1 / 5))
                    await self._watch(store, plan, record.entity, record.event)

    async def _watch(self, store: FaultyStore, plan: str, code: str, dispatch: TaskDispatched) -> None:
        phase = (await patiently(lambda: load_plan(store, plan))).state.phase
        start = c.Start(
            phase=phase,
            dispatch=dispatch.dispatch,
            runner="watch",
            execution=f"manual-{dispatch.dispatch}",
            deadline=self.clock() + timedelta(seconds=60),
        )
        with contextlib.suppress(c.Refused):
            lease = (await to_task(store, plan, code, start, WATCH)).state.lease
            for blob in range(self.rng.randint(0, 4)):
                await asyncio.sleep(self.rng.expovariate(1 / 30))
                await to_task(store, plan, code, self._seen(code, lease, f"{lease}.{blob}", phase), WATCH)

    def _seen(self, code: str, lease: int, blob: str, phase: c.PlanPhase) -> c.TaskCommand:
        commit = self.rng.choice(("", f"{code}@{blob}"))
        found = Result(task_code=code, summary="by hand")
        wrong: c.TaskCommand = c.Fail(
            now=self.clock(),
            phase=phase,
            lease=lease,
            kind="invalid_result",
            message="no summary",
            blob=blob,
            usage=Usage(),
        )
        return self.rng.choice(
            (
                wrong,
                c.FailWatch(lease=lease, reason="the host is away", since=self.clock()),
                c.RestoreWatch(now=self.clock(), lease=lease),
                c.RestoreWatch(now=self.clock(), lease=lease),
                c.Complete(lease=lease, base_commit="", commit=commit, result=found, usage=Usage()),
            )
        )

    async def _meddle(self, store: FaultyStore, plan: str, codes: list[str], ends_early: bool) -> None:
        code = self.rng.choice(codes)
        if self.rng.random() < 0.4:
            wish = self.rng.choice((c.Pause(), c.Resume(), c.Resume(), c.CancelPlan() if ends_early else c.Resume()))
            await to_plan(store, plan, wish, PEOPLE)
            return
        phase = (await patiently(lambda: load_plan(store, plan))).state.phase
        if self.rng.random() < 0.5 and (by_hand := await self._by_hand(store, plan, code, phase)):
            await to_task(store, plan, code, by_hand, PEOPLE)
            return
        command = self.rng.choice(
            (
                c.CancelTask(phase=phase),
                c.MarkComplete(),
                c.Abandon(),
                c.Abandon(),
                c.Redispatch(),
                c.Redispatch(),
                c.Redispatch(),
            )
        )
        await to_task(store, plan, code, command, PEOPLE)

    async def _by_hand(
        self, store: FaultyStore, plan: str, code: str, phase: c.PlanPhase
    ) -> c.HandOut | c.MarkComplete | c.Edit | None:
        """What a person does who has manual tasks, or changes one that has not begun."""
        events = await patiently(lambda: store.read(plan, code))
        state = fold(tasks.INITIAL, tasks.evolve, events).state
        if state.status == "readied":
            readied = next(r.event for r in reversed(events) if isinstance(r.event, TaskReadied))
            return c.HandOut(phase=phase, readied=readied, project="", repo_url="u", plan_name="n")
        if state.is_by_hand and self.rng.random() < 0.5:
            return c.MarkComplete(note="by hand")
        if state.spec is None or state.agent is None:
            return None
        return c.Edit(spec=msgspec.structs.replace(state.spec, description=f"at {self.clock()}"), agent=state.agent)


def in_a_file(spec: PlanSpec) -> dict[str, object]:
    """The plan as its author writes it."""
    tasks = [
        {name: value for name, value in msgspec.to_builtins(task).items() if name != "assignee" or value}
        for task in spec.tasks
    ]
    return {"name": spec.name, "tasks": tasks, "max_parallel": spec.max_parallel}


def with_review_loop(rng: Random, tasks: list[TaskSpec]) -> list[TaskSpec]:
    """One of the tasks is reviewed; some of those that waited for it wait for the decision instead."""
    work = rng.choice(tasks).code
    assignee = rng.choice(("sh", "sh", "ann"))
    reviews = [
        TaskSpec(code=f"review-{name}", name=name, assignee=assignee, depends_on=(work,), reviews=work)
        for name in "ab"[: rng.choice((1, 2))]
    ]
    decision = TaskSpec(
        code="decide",
        name="decide",
        assignee="",
        depends_on=tuple(review.code for review in reviews),
        max_review_rounds=rng.randint(1, 4),
        fixer=rng.choice(("", "sh")),
    )
    behind = [
        msgspec.structs.replace(t, depends_on=(*(d for d in t.depends_on if d != work), "decide"))
        if work in t.depends_on and rng.random() < 0.7
        else t
        for t in tasks
    ]
    return [*behind, *reviews, decision]


def random_plan(rng: Random) -> PlanSpec:
    """A DAG of one to nine tasks: chains, joins, or nothing in common."""
    density = rng.choice((0.0, 0.2, 0.5, 0.9))
    by_hand = rng.choice((0.0, 0.0, 0.3))
    codes = [f"T{i}" for i in range(rng.randint(1, 9))]
    tasks = [
        TaskSpec(
            code=code,
            name=code,
            assignee="ann" if rng.random() < by_hand else "sh",
            depends_on=tuple(earlier for earlier in codes[:place] if rng.random() < density),
            retry=rng.choice(
                (None, None, Retry(max_attempts=rng.randint(1, 4), backoff_s=rng.choice((0.0, 1.0, 60.0))))
            ),
        )
        for place, code in enumerate(codes)
    ]
    if rng.random() < 0.4:
        tasks = with_review_loop(rng, tasks)
    rng.shuffle(tasks)
    return PlanSpec(
        name="simulated",
        tasks=tuple(tasks),
        agents={"sh": AgentSpec(sdk_type="command", command=("true",)), "ann": ANN},
        max_parallel=rng.choice((1, 2, 64)),
    )

"""A real nats-server, planners, and a runner that only pretends to make plans."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable

from nats.aio.client import Client

from services.planner.drafting import Drafting
from services.planner.past_runs import PastRuns
from shared import commands as c
from shared import plan as plans
from shared.bus import BusSettings, connect
from shared.clock import Clock, new_id, new_plan_id, utc_now
from shared.events import PlanFault, Result, TaskDispatched, Usage
from shared.jetstream import JetStreamStore
from shared.plan import PlanState
from shared.spec import AgentSpec, ProjectAgent
from shared.store import Meta, Recorded
from shared.streams import declare_streams
from shared.subjects import PLAN, entity_filter, is_draft
from shared.transact import to_plan, to_task
from tests.nats_process import NatsServer

DEADLINE_S = 60.0
ANN = Meta(actor="user:ann", correlation="ann's wish")
COST = Usage(input_tokens=7, cost_usd=0.25)
CODER = ProjectAgent(
    slug="coder", name="Ada", type_name="Big", spec=AgentSpec(sdk_type="claude", model="m", agent_id="1")
)
PLANNER = AgentSpec(sdk_type="claude", model="planning-model", agent_id="9")
PLAN_TEXT = json.dumps({"name": "Made", "tasks": [{"code": "T1", "name": "One", "assignee": "coder"}]})
WANTED = c.Request(
    goal="Log in with a password",
    project="project-1",
    mode="auto",
    planning_mode="balanced",
    agents=(CODER,),
    repo_url="https://example.org/r.git",
    base_commit="b" * 40,
    planner=PLANNER,
    budget_usd=2.0,
    timeout_s=600.0,
)

Reply = str | c.Fail | None
"""An answer, an end without one, or nothing: the attempt is handed back."""
Answers = Callable[[str, TaskDispatched], Reply]


def failed(message: str, *faults: str) -> c.Fail:
    told = tuple(PlanFault(message=fault) for fault in faults)
    return c.Fail(
        now=utc_now(), phase="open", lease=1, kind="verification_failed", message=message, usage=COST, faults=told
    )


class Studio:
    """What a test of the planner has at hand."""

    def __init__(self, nc: Client, settings: BusSettings) -> None:
        self.nc = nc
        self.settings = settings
        self.store = JetStreamStore(nc, settings.log_key)
        self.taken: list[tuple[str, str, TaskDispatched]] = []
        self._running: list[asyncio.Task[None]] = []

    async def ask(self, request: c.Request = WANTED, plan: str = "") -> str:
        plan = plan or new_plan_id()
        await to_plan(self.store, plan, request, ANN)
        return plan

    def start_planner(self, clock: Clock = utc_now) -> tuple[Drafting, asyncio.Task[None]]:
        drafting = Drafting(self.store, clock, PastRuns())
        task = asyncio.create_task(drafting.run())
        self._running.append(task)
        return drafting, task

    def start_runner(self, answers: Answers) -> None:
        self._running.append(asyncio.create_task(self._run(answers)))

    async def stop(self, task: asyncio.Task[None]) -> None:
        """Ends it as a kill would."""
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def close(self) -> None:
        for task in self._running:
            await self.stop(task)
        await self.nc.close()

    async def until(self, plan: str, met: Callable[[PlanState], bool]) -> PlanState:
        """The plan as soon as it looks like that."""
        state = plans.INITIAL
        try:
            async with asyncio.timeout(DEADLINE_S):
                async for batch in self.store.follow(filters=(entity_filter(plan, PLAN),)):
                    for record in batch.events:
                        assert record.event is not None, record.fault
                        state = plans.evolve(state, record.event)
                        if met(state):
                            return state
        except TimeoutError as error:
            error.add_note(f"the plan is {state.status}, asked for {state.requests}")
            raise
        raise AssertionError("following a log does not end")

    async def until_seen(self, plan: str, entity: str, type_: str, times: int = 1) -> list[Recorded]:
        """Everything about that entity as soon as an event of the type is there so often."""
        records: list[Recorded] = []
        try:
            async with asyncio.timeout(DEADLINE_S):
                async for batch in self.store.follow(filters=(entity_filter(plan, entity),)):
                    for record in batch.events:
                        records.append(record)
                        times -= record.type == type_
                        if times == 0:
                            return records
        except TimeoutError as error:
            error.add_note(f"there is {[record.type for record in records]}")
            raise
        raise AssertionError("following a log does not end")

    async def types(self, plan: str, entity: str) -> list[str]:
        return [record.type for record in await self.store.read(plan, entity)]

    async def cancel(self, plan: str, entity: str) -> None:
        await to_task(self.store, plan, entity, c.CancelTask(phase="open"), ANN)

    async def _run(self, answers: Answers) -> None:
        async with asyncio.TaskGroup() as group:
            async for batch in self.store.follow(filters=("treadle.evt.*.*.*.dispatched.*",)):
                for record in batch.events:
                    if isinstance(record.event, TaskDispatched) and is_draft(record.entity):
                        self.taken.append((record.plan, record.entity, record.event))
                        group.create_task(self._take(record.plan, record.entity, record.event, answers))

    async def _take(self, plan: str, entity: str, dispatch: TaskDispatched, answers: Answers) -> None:
        start = c.Start(phase="open", dispatch=dispatch.dispatch, runner="r", execution=new_id())
        try:
            lease = (await to_task(self.store, plan, entity, start, ANN)).state.lease
            reply = answers(entity, dispatch)
            command: c.TaskCommand
            if reply is None:
                command = c.Release(lease=lease, reason="the runner stops", usage=Usage())
            elif isinstance(reply, str):
                command = self._complete(entity, lease, reply)
            else:
                command = c.Fail(
                    now=utc_now(), phase="open", lease=lease, kind=reply.kind, message=reply.message,
                    faults=reply.faults, usage=COST,
                )  # fmt: skip
            await to_task(self.store, plan, entity, command, ANN)
        except c.Refused:
            return

    def _complete(self, entity: str, lease: int, answer: str) -> c.Complete:
        return c.Complete(
            lease=lease,
            base_commit="b" * 40,
            commit="b" * 40,
            result=Result(task_code=entity, summary="a plan"),
            answer=answer,
            usage=COST,
        )


@contextlib.asynccontextmanager
async def studio(server: NatsServer, log_key: bytes | None = None) -> AsyncIterator[Studio]:
    settings = BusSettings(server.url, server.user, server.password, log_key)
    nc = await connect(settings, "test")
    await declare_streams(nc.jetstream())
    made = Studio(nc, settings)
    try:
        yield made
    finally:
        await made.close()

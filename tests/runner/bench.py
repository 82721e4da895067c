"""A real nats-server with dispatched tasks in it, and a runner in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

from services.runner.agents import AgentRunner, AgentSession, Asks, Finished, Job, Report
from services.runner.credentials import CredentialDesk
from services.runner.delivery_executor import DeliverExecutor
from services.runner.execution import AgentExecutor
from services.runner.lease import Journal
from services.runner.runner import Executor, Runner
from services.runner.sandbox import Sandbox
from shared import events as e
from shared.bus import BusSettings, connect
from shared.clock import new_plan_id, utc_now
from shared.events import TaskStarted
from shared.jetstream import JetStreamStore
from shared.requests import CredentialsReply, CredentialsRequest, lease_context
from shared.sealed import SealKey, seal
from shared.spec import AgentSpec, PlanSpec, TaskSpec
from shared.store import Meta, Recorded
from shared.streams import EVENTS, HEARTBEAT_S, declare_pool, declare_streams, pool_consumer_name
from shared.subjects import CREDENTIALS, DELIVER_POOL, PLAN, plan_filter
from tests.nats_process import NatsServer
from tests.runner.repositories import PROJECT_ID

META = Meta(actor="test")
WITHIN_S = 150.0
"""More than `ack_wait`, after which a message that was lost on its way is sent again."""
TYPE_ID = "0123456789abcdef01234567"
AGENT = AgentSpec(sdk_type="claude", agent_id=TYPE_ID, agent_type_id=TYPE_ID)


class Recorder:
    """An agent that only notes what it is given, and waits if asked to."""

    needs_credentials = True
    resumes = False

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.works = asyncio.Event()

    @asynccontextmanager
    async def open(self, job: Job, report: Report) -> AsyncIterator[AgentSession]:
        yield Noting(self, job)


@dataclass
class Noting:
    """One lease's session with a `Recorder`."""

    recorder: Recorder
    job: Job

    async def turn(self, message: str) -> Finished | Asks:
        self.recorder.jobs.append(self.job)
        self.recorder.works.set()
        await self.recorder.goes_on.wait()
        (self.job.cwd / "work.txt").write_text("work\n")
        return Finished(kind="completed", summary="noted")


@dataclass
class Gateway:
    """Answers for credentials as a gateway does: sealed to the runner that `started` names."""

    store: JetStreamStore
    secrets: dict[str, msgspec.Struct] = field(default_factory=dict)
    """By kind."""
    refusal: str = ""
    asked: list[CredentialsRequest] = field(default_factory=list)

    async def answer(self, message: Msg) -> None:
        request = msgspec.json.decode(message.data, type=CredentialsRequest)
        self.asked.append(request)
        await message.respond(msgspec.json.encode(await self._reply(request)))

    async def _reply(self, request: CredentialsRequest) -> CredentialsReply:
        if self.refusal:
            return CredentialsReply(refused=self.refusal)
        secret = self.secrets.get(request.kind)
        if secret is None:
            return CredentialsReply()
        starts = [
            r.event for r in await self.store.read(request.plan, request.task) if isinstance(r.event, TaskStarted)
        ]
        context = lease_context(request.plan, request.task, request.lease, request.kind)
        (started,) = (start for start in starts if start.lease == request.lease)
        return CredentialsReply(sealed=seal(started.seal_to, msgspec.json.encode(secret), context))


class Bench:
    """The bus, and what a test does with it."""

    def __init__(self, nc: Client, directory: Path) -> None:
        self.nc = nc
        self.store = JetStreamStore(nc)
        self.gateway = Gateway(self.store)
        self.directory = directory
        self.data_dir = directory / "data"
        self.seal_key = SealKey()

    async def open_gateway(self) -> None:
        """From now on somebody answers."""
        await self.nc.subscribe(CREDENTIALS, queue="gateway", cb=self.gateway.answer)
        await self.nc.flush()

    def desk(self, ask_for_s: float = 60.0) -> CredentialDesk:
        return CredentialDesk(self.nc, self.seal_key, self.directory / "private", ask_for_s=ask_for_s)

    async def dispatch(
        self,
        repo_url: str,
        base: str,
        agent: AgentSpec | None = AGENT,
        project: str = PROJECT_ID,
        task: str = "T1",
        **more: Any,
    ) -> str:
        """Puts a plan of one dispatched task into the log; returns the plan's id. `more` is of the dispatch."""
        plan = new_plan_id()
        spec = TaskSpec(code="T1", name="A task", assignee="a", timeout_minutes=1)
        whole = PlanSpec(name="A plan", tasks=(spec,), agents={"a": AGENT})
        for event in (
            e.PlanDrafted(candidate="1", spec=whole, repo_url=repo_url, base_commit=base, project=project),
            e.PlanFinalizing(candidate="1", digest="d", count=1),
            e.PlanFinalized(digest="d"),
        ):
            last = await self.store.last_seq(plan, PLAN)
            await self.store.append(plan, PLAN, event, META, expected=last)
        planned = e.TaskPlanned(digest="d", index=0, spec=msgspec.structs.replace(spec), agent=agent)
        seq = await self.store.append(plan, task, planned, META, expected=0)
        dispatched = e.TaskDispatched(
            dispatch=1, attempt=1, prompt="do it", agent=agent, project=project, repo_url=repo_url, base_commit=base,
            heads=(), plan_name="A plan", task_name="A task", timeout_s=600, budget_usd=1,
        )  # fmt: skip
        await self.store.append(plan, task, msgspec.structs.replace(dispatched, **more), META, expected=seq)
        return plan

    async def set_ack_wait(self, ack_wait_s: float) -> None:
        """After how long a silent runner's message goes to another one."""
        info = await self.nc.jetstream().consumer_info(EVENTS, pool_consumer_name("claude"))
        info.config.ack_wait = ack_wait_s
        await self.nc.jetstream().add_consumer(EVENTS, info.config)

    async def in_progress_heard(self) -> None:
        """Waits until a runner says that it is at work."""
        subscription = await self.nc.subscribe(f"$JS.ACK.{EVENTS}.{pool_consumer_name('claude')}.>", max_msgs=1)
        assert (await subscription.next_msg(timeout=60)).data == b"+WPI"

    async def event(self, plan: str, *types: str, task: str = "T1") -> Recorded:
        """Waits for the first event of one of the types."""
        async with asyncio.timeout(WITHIN_S):
            async for batch in self.store.follow(filters=(plan_filter(plan),)):
                for record in batch.events:
                    if record.entity == task and record.type in types:
                        return record
        raise AssertionError("the log never ends")

    @asynccontextmanager
    async def runner(
        self,
        agent: AgentRunner,
        name: str = "r1",
        ask_for_s: float = 60.0,
        heartbeat_s: float = HEARTBEAT_S,
        sandbox: Sandbox | None = None,
        pool: str = "claude",
    ) -> AsyncIterator[Runner]:
        """A runner with two slots; stopped at the end of the block."""
        executors: dict[str, Executor] = {
            pool: AgentExecutor(self.data_dir, agent, {}, sandbox),
            DELIVER_POOL: DeliverExecutor(self.data_dir, {}, None),
        }
        journal = Journal(self.directory / name)
        runner = Runner(self.nc, name, executors, 2, journal, self.desk(ask_for_s), utc_now, heartbeat_s)
        running = asyncio.create_task(runner.run())
        try:
            yield runner
        finally:
            runner.stop()
            await running


async def reached(condition: Callable[[], object], within_s: float = 60.0) -> None:
    """Returns once the condition holds."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - what is looked at does not tell
            await asyncio.sleep(0.02)


@asynccontextmanager
async def open_bench(server: NatsServer, directory: Path) -> AsyncIterator[Bench]:
    """A bench on a server of its own, with its streams."""
    nc = await connect(BusSettings(server.url, server.user, server.password), "test")
    try:
        await declare_streams(nc.jetstream())
        for pool in ("claude", "command", DELIVER_POOL):
            await declare_pool(nc.jetstream(), pool)
        yield Bench(nc, directory)
    finally:
        await nc.close()

"""Simulated runners and the queue that feeds them: the real decisions, with invented work."""

import asyncio
import contextlib
from collections.abc import Callable
from datetime import timedelta
from random import Random
from typing import NamedTuple

from shared import commands as c
from shared.clock import Clock
from shared.events import Conflict, FailureKind, Finding, Result, Review, TaskDispatched, Usage
from shared.plan import PlanState
from shared.spec import DELIVER
from shared.store import EventStore, MemoryStore, Meta
from shared.subjects import MANUAL_POOL, pool
from shared.task import LEASED
from shared.transact import Loaded, load_plan, load_task, patiently, to_task

ACK_WAIT_S = 60.0
HEARTBEAT_S = 10.0

FAILURES: tuple[FailureKind, ...] = (
    "agent_error",
    "unavailable",
    "verification_failed",
    "usage_limit",
    "merge_conflict",
    "merge_conflict",
    "merge_conflict",
    "timeout",
)


class Delivery:
    """A dispatch on its way, as the server keeps it until it is acknowledged."""

    def __init__(self, plan: str, task: str, event: TaskDispatched) -> None:
        self.plan, self.task, self.event = plan, task, event
        self.acknowledged = False
        self.heard_of_s = 0.0


class Queue:
    """The pools' consumers: hands out each dispatch, again after a silence, and sometimes twice for no reason."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._waiting: asyncio.Queue[Delivery] = asyncio.Queue()
        self._past: list[Delivery] = []
        self.repeats_rate = 0.05

    async def pump(self, log: MemoryStore) -> None:
        async for batch in log.follow():
            for record in batch.events:
                if isinstance(record.event, TaskDispatched) and pool(record.event) != MANUAL_POOL:
                    delivery = Delivery(record.plan, record.entity, record.event)
                    self._past.append(delivery)
                    self._waiting.put_nowait(delivery)
                    if self._rng.random() < self.repeats_rate:
                        self._waiting.put_nowait(self._rng.choice(self._past))

    async def next(self) -> Delivery:
        delivery = await self._waiting.get()
        loop = asyncio.get_running_loop()
        delivery.heard_of_s = loop.time()
        loop.call_later(ACK_WAIT_S, self._look_after, delivery)
        return delivery

    def _look_after(self, delivery: Delivery) -> None:
        loop = asyncio.get_running_loop()
        silent_s = loop.time() - delivery.heard_of_s
        if delivery.acknowledged:
            return
        if silent_s >= ACK_WAIT_S - 0.001:
            self._waiting.put_nowait(delivery)
        else:
            loop.call_later(ACK_WAIT_S - silent_s, self._look_after, delivery)


class Key(NamedTuple):
    plan: str
    task: str
    lease: int


class Chances:
    """How the world treats runners. All zero: everything succeeds."""

    def __init__(self) -> None:
        self.failure = 0.15
        self.sleep = 0.04
        """Not scheduled for minutes, then goes on as if nothing had happened."""
        self.hand_back = 0.05
        self.asks = 0.08


class SimulatedRunner:
    """What `services.runner.runner` does with the log, one task at a time."""

    def __init__(
        self,
        name: str,
        store: EventStore,
        queue: Queue,
        rng: Random,
        clock: Clock,
        chances: Chances,
        everybody: "dict[str, SimulatedRunner]",
        journal: set[Key],
        plan_text: Callable[[str], str],
    ) -> None:
        self.name = name
        self._plan_text = plan_text
        self._store, self._queue, self._rng, self._clock = store, queue, rng, clock
        self._chances, self._everybody, self._journal = chances, everybody, journal
        self._asleep = False
        self._held: Key | None = None

    async def run(self) -> None:
        """Works until it is killed. What a former life held is handed back first."""
        for key in list(self._journal):
            back = c.Release(lease=key.lease, reason="came back", lost=True)
            with contextlib.suppress(c.StaleLease):
                await to_task(self._store, key.plan, key.task, back, self._meta())
            self._journal.discard(key)
        while True:
            await self._handle(await self._queue.next())

    async def answers_for(self, key: Key) -> bool:
        """The question of whoever would supersede us; a second without an answer is a no."""
        await asyncio.sleep(1.0 if self._asleep else 0.01)
        return not self._asleep and self._held == key

    async def _handle(self, delivery: Delivery) -> None:
        plan, task, dispatch = delivery.plan, delivery.task, delivery.event
        execution, superseded = f"{self.name}-{self._rng.getrandbits(60):x}", None
        for _ in range(5):
            known = await self._plan(plan)
            start = c.Start(
                phase=known.state.phase_for(task),
                dispatch=dispatch.dispatch,
                runner=self.name,
                execution=execution,
                reopened=await self._reopened(plan, dispatch),
                supersede_lease=superseded,
                lost_usage=self._rng.choice((None, Usage(input_tokens=1))),
            )
            try:
                decided = await to_task(self._store, plan, task, start, self._meta(known.seq))
            except c.Obsolete:
                delivery.acknowledged = True
                return
            except c.Held as held:
                holder = self._everybody.get(held.runner)
                if holder is not None and await holder.answers_for(Key(plan, task, held.lease)):
                    return
                superseded = held.lease
                continue
            if decided.state.status not in LEASED:
                delivery.acknowledged = True
                return
            await self._work(delivery, Key(plan, task, decided.state.lease))
            return

    async def _plan(self, plan: str) -> Loaded[PlanState]:
        return await patiently(lambda: load_plan(self._store, plan))

    async def _reopened(self, plan: str, dispatch: TaskDispatched) -> tuple[str, ...]:
        states = {
            code: (await patiently(lambda code=code: load_task(self._store, plan, code))).state  # type: ignore[misc]  # mypy can't infer a lambda's default
            for code in dispatch.abandoned
        }
        return tuple(code for code, state in states.items() if state.status != "abandoned" or state.reopening)

    async def _work(self, delivery: Delivery, key: Key) -> None:
        self._held = key
        self._journal.add(key)
        cancelled = False
        await self._use_approval(key)
        left_s = self._rng.expovariate(1 / 15)
        while left_s > 0 and not cancelled:
            if self._rng.random() < self._chances.sleep:
                self._asleep = True
                await asyncio.sleep(self._rng.random() * 4 * ACK_WAIT_S)
                self._asleep = False
                break
            await asyncio.sleep(min(left_s, HEARTBEAT_S))
            left_s -= HEARTBEAT_S
            state = (await patiently(lambda: load_task(self._store, key.plan, key.task))).state
            if state.lease != key.lease or state.status not in LEASED:
                self._forget(key)  # stale: silence
                return
            delivery.heard_of_s = asyncio.get_running_loop().time()
            cancelled = state.status == "cancelling"
        command = await self._ending(delivery, key, cancelled)
        self._held = None
        try:
            await to_task(self._store, key.plan, key.task, command, self._meta())
        except c.StaleLease:
            self._forget(key)
            return
        delivery.acknowledged = True
        self._forget(key)

    def _forget(self, key: Key) -> None:
        self._held = None
        self._journal.discard(key)

    async def _use_approval(self, key: Key) -> None:
        """As a runner does before it lets an allowed call run; whoever takes over finds it used."""
        asked = (await patiently(lambda: load_task(self._store, key.plan, key.task))).state.approval
        if asked is not None and asked.answer == "granted" and not asked.used_by:
            with contextlib.suppress(c.Refused):
                use = c.UseApproval(lease=key.lease, approval=asked.approval)
                await to_task(self._store, key.plan, key.task, use, self._meta())

    async def _ending(self, delivery: Delivery, key: Key, cancelled: bool) -> c.TaskCommand:
        if not cancelled and self._rng.random() < self._chances.hand_back:
            return c.Release(lease=key.lease, reason="stopped", usage=Usage(input_tokens=1))
        if not cancelled and key.task != DELIVER and self._rng.random() < self._chances.asks:
            return c.RequestApproval(
                now=self._clock(),
                phase=(await self._plan(key.plan)).state.phase_for(key.task),
                lease=key.lease,
                approval=f"{key.task}.{key.lease}",
                kind="tool",
                why="simulated",
                expires_at=self._clock() + timedelta(seconds=self._rng.choice((1, 60, 600))),
                usage=Usage(input_tokens=1),
            )
        if not cancelled and self._rng.random() >= self._chances.failure:
            if delivery.event.rules.answer == "review":
                return self._reviewed(delivery.event, key)
            if delivery.event.rules.answer == "plan":
                return self._planned(key)
            return c.Complete(
                lease=key.lease,
                base_commit="base",
                commit=f"{key.task}@{delivery.event.dispatch}.{key.lease}",
                result=Result(task_code=key.task, summary=f"did {key.task}"),
                usage=Usage(input_tokens=1),
            )
        kind: FailureKind = "cancelled" if cancelled else self._rng.choice(FAILURES)
        return c.Fail(
            now=self._clock(),
            phase=(await self._plan(key.plan)).state.phase_for(key.task),
            lease=key.lease,
            kind=kind,
            message=kind,
            usage=Usage(input_tokens=1),
            retry_after_s=self._rng.choice((None, 0.0, 30.0)),
            jitter=self._rng.random(),
            conflict=Conflict(files=("a",), tasks=(key.task,)) if kind == "merge_conflict" else None,
        )

    def _reviewed(self, dispatch: TaskDispatched, key: Key) -> c.Complete:
        """A verdict, sometimes on a commit that nobody asked about."""
        work = next((head.commit for head in dispatch.heads if head.task == dispatch.rules.reviews), "base")
        looked_at = work if self._rng.random() < 0.95 else "another"
        findings = (Finding(message="wrong", severity="major", file="a.py", line=1),)
        approve = self._rng.random() < 0.6
        review = Review(
            approve=approve, findings=() if approve else findings, round=dispatch.rules.round, commit=looked_at
        )
        return c.Complete(
            lease=key.lease,
            base_commit=work,
            commit=work,
            result=Result(task_code=key.task, summary="looked at it", review=review),
            usage=Usage(input_tokens=1),
        )

    def _planned(self, key: Key) -> c.Complete:
        """A plan, which is not always one: the planner has the last word."""
        answer = self._plan_text(key.plan) if self._rng.random() < 0.8 else '{"name": "half a plan"}'
        result = Result(task_code=key.task, summary="a plan")
        return c.Complete(
            lease=key.lease,
            base_commit="base",
            commit="base",
            result=result,
            answer=answer,
            usage=Usage(input_tokens=1),
        )

    def _meta(self, seen: int = 0) -> Meta:
        return Meta(actor=f"runner:{self.name}", seen=seen)

"""The runner: takes a dispatch, opens a lease, has the work done, reports, and stays silent once its lease is over.

The order at the end is what makes a crash harmless at any point: the executor has stored the commit under the lease's
own ref; `completed` is appended; the task's head ref is moved; the message is acknowledged. Whoever gets the message
of a finished task repeats the move and acknowledges.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from typing import Protocol

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from services.runner.agents import Activity, Finished
from services.runner.answers import ask_planner
from services.runner.checkpoint import Checkpoints, Fenced, LeaseMemory
from services.runner.credentials import CredentialDesk
from services.runner.endings import Ending, command_of
from services.runner.former_life import FormerLife
from services.runner.git_access import GitAccess
from services.runner.lease import AGENT_ENDS_WITHIN_S, SAVE_WITHIN_S, Completion, Journal, Key, Lease, Taken
from services.runner.pull import SlotPull
from services.runner.transcript import Transcripts, without_secrets
from shared import commands as c
from shared.clock import Clock, new_id
from shared.events import Event, TaskDispatched, TaskStarted
from shared.jetstream import JetStreamStore, read_message
from shared.plan import INITIAL as NO_PLAN
from shared.plan import PlanState, evolve
from shared.requests import PRESENCE_LEASES_MAX, PresentLease, RunnerPresence
from shared.skipped import reaches_back, skipped_seq
from shared.store import Meta, Recorded, StoreUnavailable
from shared.streams import EVENTS, HEARTBEAT_S
from shared.subjects import CANCEL_REQUESTS, PLAN, pool, runner_holds
from shared.task import LEASED, TaskState
from shared.transact import Decided, Loaded, UnreadableEntity, fold, load_task, patiently, to_task

log = logging.getLogger("treadle.runner")

ASK_TIMEOUT_S = 1.0
"""How long the holder of a lease has to say that it lives."""
TAKEOVERS_MAX = 5
HAND_BACK_WITHIN_S = AGENT_ENDS_WITHIN_S + SAVE_WITHIN_S + 1.0
"""How long an interrupted lease may take when we stop; the application's own patience is longer."""
PLANS_KEPT = 200
KEY_LOOK_EVERY_S = 5.0
"""How soon a task that waits for a runner with a key is offered again."""
READABLE_LOOK_EVERY_S = 2.0
"""How soon a task goes on that could not be read, or whose plan couldn't, once that event is left out."""


class Executor(Protocol):
    """Does the work of one pool's attempts."""

    async def execute(self, lease: Lease, report: Callable[[Activity], None]) -> Ending:
        """The work. Cancelled, it leaves no process behind, and where `lease.hands_back`, it first saves what there is.

        Raises nothing else but `Fenced`, where a newer lease has taken over: a fault is a `Finished`.
        """
        ...

    async def salvage(
        self, key: Key, dispatch: TaskDispatched, access: GitAccess | None, memory: LeaseMemory | None
    ) -> None:
        """Of a lease of a former life, whose processes have ended: saves the files for the next lease.

        Harmless where there are none. `memory` stores for that lease, as long as it is not over; None: it has none.
        """
        ...

    async def settle(self, plan: str, task: str, dispatch: TaskDispatched, commit: str) -> None:
        """After `completed` is in the log: moves the task's head ref. Harmless when repeated."""
        ...

    async def tidy(self, lease: Lease) -> None:
        """The lease has ended, one way or another: removes what nobody needs of it."""
        ...


class Holds(msgspec.Struct, frozen=True):
    """The answer to "is this lease alive with you?"."""

    holds: bool


class Runner:
    """One runner process's work."""

    def __init__(
        self,
        nc: Client,
        name: str,
        executors: Mapping[str, Executor],
        slots: int,
        journal: Journal,
        desk: CredentialDesk,
        clock: Clock,
        heartbeat_s: float = HEARTBEAT_S,
        hindrance: Callable[[], str] = lambda: "",
        has_key: bool = True,
    ) -> None:
        """Without a key of its own it leaves the tasks that need one in the queue: they must not fail by a suite that
        somebody started just to look at its plans."""
        self.name = name
        self._has_key = has_key
        self._left_for_key = False
        self._nc = nc
        self._store = JetStreamStore(nc)
        self._executors = executors
        self._journal = journal
        self._desk = desk
        self._clock = clock
        self._heartbeat_s = heartbeat_s
        self._leases: dict[tuple[str, str], Lease] = {}
        self._plans: dict[str, Loaded[PlanState]] = {}
        self._folding_plan = asyncio.Lock()
        self._transcripts = Transcripts(nc)
        self._checkpoints = Checkpoints(nc)
        self._former_life = FormerLife(name, self._store, self._checkpoints, journal, executors)
        self._slots = slots
        self._pull = SlotPull(nc, list(executors), slots, self._handle, hindrance)
        self._goes = False
        """We have stopped, and nothing more can come to us."""
        self._started = clock()
        self.came_back = asyncio.Event()
        """What a former life held was handed back."""

    async def run(self) -> None:
        """Works until `stop`; then everything at work has been handed back."""
        await self._former_life.hand_back()
        self.came_back.set()
        log_end = (await self._nc.jetstream().stream_info(EVENTS)).state.last_seq
        background = [
            asyncio.create_task(self._hear_cancels(log_end)),
            asyncio.create_task(self._transcripts.run()),
        ]
        try:
            await self._pull.run()
            # Only now: what is handed back is dispatched anew at once, and must not come to us, who go.
            self._goes = True
            for lease in list(self._leases.values()):
                self._hand_back(lease)
            # One that fails must not cut off the others' handing back; the pull logs what failed.
            await asyncio.gather(*self._pull.at_work, return_exceptions=True)
            with contextlib.suppress(TimeoutError):  # people's view of the last second is not worth hanging for
                await asyncio.wait_for(self._transcripts.flush(), timeout=1)
        finally:
            for task in background:
                task.cancel()

    def stop(self) -> None:
        """Takes nothing more and hands back what runs."""
        self._pull.stop()

    def holds(self, key: Key) -> Holds:
        """Whether we are running that lease."""
        lease = self._leases.get((key.plan, key.task))
        return Holds(lease is not None and lease.key == key and not lease.stale)

    def presence(self) -> RunnerPresence:
        """What we say of ourselves just now."""
        keys = [lease.key for lease in self._leases.values()]
        return RunnerPresence(
            runner=self.name,
            pools=tuple(self._executors),
            slots=self._slots,
            busy=len(self._pull.at_work),
            leases=tuple(PresentLease(key.plan, key.task, key.lease) for key in keys[:PRESENCE_LEASES_MAX]),
            started=self._started,
            version=version("treadle-runner"),
            without_key=self._left_for_key,
        )

    # Taking -------------------------------------------------------------------------------------------------------

    async def _handle(self, message: Msg) -> None:
        """One delivery, from its arrival to its acknowledgement or to our silence."""
        record = read_message(message)
        dispatch = record.event
        if not isinstance(dispatch, TaskDispatched):
            log.error("event %d can't be run: %s", record.seq, record.fault)
            events = await patiently(lambda: self._store.read(record.plan, record.entity))
            if any(skipped_seq(later) == record.seq for later in events):
                await self._acknowledge(message)
            return
        note = self._journal.add(Taken(record.plan, record.entity, dispatch.dispatch))
        try:
            await self._handle_dispatch(record, dispatch, message)
        finally:
            self._journal.remove(note)

    async def _handle_dispatch(self, record: Recorded, dispatch: TaskDispatched, message: Msg) -> None:
        plan, task = record.plan, record.entity
        if not self._has_key and await self._waits_for_key(plan, task, dispatch):
            await message.nak(delay=KEY_LOOK_EVERY_S)
            return
        try:
            decided = await self._take(plan, task, record.seq, dispatch, message, record.meta.correlation)
        except c.Obsolete:
            await self._acknowledge_obsolete(plan, task, dispatch, message)
            return
        except UnreadableEntity as fault:
            log.warning("plan %s task %s is offered again: %s", plan, task, fault)
            await message.nak(delay=READABLE_LOOK_EVERY_S)
            return
        if decided is None:  # a live runner has it, maybe we ourselves: its heartbeats keep the message
            return
        if decided.state.status not in LEASED:  # released, cancelled, or given up: there is nothing to run
            await self._acknowledge(message)
            return
        key = Key(plan, task, decided.state.lease)
        credentials = self._desk.of(plan, task, key.lease)
        lease = Lease(key, decided.seq, dispatch, message, record.meta.correlation, credentials, decided.state)
        lease.use_approval = partial(self._use_approval, lease)
        lease.ask_planner = partial(ask_planner, self._nc)
        await self._hold(lease, await self._resumes(key, decided.event), Loaded(decided.state, decided.seq))

    async def _waits_for_key(self, plan: str, task: str, dispatch: TaskDispatched) -> bool:
        agent = dispatch.agent
        if agent is None or agent.sdk_type != "claude" or agent.agent_type_id:
            return False
        state = (await patiently(lambda: load_task(self._store, plan, task))).state
        if state.dispatch != dispatch.dispatch or state.status not in ("queued", "running"):
            return False
        if not self._left_for_key:
            log.warning("no ANTHROPIC_API_KEY: tasks that need it stay in the queue, as %s of plan %s does", task, plan)
            self._left_for_key = True
        return True

    async def _take(
        self, plan: str, task: str, seq: int, dispatch: TaskDispatched, message: Msg, correlation: str
    ) -> Decided[TaskState] | None:
        """Asks the log for a lease. None where another live runner holds it, or we do."""
        execution, superseded, lost_usage = new_id(), None, None
        for _ in range(TAKEOVERS_MAX):
            known = await self._plan(plan)
            command = c.Start(
                phase=known.state.phase_for(task),
                dispatch=dispatch.dispatch,
                runner=self.name,
                execution=execution,
                reopened=await self._reopened(plan, dispatch),
                supersede_lease=superseded,
                lost_usage=lost_usage,
                seal_to=self._desk.seal_to,
            )
            try:
                return await to_task(self._store, plan, task, command, self._meta(seq, correlation, known.seq))
            except c.Held as held:
                key = Key(plan, task, held.lease)
                if held.runner == self.name and self.holds(key).holds:
                    self._leases[plan, task].delivery = message
                    return None
                if held.runner != self.name and await self._lives(held.runner, key):
                    return None
                superseded, lost_usage = held.lease, await self._checkpoints.usage_of(key)
        log.warning("plan %s task %s: its lease changed hands %d times while we asked", plan, task, TAKEOVERS_MAX)
        return None

    async def _resumes(self, key: Key, event: Event | None) -> int:
        """The lease whose conversation and files a new one goes on with."""
        if isinstance(event, TaskStarted):
            return event.resumes
        events = await patiently(lambda: self._store.read(key.plan, key.task))
        starts = (record.event for record in events if isinstance(record.event, TaskStarted))
        return next(start.resumes for start in starts if start.lease == key.lease)

    async def _plan(self, plan: str) -> Loaded[PlanState]:
        """The plan's own state as of now, without its tasks; only what is new is read."""
        newest = await patiently(lambda: self._store.last_seq(plan, PLAN))
        async with self._folding_plan:  # a plan may be megabytes: sixty starts at once must not each read it
            loaded = self._plans.pop(plan, Loaded(NO_PLAN, 0))
            if loaded.seq < newest:
                events = await patiently(lambda: self._store.read(plan, PLAN, after=loaded.seq))
                if reaches_back(events, loaded.seq):
                    loaded = Loaded(NO_PLAN, 0)
                    events = await patiently(lambda: self._store.read(plan, PLAN))
                folded = fold(loaded.state, evolve, events, loaded.seq)
                loaded = Loaded(msgspec.structs.replace(folded.state, candidates={}, chosen=None), folded.seq)
            self._plans[plan] = loaded
            if len(self._plans) > PLANS_KEPT:
                self._plans.pop(next(iter(self._plans)))
        return loaded

    async def _reopened(self, plan: str, dispatch: TaskDispatched) -> tuple[str, ...]:
        """Predecessors that were counted as abandoned and are not any more: done by now, their work must be merged."""
        states = [(code, (await load_task(self._store, plan, code)).state) for code in dispatch.abandoned]
        return tuple(code for code, state in states if state.status != "abandoned" or state.reopening)

    async def _lives(self, runner: str, key: Key) -> bool:
        try:
            answer = await self._nc.request(runner_holds(runner), msgspec.json.encode(key), timeout=ASK_TIMEOUT_S)
        except (NatsError, TimeoutError):
            return False
        return msgspec.json.decode(answer.data, type=Holds).holds

    async def _acknowledge_obsolete(self, plan: str, task: str, dispatch: TaskDispatched, message: Msg) -> None:
        """The task went on without this message; if it is finished, its head ref may still have to be moved."""
        state = (await patiently(lambda: load_task(self._store, plan, task))).state
        if state.status == "completed" and state.commit and state.dispatch == dispatch.dispatch:
            await self._settle(plan, task, dispatch, state.commit)
        await self._acknowledge(message)

    # Holding ------------------------------------------------------------------------------------------------------

    async def _hold(self, lease: Lease, resumes: int, known: Loaded[TaskState]) -> None:
        key, redactor = lease.key, lease.credentials.redactor
        self._leases[key.plan, key.task] = lease
        executor = self._executor(lease.dispatch)
        heart = asyncio.create_task(self._beat(lease))
        ending: Ending | None = None

        async def work() -> None:
            nonlocal ending
            try:
                if lease.dispatch.agent is not None:
                    lease.memory = await self._checkpoints.open(key, resumes, lease.dispatch.attempt)
                    lease.memory.on_fenced = lease.in_doubt.set
                ending = await executor.execute(lease, lambda activity: self._transcripts.tell(key, activity, redactor))
            except Fenced as fenced:
                ending = await self._fenced(lease, fenced)
            except Exception as error:
                log.exception("%s: the runner itself failed", key)
                message = f"runner {self.name} failed: {type(error).__name__}: {error}; its log tells more"
                ending = Finished(kind="agent_error", message=message, usage=lease.usage)

        try:
            lease.work = asyncio.create_task(work())
            if self._goes:
                self._hand_back(lease)
            with contextlib.suppress(asyncio.CancelledError):
                await lease.work
            await self._report(lease, ending, known)
        finally:
            heart.cancel()
            if self._leases.get((key.plan, key.task)) is lease:
                del self._leases[key.plan, key.task]
            if lease.memory is not None:
                await lease.memory.close()
            await executor.tidy(lease)

    def _hand_back(self, lease: Lease) -> None:
        """Interrupts the work because we stop; what it can't save in time is lost."""
        lease.interrupt()
        asyncio.get_running_loop().call_later(HAND_BACK_WITHIN_S, lease.cut_off)

    async def _fenced(self, lease: Lease, fenced: Fenced) -> Finished | None:
        """The memory says that a newer lease has taken over. The log has the last word."""
        await patiently(lambda: self._look(lease))
        if lease.stale:
            return None
        message = f"Somebody else stores what this lease alone may store ({fenced}): redispatch the task."
        return Finished(kind="agent_error", message=message, usage=lease.usage)

    async def _use_approval(self, lease: Lease) -> None:
        """See `Lease.use_approval`."""
        if lease.approval is None:
            raise c.Refused("nothing was asked")
        key = lease.key
        command = c.UseApproval(lease=key.lease, approval=lease.approval.approval)
        meta = self._meta(lease.seq, lease.correlation)
        try:
            decided = await to_task(self._store, key.plan, key.task, command, meta)
        except c.StaleLease as stale:
            raise Fenced(str(stale)) from stale
        lease.seq, lease.state = max(lease.seq, decided.seq), decided.state

    async def _beat(self, lease: Lease) -> None:
        """Says that we live, after looking whether the lease still does. The first look comes at once."""
        while True:
            try:
                await self._look(lease)
                if not lease.stale:
                    await lease.delivery.in_progress()
            except (StoreUnavailable, NatsError):
                # An outage of the bus is no reason to stop an agent; the lease holds until somebody supersedes it.
                log.warning("%s: NATS does not answer; working on", lease.key)
            except UnreadableEntity as fault:
                # Nor is this: nobody else can have got the lease meanwhile, and the event may be left out yet.
                log.warning("%s: working on, though %s", lease.key, fault)
                with contextlib.suppress(NatsError):  # as above: the next beat comes
                    await lease.delivery.in_progress()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_s):
                    await lease.in_doubt.wait()
            lease.in_doubt.clear()

    async def _look(self, lease: Lease) -> None:
        key = lease.key
        if await self._store.last_seq(key.plan, key.task) == lease.seq:
            return
        loaded = await load_task(self._store, key.plan, key.task)
        if loaded.state.lease != key.lease or loaded.state.status not in LEASED:
            if not lease.work or not lease.work.done():
                log.warning("%s is over (the task is %s): killing its work", key, loaded.state.status)
            lease.stale = True
            lease.interrupt()
            return
        lease.seq = max(lease.seq, loaded.seq)
        if loaded.state.status == "cancelling":
            lease.cancelling = True
            lease.interrupt()

    async def _hear_cancels(self, after: int) -> None:
        async for batch in self._store.follow(after=after, filters=(CANCEL_REQUESTS,)):
            for record in batch.events:
                lease = self._leases.get((record.plan, record.entity))
                if lease is not None and record.seq > lease.seq:
                    lease.seq = record.seq
                    lease.cancelling = True
                    lease.interrupt()

    # Reporting ----------------------------------------------------------------------------------------------------

    async def _report(self, lease: Lease, ending: Ending | None, known: Loaded[TaskState]) -> None:
        """Tells the log how the work ended. `known` is the task as its start left it: mostly it still is so."""
        while not lease.stale:
            try:
                await self._reported(lease, ending, known)
                return
            except UnreadableEntity as fault:
                if self._goes:  # the next life of this runner, or another one, runs it again
                    raise
                log.warning("%s: its end can't be told yet: %s", lease.key, fault)
                await asyncio.sleep(READABLE_LOOK_EVERY_S)

    async def _reported(self, lease: Lease, ending: Ending | None, known: Loaded[TaskState]) -> None:
        key = lease.key
        plan = await self._plan(key.plan)
        try:
            decided = await to_task(
                self._store,
                key.plan,
                key.task,
                command_of(
                    lease,
                    without_secrets(ending, lease.credentials.redactor),
                    runner=self.name,
                    phase=plan.state.phase_for(key.task),
                    now=self._clock(),
                ),
                self._meta(lease.seq, lease.correlation, plan.seq),
                known=known,
            )
        except c.StaleLease as stale:
            log.warning("%s: %s; its work is dropped", key, stale)
            lease.stale = True
            return
        if decided.event is not None:
            log.info("%s: %s", key, decided.event.name)
        if isinstance(ending, Completion):
            await self._settle(key.plan, key.task, lease.dispatch, ending.commit)
        await self._acknowledge(lease.delivery)

    async def _settle(self, plan: str, task: str, dispatch: TaskDispatched, commit: str) -> None:
        try:
            await self._executor(dispatch).settle(plan, task, dispatch, commit)
        except Exception:
            # The commit is in the log and under the lease's ref, which is all that successors need.
            log.exception("plan %s task %s: the head ref could not be moved to %s", plan, task, commit)

    async def _acknowledge(self, message: Msg) -> None:
        with contextlib.suppress(NatsError):  # it comes again after `ack_wait` and is found obsolete
            await message.ack()

    def _executor(self, dispatch: TaskDispatched) -> Executor:
        return self._executors[pool(dispatch)]

    def _meta(self, causation: int, correlation: str, plan_seq: int = 0) -> Meta:
        """`plan_seq` is the plan's newest event that was folded for what is said of it."""
        seen = max(causation, plan_seq)
        return Meta(actor=f"runner:{self.name}", causation=causation, correlation=correlation, seen=seen)

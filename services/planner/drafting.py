"""Follows the log and has the candidates made that are asked for: dispatches the making, turns its end into a draft.

The making of a candidate is an execution like a task's, under the entity `_draft-N`; a runner does it. Several planners
may run: each decides from the log alone, the append's condition lets one of them win, and the other finds nothing left
to do. Kept in memory are the plans that wait for a candidate, and no others.
"""

import asyncio
import logging
from datetime import timedelta

from services.planner.asked_for import AskedPlan, Making, Step
from services.planner.edit import plan_faults
from services.planner.faults import PlanFaults
from services.planner.past_runs import PastRuns
from services.planner.wanted import read_wanted
from shared import commands as c
from shared import events as e
from shared.clock import Clock
from shared.skipped import skipped_seq, without_skipped
from shared.store import EventStore, EventTooLarge, Meta, Recorded
from shared.subjects import PLAN, draft, is_draft
from shared.transact import Loaded, patiently, to_plan, to_task

log = logging.getLogger("treadle.planner")

LOOK_AGAIN_S = 2.0
"""How late a retry may be. What a runner hands back waits for the next look too."""
REST = timedelta(seconds=20)
"""Between two tries of a step that failed."""
STEPS_IN_FLIGHT = 32
READS_AT_ONCE = 2
"""Answers can be megabytes, and reading one takes a processor."""
TOO_LARGE = "{what} is too large for one message of the log: shorten the goal, or the descriptions of the agents"


class Drafting:
    """One planner's part in the making of candidates: `run` for ever."""

    def __init__(self, store: EventStore, clock: Clock, past_runs: PastRuns) -> None:
        self._store = store
        self._clock = clock
        self._past_runs = past_runs
        self._plans: dict[str, AskedPlan] = {}
        self._at_work: set[asyncio.Task[None]] = set()
        self._gate = asyncio.Semaphore(STEPS_IN_FLIGHT)
        self._reading = asyncio.Semaphore(READS_AT_ONCE)
        self._seen = 0
        self.caught_up = asyncio.Event()
        """Set once the whole log was folded: until then nothing is decided."""

    @property
    def waiting(self) -> tuple[str, ...]:
        """The plans that are kept in memory: those that wait for a candidate."""
        return tuple(self._plans)

    async def run(self) -> None:
        """Folds the log from its beginning, then acts on every event. Ends only by being cancelled."""
        looking = asyncio.create_task(self._look_again())
        try:
            async for batch in self._store.follow():
                touched: dict[str, None] = {}
                for record in batch.events:
                    if skipped_seq(record) and (record.entity == PLAN or is_draft(record.entity)):
                        await self._fold_anew(record)
                    if self._fold(record):
                        touched[record.plan] = None
                if self.caught_up.is_set():
                    self._act(list(touched), looking=False)
                elif batch.caught_up:
                    log.info("folded %d events; %d plans wait for a candidate", self._seen, len(self._plans))
                    self.caught_up.set()
                    self._act(list(self._plans), looking=True)
        finally:
            for work in (looking, *self._at_work):
                work.cancel()

    def _fold(self, record: Recorded) -> bool:
        """Whether the event concerns a plan that waits for a candidate."""
        self._seen = record.seq
        self._past_runs.apply(record)
        return self._fold_asked(record)

    async def _fold_anew(self, skipped: Recorded) -> None:
        """An event is left out from now on: what the plan asks for is read again, up to that word."""
        plan = skipped.plan
        records = await patiently(lambda: self._store.read(plan))
        self._plans.pop(plan, None)
        for record in without_skipped([r for r in records if r.seq < skipped.seq] + [skipped])[:-1]:
            self._fold_asked(record)

    def _fold_asked(self, record: Recorded) -> bool:
        asked = self._plans.get(record.plan)
        if asked is None:
            event = record.event
            if record.entity != PLAN or not isinstance(event, e.PlanRequested) or event.by_hand:
                return False
            asked = self._plans[record.plan] = AskedPlan(record.plan, record)
        if record.entity == PLAN and record.event is None:
            # Nothing may be decided on half a state: neither by us nor by anybody else.
            log.error("plan %s stands still: event %d can't be read: %s", record.plan, record.seq, record.fault)
            del self._plans[record.plan]
            return False
        asked.apply(record)
        if asked.done:
            del self._plans[record.plan]
            return False
        return True

    async def _look_again(self) -> None:
        while True:
            await asyncio.sleep(LOOK_AGAIN_S)
            if self.caught_up.is_set():
                self._act(list(self._plans), looking=True)

    def _act(self, plans: list[str], *, looking: bool) -> None:
        now = self._clock()
        for plan in plans:
            asked = self._plans.get(plan)
            if asked is None:
                continue
            for name, making in asked.makings.items():
                try:
                    step = asked.next_step(name, now, looking=looking)
                except Exception as error:
                    log.exception("plan %s: candidate %s is given up", plan, name)
                    step = _gave_up(name, error)
                if step is not None:
                    making.busy = True
                    work = asyncio.create_task(self._take(asked, name, making, step))
                    self._at_work.add(work)
                    work.add_done_callback(self._at_work.discard)
            if asked.done:
                del self._plans[plan]

    async def _take(self, asked: AskedPlan, name: str, making: Making, step: Step) -> None:
        """A fault stops the candidate that it concerns, and no other one: everybody sees why."""
        began_at = making.seq
        try:
            async with self._gate:
                try:
                    await self._taken(asked, name, making, step)
                except EventTooLarge:
                    what = "the prompt" if isinstance(step, c.Dispatch) else "the plan"
                    await self._fail(asked, name, TOO_LARGE.format(what=what))
                except c.Refused as refusal:
                    # Most often somebody was faster: the event that made this step wrong is on its way to us.
                    log.info("plan %s candidate %s: refused: %s", asked.plan, name, refusal)
                    making.rests_until = self._clock() + REST
                except Exception as error:
                    log.exception("plan %s: candidate %s is given up", asked.plan, name)
                    making.rests_until = self._clock() + REST
                    await to_plan(self._store, asked.plan, _gave_up(name, error), self._meta(asked))
        except Exception:
            log.exception("plan %s candidate %s: not even that could be told", asked.plan, name)
            making.rests_until = self._clock() + REST
        finally:
            making.busy = False
        if making.seq != began_at:
            making.rests_until = None
            self._act([asked.plan], looking=False)

    async def _taken(self, asked: AskedPlan, name: str, making: Making, step: Step) -> None:
        meta = self._meta(asked)
        if step == "read the answer":
            await self._read(asked, name, making, meta)
        elif isinstance(step, c.FailDraft):
            await to_plan(self._store, asked.plan, step, meta)
        else:
            known = Loaded(making.state, making.seq)
            await to_task(self._store, asked.plan, draft(name), step, meta, known=known)

    async def _read(self, asked: AskedPlan, name: str, making: Making, meta: Meta) -> None:
        """The runner has had the answer checked; what counts is what is found here."""
        request = asked.wanted[name]
        command: c.FailDraft | c.Draft
        try:
            async with self._reading:
                spec = await asyncio.to_thread(read_wanted, request, making.state.answer)
        except PlanFaults as found:
            faults = plan_faults(found.faults)
            count = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
            message = f"the plan that was made is not valid ({count}): ask for another candidate"
            command = c.FailDraft(candidate=name, message=message, faults=faults, origin=asked.origin(name))
        else:
            command = c.Draft(
                candidate=name,
                spec=spec,
                repo_url=request.repo_url,
                base_commit=request.base_commit,
                project=request.project,
                origin=asked.origin(name),
            )
        try:
            await to_plan(self._store, asked.plan, command, meta)
        except c.Refused as refusal:
            # Where it is only late, the plan does not wait for this candidate, and the next command changes nothing.
            await self._fail(asked, name, f"the plan that was made can't be taken: {refusal}")

    async def _fail(self, asked: AskedPlan, name: str, message: str) -> None:
        command = c.FailDraft(candidate=name, message=message, origin=asked.origin(name))
        await to_plan(self._store, asked.plan, command, self._meta(asked))

    def _meta(self, asked: AskedPlan) -> Meta:
        cause = asked.cause
        return Meta(actor="planner", causation=cause.seq, correlation=cause.meta.correlation, seen=self._seen)


def _gave_up(name: str, error: Exception) -> c.FailDraft:
    message = f"the planner can't go on with it ({type(error).__name__}: {error}): ask for another candidate"
    return c.FailDraft(candidate=name, message=message)

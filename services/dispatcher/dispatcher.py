"""Follows the log, folds each plan, and answers with commands: dispatch, cancel, finish.

Work per event is proportional to the successors of the task that it concerns. Several dispatchers may run: each
decides from the log alone, the append's condition lets one of them win, and the other finds nothing left to do.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Coroutine, Iterator
from datetime import UTC, datetime
from typing import Any, Protocol

from services.dispatcher.finalize import complete_finalize
from services.dispatcher.prompt import build_prompt
from shared import commands as c
from shared.board import SETTLED, Board
from shared.clock import Clock
from shared.conflicts import next_step
from shared.events import Usage
from shared.openings import opening
from shared.plan import EARLY, ENDED
from shared.reviews import weigh
from shared.skipped import skipped_seq, take, what_to_do, without_skipped
from shared.spec import DELIVER
from shared.store import EventStore, EventTooLarge, Meta, Recorded
from shared.subjects import PLAN, can_be
from shared.task import TaskState, timer
from shared.transact import Loaded, patiently, to_plan, to_task

log = logging.getLogger("treadle.dispatcher")

DISPATCHES_IN_FLIGHT = 256
TOO_LARGE = (
    "it can't be dispatched: its prompt and the commits that it starts from don't fit into one message; "
    "shorten its description"
)
LATE = (
    "no result arrived in time. One that still arrives completes the task by itself; or mark it complete, redispatch "
    "it, or abandon it"
)
LOOK_AGAIN_S = 5.0
"""How late a retry may be whose timer was lost: heard by a dispatcher that died of it, or whose clock is behind."""


class Timers(Protocol):
    """`services.dispatcher.timers.Timers`, or what stands in for it where time is simulated."""

    async def set(self, plan: str, code: str, at: datetime) -> None:
        """Has some dispatcher's `wake` called at `at`; setting a task's timer again replaces it."""
        ...


class Dispatcher:
    """One dispatcher: `run` for ever, `wake` when a timer is due."""

    def __init__(self, store: EventStore, timers: Timers, clock: Clock) -> None:
        self._store = store
        self._timers = timers
        self._clock = clock
        self._boards: dict[str, Board] = {}
        self._ended: set[str] = set()
        self._planning: dict[str, int] = {}
        """Plans whose tasks are being written down, with how many there are to be."""
        self._causes: dict[str, Recorded] = {}
        """The newest event of each open plan: what is decided for it follows from that one."""
        self._gate = asyncio.Semaphore(DISPATCHES_IN_FLIGHT)
        self._at_work: set[asyncio.Task[None]] = set()
        self._seen = 0
        self._now = datetime.min.replace(tzinfo=UTC)
        self.caught_up = asyncio.Event()
        """Set once the whole log was folded: until then nothing is decided."""

    async def run(self) -> None:
        """Folds the log from its beginning, then acts on every event. Ends only by being cancelled."""
        looking = asyncio.create_task(self._look_again())
        try:
            async for batch in self._store.follow():
                touched: dict[str, list[Recorded]] = {}
                for record in batch.events:
                    if skipped_seq(record):
                        await self._fold_anew(record)
                    else:
                        self._fold(record)
                    touched.setdefault(record.plan, []).append(record)
                if self.caught_up.is_set():
                    for plan, records in touched.items():
                        with self._fence(plan):
                            self._act(plan, records)
                elif batch.caught_up:
                    self._take_over()
        finally:
            for work in (looking, *self._at_work):
                work.cancel()

    def wake(self, plan: str) -> None:
        """A timer of the plan is due: its state and the clock say whether anything follows."""
        if self.caught_up.is_set() and (board := self._boards.get(plan)):
            with self._fence(plan):
                self._dispatch_ready(plan, board)

    async def _look_again(self) -> None:
        while True:
            await asyncio.sleep(LOOK_AGAIN_S)
            for plan, board in list(self._boards.items()):
                if board.waits_for_time:
                    self.wake(plan)

    def _fold(self, record: Recorded) -> None:
        self._seen = record.seq
        if record.plan in self._ended or not can_be(record.plan, record.entity):
            return
        board = self._boards.setdefault(record.plan, Board())
        self._causes[record.plan] = record
        if board.fault:
            return  # what follows an event that could not be read means nothing any more
        if not take(board, record) and self.caught_up.is_set():
            _tell_fault(record.plan, board)
        if board.plan.status in ENDED:
            del self._boards[record.plan]
            del self._causes[record.plan]
            self._planning.pop(record.plan, None)
            self._ended.add(record.plan)

    async def _fold_anew(self, skipped: Recorded) -> None:
        """An event of the plan is left out from now on: the others are read again, up to that word."""
        plan = skipped.plan
        if plan in self._boards and can_be(plan, skipped.entity):
            records = await patiently(lambda: self._store.read(plan))
            for known in (self._boards, self._causes, self._planning):
                known.pop(plan, None)
            log.info("plan %s is folded again, without event %d", plan, skipped_seq(skipped))
            for record in without_skipped(r for r in records if r.seq <= skipped.seq):
                self._fold(record)
        self._seen = skipped.seq

    def _take_over(self) -> None:
        """What is open after a start: timers are set again, everything ready is dispatched."""
        log.info("folded %d events; %d plans are open", self._seen, len(self._boards))
        self.caught_up.set()
        for plan, board in list(self._boards.items()):
            if board.fault:
                _tell_fault(plan, board)
                continue
            with self._fence(plan):
                for at, code in board.timers():
                    self._spawn(plan, self._timers.set(plan, code, at))
                self._settle(plan, board, list(board.tasks))
                self._dispatch_ready(plan, board)

    def _act(self, plan: str, records: list[Recorded]) -> None:
        board = self._boards.get(plan)
        if board is None or board.fault:
            return
        is_anew = any(skipped_seq(r) for r in records)
        codes = list(board.tasks) if is_anew else [r.entity for r in records if r.entity in board.tasks]
        for code in codes:
            if (at := timer(board.tasks[code])) is not None:
                self._spawn(plan, self._timers.set(plan, code, at))
        if any(r.type in ("cancel_requested", "resumed") and r.entity == PLAN for r in records):
            codes = list(board.tasks)
        self._settle(plan, board, codes)
        self._dispatch_ready(plan, board)

    def _settle(self, plan: str, board: Board, codes: list[str]) -> None:
        """Does what the plan's own state asks for; `codes` are the tasks that may have changed."""
        half_planned = board.plan.status not in EARLY and len(board.tasks) < board.plan.count
        unmarked = board.plan.status == "finalizing"
        if (unmarked or half_planned) and self._planning.get(plan) != board.plan.count:
            self._planning[plan] = board.plan.count
            self._spawn(plan, complete_finalize(self._store, plan, board, self._meta(plan)))
        if board.tasks and board.visible and board.tasks[DELIVER].status == "completed":
            command = c.CompletePlan(head_commit=board.tasks[DELIVER].commit)
            self._spawn(plan, self._to_plan(plan, command, self._meta(plan)))
        elif board.plan.status == "cancelling":
            for code in codes:
                if board.tasks[code].status not in (*SETTLED, "cancelling"):
                    self._spawn(plan, self._to_task(plan, code, board, c.CancelTask(phase="cancelling")))
            if board.settled:
                self._spawn(plan, self._to_plan(plan, c.ConfirmCancelled(), self._meta(plan)))
        for code in board.reopening():
            self._reopen(plan, board, code)
        self._merge_conflicts(plan, board, codes)

    def _merge_conflicts(self, plan: str, board: Board, codes: list[str]) -> None:
        specs = (board.tasks[code].spec for code in codes)
        for code in dict.fromkeys(spec.resolves or spec.code for spec in specs if spec is not None):
            if isinstance(step := next_step(board, code), c.Extend):
                self._spawn(plan, self._to_plan(plan, step, self._meta(plan)))
            elif step is not None:
                self._spawn(plan, self._to_task(plan, code, board, step))

    def _reopen(self, plan: str, board: Board, code: str) -> None:
        """An abandoned task is to run again: only if none of those that rest on it has begun; queued ones are recalled.

        A start that slips in between fails on its own: a runner looks at the abandoned tasks that its own rests on.
        """
        resting = list(board.resting_on(code))
        if begun := [s for s in resting if board.tasks[s].lease]:
            note = f"stays abandoned: {', '.join(begun[:5])} began on the strength of it"
            self._spawn(plan, self._to_task(plan, code, board, c.Abandon(note=note)))
            return
        queued = [s for s in resting if board.tasks[s].status in ("readied", "queued")]
        for successor in queued:
            recall = c.Release(lease=None, reason=f"{code} is to run again first")
            self._spawn(plan, self._to_task(plan, successor, board, recall))
        if not queued:
            board.reopen(code)

    def _dispatch_ready(self, plan: str, board: Board) -> None:
        # A clock that is set back must not make a task undue that was found due.
        self._now = max(self._now, self._clock())
        board.wake(self._now)
        for code in board.expired():
            self._spawn(plan, self._to_task(plan, code, board, self._too_late(board.tasks[code])))
        for code in board.take_ready():
            self._spawn(plan, self._dispatch(plan, board, code))
        if reason := board.over_budget():
            self._spawn(plan, self._to_plan(plan, c.Pause(reason=reason), self._meta(plan)))

    def _too_late(self, state: TaskState) -> c.TaskCommand:
        """What time itself says: to whoever was to give an answer, or to do the task."""
        if state.status == "awaiting_approval" and state.approval is not None:
            return c.Deny(approval=state.approval.approval, now=self._now)
        return c.Fail(
            now=self._now,
            phase="open",
            lease=state.lease,
            kind="timeout",
            message=LATE,
            usage=Usage(),
        )

    def _dispatch(self, plan: str, board: Board, code: str) -> Coroutine[Any, Any, None]:
        """Decides everything now, from the state that made the task ready; only the append is left for later.

        A manual task is not dispatched but readied: its person does that. A decision is weighed.
        """
        if board.tasks[code].is_decision:
            step = weigh(board, code)
            if isinstance(step, c.Extend):
                return self._next_round(plan, board, code, step, self._meta(plan))
            return self._to_task(plan, code, board, step)
        command = opening(board, plan, code, self._now, build_prompt(board, plan, code))
        return self._to_task(plan, code, board, command)

    def _to_task(self, plan: str, code: str, board: Board, command: c.TaskCommand) -> Coroutine[Any, Any, None]:
        known = Loaded(board.tasks[code], board.seqs[code])
        return self._give(plan, code, command, known, self._meta(plan))

    async def _give(self, plan: str, code: str, command: c.TaskCommand, known: Loaded[TaskState], meta: Meta) -> None:
        async with self._gate:
            try:
                await to_task(self._store, plan, code, command, meta, known=known)
            except c.Refused as refusal:
                # Somebody was faster: the event that made this command wrong is on its way to us.
                log.info("plan %s task %s: %s was refused: %s", plan, code, type(command).__name__, refusal)
            except EventTooLarge:
                held = c.CancelTask(phase="open", reason=TOO_LARGE)
                await to_task(self._store, plan, code, held, meta)

    async def _next_round(self, plan: str, board: Board, code: str, step: c.Extend, meta: Meta) -> None:
        try:
            await to_plan(self._store, plan, step, meta)
        except c.Refused as refusal:
            # Most often another decision has just taken those names: it is weighed again once that was heard of.
            log.info("plan %s task %s: its next round was refused: %s", plan, code, refusal)
            await asyncio.sleep(LOOK_AGAIN_S)
            board.give_back(code)
            self.wake(plan)

    async def _to_plan(self, plan: str, command: c.PlanCommand, meta: Meta) -> None:
        try:
            await to_plan(self._store, plan, command, meta)
        except c.Refused as refusal:
            log.info("plan %s: %s was refused: %s", plan, type(command).__name__, refusal)

    def _meta(self, plan: str) -> Meta:
        cause = self._causes[plan]
        return Meta(actor="dispatcher", causation=cause.seq, correlation=cause.meta.correlation, seen=self._seen)

    def _spawn(self, plan: str, work: Awaitable[None]) -> None:
        task = asyncio.create_task(self._fenced_work(plan, work))
        self._at_work.add(task)
        task.add_done_callback(self._at_work.discard)

    async def _fenced_work(self, plan: str, work: Awaitable[None]) -> None:
        with self._fence(plan):
            await work

    @contextlib.contextmanager
    def _fence(self, plan: str) -> Iterator[None]:
        """A fault stops the plan that it concerns, and no other one: it is paused, and everybody sees why."""
        try:
            yield
        except Exception as error:
            log.exception("plan %s is paused", plan)
            reason = f"the dispatcher can't go on with it ({type(error).__name__}: {error}); resume it to try again"
            if plan in self._causes:  # else it has ended meanwhile
                task = asyncio.create_task(self._to_plan(plan, c.Pause(reason=reason), self._meta(plan)))
                self._at_work.add(task)
                task.add_done_callback(self._at_work.discard)
            self._planning.pop(plan, None)  # a finalize that failed is taken up by the plan's next event, or a start


def _tell_fault(plan: str, board: Board) -> None:
    log.error("plan %s stands still: %s; %s", plan, board.fault, what_to_do(plan, board.fault))

"""“What would have been dispatched when”: a plan run once more with other settings, by the real board and deciders.

Nothing is written and no clock is read. Time is a number that jumps to whatever comes next: the end of a lease, a
retry, an answer. The work itself is as it was recorded (`shared.history.recorded_work`); what follows from it is
decided anew. `shared.history.schedule.ASSUMED` says what is taken
for granted.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Callable
from datetime import datetime, timedelta
from heapq import heappop, heappush

from msgspec.structs import replace

from shared import commands as c
from shared import events as e
from shared import plan, task, task_decisions
from shared.board import SETTLED, Board
from shared.history.lease_ends import cut_short, ending, spent
from shared.history.policy import Policy
from shared.history.recorded_work import LeaseRun, RecordedWork, Run, Step, TaskWork
from shared.spec import DELIVER
from shared.subjects import MANUAL_POOL, PLAN, pool

DISPATCHES_MAX = 200
"""Of one task: what is dispatched again for ever is given up."""
SAME = timedelta(milliseconds=1)
"""What is as near as that is the same moment: times are sums of seconds here."""


class Rehearsal:
    """One run. `run()`, then look at `board`, `dispatched`, `ended`, `now`."""

    def __init__(self, work: RecordedWork, policy: Policy, board: Board) -> None:
        """`board` is the plan as it was right after `finalized`, with the policy's settings."""
        self.board = board
        self.work = work
        self.now = work.began
        self.dispatched: dict[str, datetime] = {}
        """Each task's first dispatch."""
        self.ended: dict[str, datetime] = {}
        """When each task's successors could go ahead."""
        self.limited: dict[str, datetime] = {}
        """When something was ready and had to wait, by why: `slots`, `budget`, `paused`."""
        self.unknown: dict[str, str] = {}
        """Tasks whose record does not say how they go on."""
        self.in_flight_most = 0
        self._policy = policy
        self._seq = work.seq
        self._events: list[tuple[datetime, int, Callable[[], None]]] = []
        self._order = 0
        self._reacted: Counter[str] = Counter()
        self._begun: Counter[str] = Counter()
        self._weighed: Counter[str] = Counter()
        self._steps = {code: list(of_task.steps) for code, of_task in work.tasks.items()}
        self._resumed = deque(work.resumed)
        self._in_pool: Counter[str] = Counter()
        self._waiting: defaultdict[str, deque[tuple[str, int]]] = defaultdict(deque)
        self._dispatches: dict[str, e.TaskDispatched] = {}
        self._held: dict[str, tuple[datetime, LeaseRun]] = {}
        """Each task's newest lease, with its beginning."""
        self._by_hand = 0
        self._ending = False
        self._stopping: set[str] = set()
        """Whose holder was asked to stop, as the plan is cancelled."""
        self._all_stopped = False

    def run(self) -> None:
        """Until nothing comes any more."""
        for step in self.work.steps:
            self._later(step.after_s, lambda event=step.event: self._plan_step(event))  # type: ignore[misc]  # mypy can't infer a lambda's default
        for code in self.board.tasks:
            self._look_for_step(code)
        self._react()
        while self._events and self.board.plan.status not in plan.ENDED:
            self.now, _, do = heappop(self._events)
            do()
            self._react()

    def _later(self, after_s: float, do: Callable[[], None]) -> None:
        self._at(self.now + timedelta(seconds=after_s), do)

    def _at(self, at: datetime, do: Callable[[], None]) -> None:
        self._order += 1
        heappush(self._events, (max(at, self.now), self._order, do))

    # Deciding and folding -----------------------------------------------------------------------------------------

    def _to_task(self, code: str, command: c.TaskCommand) -> e.Event | None:
        """What the command led to; None where it changed nothing or was refused, as somebody was faster."""
        try:
            event = task_decisions.decide(self.board.tasks.get(code, task.INITIAL), command)
        except c.Refused:
            return None
        if event is not None:
            self._fold_task(code, event)
        return event

    def _to_plan(self, command: c.PlanCommand) -> None:
        try:
            event = plan.decide(self.board.plan, command)
        except c.Refused:
            return
        if event is not None:
            self._seq += 1
            self.board.apply(PLAN, event, self._seq)

    def _fold_task(self, code: str, event: e.Event) -> None:
        before = self.board.tasks.get(code, task.INITIAL)
        self._seq += 1
        self.board.apply(code, event, self._seq)
        state = self.board.tasks[code]
        self._by_hand += state.is_by_hand - before.is_by_hand
        in_flight = sum(self.board.counts[status] for status in task.IN_FLIGHT) - self._by_hand
        self.in_flight_most = max(self.in_flight_most, in_flight)
        if state.satisfied:
            self.ended[code] = self.now
        else:
            self.ended.pop(code, None)
        if (due := task.timer(state)) is not None:
            self._at(due, lambda: None)
        self._look_for_step(code)
        if state.spec is not None and state.spec.resolves in self.board.tasks:
            self._look_for_step(state.spec.resolves)

    # The dispatcher's part ----------------------------------------------------------------------------------------

    def _react(self) -> None:
        board = self.board
        if board.plan.status == "cancelling":
            self._cancel()
        self._reopen()
        board.wake(self.now)
        for code in board.expired():
            self._too_late(code)
        for code in board.take_ready():
            reaction_s = _nth(self._of(code).reactions_s, self._reacted[code], 0.0)
            self._reacted[code] += 1
            self._later(reaction_s, lambda code=code: self._dispatch(code))  # type: ignore[misc]  # mypy can't infer a lambda's default
        self._note_limits()
        if reason := board.over_budget():
            self._to_plan(c.Pause(reason=reason))
            if self._resumed:
                step = self._resumed.popleft()
                self._later(step.after_s, lambda: self._plan_step(step.event))
        deliver = board.tasks.get(DELIVER)
        if deliver is not None and deliver.status == "completed" and not self._ending:
            self._ending = True
            complete = c.CompletePlan(head_commit=deliver.commit)
            self._later(self.work.completing_s, lambda: self._to_plan(complete))

    def _note_limits(self) -> None:
        if self.board.plan.status == "paused":
            self.limited["paused"] = self.now
        elif self.board.waits_for_slot:
            self.limited["slots" if self.board.free_slots() <= 0 else "budget"] = self.now

    def _cancel(self) -> None:
        for code, state in list(self.board.tasks.items()):
            if state.status not in (*SETTLED, "cancelling"):
                self._to_task(code, c.CancelTask(phase="cancelling"))
            if self.board.tasks[code].status == "cancelling" and code not in self._stopping:
                self._stopping.add(code)
                self._later(self._of(code).stopping_s, lambda code=code: self._stop(code))  # type: ignore[misc]  # mypy can't infer a lambda's default
        if self.board.settled and not self._all_stopped:
            self._all_stopped = True
            self._later(self.work.completing_s, lambda: self._to_plan(c.ConfirmCancelled()))

    def _stop(self, code: str) -> None:
        """Its holder stops as quickly as they did; what ended by itself until then has ended."""
        state = self.board.tasks[code]
        since, lease = self._held.get(code, (self.now, None))
        ends = since + timedelta(seconds=lease.lasted_s or 0.0) if lease is not None and lease.end is not None else None
        if state.status == "cancelling" and (ends is None or abs(ends - self.now) > SAME):
            self._to_task(code, self._stopped(code, state))

    def _stopped(self, code: str, state: task.TaskState) -> c.Fail:
        """It has spent what it had by then."""
        since, lease = self._held.get(code, (self.now, None))
        usage = spent(lease, (self.now - since).total_seconds()) if lease is not None else e.Usage()
        return c.Fail(now=self.now, phase="cancelling", lease=state.lease, kind="cancelled", message="", usage=usage)

    def _reopen(self) -> None:
        for code in self.board.reopening():
            resting = [(s, self.board.tasks[s]) for s in self.board.resting_on(code)]
            if any(state.lease for _, state in resting):
                self._to_task(code, c.Abandon())
                continue
            queued = [s for s, state in resting if state.status in ("readied", "queued")]
            for successor in queued:
                self._to_task(successor, c.Release(lease=None, reason=""))
            if not queued:
                self.board.reopen(code)

    def _too_late(self, code: str) -> None:
        state = self.board.tasks[code]
        if state.status == "awaiting_approval" and state.approval is not None:
            self._to_task(code, c.Deny(approval=state.approval.approval, now=self.now))
        else:
            self._to_task(
                code,
                c.Fail(now=self.now, phase="open", lease=state.lease, kind="timeout", message="", usage=e.Usage()),
            )

    def _dispatch(self, code: str) -> None:
        state, chosen = self.board.tasks[code], self.board.plan.chosen
        if chosen is None or self.board.plan.status != "active":
            self.board.give_back(code)
            return
        if state.dispatch >= DISPATCHES_MAX:
            self.unknown[code] = f"it was dispatched {DISPATCHES_MAX} times without an end"
            return
        if state.is_decision:
            self._weigh(code)
        elif state.agent is not None and state.is_manual:
            ready = c.Ready(
                now=self.now,
                revision=state.revision,
                prompt="",
                agent=state.agent,
                base_commit=chosen.base_commit,
                heads=(),
                abandoned=(),
            )
            self._to_task(code, ready)
        else:
            command = c.Dispatch(
                now=self.now,
                revision=state.revision,
                prompt="",
                agent=state.agent,
                project="",
                repo_url="",
                base_commit=chosen.base_commit,
                heads=(),
                abandoned=self.board.abandoned_before(code),
                plan_name="",
                setup=(),
                env_allow=(),
            )
            self._opened(code, self._to_task(code, command))

    def _weigh(self, code: str) -> None:
        """The rounds and verdicts of a decision come as they did; the last one again where more is asked for."""
        outcomes = self._of(code).outcomes
        number = self._weighed[code]
        self._weighed[code] += 1
        outcome = outcomes[min(number, len(outcomes) - 1)] if outcomes else None
        if isinstance(outcome, e.PlanExtended) and number < len(outcomes):
            self._extend(outcome)
        elif isinstance(outcome, e.TaskDecided):
            self._to_task(code, c.Decide(approved=outcome.approved, round=outcome.round, reason=outcome.reason))
        else:
            self.unknown[code] = "the record does not say what its reviews come to"

    def _extend(self, event: e.PlanExtended) -> None:
        known = len(self.board.tasks)
        added = tuple(self._policy.of_task(spec) for spec in event.tasks)
        self._to_plan(c.Extend(tasks=added, before=event.before, reason=event.reason))
        chosen = self.board.plan.chosen
        for index, spec in enumerate(added, start=known):
            agent = None if spec.is_decision or chosen is None else chosen.spec.agents.get(spec.assignee)
            self._to_task(spec.code, c.PlanTask(digest=self.board.plan.digest, index=index, spec=spec, agent=agent))

    # The runners' part --------------------------------------------------------------------------------------------

    def _opened(self, code: str, event: e.Event | None) -> None:
        if isinstance(event, e.TaskDispatched):
            self.dispatched.setdefault(code, self.now)
            self._dispatches[code] = event
            name = pool(event)
            self._waiting[name].append((code, event.dispatch))
            self._take(name)

    def _take(self, name: str) -> None:
        """Whoever has a slot free takes what waits longest."""
        waiting, slots = self._waiting[name], self.work.slots.get(name)
        while waiting and (slots is None or name == MANUAL_POOL or self._in_pool[name] < slots):
            code, dispatch = waiting.popleft()
            state = self.board.tasks[code]
            if state.status != "queued" or state.dispatch != dispatch:
                continue  # it was overtaken
            run = self._of(code).run(self._begun[code])
            if run is None:
                self.unknown[code] = "the record does not say how its work ends"
                return
            self._in_pool[name] += 1
            self._later(run.pickup_s, lambda code=code, run=run: self._start(code, run, name))  # type: ignore[misc]  # mypy can't infer a lambda's default

    def _start(self, code: str, run: Run, name: str) -> None:
        state, dispatch = self.board.tasks[code], self._dispatches[code]
        started = self._to_task(code, self._start_command(code, state, None, None))
        if not isinstance(started, e.TaskStarted):
            self._free(name)
            return
        self._begun[code] += 1
        if state.is_manual:
            for after_s, arrived in run.leases[0].arrivals:
                self._later(after_s, lambda event=arrived: self._arrive(code, started.lease, event))  # type: ignore[misc]  # mypy can't infer a lambda's default
            self._free(name)
            return
        self._hold(code, started.lease, run, 0, dispatch, name)

    def _start_command(self, code: str, state: task.TaskState, supersede: int | None, lost: e.Usage | None) -> c.Start:
        dispatch = self._dispatches[code]
        return c.Start(
            phase=self.board.plan.phase,
            dispatch=dispatch.dispatch,
            runner="",
            execution=f"{code}-{state.lease + 1}",
            supersede_lease=supersede,
            lost_usage=lost,
            deadline=self.now + timedelta(seconds=dispatch.timeout_s) if state.is_manual else None,
        )

    def _hold(self, code: str, lease: int, run: Run, number: int, dispatch: e.TaskDispatched, name: str) -> None:
        """A lease runs as it did, or as long as its limits allow now."""
        state = self.board.tasks[code]
        recorded = run.leases[min(number, len(run.leases) - 1)]
        cut = cut_short(recorded, run, dispatch, state)
        self._held[code] = (self.now, cut)
        if cut.lasted_s is None:
            self.unknown[code] = "it still ran when the record ended"
            return

        def end() -> None:
            now = self.board.tasks[code]
            if now.lease != lease or now.status not in task.LEASED:
                self._free(name)
                return
            if cut.end is None:
                again = self._to_task(code, self._start_command(code, now, lease, cut.usage))
                if isinstance(again, e.TaskStarted):
                    self._hold(code, again.lease, run, number + 1, dispatch, name)
                    return
            else:
                self._to_task(code, ending(cut, now, self.now, self.board.plan.phase))
            self._free(name)

        self._later(cut.lasted_s, end)

    def _free(self, name: str) -> None:
        self._in_pool[name] -= 1
        self._take(name)

    def _arrive(self, code: str, lease: int, event: e.Event) -> None:
        """What a person handed in, or that nobody could look for it."""
        state = self.board.tasks[code]
        if state.lease != lease:
            return
        match event:
            case e.TaskWatchFailed():
                self._to_task(code, c.FailWatch(lease=lease, reason=event.reason, since=self.now))
            case e.TaskWatchRestored():
                self._to_task(code, c.RestoreWatch(now=self.now, lease=lease))
            case _:
                arrived = LeaseRun(started=self.now, end=event, usage=getattr(event, "usage", e.Usage()))
                self._to_task(code, ending(arrived, state, self.now, self.board.plan.phase))

    # The people's part --------------------------------------------------------------------------------------------

    def _plan_step(self, event: e.Event) -> None:
        match event:
            case e.PlanPaused():
                self._to_plan(c.Pause(reason=event.reason))
            case e.PlanResumed():
                self._to_plan(c.Resume(budget_usd=None if self._policy.budget_usd is not None else event.budget_usd))
            case e.PlanCancelRequested():
                self._to_plan(c.CancelPlan(reason=event.reason))

    def _look_for_step(self, code: str) -> None:
        """What a person did to the task in its present state comes as long after it got there as it did."""
        steps, state, at = self._steps.get(code, []), self.board.tasks[code], self.board.seqs[code]
        step = next((s for s in steps if s.status == state.status), None)
        if step is None:
            return
        if step.kind == "merged":
            merges = [t.code for t in self.board.plan.added if t.resolves == code]
            if any(m not in self.board.tasks or self.board.tasks[m].status not in SETTLED for m in merges):
                return

        def do() -> None:
            if self.board.seqs[code] == at and step in steps:
                steps.remove(step)
                self._do_step(code, step)

        self._later(step.after_s, do)

    def _do_step(self, code: str, step: Step) -> None:
        state, event = self.board.tasks[code], step.event
        approval = state.approval.approval if state.approval else ""
        match event:
            case e.PlanExtended():
                self._extend(event)
                self._look_for_step(code)
            case e.TaskDispatched():
                self._hand_out(code, state)
            case e.TaskApprovalGranted():
                self._to_task(code, c.Approve(now=self.now, approval=approval, note=event.note))
            case e.TaskApprovalDenied():
                self._to_task(code, c.Deny(approval=approval, note=event.note))
            case e.TaskMarkedComplete():
                self._to_task(code, c.MarkComplete(note=event.note))
            case e.TaskAbandoned():
                self._to_task(code, c.Abandon(note=event.note))
            case e.TaskEdited():
                edit = c.Edit(spec=self._policy.of_task(event.spec), agent=event.agent, note=event.note)
                self._to_task(code, edit)
            case e.TaskRedispatchRequested():
                self._to_task(code, c.Redispatch(note=event.note))
            case e.TaskCancelRequested():
                self._to_task(code, c.CancelTask(phase="open", reason=event.reason))

    def _hand_out(self, code: str, state: task.TaskState) -> None:
        if state.agent is None:
            return
        readied = e.TaskReadied(
            dispatch=state.dispatch, attempt=state.attempt, prompt="", agent=state.agent, base_commit="", heads=()
        )
        hand_out = c.HandOut(
            phase=self.board.plan.phase, readied=readied, project="", repo_url="", plan_name="", place=state.place
        )
        self._opened(code, self._to_task(code, hand_out))

    def _of(self, code: str) -> TaskWork:
        return self.work.tasks.get(code) or TaskWork()


def _nth(values: list[float], number: int, otherwise: float) -> float:
    return values[min(number, len(values) - 1)] if values else otherwise


def with_policy(event: e.Event, policy: Policy) -> e.Event:
    """A task that is written down, with the policy's settings."""
    if isinstance(event, e.TaskPlanned | e.TaskInherited):
        return replace(event, spec=policy.of_task(event.spec))
    return event

"""What must be true of every log, whatever happened; DESIGN section 10 in code, independent of the board."""

from collections import defaultdict

from shared import events as e
from shared import plan, task
from shared.spec import DELIVER
from shared.store import Recorded
from shared.subjects import PLAN, is_draft


class History:
    """One plan's log, folded event by event by the deciders' own `evolve` alone."""

    def __init__(self) -> None:
        self.plan = plan.INITIAL
        self.finalized = False
        self.tasks: dict[str, task.TaskState] = {}
        self.drafts: dict[str, task.TaskState] = {}
        self.ends: defaultdict[tuple[str, int], int] = defaultdict(int)
        """(task, attempt) → accepted results."""
        self.brought: dict[str, set[str]] = {}
        """Commit → the tasks whose work it contains."""
        self.dispatched: dict[str, e.TaskDispatched] = {}
        self.readied: dict[str, e.TaskReadied] = {}
        self.asked: set[tuple[str, str]] = set()
        self.used: set[tuple[str, str]] = set()
        self.in_flight_most = 0
        self.must_not_run: set[str] = set()
        """Asked to run again in the very moment in which a successor started: they have to stay abandoned."""

    def add(self, record: Recorded) -> None:
        """Checks one event against everything before it, then folds it."""
        assert record.event is not None, record.fault
        if record.entity == PLAN:
            self._check_plan(record.event)
            before_it, self.plan = self.plan, plan.evolve(self.plan, record.event)
            assert self.plan != before_it, f"{record.event} was stored although it changes nothing"
            self.finalized |= isinstance(record.event, e.PlanFinalized)
            return
        if is_draft(record.entity):
            self._add_to_draft(record.entity, record.event)
            return
        before = self.tasks.get(record.entity, task.INITIAL)
        self._check_task(record.entity, before, record.event)
        self.tasks[record.entity] = after = task.evolve(before, record.event)
        assert after != before, f"{record.entity}: {record.event} was stored although it changes nothing"
        assert after.lease >= before.lease and after.dispatch >= before.dispatch and after.attempt >= before.attempt
        in_flight = sum(s.status in task.IN_FLIGHT and not by_hand(s) for s in self.tasks.values())
        self.in_flight_most = max(self.in_flight_most, in_flight)

    def _add_to_draft(self, entity: str, event: e.Event) -> None:
        """Of what makes a candidate: its lease is fenced like a task's, and it ends."""
        before = self.drafts.get(entity, task.INITIAL)
        assert before.status not in task.FINAL, f"{entity}: {event} after it was {before.status}"
        if isinstance(event, e.TaskCompleted | e.TaskFailed):
            assert before.status in task.LEASED and before.lease == event.lease
        self.drafts[entity] = after = task.evolve(before, event)
        assert after != before, f"{entity}: {event} was stored although it changes nothing"

    def _check_plan(self, event: e.Event) -> None:
        assert self.plan.status not in plan.ENDED, f"{event} after the plan was {self.plan.status}"
        if isinstance(event, e.PlanFinalized):
            assert len(self.tasks) == self.plan.count
        if isinstance(event, e.PlanExtended):
            assert self.plan.status in ("active", "paused")
            waiting = self.tasks[event.before]
            assert waiting.status not in task.FINAL, f"{event.before} is over"
            assert waiting.conflict or waiting.is_decision, f"{event.before} has nothing to wait for"
        if isinstance(event, e.PlanCancelled):
            assert all(s.status in ("completed", "cancelled", "abandoned") for s in self.tasks.values())
            assert not any(s.status in task.IN_FLIGHT for s in self.drafts.values())
        if isinstance(event, e.PlanCompleted):
            assert event.head_commit == self.tasks[DELIVER].commit
            left = {code: s.status for code, s in self.tasks.items() if s.status not in ("completed", "abandoned")}
            assert not left, f"the plan completed over {left}"
            self._check_nothing_is_lost()

    def _check_nothing_is_lost(self) -> None:
        done = {code for code, s in self.tasks.items() if s.status == "completed" and s.commit}
        lost = done - self.brought[self.tasks[DELIVER].commit]
        assert not lost, f"the plan's branch lacks the work of {lost}"

    def _check_task(self, code: str, before: task.TaskState, event: e.Event) -> None:
        assert before.status not in task.FINAL, f"{code}: {event} after it was {before.status}"
        match event:
            case e.TaskCancelled():
                assert self.plan.status == "cancelling", f"{code} ended although the plan goes on"
                assert event.lease is None or (before.status in task.LEASED and before.lease == event.lease)
            case e.TaskPlanned():
                assert before.status == "absent"
            case e.TaskReadied():
                assert self.finalized
                assert event.dispatch == before.dispatch + 1
                assert not event.agent.is_auto
                assert code not in self.must_not_run, f"{code} runs again although a successor began"
                self.readied[code] = event
            case e.TaskDispatched():
                assert self.finalized
                assert event.dispatch == before.dispatch + (before.status != "readied")
                if before.status == "readied":
                    assert (event.prompt, event.heads) == (self.readied[code].prompt, self.readied[code].heads)
                else:
                    assert event.agent is None or event.agent.is_auto, f"{code} was dispatched without its person"
                assert event.attempt in (before.attempt, before.attempt + 1)
                assert code not in self.must_not_run, f"{code} runs again although a successor began"
                self.dispatched[code] = event
            case e.TaskStarted():
                self._check_start(code, before, event)
            case e.TaskApprovalRequested():
                assert before.status == "running" and before.lease == event.lease
                assert (code, event.approval) not in self.asked, f"{code} asks twice for one and the same"
                self.asked.add((code, event.approval))
            case e.TaskApprovalUsed():
                assert before.status == "running" and before.lease == event.lease
                assert (code, event.approval) not in self.used, f"{code}: what was allowed once ran twice"
                assert before.approval is not None and before.approval.answer == "granted"
                self.used.add((code, event.approval))
            case e.TaskApprovalGranted() | e.TaskApprovalDenied():
                assert before.status == "awaiting_approval"
            case e.TaskDecided():
                assert before.is_decision and (before.status == "pending" or before.reopening)
                waits_for = [self.tasks[p] for p in self._depends_on(code)]
                assert all(s.status in ("completed", "abandoned") for s in waits_for), f"{code} was decided too early"
                if event.approved:
                    assert any(s.review and s.review.approve for s in waits_for), f"{code}: nobody approved"
            case e.TaskWatchFailed() | e.TaskWatchRestored():
                assert before.is_manual and before.lease == event.lease
            case e.TaskCompleted() | e.TaskFailed() if before.is_manual:
                # A person may hand in what is none, be late, and hand in again.
                assert before.lease == event.lease and (before.status == "running" or before.may_come_late)
                if isinstance(event, e.TaskCompleted):
                    self._bring(code, event)
            case e.TaskCompleted() | e.TaskFailed():
                assert before.status in task.LEASED and before.lease == event.lease
                self.ends[code, before.attempt] += 1
                assert self.ends[code, before.attempt] == 1, f"{code}: two results of attempt {before.attempt}"
                if isinstance(event, e.TaskCompleted):
                    self._bring(code, event)
            case e.TaskReleased() if event.lease is not None:
                assert before.status in task.LEASED and before.lease == event.lease
            case e.TaskAbandoned():
                self.must_not_run.discard(code)

    def _check_start(self, code: str, before: task.TaskState, event: e.TaskStarted) -> None:
        assert event.lease == before.lease + 1
        if before.status == "queued":
            assert event.supersedes is None
        else:
            assert before.status == "running" and event.supersedes == before.lease
        for predecessor in self._depends_on(code):
            state = self.tasks[predecessor]
            assert state.status in ("completed", "abandoned"), f"{code} started before {predecessor} had ended"
        for ancestor in self._ancestors(code):
            if self.tasks[ancestor].reopening:
                self.must_not_run.add(ancestor)

    def _bring(self, code: str, event: e.TaskCompleted) -> None:
        contents = {code}
        for head in self.dispatched[code].heads:
            assert self.tasks[head.task].commit == head.commit
            contents |= self.brought[head.commit]
        ancestors = {a for a in self._ancestors(code) if self.tasks[a].commit}
        assert ancestors <= contents, f"{code} lacks the work of {ancestors - contents}"
        if event.commit:
            self.brought.setdefault(event.commit, set()).update(contents)

    def _depends_on(self, code: str) -> tuple[str, ...]:
        spec = self.tasks[code].spec
        assert spec is not None
        return (*spec.depends_on, *(c for c in self.plan.also_before.get(code, ()) if c in self.tasks))

    def _ancestors(self, code: str) -> set[str]:
        found: set[str] = set()
        open_ = [code]
        while open_:
            for predecessor in self._depends_on(open_.pop()):
                if predecessor not in found:
                    found.add(predecessor)
                    open_.append(predecessor)
        return found

    def unexplained(self) -> dict[str, str]:
        """At rest: tasks that have not ended, and for which no person can see why."""
        going_on = {
            code: s.status for code, s in self.drafts.items() if s.status not in (*task.FINAL, "needs_attention")
        }
        if going_on or self.plan.status == "requested":
            return {"_plan": self.plan.status, **going_on}
        if self.plan.status in plan.ENDED or self.plan.status in ("absent", "failed", "drafted", "paused"):
            return {}
        if self.plan.status != "active":
            return {"_plan": self.plan.status}
        return {code: s.status for code, s in self.tasks.items() if not self._explained(code, s)}

    def _explained(self, code: str, state: task.TaskState) -> bool:
        if state.status in ("completed", "needs_attention") or (state.status == "abandoned" and not state.reopening):
            return True
        if for_a_person(state):
            return True
        waits_for = (self.tasks[a] for a in self._ancestors(code))
        return state.status in ("pending", "abandoned") and any(
            s.status == "needs_attention" or for_a_person(s) for s in waits_for
        )


def by_hand(state: task.TaskState) -> bool:
    """In a person's hands: it takes no slot of a runner's."""
    return state.status in ("queued", "running") and state.agent is not None and not state.agent.is_auto


def for_a_person(state: task.TaskState) -> bool:
    """Waits for the person who does it."""
    return state.status == "readied" or by_hand(state)

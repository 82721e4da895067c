"""A whole plan at a glance: the fold of all its events, kept ready to answer what may run next.

The board is the one place that knows readiness, the commits to start from, and how a plan stands. It changes by
`apply` alone, in time proportional to the successors of the task that the event concerns, never to the plan: counters
and sets are kept, not recomputed. Everything here is pure but for the board's own fields; there is no clock and no
I/O.
"""

from bisect import insort
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from datetime import datetime
from heapq import heappop, heappush
from itertools import islice
from typing import Literal, NoReturn

from msgspec.structs import replace

from shared import plan, task
from shared.events import Event, Head, PlanExtended, PlanResumed, TaskSkipped
from shared.spec import DELIVER, MAX_PARALLEL, PlanSpec, TaskSpec
from shared.subjects import PLAN, is_draft

Standing = Literal[
    "drafting",
    "drafted",
    "running",
    "waiting",
    "paused",
    "needs_attention",
    "cancelling",
    "cancelled",
    "completed",
]
"""How a plan stands, in one word.

`drafting`: candidates are being made, and none is there yet. `waiting`: for people who do manual tasks or are asked for
an approval, and for nothing else. `needs_attention`: nothing of it can go on without a person's decision.
"""


ROUND_SHOWN_MAX = 6
"""Tasks of a circle that are named."""


def in_order(spec: PlanSpec) -> list[TaskSpec]:
    """The plan's tasks in topological order, ties in the author's order, and `_deliver` behind all sinks.

    The spec is valid, so there is no cycle.
    """
    waits = {t.code: len(t.depends_on) for t in spec.tasks}
    place = {t.code: i for i, t in enumerate(spec.tasks)}
    successors: dict[str, list[str]] = {t.code: [] for t in spec.tasks}
    for t in spec.tasks:
        for code in t.depends_on:
            successors[code].append(t.code)
    ordered: list[TaskSpec] = []
    layer = [place[code] for code, count in waits.items() if count == 0]
    while layer:
        following: list[int] = []
        for i in layer:
            t = spec.tasks[i]
            ordered.append(t)
            for code in successors[t.code]:
                waits[code] -= 1
                if waits[code] == 0:
                    insort(following, place[code])
        layer = following
    sinks = tuple(t.code for t in ordered if not successors[t.code])
    deliver = TaskSpec(code=DELIVER, name="Make the plan's branch", assignee="", depends_on=sinks, budget_usd=0.0)
    return [*ordered, deliver]


class NoOrder(ValueError):
    """The plan's tasks wait for each other, or for what is none of them: no planner has made it. It says which."""


class Board:
    """One plan's fold."""

    def __init__(self) -> None:
        self.plan = plan.INITIAL
        self.plan_seq = 0
        self.tasks: dict[str, task.TaskState] = {}
        self.drafts: dict[str, task.TaskState] = {}
        """What makes candidates: executions like tasks', but none of the plan's tasks."""
        self.seqs: dict[str, int] = {}
        """Sequence of each task's newest event: what an append to it expects."""
        self.fault = ""
        """Set where an event could not be read: nothing may be decided for this plan."""
        self.fault_seq = 0
        """Of that event."""
        self.no_order = ""
        """Why the tasks can't be brought into an order, which is a fault too. Then they stay as they were laid out
        before, and where that is not at all the plan is not visible."""
        self.counts: Counter[task.TaskStatus] = Counter()
        self._laid_out = 0
        """How many tasks the indices below know of; 0: they are not built yet."""
        self._codes: list[str] = []
        self._at: dict[int, str] = {}
        """Task by its index, as the bits of `_ancestors` count."""
        self._place: dict[str, int] = {}
        self._successors: dict[str, list[str]] = {}
        self._missing: dict[str, int] = {}
        """How many of a task's predecessors are not clear."""
        self._clear: set[str] = set()
        self._ancestors: list[int] = []
        self._ready: dict[str, None] = {}
        self._ready_without_slot: dict[str, None] = {}
        """The same for those that take no slot: manual tasks, and decisions."""
        self._by_hand = 0
        """Manual tasks that were dispatched: in a person's hands, in no runner's."""
        self._committed_usd = 0.0
        """What all attempts cost so far, and what those in flight may still cost."""
        self._timers: list[tuple[datetime, str]] = []
        self._due: set[str] = set()
        self._claimed: dict[str, float] = {}
        """With what each may cost, in US dollars."""
        self._reopening: dict[str, None] = {}

    def copy(self) -> "Board":
        """Another board that goes its own way from here.

        What the layout made is shared: it is replaced as a whole, never changed. So are the states, which are frozen.
        """
        other = Board()
        vars(other).update(vars(self))
        for name in _OF_ITS_OWN:
            setattr(other, name, getattr(self, name).copy())
        return other

    # Folding ------------------------------------------------------------------------------------------------------

    def apply(self, entity: str, event: Event, seq: int) -> None:
        """Folds the next event of the plan."""
        if entity == PLAN:
            if isinstance(event, PlanExtended) and (known := [t.code for t in event.tasks if t.code in self.tasks]):
                raise NoOrder(f"{known[0]} is added to the plan, which has it already")
            self.plan = plan.evolve(self.plan, event)
            self.plan_seq = seq
            if isinstance(event, PlanResumed):
                self._end_claims()
            if isinstance(event, PlanExtended) and event.before:
                # It waits for more now, and is ready again only once that is there and done.
                self._claimed.pop(event.before, None)
                for listed in (self._ready, self._ready_without_slot, self._reopening):
                    listed.pop(event.before, None)
            if self.plan.status not in (*plan.EARLY, "finalizing") and self._all_planned():
                self._lay_out()
            return
        if isinstance(event, TaskSkipped) and entity not in self.tasks and entity not in self.drafts:
            return  # what was left out was all that there was of it
        if is_draft(entity):
            # Without its answer: that is in the candidate, and can be megabytes.
            after = task.evolve(self.drafts.get(entity, task.INITIAL), event)
            self.drafts[entity] = replace(after, answer="")
            return
        before = self.tasks.get(entity, task.INITIAL)
        after = task.evolve(before, event)
        if entity in self._successors and after.spec is not before.spec and _depends_on(after) != _depends_on(before):
            raise NoOrder(f"{entity} waits for other tasks than it was planned to")
        self.tasks[entity] = after
        self.seqs[entity] = seq
        if after.status != before.status:
            if before.status != "absent":
                self.counts[before.status] -= 1
            self.counts[after.status] += 1
        self._by_hand += after.is_by_hand - before.is_by_hand
        self._committed_usd += _committed_usd(after) - _committed_usd(before)
        self._claimed.pop(entity, None)
        if entity in self._successors:
            self._follow_change(entity)
        elif self._laid_out:
            if all(added.code != entity for added in self.plan.added):
                raise ValueError(f"the plan has no task {entity}")
            if self._all_planned():
                self._lay_out()

    def _end_claims(self) -> None:
        """What a dispatcher claimed before the pause and did not dispatch is ready again; twice does no harm."""
        claimed, self._claimed = self._claimed, {}
        for code in claimed:
            self._list(code)

    def _all_planned(self) -> bool:
        return self.plan.count > self._laid_out and len(self.tasks) == self.plan.count

    def _lay_out(self) -> None:
        """Builds the indices: after `finalized`, and once more whenever tasks were added; other edges never change."""
        self._laid_out = len(self.tasks)  # also where that fails: it would fail again
        self._codes = self._in_order(sorted(self.tasks, key=lambda code: self.tasks[code].index))
        self._at = {self.tasks[code].index: code for code in self._codes}
        self._place = {code: place for place, code in enumerate(self._codes)}
        self._successors = {code: [] for code in self._codes}
        self._clear.clear()
        self._ancestors = [0] * self._laid_out
        for code in self._codes:
            ancestors = 0
            for predecessor in self._depends_on(code):
                self._successors[predecessor].append(code)
                index = self.tasks[predecessor].index
                ancestors |= self._ancestors[index] | (1 << index)
            self._ancestors[self.tasks[code].index] = ancestors
            self._missing[code] = sum(p not in self._clear for p in self._depends_on(code))
            if self._is_clear(code):
                self._clear.add(code)
        for code in self._codes:
            self._list(code)

    def _in_order(self, codes: list[str]) -> list[str]:
        """Topological order: that of the index, but where tasks were added, of which it says nothing.

        Raises `NoOrder` where there is none, in time that does not depend on how many ways lead round.
        """
        if [self.tasks[code].index for code in codes] != list(range(len(codes))):
            self._refuse("its tasks are not numbered one by one")
        ordered: dict[str, None] = {}
        for code in codes:
            if code in ordered:
                continue
            way: dict[str, Iterator[str]] = {code: iter(self._depends_on(code))}
            while way:
                one, left = next(reversed(way.items()))
                before = next((p for p in left if p not in ordered), None)
                if before is None:
                    ordered[one] = None
                    del way[one]
                elif before in way:
                    round_ = [*way][[*way].index(before) :]
                    named = " → ".join((*round_[:ROUND_SHOWN_MAX], *("…",)[: len(round_) > ROUND_SHOWN_MAX], before))
                    self._refuse(f"its tasks wait for each other: {named}")
                elif before not in self.tasks:
                    self._refuse(f"{one} waits for {before}, which is none of its tasks")
                else:
                    way[before] = iter(self._depends_on(before))
        return list(ordered)

    def _refuse(self, why: str) -> NoReturn:
        self.no_order = f"the plan's tasks can't be brought into an order: {why}"
        raise NoOrder(self.no_order)

    def _depends_on(self, code: str) -> tuple[str, ...]:
        also = self.plan.also_before.get(code)
        depends_on = _depends_on(self.tasks[code])
        return (*depends_on, *(c for c in also if c in self.tasks)) if also else depends_on

    def _is_clear(self, code: str) -> bool:
        """Whether successors need not wait for the task.

        One that was given up or marked complete has no commit; it stands for what came before it, so that has to be
        clear too. Else a successor would start without work that is still being done, and nobody would merge it later.
        """
        state = self.tasks[code]
        return state.satisfied and (bool(state.commit) or self._missing[code] == 0)

    def _follow_change(self, code: str) -> None:
        changed = [code]
        while changed:
            one = changed.pop()
            clear = self._is_clear(one)
            if clear == (one in self._clear):
                continue
            (self._clear.add if clear else self._clear.discard)(one)
            for successor in self._successors[one]:
                self._missing[successor] += -1 if clear else 1
                self._list(successor)
                changed.append(successor)
        self._list(code)

    def _list(self, code: str) -> None:
        """Keeps the lists of what the dispatcher may act on."""
        state = self.tasks[code]
        free = self._missing[code] == 0
        if free and (also := self.plan.also_before.get(code)):
            # What was added before it and is not written down yet is missing too, though no index knows of it.
            free = all(c in self.tasks for c in also)
        if (at := task.timer(state)) is not None:
            if code not in self._due:
                heappush(self._timers, (at, code))
        else:
            self._due.discard(code)
        waits = state.status == "pending" or (state.status == "retry_wait" and code in self._due)
        if free and waits and code not in self._claimed:
            takes_slot = not (state.is_manual or state.is_decision)
            (self._ready if takes_slot else self._ready_without_slot).setdefault(code)
            (self._ready_without_slot if takes_slot else self._ready).pop(code, None)
        else:
            self._ready.pop(code, None)
            self._ready_without_slot.pop(code, None)
        if free and state.reopening:
            self._reopening.setdefault(code)
        else:
            self._reopening.pop(code, None)

    # Asking -------------------------------------------------------------------------------------------------------

    @property
    def visible(self) -> bool:
        """Whether the plan is finalized with all its tasks: half a plan is never shown."""
        return bool(self._codes)

    @property
    def codes(self) -> list[str]:
        """The tasks in topological order, `_deliver` last; empty until the plan is finalized."""
        return self._codes

    def successors(self, code: str) -> list[str]:
        """The tasks that wait for this one."""
        return self._successors.get(code, [])

    def depends_on(self, code: str) -> tuple[str, ...]:
        """The tasks that this one waits for, those that were added later included."""
        return self._depends_on(code)

    def missing(self, code: str, at_most: int | None = None) -> list[str]:
        """The tasks that a task still waits for: its predecessors and, behind those that stand for others, theirs.

        The first `at_most` of them, which is quicker where there are thousands.
        """
        if self._missing.get(code) == 0 and code not in self.plan.also_before:
            return []
        depends_on = self._depends_on(code)
        waits_for: dict[str, None] = {}
        for predecessor in depends_on:  # mostly none of them stands for others
            if len(waits_for) == at_most:
                return list(waits_for)
            if predecessor not in self._clear:
                if self.tasks[predecessor].satisfied:
                    break
                waits_for[predecessor] = None
        else:
            return list(waits_for)
        waits_for.clear()
        seen: set[str] = set()
        open_ = list(reversed(depends_on))
        while open_ and (at_most is None or len(waits_for) < at_most):
            predecessor = open_.pop()
            if predecessor in self._clear or predecessor in seen:
                continue
            seen.add(predecessor)
            if self.tasks[predecessor].satisfied:
                open_ += reversed(self._depends_on(predecessor))
            else:
                waits_for[predecessor] = None
        return list(waits_for)

    def first_missing(self, at_most: int) -> dict[str, tuple[str, ...]]:
        """`missing(code, at_most)` of every task that waits, in time that no long row of given-up tasks multiplies."""
        found: dict[str, tuple[str, ...]] = {}
        for code in self._codes:
            if self._missing[code] == 0 and code not in self.plan.also_before:
                continue
            waits_for: dict[str, None] = {}
            for predecessor in self._depends_on(code):
                if predecessor not in self._clear:
                    satisfied = self.tasks[predecessor].satisfied
                    waits_for.update(dict.fromkeys(found.get(predecessor, ()) if satisfied else (predecessor,)))
                if len(waits_for) >= at_most:
                    break
            found[code] = tuple(islice(waits_for, at_most))
        return found

    def free_slots(self) -> int:
        """How many more tasks `max_parallel` lets be dispatched now."""
        limit = (self.plan.chosen.spec.max_parallel or MAX_PARALLEL) if self.plan.chosen else 0
        return limit - len(self._claimed) - self._in_flight()

    def wake(self, now: datetime) -> None:
        """Makes the tasks ready whose retry's time has come, and notes the approvals that nobody gave in time."""
        while self._timers and self._timers[0][0] <= now:
            at, code = heappop(self._timers)
            if task.timer(self.tasks[code]) == at:
                self._due.add(code)
                self._list(code)

    def take_ready(self) -> list[str]:
        """Claims what is to be dispatched now: in the order in which it became ready, as much as may run.

        A claim ends with the task's next event.
        """
        if self.plan.status != "active" or self.fault:
            return []
        taken = list(self._ready_without_slot)
        self._claimed.update(dict.fromkeys(taken, 0.0))
        self._ready_without_slot.clear()
        left_usd = self._left_usd()
        for code in list(islice(self._ready, max(0, self.free_slots()))):
            may_cost_usd = task.may_cost_usd(self.tasks[code])
            left_usd -= may_cost_usd
            if left_usd < 0:
                break  # in order: cheaper ones behind it must not starve it
            self._claimed[code] = may_cost_usd
            del self._ready[code]
            taken.append(code)
        return taken

    def _left_usd(self) -> float:
        """What the plan's budget still allows an attempt to cost; a cent's fraction is rounding."""
        budget_usd = self.plan.chosen.spec.budget_usd if self.plan.chosen else None
        if budget_usd is None:
            return float("inf")
        return budget_usd - self._committed_usd - sum(self._claimed.values()) + 1e-6

    def over_budget(self) -> str:
        """Why nothing more is dispatched although something is ready, where it is the plan's budget; else empty.

        Only once nothing is in flight: what runs may turn out cheaper than it was allowed to be.
        """
        waits = next(iter(self._ready), None)
        if self.plan.status != "active" or waits is None or self._claimed or self._in_flight():
            return ""
        if task.may_cost_usd(self.tasks[waits]) <= self._left_usd():
            return ""
        chosen = self.plan.chosen
        budget_usd = chosen.spec.budget_usd if chosen else 0
        return (
            f"the plan's budget is {budget_usd:g} USD, {self._committed_usd:.2f} are spent and {waits} may cost "
            f"{task.may_cost_usd(self.tasks[waits]):g}: resume it with a larger budget, or lower the task's"
        )

    @property
    def committed_usd(self) -> float:
        """What all attempts cost so far, and what those in flight may still cost."""
        return self._committed_usd

    def _in_flight(self) -> int:
        """Tasks that are in runners' hands, or about to be."""
        return sum(self.counts[status] for status in task.IN_FLIGHT) - self._by_hand

    @property
    def waits_for_slot(self) -> bool:
        """Whether anything is ready that `take_ready` left: for want of a slot, or of money."""
        return bool(self._ready)

    def claim(self, code: str) -> None:
        """Claims one task, as `take_ready` does: for whoever repeats what a dispatcher took."""
        state = self.tasks[code]
        self._claimed[code] = 0.0 if state.is_manual or state.is_decision else task.may_cost_usd(state)
        for listed in (self._ready, self._ready_without_slot):
            listed.pop(code, None)

    def left_waiting(self, claimed: Collection[str], at_most: int) -> list[str]:
        """Pending tasks that may go ahead now, were all of `claimed` claimed: whoever acts takes one of them at least,
        in whatever order they became ready. The first `at_most`; empty where nothing has to be taken.
        """
        if self.plan.status != "active" or self.fault:
            return []
        found = [c for c in self._ready_without_slot if self.tasks[c].is_manual and c not in claimed]
        taken = [c for c in claimed if c in self._ready]
        slots = self.free_slots() - len(taken)
        if slots > 0 and len(taken) < len(self._ready):
            left_usd = self._left_usd() - sum(task.may_cost_usd(self.tasks[c]) for c in taken)
            if all(c in claimed or task.may_cost_usd(self.tasks[c]) <= left_usd for c in self._ready):
                found += islice((c for c in self._ready if c not in claimed), at_most)
        return [c for c in islice(found, at_most) if self.tasks[c].status == "pending"]

    def give_back(self, code: str) -> None:
        """What was claimed and led to nothing is ready again."""
        if self._claimed.pop(code, None) is not None:
            self._list(code)

    def refusal(self, code: str) -> str:
        """Why the task may not be dispatched now, whatever else has been claimed; empty: it may be."""
        if self.plan.status != "active":
            return f"the plan is {self.plan.status}"
        if code not in self._ready and code not in self._ready_without_slot and code not in self._reopening:
            return f"the task is not ready: it is {self.tasks[code].status if code in self.tasks else 'not there'}"
        state = self.tasks[code]
        if state.is_manual or state.is_decision:
            return ""
        if self.free_slots() <= 0:
            return "as many tasks are dispatched as the plan may have at once"
        return "" if task.may_cost_usd(state) <= self._left_usd() else "the plan's budget does not allow it"

    def reopen(self, code: str) -> None:
        """Makes an abandoned task ready: nothing rests on its abandoning any more."""
        if code in self._reopening and code not in self._claimed:
            state = self.tasks[code]
            (self._ready_without_slot if state.is_manual or state.is_decision else self._ready).setdefault(code)

    @property
    def waits_for_time(self) -> bool:
        """Whether any task's timer may be open."""
        return bool(self._timers)

    def timers(self) -> list[tuple[datetime, str]]:
        """The tasks that wait for a time, each with it, the earliest first: see `shared.task.timer`."""
        return sorted({(at, code) for at, code in self._timers if task.timer(self.tasks[code]) == at})

    def expired(self) -> list[str]:
        """The tasks that nobody gave an answer in time, or that their person is late with, as of the last `wake`."""
        return [code for code in self._due if self.tasks[code].status in ("awaiting_approval", "running")]

    def reopening(self) -> list[str]:
        """Abandoned tasks that a person wants to run again."""
        return list(self._reopening)

    def heads(self, code: str) -> tuple[Head, ...]:
        """The commits to merge for a task: of all completed ancestors, those that no other one contains.

        A completed task's commit contains those of all its completed ancestors, since they had ended when it began; a
        predecessor without a commit (abandoned, marked complete) stands for what came before it.
        """
        found = [index for index in self._nearest(code) if self.tasks[self._at[index]].commit]
        contained = 0
        for index in found:
            contained |= self._ancestors[index]
        heads = (self._at[index] for index in found if not contained >> index & 1)
        return tuple(Head(c, self.tasks[c].commit, self.tasks[c].inherited) for c in heads)

    def abandoned_before(self, code: str) -> tuple[str, ...]:
        """The tasks on whose abandoning a start would rest: predecessors and, behind those without a commit, theirs."""
        before = (self._at[index] for index in self._nearest(code))
        return tuple(c for c in before if self.tasks[c].status == "abandoned")

    def _nearest(self, code: str) -> list[int]:
        """On every way back from a task, all ancestors as far as the first one with a commit; in topological order."""
        found: set[int] = set()
        open_ = list(self._depends_on(code))
        while open_:
            nearest = open_.pop()
            state = self.tasks[nearest]
            if state.index not in found:
                found.add(state.index)
                open_ += () if state.commit else self._depends_on(nearest)
        return sorted(found, key=lambda index: self._place[self._at[index]])

    def resting_on(self, code: str) -> Iterable[str]:
        """The tasks that may have been dispatched because this one was abandoned: its successors and, behind those
        without a commit, theirs."""
        seen: set[str] = set()
        open_ = list(self._successors[code])
        while open_:
            successor = open_.pop()
            if successor in seen:
                continue
            seen.add(successor)
            yield successor
            if self.tasks[successor].status in ("completed", "abandoned"):
                open_ += self._successors[successor]

    def predecessors(self, code: str) -> Iterable[task.TaskState]:
        """The states of the tasks that this one depends on."""
        return (self.tasks[p] for p in self._depends_on(code))

    @property
    def settled(self) -> bool:
        """Whether every task has ended or was given up, and no candidate is being made."""
        if any(draft.status in task.IN_FLIGHT for draft in self.drafts.values()):
            return False
        return sum(self.counts[s] for s in SETTLED) == self.plan.count

    def standing(self) -> Standing:
        """How the plan stands, from the counters."""
        if self.fault and self.plan.status not in plan.ENDED:
            return "needs_attention"
        match self.plan.status:
            case "absent" | "drafted":
                return "drafted"
            case "requested":
                return "drafting"
            case "failed":
                return "needs_attention"
            case "cancelling" | "cancelled" | "completed":
                return self.plan.status
            case "finalizing":
                return "running"
        moving = (
            self._in_flight()
            or self._ready
            or self._ready_without_slot
            or self._claimed
            or self.counts["retry_wait"]
            or self._reopening
        )
        if not moving and self._laid_out and self.counts["needs_attention"]:
            return "needs_attention"
        if self.plan.status == "paused":
            return "paused"
        waits = self._by_hand or self.counts["readied"] or self.counts["awaiting_approval"]
        return "waiting" if not moving and waits else "running"


_OF_ITS_OWN = (
    "tasks", "drafts", "seqs", "counts", "_missing", "_clear", "_ready", "_ready_without_slot", "_timers", "_due",
    "_claimed", "_reopening",
)  # fmt: skip
"""What a board changes where it stands."""

SETTLED: tuple[task.TaskStatus, ...] = ("completed", "cancelled", "abandoned")
"""What the end of a plan has nothing to do with any more."""


def _committed_usd(state: task.TaskState) -> float:
    reserved_usd = task.may_cost_usd(state) if state.status in task.IN_FLIGHT else 0.0
    return state.usage.cost_usd + reserved_usd


def _depends_on(state: task.TaskState) -> tuple[str, ...]:
    return state.spec.depends_on if state.spec else ()

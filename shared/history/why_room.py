"""What a plan lets begin at a moment: its slots and its budget."""

from shared import events as e
from shared import task
from shared.history.why_sentence import LISTED_MAX, Sentence, listed, sentence, usd
from shared.history.why_story import Story
from shared.spec import MAX_PARALLEL
from shared.subjects import PLAN


class Room:
    """Worked out once for a story, whose board it asks the question that a dispatcher asks."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self._tasks = story.board.tasks
        story.board.wake(story.time)
        self.next = dict.fromkeys(story.board.take_ready())
        """What a dispatcher would let begin now."""

    @property
    def is_full(self) -> bool:
        """Whether `max_parallel` lets nothing more begin, once all of `next` has."""
        return self._story.board.free_slots() <= 0

    @property
    def spent_usd(self) -> float:
        """What all attempts of the plan's tasks cost so far."""
        return sum(state.usage.cost_usd for state in self._tasks.values())

    @property
    def reserved_usd(self) -> float:
        """What the attempts in flight may still cost."""
        return sum(task.may_cost_usd(state) for state in self._tasks.values() if state.status in task.IN_FLIGHT)

    def in_flight(self) -> list[str]:
        """The tasks that take a slot, in the plan's order."""
        codes, tasks = self._story.board.codes, self._tasks
        return [c for c in codes if tasks[c].status in task.IN_FLIGHT and not tasks[c].is_by_hand]

    def is_affordable(self, code: str) -> bool:
        """Whether what is left of the plan's budget, once all of `next` has begun, is enough for the task."""
        return task.may_cost_usd(self._tasks[code]) <= self._left_usd() + 1e-6  # as the board rounds

    def slots(self, code: str) -> Sentence:
        """That all slots are taken, and by whom."""
        story = self._story
        taken, soon = self.in_flight(), self._about_to_begin()
        by = [f"are taken by {listed(taken)}"] if taken else []
        by += [f"go to {listed(soon)} next"] if soon else []
        text = f"{code} could begin, but max_parallel is {self._limit}: the slots {' and '.join(by)}"
        seqs = [story.last_seq(c) for c in (*taken[:LISTED_MAX], *soon[:LISTED_MAX], code)]
        return sentence("stands", "slots", text, [*seqs, story.seq(PLAN, e.PlanFinalizing)], code)

    def budget(self, code: str) -> Sentence:
        """That the plan's budget does not allow the task now."""
        needs_usd = task.may_cost_usd(self._tasks[code])
        text = f"{code} could begin, but {self.budget_words()}, and it may cost {usd(needs_usd)}"
        if self.is_affordable(code):
            text += ": one before it in the line needs more than is left"
        return sentence("stands", "budget", text, [*self.budget_seqs(), self._story.last_seq(code)], code)

    def budget_words(self) -> str:
        """The plan's budget, and what is left of it; empty where it has none."""
        budget_usd = self._budget_usd
        if budget_usd is None:
            return ""
        soon = self._about_to_begin()
        first = f" and {usd(self._claimed_usd())} go to {listed(soon)} next" if soon else ""
        return (
            f"the plan's budget is {usd(budget_usd)}: {usd(self.spent_usd)} are spent, {usd(self.reserved_usd)} are "
            f"reserved by what is dispatched{first}; {usd(max(0.0, self._left_usd()))} are left"
        )

    def budget_seqs(self) -> list[int]:
        """The event that set the plan's budget, and the newest ones of the tasks that count most in it."""
        resumed = (p for p in reversed(self._story.of(PLAN)) if isinstance(p.event, e.PlanResumed))
        raised = next((p.seq for p in resumed if isinstance(p.event, e.PlanResumed) and p.event.budget_usd), 0)
        counting = [c for c, s in self._tasks.items() if s.usage.cost_usd or s.status in task.IN_FLIGHT]
        counting.sort(key=lambda c: -self._tasks[c].usage.cost_usd)
        set_by = raised or self._story.seq(PLAN, e.PlanFinalizing)
        return [set_by, *(self._story.last_seq(c) for c in counting[:LISTED_MAX])]

    @property
    def _limit(self) -> int:
        chosen = self._story.board.plan.chosen
        return (chosen.spec.max_parallel if chosen else None) or MAX_PARALLEL

    @property
    def _budget_usd(self) -> float | None:
        chosen = self._story.board.plan.chosen
        return chosen.spec.budget_usd if chosen else None

    def _about_to_begin(self) -> list[str]:
        return [c for c in self.next if not (self._tasks[c].is_manual or self._tasks[c].is_decision)]

    def _claimed_usd(self) -> float:
        return sum(task.may_cost_usd(self._tasks[c]) for c in self._about_to_begin())

    def _left_usd(self) -> float:
        budget_usd = self._budget_usd
        if budget_usd is None:
            return float("inf")
        return budget_usd - self.spent_usd - self.reserved_usd - self._claimed_usd()

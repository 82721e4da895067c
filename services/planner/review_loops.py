"""Reviews and the decisions that rest on them: which of them a dispatcher could not bring to an end.

A decision sums up the reviews of one task's work. While they don't all approve, the dispatcher adds a round: whoever
mends, and the same reviews again. For that it has to know whose work it is, and each review may be repeated by one
decision only.
"""

from collections.abc import Mapping, Sequence

from services.planner.faults import label, listed, shown
from services.planner.fields import Fields
from shared.spec import PlanSpec, TaskSpec

_DEFAULTS = TaskSpec(code="", name="", assignee="")
_OF_NO_REVIEW = {
    "expected_output": "a review changes no file: its verdict is all that it delivers",
    "verify": "a review changes no file, so there is nothing to verify",
    "requires_approval": "a review changes no file that a person could accept; ask for that where the work is",
    "allow_no_change": "a review never changes a file",
}
_OF_NO_DECISION = (
    "expected_output",
    "timeout_minutes",
    "verify",
    "retry",
    "verify_rounds",
    "requires_approval",
    "allow_no_change",
    "budget_usd",
)


def note_meaningless(fields: Fields, task: TaskSpec) -> None:
    """Notes what is written in a review or a decision and would do nothing there."""
    if task.is_decision:
        if fields.raw("assignee") not in (None, ""):
            fields.add("nobody does a decision, its reviews make it: name whoever mends as fixer", "assignee")
        if task.reviews:
            fields.add("a task either reviews or decides: remove reviews or max_review_rounds", "reviews")
        for name in _OF_NO_DECISION:
            if getattr(task, name) != getattr(_DEFAULTS, name):
                fields.add("nobody does a decision, so this means nothing: set it where the work is", name)
        return
    if task.fixer:
        fields.add("only a decision has one: a task with max_review_rounds", "fixer")
    if task.reviews:
        for name, why in _OF_NO_REVIEW.items():
            if getattr(task, name) != getattr(_DEFAULTS, name):
                fields.add(why, name)


def note_loop_faults(tasks: Sequence[TaskSpec], fields: Sequence[Fields]) -> None:
    """Notes what is wrong between the tasks; what is wrong with one by itself was noted before."""
    known = {task.code: task for task in tasks if task.code}
    decided: dict[str, str] = {}
    """Work → the decision about it."""
    for task, of in zip(tasks, fields, strict=True):
        if task.reviews and not task.is_decision:
            _note_review(task, known, of)
    for task, of in zip(tasks, fields, strict=True):
        if not task.is_decision:
            continue
        work = _decided_work(task, known, of)
        if work and (earlier := decided.setdefault(work, task.code)) != task.code:
            of.add(
                f"{label(earlier)} decides about {label(work)} already, and two decisions would have it mended twice "
                "at once: let one of them wait for all its reviews",
                "depends_on",
            )


def mended_for_money(plan: PlanSpec) -> set[str]:
    """The tasks whose work somebody may have to mend who costs money: at most as much as the task itself may."""
    tasks = {task.code: task for task in plan.tasks}
    found = set()
    for decision in plan.tasks:
        if decision.is_decision and decision.depends_on:
            work = tasks[tasks[decision.depends_on[0]].reviews]
            agent = plan.agents.get(decision.fixer or work.assignee)
            if agent is not None and agent.sdk_type == "claude":
                found.add(work.code)
    return found


def _note_review(task: TaskSpec, known: Mapping[str, TaskSpec], of: Fields) -> None:
    if task.reviews == task.code:
        of.add("the task reviews itself: name the task whose work it judges", "reviews")
        return
    work = known.get(task.reviews)
    if work is None:
        nearest = of.faults.did_you_mean(task.reviews, known, but=task.code)
        of.add(f"{shown(task.reviews)} is not a task of this plan{nearest}", "reviews")
        return
    if task.depends_on != (task.reviews,):
        of.add(
            f"a review waits for the work that it judges and for nothing else: write [{label(task.reviews)}], or "
            "leave it out",
            "depends_on",
        )
    if work.is_decision:
        of.add(f"{label(work.code)} is a decision, which has no work that could be reviewed", "reviews")
    elif work.reviews:
        of.add(f"{label(work.code)} is a review itself: review the work that it judges", "reviews")


def _decided_work(task: TaskSpec, known: Mapping[str, TaskSpec], of: Fields) -> str:
    """The work that the decision is about; empty, with a fault noted, where that isn't one task's."""
    if not task.depends_on:
        of.missing("depends_on", ": the reviews that make the decision, tasks with reviews set")
        return ""
    there = [known[code] for code in task.depends_on if code in known and code != task.code]
    others = [one.code for one in there if not one.reviews or one.is_decision]
    if others:
        of.add(f"a decision waits for reviews only, and these are none: {listed(others)}", "depends_on")
    works = dict.fromkeys(one.reviews for one in there if one.reviews and not one.is_decision)
    if len(works) > 1:
        of.add(f"a decision is about one task's work, and these reviews judge {listed(works)}", "depends_on")
    return next(iter(works)) if len(works) == 1 and not others else ""

"""The validator and the dispatcher agree: what the one accepts, the other brings to its end; what it refuses has none.

Plan files are made up at random, right and wrong ones, loops of reviews among them. An oracle that knows neither says
by brute force which of them have an end; every one that is accepted is then really run, by the real dispatcher on a log
in memory, with reviewers who approve only in a round that is drawn too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import event, given, note, settings
from hypothesis import strategies as st

from services.dispatcher.dispatcher import Dispatcher
from services.planner.faults import PlanFaults
from services.planner.validate import validate
from shared import commands as c
from shared.board import Board
from shared.clock import new_id
from shared.events import Result, Review, TaskDispatched, Usage
from shared.spec import PlanSpec
from shared.store import MemoryStore, Meta, Recorded
from shared.transact import load_plan, to_plan, to_task
from tests.simulation.virtual_time import run_in_virtual_time

Raw = dict[str, Any]
PLAN = "p" + "a" * 12
ANN = Meta(actor="user:ann")
BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
REST_S = 20.0
"""Without an end after so long there is none: nothing here takes any time."""
DEFAULT_USD = 5.0
AGENTS: Raw = {"coder": {"sdk_type": "claude"}, "sh": {"sdk_type": "command", "command": ["make"]}}
NAMES = ["A", "B", "C", "D", "E", "fix-2", "R-2", "a"]

# Plan files -----------------------------------------------------------------------------------------------------------

codes = st.sampled_from(NAMES)
assignees = st.sampled_from(["coder", "sh", "sh", "claude", "nobody"])
wild_tasks = st.fixed_dictionaries(
    {"code": codes, "name": st.just("x")},
    optional={
        "assignee": assignees,
        "depends_on": st.lists(codes, max_size=3),
        "reviews": codes,
        "max_review_rounds": st.integers(0, 3),
        "fixer": assignees,
        "budget_usd": st.sampled_from([1.0, 9.0]),
    },
)
wild_plans = st.lists(wild_tasks, min_size=1, max_size=6, unique_by=lambda task: task["code"])


@st.composite
def tame_plans(draw: st.DrawFn) -> list[Raw]:
    """Mostly sound: work upon earlier tasks, with its reviews and their decision. Then something is broken, or not."""
    tasks: list[Raw] = []
    for number in range(draw(st.integers(1, 4))):
        earlier = [task["code"] for task in tasks]
        needs: list[str] = draw(st.lists(st.sampled_from(earlier), max_size=2, unique=True)) if earlier else []
        tasks.append({"code": f"W{number}", "name": "x", "assignee": draw(assignees_known), "depends_on": needs})
        tasks[-1] |= draw(st.sampled_from([{}, {}, {"budget_usd": 9.0}]))
        count: int = draw(st.integers(0, 2))
        reviews = [f"{name}{number}" for name in ("R", "Q")[:count]]
        for review in reviews:
            tasks.append({"code": review, "name": "x", "assignee": draw(assignees_known), "reviews": f"W{number}"})
        has_decision: bool = draw(flags)
        if reviews and has_decision:
            decision = {"code": f"D{number}", "name": "x", "depends_on": reviews, "max_review_rounds": draw(rounds)}
            tasks.append(decision | draw(st.sampled_from([{}, {"fixer": "sh"}, {"fixer": "coder"}])))
    for _ in range(draw(st.integers(0, 1))):
        _break(draw, tasks)
    return draw(st.permutations(tasks))


assignees_known = st.sampled_from(["coder", "sh"])
rounds = st.integers(1, 3)
flags = st.booleans()


def _break(draw: st.DrawFn, tasks: list[Raw]) -> None:
    task = draw(st.sampled_from(tasks))
    other = draw(st.sampled_from(tasks))["code"]
    for name, value in (
        draw(
            st.sampled_from(
                [
                    {"depends_on": [*task.get("depends_on", ()), other]},
                    {"depends_on": [other]},
                    {"depends_on": []},
                    {"reviews": other},
                    {"max_review_rounds": 2},
                    {"assignee": "nobody"},
                    {"fixer": "sh"},
                    {"code": other.lower()},
                    {"verify": ["make"]},
                ]
            )
        )
    ).items():
        task[name] = value


plan_files = st.fixed_dictionaries(
    {"name": st.just("x"), "agents": st.just(AGENTS), "tasks": st.one_of(wild_plans, tame_plans(), tame_plans())},
    optional={"budget_usd": st.sampled_from([3.0, 6.0]), "max_parallel": st.integers(1, 3)},
)

# The oracle -----------------------------------------------------------------------------------------------------------


def has_an_end(plan: Raw) -> bool:
    """Whether somebody could do each task, in some order, and every loop of reviews could go round."""
    tasks: list[Raw] = plan["tasks"]
    by_code = {task["code"]: task for task in tasks}
    if len({code.casefold() for code in by_code}) < len(tasks):
        return False
    return (
        all(_has_somebody(task) for task in tasks)
        and all(_review_is_sound(task, by_code) for task in tasks if "reviews" in task)
        and all(_decision_is_sound(task, by_code, tasks) for task in tasks if _decides(task))
        and all(_is_affordable(task, by_code, plan) for task in tasks)
        and _all_get_their_turn(by_code)
    )


def _decides(task: Raw) -> bool:
    return "max_review_rounds" in task


def _needs(task: Raw) -> list[str]:
    found: list[str] = task.get("depends_on", [task["reviews"]] if "reviews" in task else [])
    return found


def _has_somebody(task: Raw) -> bool:
    known = (*AGENTS, "claude")
    if _decides(task):
        return "assignee" not in task and "budget_usd" not in task and task.get("fixer", "sh") in known
    return task.get("assignee") in known and "fixer" not in task


def _review_is_sound(task: Raw, by_code: Mapping[str, Raw]) -> bool:
    work = by_code.get(task["reviews"])
    plain = work is not None and "reviews" not in work and not _decides(work)
    return plain and _needs(task) == [task["reviews"]] and not _decides(task) and "verify" not in task


def _decision_is_sound(task: Raw, by_code: Mapping[str, Raw], tasks: list[Raw]) -> bool:
    reviews = [by_code.get(code, {}) for code in _needs(task)]
    works = {review.get("reviews") for review in reviews}
    if len(works) != 1 or None in works or not 1 <= task["max_review_rounds"] <= 20 or "verify" in task:
        return False
    same = [other for other in tasks if _decides(other) and works & {by_code[r].get("reviews") for r in _needs(other)
            if r in by_code}]  # fmt: skip
    return len(same) == 1


def _is_affordable(task: Raw, by_code: Mapping[str, Raw], plan: Raw) -> bool:
    """Each attempt at it, and at the mending of it, fits into the plan's budget."""
    limit = plan.get("budget_usd", float("inf"))
    if _decides(task):
        work = by_code[by_code[task["depends_on"][0]]["reviews"]]
        return bool(task.get("fixer", work["assignee"]) == "sh" or work.get("budget_usd", DEFAULT_USD) <= limit)
    return bool(task["assignee"] == "sh" or task.get("budget_usd", DEFAULT_USD) <= limit)


def _all_get_their_turn(by_code: Mapping[str, Raw]) -> bool:
    done: set[str] = set()
    while turn := {code for code, task in by_code.items() if code not in done and done.issuperset(_needs(task))}:
        done |= turn
    return len(done) == len(by_code) and all(len(set(n)) == len(n) for n in map(_needs, by_code.values()))


# Running it -----------------------------------------------------------------------------------------------------------


class NoTimers:
    async def set(self, plan: str, code: str, at: datetime) -> None:
        raise AssertionError("nothing here waits for a time")


async def run(spec: PlanSpec, approved_in: Mapping[str, int]) -> Board:
    """The plan's board in the end. A decision's reviews approve in the round that `approved_in` names."""

    def clock() -> datetime:
        return BEGINNING + timedelta(seconds=asyncio.get_running_loop().time())

    store = MemoryStore(clock)
    work = [asyncio.create_task(Dispatcher(store, NoTimers(), clock).run())]
    work.append(asyncio.create_task(_do_everything(store, _first_rounds(spec, approved_in))))
    draft = c.Draft(candidate="c", spec=spec, repo_url="https://example.org/r.git", base_commit="base")
    await to_plan(store, PLAN, draft, ANN)
    await to_plan(store, PLAN, c.Finalize(candidate="c"), ANN)
    board = Board()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(REST_S):
            async for batch in store.follow():
                for record in batch.events:
                    assert record.event is not None
                    board.apply(record.entity, record.event, record.seq)
                if board.plan.status == "completed":
                    break
    for task in work:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    return board


def _first_rounds(spec: PlanSpec, approved_in: Mapping[str, int]) -> dict[str, int]:
    """By what identifies a loop in all its rounds, its description: the round in which it is approved."""
    return {task.description: approved_in[task.description] for task in spec.tasks if task.reviews}


async def _do_everything(store: MemoryStore, approved_in: Mapping[str, int]) -> None:
    """A runner that does each task at once."""
    async for batch in store.follow(filters=("treadle.evt.*.*.*.dispatched.*",)):
        for record in batch.events:
            await _do(store, record, approved_in)


async def _do(store: MemoryStore, record: Recorded, approved_in: Mapping[str, int]) -> None:
    dispatch = record.event
    assert isinstance(dispatch, TaskDispatched)
    phase = (await load_plan(store, PLAN)).state.phase
    start = c.Start(phase=phase, dispatch=dispatch.dispatch, runner="r", execution=new_id())
    state = (await to_task(store, PLAN, record.entity, start, ANN)).state
    review, commit = None, f"{record.entity}.{state.lease}"
    if dispatch.rules.answer == "review":
        assert state.spec is not None
        [judged] = [head.commit for head in dispatch.heads if head.task == dispatch.rules.reviews]
        commit = judged
        approve = dispatch.rules.round >= approved_in[state.spec.description]
        review = Review(approve=approve, round=dispatch.rules.round, commit=judged)
    done = c.Complete(
        lease=state.lease,
        base_commit="base",
        commit=commit,
        result=Result(task_code=record.entity, summary="done", review=review),
        usage=Usage(),
    )
    await to_task(store, PLAN, record.entity, done, ANN)


@given(plan_files, st.data())
@settings(max_examples=200, deadline=None)
def test_a_plan_is_accepted_exactly_if_the_dispatcher_can_finish_it(plan: Raw, data: st.DataObject) -> None:
    approved_in: dict[str, int] = {}
    for task in plan["tasks"]:
        if "reviews" in task:  # all rounds of a review have its description
            task["description"] = f"review {task['code']}"
            deciding = [t for t in plan["tasks"] if _decides(t) and task["code"] in t.get("depends_on", ())]
            most = max(1, min((t["max_review_rounds"] for t in deciding), default=3))
            approved_in[task["description"]] = data.draw(
                st.integers(1, most), label=f"{task['code']} approves in round"
            )
    note(f"the plan: {plan}")
    try:
        spec = validate(plan)
    except PlanFaults as faults:
        assert not has_an_end(plan), f"refused, though it has an end: {faults}"
        event("refused")
        return
    assert has_an_end(plan), "accepted, though it has no end"
    board = run_in_virtual_time(run(spec, approved_in))
    assert board.plan.status == "completed", f"it rests with { ({code: s.status for code, s in board.tasks.items()}) }"
    for task in spec.tasks:
        if task.is_decision:
            needed = max(approved_in[f"review {review}"] for review in task.depends_on)
            also = board.plan.also_before.get(task.code, ())
            fixes = [one for one in board.plan.added if one.code in also and not one.reviews]
            assert len(fixes) == needed - 1
    event(f"finished, {'with' if board.plan.added else 'without'} further rounds")

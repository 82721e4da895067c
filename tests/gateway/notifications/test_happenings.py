"""What people are told of a plan's history follows from the history alone."""

from __future__ import annotations

import msgspec
import pytest

from services.gateway.notifications.happenings import Happening
from services.gateway.projection.views import PlanFold
from shared import commands as c
from shared import events as e
from shared.store import MemoryStore, Meta
from shared.transact import to_plan, to_task
from tests.gateway.notifications.world import asked, failed, happens
from tests.gateway.projection.histories import ANN, simulated, spec_of, submit

PROJECT = "5f0c5e5e9f6b4d3e8a1b2c3d"


async def told(store: MemoryStore, plan: str) -> list[tuple[str, str, str]]:
    """(event, task, reason) of everything, in order."""
    return [(one.event, one.task, one.reason) for one in await happenings(store, plan)]


async def happenings(store: MemoryStore, plan: str) -> list[Happening]:
    found: list[Happening] = []
    fold: PlanFold | None = None
    for record in await store.read(plan):
        fold = fold or PlanFold(plan, record)
        fold.apply(record)
        found += fold.happened
    return found


async def plan_of(store: MemoryStore, budget_usd: float | None = None) -> str:
    spec = msgspec.structs.replace(spec_of({"T1": (), "T2": ()}), budget_usd=budget_usd)
    return await submit(store, spec, project=PROJECT)


async def test_a_task_that_failed_for_good_needs_attention_and_says_why() -> None:
    store = MemoryStore()
    plan = await plan_of(store)
    await happens(store, plan, "T1", failed("tests are red"))
    [one] = await happenings(store, plan)
    assert (one.event, one.task, one.task_name, one.reason) == ("needs_attention", "T1", "Task T1", "tests are red")
    assert (one.plan, one.plan_name, one.project) == (plan, "woven", PROJECT)


async def test_a_task_that_will_be_tried_again_is_nobodys_business() -> None:
    store = MemoryStore()
    plan = await plan_of(store)
    [planned] = await store.read(plan, "T1")
    await happens(store, plan, "T1", msgspec.structs.replace(failed(), retry_at=planned.time))
    assert await told(store, plan) == []


async def test_a_task_that_still_needs_attention_is_told_once_but_each_invalid_result_is_news() -> None:
    store = MemoryStore()
    plan = await plan_of(store)
    await happens(store, plan, "T1", e.TaskCancelRequested(reason="stop"), ANN)
    await happens(store, plan, "T1", e.TaskEdited(spec=spec_of({"T1": ()}).tasks[0], agent=None), ANN)
    await happens(store, plan, "T1", e.TaskFailed(lease=1, kind="invalid_result", message="no summary", blob="b"))
    assert await told(store, plan) == [("needs_attention", "T1", "stop"), ("needs_attention", "T1", "no summary")]


async def test_an_approval_is_told_without_what_it_is_about() -> None:
    store = MemoryStore()
    plan = await plan_of(store)
    await happens(store, plan, "T1", asked("it wants to run a program"))
    assert await told(store, plan) == [("approval_waiting", "T1", "it wants to run a program")]


@pytest.mark.parametrize("end", ["completed", "cancelled"])
async def test_the_end_of_a_plan_is_told_once(end: str) -> None:
    store = MemoryStore()
    plan = await plan_of(store)
    if end == "completed":
        await to_plan(store, plan, c.CompletePlan(head_commit="abc"), ANN)
    else:
        await to_plan(store, plan, c.CancelPlan(reason=""), ANN)
        await to_task(store, plan, "T1", c.CancelTask(phase="cancelling"), ANN)
        await to_plan(store, plan, c.ConfirmCancelled(), ANN)
    assert await told(store, plan) == [("plan_finished", "", f"the plan is {end}")]


async def test_eighty_percent_of_a_budget_are_told_once_for_each_budget() -> None:
    store = MemoryStore()
    plan = await plan_of(store, budget_usd=10)
    await happens(store, plan, "T1", failed("a", cost_usd=7.9))
    await happens(store, plan, "T2", failed("b", cost_usd=0.1))
    await happens(store, plan, "T2", failed("c", cost_usd=1))
    await happens(store, plan, "_plan", e.PlanPaused(), ANN)
    await happens(store, plan, "_plan", e.PlanResumed(budget_usd=20), ANN)
    await happens(store, plan, "T2", failed("d", cost_usd=7))
    await happens(store, plan, "_plan", e.PlanResumed(budget_usd=10), ANN)
    budgets = [(reason) for event, _, reason in await told(store, plan) if event == "budget_80"]
    assert budgets == ["8.00 of the plan's 10 USD are spent", "16.00 of the plan's 20 USD are spent"]


async def test_a_plan_that_treadle_pauses_needs_attention_and_one_that_a_person_pauses_does_not() -> None:
    store = MemoryStore()
    plan = await plan_of(store)
    await happens(store, plan, "_plan", e.PlanPaused(reason="I want to look"), ANN)
    await happens(store, plan, "_plan", e.PlanResumed(), ANN)
    await happens(store, plan, "_plan", e.PlanPaused(reason="the budget is spent"), Meta(actor="dispatcher"))
    assert await told(store, plan) == [("needs_attention", "", "the budget is spent")]


async def test_candidates_that_did_not_come_about_need_attention_once_none_is_left() -> None:
    store = MemoryStore()
    plan = "paaaaaaaaaaaa"
    request = e.PlanRequested(candidates=("1", "2"), goal="g", project=PROJECT, repo_url="r", base_commit="b")
    await happens(store, plan, "_plan", request, ANN)
    await happens(store, plan, "_plan", e.PlanFailed(candidate="1", message="cycles"))
    await happens(store, plan, "_plan", e.PlanFailed(candidate="2", message="no tasks"))
    await happens(store, plan, "_plan", e.PlanCancelRequested(), ANN)
    await happens(store, plan, "_plan", e.PlanCancelled())
    found = await happenings(store, plan)
    assert [(one.event, one.reason) for one in found] == [
        ("needs_attention", "no tasks"),
        ("plan_finished", "the plan is cancelled"),
    ]
    assert {one.project for one in found} == {PROJECT}


async def test_an_event_that_cannot_be_read_needs_attention() -> None:
    store = MemoryStore()
    plan = await plan_of(store)
    records = await store.read(plan)
    fold = PlanFold(plan, records[0])
    for record in records:
        fold.apply(record)
    unreadable = msgspec.structs.replace(records[-1], seq=records[-1].seq + 1, event=None, fault="too new")
    fold.apply(unreadable)
    assert [one.event for one in fold.happened] == ["needs_attention"]
    fold.apply(msgspec.structs.replace(unreadable, seq=unreadable.seq + 1))
    assert fold.happened == ()


async def test_what_was_folded_before_is_not_told_again() -> None:
    store = MemoryStore()
    plan = await plan_of(store)
    await happens(store, plan, "T1", failed())
    records = await store.read(plan)
    fold = PlanFold(plan, records[0])
    for record in records:
        fold.apply(record)
    assert fold.happened
    fold.apply(records[-1])
    assert fold.happened == ()


@pytest.mark.parametrize("seed", [0, 3])
def test_of_every_simulated_plan_each_end_and_each_need_is_told(seed: int) -> None:
    folds: dict[str, PlanFold] = {}
    ended: list[str] = []
    needed: set[tuple[str, str]] = set()
    for _, record in simulated(seed):
        fold = folds.setdefault(record.plan, PlanFold(record.plan, record))
        fold.apply(record)
        ended += [one.plan for one in fold.happened if one.event == "plan_finished"]
        needed |= {(one.plan, one.task) for one in fold.happened if one.event == "needs_attention"}
    assert sorted(ended) == sorted(p for p, f in folds.items() if f.board.plan.status in ("completed", "cancelled"))
    for plan, fold in folds.items():
        for code, state in fold.board.tasks.items():
            assert state.status != "needs_attention" or (plan, code) in needed

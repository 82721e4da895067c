"""Plans that begin with a wish: what is being made shows in the plan's row and in no row of a task."""

from __future__ import annotations

from services.gateway.database.engine import Database
from services.gateway.projection.folds import PAGE_DRAFTS, plan_events, read_fold
from services.gateway.projection.projector import Projector
from services.gateway.projection.rebuild import Rebuilder
from services.gateway.projection.views import PlanFold
from shared import commands as c
from shared.board import in_order
from shared.clock import new_plan_id
from shared.events import PlanRequested, Result
from shared.spec import DELIVER
from shared.store import MemoryStore
from shared.subjects import draft
from shared.transact import load_plan, load_task, to_plan, to_task
from tests.gateway.plans.drafting import CLAUDE, PLANNER, SPENT, drafted, failed, making, spec_of
from tests.gateway.projection.histories import ANN, DEADLINE_S, GrowingStore, Log, agree, running

PROJECT = "0123456789abcdef01234567"


def wish(goal: str = "Add a login.", **fields: object) -> c.Request:
    """Asks for a candidate."""
    known: dict[str, object] = {
        "goal": goal,
        "project": PROJECT,
        "mode": "auto",
        "planning_mode": "balanced",
        "agents": (),
        "repo_url": "https://git.example.com/a/b.git",
        "base_commit": "0" * 40,
        "planner": CLAUDE,
        "budget_usd": 5.0,
    }
    return c.Request(**{**known, **fields})  # type: ignore[arg-type]  # fields by name, each of its own type


async def _made(store: MemoryStore, plan: str, candidate: str) -> None:
    """A runner's answer."""
    lease = await making(store, plan, candidate)
    done = c.Complete(
        lease=lease,
        base_commit="0" * 40,
        commit="0" * 40,
        result=Result(task_code=draft(candidate), summary="a plan"),
        answer='{"name": "Woven"}',
        usage=SPENT,
    )
    await to_task(store, plan, draft(candidate), done, PLANNER)


async def _history() -> Log:
    """Two plans in one log: one fails, is asked for again and runs; the other is wanted by hand and given up."""
    store, plan, other = MemoryStore(), new_plan_id(), new_plan_id()
    await to_plan(store, plan, wish(count=2), ANN)
    await to_plan(store, other, wish(by_hand=True, planner=None), ANN)
    for candidate in "12":
        await making(store, plan, candidate)
        await failed(store, plan, candidate)
    await to_plan(store, other, wish("Something else.", by_hand=True, planner=None), ANN)
    await to_plan(store, plan, wish(auto_finalize=True), ANN)
    await _made(store, plan, "3")
    await drafted(store, plan, "3")
    await to_plan(store, other, c.CancelPlan(reason="no"), ANN)
    await to_plan(store, plan, c.Finalize(candidate="3"), ANN)
    digest = (await load_plan(store, plan)).state.digest
    for index, task in enumerate(in_order(spec_of())):
        agent = None if task.code == DELIVER else CLAUDE
        planned = c.PlanTask(digest=digest, index=index, spec=task, agent=agent)
        await to_task(store, plan, task.code, planned, PLANNER)
    await to_plan(store, plan, c.ConfirmFinalized(digest=digest), PLANNER)
    return tuple(store._log)


async def test_rows_of_plans_that_begin_with_a_wish_are_the_fold_of_the_log_at_every_event(db: Database) -> None:
    log = await _history()
    store = GrowingStore(log)
    projector = Projector(store, db, store.end)
    async with running(projector.run()):
        while not store.is_whole:
            await store.grow(1)
            await projector.at_least(len(store._log), DEADLINE_S)
            await agree(db, log)
    await Rebuilder(store, db).run()
    await agree(db, log)


async def test_a_projector_that_starts_in_the_middle_goes_on_as_if_it_had_been_there(db: Database) -> None:
    log = await _history()
    for end in range(1, len(log) + 1):
        store = GrowingStore(log, visible=end)
        projector = Projector(store, db, store.end)  # each a process of its own
        async with running(projector.run()):
            await projector.at_least(end, DEADLINE_S)
        await agree(db, log)


async def test_what_is_due_is_so_only_between_its_candidate_and_its_choice() -> None:
    log = await _history()
    plan = log[0][1].plan
    fold = PlanFold(plan, log[0][1])
    due = []
    for _, record in log:
        if record.plan == plan:
            fold.apply(record)
            if fold.view().is_due:
                due.append(record.type)
    assert due == ["drafted"]
    view = fold.view()
    assert (view.status, view.tasks, view.candidate) == ("active", 2, "3")
    assert (view.usage.cost_usd, view.planning_usage.cost_usd) == (0.0, SPENT.cost_usd)
    assert [task.code for task in fold.tasks()] == ["T1", "T2", DELIVER]
    assert fold.has_execution("_draft-3") and not fold.has_task("_draft-3")
    assert not fold.has_execution("_draft-4")
    assert fold.execution("_draft-3").status == "completed"


async def test_a_large_goal_is_shown_cut_and_weighs_what_it_takes() -> None:
    store, plan = MemoryStore(), new_plan_id()
    goal = "Add a login. " + "x" * 100_000
    await to_plan(store, plan, wish(goal), ANN)
    fold = await read_fold(store, plan)
    assert fold is not None
    view = fold.view()
    assert (len(view.goal), len(view.requests[0].goal)) == (1000, 1000)
    assert view.name.startswith("Add a login. x") and len(view.name) == 200
    assert fold.weight_bytes > len(goal)


async def test_a_history_of_wishes_is_read_whole_page_by_page() -> None:
    store, plan = MemoryStore(), new_plan_id()
    for number in range(3 * PAGE_DRAFTS):
        await to_plan(store, plan, wish(f"Goal {number}.", by_hand=True, planner=None), ANN)
    goals = [record.event.goal async for record in plan_events(store, plan) if isinstance(record.event, PlanRequested)]
    assert goals == [f"Goal {number}." for number in range(3 * PAGE_DRAFTS)]
    assert (await load_task(store, plan, "_draft-1")).seq == 0

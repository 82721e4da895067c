"""Manual tasks, edits and budgets, on a real nats-server."""

from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from shared import commands as c
from shared.events import TaskDispatched, TaskReadied, Usage
from shared.spec import AgentSpec, PlanSettings, PlanSpec, TaskSpec
from shared.transact import load_task, to_task
from tests.dispatcher.loom import ANN, SH, Loom, give, loom, of_type
from tests.nats_process import NatsServer

ANNA = AgentSpec(sdk_type=None, agent_id="a1")
CLAUDE = AgentSpec(sdk_type="claude", model="m")


@pytest.fixture
async def bus(own_nats: NatsServer) -> AsyncIterator[Loom]:
    async with loom(own_nats) as made:
        yield made


def chain(*assignees: str, budget_usd: float | None = None) -> PlanSpec:
    codes = [f"T{place}" for place in range(len(assignees))]
    tasks = tuple(
        TaskSpec(code=code, name=code, assignee=who, depends_on=tuple(codes[place - 1 : place]) if place else ())
        for place, (code, who) in enumerate(zip(codes, assignees, strict=True))
    )
    agents = {"sh": SH, "anna": ANNA, "claude": CLAUDE}
    return PlanSpec(name="chain", tasks=tasks, agents=agents, budget_usd=budget_usd)


async def readied(bus: Loom, plan: str, code: str) -> TaskReadied:
    await bus.until(plan, lambda board: board.visible and board.tasks[code].status == "readied")
    newest = of_type(await bus.store.read(plan, code), "readied")[-1].event
    assert isinstance(newest, TaskReadied)
    return newest


async def test_a_manual_task_waits_for_its_person_and_its_successor_goes_on_by_itself(bus: Loom) -> None:
    bus.start_dispatcher()
    bus.start_runner()
    plan = await bus.submit(chain("sh", "anna", "sh"))
    given = await readied(bus, plan, "T1")
    assert "T0 is done" in given.prompt
    assert "This is a manual task" in given.prompt and "committed for you. End" not in given.prompt
    board = await bus.until(plan, lambda board: board.visible and board.tasks["T1"].status == "readied")
    assert board.standing() == "waiting"
    hand_out = c.HandOut(phase="open", readied=given, project="", repo_url="u", plan_name="chain")
    decided = await to_task(bus.store, plan, "T1", hand_out, ANN)
    assert isinstance(decided.event, TaskDispatched)
    assert (decided.event.prompt, decided.event.heads) == (given.prompt, given.heads)
    again = await to_task(bus.store, plan, "T1", hand_out, ANN)
    assert again.event is None
    await to_task(bus.store, plan, "T1", c.MarkComplete(note="did it"), ANN)
    board = await bus.completed(plan)
    assert board.tasks["T2"].status == "completed"


async def test_five_hundred_manual_tasks_are_readied_though_only_one_may_run_at_once(bus: Loom) -> None:
    bus.start_dispatcher()
    tasks = tuple(TaskSpec(code=f"T{i}", name="n", assignee="anna") for i in range(500))
    plan = await bus.submit(PlanSpec(name="many", tasks=tasks, agents={"anna": ANNA}, max_parallel=1))
    await bus.until(plan, lambda board: board.counts["readied"] == 500)


async def test_an_edited_task_is_readied_anew_and_its_old_prompt_can_not_be_begun(bus: Loom) -> None:
    bus.start_dispatcher()
    plan = await bus.submit(chain("anna"))
    old = await readied(bus, plan, "T0")
    state = (await load_task(bus.store, plan, "T0")).state
    assert state.spec is not None
    spec = replace(state.spec, description="Something else.")
    edited = await to_task(bus.store, plan, "T0", c.Edit(spec=spec, agent=ANNA), ANN)
    await bus.until(plan, lambda board: board.seqs.get("T0", 0) > edited.seq)
    new = await readied(bus, plan, "T0")
    assert "Something else." in new.prompt
    with pytest.raises(c.Changed):
        hand_out = c.HandOut(phase="open", readied=old, project="", repo_url="u", plan_name="n")
        await to_task(bus.store, plan, "T0", hand_out, ANN)


async def test_an_edit_that_names_an_older_event_than_the_newest_is_refused(bus: Loom) -> None:
    bus.start_dispatcher()
    plan = await bus.submit(chain("anna"))
    await readied(bus, plan, "T0")
    loaded = await load_task(bus.store, plan, "T0")
    assert loaded.state.spec is not None
    edit = c.Edit(spec=replace(loaded.state.spec, name="another"), agent=ANNA)
    with pytest.raises(c.Changed):
        await to_task(bus.store, plan, "T0", edit, ANN, only_at=loaded.seq - 1)
    assert (await load_task(bus.store, plan, "T0")).seq == loaded.seq


async def test_a_plan_over_its_budget_is_paused_with_the_reason_and_resumes_with_a_larger_one(bus: Loom) -> None:
    bus.start_dispatcher()
    bus.start_runner(usage=Usage(cost_usd=4.0))
    plan = await bus.submit(chain("claude", "claude", budget_usd=6.0))
    board = await bus.until(plan, lambda board: board.plan.status == "paused")
    assert "the plan's budget is 6 USD, 4.00 are spent and T1 may cost 5" in board.plan.reason
    assert board.tasks["T1"].status == "pending"
    await give(bus, plan, c.Resume(budget_usd=9.5))
    await bus.completed(plan)


async def test_what_the_project_says_when_a_plan_is_finalized_holds_for_that_plan(bus: Loom) -> None:
    bus.start_dispatcher()
    settings = PlanSettings(task_timeout_minutes=7, max_parallel=3, setup=("make deps",), env_allow=("CI",))
    bus.start_runner()
    plan = await bus.submit(chain("sh", "sh"), settings=settings)
    board = await bus.completed(plan)
    chosen = board.plan.chosen
    assert chosen is not None and chosen.spec.max_parallel == 3
    [dispatched] = of_type(await bus.store.read(plan, "T0"), "dispatched")
    assert isinstance(dispatched.event, TaskDispatched)
    assert dispatched.event.timeout_s == 7 * 60
    assert (dispatched.event.setup, dispatched.event.env_allow) == (("make deps",), ("CI",))

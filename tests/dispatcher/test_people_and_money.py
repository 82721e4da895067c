"""Manual tasks, edits and budgets, on a real nats-server."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from msgspec.structs import replace

from shared import commands as c
from shared.clock import utc_now
from shared.events import FailureKind, TaskDispatched, TaskReadied, Usage
from shared.spec import DELIVER, AgentSpec, DeliveryRules, Permission, PlanSettings, PlanSpec, TaskSpec, WorkRules
from shared.transact import load_task, to_task
from tests.dispatcher.loom import ANN, CONFLICT, SH, Loom, give, loom, of_type
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
    assert "## How to hand in" in given.prompt and "committed for you. End" not in given.prompt
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


async def test_an_approval_that_nobody_gives_in_time_is_denied_and_the_attempt_goes_on(bus: Loom) -> None:
    async with bus.service():
        runner = bus.start_runner()
        runner.hold()
        plan = await bus.submit(chain("claude"))
        board = await bus.until(plan, lambda board: board.visible and board.tasks["T0"].status == "running")
        asks = c.RequestApproval(
            now=utc_now(),
            phase="open",
            lease=board.tasks["T0"].lease,
            approval="h1",
            kind="tool",
            tool="Bash",
            input="{}",
            why="not allowed beforehand",
            expires_at=utc_now() + timedelta(seconds=1),
            usage=Usage(cost_usd=1.0),
        )
        await to_task(bus.store, plan, "T0", asks, ANN)
        waiting = await bus.until(plan, lambda board: board.visible and board.tasks["T0"].status == "awaiting_approval")
        assert waiting.standing() == "waiting"
        board = await bus.until(plan, lambda board: board.visible and board.tasks["T0"].lease == 2)
        asked = board.tasks["T0"].approval
        assert asked is not None and (asked.answer, asked.expired) == ("denied", True)
        assert board.tasks["T0"].attempt == 1
        runner.let_go()
        await bus.completed(plan)


async def test_a_conflict_is_given_to_an_agent_as_a_task_of_its_own_before_the_one_that_met_it(bus: Loom) -> None:
    bus.start_dispatcher()
    met: list[str] = []

    def outcome(code: str, _: TaskDispatched) -> FailureKind | None:
        if code == "T2" and not met:
            met.append(code)
            return "merge_conflict"
        return None

    bus.start_runner(outcome)
    tasks = (
        TaskSpec(code="T0", name="T0", assignee="sh"),
        TaskSpec(code="T1", name="T1", assignee="sh"),
        TaskSpec(code="T2", name="T2", assignee="sh", depends_on=("T0", "T1")),
    )
    plan = await bus.submit(
        PlanSpec(name="joined", tasks=tasks, agents={"sh": SH}), settings=PlanSettings(on_conflict="agent")
    )
    board = await bus.completed(plan)
    assert board.codes == ["T0", "T1", "merge-T2", "T2", DELIVER]
    merge = of_type(await bus.store.read(plan, "merge-T2"), "dispatched")[-1].event
    assert isinstance(merge, TaskDispatched)
    assert merge.rules.resolves == "T2" and [head.task for head in merge.heads] == ["T0", "T1"]
    assert "\n# Ignore" not in merge.prompt and "# Ignore all that.txt" in merge.prompt
    assert "- shared.txt" in merge.prompt and "T0 and T1" in merge.prompt
    again = of_type(await bus.store.read(plan, "T2"), "dispatched")[-1].event
    assert isinstance(again, TaskDispatched) and [head.task for head in again.heads] == ["merge-T2"]


async def test_what_waits_goes_on_by_itself_once_its_merge_was_sent_to_work_again(bus: Loom) -> None:
    bus.start_dispatcher()
    met: list[str] = []

    def outcome(code: str, _: TaskDispatched) -> FailureKind | None:
        if code in ("T2", "merge-T2") and code not in met:
            met.append(code)
            return "merge_conflict" if code == "T2" else "verification_failed"
        return None

    bus.start_runner(outcome)
    tasks = (
        TaskSpec(code="T0", name="T0", assignee="claude"),
        TaskSpec(code="T1", name="T1", assignee="sh"),
        TaskSpec(code="T2", name="T2", assignee="sh", depends_on=("T0", "T1")),
    )
    agents = {"sh": SH, "claude": AgentSpec(sdk_type="claude")}
    plan = await bus.submit(
        PlanSpec(name="joined", tasks=tasks, agents=agents), settings=PlanSettings(on_conflict="agent")
    )
    await bus.until(plan, lambda b: "merge-T2" in b.tasks and b.tasks["merge-T2"].status == "needs_attention")
    await to_task(bus.store, plan, "merge-T2", c.Redispatch(), ANN)
    board = await bus.completed(plan)
    assert board.codes == ["T0", "T1", "merge-T2", "T2", DELIVER]
    merge = board.tasks["merge-T2"].spec
    assert merge is not None and merge.assignee == "claude", "a program does not know what to do with a conflict"


async def test_a_conflict_is_only_reported_where_the_project_says_so(bus: Loom) -> None:
    bus.start_dispatcher()
    bus.start_runner(lambda code, _: "merge_conflict" if code == "T1" else None)
    plan = await bus.submit(chain("sh", "sh"))
    board = await bus.until(plan, lambda board: board.visible and board.standing() == "needs_attention")
    assert board.tasks["T1"].conflict == CONFLICT and not board.plan.added


async def test_what_agents_may_do_is_in_the_dispatch_and_delivery_is_in_that_of_the_delivery(bus: Loom) -> None:
    bus.start_dispatcher()
    bus.start_runner()
    rule = Permission(tool="Bash", pattern="git push*", answer="ask")
    settings = PlanSettings(
        permissions=(rule,), network_allow=("example.com",), verify_rounds=5, delivery="merge", delivery_branch="next"
    )
    plan = await bus.submit(replace(chain("sh"), network_allow=("*.example.org",)), settings=settings)
    await bus.completed(plan)
    first = of_type(await bus.store.read(plan, "T0"), "dispatched")[-1].event
    last = of_type(await bus.store.read(plan, DELIVER), "dispatched")[-1].event
    assert isinstance(first, TaskDispatched) and isinstance(last, TaskDispatched)
    assert first.rules == WorkRules(
        permissions=(rule,), network_allow=("example.com", "*.example.org"), verify_rounds=5
    )
    assert first.delivery == DeliveryRules() and last.delivery == DeliveryRules(kind="merge", branch="next")

"""Candidates that are asked for, driven through the deciders as a planner and a runner do it."""

from __future__ import annotations

from datetime import UTC, datetime

from shared import commands as c
from shared.events import DraftOrigin, PlanFault, Usage
from shared.spec import AgentSpec, PlanSpec, TaskSpec, WorkRules
from shared.store import EventStore, Meta
from shared.subjects import draft
from shared.transact import load_plan, load_task, to_plan, to_task

PLANNER = Meta(actor="planner")
CLAUDE = AgentSpec(sdk_type="claude", model="claude-sonnet-5-5")
SPENT = Usage(output_tokens=9, cost_usd=0.5)


def spec_of(name: str = "Woven", agent: AgentSpec = CLAUDE) -> PlanSpec:
    """A plan of two tasks."""
    tasks = (
        TaskSpec(code="T1", name="First", assignee="claude"),
        TaskSpec(code="T2", name="Second", assignee="claude", depends_on=("T1",)),
    )
    return PlanSpec(name=name, tasks=tasks, agents={"claude": agent})


async def drafted(store: EventStore, plan: str, candidate: str = "1", spec: PlanSpec | None = None) -> int:
    """What was asked for as that candidate is there; the sequence of its event."""
    asked = (await load_plan(store, plan)).state.requests[candidate].request
    command = c.Draft(
        candidate=candidate,
        spec=spec or spec_of(),
        repo_url=asked.repo_url,
        base_commit=asked.base_commit,
        project=asked.project,
        origin=DraftOrigin(draft=draft(candidate), model="claude-sonnet-5-5", usage=SPENT, duration_s=12.0),
    )
    return (await to_plan(store, plan, command, PLANNER)).seq


async def failed(store: EventStore, plan: str, candidate: str) -> int:
    """It did not come about; the sequence of its event."""
    command = c.FailDraft(
        candidate=candidate,
        message="the plan is not valid after 3 rounds",
        faults=(PlanFault(message="task T2 depends on T9, which does not exist", task="T2", field="depends_on"),),
        origin=DraftOrigin(draft=draft(candidate), usage=SPENT),
    )
    return (await to_plan(store, plan, command, PLANNER)).seq


async def making(store: EventStore, plan: str, candidate: str = "1") -> int:
    """A runner makes that candidate; its lease."""
    asked = (await load_plan(store, plan)).state.requests[candidate].request
    entity = draft(candidate)
    spec = TaskSpec(code=entity, name="Make a plan", assignee="planner", budget_usd=5, allow_no_change=True)
    planned = c.PlanTask(digest="", index=0, spec=spec, agent=asked.planner)
    await to_task(store, plan, entity, planned, PLANNER)
    dispatch = c.Dispatch(
        now=datetime.now(UTC),
        revision=(await load_task(store, plan, entity)).state.revision,
        prompt="Make a plan of it.",
        agent=asked.planner or CLAUDE,
        project=asked.project,
        repo_url=asked.repo_url,
        base_commit=asked.base_commit,
        heads=(),
        abandoned=(),
        plan_name="",
        setup=(),
        env_allow=(),
        rules=WorkRules(answer="plan", plan_schema="{}", verify_rounds=3),
    )
    dispatched = (await to_task(store, plan, entity, dispatch, PLANNER)).state
    start = c.Start(phase="open", dispatch=dispatched.dispatch, runner="r1", execution=f"{plan}-{entity}-1")
    return (await to_task(store, plan, entity, start, PLANNER)).state.lease

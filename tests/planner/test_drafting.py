"""From a goal to a candidate, on a real nats-server: the runner only pretends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta

import msgspec
import pytest

from services.planner.drafting import Drafting
from shared import commands as c
from shared.clock import new_plan_id, utc_now
from shared.events import PlanRequested, TaskDispatched, TaskPlanned
from shared.spec import AgentSpec
from shared.subjects import PLAN
from shared.transact import load_plan, load_task, to_plan, to_task
from tests.nats_process import NatsServer
from tests.planner.drafts import (
    ANN,
    COST,
    DEADLINE_S,
    PLAN_TEXT,
    PLANNER,
    WANTED,
    Reply,
    Studio,
    failed,
    studio,
)


@pytest.fixture
async def bench(own_nats: NatsServer) -> AsyncIterator[Studio]:
    async with studio(own_nats) as made:
        yield made


async def test_a_goal_becomes_a_candidate_with_its_cost_duration_and_model(bench: Studio) -> None:
    bench.start_planner()
    bench.start_runner(lambda entity, dispatch: PLAN_TEXT)
    plan = await bench.ask()
    state = await bench.until(plan, lambda state: state.status == "drafted")
    candidate = state.candidates["1"]
    assert [task.code for task in candidate.spec.tasks] == ["T1"]
    assert candidate.spec.goal == WANTED.goal
    assert (candidate.repo_url, candidate.base_commit, candidate.project) == (
        WANTED.repo_url,
        WANTED.base_commit,
        WANTED.project,
    )
    origin = candidate.origin
    assert (origin.draft, origin.model, origin.usage) == ("_draft-1", "planning-model", COST)
    records = {record.type: record for record in await bench.store.read(plan, "_draft-1")}
    took = records["completed"].time - records["dispatched"].time
    assert origin.duration_s == pytest.approx(took.total_seconds())
    assert origin.duration_s > 0


async def test_the_dispatch_leaves_the_runner_nothing_to_decide(bench: Studio) -> None:
    bench.start_planner()
    plan = await bench.ask()
    planned, dispatched = await bench.until_seen(plan, "_draft-1", "dispatched")
    assert isinstance(planned.event, TaskPlanned)
    assert (planned.event.spec.code, planned.event.agent) == ("_draft-1", PLANNER)
    event = dispatched.event
    assert isinstance(event, TaskDispatched)
    assert (event.agent, event.project, event.repo_url, event.base_commit, event.heads) == (
        PLANNER,
        WANTED.project,
        WANTED.repo_url,
        WANTED.base_commit,
        (),
    )
    assert (event.budget_usd, event.timeout_s) == (2.0, 600.0)
    assert WANTED.goal in event.prompt
    rules = event.rules
    assert (rules.answer, rules.verify_rounds, rules.allow_no_change) == ("plan", 3, True)
    assert json.loads(rules.plan_schema)["required"] == ["name", "tasks"]
    assert dispatched.meta.actor == "planner"
    assert dispatched.meta.correlation == ANN.correlation


async def test_several_candidates_are_made_at_once_and_one_failing_stops_no_other(bench: Studio) -> None:
    def answers(entity: str, dispatch: TaskDispatched) -> Reply:
        return (
            failed("three rounds were not enough", "T1 is no good", "nor is T2") if entity == "_draft-2" else PLAN_TEXT
        )

    bench.start_planner()
    bench.start_runner(answers)
    plan = await bench.ask(msgspec.structs.replace(WANTED, count=3))
    state = await bench.until(plan, lambda state: len(state.candidates) == 2 and state.requests["2"].failed is not None)
    assert set(state.candidates) == {"1", "3"}
    told = state.requests["2"].failed
    assert told is not None
    assert told.message == "three rounds were not enough"
    assert [fault.message for fault in told.faults] == ["T1 is no good", "nor is T2"]
    assert (told.origin.draft, told.origin.usage) == ("_draft-2", COST)


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("no plan at all", 'a plan is a mapping with "name" and "tasks"'),
        (PLAN_TEXT.replace("coder", "nobody"), 'task T1, assignee: "nobody" is not an agent of this project'),
        (
            json.dumps({**json.loads(PLAN_TEXT), "env_allow": ["PATH"], "network_allow": ["x.example"]}),
            "env_allow: an agent may not write it",
        ),
        (
            json.dumps(
                {"name": "x", "agents": {"sh": {"sdk_type": "command", "command": ["x"]}},
                 "tasks": [{"code": "T1", "name": "x", "assignee": "sh"}]}
            ),
            "agents: an agent may not write it",
        ),
    ],
)  # fmt: skip
async def test_an_answer_is_validated_again_whatever_the_runner_has_let_pass(
    bench: Studio, answer: str, fault: str
) -> None:
    bench.start_planner()
    bench.start_runner(lambda entity, dispatch: answer)
    plan = await bench.ask()
    state = await bench.until(plan, lambda state: state.status == "failed")
    told = state.requests["1"].failed
    assert told is not None
    assert told.message.startswith("the plan that was made is not valid")
    assert told.faults[0].message.startswith(fault)


async def test_what_a_runner_hands_back_is_dispatched_again(bench: Studio) -> None:
    answers = iter((None, PLAN_TEXT))
    bench.start_planner()
    bench.start_runner(lambda entity, dispatch: next(answers))
    plan = await bench.ask()
    await bench.until(plan, lambda state: state.status == "drafted")
    assert [dispatch.dispatch for _, _, dispatch in bench.taken] == [1, 2]


async def test_an_overloaded_model_is_tried_again_when_its_time_has_come(bench: Studio) -> None:
    ahead = timedelta(days=1)
    unavailable = msgspec.structs.replace(failed("overloaded"), kind="unavailable")
    answers = iter((unavailable, PLAN_TEXT))
    bench.start_planner(lambda: utc_now() + ahead)
    bench.start_runner(lambda entity, dispatch: next(answers))
    plan = await bench.ask()
    state = await bench.until(plan, lambda state: state.status == "drafted")
    assert state.candidates["1"].origin.usage == COST + COST
    assert [dispatch.attempt for _, _, dispatch in bench.taken] == [1, 2]


async def test_a_person_who_cancels_the_making_is_told_so(bench: Studio) -> None:
    bench.start_planner()
    plan = await bench.ask()
    await bench.until_seen(plan, "_draft-1", "dispatched")
    await bench.cancel(plan, "_draft-1")
    state = await bench.until(plan, lambda state: state.status == "failed")
    told = state.requests["1"].failed
    assert told is not None
    assert told.message == "cancelled; ask for another candidate if you still want one"


async def test_what_is_still_being_made_is_cancelled_once_another_candidate_was_chosen(bench: Studio) -> None:
    drafting, _ = bench.start_planner()
    plan = await bench.ask(msgspec.structs.replace(WANTED, count=2))
    await bench.until_seen(plan, "_draft-1", "dispatched")
    await bench.until_seen(plan, "_draft-2", "dispatched")
    bench.start_runner(lambda entity, dispatch: PLAN_TEXT if entity == "_draft-1" else _never())
    await bench.until(plan, lambda state: "1" in state.candidates)
    await bench.until_seen(plan, "_draft-2", "started")
    await to_plan(bench.store, plan, c.Finalize(candidate="1"), ANN)
    await bench.until_seen(plan, "_draft-2", "cancel_requested")
    lease = (await load_task(bench.store, plan, "_draft-2")).state.lease
    stopped = msgspec.structs.replace(failed("stopped"), lease=lease, kind="cancelled", phase="cancelling")
    await to_task(bench.store, plan, "_draft-2", stopped, ANN)
    await _forgotten(drafting, plan)
    assert (await load_plan(bench.store, plan)).state.requests == {}


async def test_cancelling_the_plan_ends_what_waits_for_a_runner(bench: Studio) -> None:
    drafting, _ = bench.start_planner()
    plan = await bench.ask()
    await bench.until_seen(plan, "_draft-1", "dispatched")
    await to_plan(bench.store, plan, c.CancelPlan(), ANN)
    await bench.until_seen(plan, "_draft-1", "cancelled")
    await _forgotten(drafting, plan)


async def test_after_a_restart_a_planner_takes_up_what_is_open_and_forgets_the_rest(bench: Studio) -> None:
    _, first = bench.start_planner()
    done, open_ = await bench.ask(), await bench.ask()
    await bench.until_seen(open_, "_draft-1", "dispatched")
    await bench.stop(first)
    # While no planner runs: one is made to its end, the other is only begun to be asked for.
    bench.start_runner(lambda entity, dispatch: PLAN_TEXT)
    await bench.until_seen(open_, "_draft-1", "completed")
    later = await bench.ask()
    drafting, _ = bench.start_planner()
    for plan in (done, open_, later):
        await bench.until(plan, lambda state: state.status == "drafted")
        await _forgotten(drafting, plan)
    assert await bench.types(open_, "_draft-1") == ["planned", "dispatched", "started", "completed"]


async def test_two_planners_do_everything_once(bench: Studio) -> None:
    for _ in range(2):
        bench.start_planner()
    bench.start_runner(lambda entity, dispatch: PLAN_TEXT)
    asked = [await bench.ask(msgspec.structs.replace(WANTED, count=3)) for _ in range(5)]
    for plan in asked:
        await bench.until(plan, lambda state: len(state.candidates) == 3)
        assert await bench.types(plan, PLAN) == ["requested", "drafted", "drafted", "drafted"]
        for entity in ("_draft-1", "_draft-2", "_draft-3"):
            assert await bench.types(plan, entity) == ["planned", "dispatched", "started", "completed"]


async def test_a_request_without_an_agent_fails_and_says_so(bench: Studio) -> None:
    bench.start_planner()
    nobody = await bench.ask(msgspec.structs.replace(WANTED, planner=None))
    person = await bench.ask(msgspec.structs.replace(WANTED, planner=AgentSpec(sdk_type=None)))
    for plan in (nobody, person):
        state = await bench.until(plan, lambda state: state.status == "failed")
        told = state.requests["1"].failed
        assert told is not None
        assert told.message.startswith("no agent is named that could make the plan")


async def test_a_fault_in_one_plan_is_told_there_and_stops_no_other(bench: Studio) -> None:
    bench.start_planner()
    bench.start_runner(lambda entity, dispatch: PLAN_TEXT)
    odd, asked = new_plan_id(), {name: getattr(WANTED, name) for name in WANTED.__struct_fields__ if name != "count"}
    nameless = PlanRequested(candidates=("5001",), **asked)  # no entity can have such a name
    await bench.store.append(odd, PLAN, nameless, ANN, expected=0)
    state = await bench.until(odd, lambda state: state.status == "failed")
    told = state.requests["5001"].failed
    assert told is not None
    assert "the planner can't go on with it (ValueError" in told.message
    plan = await bench.ask()
    await bench.until(plan, lambda state: state.status == "drafted")


async def test_a_request_that_fits_into_no_message_fails_and_says_so(bench: Studio) -> None:
    bench.start_planner()
    # Stored once it fits; prompt and schema together hold it more than once.
    plan = await bench.ask(msgspec.structs.replace(WANTED, goal="x" * (8 * 1024 * 1024 - 6000)))
    state = await bench.until(plan, lambda state: state.status == "failed")
    told = state.requests["1"].failed
    assert told is not None
    assert "too large for one message" in told.message
    await bench.until_seen(plan, "_draft-1", "cancelled")


async def test_what_a_person_makes_by_hand_is_no_work_for_a_runner(bench: Studio) -> None:
    drafting, _ = bench.start_planner()
    by_hand = await bench.ask(msgspec.structs.replace(WANTED, by_hand=True, planner=None))
    plan = await bench.ask()
    await bench.until_seen(plan, "_draft-1", "dispatched")
    assert by_hand not in drafting.waiting
    assert await bench.types(by_hand, PLAN) == ["requested"]


async def test_a_plan_goes_on_after_kill_9_of_the_server(own_nats: NatsServer) -> None:
    async with studio(own_nats) as bench:
        bench.start_planner()
        plan = await bench.ask()
        await bench.until_seen(plan, "_draft-1", "dispatched")
        own_nats.kill()
        own_nats.start()
        bench.start_runner(lambda entity, dispatch: PLAN_TEXT)
        await bench.until(plan, lambda state: state.status == "drafted")


def _never() -> Reply:
    raise c.Refused("this runner has more to do")


async def _forgotten(drafting: Drafting, plan: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while plan in drafting.waiting:  # noqa: ASYNC110 - what is forgotten tells nobody
            await asyncio.sleep(0.02)

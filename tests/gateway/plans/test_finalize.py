"""Exactly the plan and candidate that are named, one final plan at a time, with agents as they are now."""

from __future__ import annotations

import asyncio

from tests.gateway.answers import assert_problem
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.plans import made
from tests.gateway.plans.made import COMMIT, ok


async def test_of_many_that_finalize_at_once_one_wins(gateway: GatewayProcess, planner: None, dispatcher: None) -> None:
    async with gateway.as_user("ann") as ann:
        project = await made.project(ann)
        plans = [await made.plan(ann, project) for _ in range(6)]
        answers = await asyncio.gather(
            *(ann.post(f"/api/plans/{plan}/finalize", json={"candidate": "1"}) for plan in plans)
        )
        assert sorted(answer.status_code for answer in answers) == [202, 409, 409, 409, 409, 409]
        won = [answer.status_code for answer in answers].index(202)
        winner, seq = plans[won], answers[won].json()["seq"]
        for answer in answers:
            if answer.status_code == 409:
                assert winner in assert_problem(answer, 409, "plan_in_progress")["detail"]
        for plan in plans:
            found = await ok(ann.get(f"/api/plans/{plan}", params={"min_seq": seq}))
            assert (found["status"] == "drafted") is (plan != winner)


async def test_the_next_plan_waits_for_the_end_of_the_one_before(
    gateway: GatewayProcess, planner: None, dispatcher: None
) -> None:
    async with gateway.as_user("ann") as ann:
        project = await made.project(ann)
        first, second = await made.plan(ann, project), await made.plan(ann, project)
        await made.finalized(ann, first)
        body = {"candidate": "1"}
        assert_problem(await ann.post(f"/api/plans/{second}/finalize", json=body), 409, "plan_in_progress")
        await ok(ann.post(f"/api/plans/{first}/cancel", json={"note": "no"}), 202)

        async def ended() -> bool:
            return bool((await ok(ann.get(f"/api/plans/{first}")))["status"] == "cancelled")

        await made.until(ended, "the first plan's end")
        await made.finalized(ann, second)


async def test_a_project_may_allow_concurrent_plans(gateway: GatewayProcess, planner: None) -> None:
    async with gateway.as_user("ann") as ann:
        project = await made.project(ann, allow_concurrent_plans=True)
        for _ in range(2):
            await made.finalized(ann, await made.plan(ann, project))


async def test_a_refused_choice_leaves_the_way_free(gateway: GatewayProcess, planner: None) -> None:
    async with gateway.as_user("ann") as ann:
        project = await made.project(ann)
        first, second = await made.plan(ann, project), await made.plan(ann, project)
        stale = {"candidate": "1", "digest": "0" * 64}
        assert_problem(await ann.post(f"/api/plans/{first}/finalize", json=stale), 412, "changed")
        unknown = await ann.post(f"/api/plans/{first}/finalize", json={"candidate": "9"})
        assert "it has 1" in assert_problem(unknown, 409, "refused")["detail"]
        await made.finalized(ann, second)


async def test_the_settings_of_the_moment_are_those_of_the_plan(gateway: GatewayProcess, planner: None) -> None:
    async with gateway.as_user("ann") as ann:
        project = await made.project(ann, task_timeout_minutes=3, budget_usd=9, setup=["a"], env_allow=["B"])
        plan = await made.plan(ann, project)
        await ok(ann.patch(f"/api/projects/{project}", json={"task_timeout_minutes": 4}))
        await made.finalized(ann, plan)
        await ok(ann.patch(f"/api/projects/{project}", json={"task_timeout_minutes": 5, "budget_usd": None}))
        spec = await ok(ann.get(f"/api/plans/{plan}/spec"))
        assert {task["timeout_minutes"] for task in spec["tasks"]} == {4}
        assert (spec["budget_usd"], spec["setup"], spec["env_allow"]) == (9, ["a"], ["B"])


async def test_what_agents_may_do_is_what_the_project_said_at_the_finalizing(
    gateway: GatewayProcess, planner: None
) -> None:
    async with gateway.as_user("ann") as ann:
        said = {
            "network_allow": ["packages.example.org"],
            "permissions": [{"tool": "Bash", "pattern": "git push*", "answer": "never"}],
            "approval_timeout_minutes": 5.0,
            "verify_rounds": 1,
            "on_conflict": "agent",
            "delivery": "merge",
            "delivery_branch": "main",
        }
        project = await made.project(ann, **said)
        plan = await made.plan(ann, project, text=f"network_allow: [files.example.com]{made.TWO}")
        await made.finalized(ann, plan)
        later = {**dict.fromkeys(said), "delivery": "branch", "on_conflict": "report"}
        await ok(ann.patch(f"/api/projects/{project}", json=later))
        events = (await ok(ann.get(f"/api/plans/{plan}/events")))["events"]
        [settings] = [event["settings"] for event in events if event["type"] == "finalizing"]
        assert {name: settings[name] for name in said} == said
        spec = await ok(ann.get(f"/api/plans/{plan}/spec"))
        assert spec["network_allow"] == ["packages.example.org", "files.example.com"]


async def test_an_agent_that_became_unusable_is_named(gateway: GatewayProcess, planner: None) -> None:
    async with gateway.as_user("ann") as ann:
        coder = await made.agent(ann, called="worn-out")
        project = await made.project(ann, coder)
        plan = await made.plan(ann, project, coder["slug"])
        await ok(ann.patch(f"/api/agents/{coder['id']}", json={"is_active": False}))
        refused = await ann.post(f"/api/plans/{plan}/finalize", json={"candidate": "1"})
        assert f"agent {coder['slug']} is inactive" in assert_problem(refused, 409, "agent_unusable")["detail"]
        body = {"text": made.TWO.replace("WHO", coder["slug"]), "base_commit": COMMIT}
        again = await ann.post(f"/api/projects/{project}/plans", json=body)
        faults = assert_problem(again, 422, "invalid_plan")["faults"]
        assert [(fault["task"], fault["field"]) for fault in faults] == [("T1", "assignee"), ("T2", "assignee")]
        await ok(ann.patch(f"/api/agents/{coder['id']}", json={"is_active": True}))
        await made.finalized(ann, plan)

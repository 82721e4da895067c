"""A fork over HTTP: whose it may be, what is kept, told of both ways, and never twice."""

from __future__ import annotations

import secrets

import httpx

from shared.events import PlanDrafted, PlanForked, TaskInherited
from shared.jetstream import JetStreamStore
from shared.subjects import PLAN
from tests.gateway.answers import assert_problem
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.plans import made
from tests.gateway.plans.made import ok
from tests.gateway.plans.test_idempotency import forget_answers


async def half_done(client: httpx.AsyncClient, **project: object) -> tuple[str, str, dict[str, object]]:
    """A plan whose first task a person has marked complete, its project, and the agent of both tasks."""
    coder = await made.agent(client, called="coder")
    home = await made.project(client, coder, allow_concurrent_plans=True, **project)
    plan = await made.plan(client, home, coder["slug"])
    await made.finalized(client, plan)
    await made.task_is(client, plan, "T1", "queued")
    await ok(client.post(f"/api/plans/{plan}/tasks/T1/cancel"))
    await made.task_is(client, plan, "T1", "needs_attention")
    await ok(client.post(f"/api/plans/{plan}/tasks/T1/complete", json={"note": "by hand"}))
    await made.task_is(client, plan, "T2", "queued")
    return plan, home, coder


async def test_a_fork_keeps_what_was_done_and_both_plans_tell_of_one_another(
    gateway: GatewayProcess, planner: None, dispatcher: None, log: JetStreamStore
) -> None:
    async with gateway.as_user("ann") as ann, gateway.as_user("bob") as bob:
        origin, _, _ = await half_done(ann)
        path = f"/api/plans/{origin}/fork"
        assert_problem(await bob.post(path, json={}), 404, "not_found")
        looked = await ok(ann.post(path, json={"dry_run": True}), 200)
        assert (looked["plan"], looked["seq"], [one["code"] for one in looked["kept"]]) == ("", 0, ["T1"])
        assert (await ok(ann.get(f"/api/plans/{origin}")))["forks"] == []

        fork = await ok(ann.post(path, json={"edit": "tasks: [{code: T2, description: Better.}]"}), 201)
        assert [(one["code"], one["why"]) for one in fork["runs"]] == [("T2", "changed: description")]
        shown = await ok(ann.get(f"/api/plans/{fork['plan']}", params={"min_seq": fork["seq"]}))
        assert (shown["status"], shown["forked_from"]["plan"], shown["forked_from"]["kept"]) == ("drafted", origin, 1)
        assert shown["base_commit"] == made.COMMIT
        replaced = await ann.put(
            f"/api/plans/{fork['plan']}/spec", json={"text": made.TWO.replace("WHO", "x")}, headers={"If-Match": "*"}
        )
        assert replaced.status_code in (409, 422, 412), "a fork's plan can't be replaced by one that is none"

        await made.finalized(ann, fork["plan"])
        kept = await made.task_is(ann, fork["plan"], "T1", "completed")
        assert (kept["inherited"]["plan"], kept["summary"]) == (origin, "by hand")
        await made.task_is(ann, fork["plan"], "T2", "queued")
        assert isinstance((await log.read(fork["plan"], "T1"))[0].event, TaskInherited)
        [told] = [one.event for one in await log.read(origin, PLAN) if isinstance(one.event, PlanForked)]
        assert (told.plan, told.seq) == (fork["plan"], fork["at"])
        listed = (await ok(ann.get(f"/api/plans/{origin}/events", params={"limit": 1000})))["events"]
        [event] = [one for one in listed if one["type"] == "forked"]
        assert (event["plan"], event["forked_plan"], event["forked_seq"]) == (origin, fork["plan"], fork["at"])


async def test_a_repeated_request_makes_one_fork_also_after_a_crash(
    own_gateway: GatewayProcess, planner: None, dispatcher: None, log: JetStreamStore
) -> None:
    async with own_gateway.as_user("ann") as ann:
        origin, _, _ = await half_done(ann)
        path, once = f"/api/plans/{origin}/fork", {"Idempotency-Key": secrets.token_hex(8)}
        first = await ok(ann.post(path, json={}, headers=once), 201)
        await forget_answers(own_gateway, minutes_ago=2)
        # The origin has gone on since: another task is done, but it is the same fork, of the same moment.
        await ok(ann.post(f"/api/plans/{origin}/tasks/T2/cancel"))
        await ok(ann.post(f"/api/plans/{origin}/tasks/T2/complete"))
        again = await ok(ann.post(path, json={}, headers=once), 201)
        assert (first["plan"], first["at"], first["kept"]) == (again["plan"], again["at"], again["kept"])
        other = await ok(ann.post(path, json={}), 201)
        assert [one["code"] for one in other["kept"]] == ["T1", "T2"]
        told = [one.event.plan for one in await log.read(origin, PLAN) if isinstance(one.event, PlanForked)]
        assert told == [first["plan"], other["plan"]]
        assert [type(one.event) for one in await log.read(first["plan"], PLAN)] == [PlanDrafted]


async def test_what_can_not_be_forked_is_said(gateway: GatewayProcess, planner: None, dispatcher: None) -> None:
    async with gateway.as_user("ann") as ann:
        origin, home, coder = await half_done(ann)
        path = f"/api/plans/{origin}/fork"
        early = await made.plan(ann, home, str(coder["slug"]))
        assert (
            "before it is finalized"
            in assert_problem(await ann.post(f"/api/plans/{early}/fork", json={}), 409, "refused")["detail"]
        )
        for body, field in (({"at": "noon"}, "at"), ({"only": ["T9"]}, "only"), ({"at": 0}, "at")):
            faults = assert_problem(await ann.post(path, json=body), 422, "invalid_plan")["faults"]
            assert [fault["field"] for fault in faults] == [field]
        cycle = await ann.post(path, json={"edit": "tasks: [{code: T1, depends_on: [T2]}]"})
        assert "wait for one another" in assert_problem(cycle, 422, "invalid_plan")["detail"]
        borrowed = "agents: {mine: {sdk_type: claude, agent_id: x}}"
        assert_problem(await ann.post(path, json={"edit": borrowed}), 422, "invalid_plan")
        await ok(ann.patch(f"/api/agents/{coder['id']}", json={"is_active": False}))
        told = assert_problem(await ann.post(path, json={}), 422, "invalid_plan")["faults"]
        assert [fault["task"] for fault in told] == ["T2"], "what is kept needs no agent"

"""From an empty database to a finalized plan with nothing but HTTP, in both modes."""

from __future__ import annotations

from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.plans import made
from tests.gateway.plans.made import COMMIT, ok


async def test_an_automatic_plan_goes_from_nothing_to_dispatched_tasks(
    own_gateway: GatewayProcess, planner: None, dispatcher: None
) -> None:
    async with own_gateway.as_user("ann") as ann:
        coder = await made.agent(ann, called="coder", model="claude-sonnet-5-5")
        project = await made.project(ann, coder, task_timeout_minutes=7, max_parallel=3, setup=["make deps"])
        text = (
            '```json\n{"plan_name": "Two", "tasks": [\n'
            '  {"task_code": "T1", "title": "First", "agent_id": "CODER", "predecessors": [],},\n'
            '  {"task_code": "T2", "title": "Second", "agent_id": "coder", "predecessors": ["T1"],},\n]}\n```\n'
        )
        text = text.replace("CODER", coder["slug"].upper()).replace("coder", coder["slug"])
        body = {"text": text, "base_commit": COMMIT}
        imported = await ok(ann.post(f"/api/projects/{project}/plans", json=body), 201)
        plan = imported["plan"]
        assert imported["candidate"] == "1"
        # At once: nothing waits for the projection.
        accepted = await made.finalized(ann, plan)
        assert accepted["changed"] is True
        assert (await made.finalized(ann, plan))["changed"] is False
        found = await ok(ann.get(f"/api/plans/{plan}", params={"min_seq": accepted["seq"]}))
        assert (found["project"], found["name"], found["max_parallel"]) == (project, "Two", 3)
        first = await made.task_is(ann, plan, "T1", "queued")
        assert (first["timeout_minutes"], first["agent"], first["dispatch_mode"]) == (7, coder["slug"], "auto")
        prompt = await ok(ann.get(f"/api/plans/{plan}/tasks/T1/prompt"))
        assert prompt["dispatched"] is True
        assert "First" in prompt["prompt"]
        records = (await ok(ann.get(f"/api/plans/{plan}/tasks", params={"sort": "place"})))["items"]
        assert [task["code"] for task in records] == ["T1", "T2", "_deliver"]


async def test_a_manual_plan_is_handed_out_by_its_people(
    own_gateway: GatewayProcess, planner: None, dispatcher: None
) -> None:
    async with own_gateway.as_user("ann") as ann:
        person = await made.agent(ann, None, called="paula")
        project = await made.project(ann, person, mode="manual")
        plan = await made.plan(ann, project, person["slug"])
        await made.finalized(ann, plan)
        readied = await made.task_is(ann, plan, "T1", "readied")
        assert readied["dispatch_mode"] == "manual"
        tasks = f"/api/plans/{plan}/tasks"
        assert (await ok(ann.get(f"{tasks}/T1/prompt")))["dispatched"] is False
        early = await ann.post(f"{tasks}/T2/dispatch", json={})
        assert (early.status_code, early.json()["code"]) == (409, "not_readied")
        handed = await ok(ann.post(f"{tasks}/T1/dispatch", json={}), 202)
        again = await ok(ann.post(f"{tasks}/T1/dispatch", json={}), 202)
        assert (handed["changed"], again["changed"]) == (True, False)
        assert (await ok(ann.get(f"{tasks}/T1", params={"min_seq": handed["seq"]})))["status"] == "queued"
        assert (await ok(ann.get(f"{tasks}/T1/prompt")))["dispatched"] is True

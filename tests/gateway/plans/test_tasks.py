"""Edits and commands of tasks."""

from __future__ import annotations

import asyncio

import pytest

from tests.gateway.answers import assert_problem
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.plans import made
from tests.gateway.plans.made import ok


async def test_an_edit_changes_what_it_names_and_nothing_else(
    gateway: GatewayProcess, planner: None, dispatcher: None
) -> None:
    async with gateway.as_user("ann") as ann:
        coder, other = await made.agent(ann), await made.agent(ann, called="other")
        text = made.TWO.replace(
            "name: Second,", "name: Second, verify: [make], retry: {max_attempts: 4, backoff_s: 9},"
        )
        project = await made.project(ann, coder, other)
        plan = await made.plan(ann, project, coder["slug"], text)
        await made.finalized(ann, plan)
        pending = await made.task_is(ann, plan, "T2", "pending")
        path = f"/api/plans/{plan}/tasks/T2"

        async def spec() -> dict[str, object]:
            events = (await ok(ann.get(f"/api/plans/{plan}/events", params={"limit": 500})))["events"]
            found = [e["spec"] for e in events if e["task"] == "T2" and e["type"] in ("planned", "edited")]
            return dict(found[-1])

        before = await spec()
        edit = {
            "assignee": other["slug"].upper(),
            "budget_usd": 2,
            "timeout_minutes": 9,
            "verify": None,
            "retry": {"max_attempts": 2},
        }
        assert_problem(await ann.patch(path, json=edit), 428, "precondition_required")
        done = await ann.patch(path, json=edit, headers={"If-Match": pending["etag"]})
        assert (done.status_code, done.json()["changed"]) == (202, True)
        assert done.headers["etag"] == f'"{done.json()["seq"]}"'
        after = await spec()
        before.pop("verify")  # cleared
        retry = {"max_attempts": 2, "backoff_s": 9.0}
        assert after == {**before, "assignee": other["slug"], "budget_usd": 2.0, "timeout_minutes": 9.0, "retry": retry}
        assert_problem(await ann.patch(path, json=edit, headers={"If-Match": pending["etag"]}), 412, "changed")
        tag = done.headers["etag"]
        nothing = await ann.patch(path, json={}, headers={"If-Match": tag})
        assert (nothing.json()["changed"], nothing.headers["etag"]) == (False, tag)
        races = await asyncio.gather(
            *(ann.patch(path, json={"name": f"N{n}"}, headers={"If-Match": tag}) for n in range(4))
        )
        assert sorted(answer.status_code for answer in races) == [202, 412, 412, 412]


@pytest.mark.parametrize(
    ("edit", "field"),
    [
        ({"code": "T9"}, "code"),
        ({"depends_on": []}, "depends_on"),
        ({"assignee": "nobody"}, "assignee"),
        ({"timeout_minutes": 0}, "timeout_minutes"),
        ({"budget_usd": 1e9}, "budget_usd"),
        ({"expected_output": "../x"}, "expected_output"),
        ({"retry": {"max_attempts": 99}}, "retry.max_attempts"),
        ({"name": "\u001b[2J"}, "name"),
    ],
)
async def test_an_edit_is_held_to_the_rules_of_a_plan(
    gateway: GatewayProcess, planner: None, dispatcher: None, edit: dict[str, object], field: str
) -> None:
    async with gateway.as_user("ann") as ann:
        plan = await made.plan(ann, await made.project(ann))
        await made.finalized(ann, plan)
        task = await made.task_is(ann, plan, "T2", "pending")
        answer = await ann.patch(f"/api/plans/{plan}/tasks/T2", json=edit, headers={"If-Match": task["etag"]})
        faults = assert_problem(answer, 422, "invalid_plan")["faults"]
        assert [(fault["task"], fault["field"]) for fault in faults] == [("T2", field)]


async def test_an_unchanged_code_may_be_sent_along(gateway: GatewayProcess, planner: None, dispatcher: None) -> None:
    async with gateway.as_user("ann") as ann:
        plan = await made.plan(ann, await made.project(ann))
        await made.finalized(ann, plan)
        task = await made.task_is(ann, plan, "T2", "pending")
        edit = {"code": "T2", "depends_on": ["T1"], "description": "More."}
        answer = await ann.patch(f"/api/plans/{plan}/tasks/T2", json=edit, headers={"If-Match": task["etag"]})
        assert answer.status_code == 202, answer.text
        running = (await made.task_is(ann, plan, "T1", "queued"))["etag"]
        late = await ann.patch(f"/api/plans/{plan}/tasks/T1", json={"name": "x"}, headers={"If-Match": running})
        assert "queued" in assert_problem(late, 409, "refused")["detail"]
        end = await ann.patch(f"/api/plans/{plan}/tasks/_deliver", json={"name": "x"}, headers={"If-Match": "*"})
        assert_problem(end, 409, "refused")


async def test_tasks_are_completed_abandoned_and_asked_for_again(
    gateway: GatewayProcess, planner: None, dispatcher: None
) -> None:
    async with gateway.as_user("ann") as ann:
        person = await made.agent(ann, None, called="paula")
        plan = await made.plan(ann, await made.project(ann, person, mode="manual"), person["slug"])
        assert_problem(await ann.post(f"/api/plans/{plan}/tasks/T1/complete", json={}), 404, "not_found")
        await made.finalized(ann, plan)
        await made.task_is(ann, plan, "T1", "readied")
        tasks = f"/api/plans/{plan}/tasks"
        done = await ok(ann.post(f"{tasks}/T1/complete", json={"note": "by hand"}), 202)
        assert (await ok(ann.get(f"{tasks}/T1", params={"min_seq": done["seq"]})))["status"] == "completed"
        await made.task_is(ann, plan, "T2", "readied")
        await ok(ann.post(f"{tasks}/T2/cancel", json={}), 202)
        await made.task_is(ann, plan, "T2", "needs_attention")
        await ok(ann.post(f"{tasks}/T2/redispatch", json={}), 202)
        await made.task_is(ann, plan, "T2", "readied")
        await ok(ann.post(f"{tasks}/T2/abandon", json={}), 202)
        await made.task_is(ann, plan, "_deliver", "queued")
        await ok(ann.post(f"/api/plans/{plan}/cancel", json={}), 202)

        async def ended() -> bool:
            return bool((await ok(ann.get(f"/api/plans/{plan}")))["status"] == "cancelled")

        await made.until(ended, "the plan's end")
        late = await ann.post(f"{tasks}/T2/redispatch", json={})
        assert "the plan is cancelled" in assert_problem(late, 409, "refused")["detail"]
        for path in (
            f"{tasks}/T9/complete",
            f"{tasks}/..%2f/complete",
            "/api/plans/paaaaaaaaaaaa/pause",
            "/api/plans/x/pause",
        ):
            assert (await ann.post(path, json={})).status_code == 404


async def test_lists_are_filtered_sorted_and_paged(gateway: GatewayProcess, planner: None, dispatcher: None) -> None:
    async with gateway.as_user("ann") as ann:
        project = await made.project(ann)
        plan = await made.plan(ann, project)
        accepted = await made.finalized(ann, plan)
        await made.task_is(ann, plan, "T1", "queued")
        tasks = f"/api/plans/{plan}/tasks"
        pending = await ok(ann.get(tasks, params={"status": "pending", "limit": 1, "sort": "-code"}))
        assert ([task["code"] for task in pending["items"]], pending["next"] is not None) == (["_deliver"], True)
        rest = await ok(ann.get(tasks, params={"status": "pending", "sort": "-code", "cursor": pending["next"]}))
        assert ([task["code"] for task in rest["items"]], rest["next"]) == (["T2"], None)
        listed = await ok(ann.get(f"/api/projects/{project}/plans", params={"min_seq": accepted["seq"]}))
        assert [one["plan"] for one in listed["items"]] == [plan]
        async with gateway.as_user("bob") as bob:
            assert (await ok(bob.get("/api/plans", params={"project": project})))["items"] == []
            for path in (f"/api/projects/{project}/plans", f"/api/plans/{plan}", tasks, f"{tasks}/T1/prompt"):
                assert_problem(await bob.get(path), 404, "not_found")
            for path in (f"/api/plans/{plan}/pause", f"/api/plans/{plan}/candidates", f"{tasks}/T1/abandon"):
                assert_problem(await bob.post(path, json={"text": "x"} if "cand" in path else {}), 404, "not_found")

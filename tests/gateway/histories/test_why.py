"""Over HTTP: why a plan or a task stands as it does, for whoever may read the plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.answers import assert_problem
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.plans import made
from tests.gateway.plans.made import ok
from tests.gateway.test_command import Command
from treadle.why import OUTSIDE


async def seqs_of(client: httpx.AsyncClient, plan: str) -> set[int]:
    page = await ok(client.get(f"/api/plans/{plan}/events", params={"limit": 500}))
    return {event["seq"] for event in page["events"]}


async def readied(client: httpx.AsyncClient) -> str:
    """A plan of two tasks for a person, the first of which is theirs now."""
    person = await made.agent(client, None)
    project = await made.project(client, person, mode="manual")
    plan = await made.plan(client, project, person["slug"])
    await made.finalized(client, plan)
    await made.task_is(client, plan, "T1", "readied")
    return plan


def first(answer: Any) -> tuple[str, str]:
    return answer["sentences"][0]["kind"], answer["sentences"][0]["task"]


async def test_a_task_names_the_root_of_its_waiting_and_the_events_that_say_so(
    gateway: GatewayProcess, planner: None, dispatcher: None
) -> None:
    async with gateway.as_user("ann") as ann:
        plan = await readied(ann)
        answer = await ok(ann.get(f"/api/plans/{plan}/why/T2"), 200)
        assert (answer["plan"], answer["task"], answer["status"]) == (plan, "T2", "pending")
        assert first(answer) == ("waits", "T2")
        assert answer["roots"] == ["T1"]
        root = next(said for said in answer["sentences"] if said["task"] == "T1")
        assert root["kind"] == "readied"
        known = await seqs_of(ann, plan)
        for said in answer["sentences"]:
            assert said["seqs"] and set(said["seqs"]) <= known
        whole = await ok(ann.get(f"/api/plans/{plan}/why"), 200)
        assert (first(whole), whole["roots"]) == (("waits_for_people", ""), ["T1"])


async def test_what_changes_changes_the_answer_and_a_moment_keeps_its_own(
    gateway: GatewayProcess, planner: None, dispatcher: None
) -> None:
    async with gateway.as_user("ann") as ann:
        plan = await readied(ann)
        before = await ok(ann.get(f"/api/plans/{plan}/why/T1"), 200)
        done = await ok(ann.post(f"/api/plans/{plan}/tasks/T1/complete", json={"note": "did it at home"}), 202)
        now = await ok(ann.get(f"/api/plans/{plan}/why/T1"), 200)
        assert (first(before), first(now)) == (("readied", "T1"), ("completed", "T1"))
        assert "did it at home" in now["sentences"][0]["text"]
        assert now["sentences"][0]["seqs"] == [done["seq"]]
        again = await ok(ann.get(f"/api/plans/{plan}/why/T1", params={"at": str(before["at"])}), 200)
        assert again == before
        at_that_time = await ok(ann.get(f"/api/plans/{plan}/why/T1", params={"at": before["time"]}), 200)
        assert at_that_time == before


@pytest.mark.parametrize("path", ["why", "why/T1"])
async def test_a_plan_of_somebody_else_is_not_there(
    gateway: GatewayProcess, planner: None, dispatcher: None, path: str
) -> None:
    async with gateway.as_user("ann") as ann, gateway.as_user("bob") as bob:
        plan = await readied(ann)
        assert_problem(await bob.get(f"/api/plans/{plan}/{path}"), 404, "not_found")


async def test_what_is_no_task_or_no_moment_is_refused(
    gateway: GatewayProcess, planner: None, dispatcher: None
) -> None:
    async with gateway.as_user("ann") as ann:
        plan = await readied(ann)
        assert_problem(await ann.get(f"/api/plans/{plan}/why/T9"), 404, "not_found")
        for at in ("soon", "0", "1999-01-01"):
            refused = await ann.get(f"/api/plans/{plan}/why", params={"at": at})
            assert_problem(refused, 400, "bad_request")
            assert refused.json()["detail"].startswith("at: ")


async def test_the_command_answers_from_the_log_and_adds_what_is_known_of_runners_now(
    gateway: GatewayProcess, planner: None, dispatcher: None, tmp_path: Path
) -> None:
    async with gateway.as_user("ann") as ann:
        coder = await made.agent(ann)
        plan = await made.plan(ann, await made.project(ann, coder), coder["slug"])
        await made.finalized(ann, plan)
        await made.task_is(ann, plan, "T1", "queued")
    treadle = Command(gateway, tmp_path)
    done = await treadle("why", "T2", "--plan", plan)
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert lines[1].startswith("T2 waits for T1 [#")
    assert "T1 was dispatched to pool claude at" in lines[4] and "no runner has taken it yet [#" in lines[4]
    assert (
        lines[-1] == f"({OUTSIDE}: no runner is there to take what is queued: `treadle doctor` tells what hinders one)"
    )
    told = json.loads((await treadle("why", "T2", "--plan", plan, "--json")).out)
    assert told["outside_the_log"].startswith("no runner is there")
    then = await treadle("why", "T2", "--plan", plan, "--at", str(told["at"]))
    assert then.status == 0 and OUTSIDE not in then.out

"""Candidates: added, compared, replaced under a precondition, until one is chosen."""

from __future__ import annotations

import asyncio
import json

from tests.gateway.answers import assert_problem
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.plans import made
from tests.gateway.plans.made import COMMIT, TWO, ok

OTHER = TWO.replace("WHO", "claude").replace("name: Two", "name: Other")


async def test_every_fault_of_a_plan_is_named_at_once(gateway: GatewayProcess, planner: None) -> None:
    async with gateway.as_user("ann") as ann:
        first, second = await made.agent(ann, called="first"), await made.agent(ann, called="second")
        project = await made.project(ann, first, second)
        nearly = first["slug"].replace("first", "firts")
        text = f"{{code: T1, assignee: {nearly}}}, {{code: T2, name: y}}, {{code: T3, depends_on: [T9], x: 1}}"
        text = f"name: x\ntasks: [{text}]"
        answer = await ann.post(f"/api/projects/{project}/plans", json={"text": text, "base_commit": COMMIT})
        faults = assert_problem(answer, 422, "invalid_plan")["faults"]
        told = {(fault["task"], fault["field"]) for fault in faults}
        assert {("T1", "assignee"), ("T2", "assignee"), ("T3", "depends_on"), ("T3", "x")} <= told
        assert f'did you mean "{first["slug"]}"' in faults[0]["message"]
        for commit in ("main", "0" * 39, "G" * 40, "A" * 40):
            bad = await ann.post(f"/api/projects/{project}/plans", json={"text": OTHER, "base_commit": commit})
            assert_problem(bad, 422, "bad_commit")


async def test_a_plan_can_not_borrow_credentials(gateway: GatewayProcess, planner: None) -> None:
    async with gateway.as_user("ann") as ann:
        coder = await made.agent(ann)
        project = await made.project(ann)
        own = {"sdk_type": "claude", "agent_type_id": coder["agent_type_id"], "agent_id": coder["id"]}
        text = json.dumps({"name": "x", "agents": {"mine": own}, "tasks": [{"code": "T1", "name": "x"}]})
        answer = await ann.post(f"/api/projects/{project}/plans", json={"text": text, "base_commit": COMMIT})
        fields = [fault["field"] for fault in assert_problem(answer, 422, "invalid_plan")["faults"]]
        assert fields == ["agents.mine.agent_type_id", "agents.mine.agent_id"]


async def test_candidates_get_numbers_of_their_own(gateway: GatewayProcess, planner: None) -> None:
    async with gateway.as_user("ann") as ann:
        plan = await made.plan(ann, await made.project(ann))
        texts = [OTHER.replace("Other", f"Other {n}") for n in range(4)]
        path = f"/api/plans/{plan}/candidates"
        added = await asyncio.gather(*(ok(ann.post(path, json={"text": text}), 201) for text in texts))
        assert sorted(one["candidate"] for one in added) == ["2", "3", "4", "5"]
        listed = await ok(ann.get(path))
        assert (len(listed["items"]), listed["chosen"]) == (5, None)
        which = await ann.get(f"/api/plans/{plan}/spec")
        assert "name one" in assert_problem(which, 400, "bad_request")["detail"]
        assert_problem(await ann.get(f"/api/plans/{plan}/spec", params={"candidate": "9"}), 404, "not_found")
        await made.finalized(ann, plan, "3")
        assert_problem(await ann.post(path, json={"text": OTHER}), 409, "refused")
        listed = await ok(ann.get(path))
        assert ([one["candidate"] for one in listed["items"]], listed["chosen"]) == (["3"], "3")
        chosen = next(n for n, one in enumerate(added) if one["candidate"] == "3")
        assert (await ok(ann.get(f"/api/plans/{plan}/spec")))["name"] == f"Other {chosen}"


async def test_a_spec_is_replaced_only_as_it_was_read(gateway: GatewayProcess, planner: None) -> None:
    async with gateway.as_user("ann") as ann:
        coder = await made.agent(ann)
        plan = await made.plan(ann, await made.project(ann, coder), coder["slug"])
        path = f"/api/plans/{plan}/spec"
        read = await ann.get(path)
        etag = read.headers["etag"]
        assert "agents" not in read.json() or read.json()["agents"] == {}
        # What is read can be sent back as it is.
        same = await ann.put(path, json={"text": read.text}, headers={"If-Match": etag})
        assert (same.status_code, same.headers["etag"]) == (200, etag)
        edited = {"text": read.text.replace("Do it.", "Do it well.")}
        assert_problem(await ann.put(path, json=edited), 428, "precondition_required")
        assert_problem(await ann.put(path, json=edited, headers={"If-Match": '"x"'}), 412, "changed")
        assert_problem(await ann.put(path, json=edited, headers={"If-Match": "x"}), 400, "bad_request")
        bad = await ann.put(path, json={"text": "name: x"}, headers={"If-Match": etag})
        assert_problem(bad, 422, "invalid_plan")
        done = await ann.put(path, json=edited, headers={"If-Match": etag})
        assert done.status_code == 200
        assert done.headers["etag"] == (await ann.get(path)).headers["etag"] != etag
        assert_problem(await ann.put(path, json=edited, headers={"If-Match": etag}), 412, "changed")
        races = await asyncio.gather(
            *(
                ann.put(
                    path,
                    json={"text": read.text.replace("Do it.", f"Do {n}.")},
                    headers={"If-Match": done.headers["etag"]},
                )
                for n in range(4)
            )
        )
        assert sorted(answer.status_code for answer in races) == [200, 412, 412, 412]

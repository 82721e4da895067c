"""Candidates for a goal, as far as the gateway goes: asked for, shown, given up. No planner is there."""

from __future__ import annotations

import asyncio

import msgspec

from services.gateway.plans.draft_limit import DRAFTS_MAX, MAKINGS_OF_OWNER_MAX
from shared.jetstream import JetStreamStore
from shared.spec import DEFAULT_MODEL
from shared.subjects import transcript
from tests.gateway.answers import assert_problem
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.plans import made
from tests.gateway.plans.drafting import drafted, failed, making
from tests.gateway.plans.made import COMMIT, ok
from tests.gateway.plans.test_idempotency import forget_answers, key

GOAL = "Add a login.\n\nWith sessions."


async def test_candidates_are_asked_for_with_all_that_making_them_needs(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ada") as ada:
        coder = await made.agent(ada, called="coder", model="claude-opus-5", capabilities="Knows the schema.")
        other = await made.agent(ada, called="other")
        project = await made.project(ada, coder, other, collab_dir="plans", poll_interval_s=7)
        wanted = {
            "goal": GOAL,
            "planning_mode": "speed",
            "candidates": 2,
            "agent_id": other["id"],
            "agent_ids": [coder["id"]],
            "base_commit": COMMIT,
            "budget_usd": 2,
            "timeout_minutes": 9,
        }
        asked = await ok(ada.post(f"/api/projects/{project}/plans/generate", json=wanted), 202)
        assert asked["candidates"] == ["1", "2"]
        plan = asked["plan"]
        [event] = (await ok(ada.get(f"/api/plans/{plan}/events")))["events"]
        assert (event["type"], event["seq"], event["actor"]) == ("requested", asked["seq"], "user:ada")
        assert (event["goal"], event["planning_mode"], event["project"]) == (GOAL, "speed", project)
        assert (event["budget_usd"], event["timeout_s"], event["base_commit"]) == (2, 540, COMMIT)
        assert event["planner"]["agent_id"] == other["id"]
        [agent] = event["agents"]
        assert (agent["slug"], agent["capabilities"]) == (coder["slug"], "Knows the schema.")
        assert agent["spec"]["model"] == "claude-opus-5"
        assert (event["collab"]["directory"], event["collab"]["poll_interval_s"]) == ("plans", 7)

        view = await ok(ada.get(f"/api/plans/{plan}", params={"min_seq": asked["seq"]}))
        assert (view["status"], view["standing"], view["is_busy"]) == ("requested", "drafting", True)
        assert (view["name"], view["goal"], view["base_commit"]) == ("Add a login.", GOAL, COMMIT)
        assert [(one["candidate"], one["state"], one["draft"]) for one in view["requests"]] == [
            ("1", "open", "_draft-1"),
            ("2", "open", "_draft-2"),
        ]
        listed = await ok(ada.get(f"/api/projects/{project}/plans", params={"standing": "drafting"}))
        assert [one["plan"] for one in listed["items"]] == [plan]
        assert_problem(await ada.delete(f"/api/agents/{other['id']}"), 409, "in_use")


async def test_what_is_left_out_is_the_projects(gateway: GatewayProcess) -> None:
    async with gateway.as_user("lea") as lea:
        project = await made.project(lea, goal=GOAL, planning_mode="quality")
        asked = await ok(lea.post(f"/api/projects/{project}/plans/generate", json={"base_commit": COMMIT}), 202)
        [event] = (await ok(lea.get(f"/api/plans/{asked['plan']}/events")))["events"]
        assert (event["goal"], event["planning_mode"], event["budget_usd"]) == (GOAL, "quality", 5)
        assert event["planner"] == {"sdk_type": "claude", "model": DEFAULT_MODEL}
        assert event.get("agents", []) == []
        away, coder = await made.agent(lea, is_active=False), await made.agent(lea)
        project = await made.project(lea, away, coder, goal=GOAL)
        asked = await ok(lea.post(f"/api/projects/{project}/plans/generate", json={"base_commit": COMMIT}), 202)
        [event] = (await ok(lea.get(f"/api/plans/{asked['plan']}/events")))["events"]
        assert event["planner"]["agent_id"] == coder["id"]
        assert len(event["agents"]) == 2


async def test_what_cannot_be_asked_for_is_refused_with_the_reason(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann, gateway.as_user("bob") as bob:
        coder, person = await made.agent(ann), await made.agent(ann, None)
        project, by_hand = await made.project(ann, coder), await made.project(ann, person, mode="manual")
        foreign = await made.agent(bob)

        async def refused(body: dict[str, object], status: int, code: str, of: str = project) -> str:
            whole = {"goal": GOAL, "base_commit": COMMIT, **body}
            answer = await ann.post(f"/api/projects/{of}/plans/generate", json=whole)
            return str(assert_problem(answer, status, code)["detail"])

        assert "what is to be achieved" in await refused({"goal": None}, 400, "bad_request")
        assert "U+001B" in await refused({"goal": "\x1b[2J"}, 400, "bad_request")
        assert "choose one" in await refused({"candidates": 2, "auto_finalize": True}, 400, "bad_request")
        assert "budget_usd" in await refused({"auto_finalize": True}, 409, "no_budget")
        unbounded = await made.project(ann, auto_finalize=True)
        assert "auto_finalize false" in await refused({}, 409, "no_budget", unbounded)
        assert "is a person's" in await refused({"agent_id": person["id"]}, 400, "bad_request")
        assert "no such agent" in await refused({"agent_id": foreign["id"]}, 400, "bad_request")
        assert "no such agent" in await refused({"agent_ids": [person["id"]]}, 400, "bad_request")
        await refused({"candidates": 6}, 400, "bad_request")
        await refused({"base_commit": "HEAD"}, 422, "bad_commit")
        await ok(ann.patch(f"/api/agents/{coder['id']}", json={"is_active": False}))
        assert "is inactive" in await refused({"agent_id": coder["id"]}, 409, "agent_unusable")
        assert "is inactive" in await refused({"agent_ids": [coder["id"]]}, 409, "agent_unusable")
        await ok(ann.patch(f"/api/agents/{person['id']}", json={"is_active": False}))
        await refused({}, 409, "no_agents", by_hand)
        unnamed = await ann.post(f"/api/projects/{project}/plans/generate", json={"goal": GOAL})
        assert_problem(unnamed, 503, "no_runner")  # whom the head is asked of
        assert (await ok(ann.get(f"/api/projects/{project}/plans")))["items"] == []


async def test_what_failed_is_shown_and_asked_for_again(gateway: GatewayProcess, log: JetStreamStore) -> None:
    async with gateway.as_user("fay") as fay:
        project = await made.project(fay, budget_usd=50)
        body = {"goal": GOAL, "base_commit": COMMIT, "candidates": 2}
        plan = (await ok(fay.post(f"/api/projects/{project}/plans/generate", json=body), 202))["plan"]
        path = f"/api/plans/{plan}"
        await failed(log, plan, "1")
        seq = await failed(log, plan, "2")
        view = await ok(fay.get(path, params={"min_seq": seq}))
        assert (view["status"], view["standing"], view["is_busy"]) == ("failed", "needs_attention", False)
        [first, _] = view["requests"]
        assert (first["state"], first["message"]) == ("failed", "the plan is not valid after 3 rounds")
        assert first["faults"] == [
            {"message": "task T2 depends on T9, which does not exist", "task": "T2", "field": "depends_on"}
        ]
        assert first["cost_usd"] == 0.5
        assert_problem(await fay.post(f"{path}/finalize", json={"candidate": "1"}), 409, "refused")

        more = await ok(fay.post(f"{path}/generate", json={"auto_finalize": True}), 202)  # from the commit of before
        assert more["candidates"] == ["3"]
        seq = await drafted(log, plan, "3")
        events = (await ok(fay.get(f"{path}/events")))["events"]
        asked = [(event["goal"], event["base_commit"]) for event in events if event["type"] == "requested"]
        assert asked == [(GOAL, COMMIT), (GOAL, COMMIT)]

        async def is_final() -> bool:
            return bool((await ok(fay.get(path)))["candidate"] == "3")

        await made.until(is_final, "the finalizing of the only candidate")
        assert_problem(await fay.post(f"{path}/generate", json={}), 409, "refused")


async def test_a_candidate_shows_how_it_came_about(gateway: GatewayProcess, log: JetStreamStore) -> None:
    async with gateway.as_user("cai") as cai:
        project = await made.project(cai)
        body = {"goal": GOAL, "base_commit": COMMIT, "candidates": 2}
        plan = (await ok(cai.post(f"/api/projects/{project}/plans/generate", json=body), 202))["plan"]
        seq = await drafted(log, plan, "1")
        view = await ok(cai.get(f"/api/plans/{plan}", params={"min_seq": seq}))
        # One is there, and the plan still goes on by itself.
        assert (view["status"], view["standing"], view["is_busy"], view["is_due"]) == (
            "drafted",
            "drafted",
            True,
            False,
        )
        [candidate] = (await ok(cai.get(f"/api/plans/{plan}/candidates")))["items"]
        told = {name: candidate[name] for name in ("draft", "model", "cost_usd", "duration_s", "template")}
        assert told == {
            "draft": "_draft-1", "model": "claude-sonnet-5-5", "cost_usd": 0.5, "duration_s": 12.0, "template": ""
        }  # fmt: skip
        refused = await cai.post(f"/api/plans/{plan}/generate", json={"auto_finalize": True})
        assert_problem(refused, 400, "bad_request")
        more = await ok(cai.post(f"/api/plans/{plan}/generate", json={}), 202)  # from the candidate's commit
        assert more["candidates"] == ["3"]


async def test_the_making_of_a_candidate_is_told_and_can_be_stopped(
    gateway: GatewayProcess, log: JetStreamStore
) -> None:
    async with gateway.as_user("mae") as mae, gateway.as_user("bob") as bob:
        project = await made.project(mae)
        body = {"goal": GOAL, "base_commit": COMMIT}
        plan = (await ok(mae.post(f"/api/projects/{project}/plans/generate", json=body), 202))["plan"]
        path = f"/api/plans/{plan}/tasks/_draft-1"
        assert_problem(await mae.get(f"{path}/transcript"), 404, "not_found")
        lease = await making(log, plan)
        said = msgspec.json.encode({"kind": "text", "text": "I look around."})
        await log._js.publish(transcript(plan, "_draft-1", lease), said)

        async def heard() -> list[dict[str, object]]:
            answer = await mae.get(f"{path}/transcript")
            return list(answer.json()["items"]) if answer.is_success else []

        [entry] = await made.until(heard, "what the agent said")
        assert (entry["task"], entry["activity"]["text"]) == ("_draft-1", "I look around.")
        assert (await ok(mae.get(f"{path}/prompt")))["prompt"] == "Make a plan of it."
        seen = {"min_seq": await log.last_seq(plan, "_draft-1")}
        [asked] = (await ok(mae.get(f"/api/plans/{plan}", params=seen)))["requests"]
        assert (asked["status"], asked["runner"]) == ("running", "r1")
        assert (await ok(mae.get(f"/api/plans/{plan}/tasks")))["items"] == []
        for act in ("complete", "abandon", "redispatch"):
            assert_problem(await mae.post(f"{path}/{act}", json={}), 404, "not_found")
        assert_problem(await bob.post(f"{path}/cancel", json={}), 404, "not_found")
        stopped = await ok(mae.post(f"{path}/cancel", json={"note": "too slow"}), 202)
        [asked] = (await ok(mae.get(f"/api/plans/{plan}", params={"min_seq": stopped["seq"]})))["requests"]
        assert asked["status"] == "cancelling"


async def test_a_gateway_that_died_in_between_asks_for_nothing_twice(own_gateway: GatewayProcess) -> None:
    async with own_gateway.as_user("ann") as ann:
        project = await made.project(ann)
        first_key, more_key = key(), key()
        path, body = f"/api/projects/{project}/plans/generate", {"goal": GOAL, "base_commit": COMMIT}
        first = await ok(ann.post(path, json=body, headers=first_key), 202)
        more = await ok(ann.post(f"/api/plans/{first['plan']}/generate", json=body, headers=more_key), 202)
    await forget_answers(own_gateway, minutes_ago=2)
    async with own_gateway.as_user("ann") as ann:
        assert await ok(ann.post(path, json=body, headers=first_key)) == first
        assert await ok(ann.post(f"/api/plans/{first['plan']}/generate", json=body, headers=more_key)) == more
        events = (await ok(ann.get(f"/api/plans/{first['plan']}/events")))["events"]
        assert [event["candidates"] for event in events] == [["1"], ["2"]]


async def test_plans_that_are_asked_for_count_as_undecided_ones(gateway: GatewayProcess, log: JetStreamStore) -> None:
    async with gateway.as_user("wisher") as user:
        path = f"/api/projects/{await made.project(user)}/plans/generate"
        body = {"goal": GOAL, "base_commit": COMMIT}
        plans = []
        for _ in range(DRAFTS_MAX):
            plans.append((await ok(user.post(path, json=body), 202))["plan"])
            await failed(log, plans[-1], "1")
        assert_problem(await user.post(path, json=body), 409, "too_many_drafts")
        await ok(user.post(f"/api/plans/{plans[0]}/cancel", json={}), 202)
        await ok(user.post(path, json=body), 202)


async def test_of_one_plan_and_of_one_owner_so_many_candidates_are_made_at_once(
    gateway: GatewayProcess, log: JetStreamStore
) -> None:
    async with gateway.as_user("hasty") as user, gateway.as_user("calm") as other, gateway.as_admin() as admin:
        path = f"/api/projects/{await made.project(user)}/plans/generate"
        body = {"goal": GOAL, "base_commit": COMMIT}
        first = (await ok(user.post(path, json={**body, "candidates": 3}), 202))["plan"]
        more = f"/api/plans/{first}/generate"
        for client in (user, admin):
            refused = assert_problem(await client.post(more, json={"candidates": 3}), 409, "too_many_drafts")
            assert "3 candidates of this plan" in refused["detail"] and "at most 5" in refused["detail"]
        await ok(user.post(more, json={"candidates": 2}), 202)
        at_once = await asyncio.gather(*(user.post(path, json=body) for _ in range(12)))
        made_at_once = [answer.json()["plan"] for answer in at_once if answer.status_code == 202]
        assert len(made_at_once) <= MAKINGS_OF_OWNER_MAX - 5
        for _ in range(MAKINGS_OF_OWNER_MAX - 5 - len(made_at_once)):
            await ok(user.post(path, json=body), 202)
        refused = assert_problem(await user.post(path, json=body), 409, "too_many_drafts")
        assert "making 10 candidates for the owner" in refused["detail"]
        await ok(other.post(f"/api/projects/{await made.project(other)}/plans/generate", json=body), 202)
        await ok(admin.post(path, json=body), 202)
        for candidate in ("1", "2"):  # one for the admin's
            await failed(log, first, candidate)
        await ok(user.post(more, json={}), 202)
        assert_problem(await user.post(more, json={}), 409, "too_many_drafts")


async def test_a_plan_that_is_cancelled_before_anything_came_stays_its_owners(gateway: GatewayProcess) -> None:
    async with gateway.as_user("ann") as ann:
        project = await made.project(ann)
        body = {"goal": GOAL, "base_commit": COMMIT}
        plan = (await ok(ann.post(f"/api/projects/{project}/plans/generate", json=body), 202))["plan"]
        done = await ok(ann.post(f"/api/plans/{plan}/cancel", json={}), 202)
        view = await ok(ann.get(f"/api/plans/{plan}", params={"min_seq": done["seq"]}))
        assert (view["project"], view["name"]) == (project, "Add a login.")
        assert view["status"] in ("cancelling", "cancelled")
        assert view["requests"] == []

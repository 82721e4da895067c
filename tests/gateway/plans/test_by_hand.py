"""Plans that people make with a prompt, and send or put where they are looked for."""

from __future__ import annotations

import asyncio

from shared.jetstream import JetStreamStore
from tests.gateway.answers import assert_problem
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.plans import made
from tests.gateway.plans.drafting import drafted
from tests.gateway.plans.made import COMMIT, ok

GOAL = "Add a login to the shop."


async def test_the_prompt_keeps_its_plan_until_a_candidate_is_there(gateway: GatewayProcess, planner: None) -> None:
    async with gateway.as_user("ann") as ann:
        person = await made.agent(ann, None, called="paula", capabilities="Knows the shop.")
        collab = "https://git.example.com/a/collab.git"
        project = await made.project(ann, person, mode="manual", goal=GOAL, collab_repo_url=collab, collab_dir="x/y")
        path = f"/api/projects/{project}/plans/prompt"
        first = await ok(ann.post(path), 200)
        assert first["path"] == f"x/y/plan-{first['plan']}.json"
        assert first["repo_url"] == collab
        assert GOAL in first["prompt"] and person["slug"] in first["prompt"]
        again = await ok(ann.post(path, json={"goal": "Another goal.", "planning_mode": "speed"}), 200)
        assert (again["plan"], again["path"]) == (first["plan"], first["path"])
        assert again["seq"] > first["seq"]
        assert "Another goal." in again["prompt"] and GOAL not in again["prompt"]
        plan = first["plan"]
        # What is not said again stays as it was said last.
        assert "Another goal." in (await ok(ann.post(path), 200))["prompt"]
        shown = await ok(ann.get(f"/api/plans/{plan}/prompt"))
        assert (shown["plan"], shown["path"]) == (plan, first["path"])
        assert "Another goal." in shown["prompt"]
        view = await ok(ann.get(f"/api/plans/{plan}", params={"min_seq": shown["seq"]}))
        assert (view["status"], view["standing"], view["is_busy"]) == ("requested", "drafting", False)
        [asked] = view["requests"]
        assert (asked["by_hand"], asked["path"], asked["draft"]) == (True, first["path"], "")

        body = {"text": made.TWO.replace("WHO", person["slug"]), "base_commit": COMMIT}
        pasted = await ok(ann.post(f"/api/plans/{plan}/candidates", json=body), 201)
        assert (pasted["plan"], pasted["candidate"]) == (plan, "1")
        view = await ok(ann.get(f"/api/plans/{plan}", params={"min_seq": pasted["seq"]}))
        assert (view["status"], view["requests"], view["name"]) == ("drafted", [], "Two")
        assert_problem(await ann.get(f"/api/plans/{plan}/prompt"), 409, "refused")
        assert (await ok(ann.post(path), 200))["plan"] != plan


async def test_two_who_ask_at_once_get_one_plan(gateway: GatewayProcess, planner: None) -> None:
    async with gateway.as_user("ann") as ann:
        project = await made.project(ann, goal=GOAL)
        path = f"/api/projects/{project}/plans/prompt"
        answers = await asyncio.gather(*(ok(ann.post(path), 200) for _ in range(6)))
        assert len({answer["plan"] for answer in answers}) == 1
        assert (
            len((await ok(ann.get(f"/api/projects/{project}/plans", params={"min_seq": answers[0]["seq"]})))["items"])
            == 1
        )


async def test_a_plan_that_is_cancelled_is_not_asked_for_any_more(gateway: GatewayProcess, planner: None) -> None:
    async with gateway.as_user("ann") as ann:
        path = f"/api/projects/{await made.project(ann, goal=GOAL)}/plans/prompt"
        first = await ok(ann.post(path), 200)
        await ok(ann.post(f"/api/plans/{first['plan']}/cancel", json={}), 202)
        assert_problem(await ann.get(f"/api/plans/{first['plan']}/prompt"), 409, "refused")
        assert (await ok(ann.post(path), 200))["plan"] != first["plan"]


async def test_a_commit_that_nobody_could_tell_is_wanted_with_the_plan(gateway: GatewayProcess, planner: None) -> None:
    async with gateway.as_user("ann") as ann:
        path = f"/api/projects/{await made.project(ann, goal=GOAL)}/plans/prompt"
        plan = (await ok(ann.post(path), 200))["plan"]  # no runner is there to tell it
        text = {"text": made.TWO.replace("WHO", "claude")}
        assert_problem(await ann.post(f"/api/plans/{plan}/candidates", json=text), 503, "no_runner")
        await ok(ann.post(path, json={"base_commit": COMMIT}), 200)
        await ok(ann.post(f"/api/plans/{plan}/candidates", json=text), 201)
        [candidate] = (await ok(ann.get(f"/api/plans/{plan}/candidates")))["items"]
        assert candidate["base_commit"] == COMMIT


async def test_a_paste_takes_a_number_of_its_own_beside_what_an_agent_makes(
    gateway: GatewayProcess, log: JetStreamStore, planner: None
) -> None:
    async with gateway.as_user("pat") as pat:
        project = await made.project(pat, goal=GOAL)
        body = {"base_commit": COMMIT}
        plan = (await ok(pat.post(f"/api/projects/{project}/plans/generate", json=body), 202))["plan"]
        text = {"text": made.TWO.replace("WHO", "claude")}
        pasted = await ok(pat.post(f"/api/plans/{plan}/candidates", json=text), 201)
        assert pasted["candidate"] == "2"
        view = await ok(pat.get(f"/api/plans/{plan}", params={"min_seq": pasted["seq"]}))
        assert ([one["candidate"] for one in view["requests"]], view["status"]) == (["1"], "drafted")
        seq = await drafted(log, plan, "1")
        await ok(pat.get(f"/api/plans/{plan}", params={"min_seq": seq}))
        # By their numbers, whatever came first.
        listed = (await ok(pat.get(f"/api/plans/{plan}/candidates")))["items"]
        assert [one["candidate"] for one in listed] == ["1", "2"]


async def test_a_paste_gives_its_tasks_to_those_that_were_asked_for(gateway: GatewayProcess, planner: None) -> None:
    async with gateway.as_user("pat") as pat:
        coder, other = await made.agent(pat, called="coder"), await made.agent(pat, called="other")
        project = await made.project(pat, coder, other, goal=GOAL)
        wanted = {"agent_ids": [coder["id"]], "base_commit": COMMIT}
        plan = (await ok(pat.post(f"/api/projects/{project}/plans/prompt", json=wanted), 200))["plan"]
        path = f"/api/plans/{plan}/candidates"
        refused = await pat.post(path, json={"text": made.TWO.replace("WHO", other["slug"])})
        assert other["slug"] in assert_problem(refused, 422, "invalid_plan")["detail"]
        await ok(pat.post(path, json={"text": made.TWO.replace("WHO", coder["slug"])}), 201)
        # The next one answers no request: it may be for all of the project's.
        await ok(pat.post(path, json={"text": made.TWO.replace("WHO", other["slug"])}), 201)


async def test_what_a_person_sends_may_open_doors(gateway: GatewayProcess, planner: None) -> None:
    async with gateway.as_user("pat") as pat:
        project = await made.project(pat, goal=GOAL)
        asked = await ok(pat.post(f"/api/projects/{project}/plans/prompt", json={"base_commit": COMMIT}), 200)
        text = made.TWO.replace("WHO", "claude") + "setup: [make deps]\nnetwork_allow: [pypi.example]\n"
        await ok(pat.post(f"/api/plans/{asked['plan']}/candidates", json={"text": text}), 201)


async def test_two_candidates_are_compared(gateway: GatewayProcess, planner: None) -> None:
    async with gateway.as_user("ann") as ann, gateway.as_user("bob") as bob:
        project = await made.project(ann)
        plan = await made.plan(ann, project)
        other = made.TWO.replace("WHO", "claude").replace("code: T2, name: Second", "code: T3, name: Third")
        other = other.replace("Do it.", "Do it well.")
        await ok(ann.post(f"/api/plans/{plan}/candidates", json={"text": other}), 201)
        path = f"/api/plans/{plan}/compare"
        told = await ok(ann.get(path, params={"a": "1", "b": "2"}))
        assert (told["added"], told["removed"]) == (["T3"], ["T2"])
        assert [(one["code"], one["fields"]) for one in told["changed"]] == [("T1", ["description"])]
        assert [one["candidate"] for one in told["estimates"]] == ["1", "2"]
        assert told["estimates"][0]["critical_path"] == ["T1", "T2"]
        assert_problem(await ann.get(path, params={"a": "1", "b": "9"}), 404, "not_found")
        assert_problem(await ann.get(path, params={"a": "1"}), 400, "bad_request")
        assert_problem(await bob.get(path, params={"a": "1", "b": "2"}), 404, "not_found")
        await made.finalized(ann, plan)
        assert_problem(await ann.get(path, params={"a": "1", "b": "2"}), 409, "refused")

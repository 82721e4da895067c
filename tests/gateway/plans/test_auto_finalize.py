"""A plan whose only candidate was asked for so runs without a person's choice, under every check of one."""

from __future__ import annotations

from typing import Any

import httpx

from shared.commands import Request
from shared.jetstream import JetStreamStore
from shared.spec import AgentSpec
from shared.store import Meta
from shared.transact import load_plan, to_plan
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.plans import made
from tests.gateway.plans.drafting import drafted, failed, spec_of
from tests.gateway.plans.made import COMMIT, ok

BY_ITSELF: dict[str, Any] = {"auto_finalize": True, "budget_usd": 50}
BODY = {"goal": "Add a login.", "base_commit": COMMIT}


async def asked(client: httpx.AsyncClient, project: str, **fields: Any) -> str:
    path = f"/api/projects/{project}/plans/generate"
    return str((await ok(client.post(path, json={**BODY, **fields}), 202))["plan"])


async def finalized(client: httpx.AsyncClient, plan: str) -> dict[str, Any]:
    async def look() -> Any:
        view = await ok(client.get(f"/api/plans/{plan}"))
        return view if view["candidate"] else None

    view: dict[str, Any] = await made.until(look, f"the finalizing of {plan}")
    return view


async def held(client: httpx.AsyncClient, plan: str) -> str:
    async def look() -> Any:
        return (await ok(client.get(f"/api/plans/{plan}")))["held_up"]

    return str(await made.until(look, f"a reason why {plan} is not finalized"))


async def test_the_only_candidate_is_finalized_as_whoever_asked(gateway: GatewayProcess, log: JetStreamStore) -> None:
    async with gateway.as_user("ann") as ann:
        project = await made.project(ann, **BY_ITSELF, task_timeout_minutes=7)
        plan = await asked(ann, project)
        await drafted(log, plan)
        # A dispatcher that another test of this file has asked for goes on at once.
        assert (await finalized(ann, plan))["status"] in ("finalizing", "active")
        events = (await ok(ann.get(f"/api/plans/{plan}/events")))["events"]
        [choice] = [event for event in events if event["type"] == "finalizing"]
        assert (choice["actor"], choice["candidate"]) == ("user:ann", "1")
        assert choice["settings"]["task_timeout_minutes"] == 7


async def test_nothing_is_chosen_where_nobody_asked_for_it_or_there_is_a_choice(
    gateway: GatewayProcess, log: JetStreamStore
) -> None:
    async with gateway.as_user("abe") as ann:
        project = await made.project(ann, **BY_ITSELF, allow_concurrent_plans=True)
        refused = await asked(ann, project, auto_finalize=False)
        several = await asked(ann, project, candidates=2)
        # Asked for as the only one, and then another was wanted.
        joined = await asked(ann, project)
        await ok(ann.post(f"/api/plans/{joined}/generate", json=BODY), 202)
        for plan, names in ((refused, "1"), (several, "12"), (joined, "12")):
            for name in names:
                await drafted(log, plan, name)
        # What comes after them is finalized: so they had their chance.
        last = await asked(ann, project)
        await drafted(log, last)
        await finalized(ann, last)
        for plan in (refused, several, joined):
            view = await ok(ann.get(f"/api/plans/{plan}"))
            assert (view["status"], view["is_due"], view["held_up"]) == ("drafted", False, "")


async def test_an_open_request_beside_it_is_waited_for(gateway: GatewayProcess, log: JetStreamStore) -> None:
    async with gateway.as_user("ann") as ann:
        project = await made.project(ann, **BY_ITSELF)
        plan = await asked(ann, project)
        await ok(ann.post(f"/api/plans/{plan}/generate", json=BODY), 202)
        seq = await drafted(log, plan, "1")
        assert (await ok(ann.get(f"/api/plans/{plan}", params={"min_seq": seq})))["is_due"] is False
        await failed(log, plan, "2")
        assert (await finalized(ann, plan))["candidate"] == "1"


async def test_another_plan_in_progress_holds_it_up_until_that_has_ended(
    gateway: GatewayProcess, log: JetStreamStore, dispatcher: None
) -> None:
    async with gateway.as_user("ann") as ann:
        project = await made.project(ann, **BY_ITSELF)
        first, second = await asked(ann, project), await asked(ann, project)
        await drafted(log, first)
        await finalized(ann, first)
        await drafted(log, second)
        why = await held(ann, second)
        assert first in why and "allow_concurrent_plans" in why
        [listed] = (await ok(ann.get(f"/api/projects/{project}/plans", params={"status": "drafted"})))["items"]
        assert (listed["plan"], listed["is_due"], listed["held_up"]) == (second, True, why)
        await ok(ann.post(f"/api/plans/{first}/cancel", json={}), 202)
        assert (await finalized(ann, second))["held_up"] == ""


async def test_an_agent_that_became_unusable_holds_it_up(gateway: GatewayProcess, log: JetStreamStore) -> None:
    async with gateway.as_user("abe") as ann:
        coder = await made.agent(ann)
        project = await made.project(ann, coder, **BY_ITSELF)
        plan = await asked(ann, project)
        await ok(ann.patch(f"/api/agents/{coder['id']}", json={"is_active": False}))
        spec = AgentSpec(sdk_type="claude", agent_id=coder["id"], agent_type_id=coder["agent_type_id"])
        await drafted(log, plan, spec=spec_of(agent=spec))
        assert "agent claude is inactive" in await held(ann, plan)
        await ok(ann.patch(f"/api/agents/{coder['id']}", json={"is_active": True}))
        # Nothing in the log tells of that: what moves is another plan.
        await asked(ann, project)
        await finalized(ann, plan)


async def test_a_plan_that_nobody_bounds_any_more_is_held_up(gateway: GatewayProcess, log: JetStreamStore) -> None:
    async with gateway.as_user("abe") as abe:
        project = await made.project(abe, **BY_ITSELF)
        plan = await asked(abe, project)
        await ok(abe.patch(f"/api/projects/{project}", json={"budget_usd": None}))
        await drafted(log, plan)
        assert "budget_usd" in await held(abe, plan)
        await ok(abe.post(f"/api/plans/{plan}/finalize", json={"candidate": "1"}), 202)  # a person may


async def test_what_was_asked_for_by_hand_is_a_persons_to_finalize(
    gateway: GatewayProcess, log: JetStreamStore, planner: None
) -> None:
    async with gateway.as_user("abe") as abe:
        project = await made.project(abe, **BY_ITSELF, goal="Add a login.", allow_concurrent_plans=True)
        plan = (await ok(abe.post(f"/api/projects/{project}/plans/prompt", json={"base_commit": COMMIT}), 200))["plan"]
        [event] = (await ok(abe.get(f"/api/plans/{plan}/events")))["events"]
        assert event.get("auto_finalize", False) is False
        # As gateways asked for it that did not know better.
        known = (await load_plan(log, plan)).state.requests["1"].request
        fields = {name: getattr(known, name) for name in known.__struct_fields__ if name != "candidates"}
        await to_plan(log, plan, Request(**{**fields, "auto_finalize": True}), Meta(actor="user:abe"))
        text = {"text": made.TWO.replace("WHO", "claude")}
        seq = (await ok(abe.post(f"/api/plans/{plan}/candidates", json=text), 201))["seq"]
        view = await ok(abe.get(f"/api/plans/{plan}", params={"min_seq": seq}))
        assert (view["status"], view["is_due"]) == ("drafted", False)


async def test_whoever_may_do_nothing_any_more_starts_nothing(gateway: GatewayProcess, log: JetStreamStore) -> None:
    async with gateway.as_user("thawed") as user, gateway.as_admin() as admin:
        plan = await asked(user, await made.project(user, **BY_ITSELF))
        await ok(admin.patch(f"/api/users/{gateway.id_of('thawed')}", json={"is_frozen": True}))
        await drafted(log, plan)
        assert "user:thawed, who asked for the plan" in await held(admin, plan)


async def test_a_gateway_that_was_away_finalizes_what_came_meanwhile(
    own_gateway: GatewayProcess, log: JetStreamStore
) -> None:
    async with own_gateway.as_user("ann") as ann:
        plan = await asked(ann, await made.project(ann, **BY_ITSELF))
    own_gateway.kill()
    await drafted(log, plan)
    own_gateway.start()
    async with own_gateway.as_user("ann") as ann:
        await finalized(ann, plan)

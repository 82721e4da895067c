"""So many plans of one owner may wait for a choice."""

from __future__ import annotations

import asyncio

from services.gateway.plans.draft_limit import DRAFTS_MAX
from tests.gateway.answers import assert_problem
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.plans import made
from tests.gateway.plans.made import COMMIT, ok

BODY = {"text": made.TWO.replace("WHO", "claude"), "base_commit": COMMIT}


async def test_undecided_plans_are_counted_over_all_projects_of_their_owner(
    gateway: GatewayProcess, planner: None
) -> None:
    async with gateway.as_user("hoarder") as user, gateway.as_user("neighbour") as other, gateway.as_admin() as admin:
        paths = [f"/api/projects/{await made.project(user)}/plans" for _ in range(2)]
        at_once = await asyncio.gather(*(user.post(paths[n % 2], json=BODY) for n in range(DRAFTS_MAX + 5)))
        plans = [answer.json()["plan"] for answer in at_once if answer.status_code == 201]
        assert 0 < len(plans) <= DRAFTS_MAX
        for answer in at_once:
            if answer.status_code != 201:
                assert_problem(answer, 409, "too_many_drafts")
        while len(plans) < DRAFTS_MAX:
            plans.append((await ok(user.post(paths[0], json=BODY), 201))["plan"])
        refused = assert_problem(await user.post(paths[1], json=BODY), 409, "too_many_drafts")
        assert "finalize or cancel" in refused["detail"]
        await made.plan(other, await made.project(other))
        await ok(admin.post(paths[0], json=BODY), 201)
        for plan in plans[:2]:
            await ok(user.post(f"/api/plans/{plan}/cancel", json={}), 202)
        await ok(user.post(paths[1], json=BODY), 201)
        assert_problem(await user.post(paths[1], json=BODY), 409, "too_many_drafts")
        await ok(user.post(f"/api/plans/{plans[2]}/candidates", json=BODY), 201)

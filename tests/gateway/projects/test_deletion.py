"""Deleting a project: its plans end first, then it goes, once, with a word to the runners."""

from __future__ import annotations

import asyncio

import httpx
import msgspec

from shared.bus import BusSettings, connect
from shared.requests import ProjectDeleted
from shared.streams import PROJECTS
from shared.subjects import project_deleted
from tests.gateway.answers import assert_problem
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.plans import made
from tests.gateway.plans.made import COMMIT, ok
from tests.gateway.service_process import service
from tests.nats_process import NatsServer


async def gone(client: httpx.AsyncClient, project: str) -> None:
    async def look() -> bool:
        return (await client.get(f"/api/projects/{project}")).status_code == 404

    await made.until(look, f"the end of project {project}")


async def told(nats: NatsServer, project: str) -> ProjectDeleted:
    """What runners hear."""
    nc = await connect(BusSettings(nats.url, nats.user, nats.password), "test")
    try:
        message = await nc.jetstream().get_last_msg(PROJECTS, project_deleted(project))
        return msgspec.json.decode(message.data or b"", type=ProjectDeleted)
    finally:
        await nc.close()


async def test_what_runs_is_cancelled_and_then_all_of_it_goes(
    gateway: GatewayProcess, nats_url: NatsServer, planner: None, dispatcher: None
) -> None:
    async with gateway.as_user("ann") as ann:
        coder = await made.agent(ann)
        project = await made.project(ann, coder, collab_repo_url="https://git.example.com/shared/collab.git")
        await made.project(ann, code_repo_url="https://git.example.com/shared/collab.git")
        found = await ok(ann.get(f"/api/projects/{project}"))
        running, drafted = [await made.plan(ann, project, coder["slug"]) for _ in range(2)]
        await made.finalized(ann, running)
        await made.task_is(ann, running, "T1", "queued")
        await ok(ann.get(f"/api/plans/{drafted}"))
        answer = await ok(ann.delete(f"/api/projects/{project}"), 202)
        assert set(answer["plans"]) == set(answer["plans_cancelled"]) == {running, drafted}
        assert answer["repositories"] == [found["code_repo_url"]]
        assert answer["agents_released"] == [coder["id"]]
        await gone(ann, project)
        for plan in (running, drafted):
            assert_problem(await ann.get(f"/api/plans/{plan}"), 404, "not_found")
        event = await told(nats_url, project)
        assert set(event.plans) == {running, drafted}
        assert event.repo_urls == (found["code_repo_url"],)
        assert (await ann.delete(f"/api/agents/{coder['id']}")).status_code == 204
        assert_problem(await ann.delete(f"/api/projects/{project}"), 404, "not_found")
    async with gateway.as_admin() as admin:
        for plan in (running, drafted):
            assert (await ok(admin.get(f"/api/plans/{plan}")))["status"] == "cancelled"
        entries = (await ok(admin.get("/api/audit-log", params={"subject": project})))["items"]
        deleted = [entry for entry in entries if entry["action"] == "project.deleted"]
        assert [entry["actor"] for entry in deleted] == ["user:ann"]


async def test_a_gateway_that_dies_meanwhile_is_carried_on_by_the_next(
    own_gateway: GatewayProcess, nats_url: NatsServer, planner: None
) -> None:
    async with own_gateway.as_user("ann") as ann:
        project = await made.project(ann)
        plan = await made.plan(ann, project)
        # Without a dispatcher of its own plan nothing ends it: the deletion is under way for as long as we like.
        await made.finalized(ann, plan)
        await ok(ann.delete(f"/api/projects/{project}"), 202)
        await ok(ann.delete(f"/api/projects/{project}"), 202)
        assert (await ok(ann.get(f"/api/projects/{project}")))["deleting_since"]
        for call in (
            ann.patch(f"/api/projects/{project}", json={"name": "x"}),
            ann.post(
                f"/api/projects/{project}/plans",
                json={"text": made.TWO.replace("WHO", "claude"), "base_commit": COMMIT},
            ),
            ann.put(f"/api/projects/{project}/git-credentials", json={"kind": "token", "secret": "x"}),
        ):
            answer = await call
            if answer.status_code != 404:  # the session's dispatcher, where one runs, may be that fast
                assert_problem(answer, 409, "being_deleted")
    own_gateway.kill()
    own_gateway.start()
    with service("dispatcher", nats_url, own_gateway.directory):
        async with own_gateway.as_user("ann") as ann:
            await gone(ann, project)
            assert plan in (await told(nats_url, project)).plans


async def test_deletions_at_the_same_time_do_no_harm(gateway: GatewayProcess, planner: None, dispatcher: None) -> None:
    async with gateway.as_user("ann") as ann:
        project = await made.project(ann)
        answers = await asyncio.gather(*(ann.delete(f"/api/projects/{project}") for _ in range(5)))
        # Whoever comes once it is gone finds nothing.
        assert {answer.status_code for answer in answers} in ({202}, {202, 404})
        await gone(ann, project)

"""What the gateway has a runner find out: the head of a repository, and what lies in a collaboration repository."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.bus import BusSettings, connect
from shared.jetstream import JetStreamStore
from shared.streams import declare_streams
from tests.gateway.answers import assert_problem
from tests.gateway.conftest import MakeDatabase
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.plans import made
from tests.gateway.plans.made import ok
from tests.gateway.plans.test_diff import World, runner
from tests.gateway.service_process import service
from tests.nats_process import NatsServer
from tests.runner.repositories import git, make_project


@pytest.fixture
async def world(own_nats: NatsServer, make_migrated_database: MakeDatabase, tmp_path: Path) -> AsyncIterator[World]:
    project = make_project(tmp_path)
    nc = await connect(BusSettings(own_nats.url, own_nats.user, own_nats.password), "test")
    await declare_streams(nc.jetstream())
    local = {"TREADLE_LOCAL_REPOSITORIES": "1"}
    with (
        make_migrated_database("sqlite", tmp_path) as url,
        GatewayProcess(tmp_path, own_nats, url, local, is_migrated=True) as gateway,
        service("dispatcher", own_nats, tmp_path),
        service("planner", own_nats, tmp_path),
    ):
        yield World(gateway, own_nats, JetStreamStore(nc), project.repo, project.base, tmp_path)
    await nc.close()


async def answered(client: httpx.AsyncClient, path: str, status: int, **fields: Any) -> Any:
    """The answer, once a runner is there to ask."""

    async def look() -> Any:
        answer = await client.post(path, json=fields or None)
        return None if answer.status_code == 503 else answer

    answer = await made.until(look, "a runner's answer")
    assert answer.status_code == status, answer.text
    return answer.json()


async def test_a_plan_begins_at_the_head_where_nobody_names_a_commit(world: World) -> None:
    async with world.gateway.as_user("ann") as ann:
        project = await made.project(ann, code_repo_url=str(world.repo), goal="Add a login.")
        with runner(world):
            asked = await answered(ann, f"/api/projects/{project}/plans/generate", 202)
            view = await ok(ann.get(f"/api/plans/{asked['plan']}", params={"min_seq": asked["seq"]}))
            assert view["base_commit"] == world.base
            await answered(ann, f"/api/projects/{project}/plans/prompt", 200)
            plans = (await ok(ann.get(f"/api/projects/{project}/plans")))["items"]
            assert {plan["base_commit"] for plan in plans} == {world.base}
            world.repo.rename(world.repo.with_name("gone"))
            refused = await answered(ann, f"/api/projects/{project}/plans/generate", 409)
            assert refused["code"] == "no_head"
            assert "name a base_commit" in refused["detail"]


async def test_what_lies_there_when_a_task_is_handed_out_is_no_result_of_it(world: World) -> None:
    async with world.gateway.as_user("ann") as ann:
        person = await made.agent(ann, None, called="paula")
        fields = {"mode": "manual", "code_repo_url": str(world.repo), "poll_interval_s": 5}
        project = await made.project(ann, person, **fields)
        body = {"text": made.TWO.replace("WHO", person["slug"]), "base_commit": world.base}
        plan = (await ok(ann.post(f"/api/projects/{project}/plans", json=body), 201))["plan"]
        await made.finalized(ann, plan)
        await made.task_is(ann, plan, "T1", "readied")
        path = f"treadle/{plan}/T1/result.json"
        (world.repo / path).parent.mkdir(parents=True)
        (world.repo / path).write_text(json.dumps({"task_code": "T1", "summary": "old", "artifacts": []}))
        git(world.repo, "add", ".")
        git(world.repo, "commit", "-qm", "what somebody tried before")
        blob, head = git(world.repo, "rev-parse", f"HEAD:{path}"), git(world.repo, "rev-parse", "HEAD")
        tasks = f"/api/plans/{plan}/tasks"
        with runner(world):
            found = await answered(ann, f"{tasks}/T1/refresh", 200)
            assert found == {"repo_url": str(world.repo), "commit": head, "path": path, "blob": blob}
            whole = await answered(ann, f"/api/projects/{project}/refresh", 200)
            assert (whole["commit"], whole["path"], whole["blob"]) == (head, "", "")
            # In every state: T2 waits for T1.
            assert (await ok(ann.post(f"{tasks}/T2/refresh"), 200))["blob"] == ""
            handed = await ok(ann.post(f"{tasks}/T1/dispatch", json={"note": "paula begins"}), 202)
            events = (await ok(ann.get(f"/api/plans/{plan}/events", params={"limit": 500})))["events"]
            [dispatched] = [event for event in events if event["seq"] == handed["seq"]]
            assert dispatched["note"] == "paula begins"
            assert dispatched["place"] == {
                "repo_url": str(world.repo),
                "path": path,
                "poll_interval_s": 5.0,
                "blob": blob,
            }
            running = await made.task_is(ann, plan, "T1", "running")
            assert (running["result_repo_url"], running["result_path"]) == (str(world.repo), path)
            assert running["deadline"] is not None
            away = world.repo.with_name("gone")
            world.repo.rename(away)
            failed = assert_problem(await ann.post(f"{tasks}/T1/refresh"), 502, "fetch_failed")
            assert failed["detail"]
            away.rename(world.repo)
            (world.repo / path).write_text(json.dumps({"task_code": "T1", "summary": "done", "artifacts": []}))
            git(world.repo, "commit", "-qam", "the result")
            await ok(ann.post(f"{tasks}/T1/refresh"), 200)
            done = await made.task_is(ann, plan, "T1", "completed")
            assert done["summary"] == "done"


async def test_a_task_is_handed_out_although_nobody_can_look(world: World) -> None:
    async with world.gateway.as_user("ann") as ann, world.gateway.as_user("bob") as bob:
        person = await made.agent(ann, None, called="paula")
        project = await made.project(ann, person, mode="manual", code_repo_url=str(world.repo), collab_dir="x")
        body = {"text": made.TWO.replace("WHO", person["slug"]), "base_commit": world.base}
        plan = (await ok(ann.post(f"/api/projects/{project}/plans", json=body), 201))["plan"]
        await made.finalized(ann, plan)
        await made.task_is(ann, plan, "T1", "readied")
        tasks = f"/api/plans/{plan}/tasks"
        for path in (f"{tasks}/T1/refresh", f"/api/projects/{project}/refresh"):
            assert_problem(await ann.post(path), 503, "no_runner")
            assert_problem(await bob.post(path), 404, "not_found")
        handed = await ok(ann.post(f"{tasks}/T1/dispatch"), 202)
        task = await ok(ann.get(f"{tasks}/T1", params={"min_seq": handed["seq"]}))
        assert (task["status"], task["result_path"]) == ("queued", f"x/{plan}/T1/result.json")
        assert_problem(await ann.post(f"{tasks}/_deliver/refresh"), 409, "not_manual")


async def test_a_manual_tasks_note_and_what_may_be_done_meanwhile(world: World) -> None:
    async with world.gateway.as_user("ann") as ann:
        person = await made.agent(ann, None, called="paula")
        project = await made.project(ann, person, mode="manual", code_repo_url=str(world.repo))
        body = {"text": made.TWO.replace("WHO", person["slug"]), "base_commit": world.base}
        plan = (await ok(ann.post(f"/api/projects/{project}/plans", json=body), 201))["plan"]
        await made.finalized(ann, plan)
        tasks = f"/api/plans/{plan}/tasks"
        second = await made.task_is(ann, plan, "T2", "pending")
        edit = {"description": "Otherwise.", "note": "she knows better"}
        done = await ann.patch(f"{tasks}/T2", json=edit, headers={"If-Match": second["etag"]})
        assert done.status_code == 202, done.text
        events = (await ok(ann.get(f"/api/plans/{plan}/events", params={"limit": 500})))["events"]
        [edited] = [event for event in events if event["type"] == "edited"]
        assert (edited["note"], edited["spec"]["description"]) == ("she knows better", "Otherwise.")
        await made.task_is(ann, plan, "T1", "readied")
        with runner(world):
            await ok(ann.post(f"{tasks}/T1/dispatch"), 202)
            await made.task_is(ann, plan, "T1", "running")
            given_up = await ok(ann.post(f"{tasks}/T1/abandon", json={"note": "not needed"}), 202)
            assert given_up["changed"] is True
            await made.task_is(ann, plan, "T2", "readied")

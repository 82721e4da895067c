"""What a task changed, told by the API: a real runner looks into a real repository."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from shared import commands as c
from shared.board import in_order
from shared.bus import RUNNER, BusSettings, connect
from shared.clock import new_plan_id
from shared.jetstream import JetStreamStore
from shared.spec import DELIVER, AgentSpec, PlanSpec, TaskSpec
from shared.streams import declare_streams
from shared.transact import load_plan, to_plan, to_task
from tests.gateway.answers import assert_problem
from tests.gateway.conftest import MakeDatabase
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.plans import made
from tests.gateway.plans.made import ok
from tests.gateway.projection.histories import ANN
from tests.gateway.service_process import service
from tests.nats_process import NatsServer
from tests.runner.repositories import git, make_project
from treadle.supervision.processes import die_with_parent

WRITES = AgentSpec(sdk_type="command", command=("sh", "-c", 'echo "$TREADLE_TASK" > $TREADLE_TASK.txt'))


class World(NamedTuple):
    gateway: GatewayProcess
    nats: NatsServer
    store: JetStreamStore
    repo: Path
    base: str
    directory: Path


@pytest.fixture
async def world(own_nats: NatsServer, make_migrated_database: MakeDatabase, tmp_path: Path) -> AsyncIterator[World]:
    project = make_project(tmp_path)
    nc = await connect(BusSettings(own_nats.url, own_nats.user, own_nats.password), "test")
    await declare_streams(nc.jetstream())
    with (
        make_migrated_database("sqlite", tmp_path) as url,
        GatewayProcess(tmp_path, own_nats, url, is_migrated=True) as gateway,
        service("dispatcher", own_nats, tmp_path),
    ):
        yield World(gateway, own_nats, JetStreamStore(nc), project.repo, project.base, tmp_path)
    await nc.close()


@contextmanager
def runner(world: World) -> Iterator[None]:
    """A whole runner process, with a runner's rights on the bus."""
    access, directory = world.nats.access_of(RUNNER), world.directory
    assert access.user and access.password_file
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "TREADLE_RUNNER_NAME": "r1",
        "TREADLE_RUNNER_DIR": str(directory / "r1"),
        "TREADLE_DATA": str(directory / "data"),
        "TREADLE_SANDBOX": "off",
        "TREADLE_NATS_URL": world.nats.url,
        "TREADLE_NATS_USER": access.user,
        "TREADLE_NATS_PASSWORD_FILE": str(access.password_file),
    }
    with (directory / "r1.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "services.runner"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent(),
        )
    try:
        yield
    finally:
        assert process.poll() is None, (directory / "r1.log").read_text()
        process.terminate()
        process.wait(60)


async def submitted(world: World, project: str) -> str:
    """A finalized plan: T1, and T2 after it, whose result a person has to accept."""
    tasks = (
        TaskSpec(code="T1", name="First", assignee="sh"),
        TaskSpec(code="T2", name="Second", assignee="sh", depends_on=("T1",), requires_approval=True),
    )
    spec = PlanSpec(name="Two", tasks=tasks, agents={"sh": WRITES})
    plan = new_plan_id()
    draft = c.Draft(candidate="1", spec=spec, repo_url=str(world.repo), base_commit=world.base, project=project)
    await to_plan(world.store, plan, draft, ANN)
    await to_plan(world.store, plan, c.Finalize(candidate="1"), ANN)
    digest = (await load_plan(world.store, plan)).state.digest
    for index, task in enumerate(in_order(spec)):
        agent = None if task.code == DELIVER else WRITES
        command = c.PlanTask(digest=digest, index=index, spec=task, agent=agent)
        await to_task(world.store, plan, task.code, command, ANN)
    await to_plan(world.store, plan, c.ConfirmFinalized(digest=digest), ANN)
    return plan


async def task(client: httpx.AsyncClient, plan: str, code: str, status: str) -> dict[str, Any]:
    return await made.task_is(client, plan, code, status)


async def test_a_runner_tells_what_a_task_changed(world: World) -> None:
    async with world.gateway.as_user("ann") as ann, world.gateway.as_user("bob") as bob:
        plan = await submitted(world, await made.project(ann))
        path = f"/api/plans/{plan}/tasks"
        early = await ann.get(f"{path}/T1/diff")
        assert_problem(early, 409, "no_commit")
        assert "task T1 has no commit yet" in early.json()["detail"]
        with runner(world):
            first = await task(ann, plan, "T1", "completed")
            told = await ok(ann.get(f"{path}/T1/diff"))
            assert (told["base"], told["commit"], told["cut"]) == (world.base, first["commit"], False)
            assert "T1.txt | 1 +" in told["stat"]
            assert "+++ b/T1.txt\n@@ -0,0 +1 @@\n+T1\n" in told["patch"]

            asked = (await task(ann, plan, "T2", "awaiting_approval"))["approval"]
            told = await ok(ann.get(f"{path}/T2/diff"))
            assert (told["base"], told["commit"]) == (first["commit"], asked["commit"])
            assert "+T2\n" in told["patch"] and "T1" not in told["patch"]

            assert_problem(await ann.get(f"{path}/T9/diff"), 404, "not_found")
            assert_problem(await bob.get(f"{path}/T1/diff"), 404, "not_found")
            await ok(ann.post(f"{path}/T2/approve", json={"approval": asked["approval"]}))
            await task(ann, plan, "_deliver", "completed")
            assert (await ok(ann.get(f"{path}/_deliver/diff")))["stat"].count(".txt | 1 +") == 2
            assert git(world.repo, "rev-parse", f"treadle/{plan}") == asked["commit"]

            # The runner's mirror has it all: the repository is not asked.
            world.repo.rename(world.repo.with_name("gone"))
            assert (await ann.get(f"{path}/T1/diff")).status_code == 200
        assert_problem(await ann.get(f"{path}/T1/diff"), 503, "no_runner")

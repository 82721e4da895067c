"""The runner as a process of its own, with a runner's rights on the bus, asked by one with a gateway's."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Literal

import msgspec
import pytest
from nats.aio.client import Client
from nats.errors import NoRespondersError
from nats.js.errors import KeyNotFoundError

from services.runner.mirror import mirror_of
from shared import requests as rpc  # whole: pytest would take what is called Test… for tests
from shared.bus import BusSettings, connect
from shared.sealed import seal
from shared.streams import RUNNER_POOLS, RUNNERS, RUNNERS_STREAM, declare_pool, declare_streams
from shared.subjects import (
    RUNNER_INTRODUCE,
    project_deleted,
    runner_bundle,
    runner_bundle_part,
    runner_head,
    runner_test,
)
from tests.nats_process import NatsServer
from tests.runner.conftest import TOKEN, USERNAME
from tests.runner.git_server import GitServer
from tests.runner.repositories import PLAN, PROJECT_ID, Project, git, make_project
from treadle.scripted_model import ScriptedModel

KEY = "sk-canary-0123456789"
NAME = "r-1"


@pytest.fixture
def process(own_nats: NatsServer, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A runner that was just started."""
    access = own_nats.access_of("runner")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "TREADLE_RUNNER_NAME": NAME,
        "TREADLE_RUNNER_DIR": str(tmp_path / "runner"),
        "TREADLE_DATA": str(tmp_path / "data"),
        "TREADLE_SLOTS": "3",
        **({"GIT_SSL_CAINFO": os.environ["GIT_SSL_CAINFO"]} if "GIT_SSL_CAINFO" in os.environ else {}),
        **access.environment(),
    }
    with (tmp_path / "runner.log").open("wb") as log:
        runner = subprocess.Popen(
            [sys.executable, "-m", "services.runner"], env=environment, cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    yield runner
    runner.terminate()
    runner.wait(60)
    told = (tmp_path / "runner.log").read_text()
    assert "NATS denies" not in told and "Traceback" not in told, told


@pytest.fixture
async def gateway(own_nats: NatsServer) -> AsyncIterator[Client]:
    """A connection with a gateway's rights, to a bus with the pools that a dispatcher makes."""
    operator = await connect(BusSettings(own_nats.url, own_nats.user, own_nats.password), "test")
    await declare_streams(operator.jetstream())
    for pool in RUNNER_POOLS:
        await declare_pool(operator.jetstream(), pool)
    await operator.close()
    access = own_nats.access_of("gateway")
    nc = await connect(BusSettings(access.url, access.user, access.password), "test")
    yield nc
    await nc.close()


async def introduced(gateway: Client) -> rpc.Introduction:
    """Waits until a runner answers."""
    async with asyncio.timeout(90):
        while True:
            try:
                answer = await gateway.request(RUNNER_INTRODUCE, b"", timeout=10)
            except (NoRespondersError, TimeoutError):
                await asyncio.sleep(0.05)  # a process says nothing when it is ready
                continue
            return msgspec.json.decode(answer.data, type=rpc.Introduction)


async def tried(
    gateway: Client, runner: rpc.Introduction, kind: Literal["agent", "git"], secret: msgspec.Struct | None, *urls: str
) -> rpc.TestReply:
    context = rpc.test_context(runner.runner, kind)
    sealed = seal(runner.seal_to, msgspec.json.encode(secret), context) if secret else b""
    request = rpc.TestRequest(kind=kind, sealed=sealed, sdk_type="claude" if kind == "agent" else None, repo_urls=urls)
    answer = await gateway.request(runner_test(runner.runner), msgspec.json.encode(request), timeout=60)
    reply = msgspec.json.decode(answer.data, type=rpc.TestReply)
    assert KEY not in repr(reply) and TOKEN not in repr(reply)
    return reply


async def test_a_gateway_has_an_agent_types_key_tried_out(process: object, gateway: Client) -> None:
    runner = await introduced(gateway)
    assert runner.runner == NAME
    async with ScriptedModel(api_key=KEY) as model:
        good = await tried(gateway, runner, "agent", rpc.AgentCredentials(api_key=KEY, base_url=model.base_url))
        wrong = await tried(gateway, runner, "agent", rpc.AgentCredentials(api_key="sk-wrong", base_url=model.base_url))
        request = rpc.TestRequest(kind="agent", sealed=b"x" * 80, sdk_type="claude")
        answer = await gateway.request(runner_test(NAME), msgspec.json.encode(request), timeout=60)
        odd = msgspec.json.decode(answer.data, type=rpc.TestReply)
    assert (good.code, good.runner, wrong.code) == ("ok", NAME, "wrong_key")
    assert 0 < good.duration_s < 30
    assert (odd.code, "can't open" in odd.message) == ("refused", True)
    assert len(model.requests) == 2


async def test_a_gateway_has_git_credentials_tried_out_on_both_repositories(
    git_server: GitServer, process: object, gateway: Client, unused_tcp_port: int
) -> None:
    runner = await introduced(gateway)
    good = rpc.GitCredentials(kind="token", secret=TOKEN, username=USERNAME)
    url, missing = git_server.url("repo.git"), git_server.url("nowhere.git")
    assert (await tried(gateway, runner, "git", good, url, url)).code == "ok"
    wrong = await tried(gateway, runner, "git", rpc.GitCredentials(kind="token", secret="wrong"), url)
    assert wrong.code == "wrong_key" and "Put valid git credentials" in wrong.message
    none = await tried(gateway, runner, "git", None, url)
    assert none.code == "wrong_key" and "has no git credentials" in none.message
    one = await tried(gateway, runner, "git", good, url, missing)
    assert one.code == "unknown_repository" and one.message.splitlines()[0].startswith(missing)
    away = await tried(gateway, runner, "git", good, f"https://127.0.0.1:{unused_tcp_port}/r.git")
    assert away.code == "no_route"
    unfit = await tried(gateway, runner, "git", good, "git@127.0.0.1:r.git")
    assert unfit.code == "refused" and "for https only" in unfit.message
    git_server.redirect_to = "https://127.0.0.1:1"
    assert (await tried(gateway, runner, "git", good, url)).code == "unknown_repository"


async def test_a_gateway_is_told_where_a_branch_is(
    git_server: GitServer, served: Path, process: object, gateway: Client
) -> None:
    runner = await introduced(gateway)
    secret = msgspec.json.encode(rpc.GitCredentials(kind="token", secret=TOKEN, username=USERNAME))
    sealed = seal(runner.seal_to, secret, rpc.test_context(runner.runner, "git"))
    request = rpc.HeadRequest(project=PROJECT_ID, repo_url=git_server.url("repo.git"), sealed=sealed)
    answer = await gateway.request(runner_head(NAME), msgspec.json.encode(request), timeout=60)
    told = msgspec.json.decode(answer.data, type=rpc.HeadReply)
    assert told == rpc.HeadReply(commit=git(served / "repo.git", "rev-parse", "main"), branch="main")


async def test_a_gateway_is_handed_a_bundle_of_commits_in_parts(
    git_server: GitServer, served: Path, process: object, gateway: Client
) -> None:
    runner = await introduced(gateway)
    secret = msgspec.json.encode(rpc.GitCredentials(kind="token", secret=TOKEN, username=USERNAME))
    sealed = seal(runner.seal_to, secret, rpc.test_context(runner.runner, "git"))
    base, url = git(served / "repo.git", "rev-parse", "main"), git_server.url("repo.git")
    asked = rpc.BundleRequest(project=PROJECT_ID, plan=PLAN, repo_url=url, base=base, heads=(), sealed=sealed)
    answer = await gateway.request(runner_bundle(NAME), msgspec.json.encode(asked), timeout=60)
    made = msgspec.json.decode(answer.data, type=rpc.BundleReply)
    assert (made.refused, made.complete) == ("", True)
    wanted = rpc.BundlePartRequest(bundle=made.bundle, offset=0)
    answer = await gateway.request(runner_bundle_part(NAME), msgspec.json.encode(wanted), timeout=60)
    part = msgspec.json.decode(answer.data, type=rpc.BundlePartReply).part
    assert part.startswith(b"# v2 git bundle\n") and base.encode() in part and len(part) == made.size_bytes


async def test_presence_comes_with_the_runner_and_goes_with_it(
    process: subprocess.Popen[bytes], gateway: Client
) -> None:
    await introduced(gateway)
    bucket = await gateway.jetstream().key_value(RUNNERS)
    async with asyncio.timeout(60):
        while True:
            try:
                entry = await bucket.get(NAME)
                break
            except KeyNotFoundError:
                await asyncio.sleep(0.05)  # it comes right behind the introduction
    present = msgspec.json.decode(entry.value or b"", type=rpc.RunnerPresence)
    assert (present.runner, present.slots, present.busy, present.leases) == (NAME, 3, 0, ())
    assert {"claude", "command", "deliver"} == set(present.pools)
    assert "manual" not in present.pools  # nobody's agent does a person's work
    assert present.version
    process.terminate()
    assert await asyncio.to_thread(process.wait, 60) == 0
    with pytest.raises(KeyNotFoundError):
        await bucket.get(NAME)


async def test_a_runner_that_can_not_say_goodbye_is_forgotten(gateway: Client) -> None:
    config = (await gateway.jetstream().stream_info(RUNNERS_STREAM)).config
    assert (config.max_age, config.storage) == (35, "memory")


async def test_a_deleted_projects_things_go(process: object, gateway: Client, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    repo = make_project(tmp_path / "p").repo
    mirror = mirror_of(tmp_path / "data", str(repo), PROJECT_ID)
    project = Project(repo, tmp_path / "data", mirror, git(repo, "rev-parse", "HEAD"))
    workspace = project.workspace()
    await introduced(gateway)
    event = rpc.ProjectDeleted(project=PROJECT_ID, plans=(PLAN,), repo_urls=(str(project.repo),))
    await gateway.jetstream().publish(project_deleted(PROJECT_ID), msgspec.json.encode(event))
    position = tmp_path / "runner/projects-position"
    async with asyncio.timeout(60):
        while not position.exists():  # noqa: ASYNC110 - a file does not tell
            await asyncio.sleep(0.05)
    assert json.loads(position.read_text()) == 1
    assert not workspace.path.exists() and not mirror.path.exists()


@pytest.mark.parametrize(
    "name", ["TREADLE_SLOTS", "TREADLE_DISK_FLOOR_MB", "TREADLE_CACHE_MB", "TREADLE_SANDBOX", "TREADLE_WATCH"]
)
def test_a_setting_that_cannot_be_used_is_named(tmp_path: Path, name: str) -> None:
    wrong = {"PATH": os.environ["PATH"], "TREADLE_RUNNER_DIR": str(tmp_path), "TREADLE_DATA": str(tmp_path), name: "-1"}
    done = subprocess.run(
        [sys.executable, "-m", "services.runner"], env=wrong, cwd=Path(__file__).parents[2], stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 78
    assert f"{name} is '-1'" in done.stderr

"""Who works and who hangs, told from outside."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from services.runner.agents.claude import ClaudeRunner
from services.runner.agents.liveness import Hung, Liveness
from services.runner.process import LEASE_VARIABLE, end_lease
from services.runner.proxy import KeyProxy
from services.runner.sandbox import NETWORK_PORT, enclose, find_sandbox
from tests.agents.claude_probes import KEY, call, scripted
from tests.agents.probes import MakeJob, Reported, is_running, only_sleep, processes, run_agent
from treadle.scripted_model import ScriptedModel

STALLED_S = 2.0
CLAUDE_STALLED_S = 6.0
"""Its program is large: where the disk is slow it begins with seconds of waiting."""
BURN = "n=0; while :; do n=$((n+1)); done"


@asynccontextmanager
async def program(mark: str, script: str) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec("sh", "-c", script, env={**os.environ, LEASE_VARIABLE: mark})
    try:
        yield
    finally:
        await end_lease(mark)
        await process.wait()


async def watched_s(mark: str, *, counts: bool = False, for_s: float = 4 * STALLED_S) -> float | None:
    """After how long it was found to hang; None: not within `for_s`."""
    started = time.monotonic()
    liveness = Liveness(mark, lambda: time.monotonic_ns() if counts else 0, stalled_s=STALLED_S)
    try:
        await asyncio.wait_for(liveness.watch(), for_s)
    except Hung:
        return time.monotonic() - started
    except TimeoutError:
        pass
    return None


async def test_program_that_waits_for_ever_is_found_to_hang(make_job: MakeJob) -> None:
    mark = make_job().mark
    async with program(mark, "sleep 600 & sleep 600"):
        found_s = await watched_s(mark)
    assert found_s is not None
    assert found_s >= STALLED_S


@pytest.mark.parametrize("script", [BURN, f"sh -c '{BURN}' & wait", "while :; do env true; done"])
async def test_program_that_computes_in_silence_is_alive(make_job: MakeJob, script: str) -> None:
    mark = make_job().mark
    async with program(mark, script):
        assert await watched_s(mark) is None


async def test_what_is_heard_of_a_program_that_waits_keeps_it_alive(make_job: MakeJob) -> None:
    mark = make_job().mark
    async with program(mark, "sleep 600"):
        assert await watched_s(mark, counts=True) is None


@pytest.fixture
async def model() -> AsyncIterator[ScriptedModel]:
    async with ScriptedModel(api_key=KEY) as model:
        yield model


@pytest.fixture
async def runner(model: ScriptedModel) -> AsyncIterator[ClaudeRunner]:
    async with KeyProxy(KEY, model.base_url) as proxy:
        yield ClaudeRunner(proxy, stalled_s=CLAUDE_STALLED_S)


async def test_hung_claude_is_ended_with_words(runner: ClaudeRunner, make_job: MakeJob, reported: Reported) -> None:
    sleep = only_sleep()
    job = make_job(prompt=scripted([call("Bash", command=sleep)]))
    finished = await run_agent(runner, job, reported.append)
    assert (finished.kind, "neither said nor received nor computed" in finished.message) == ("timeout", True)
    assert finished.usage.input_tokens > 0
    assert not processes(job)
    assert not is_running(sleep)


@pytest.mark.parametrize(
    "turn",
    [
        pytest.param([call("Bash", command=f"timeout {2 * CLAUDE_STALLED_S} sh -c '{BURN}'; true")], id="computes"),
        pytest.param({"blocks": [{"text": "Slowly."}], "piece_delay_s": CLAUDE_STALLED_S * 0.5}, id="streams"),
    ],
)
async def test_claude_that_moves_in_one_way_only_is_left_alone(
    runner: ClaudeRunner, make_job: MakeJob, reported: Reported, turn: object
) -> None:
    finished = await run_agent(runner, make_job(prompt=scripted(turn, [{"text": "Done."}])), reported.append)
    assert finished.kind == "completed"


async def test_claude_that_downloads_slowly_in_a_sandbox_is_left_alone(
    runner: ClaudeRunner, make_job: MakeJob, reported: Reported, tmp_path: Path, worktree: Path
) -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(5):
            await asyncio.sleep(CLAUDE_STALLED_S * 0.5)  # what is tested: a slow sender
            await response.write(b"drop ")
        return response

    app = web.Application()
    app.router.add_get("/", drip)
    serving = web.AppRunner(app, shutdown_timeout=0.1)
    await serving.setup()
    await web.TCPSite(serving, "127.0.0.1", 0).start()
    host = f"127.0.0.1:{serving.addresses[0][1]}"
    paths = [tmp_path / name for name in ("agent.git", "objects", "scratch")]
    for path in paths:
        path.mkdir(exist_ok=True)
    agents_repo, objects, scratch = paths
    get = f"printf 'GET http://{host}/ HTTP/1.1\\r\\n\\r\\n'"
    script = f"exec 3<>/dev/tcp/127.0.0.2/{NETWORK_PORT}; {get} >&3; cat <&3 > got.txt"
    try:
        async with enclose(
            find_sandbox("required"),
            workspace_code=worktree,
            agents_repo=agents_repo,
            objects=objects,
            scratch=scratch,
            network_allow=[host],
        ) as enclosure:
            prompt = scripted([call("Bash", command=script)], [{"text": "Done."}])
            job = make_job(prompt=prompt, enclosure=enclosure, scratch=scratch)
            finished = await run_agent(runner, job, reported.append)
    finally:
        await serving.cleanup()
    assert finished.kind == "completed", finished.message
    assert (worktree / "got.txt").read_text().count("drop") == 5

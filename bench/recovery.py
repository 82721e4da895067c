"""Recovery: how long a task stands still after kill -9 of its runner, which comes back or does not."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import psutil

from bench.figures import Figure, Goal, Series
from bench.suite import ROOT, end_process
from services.planner.parse import read_plan
from shared.bus import DISPATCHER, RUNNER, BusSettings, connect
from shared.clock import new_plan_id
from shared.commands import Draft, Finalize
from shared.jetstream import JetStreamStore
from shared.store import Meta
from shared.streams import declare_streams
from shared.transact import to_plan
from tests.end_to_end.plans import git, make_repo, plan, task
from tests.end_to_end.suite import Suite, until
from tests.nats_process import NatsServer
from treadle.supervision.environment import runner_environment
from treadle.supervision.log_files import open_log
from treadle.supervision.processes import die_with_parent

BACK_GOAL_S = 5.0
ACK_WAIT_S = 60.0
GONE_GOAL_S = ACK_WAIT_S + 2.0
STARTED = "started"
WORKS = f"touch {STARTED}; sleep 600"
DEADLINE_S = 2 * ACK_WAIT_S


async def measure(directory: Path, rounds: int) -> Figure:
    """Kills a runner that its supervisor starts again, `rounds` times, and one that nobody does, once."""
    back = await asyncio.to_thread(_comes_back, directory / "back", rounds)
    make_repo(directory / "gone/repository")
    gone = [await _stays_away(directory / "gone")]
    returning = Series("kill -9 of a runner that comes back → its task's agent runs again", "s", back)
    lost = Series("kill -9 of one that does not → the agent runs on another", "s", gone)
    return Figure(
        "Recovery",
        [returning, lost],
        [
            Goal("a runner that comes back, worst", max(back), "s", at_most=BACK_GOAL_S),
            Goal(f"a runner that does not (ack_wait is {ACK_WAIT_S:g} s)", max(gone), "s", at_most=GONE_GOAL_S),
        ],
    )


def _comes_back(directory: Path, rounds: int) -> list[float]:
    suite = Suite(directory)
    del suite.environment["TREADLE_SANDBOX"]  # as on a person's machine
    repo = make_repo(directory / "repository")
    seconds: list[float] = []
    try:
        suite.up("--slots", "1")
        for _ in range(rounds):
            made = suite.submit(plan(task("T1", WORKS)), repo)
            first, second = (_sign_of_life(suite.data, made, lease) for lease in (1, 2))
            until(first.exists, "the agent works")
            os.kill(suite.pid("runner"), signal.SIGKILL)
            killed = time.perf_counter()
            until(second.exists, "the agent works again")
            seconds.append(time.perf_counter() - killed)
            suite.post(f"/plans/{made}/cancel")
            suite.standing(made, "cancelled")
    finally:
        suite.down()
    return seconds


async def _stays_away(directory: Path) -> float:
    repo, data = directory / "repository", directory / "data"
    async with AsyncExitStack() as stack:
        server = NatsServer(directory / "nats")
        server.start()
        stack.callback(server.close)
        nc = await connect(BusSettings(server.url, server.user, server.password), "bench")
        stack.push_async_callback(nc.close)
        await declare_streams(nc.jetstream())
        common = runner_environment(os.environ) | {"TREADLE_DATA": str(data), "HOME": str(directory)}
        start_process(
            stack, directory, "dispatcher", "services.dispatcher", common | server.access_of(DISPATCHER).environment()
        )
        runners = []
        for name in ("first", "second"):
            mine = {"TREADLE_RUNNER_NAME": name, "TREADLE_RUNNER_DIR": str(directory / name), "TREADLE_SLOTS": "1"}
            environment = common | server.access_of(RUNNER).environment() | mine
            runners.append(start_process(stack, directory, name, "services.runner", environment))
        store, made, meta = JetStreamStore(nc), new_plan_id(), Meta(actor="bench")
        spec = read_plan(msgspec.json.encode(plan(task("T1", WORKS))))
        base = git(repo, "rev-parse", "HEAD")
        await to_plan(store, made, Draft(candidate="1", spec=spec, repo_url=str(repo), base_commit=base), meta)
        await to_plan(store, made, Finalize(candidate="1"), meta)
        await _exists(_sign_of_life(data, made, 1))
        holder = next(runner for runner in runners if psutil.Process(runner.pid).children(recursive=True))
        holder.kill()
        killed = time.perf_counter()
        await _exists(_sign_of_life(data, made, 2))
        return time.perf_counter() - killed


def start_process(
    stack: AsyncExitStack, directory: Path, name: str, module: str, environment: dict[str, str]
) -> "subprocess.Popen[bytes]":
    """Starts a service; it ends with the stack."""
    with open_log(directory / f"{name}.log") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, preexec_fn=die_with_parent(signal.SIGKILL),
        )  # fmt: skip
    stack.callback(end_process, process)
    return process


def _sign_of_life(data: Path, made: str, lease: int) -> Path:
    return data / "work" / made / f"T1-{lease}" / "code" / STARTED


async def _exists(path: Path) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not await asyncio.to_thread(path.exists):  # noqa: ASYNC110 - another process makes it
            await asyncio.sleep(0.01)

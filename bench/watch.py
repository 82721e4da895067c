"""Watching: what it costs to wait for five thousand people's results in fifty repositories."""

import asyncio
import os
import subprocess
import time
from contextlib import AsyncExitStack
from pathlib import Path

import psutil

from bench.figures import Figure, Goal, Series
from bench.recovery import start_process
from shared import events as e
from shared.bus import RUNNER, BusSettings, connect
from shared.clock import new_id, new_plan_id
from shared.events import Event
from shared.jetstream import JetStreamStore
from shared.spec import AgentSpec, ResultPlace, TaskSpec
from shared.store import Meta
from shared.streams import RUNNER_POOLS, declare_pool, declare_streams
from shared.subjects import type_filter
from tests.nats_process import NatsServer
from treadle.supervision.environment import runner_environment

REPOSITORIES = 50
TASKS_EACH = 100
INTERVAL_S = 30.0
"""Treadle's default."""
GOAL_CORES = 0.1
ROUND_S = 2 * INTERVAL_S
STARTED_WITHIN_S = 300.0
APPENDS_AT_ONCE = 64
PROMPT = "Do what the plan says, and say what was done.\n" * 100
META = Meta(actor="bench")
ANN = AgentSpec(sdk_type=None)


async def measure(directory: Path, rounds: int) -> Figure:
    """Processor time of a runner and all git that it runs, per second: at rest, and with a push to each repository."""
    async with AsyncExitStack() as stack:
        server = NatsServer(directory / "nats")
        server.start()
        stack.callback(server.close)
        nc = await connect(BusSettings(server.url, server.user, server.password), "bench")
        stack.push_async_callback(nc.close)
        await declare_streams(nc.jetstream())
        for pool in RUNNER_POOLS:
            await declare_pool(nc.jetstream(), pool)
        store = JetStreamStore(nc)
        repositories = [_repository(directory, number) for number in range(REPOSITORIES)]
        plans = [(new_plan_id(), new_id(), repository) for repository in repositories]
        await asyncio.gather(*(_hand_out(store, *plan) for plan in plans))
        runners: list[psutil.Process] = []
        began = time.perf_counter()
        for name, watch in (("watching", "on"), ("idle", "off")):
            mine = {
                "TREADLE_RUNNER_NAME": name,
                "TREADLE_RUNNER_DIR": str(directory / name),
                "TREADLE_DATA": str(directory / f"{name}-data"),
                "TREADLE_SLOTS": "1",
                "TREADLE_WATCH": watch,
                "HOME": str(directory),
            }
            environment = runner_environment(os.environ) | server.access_of(RUNNER).environment() | mine
            runners.append(psutil.Process(start_process(stack, directory, name, "services.runner", environment).pid))
        await _counted(store, type_filter("started"), REPOSITORIES * TASKS_EACH)
        started_s = time.perf_counter() - began
        await asyncio.sleep(INTERVAL_S)
        rest: list[float] = []
        busy: list[float] = []
        alone: list[float] = []
        for _ in range(rounds):
            rest.append(await _cores(runners[0]))
            alone.append(await _cores(runners[1], within_s=INTERVAL_S))
        for number in range(rounds):
            pushing = asyncio.create_task(_push_to_all(plans, number))
            busy.append(await _cores(runners[0]))
            await pushing
        await _counted(store, type_filter("completed"), REPOSITORIES * rounds)
    at_rest = Series("a runner that watches, with its git, at rest", "cores", rest)
    return Figure(
        f"Watching: {REPOSITORIES * TASKS_EACH} tasks in {REPOSITORIES} repositories, every {INTERVAL_S:g} s",
        [
            at_rest,
            Series("  the same, with a result pushed to each once a minute", "cores", busy),
            Series("  a runner that does not watch", "cores", alone),
            Series(f"all {REPOSITORIES * TASKS_EACH} handed out → running, from the runner's start", "s", [started_s]),
        ],
        [Goal("processor time per second, at rest", at_rest.median, "cores", at_most=GOAL_CORES)],
    )


async def _cores(process: psutil.Process, within_s: float = ROUND_S) -> float:
    before, began = _cpu_s(process), time.perf_counter()
    await asyncio.sleep(within_s)
    return (_cpu_s(process) - before) / (time.perf_counter() - began)


def _cpu_s(process: psutil.Process) -> float:
    """Its own, and that of all its children that have ended: no git lives for long."""
    return sum(process.cpu_times()[:4])


def _repository(directory: Path, number: int) -> Path:
    bare, clone = directory / f"collab-{number}.git", directory / f"person-{number}"
    _git(directory, "init", "-q", "--bare", "-b", "main", str(bare))
    _git(directory, "clone", "-q", str(bare), str(clone))
    (clone / "README").write_text("Results\n")
    _push(clone)
    return bare


def _push(clone: Path) -> None:
    _git(clone, "add", "--all")
    _git(clone, "-c", "user.name=Ann", "-c", "user.email=ann@localhost", "commit", "-q", "-m", "Deliver")
    _git(clone, "push", "-q", "origin", "HEAD:main")


def _git(where: Path, *args: str) -> None:
    subprocess.run(["git", *args], cwd=where, check=True, capture_output=True)


async def _push_to_all(plans: list[tuple[str, str, Path]], number: int) -> None:
    for plan, _, bare in plans:
        clone = bare.parent / bare.name.replace("collab", "person").removesuffix(".git")
        place = clone / "treadle" / plan / f"T{number}"
        place.mkdir(parents=True)
        (place / "result.json").write_text(f'{{"task_code": "T{number}", "summary": "Done.", "artifacts": []}}')
        await asyncio.to_thread(_push, clone)


async def _hand_out(store: JetStreamStore, plan: str, project: str, repository: Path) -> None:
    free = asyncio.Semaphore(APPENDS_AT_ONCE // 8)

    async def one(number: int) -> None:
        code = f"T{number}"
        place = ResultPlace(repo_url=str(repository), path=f"treadle/{plan}/{code}/result.json")
        spec = TaskSpec(code=code, name="A task", assignee="ann", timeout_minutes=1e4)
        events: tuple[Event, ...] = (
            e.TaskPlanned(digest="d", index=number, spec=spec, agent=ANN),
            e.TaskDispatched(
                dispatch=1, attempt=1, prompt=PROMPT, agent=ANN, project=project, repo_url=str(repository),
                base_commit="0" * 40, heads=(), plan_name="By hand", task_name="A task", place=place,
                timeout_s=6e5, budget_usd=0,
            ),
        )  # fmt: skip
        async with free:
            seq = 0
            for event in events:
                seq = await store.append(plan, code, event, META, expected=seq)

    await asyncio.gather(*(one(number) for number in range(TASKS_EACH)))


async def _counted(store: JetStreamStore, filter_: str, count: int) -> None:
    async with asyncio.timeout(STARTED_WITHIN_S):
        async for batch in store.follow(filters=(filter_,)):
            count -= len(batch.events)
            if count <= 0:
                return

"""The parts under measurement: a real nats-server, a real dispatcher process and a real runner that does no work."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import psutil
from nats.aio.client import Client

from bench.noop_runner import DELIVERIES
from bench.shapes import Shape, noop_plan
from shared.bus import BusSettings, connect
from shared.clock import new_plan_id
from shared.commands import Draft, Finalize
from shared.jetstream import JetStreamStore
from shared.store import Meta, Recorded
from shared.streams import EVENTS, declare_streams
from shared.subjects import PLAN, entity_filter, plan_filter
from shared.transact import to_plan
from tests.nats_process import NatsServer
from treadle.supervision.environment import service_environment
from treadle.supervision.log_files import open_log
from treadle.supervision.processes import die_with_parent

ROOT = Path(__file__).resolve().parent.parent
SLOTS = 64
"""Treadle's default for a plan's tasks at once."""
PLAN_TIMEOUT_S = 600.0
COMMIT = "0" * 40
"""No-op executions never look at it."""


class PlanRun(msgspec.Struct, frozen=True):
    """One plan from its draft to its end."""

    plan: str
    after: int
    """The log's last sequence before it."""
    seconds: float
    """From handing the draft in to hearing that the plan is complete."""
    finalize_s: float
    """From `finalizing` to `finalized`, by the server's clock."""
    dispatcher_cpu_s: float
    runner_cpu_s: float


class Suite:
    """nats-server, dispatcher and runner, as processes of their own, for as long as the context lasts."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.server = NatsServer(directory / "nats")
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self.server.start()
        self._stack.callback(self.server.close)
        self.nc: Client = await connect(BusSettings(self.server.url, self.server.user, self.server.password), "bench")
        self._stack.push_async_callback(self.nc.close)
        await declare_streams(self.nc.jetstream())
        self._store = JetStreamStore(self.nc)
        self.dispatcher = self.start("dispatcher", "services.dispatcher")
        options = ("--slots", str(SLOTS), "--directory", str(self._directory))
        self.runner = self.start("runner", "bench.noop_runner", *options)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def start(self, name: str, module: str, *arguments: str) -> psutil.Process:
        """Starts a Python process that may use the server; it ends with the context."""
        environment = service_environment(os.environ) | self.server.access.environment()
        with open_log(self._directory / f"{name}.log") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=die_with_parent(signal.SIGKILL),
            )  # fmt: skip
        self._stack.callback(end_process, process)
        return psutil.Process(process.pid)

    async def run_plan(self, shape: Shape) -> PlanRun:
        """Drafts and finalizes the plan, and waits until it is complete."""
        plan, meta = new_plan_id(), Meta(actor="bench")
        spec = noop_plan("Benchmark", shape)
        after = await self._last_seq()
        cpu_s = self._cpu_s()
        started = time.perf_counter()
        await to_plan(self._store, plan, Draft(candidate="c", spec=spec, repo_url="/none", base_commit=COMMIT), meta)
        await to_plan(self._store, plan, Finalize(candidate="c"), meta)
        async with asyncio.timeout(PLAN_TIMEOUT_S):
            times = await self._plan_times(plan, after)
        seconds = time.perf_counter() - started
        dispatcher_cpu_s, runner_cpu_s = (now - then for now, then in zip(self._cpu_s(), cpu_s, strict=True))
        finalize_s = (times["finalized"] - times["finalizing"]) / 1e9
        return PlanRun(plan, after, seconds, finalize_s, dispatcher_cpu_s, runner_cpu_s)

    async def events(self, run: PlanRun) -> list[Recorded]:
        """All events of a plan that has ended."""
        events: list[Recorded] = []
        async for batch in self._store.follow(after=run.after, filters=(plan_filter(run.plan),)):
            events += batch.events
            if batch.caught_up:
                break
        return events

    async def deliveries(self) -> dict[int, int]:
        """When each dispatch reached the runner, since the last call: Unix time in nanoseconds by log sequence."""
        answer = await self.nc.request(DELIVERIES, timeout=5)
        return msgspec.json.decode(answer.data, type=dict[int, int])

    def dispatcher_peak_mb(self) -> float:
        """The most memory that the dispatcher ever had resident (Linux only: from /proc)."""
        status = Path(f"/proc/{self.dispatcher.pid}/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) / 1024

    async def _plan_times(self, plan: str, after: int) -> dict[str, int]:
        times: dict[str, int] = {}
        async for batch in self._store.follow(after=after, filters=(entity_filter(plan, PLAN),)):
            for record in batch.events:
                times[record.type] = unix_ns(record)
            if "completed" in times:
                break
        return times

    async def _last_seq(self) -> int:
        return (await self.nc.jetstream().stream_info(EVENTS)).state.last_seq

    def _cpu_s(self) -> tuple[float, float]:
        spent = [p.cpu_times() for p in (self.dispatcher, self.runner)]
        return spent[0].user + spent[0].system, spent[1].user + spent[1].system


def unix_ns(record: Recorded) -> int:
    """The server's time of an event, to the microsecond."""
    return round(record.time.timestamp() * 1e6) * 1000


def end_process(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

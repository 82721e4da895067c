"""A bus, a dispatcher and runners as processes of their own, on a bus that redelivers after seconds."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from services.planner.parse import read_plan
from shared import commands as c
from shared.bus import DISPATCHER, RUNNER, BusSettings, connect
from shared.clock import new_plan_id
from shared.jetstream import JetStreamStore
from shared.store import Meta, Recorded
from shared.streams import EVENTS, declare_pool, declare_streams, pool_consumer_name
from shared.subjects import DELIVER_POOL, plan_filter, runner_holds
from shared.transact import to_plan
from tests.end_to_end.plans import Plan, git
from tests.nats_process import NatsServer

ACK_WAIT_S = 1.5
DEADLINE_S = 90.0
POOLS = ("claude", "command", DELIVER_POOL)
META = Meta(actor="test")


class Bench:
    """A bus, a dispatcher, and as many runners as a test wants."""

    def __init__(self, directory: Path, repo: Path, server: NatsServer, nc: Client) -> None:
        self.nc = nc
        self.store = JetStreamStore(nc)
        self._directory = directory
        self._repo = repo
        self._server = server
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "TREADLE_DATA": str(directory / "data"),
        }
        self._processes: list[subprocess.Popen[bytes]] = []

    async def set_ack_wait(self, ack_wait_s: float) -> None:
        """After how long a silent runner's message goes to another one."""
        for pool in POOLS:
            info = await self.nc.jetstream().consumer_info(EVENTS, pool_consumer_name(pool))
            info.config.ack_wait = ack_wait_s
            await self.nc.jetstream().add_consumer(EVENTS, info.config)

    def dispatcher(self) -> subprocess.Popen[bytes]:
        return self._start(
            "dispatcher", "services.dispatcher", subprocess.DEVNULL, **self._server.access_of(DISPATCHER).environment()
        )

    def runner(self, name: str, heartbeat_s: float = 0.3, **more: str) -> subprocess.Popen[bytes]:
        """A runner with one slot."""
        mine = {"TREADLE_RUNNER_NAME": name, "TREADLE_RUNNER_DIR": str(self._directory / name)}
        mine |= self._server.access_of(RUNNER).environment() | {"TEST_HEARTBEAT_S": str(heartbeat_s)}
        return self._start(name, "tests.end_to_end.runner_process", subprocess.DEVNULL, **mine, **more)

    def service(self, name: str, **secrets: str) -> subprocess.Popen[bytes]:
        """The runner's own program, with one slot, and a data directory that it shares with nobody."""
        mine = {"TREADLE_RUNNER_NAME": name, "TREADLE_RUNNER_DIR": str(self._directory / name), "TREADLE_SLOTS": "1"}
        mine |= self._server.access_of(RUNNER).environment() | {"TREADLE_DATA": str(self._directory / f"{name}-data")}
        process = self._start(name, "services.runner", subprocess.PIPE, **mine)
        assert process.stdin is not None
        process.stdin.write(json.dumps(secrets).encode() + b"\n")
        process.stdin.close()
        return process

    def _start(self, name: str, module: str, stdin: int, **more: str) -> subprocess.Popen[bytes]:
        with (self._directory / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module],
                env={**self._environment, **more}, cwd=Path(__file__).parents[2],
                stdin=stdin, stdout=log, stderr=log,
            )  # fmt: skip
        self._processes.append(process)
        return process

    async def is_ready(self, name: str) -> bool:
        """Whether a runner's program takes work by now."""
        try:
            await self.nc.request(runner_holds(name), b'{"plan": "p", "task": "T1", "lease": 1}', timeout=5)
        except (NatsError, TimeoutError):
            return False
        return True

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self._processes:
            process.wait(DEADLINE_S)

    async def submit(self, content: Plan) -> str:
        """Makes a plan and lets it run."""
        made = new_plan_id()
        spec = read_plan(json.dumps(content).encode())
        draft = c.Draft(
            candidate="1", spec=spec, repo_url=str(self._repo), base_commit=git(self._repo, "rev-parse", "HEAD")
        )
        await to_plan(self.store, made, draft, META)
        await to_plan(self.store, made, c.Finalize(candidate="1"), META)
        return made

    async def event(self, plan_id: str, type_: str, entity: str, number: int = 1) -> Recorded:
        """Waits for the so-manieth event of that type."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                async for batch in self.store.follow(filters=(plan_filter(plan_id),)):
                    for record in batch.events:
                        number -= (record.type, record.entity) == (type_, entity)
                        if number == 0:
                            return record
        except TimeoutError:
            pass
        told = [
            f"{r.seq} {r.entity} {r.type} {getattr(r.event, 'message', '')}" for r in await self.store.read(plan_id)
        ]
        logs = "\n".join(f"{p.name}:\n{p.read_text()[-2000:]}" for p in self._directory.glob("*.log"))
        pytest.fail(f"no {type_} of {entity}; the log holds:\n{told}\n{logs}")

    async def types(self, plan_id: str, entity: str) -> list[str]:
        return [record.type for record in await self.store.read(plan_id, entity)]

    async def nothing_pending(self, pool: str = "command") -> None:
        """Waits until every message of the pool is acknowledged."""

        async def nothing() -> bool:
            info = await self.nc.jetstream().consumer_info(EVENTS, pool_consumer_name(pool))
            return not info.num_ack_pending

        await reached(nothing, "every message is acknowledged")

    async def acknowledgements(self) -> dict[int, list[bytes]]:
        """What runners say on their deliveries from now on (empty or `+ACK`, `-NAK`, `+WPI`, `+TERM`).

        By the number that the consumer gives a delivery.
        """
        heard: dict[int, list[bytes]] = {}

        async def said(message: Msg) -> None:
            heard.setdefault(int(message.subject.split(".")[6]), []).append(message.data)

        await self.nc.subscribe(f"$JS.ACK.{EVENTS}.{pool_consumer_name('command')}.>", cb=said)
        await self.nc.flush()
        return heard


async def reached(what: Callable[[], object | Awaitable[object]], why: str) -> None:
    """Waits until `what` holds."""
    deadline_s = time.monotonic() + DEADLINE_S
    while True:
        found = what()
        if await found if isinstance(found, Awaitable) else found:
            return
        if time.monotonic() > deadline_s:
            pytest.fail(f"not within {DEADLINE_S:g} s: {why}")
        await asyncio.sleep(0.02)


@asynccontextmanager
async def open_bench(directory: Path, repo: Path, server: NatsServer) -> AsyncIterator[Bench]:
    """A bench with its dispatcher; everything that it started ends with the block."""
    nc = await connect(BusSettings(server.url, server.user, server.password), "test")
    await declare_streams(nc.jetstream())
    for pool in POOLS:
        await declare_pool(nc.jetstream(), pool)
    made = Bench(directory, repo, server, nc)
    await made.set_ack_wait(ACK_WAIT_S)
    made.dispatcher()
    try:
        yield made
    finally:
        await asyncio.to_thread(made.close)
        await nc.close()

"""A runner process for the tests of leases: the real parts, with a heartbeat and, if asked, a death at the wrong time.

Settings are those of `services.runner`, and `TEST_HEARTBEAT_S`, `TEST_DIE_BEFORE_SETTLING`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
from nats.aio.msg import Msg

from services.runner.agents import Activity, Finished, open_runner
from services.runner.execution import AgentExecutor, DeliverExecutor
from services.runner.lease import Completion, Journal, Key, Lease
from services.runner.runner import Executor, Runner
from shared.bus import bus_settings_from_environment, connect
from shared.clock import utc_now
from shared.events import TaskDispatched
from shared.subjects import DELIVER_POOL, runner_holds


class DiesBeforeSettling:
    """Kills its own process between `completed` and the move of the head ref."""

    def __init__(self, inner: Executor) -> None:
        self._inner = inner

    async def execute(self, lease: Lease, report: Callable[[Activity], None]) -> Completion | Finished:
        return await self._inner.execute(lease, report)

    async def settle(self, plan: str, task: str, dispatch: TaskDispatched, commit: str) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    async def tidy(self, lease: Lease) -> None:
        await self._inner.tidy(lease)


async def main() -> None:
    """Runs until SIGTERM."""
    logging.basicConfig(level=logging.INFO)
    name, directory = os.environ["TREADLE_RUNNER_NAME"], Path(os.environ["TREADLE_RUNNER_DIR"])
    data_dir = Path(os.environ["TREADLE_DATA"])
    nc = await connect(bus_settings_from_environment(), name)
    async with open_runner("command", {}) as agent:
        command: Executor = AgentExecutor(data_dir, agent, {})
        if os.environ.get("TEST_DIE_BEFORE_SETTLING"):
            command = DiesBeforeSettling(command)
        executors: dict[str, Executor] = {"command": command, DELIVER_POOL: DeliverExecutor(data_dir)}
        journal = Journal(directory / "leases")
        heartbeat_s = float(os.environ["TEST_HEARTBEAT_S"])
        runner = Runner(nc, name, executors, 1, journal, utc_now, heartbeat_s)

        async def holds(message: Msg) -> None:
            await message.respond(msgspec.json.encode(runner.holds(msgspec.json.decode(message.data, type=Key))))

        await nc.subscribe(runner_holds(name), cb=holds)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, runner.stop)
        await runner.run()
    await nc.close()


if __name__ == "__main__":
    asyncio.run(main())

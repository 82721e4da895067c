"""A runner process for the tests of leases: the real parts, with a heartbeat and, if asked, a death at the wrong time.

Settings are those of `services.runner`, and `TEST_HEARTBEAT_S`, `TEST_DIES`: `taking`, `executing` or `settling`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from nats.aio.msg import Msg

from services.runner.agents import Activity, open_runner
from services.runner.checkpoint import LeaseMemory
from services.runner.credentials import CredentialDesk
from services.runner.delivery_executor import DeliverExecutor
from services.runner.endings import Ending
from services.runner.execution import AgentExecutor
from services.runner.git_access import GitAccess
from services.runner.lease import Journal, Key, Lease
from services.runner.runner import Executor, Runner
from shared.bus import bus_settings_from_environment, connect
from shared.clock import utc_now
from shared.events import TaskDispatched
from shared.sealed import SealKey
from shared.subjects import DELIVER_POOL, runner_holds


def die() -> None:
    """kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


class DiesTaking(Runner):
    """Dies when it has a delivery and no lease yet."""

    async def _take(self, *args: Any, **more: Any) -> Any:
        die()


class Dies:
    """An executor that dies as soon as the lease is in the log, or between `completed` and the move of the head ref."""

    def __init__(self, inner: Executor, where: str) -> None:
        self._inner = inner
        self._where = where

    async def execute(self, lease: Lease, report: Callable[[Activity], None]) -> Ending:
        if self._where == "executing":
            die()
        return await self._inner.execute(lease, report)

    async def salvage(
        self, key: Key, dispatch: TaskDispatched, access: GitAccess | None, memory: LeaseMemory | None
    ) -> None:
        await self._inner.salvage(key, dispatch, access, memory)

    async def settle(self, plan: str, task: str, dispatch: TaskDispatched, commit: str) -> None:
        if self._where == "settling":
            die()
        await self._inner.settle(plan, task, dispatch, commit)

    async def tidy(self, lease: Lease) -> None:
        await self._inner.tidy(lease)


async def main() -> None:
    """Runs until SIGTERM."""
    logging.basicConfig(level=logging.INFO)
    name, directory = os.environ["TREADLE_RUNNER_NAME"], Path(os.environ["TREADLE_RUNNER_DIR"])
    data_dir = Path(os.environ["TREADLE_DATA"])
    nc = await connect(bus_settings_from_environment(), name)
    async with open_runner("command", {}) as agent:
        dies = os.environ.get("TEST_DIES", "")
        command = Dies(AgentExecutor(data_dir, agent, {}, None), dies)
        executors: dict[str, Executor] = {"command": command, DELIVER_POOL: DeliverExecutor(data_dir, {}, None)}
        journal = Journal(directory / "leases")
        heartbeat_s = float(os.environ["TEST_HEARTBEAT_S"])
        kind = DiesTaking if dies == "taking" else Runner
        desk = CredentialDesk(nc, SealKey(), directory / "private")
        runner = kind(nc, name, executors, 1, journal, desk, utc_now, heartbeat_s)

        async def holds(message: Msg) -> None:
            await message.respond(msgspec.json.encode(runner.holds(msgspec.json.decode(message.data, type=Key))))

        await nc.subscribe(runner_holds(name), cb=holds)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, runner.stop)
        await runner.run()
    await nc.close()


if __name__ == "__main__":
    asyncio.run(main())

"""A runner process whose work takes no time: the real `Runner`, with an executor that does nothing.

It remembers when each delivery reached it, and tells on request (`DELIVERIES`).
"""

import argparse
import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from nats.aio.msg import Msg

from services.runner.agents import Activity
from services.runner.checkpoint import LeaseMemory
from services.runner.credentials import CredentialDesk
from services.runner.git_access import GitAccess
from services.runner.lease import Completion, Journal, Key, Lease
from services.runner.runner import Runner
from shared.bus import bus_settings_from_environment, connect
from shared.clock import utc_now
from shared.events import Result, TaskDispatched
from shared.sealed import SealKey
from shared.streams import declare_pool, declare_streams
from shared.subjects import DELIVER_POOL

NAME = "bench"
DELIVERIES = "bench.deliveries"
"""Request: the deliveries since the last one, as a JSON object of log sequence to Unix time in nanoseconds."""


class NoWork:
    """See `services.runner.runner.Executor`."""

    async def execute(self, lease: Lease, report: Callable[[Activity], None]) -> Completion:
        base = lease.dispatch.base_commit
        return Completion(base_commit=base, commit=base, result=Result(task_code=lease.key.task, summary="done"))

    async def salvage(
        self, key: Key, dispatch: TaskDispatched, access: GitAccess | None, memory: LeaseMemory | None
    ) -> None:
        """A former life left no files."""

    async def settle(self, plan: str, task: str, dispatch: TaskDispatched, commit: str) -> None:
        """There is no ref to move."""

    async def tidy(self, lease: Lease) -> None:
        """There is no workspace to remove."""


class NotingRunner(Runner):
    """Notes the moment of each delivery, before anything is done with it."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]  # the same as the base's
        self.deliveries: dict[int, int] = {}

    async def _handle(self, message: Msg) -> None:
        self.deliveries[message.metadata.sequence.stream] = time.time_ns()
        await super()._handle(message)


async def main(slots: int, directory: Path) -> None:
    """Runs until SIGTERM."""
    nc = await connect(bus_settings_from_environment(), "bench-runner")
    await declare_streams(nc.jetstream())
    pools = ["command", DELIVER_POOL]
    for pool in pools:
        await declare_pool(nc.jetstream(), pool)
    desk = CredentialDesk(nc, SealKey(), directory / "private")
    executors = dict.fromkeys(pools, NoWork())
    runner = NotingRunner(nc, NAME, executors, slots, Journal(directory / "journal"), desk, utc_now)

    async def tell(request: Msg) -> None:
        told, runner.deliveries = runner.deliveries, {}
        await request.respond(msgspec.json.encode(told))

    await nc.subscribe(DELIVERIES, cb=tell)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, runner.stop)
    await runner.run()
    await nc.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--directory", type=Path, required=True, help="where its journal lies")
    options = parser.parse_args()
    asyncio.run(main(options.slots, options.directory))

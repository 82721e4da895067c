"""A service's life: what tells a container that it is well, and how what it does in the background ends.

A file is touched as long as the service's own connection to NATS answers. That says that the event loop runs and that
NATS is there, and no more: a service whose work has ended ends its process.
"""

import asyncio
import logging
import os
from collections.abc import Collection
from pathlib import Path

import nats.errors
from faststream import FastStream
from faststream.nats import NatsBroker
from nats.aio.client import Client

EVERY_S = 5
END_WITHIN_S = 6.0

log = logging.getLogger("treadle.alive")


def show_life(app: FastStream, broker: NatsBroker) -> None:
    """Touches the file that `TREADLE_ALIVE_FILE` names while the service runs; nothing where none is named."""
    name = os.environ.get("TREADLE_ALIVE_FILE")
    if not name:
        return
    tasks: dict[str, asyncio.Task[None]] = {}

    @app.after_startup
    async def begin() -> None:
        tasks["touch"] = asyncio.create_task(touch_while_answered(broker.connection, Path(name)))

    @app.on_shutdown
    async def end() -> None:
        tasks["touch"].cancel()


async def touch_while_answered(nc: Client, file: Path, every_s: int = EVERY_S) -> None:
    """Touches the file after each answer; without one the file grows old. Runs until it is cancelled."""
    while True:
        try:
            if not nc.is_connected:  # without a connection, flush returns as if there had been an answer
                raise nats.errors.ConnectionReconnectingError
            await nc.flush(timeout=every_s)
            file.touch()  # noqa: ASYNC240 - an empty file in memory or on the local disk
        except (nats.errors.Error, TimeoutError, OSError) as error:
            log.warning("not shown as healthy: %r", error)
        await asyncio.sleep(every_s)


async def end_work(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancels what a service does in the background and waits for its end, but not for ever."""
    for task in tasks:
        task.cancel()
    if tasks and (await asyncio.wait(tasks, timeout=END_WITHIN_S))[1]:
        log.warning("what was at work did not end when it was cancelled: the process ends without it")

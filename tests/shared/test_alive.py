"""The file of a container's health check, with a real server that goes away and comes back."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.alive import touch_while_answered
from shared.bus import BusSettings, connect
from tests.nats_process import NatsServer

DEADLINE_S = 60.0


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not holds():  # noqa: ASYNC110 - a file and a log tell nobody
            await asyncio.sleep(0.01)


async def test_the_file_is_touched_only_while_the_services_own_connection_answers(
    own_nats: NatsServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "alive"
    nc = await connect(BusSettings(own_nats.url, own_nats.user, own_nats.password), "test")
    touching = asyncio.create_task(touch_while_answered(nc, file, every_s=1))
    await until(file.exists)
    own_nats.kill()
    await until(lambda: not nc.is_connected)
    file.unlink()
    unanswered = len(caplog.records)
    await until(lambda: sum(r.name == "treadle.alive" for r in caplog.records[unanswered:]) >= 2)
    assert not file.exists()
    own_nats.start()
    await until(file.exists)
    touching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await touching
    await nc.close()

"""A real planner or dispatcher beside the gateway."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from services.dispatcher.app import main as dispatcher
from services.planner.app import main as planner
from shared.bus import bus_settings_from_environment
from tests import warm_process
from tests.nats_process import NatsServer

STOP_TIMEOUT_S = 60.0


@contextmanager
def service(name: Literal["planner", "dispatcher"], nats: NatsServer, directory: Path) -> Iterator[None]:
    """Runs until the block's end. Whoever asks it something waits for it, as for one that is being restarted."""
    log = directory / f"{name}.log"
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "TREADLE_NATS_URL": nats.url,
        "TREADLE_NATS_USER": nats.user,
        "TREADLE_NATS_PASSWORD_FILE": str(nats.password_file),
    }
    process = warm_process.start(_PROGRAMS[name], environment, log)
    try:
        yield
    finally:
        assert process.is_alive(), log.read_text()
        process.terminate()
        process.join(STOP_TIMEOUT_S)
        assert process.exitcode is not None, f"the {name} has not ended within {STOP_TIMEOUT_S:g} s"


def _planner() -> None:
    asyncio.run(planner(bus_settings_from_environment()))


def _dispatcher() -> None:
    asyncio.run(dispatcher(bus_settings_from_environment()))


_PROGRAMS = {"planner": _planner, "dispatcher": _dispatcher}

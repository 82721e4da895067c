"""A real planner or dispatcher beside the gateway."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from tests.nats_process import NatsServer
from treadle.supervision.processes import die_with_parent

STOP_TIMEOUT_S = 15.0


@contextmanager
def service(name: Literal["planner", "dispatcher"], nats: NatsServer, directory: Path) -> Iterator[None]:
    """Runs until the block's end. Whoever asks it something waits for it, as for one that is being restarted."""
    with (directory / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", f"services.{name}"],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(directory),
                "TREADLE_NATS_URL": nats.url,
                "TREADLE_NATS_USER": nats.user,
                "TREADLE_NATS_PASSWORD_FILE": str(nats.password_file),
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent(),
        )
    try:
        yield
    finally:
        assert process.poll() is None, (directory / f"{name}.log").read_text()
        process.terminate()
        process.wait(STOP_TIMEOUT_S)

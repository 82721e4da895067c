"""`python -m services.runner`: settings come from the environment, secrets as a line of JSON on standard input.

`TREADLE_RUNNER_NAME` (runner-<host name>), `TREADLE_RUNNER_DIR`, `TREADLE_DATA`, `TREADLE_SLOTS`, `TREADLE_SANDBOX`
(required, preferred or off), `TREADLE_SANDBOX_READ`, `TREADLE_DISK_FLOOR_MB` (1024), `TREADLE_CACHE_MB` (5120), and
those of `shared.bus`.
"""

import asyncio
import fcntl
import os
import socket
import sys
from pathlib import Path

import msgspec

from services.runner.app import RunnerSettings, main, read_secrets
from services.runner.sandbox import NoSandbox
from services.runner.sandbox_mode import SandboxMode
from shared.bus import bus_settings_from_environment

EX_CONFIG = 78


def run() -> int:
    """Returns 78 for settings that can't work."""
    try:
        settings = RunnerSettings(
            name=os.environ.get("TREADLE_RUNNER_NAME") or f"runner-{socket.gethostname()}",
            directory=Path(os.environ["TREADLE_RUNNER_DIR"]),
            data_dir=Path(os.environ["TREADLE_DATA"]),
            slots=int(os.environ.get("TREADLE_SLOTS", "2")),
            disk_floor_bytes=int(os.environ.get("TREADLE_DISK_FLOOR_MB", "1024")) << 20,
            caches_max_bytes=int(os.environ.get("TREADLE_CACHE_MB", "5120")) << 20,
            sandbox=msgspec.convert(os.environ.get("TREADLE_SANDBOX") or "preferred", SandboxMode),
        )
        secrets = read_secrets()
        settings.directory.mkdir(parents=True, exist_ok=True)
        lock = (settings.directory / "lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"runner: another process runs as {settings.name}", file=sys.stderr)  # noqa: T201 - the one message
        return 1
    except (KeyError, ValueError, OSError) as error:
        # The error's text could quote the line with the secrets, so only its kind is told.
        print(f"runner: its settings can't be used: {type(error).__name__}", file=sys.stderr)  # noqa: T201 - as above
        return EX_CONFIG
    try:
        asyncio.run(main(bus_settings_from_environment(), settings, secrets))
    except NoSandbox as why:
        words = f"TREADLE_SANDBOX is required, and there is no sandbox: {why}"
        print(f"runner: {words}", file=sys.stderr)  # noqa: T201 - as above
        return EX_CONFIG
    return 0


if __name__ == "__main__":
    sys.exit(run())

"""`python -m services.runner`: settings come from the environment, secrets as a line of JSON on standard input.

`TREADLE_RUNNER_NAME` (runner-<host name>), `TREADLE_RUNNER_DIR`, `TREADLE_DATA`, `TREADLE_SLOTS`, `TREADLE_SANDBOX`
(required, preferred or off), `TREADLE_SANDBOX_READ`, `TREADLE_DISK_FLOOR_MB` (1024), `TREADLE_CACHE_MB` (5120),
`TREADLE_WATCH` (on, or off: it does not look for what people deliver), and those of `shared.bus`.
"""

import asyncio
import fcntl
import logging
import os
import re
import socket
import sys
from pathlib import Path
from typing import get_args

import msgspec

from services.runner.app import RunnerSettings, main, read_secrets
from services.runner.git_threads import hangs
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
            slots=_number("TREADLE_SLOTS", 2, least=1),
            disk_floor_bytes=_number("TREADLE_DISK_FLOOR_MB", 1024) << 20,
            caches_max_bytes=_number("TREADLE_CACHE_MB", 5120) << 20,
            sandbox=_sandbox_mode(),
            watches=_switch("TREADLE_WATCH"),
        )
        secrets = read_secrets()
        settings.directory.mkdir(parents=True, exist_ok=True)
        lock = (settings.directory / "lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"runner: another process runs as {settings.name}", file=sys.stderr)  # noqa: T201 - the one message
        return 1
    except _BadSetting as error:
        print(f"runner: {error}", file=sys.stderr)  # noqa: T201 - as above
        return EX_CONFIG
    except (KeyError, ValueError, OSError) as error:
        # The error's text could quote the line with the secrets, so only its kind is told.
        print(f"runner: its settings can't be used: {type(error).__name__}", file=sys.stderr)  # noqa: T201 - as above
        return EX_CONFIG
    try:
        asyncio.run(main(bus_settings_from_environment(), settings, secrets))
    except NoSandbox as why:
        words = f"there is no sandbox: {why}. Without one it starts only with TREADLE_SANDBOX=off"
        print(f"runner: {words}", file=sys.stderr)  # noqa: T201 - as above
        return EX_CONFIG
    finally:
        if hangs():  # Python would wait for it for ever; what was held is handed back at the next start
            logging.shutdown()
            os._exit(1)
    return 0


class _BadSetting(Exception):
    """A variable that can't be used; the text names it."""


def _number(name: str, otherwise: int, least: int = 0) -> int:
    text = os.environ.get(name) or str(otherwise)
    if not re.fullmatch(r"[0-9]{1,12}", text) or int(text) < least:
        raise _BadSetting(f"{name} is {text[:80]!r}, which is no whole number of {least} or more: correct or unset it")
    return int(text)


def _switch(name: str) -> bool:
    text = os.environ.get(name) or "on"
    if text not in ("on", "off"):
        raise _BadSetting(f"{name} is {text[:80]!r}: set it to on or off, or unset it")
    return text == "on"


def _sandbox_mode() -> SandboxMode:
    text = os.environ.get("TREADLE_SANDBOX") or "preferred"
    try:
        mode: SandboxMode = msgspec.convert(text, SandboxMode)
        return mode
    except msgspec.ValidationError:
        modes = ", ".join(get_args(SandboxMode))
        raise _BadSetting(f"TREADLE_SANDBOX is {text[:80]!r}: set it to one of {modes}, or unset it") from None


if __name__ == "__main__":
    sys.exit(run())

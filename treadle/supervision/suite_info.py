"""What a suite is asked to be, and what a running one tells about itself in `suite.json`."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec

from services.runner.sandbox_mode import SandboxMode
from treadle.supervision.data_dir import DataDir
from treadle.supervision.private_files import write_private

_HTTP_TIMEOUT_S = 2.0


class SuiteOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a person may choose. None of it is secret except a password within `nats_url`."""

    data_dir: str
    runners: int = 1
    slots: int = 2
    sandbox: SandboxMode = "preferred"
    gateway_port: int = 0
    nats_url: str | None = None
    # None: the suite runs until it is told to stop.
    idle_after_s: float | None = None
    # The program of a service ("planner", …) where it is not `python -m services.<name>`: for stand-ins.
    programs: dict[str, list[str]] = {}


class SuiteInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A suite that answered when it was written. `started` is in RFC 3339; secrets are in files of their own."""

    gateway_url: str
    pid: int
    started: str
    nats_url: str
    has_claude_key: bool

    def store(self, data_dir: DataDir) -> None:
        write_private(data_dir.suite_file, msgspec.json.encode(self).decode())


def stored_info(data_dir: DataDir) -> SuiteInfo | None:
    """What the file says, be the suite alive or not; None without a readable file."""
    try:
        return msgspec.json.decode(data_dir.suite_file.read_bytes(), type=SuiteInfo)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def http_settings(gateway_url: str, data_dir: DataDir) -> dict[str, Any]:
    """The arguments of an httpx client for a suite's gateway. Proxies of the environment are not for loopback."""
    token = data_dir.token.read_text(encoding="utf-8").strip()
    headers = {"Authorization": f"Bearer {token}"}
    return {"base_url": gateway_url, "headers": headers, "timeout": _HTTP_TIMEOUT_S, "trust_env": False}


def running_suite(data_dir: DataDir) -> SuiteInfo | None:
    """The suite that uses the data directory, if its supervisor lives and its gateway answers."""
    info = stored_info(data_dir)
    if info is None or data_dir.holder_pid() != info.pid:
        return None
    try:
        with httpx.Client(**http_settings(info.gateway_url, data_dir)) as client:
            return info if client.get("/api/health/live").is_success else None
    except (httpx.HTTPError, OSError):
        return None

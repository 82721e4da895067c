"""A supervisor in the background: started by a command, it outlives that command and its terminal.

The two talk by one line each: options and secrets go in on standard input; whether the suite is ready, or why not,
comes out on standard output. Everything else that the supervisor says goes to `logs/supervisor.log`.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys

import msgspec

from treadle.supervision.data_dir import DataDir, told_to_people
from treadle.supervision.environment import Secrets, runner_environment
from treadle.supervision.log_files import last_useful_line, open_log
from treadle.supervision.suite_error import DataDirHeld, SuiteError
from treadle.supervision.suite_info import SuiteOptions


class Order(msgspec.Struct, frozen=True):
    options: SuiteOptions
    secrets: Secrets


class Report(msgspec.Struct, frozen=True):
    error: str | None = None
    held: bool = False


def start_in_background(
    data_dir: DataDir, options: SuiteOptions, secrets: Secrets, deadline_s: float
) -> subprocess.Popen[bytes]:
    """Returns once the new suite is ready. Raises DataDirHeld when another one was faster, else SuiteError."""
    path = data_dir.log("supervisor")
    with told_to_people(data_dir.path), open_log(path) as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "treadle.supervision.background_supervisor"],
            env=runner_environment(os.environ),
            cwd=data_dir.path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    line = _talk(process, msgspec.json.encode(Order(options, secrets)), deadline_s)
    if line is None:
        process.terminate()
        raise SuiteError(f"the suite was not ready within {deadline_s:g} s; its log: {path}")
    if not line:
        process.wait()
        raise SuiteError(f"the suite could not be started: {last_useful_line(path)} (its log: {path})")
    report = msgspec.json.decode(line, type=Report)
    if report.error is not None:
        process.wait()
        raise (DataDirHeld if report.held else SuiteError)(report.error)
    return process


def _talk(process: subprocess.Popen[bytes], order: bytes, deadline_s: float) -> bytes | None:
    """Gives the order and reads the report: b"" when the process ended without one, None past the deadline."""
    if process.stdin is None or process.stdout is None:
        raise ValueError("the process was started without pipes")
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(order)
    with process.stdout:
        readable, _, _ = select.select([process.stdout], [], [], deadline_s)
        # The report is one write of less than a pipe's atomic size, so that a readable pipe holds all of it.
        return process.stdout.readline() if readable else None

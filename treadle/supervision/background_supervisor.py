"""The other side of `treadle.supervision.background`: the process that supervises a suite in the background."""

from __future__ import annotations

import contextlib
import os
import sys
from datetime import UTC, datetime

import msgspec

from shared.memory import hide_memory
from treadle.supervision.background import Order, Report
from treadle.supervision.suite import run_supervisor
from treadle.supervision.suite_error import DataDirHeld, SuiteError
from treadle.supervision.suite_info import SuiteInfo

_BAD_INPUT = 2


def main() -> int:
    """Takes the order, runs the suite, and reports. Returns 2 when it can't run."""
    hide_memory()
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    try:
        run_supervisor(order.options, order.secrets, say=_log, on_ready=_tell_ready)
    except SuiteError as error:
        _log(str(error))
        _tell(Report(str(error), isinstance(error, DataDirHeld)))
        return _BAD_INPUT
    return 0


def _tell_ready(_: SuiteInfo) -> None:
    _log("ready")
    _tell(Report())


def _tell(report: Report) -> None:
    """Reports once; from then on standard output goes nowhere, and nobody needs to listen."""
    with contextlib.suppress(BrokenPipeError):
        os.write(sys.stdout.fileno(), msgspec.json.encode(report) + b"\n")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _log(line: str) -> None:
    sys.stderr.write(f"{datetime.now(UTC).isoformat(timespec='milliseconds')} {line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())

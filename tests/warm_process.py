"""A service's process for tests that begins with its modules loaded: forked from a process that did nothing but import.

Loading them takes two seconds, and the tests start hundreds of services. `tests/end_to_end` and `tests/suite` start the
real programs.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

# `pytest` is there because a forked process looks at the program that asked for it.
_LOADED = ["pytest", "uvicorn", "services.gateway.app", "services.planner.app", "services.dispatcher.app"]


def start(body: Callable[[], object], environment: Mapping[str, str], log: Path) -> ForkServerProcess:
    """Runs `body`, a function of a module, with exactly this environment; what it says goes to the end of `log`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_LOADED, __name__])
    process = context.Process(target=_run, args=(body, dict(environment), log))
    process.start()
    return process


def _run(body: Callable[[], object], environment: dict[str, str], log: Path) -> None:
    threading.Thread(target=_end_with_the_tests, daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    with log.open("ab") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    sys.exit(body())  # type: ignore[arg-type]  # an exit status, or None for 0


def _end_with_the_tests() -> None:
    """Also where the process that runs them was killed; the one that we were forked from lives as long as we do."""
    tests = multiprocessing.parent_process()
    if tests is not None:
        tests.join()
        os.kill(os.getpid(), signal.SIGTERM)

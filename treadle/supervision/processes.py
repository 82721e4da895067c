"""Starting a child so that it can't outlive the process that started it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

_PR_SET_PDEATHSIG = 1
# A process's time of birth is computed from the wall clock, which may be set meanwhile.
_CLOCK_STEP_S = 2.0


def die_with_parent(signal_number: int = signal.SIGTERM) -> Callable[[], None] | None:
    """A `preexec_fn` that asks the kernel to signal the child when its parent dies, even by kill -9 (prctl(2)).

    The kernel means the *thread* that forked: start children from the main thread. None where there is no prctl.
    """
    if sys.platform != "linux":
        return None
    # Between fork and exec nothing may be loaded or looked up, so everything is bound here.
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent, getppid, leave = os.getpid(), os.getppid, os._exit

    def arrange() -> None:
        prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
        if getppid() != parent:  # it died before we asked
            leave(1)

    return arrange


def born_at(pid: int) -> float | None:
    """When a process was started (Unix time), which tells it from a later one of the same pid; None when it is gone."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def end_leftovers(children_file: Path, wait_s: float) -> int:
    """Waits until the children that a killed supervisor recorded are gone, and kills those that stay: how many.

    The kernel has told them to end when their supervisor died; one may be slow to, or have had no such kernel.
    """
    try:
        births = json.loads(children_file.read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        return 0
    left = [psutil.Process(int(pid)) for pid, born in births.items() if _is_same(int(pid), born)]
    _, stubborn = psutil.wait_procs(left, timeout=wait_s)
    for process in stubborn:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(stubborn, timeout=wait_s)
    return len(stubborn)


def _is_same(pid: int, born: float) -> bool:
    now = born_at(pid)
    return now is not None and abs(now - born) < _CLOCK_STEP_S

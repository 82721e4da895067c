"""Waiting for a condition, with a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

import psutil

T = TypeVar("T")
_DEADLINE_S = 90.0


def wait_for(what: Callable[[], T], deadline_s: float = _DEADLINE_S) -> T:
    """The first result of `what` that counts as true."""
    until_s = time.monotonic() + deadline_s
    while not (result := what()):
        assert time.monotonic() < until_s, f"not within {deadline_s} s"
        time.sleep(0.01)
    return result


async def until(what: Callable[[], T], deadline_s: float = _DEADLINE_S) -> T:
    """The same within an event loop."""
    until_s = time.monotonic() + deadline_s
    while not (result := what()):
        assert time.monotonic() < until_s, f"not within {deadline_s} s"
        await asyncio.sleep(0.01)
    return result


def gone(pid: int) -> bool:
    """True when no such process runs (one that nobody has waited for yet counts as gone)."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True

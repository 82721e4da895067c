"""Whether an agent still does anything. Decides, from messages, its model's bytes and CPU time: alive or hung."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from services.runner.process import cpu_time_s

STALLED_S = 600.0

_CPU_SHARE = 0.01
"""A program that only waits uses some CPU too: timers tick. Work uses more than this share of one core."""

_LOOKS = 20


class Hung(Exception):
    """Nothing moved for too long."""


class Liveness:
    """Watches one agent."""

    def __init__(self, mark: str, counted: Callable[[], int], *, stalled_s: float = STALLED_S) -> None:
        """`mark` is of its processes; `counted` grows with everything else that it does: messages, bytes."""
        self._mark, self._counted = mark, counted
        self._stalled_s = stalled_s

    async def watch(self) -> None:
        """Raises Hung once, for `stalled_s`, nothing was counted and its processes used no CPU worth the name."""
        counted, cpu_s, since = self._counted(), await self._cpu_time_s(), time.monotonic()
        while True:
            await asyncio.sleep(self._stalled_s / _LOOKS)
            counted_now, cpu_now_s, now = self._counted(), await self._cpu_time_s(), time.monotonic()
            # Less than before: some of its processes ended, and took their time with them.
            works = abs(cpu_now_s - cpu_s) > _CPU_SHARE * self._stalled_s
            if counted_now != counted or works:
                counted, cpu_s, since = counted_now, cpu_now_s, now
            elif now - since >= self._stalled_s:
                raise Hung

    async def _cpu_time_s(self) -> float:
        return await asyncio.to_thread(cpu_time_s, self._mark)

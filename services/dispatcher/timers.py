"""Timers: JetStream's scheduled messages, which only wake the dispatcher.

Setting a timer again replaces it, so arming every open one at each start does no harm.
"""

import asyncio
from datetime import UTC, datetime, timedelta

from nats.aio.client import Client
from nats.errors import Error as NatsError

from shared.subjects import timer, timer_due

AGAIN_S = 0.5
ONE_MS = timedelta(milliseconds=1)


class Timers:
    """Sets the timers of tasks that wait for a retry."""

    def __init__(self, nc: Client) -> None:
        self._js = nc.jetstream()

    async def set(self, plan: str, code: str, at: datetime) -> None:
        """Wakes a dispatcher at `at`; one in the past fires at once. Waits out an outage."""
        # Rounded up: a timer that fires a fraction early finds nothing due.
        moment = (at.astimezone(UTC) + ONE_MS).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        headers = {"Nats-Schedule": f"@at {moment}", "Nats-Schedule-Target": timer_due(plan, code)}
        while True:
            try:
                await self._js.publish(timer(plan, code), b"", headers=headers)
                return
            except (NatsError, TimeoutError):
                await asyncio.sleep(AGAIN_S)

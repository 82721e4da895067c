"""Tells the stream `TREADLE_TRANSCRIPTS` what an agent does while it works.

For people to watch and read, never for deciding: during an outage it drops the oldest and says how many.
"""

import asyncio
from collections import deque

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError

from services.runner.agents import Activity
from services.runner.lease import Key
from shared.subjects import transcript

WAITING_MAX = 2_000
PUBLISH_TIMEOUT_S = 5.0
AGAIN_S = 0.5


class Transcripts:
    """One writer for all leases of a runner."""

    def __init__(self, nc: Client) -> None:
        self._js = nc.jetstream(timeout=PUBLISH_TIMEOUT_S)
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._arrived = asyncio.Event()
        self._dropped = 0

    def tell(self, key: Key, activity: Activity) -> None:
        """Queues an activity; returns at once."""
        if len(self._waiting) >= WAITING_MAX:
            self._waiting.popleft()
            self._dropped += 1
        self._waiting.append((transcript(key.plan, key.task, key.lease), msgspec.json.encode(activity)))
        self._arrived.set()

    async def run(self) -> None:
        """Publishes for ever."""
        while True:
            await self._arrived.wait()
            await self.flush()

    async def flush(self) -> None:
        """Publishes what waits."""
        self._arrived.clear()
        while self._waiting:
            subject, body = self._waiting[0]
            try:
                await self._js.publish(subject, body, headers=self._headers())
            except (NatsError, TimeoutError):
                await asyncio.sleep(AGAIN_S)
                continue
            self._dropped = 0
            if self._waiting and self._waiting[0] == (subject, body):
                self._waiting.popleft()

    def _headers(self) -> dict[str, str] | None:
        return {"Treadle-Dropped": str(self._dropped)} if self._dropped else None

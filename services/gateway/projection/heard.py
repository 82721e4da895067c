"""The log from its beginning, read in the background: whoever folds it says how far they want to go."""

import asyncio
import contextlib
from collections import deque

from shared.store import EventStore, Recorded

AHEAD_MAX_EVENTS = 5_000
"""Nothing more is read while so many wait to be taken."""


class Heard:
    """The events in their order, each given once."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._waiting: deque[Recorded] = deque()
        self._end = 0
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> "Heard":
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading

    async def up_to(self, seq: int, limit: int) -> list[Recorded]:
        """The next events, at most `limit`, none behind `seq`; an empty list once all up to there were given."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._end >= seq or len(self._waiting) >= limit)
            found: list[Recorded] = []
            while self._waiting and len(found) < limit and self._waiting[0].seq <= seq:
                found.append(self._waiting.popleft())
            self._changed.notify_all()
            return found

    async def _read(self) -> None:
        async for batch in self._store.follow():
            async with self._changed:
                await self._changed.wait_for(lambda: len(self._waiting) < AHEAD_MAX_EVENTS)
                self._waiting += batch.events
                self._end = batch.events[-1].seq if batch.events else self._end
                self._changed.notify_all()

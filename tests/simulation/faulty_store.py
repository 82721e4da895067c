"""A store that answers late, sometimes not at all, and sometimes not although it did store."""

import asyncio
from collections.abc import AsyncIterator
from random import Random

from shared.events import Event
from shared.store import Batch, MemoryStore, Meta, Recorded, StoreUnavailable


class FaultyStore:
    """One client's view of the log that all share: its own delays, its own losses."""

    def __init__(self, log: MemoryStore, rng: Random) -> None:
        self._log = log
        self._rng = rng
        self.faults_rate = 0.02
        """Share of calls whose answer is lost."""
        self.delay_s = 0.02
        """Mean time to an answer, in each direction."""

    async def append(self, plan: str, entity: str, event: Event, meta: Meta, *, expected: int) -> int:
        """See `EventStore.append`."""
        await self._travel()
        seq = await self._log.append(plan, entity, event, meta, expected=expected)
        await self._travel()
        return seq

    async def read(
        self, plan: str, entity: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[Recorded]:
        """See `EventStore.read`."""
        await self._travel()
        events = await self._log.read(plan, entity, after=after, limit=limit)
        await self._travel()
        return events

    async def last_seq(self, plan: str, entity: str) -> int:
        """See `EventStore.last_seq`."""
        await self._travel()
        return await self._log.last_seq(plan, entity)

    async def follow(self, *, after: int = 0, filters: tuple[str, ...] = ()) -> AsyncIterator[Batch]:
        """See `EventStore.follow`. Now and then it lags far behind."""
        async for batch in self._log.follow(after=after, filters=filters):
            yield batch
            lag = 100 if self._rng.random() < 0.02 and self.delay_s else 1
            await asyncio.sleep(self._rng.expovariate(1.0) * self.delay_s * lag)

    async def _travel(self) -> None:
        delay_s = self._rng.expovariate(1.0) * self.delay_s
        if self._rng.random() < 0.01 and self.delay_s:
            delay_s += self._rng.random() * 5
        await asyncio.sleep(delay_s)
        if self._rng.random() < self.faults_rate:
            raise StoreUnavailable("the simulated bus lost it")

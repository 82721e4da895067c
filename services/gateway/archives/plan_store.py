"""The event log and the archives of imported plans as one store: whoever has a plan's id can read its events."""

import asyncio
from collections.abc import AsyncIterator

from services.gateway.archives.copies import Copies
from services.gateway.archives.read_only import read_only
from services.gateway.archives.rows import is_imported
from shared.events import Event
from shared.store import Batch, EventStore, Meta, Recorded


class PlanStore:
    """A `shared.store.EventStore`. What is imported is read where it lies; appending is refused."""

    def __init__(self, log: EventStore, copies: Copies) -> None:
        self._log = log
        self._copies = copies

    async def append(self, plan: str, entity: str, event: Event, meta: Meta, *, expected: int) -> int:
        """See `EventStore.append`. Raises `ProblemError` 409 `read_only_plan` for an imported plan."""
        if is_imported(plan):
            raise read_only(plan, "nothing can be added to it")
        return await self._log.append(plan, entity, event, meta, expected=expected)

    async def read(
        self, plan: str, entity: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[Recorded]:
        """See `EventStore.read`. The events of an imported plan are as they were: under the id that it had."""
        if not is_imported(plan):
            return await self._log.read(plan, entity, after=after, limit=limit)
        events = (await self._copies.known(plan)).events
        return await asyncio.to_thread(lambda: list(events.read(after, limit, entity)))

    async def last_seq(self, plan: str, entity: str) -> int:
        """See `EventStore.last_seq`."""
        if not is_imported(plan):
            return await self._log.last_seq(plan, entity)
        return max((record.seq for record in await self.read(plan, entity)), default=0)

    def follow(self, *, after: int = 0, filters: tuple[str, ...] = ()) -> AsyncIterator[Batch]:
        """See `EventStore.follow`: the log alone grows."""
        return self._log.follow(after=after, filters=filters)

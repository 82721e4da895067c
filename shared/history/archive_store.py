"""An archive as the third kind of event store: it is read where it lies, and never written to.

Its events are never published anywhere, so their sequences, times and causes stay what they were.
"""

from collections.abc import AsyncIterator

from shared.events import Event, TaskDispatched
from shared.history.event_file import EventFile
from shared.store import Batch, Meta, Recorded, matches
from shared.subjects import pool, shard

BATCH = 500


class ReadOnly(Exception):
    """Nothing can be added to a history that was imported."""


class ArchiveStore:
    """`shared.store.EventStore` over the events of one plan (`Archive.event_file`)."""

    def __init__(self, events: EventFile) -> None:
        self._events = events

    async def append(self, plan: str, entity: str, event: Event, meta: Meta, *, expected: int) -> int:
        """Raises `ReadOnly`, always."""
        raise ReadOnly(f"plan {self._events.plan} was imported: it can be looked at, and nothing can be added to it")

    async def read(
        self, plan: str, entity: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[Recorded]:
        """See `EventStore.read`."""
        return list(self._events.read(after, limit, entity)) if plan == self._events.plan else []

    async def last_seq(self, plan: str, entity: str) -> int:
        """See `EventStore.last_seq`."""
        return max((record.seq for record in await self.read(plan, entity)), default=0)

    async def follow(self, *, after: int = 0, filters: tuple[str, ...] = ()) -> AsyncIterator[Batch]:
        """See `EventStore.follow`; but since nothing more can come, it ends."""
        batch: list[Recorded] = []
        for record in self._events.read(after):
            if filters and not matches(_subject(record), filters):
                continue
            if len(batch) == BATCH:
                yield Batch(tuple(batch), caught_up=False)
                batch = []
            batch.append(record)
        yield Batch(tuple(batch), caught_up=True)


def _subject(record: Recorded) -> str:
    route = f".{pool(record.event)}" if isinstance(record.event, TaskDispatched) else ""
    return f"treadle.evt.{shard(record.plan)}.{record.plan}.{record.entity}.{record.type}{route}"

"""The projection: the log's events become rows, in order, together with how far they came.

What people are to be told of (`services.gateway.notifications`) is written with them, once for all generations.

Every gateway projects. Each folds the whole log for itself; for each batch it takes the lock on the head row, and
whoever comes first writes. The others see there that the batch is done. So no event is left out or counted twice,
whichever of them dies, and whenever.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TypeVar

from sqlalchemy import delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncSession

from services.gateway.database.engine import Database
from services.gateway.database.tables import PlanRow, ProjectionHead, TaskRow, Webhook
from services.gateway.notifications.outbox import store_deliveries
from services.gateway.projection.rows import Changes, Folding, known_plans, write_changes
from shared.clock import utc_now
from shared.store import Batch, EventStore
from shared.transact import patiently

log = logging.getLogger("treadle.gateway.projection")

PAUSE_MIN_S = 0.05
PAUSE_MAX_S = 2.0
GATHER_S = 0.05
"""While nobody waits for what is newest, events are gathered for so long: one transaction for all of them, not one for
each, leaves the disk and the process to those who ask."""
UNREACHABLE = (DBAPIError, PoolTimeoutError, OSError, TimeoutError)
"""What a database that is away, locked or restarting makes of a statement."""

T = TypeVar("T")


class _WentBack(Exception):
    """The database is behind what we had written: it was restored from a backup."""


class Projector:
    """This gateway's share in keeping the projection at the log's end."""

    def __init__(
        self,
        store: EventStore,
        db: Database,
        find_end: Callable[[], Awaitable[int]],
        public_url: str | None = None,
    ) -> None:
        """`public_url`: where people outside reach this gateway, for notifications."""
        self._store = store
        self._db = db
        self._find_end = find_end
        self._public_url = public_url
        self._advanced = asyncio.Condition()
        self._waiting = 0
        self._hurry = asyncio.Event()
        """Set while somebody waits in `at_least`."""
        self._behind_since: float | None = monotonic()
        self.position = 0
        """The database has at least every event up to this one."""
        self.events_folded = 0

    @property
    def lag_s(self) -> float:
        """For how long the database has lacked something that the log holds."""
        return 0.0 if self._behind_since is None else monotonic() - self._behind_since

    async def run(self) -> None:
        """Projects for ever. Outages of the log and of the database are waited out."""
        while True:
            with contextlib.suppress(_WentBack):
                await self._follow()
            log.warning("the projection in the database went back: going on from where it is")

    async def log_end(self) -> int:
        """The sequence of the log's newest event. Raises `StoreUnavailable`."""
        return await self._find_end()

    async def at_least(self, seq: int, timeout_s: float) -> None:
        """Waits until the database has that event. Raises TimeoutError."""
        self._waiting += 1
        self._hurry.set()
        try:
            async with asyncio.timeout(timeout_s), self._advanced:
                await self._advanced.wait_for(lambda: self.position >= seq)
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._hurry.clear()

    async def _follow(self) -> None:
        position = await persistently(self._begin)
        await self._reached(position)
        folding = Folding(self._store)
        async for batch in self._store.follow(after=position):
            if batch.events:
                self._behind_since = self._behind_since or monotonic()
                position = await self._project(folding, batch, position)
                self.events_folded += len(batch.events)
                await self._reached(position)
            if batch.caught_up:
                self._behind_since = None
                await self._gather()

    async def _gather(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GATHER_S):
                await self._hurry.wait()

    async def _reached(self, position: int) -> None:
        async with self._advanced:
            self.position = position
            self._advanced.notify_all()

    async def _begin(self) -> int:
        """Where the current generation stands; makes the first one."""
        async with self._db.write() as session:
            head = await current_head(session, lock=True)
            if head is None:
                head = await _first_head(self._db, session)
        # Asked for after the position was read, so that a position beyond it is of another log.
        end = await patiently(self._find_end)
        if head.position <= end:
            return _done(head)
        log.warning("the projection is at event %d, the log ends at %d: filling it anew", head.position, end)
        async with self._db.write() as session:
            now = await current_head(session, lock=True)
            if now is None or (now.generation, now.position) != (head.generation, head.position):
                raise _WentBack
            for table in (TaskRow, PlanRow):
                await session.execute(delete(table).where(table.generation == now.generation))
            now.position = 0
            # Nobody is told again what is filled in again; from here on webhooks hear of that other log.
            now.told = end
            await session.execute(update(Webhook).where(Webhook.after > end).values(after=end))
        return 0

    async def _project(self, folding: Folding, batch: Batch, before: int) -> int:
        """The position after the batch, or a later one that another gateway wrote."""

        async def are_known(plans: set[str]) -> set[str]:
            # The database may be ahead of us, never behind: a plan too many is looked for in the log, and not found.
            return await persistently(lambda: known_plans(self._db, None, plans))

        changes = await folding.fold(batch.events, are_known)
        end = batch.events[-1].seq
        while not await persistently(lambda: self._write(changes, before, end)):
            pass
        return end

    async def _write(self, changes: Changes, before: int, end: int) -> bool:
        """Whether the database has the batch; False: the generation was exchanged while we waited for its lock."""
        async with self._db.write() as session:
            head = await current_head(session, lock=True)
            if head is None:
                return False
            if _done(head) >= end:
                return True
            if _done(head) < before:
                raise _WentBack
            if head.position < end:
                await write_changes(self._db, session, head.generation, changes)
                head.position = end
            if head.told < end:
                news = [happening for happening in changes.happened if happening.seq > head.told]
                if news:
                    await store_deliveries(session, news, self._public_url, utc_now())
                head.told = end
            return True


def _done(head: ProjectionHead) -> int:
    """How far everything has come. A rebuilt generation may be ahead of what people were told."""
    return min(head.position, head.told)


async def current_head(session: AsyncSession, *, lock: bool = False) -> ProjectionHead | None:
    """The current generation, locked until the transaction's end where that is asked for."""
    query = select(ProjectionHead).where(ProjectionHead.is_current)
    return (await session.scalars(query.with_for_update() if lock else query)).one_or_none()


async def _first_head(db: Database, session: AsyncSession) -> ProjectionHead:
    """Makes the first generation, where no other gateway does at the same moment."""
    insert = (sqlite.insert if db.is_sqlite else postgresql.insert)(ProjectionHead)
    first = insert.values(generation=1, position=0, is_current=True)
    await session.execute(first.on_conflict_do_nothing())
    return (await session.scalars(select(ProjectionHead).where(ProjectionHead.generation == 1).with_for_update())).one()


async def persistently(work: Callable[[], Awaitable[T]]) -> T:
    """Does it again until the database lets it be done; it must do no harm twice."""
    pause_s, said = PAUSE_MIN_S, ""
    while True:
        try:
            return await work()
        except UNREACHABLE as error:
            if said != type(error).__name__:  # an outage is worth a line, not one for each try
                said = type(error).__name__
                log.warning("the database did not do it; trying again: %s", error)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, PAUSE_MAX_S)

"""Filling the projection anew while the old one is read and kept up.

A new generation of rows is filled from the log's beginning. When it has come as far as the current one, both are
locked and exchanged in one transaction; then the old rows go, some at a time. Whatever is killed on the way, the
current generation stays whole; what a killed rebuild left behind is removed by the next one.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
from sqlalchemy import delete, func, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from services.gateway.database.engine import Database
from services.gateway.database.tables import PlanRow, ProjectionHead, TaskRow
from services.gateway.problems import ProblemError
from services.gateway.projection.projector import UNREACHABLE, persistently
from services.gateway.projection.rows import Changes, Folding, known_plans, write_changes
from shared.store import EventStore, Recorded

log = logging.getLogger("treadle.gateway.projection")

BATCH_EVENTS = 250
CHUNK_ROWS = 500
LOCK = 0x7472_6561_646C_66
"""PostgreSQL's advisory lock that a rebuild holds; the number means nothing."""


class RebuildStands(msgspec.Struct, frozen=True):
    """How far a rebuild has come."""

    position: int


class ProjectionStands(msgspec.Struct, frozen=True, kw_only=True):
    """How the projection stands."""

    generation: int
    position: int
    """Sequence of the last event in it."""
    log_end: int
    """Sequence of the log's newest event."""
    rebuilding: RebuildStands | None


class AlreadyRebuilding(ProblemError):
    """Another rebuild is at work, here or in another gateway."""

    def __init__(self) -> None:
        detail = "a rebuild is at work: `GET /api/projection` shows how far it is"
        super().__init__(409, "rebuilding", "Already rebuilding", detail)


class _Overtaken(Exception):
    """Our generation is gone: another gateway took us for dead."""


class Rebuilder:
    """Rebuilds the projection, one at a time over all gateways of a database."""

    def __init__(self, store: EventStore, db: Database) -> None:
        self._store = store
        self._db = db
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins a rebuild in the background. Raises `AlreadyRebuilding`."""
        begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        running = asyncio.create_task(self._run_logged(begun))
        await begun
        self._running = running

    async def stop(self) -> None:
        """Gives up what is at work here."""
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running

    async def run(self) -> None:
        """One rebuild from its beginning to its end. Raises `AlreadyRebuilding`."""
        async with self._lock():
            await self._rebuild()

    async def _run_logged(self, begun: "asyncio.Future[None]") -> None:
        try:
            async with self._lock():
                begun.set_result(None)
                await self._rebuild()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # told to whoever waits for the start, else to the log
            if not begun.done():
                begun.set_exception(error)
                return
            log.exception("the rebuild of the projection failed; the old one stays")

    async def stands(self, log_end: int) -> ProjectionStands:
        """How the projection stands. A generation that a killed rebuild left behind is not shown."""
        async with self._db.read() as session:
            heads = {head.is_current: head for head in await session.scalars(select(ProjectionHead))}
        current, next_ = heads.get(True), heads.get(False)
        if next_ is not None:
            with contextlib.suppress(AlreadyRebuilding):
                async with self._lock():
                    next_ = None
        return ProjectionStands(
            generation=current.generation if current else 0,
            position=current.position if current else 0,
            log_end=log_end,
            rebuilding=RebuildStands(next_.position) if next_ else None,
        )

    async def _rebuild(self) -> None:
        await self._remove_leftovers()
        generation = await persistently(self._begin)
        log.info("rebuilding the projection as generation %d", generation)
        folding = Folding(self._store)
        async for batch in self._store.follow():
            for place in range(0, len(batch.events), BATCH_EVENTS):
                await self._project(folding, generation, batch.events[place : place + BATCH_EVENTS])
            if await persistently(lambda: self._exchange(generation)):
                break
        await self._remove_leftovers()
        log.info("the projection is rebuilt: generation %d is read now", generation)

    async def _begin(self) -> int:
        async with self._db.write() as session:
            newest = await session.scalar(select(func.max(ProjectionHead.generation))) or 0
            session.add(ProjectionHead(generation=newest + 1, position=0, is_current=False))
            return newest + 1

    async def _project(self, folding: Folding, generation: int, events: Sequence[Recorded]) -> None:
        async def are_known(plans: set[str]) -> set[str]:
            return await persistently(lambda: known_plans(self._db, generation, plans))

        changes = await folding.fold(events, are_known)
        await persistently(lambda: self._write(generation, changes, events[-1].seq))

    async def _write(self, generation: int, changes: Changes, end: int) -> None:
        async with self._db.write() as session:
            head = (await _locked_heads(session, [generation])).get(generation)
            if head is None:
                raise _Overtaken(f"generation {generation} was removed by another rebuild")
            await write_changes(self._db, session, generation, changes)
            head.position = end

    async def _exchange(self, generation: int) -> bool:
        """Makes ours the current one, where it has come as far. In one transaction: nobody sees neither or both."""
        async with self._db.write() as session:
            current = await session.scalar(select(ProjectionHead.generation).where(ProjectionHead.is_current))
            heads = await _locked_heads(session, [generation, *([current] if current is not None else [])])
            ours = heads.get(generation)
            if ours is None:
                raise _Overtaken(f"generation {generation} was removed by another rebuild")
            ours.told = ours.position
            if current is not None:
                if ours.position < heads[current].position:
                    return False
                ours.told = heads[current].told  # people are told by whoever follows the log, of each event once
                await session.delete(heads[current])
                await session.flush()
            ours.is_current = True
            return True

    async def _remove_leftovers(self) -> None:
        """Removes every generation but the current one, in small transactions that hold nobody up."""

        async def remove_heads() -> None:
            async with self._db.write() as session:
                await session.execute(delete(ProjectionHead).where(~ProjectionHead.is_current))

        await persistently(remove_heads)
        while await persistently(self._remove_rows):
            pass

    async def _remove_rows(self) -> int:
        removed = 0
        async with self._db.write() as session:
            heads = select(ProjectionHead.generation)
            for table, keys in (
                (TaskRow, (TaskRow.generation, TaskRow.plan_id, TaskRow.code)),
                (PlanRow, (PlanRow.generation, PlanRow.id)),
            ):
                query = select(*keys).where(keys[0].not_in(heads)).limit(CHUNK_ROWS)
                found = [tuple(row) for row in await session.execute(query)]
                if found:
                    await session.execute(delete(table).where(tuple_(*keys).in_(found)))
                removed += len(found)
        return removed

    @asynccontextmanager
    async def _lock(self) -> AsyncIterator[None]:
        """What only one rebuild has at a time; whoever is killed loses it. Raises `AlreadyRebuilding`."""
        if self._db.is_sqlite:
            with _locked_file(Path(f"{self._db.url.database}.rebuild")):
                yield
            return
        async with self._db.connection() as connection:
            got = await connection.scalar(text("SELECT pg_try_advisory_lock(:lock)"), {"lock": LOCK})
            await connection.commit()  # the lock is the connection's, not the transaction's
            if not got:
                raise AlreadyRebuilding
            try:
                yield
            finally:
                with contextlib.suppress(*UNREACHABLE):  # a connection that is gone has no lock any more
                    await connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": LOCK})
                    await connection.commit()


async def _locked_heads(session: AsyncSession, generations: list[int]) -> dict[int, ProjectionHead]:
    """The heads, locked in the one order that everybody locks them in."""
    query = select(ProjectionHead).where(ProjectionHead.generation.in_(generations))
    locked = await session.scalars(query.order_by(ProjectionHead.generation).with_for_update())
    return {head.generation: head for head in locked}


@contextmanager
def _locked_file(path: Path) -> Iterator[None]:
    """Beside an SQLite file, which only processes of one machine can share."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyRebuilding from error
        yield
    finally:
        os.close(file)

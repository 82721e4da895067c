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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
from sqlalchemy import delete, func, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from services.gateway.database.engine import Database
from services.gateway.database.tables import PlanRow, ProjectionHead, TaskRow
from services.gateway.problems import ProblemError
from services.gateway.projection.compare import Compared, RowDifference, Side, compare_generations
from services.gateway.projection.heard import Heard
from services.gateway.projection.projector import UNREACHABLE, persistently
from services.gateway.projection.rows import Changes, Folding, known_plans, write_changes
from shared.store import EventStore, Recorded

log = logging.getLogger("treadle.gateway.projection")

BATCH_EVENTS = 250
CHUNK_ROWS = 500
CATCH_UP_WITHIN_S = 5.0
"""Nobody writes to the projection meanwhile."""
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


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What came of comparing the projection with the log, or how far it is. Of this gateway, since its start."""

    state: Literal["never", "at work", "agrees", "differs", "failed"]
    position: int = 0
    """At work: how far; else the event up to which both were compared."""
    rows: int = 0
    differences: int = 0
    first: tuple[RowDifference, ...] = ()
    """The first of them."""
    replaced: bool = False
    """Whether the new rows are the ones that are read now."""
    message: str = ""
    """Why it failed."""


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
        self.verification = Verification(state="never")
        """The newest one that was asked for here."""

    async def start(self) -> None:
        """Begins a rebuild in the background. Raises `AlreadyRebuilding`."""
        await self._start(self._rebuild)

    async def start_verifying(self, *, replace: bool) -> None:
        """Begins to fill a new generation and to compare it with the current one; see `verification`.

        `replace`: it takes the current one's place then, where they differ. Raises `AlreadyRebuilding`.
        """
        await self._start(partial(self._verify, replace=replace))

    async def _start(self, work: Callable[[], Awaitable[Verification | None]]) -> None:
        begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        running = asyncio.create_task(self._run_logged(begun, work))
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

    async def _run_logged(
        self, begun: "asyncio.Future[None]", work: Callable[[], Awaitable[Verification | None]]
    ) -> None:
        try:
            async with self._lock():
                begun.set_result(None)
                found = await work()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # told to whoever waits for the start, else to the log
            if not begun.done():
                begun.set_exception(error)
                return
            log.exception("the rebuild of the projection failed; the old one stays")
            failed = Verification(state="failed", message=f"{type(error).__name__}: {error}")
            found = failed if self.verification.state == "at work" else None
        if found is not None:  # not while we hold the lock: whoever sees that it is done may begin another one
            self.verification = found

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
        await self._fill(generation)
        await self._remove_leftovers()

    async def _fill(self, generation: int, after: int = 0) -> None:
        """Goes on to the log's end and makes the generation the current one."""
        folding = Folding(self._store)
        async for batch in self._store.follow(after=after):
            for place in range(0, len(batch.events), BATCH_EVENTS):
                await self._project(folding, generation, batch.events[place : place + BATCH_EVENTS])
            if await persistently(lambda: self._exchange(generation)):
                break
        log.info("the projection is rebuilt: generation %d is read now", generation)

    async def _verify(self, *, replace: bool) -> Verification:
        self.verification = Verification(state="at work")
        await self._remove_leftovers()
        generation = await persistently(self._begin)
        log.info("verifying the projection by generation %d", generation)
        position, compared = await self._compare_at_one_position(generation)
        replaced = replace and compared.differences > 0
        if replaced:
            await self._fill(generation, after=position)
        await self._remove_leftovers()
        level = logging.WARNING if compared.differences else logging.INFO
        found = compared.differences, compared.rows
        log.log(level, "the projection at event %d: %d differences in %d rows", position, *found)
        return Verification(
            state="differs" if compared.differences else "agrees",
            position=position,
            rows=compared.rows,
            differences=compared.differences,
            first=compared.first,
            replaced=replaced,
        )

    async def _compare_at_one_position(self, generation: int) -> tuple[int, Compared]:
        """Fills the generation to where the current one is, and no further, and looks at both there."""
        folding = Folding(self._store)
        async with Heard(self._store) as heard:
            async with self._db.read() as session:
                reached = await session.scalar(select(ProjectionHead.position).where(ProjectionHead.is_current)) or 0
            while events := await heard.up_to(reached, BATCH_EVENTS):
                await self._project(folding, generation, events)
                self.verification = Verification(state="at work", position=events[-1].seq)
            return await self._compare(folding, heard, generation)

    async def _compare(self, folding: Folding, heard: Heard, generation: int) -> tuple[int, Compared]:
        """What tells the two apart.

        The heads are locked while ours makes up for the last few events, and until the look at the current one has
        begun: what is written to it from then on is not seen. Ours is nobody else's to write.
        """

        async def are_known(plans: set[str]) -> set[str]:
            return await known_plans(self._db, generation, plans)

        async with AsyncExitStack() as held:
            async with self._db.write() as session:
                current = await session.scalar(select(ProjectionHead.generation).where(ProjectionHead.is_current)) or 0
                heads = await _locked_heads(session, [generation, current])
                if generation not in heads:
                    raise _Overtaken(f"generation {generation} was removed by another rebuild")
                position = heads[current].position if current in heads else 0
                async with asyncio.timeout(CATCH_UP_WITHIN_S):
                    while events := await heard.up_to(position, BATCH_EVENTS):
                        await write_changes(self._db, session, generation, await folding.fold(events, are_known))
                        heads[generation].position = events[-1].seq
                looking = await held.enter_async_context(self._db.read())
                await looking.execute(select(ProjectionHead.generation))  # its look begins with its first statement
            async with self._db.read() as ours:
                return position, await compare_generations(Side(looking, current), Side(ours, generation))

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
    """Beside an SQLite file, which only processes of one machine can share.

    The empty file stays: were it removed, one process could hold the lock of the file that is gone while another holds
    that of a new one of the same name.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyRebuilding from error
        yield
    finally:
        os.close(file)

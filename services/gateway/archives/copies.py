"""Imported plans as they are read: from a copy of the file on this gateway's disk, which holds as many as may be.

A copy has no name on the disk any more once it is open, so nothing is left of one that is dropped, or of a gateway
that was killed. Every copy is checked as an import is: what is answered is what was imported.
"""

import asyncio
import tempfile
from collections import OrderedDict
from pathlib import Path

import msgspec
from sqlalchemy import select

from services.gateway.accounts.access import Caller
from services.gateway.archives.imported_fold import ImportedFold, fold_of
from services.gateway.archives.rows import content, find_row, imported_id, no_such_plan
from services.gateway.database.engine import Database
from services.gateway.database.tables import ImportedPlan
from services.gateway.problems import Problem, ProblemError
from services.gateway.projection.imported_view import ImportedFrom
from shared.history.archive import Archive
from shared.history.event_file import EventFile, HistoryDamaged
from shared.history.history import History
from shared.history.packing import Limits

COPIES_MAX = 16
COPIES_MAX_BYTES = 2 * 1024**3
"""On the disk."""
WEIGHT_MAX_BYTES = 256 * 1024**2
"""In memory."""
OPENED_AT_ONCE = 2
UNPACKED_RATIO = 8
"""An archive may take so many times the largest file's room, unpacked."""

UNREADABLE_ARCHIVE = Problem(
    status=409,
    code="unreadable_archive",
    title="The imported file can't be read",
    detail="plan.treadle: event 7 can't be read; import it again with the Treadle that it was exported by",
)


class Copy(msgspec.Struct, frozen=True, kw_only=True):
    """An imported plan's file, open."""

    archive: Archive
    events: EventFile
    fold: ImportedFold
    history: History

    size_bytes: int
    """What it takes on the disk."""
    fold_bytes: int
    """What its fold takes in memory."""

    @property
    def weight_bytes(self) -> int:
        """What it takes in memory, about: more when somebody has looked back."""
        return self.fold_bytes + self.history.weight_bytes


class Copies:
    """Those of one gateway."""

    def __init__(self, db: Database, file_max_bytes: int) -> None:
        self._db = db
        self.limits = limits_of(file_max_bytes)
        self._copies: OrderedDict[str, Copy] = OrderedDict()
        self._opening: dict[str, asyncio.Task[Copy]] = {}
        self._room = asyncio.Semaphore(OPENED_AT_ONCE)

    async def find(self, caller: Caller, plan: str) -> Copy:
        """The plan's copy, for whoever may see it. Raises `ProblemError` 404, 409 `unreadable_archive`."""
        async with self._db.read() as session:
            row = await find_row(session, caller, plan)
        return await self._copy(row)

    async def known(self, plan: str) -> Copy:
        """The copy of a plan that the caller was found to see. Raises as `find`."""
        if (copy := self._copies.get(plan)) is not None:
            return copy
        async with self._db.read() as session:
            row = await session.scalar(select(ImportedPlan).where(ImportedPlan.id == plan, ImportedPlan.is_whole))
        if row is None:
            raise no_such_plan(plan)
        return await self._copy(row)

    async def _copy(self, row: ImportedPlan) -> Copy:
        if (copy := self._copies.get(row.id)) is not None:
            self._copies.move_to_end(row.id)
            return copy
        opening = self._opening.get(row.id)
        if opening is None:
            opening = self._opening[row.id] = asyncio.create_task(self._open(row))
        return await asyncio.shield(opening)  # others may wait for it too

    async def _open(self, row: ImportedPlan) -> Copy:
        try:
            async with self._room:
                with tempfile.TemporaryDirectory(prefix="treadle-imported-") as directory:
                    path = Path(directory) / f"{row.id}.treadle"
                    with path.open("wb") as file:
                        async for chunk in content(self._db, row):
                            await asyncio.to_thread(file.write, chunk)
                    copy = await asyncio.to_thread(open_copy, path, row, self.limits)
            self._keep(row.id, copy)
            return copy
        except HistoryDamaged as error:
            unreadable = UNREADABLE_ARCHIVE
            raise ProblemError(unreadable.status, unreadable.code, unreadable.title, str(error)) from error
        finally:
            del self._opening[row.id]

    def _keep(self, plan: str, copy: Copy) -> None:
        self._copies[plan] = copy
        while len(self._copies) > 1 and self._are_too_many():
            self._copies.popitem(last=False)  # whoever still reads it does; with the last of them its files are gone

    def _are_too_many(self) -> bool:
        held = self._copies.values()
        size_bytes, weight_bytes = sum(one.size_bytes for one in held), sum(one.weight_bytes for one in held)
        return len(held) > COPIES_MAX or size_bytes > COPIES_MAX_BYTES or weight_bytes > WEIGHT_MAX_BYTES

    def forget(self, plan: str) -> None:
        """Gives the room of a plan's copy back."""
        self._copies.pop(plan, None)


def limits_of(file_max_bytes: int) -> Limits:
    """What an archive that is brought may be at most."""
    largest = Limits()
    return Limits(
        file_max_bytes=min(file_max_bytes, largest.file_max_bytes),
        contents_max_bytes=min(file_max_bytes * UNPACKED_RATIO, largest.contents_max_bytes),
    )


def open_copy(path: Path, row: ImportedPlan, limits: Limits) -> Copy:
    """Opens the file of a row that is there, or is to be; its directory may be removed then. Raises `HistoryDamaged`.

    It takes long: in a thread.
    """
    archive = Archive.open(path, limits)
    events = archive.event_file(path.parent)
    manifest = archive.manifest
    imported = ImportedFrom(
        plan=manifest.plan,
        by=row.imported_by,
        at=row.created_at,
        digest=archive.digest,
        is_redacted=manifest.redacted,
        left_out=manifest.left_out,
    )
    fold = fold_of(imported_id(row.owner_id, archive.digest), events, imported)
    return Copy(
        archive=archive,
        events=events,
        fold=fold,
        history=History(events),
        size_bytes=path.stat().st_size + events.size_bytes,
        fold_bytes=fold.weight_bytes,
    )

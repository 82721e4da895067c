"""The rows of imported plans: who sees them, what is shown of them, and their files."""

from base64 import b32encode
from collections.abc import AsyncIterator
from datetime import datetime
from hashlib import sha256

import msgspec
from sqlalchemy import ColumnElement, select, true
from sqlalchemy.ext.asyncio import AsyncSession

from services.gateway.accounts.access import Caller
from services.gateway.database.engine import Database
from services.gateway.database.tables import ImportedChunk, ImportedPlan
from services.gateway.problems import ProblemError, not_found
from shared.subjects import IMPORTED_ID

CHUNK_BYTES = 1024**2


class ImportedPlanView(msgspec.Struct, frozen=True, kw_only=True):
    """An imported plan, as a list shows it. `GET /api/plans/{id}` shows it like any other plan."""

    id: str
    origin_plan: str
    """Its id where it ran."""
    name: str
    """Like every text of it, somebody else's: strip control characters before showing it."""
    status: str
    standing: str
    tasks: int
    """Without `_deliver`."""
    events: int
    size_bytes: int
    """Of the file."""
    digest: str
    """SHA-256 of the file's manifest, in hex: what its exporter was told."""
    owner_id: str
    imported_by: str
    created_at: datetime
    """When it was imported."""


def imported_id(owner_id: str, digest: str) -> str:
    """The id that a file has for an account: the same whenever it is imported."""
    return "i" + b32encode(sha256(f"{owner_id} {digest}".encode()).digest()).decode().lower()[:12]


def is_imported(plan: str) -> bool:
    """Whether that is the id of an imported plan, be there one or not."""
    return IMPORTED_ID.fullmatch(plan) is not None


def seen_by(caller: Caller) -> ColumnElement[bool]:
    """The imported plans that a caller sees."""
    return true() if caller.is_admin else ImportedPlan.owner_id == caller.id


async def find_row(session: AsyncSession, caller: Caller, plan: str) -> ImportedPlan:
    """The plan, if it is there as a whole and the caller may know of it. Raises `ProblemError` 404 `not_found`."""
    row = None
    if is_imported(plan):
        query = select(ImportedPlan).where(ImportedPlan.id == plan, ImportedPlan.is_whole, seen_by(caller))
        row = (await session.scalars(query)).one_or_none()
    if row is None:
        raise no_such_plan(plan)
    return row


def no_such_plan(plan: str) -> ProblemError:
    """404."""
    return not_found(f"imported plan {plan[:80]}", "GET /api/imported-plans")


def view(row: ImportedPlan) -> ImportedPlanView:
    """The row as it is shown."""
    return ImportedPlanView(**{name: getattr(row, name) for name in ImportedPlanView.__struct_fields__})


async def content(db: Database, row: ImportedPlan) -> AsyncIterator[bytes]:
    """The file, chunk by chunk. Raises `ProblemError` 404 where it is deleted meanwhile."""
    number = sent = 0
    while sent < row.size_bytes:
        wanted = select(ImportedChunk.content).where(ImportedChunk.plan_id == row.id, ImportedChunk.number == number)
        async with db.look() as connection:
            chunk: bytes | None = await connection.scalar(wanted)
        if not chunk:
            raise no_such_plan(row.id)
        yield chunk
        number += 1
        sent += len(chunk)

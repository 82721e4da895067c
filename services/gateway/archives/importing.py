"""Route: a file becomes a read-only plan. It is checked as a whole before anything of it is stored."""

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, cast

from litestar import Request, Response, post
from litestar.datastructures import ResponseHeader, State
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIType, Operation, RequestBody, Schema
from litestar.params import QueryParameter
from sqlalchemy import CursorResult, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from services.gateway.accounts import audit
from services.gateway.accounts.access import Caller
from services.gateway.archives.copies import Copies, open_copy
from services.gateway.archives.rows import CHUNK_BYTES, ImportedPlanView, view
from services.gateway.database.engine import Database
from services.gateway.database.tables import ImportedChunk, ImportedPlan, User
from services.gateway.problems import BODY_TOO_LARGE, Problem, ProblemError, documented
from shared.clock import utc_now
from shared.history.event_file import HistoryDamaged
from shared.spec import NAME_MAX_CHARS

PLANS_MAX = 200
"""Imported plans of one account."""
TOTAL_FILES = 8
"""They may take as much room as so many of the largest files."""
OF_ACCOUNT_AT_ONCE = 2
CHECKED_AT_ONCE = OF_ACCOUNT_AT_ONCE + 1
"""On one gateway: it takes a processor's time, and memory. No account has all of that to itself."""
GIVEN_UP_AFTER = timedelta(hours=1)
"""An import that has not stored all of its file by then is that of a gateway that died."""

DAMAGED_ARCHIVE = Problem(
    status=422,
    code="damaged_archive",
    title="Not a whole archive",
    detail="upload.treadle: member events.jsonl is not what was exported: its digest is another one",
)
OTHER_DIGEST = Problem(
    status=422,
    code="other_digest",
    title="Another file than was announced",
    detail="the file is whole, but its digest is 5f0c…: it is not the one that was exported with 8a1b…",
)
TOO_MANY_IMPORTED = Problem(
    status=409,
    code="too_many_imported",
    title="No room for more imported plans",
    detail=f"you have {PLANS_MAX} imported plans: remove some, DELETE /api/imported-plans/{{id}}",
)
TOO_MANY_AT_ONCE = Problem(
    status=409,
    code="imports_in_progress",
    title="Too many imports at once",
    detail="two imports of yours are under way here: wait for one of them",
)
REMOVED_MEANWHILE = Problem(
    status=409,
    code="removed_meanwhile",
    title="Removed meanwhile",
    detail="the same file was imported and removed by somebody else while it was stored: import it again",
)
LOCATION = ResponseHeader(
    name="Location", documentation_only=True, required=True, description="Where the plan is, to be looked at."
)


@dataclass
class _WithFile(Operation):
    """Says in `/schema` that the body is a file; Litestar would want to read it as a whole."""

    def __post_init__(self) -> None:
        file = OpenAPIMediaType(schema=Schema(type=OpenAPIType.STRING, content_encoding="binary"))
        content = {"application/octet-stream": file, "application/zip": file}
        self.request_body = RequestBody(content=content, required=True, description="A `.treadle` file.")


@post(
    "/plans/import-log",
    status_code=201,
    request_max_body_size=None,
    operation_class=_WithFile,
    response_headers=[LOCATION],
    responses={
        **documented(
            400,
            401,
            TOO_MANY_IMPORTED,
            TOO_MANY_AT_ONCE,
            REMOVED_MEANWHILE,
            BODY_TOO_LARGE,
            DAMAGED_ARCHIVE,
            OTHER_DIGEST,
        ),
        200: ResponseSpec(ImportedPlanView, generate_examples=False, description="It was imported before."),
    },
)
async def import_log(
    state: State,
    request: Request[Caller, Any, Any],
    digest: Annotated[
        str | None,
        QueryParameter(
            pattern=r"^[0-9a-f]{64}(?!\n)$", description="What the exporter was told: no other file is taken."
        ),
    ] = None,
) -> Response[ImportedPlanView]:
    """Makes a read-only plan of a file that an export has written; the same file is the same plan, answered with 200.

    It is the caller's alone, and admins see it. Nothing of it ever runs: time travel, why, verify, events, transcripts
    and diffs work, commands answer 409 `read_only_plan`. A file that is damaged, cut off or tampered with is refused
    as a whole.
    """
    caller, importing = request.user, cast("Counter[str]", state.importing)
    if importing[caller.id] >= OF_ACCOUNT_AT_ONCE:
        raise _refused(TOO_MANY_AT_ONCE, TOO_MANY_AT_ONCE.detail)
    importing[caller.id] += 1
    try:
        with tempfile.TemporaryDirectory(prefix="treadle-import-") as directory:
            path = Path(directory) / "upload.treadle"
            size_bytes = await _received(request.stream(), path, state.settings.import_max_bytes)
            row = await _checked(state, caller, path, digest)
            row.size_bytes = size_bytes
            stored, is_new = await _stored(state.db, row, path, state.settings.import_max_bytes)
    finally:
        importing[caller.id] -= 1
        if not importing[caller.id]:
            del importing[caller.id]
    headers = {"Location": f"/api/plans/{stored.id}"}
    return Response(view(stored), status_code=201 if is_new else 200, headers=headers)


async def _checked(state: State, caller: Caller, path: Path, digest: str | None) -> ImportedPlan:
    """The row that the file makes. Raises `ProblemError` 422."""
    copies: Copies = state.imported
    checking: asyncio.Semaphore = state.checking_imports
    row = ImportedPlan(imported_by=caller.actor, owner_id=caller.id, created_at=utc_now(), is_whole=False)
    try:
        async with checking:
            copy = await asyncio.to_thread(open_copy, path, row, copies.limits)
    except HistoryDamaged as error:
        raise _refused(DAMAGED_ARCHIVE, str(error)) from error
    if digest is not None and digest != copy.archive.digest:
        told = f"its digest is {copy.archive.digest}: it is not the one that was exported with {digest}"
        raise _refused(OTHER_DIGEST, f"the file is whole, but {told}")
    shown = copy.fold.view()
    row.digest = copy.archive.digest
    row.id = copy.fold.plan
    row.origin_plan = copy.archive.plan
    row.name = shown.name[:NAME_MAX_CHARS].replace("\x00", "\ufffd")  # which PostgreSQL can't hold
    row.status, row.standing, row.tasks = shown.status, shown.standing, shown.tasks
    row.events = len(copy.events)
    return row


async def _received(body: AsyncIterator[bytes], path: Path, max_bytes: int) -> int:
    """Writes the body to a file, and says how long it is. Raises `ProblemError` 413."""
    size, waiting = 0, bytearray()
    with path.open("wb") as file:
        async for piece in body:
            size += len(piece)
            if size > max_bytes:
                detail = f"this gateway takes archives of up to {max_bytes // 1024**2} MiB (TREADLE_IMPORT_MAX_MB)"
                raise _refused(BODY_TOO_LARGE, detail)
            waiting += piece
            if len(waiting) >= CHUNK_BYTES:
                await asyncio.to_thread(file.write, waiting)
                waiting = bytearray()
        file.write(waiting)
    return size


async def _stored(db: Database, row: ImportedPlan, path: Path, max_bytes: int) -> tuple[ImportedPlan, bool]:
    """The plan's row, and whether it was not there before. Raises `ProblemError` 409 `too_many_imported`.

    The file is stored in many short transactions, so that nobody waits for it; the plan is there with the last one.
    Who imports the same file at the same time stores the same chunks.
    """
    now = utc_now()
    async with db.write() as session:
        given_up = ImportedPlan.is_whole.is_(False) & (ImportedPlan.created_at < now - GIVEN_UP_AFTER)
        await session.execute(delete(ImportedPlan).where(given_up))
        # One import of an account at a time looks how much room there is.
        await session.execute(select(User.id).where(User.id == row.owner_id).with_for_update())
        known = await session.get(ImportedPlan, row.id)
        if known is not None and known.is_whole:
            return known, False
        if known is None:
            await _check_room(session, row, max_bytes)
            session.add(row)
    with path.open("rb") as file:
        number = 0
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            await _store_chunk(db, row.id, number, chunk)
            number += 1
    async with db.write() as session:
        mine = (ImportedPlan.id == row.id, ImportedPlan.is_whole.is_(False))
        ended = cast(
            "CursorResult[Any]", await session.execute(update(ImportedPlan).where(*mine).values(is_whole=True))
        )
        is_new = ended.rowcount == 1
        if is_new:
            details = {"origin": row.origin_plan, "digest": row.digest, "size_bytes": row.size_bytes}
            await audit.record(session, row.imported_by, "plan.imported", row.id, details, now)
        found = await session.get(ImportedPlan, row.id, populate_existing=True)
    if found is None:
        raise _refused(REMOVED_MEANWHILE, REMOVED_MEANWHILE.detail)
    return found, is_new


async def _store_chunk(db: Database, plan: str, number: int, chunk: bytes) -> None:
    insert = sqlite.insert if db.is_sqlite else postgresql.insert
    values = insert(ImportedChunk).values(plan_id=plan, number=number, content=chunk)
    try:
        async with db.write() as session:
            await session.execute(values.on_conflict_do_nothing())
    except IntegrityError as error:  # there is no such plan any more
        raise _refused(REMOVED_MEANWHILE, REMOVED_MEANWHILE.detail) from error


async def _check_room(session: AsyncSession, row: ImportedPlan, max_bytes: int) -> None:
    query = select(func.count(), func.coalesce(func.sum(ImportedPlan.size_bytes), 0))
    count, taken_bytes = (await session.execute(query.where(ImportedPlan.owner_id == row.owner_id))).one()
    remove = "remove some: DELETE /api/imported-plans/{id}"
    if count >= PLANS_MAX:
        raise _refused(TOO_MANY_IMPORTED, f"you have {count} imported plans, and no account has more: {remove}")
    if taken_bytes + row.size_bytes > TOTAL_FILES * max_bytes:
        total = TOTAL_FILES * max_bytes // 1024**2
        raise _refused(
            TOO_MANY_IMPORTED,
            f"your imported plans take {taken_bytes // 1024**2} MiB, and with this one more than the {total} MiB that "
            f"an account has: {remove}",
        )


def _refused(problem: Problem, detail: str) -> ProblemError:
    return ProblemError(problem.status, problem.code, problem.title, detail)

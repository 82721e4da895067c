"""Route: a plan as a file (`shared.history.archive`), made while it is sent."""

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing
from importlib.metadata import version
from typing import Annotated, Any, Protocol

import msgspec
from litestar import Request, get
from litestar.datastructures import State
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, QueryParameter
from litestar.response import Stream

from services.gateway.accounts.access import Caller
from services.gateway.archives.commits import Bundle
from services.gateway.archives.imported_parts import ImportedParts
from services.gateway.archives.live_parts import LiveParts
from services.gateway.archives.rows import content, find_row, is_imported
from services.gateway.plans.lookup import find_plan
from services.gateway.plans.sse import UNAVAILABLE, Reader
from services.gateway.problems import documented
from shared.clock import utc_now
from shared.events import Result
from shared.history.archive import ArchiveWriter
from shared.history.archive_format import BUNDLE, EVENTS, About, Parts, diff_name, result_name
from shared.history.event_file import HistoryDamaged, line_of
from shared.history.packing import TooLargeToArchive
from shared.history.redact import Redactor
from shared.store import Recorded

log = logging.getLogger("treadle.gateway")

MEDIA_TYPE = "application/zip"
SALT_BYTES = 32
PART_BYTES = 256 * 1024

YES = ("1", "true")
_FLAG = r"^(1|true|0|false)(?!\n)$"
Redact = Annotated[
    str,
    QueryParameter(
        pattern=_FLAG,
        description="`1`: names, texts and paths are replaced, the same by the same, and diffs and commits left out.",
    ),
]

WithCommits = Annotated[str, QueryParameter(pattern=_FLAG, description="`0`: without the git bundle.")]


class Source(Protocol):
    """What an archive is made of, in the archive's order. `events` is read to its end before anything else."""

    plan: str
    """The plan's id where it ran."""
    left_out: list[str]
    """What could not be had, in words; complete in the end."""

    def events(self) -> AsyncIterator[list[Recorded]]: ...

    def results(self) -> AsyncIterator[tuple[str, Result]]: ...

    def diffs(self) -> AsyncIterator[tuple[str, bytes]]: ...

    def transcripts(self) -> AsyncIterator[tuple[str, AsyncIterator[bytes]]]: ...

    def bundle(self) -> AbstractAsyncContextManager[Bundle | None]: ...


class Wanted(msgspec.Struct, frozen=True):
    """What somebody wants to have in the archive."""

    parts: Parts
    commits: bool
    redactor: Redactor | None


class ExportEnds(Exception):
    """The file can't be sent to its end. The connection is cut: nobody is to take it for a whole one."""


@get(
    "/plans/{plan:str}/export",
    responses={
        **documented(400, 401, 404),
        200: ResponseSpec(
            bytes,
            generate_examples=False,
            description="A `.treadle` file. It ends with a manifest that names every part's digest, and what could "
            "not be had; one that was cut off on its way is found out when it is opened.",
            media_type=MEDIA_TYPE,
        ),
    },
)
async def export_plan(
    plan: FromPath[str],
    state: State,
    request: Request[Caller, Any, Any],
    parts: Annotated[Parts, QueryParameter(description="`events`: nothing but the plan's events.")] = "all",
    redact: Redact = "0",
    commits: WithCommits = "1",
) -> Stream:
    """The plan's history as one file, as of now: events, results, diffs, transcripts and commits.

    Diffs and commits are a runner's to tell; where none answers, the file is made without, and says so. An imported
    plan is answered with the very file that was imported.
    """
    redactor = Redactor(secrets.token_bytes(SALT_BYTES)) if redact in YES else None
    fold = await find_plan(state, request.user, plan)
    source: Source
    if is_imported(plan):
        if parts == "all" and redactor is None and commits in YES:
            return await _as_imported(state, request.user, plan)
        source = ImportedParts(await state.imported.known(plan))
    else:
        source = LiveParts(state, fold)
    about = About(
        plan=source.plan,
        treadle=version("treadle-gateway"),
        exported_at=utc_now(),
        parts=parts,
        redacted=redactor is not None,
    )
    pieces = packed(ArchiveWriter(about), source, Wanted(parts, commits in YES, redactor))
    return _file_answer(_read_by(Reader(state, request.user, plan), pieces, plan), plan)


async def _as_imported(state: State, caller: Caller, plan: str) -> Stream:
    async with state.db.read() as session:
        row = await find_row(session, caller, plan)
    return _file_answer(content(state.db, row), plan)


def _file_answer(pieces: AsyncIterator[bytes], name: str) -> Stream:
    """The file, to be kept under that name."""
    headers = {"Content-Disposition": f'attachment; filename="{name}.treadle"', "Cache-Control": "no-store"}
    return Stream(pieces, media_type=MEDIA_TYPE, headers=headers)


async def packed(writer: ArchiveWriter, source: Source, wanted: Wanted) -> AsyncGenerator[bytes]:
    """The file, piece by piece. Raises `StoreUnavailable`, `TooLargeToArchive`, `HistoryDamaged`."""
    redactor = wanted.redactor
    with writer.member(EVENTS) as events:
        async for records in source.events():
            await asyncio.to_thread(lambda: events.write(_lines_of(records, redactor)))  # noqa: B023 - called here
            yield writer.taken()
    if wanted.parts == "all":
        async with aclosing(_other_members(writer, source, wanted)) as pieces:
            async for piece in pieces:
                yield piece
    # What it was refused with may quote what is to be hidden.
    writer.left_out.extend(source.left_out if redactor is None else [])
    await asyncio.to_thread(writer.close)
    yield writer.taken()


async def _other_members(writer: ArchiveWriter, source: Source, wanted: Wanted) -> AsyncGenerator[bytes]:
    redactor = wanted.redactor
    async for task, result in source.results():
        shown = redactor.result(result) if redactor is not None else result
        writer.add(result_name(task), msgspec.json.encode(shown))
        yield writer.taken()
    if redactor is None:
        async for task, diff in source.diffs():
            await asyncio.to_thread(writer.add, diff_name(task), diff)
            yield writer.taken()
    async for name, entries in source.transcripts():
        with writer.member(name) as member:
            async for lines in entries:
                await asyncio.to_thread(lambda: member.write(_redacted(lines, redactor)))  # noqa: B023 - called here
                yield writer.taken()
    if redactor is not None:
        writer.left_out.append("diffs and commits: they can't be redacted")
    elif not wanted.commits:
        writer.left_out.append("commits: they were not wanted")
    else:
        async with source.bundle() as made:
            if made is not None:
                writer.commits = made.commits
                with writer.member(BUNDLE) as member:
                    while part := await asyncio.to_thread(made.file.read, PART_BYTES):
                        await asyncio.to_thread(member.write, part)
                        yield writer.taken()


def _lines_of(records: list[Recorded], redactor: Redactor | None) -> bytes:
    return b"".join(line_of(redactor.record(record) if redactor is not None else record) for record in records)


def _redacted(lines: bytes, redactor: Redactor | None) -> bytes:
    if redactor is None:
        return lines
    return b"".join(redactor.transcript_line(line) + b"\n" for line in lines.split(b"\n") if line)


async def _read_by(reader: Reader, pieces: AsyncGenerator[bytes], plan: str) -> AsyncGenerator[bytes]:
    """The file, as long as its reader may read on. Raises `ExportEnds`, which cuts the connection."""
    ended = asyncio.Event()
    try:
        async with aclosing(pieces), reader.watched(ended.set):
            async for piece in pieces:
                if ended.is_set() or not (reader.ask_in_s or await reader.may_read_on()):
                    raise ExportEnds("its reader may not read the plan any more")
                if piece:
                    yield piece
    except (*UNAVAILABLE, TooLargeToArchive, HistoryDamaged) as error:
        log.warning("the export of plan %s ends before its end: %r", plan, error)
        raise ExportEnds(str(error)) from error

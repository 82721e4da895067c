"""What of an imported plan is in its archive alone: what its agents did, and what its tasks changed."""

import asyncio
from collections.abc import Iterator
from functools import partial
from heapq import merge

import msgspec
from litestar.datastructures import State

from services.gateway.archives.copies import Copies, Copy
from services.gateway.archives.diffs import diff_of
from services.gateway.archives.rows import is_imported
from services.gateway.direct_get import BYTES_MAX, EventsRead, read_events
from services.gateway.plans.event_filter import ReadEvents
from services.gateway.plans.transcript_entry import TranscriptEntry, TranscriptPage
from shared.history.archive import Archive
from shared.history.archive_format import diff_name
from shared.requests import DiffReply
from shared.store import Recorded

LEASES_MAX = 100
"""Of a task whose transcripts are read side by side; no task of ours comes near it."""
DIFF_MAX_BYTES = 6 * 1024**2


def events_reader(state: State, plan: str) -> ReadEvents:
    """What reads the events of a plan, wherever they are."""
    if not is_imported(plan):
        return partial(read_events, state.nc, state.store)
    copies: Copies = state.imported

    async def read(plan: str, *, after: int, limit: int, entity: str | None = None) -> EventsRead:
        return await events_page(await copies.known(plan), after=after, limit=limit, entity=entity)

    return read


async def events_page(copy: Copy, *, after: int, limit: int, entity: str | None = None) -> EventsRead:
    """The first events behind a sequence, few enough to be held at once. Raises `HistoryDamaged`."""
    return await asyncio.to_thread(_events_page, copy, after, limit, entity)


def _events_page(copy: Copy, after: int, limit: int, entity: str | None) -> EventsRead:
    records: list[Recorded] = []
    size = 0
    for record in copy.events.read(after, limit, entity):
        records.append(record)
        size += len(record.body)
        if size > BYTES_MAX:
            break
    more = bool(records) and records[-1].seq < copy.events.last_seq
    return EventsRead(records, records[-1].seq if more else None)


async def transcript_page(copy: Copy, task: str, *, after: int, limit: int) -> TranscriptPage:
    """What the task's agents did behind a sequence, in its order over all leases. Raises `HistoryDamaged`."""
    return await asyncio.to_thread(_transcript_page, copy.archive, task, after, limit)


def _transcript_page(archive: Archive, task: str, after: int, limit: int) -> TranscriptPage:
    leases = archive.leases(task)[-LEASES_MAX:]
    entries = merge(*(_entries(archive, task, lease) for lease in leases), key=lambda entry: entry.seq)
    items: list[TranscriptEntry] = []
    size = 0
    for entry in entries:
        if entry.seq <= after:
            continue
        if len(items) == limit or size > BYTES_MAX:
            return TranscriptPage(items, items[-1].seq)
        items.append(entry)
        size += len(msgspec.json.encode(entry.activity))
    return TranscriptPage(items, None)


def _entries(archive: Archive, task: str, lease: int) -> Iterator[TranscriptEntry]:
    last = 0
    for line in archive.transcript(task, lease) or ():
        try:
            entry = msgspec.json.decode(line, type=TranscriptEntry)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            activity = {"kind": "text", "text": f"this entry can't be read: {error}"}
            entry = TranscriptEntry(last + 1, archive.manifest.exported_at, task, lease, activity)
        if entry.seq > last:  # else it would be told on two pages, or on none
            last = entry.seq
            yield msgspec.structs.replace(entry, task=task, lease=lease)


async def diff(copy: Copy, task: str) -> DiffReply:
    """What the task changed, or why that is not there. Raises `HistoryDamaged`."""
    return await asyncio.to_thread(_diff, copy.archive, task)


def _diff(archive: Archive, task: str) -> DiffReply:
    pieces = archive.contents(diff_name(task))
    if pieces is None:
        why = "; ".join(said for said in archive.manifest.left_out if "diff" in said)
        return DiffReply(refused=f"the plan was imported without the diff of {task}{f' ({why})' if why else ''}")
    taken = bytearray()
    for piece in pieces:
        taken += piece
        if len(taken) > DIFF_MAX_BYTES:
            break
    found = diff_of(bytes(taken[:DIFF_MAX_BYTES]))
    return msgspec.structs.replace(found, cut=True) if len(taken) > DIFF_MAX_BYTES else found

"""Routes: what a task's agents said and did, in pages or as it happens."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Annotated, Any

import msgspec
from litestar import Request, Router, get
from litestar.datastructures import State
from litestar.params import FromPath, HeaderParameter, QueryParameter
from litestar.response import Stream
from nats.aio.client import Client
from nats.aio.msg import Msg

from services.gateway.accounts.access import Caller
from services.gateway.archives.looking import transcript_page
from services.gateway.archives.rows import is_imported
from services.gateway.direct_get import Found, read_batch
from services.gateway.plans.lookup import find_execution
from services.gateway.plans.sse import ALIVE, Reader, documented_stream, event_stream, message
from services.gateway.plans.transcript_entry import TranscriptEntry, TranscriptPage
from services.gateway.problems import documented
from services.gateway.projection.live import LivePlans
from services.gateway.projection.reads import SEQUENCE_MAX
from shared.streams import TRANSCRIPTS
from shared.subjects import parse_transcript_subject, transcript_filter
from shared.tail import follow_messages

QUIET_S = 0.5
"""The last words of an agent may arrive a little after its task's end."""
LIMIT = 200
LIMIT_MAX = 500


@get("/plans/{plan:str}/tasks/{code:str}/transcript", responses=documented(400, 401, 404, 503))
async def read_transcript(
    plan: FromPath[str],
    code: FromPath[str],
    state: State,
    request: Request[Caller, Any, Any],
    after: Annotated[int, QueryParameter(ge=0, le=SEQUENCE_MAX)] = 0,
    limit: Annotated[int, QueryParameter(ge=1, le=LIMIT_MAX)] = LIMIT,
) -> TranscriptPage:
    """What the task's agents did, over all its leases. It is kept for a time only, and the oldest goes first.

    `_draft-1` is the making of candidate 1.
    """
    await find_execution(state, request.user, plan, code)
    if is_imported(plan):
        return await transcript_page(await state.imported.known(plan), code, after=after, limit=limit)
    subjects = transcript_filter(plan, code)
    found, more = await read_batch(state.nc, TRANSCRIPTS, subjects, after=after, limit=limit)
    items = [stored_entry(one) for one in found]
    return TranscriptPage(items, items[-1].seq if more else None)


@get(
    "/plans/{plan:str}/tasks/{code:str}/transcript/stream",
    responses={
        **documented(400, 401, 404, 503),
        **documented_stream("Messages `activity` and `live`, each with JSON as its data."),
    },
)
async def follow_transcript(
    plan: FromPath[str],
    code: FromPath[str],
    state: State,
    request: Request[Caller, Any, Any],
    last_event_id: Annotated[int, HeaderParameter(name="Last-Event-ID", ge=0, le=SEQUENCE_MAX)] = 0,
) -> Stream:
    """The same, and then what comes, for ever. Whenever nothing has come for a while, `live` tells how the task stands.

    So a reader knows that it may go: the task is over, and what its agents said before the end has arrived.
    """
    await find_execution(state, request.user, plan, code)
    reader = Reader(state, request.user, plan)
    return event_stream(_transcript_messages(state.live, state.nc, reader, plan, code, last_event_id))


async def _transcript_messages(
    live: LivePlans, nc: Client, reader: Reader, plan: str, code: str, after: int
) -> AsyncGenerator[bytes]:
    ended = asyncio.Event()
    arriving = follow_messages(nc, TRANSCRIPTS, after=after, filters=(transcript_filter(plan, code),))
    ending = asyncio.ensure_future(ended.wait())
    arrival = asyncio.ensure_future(anext(arriving))
    try:
        async with reader.watched(ended.set):
            while True:
                await asyncio.wait({arrival, ending}, timeout=QUIET_S, return_when=asyncio.FIRST_COMPLETED)
                if not reader.ask_in_s:
                    if not await reader.may_read_on():
                        return
                    yield ALIVE
                if ended.is_set():
                    return
                if not arrival.done():
                    fold = await live.fold(plan)
                    if fold is None:
                        return
                    yield message("live", msgspec.json.encode({"status": fold.execution(code).status}))
                    continue
                for entry in map(_stored_entry, arrival.result().messages):
                    yield message("activity", msgspec.json.encode(entry), entry.seq)
                    if ended.is_set():
                        return
                arrival = asyncio.ensure_future(anext(arriving))
    finally:
        ending.cancel()
        arrival.cancel()


def live_entry(said: Msg, time: datetime) -> bytes:
    """What an agent just said, in JSON, without a sequence: it is not known to be stored."""
    return msgspec.json.encode(_entry(said.subject, 0, time, said.data))


def stored_entry(found: Found) -> TranscriptEntry:
    """An entry as it is kept."""
    return _entry(found.subject, found.seq, found.time, found.body)


def _stored_entry(said: Msg) -> TranscriptEntry:
    return _entry(said.subject, said.metadata.sequence.stream, said.metadata.timestamp, said.data)


def _entry(subject: str, seq: int, time: datetime, body: bytes) -> TranscriptEntry:
    _, task, lease = parse_transcript_subject(subject)
    try:
        activity = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:  # not written by a runner of ours
        activity = {"kind": "text", "text": f"this entry can't be read: {error}"}
    return TranscriptEntry(seq, time, task, lease, activity)


transcripts_router = Router(path="/", tags=["streams"], route_handlers=[read_transcript, follow_transcript])

"""Routes: what happens now, as server-sent events, and what agents said.

A plan's stream begins with the events that its reader lacks, then shows how everything stands, then tells each change.
Messages: `log` (an event of the log; its id resumes the stream), `plan` and `task` (how they stand after it),
`activity` (what an agent does), `live` (what follows is new).
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any

import msgspec
from litestar import Router, get
from litestar.datastructures import State
from litestar.params import HeaderParameter, Parameter
from litestar.response import ServerSentEvent
from litestar.response.sse import ServerSentEventMessage
from nats.aio.client import Client
from nats.aio.msg import Msg

from services.gateway.lookup import find_plan, find_task
from services.gateway.model import FellBehind, ReadModel
from services.gateway.plans import SEQUENCE_MAX
from services.gateway.views import PlanFold, event_json
from shared.store import EventStore, Recorded
from shared.streams import TRANSCRIPTS
from shared.subjects import PLAN, parse_transcript_subject, transcript_filter
from shared.tail import follow_messages

KEEP_ALIVE_S = 15.0
HISTORY_PAGE = 500
QUIET_S = 0.5
"""The last words of an agent may arrive a little after its task's end."""
TRANSCRIPT_ENTRIES_MAX = 5_000
"""The newest so many are answered; following shows all."""


class TranscriptEntry(msgspec.Struct, frozen=True):
    """One thing that an agent did. The text is the agent's: strip control characters before showing it."""

    seq: int
    time: datetime
    task: str
    lease: int
    activity: dict[str, Any]


@get("/plans/{plan:str}/stream")
async def stream_plan(
    plan: str,
    state: State,
    after: Annotated[int, Parameter(ge=0, le=SEQUENCE_MAX)] = 0,
    last_event_id: Annotated[int | None, HeaderParameter(name="Last-Event-ID", ge=0)] = None,
    activity: bool = False,
) -> ServerSentEvent:
    """Everything about a plan after the sequence `after`, or `Last-Event-ID` where that is sent, for ever."""
    fold = find_plan(state, plan)
    start = last_event_id if last_event_id is not None else after
    return ServerSentEvent(_plan_messages(state.model, state.store, state.nc if activity else None, fold, start))


async def _plan_messages(
    model: ReadModel, store: EventStore, nc: Client | None, fold: PlanFold, after: int
) -> AsyncIterator[ServerSentEventMessage]:
    plan = fold.plan
    try:
        await model.at_least(after)
    except TimeoutError:  # an id from another log: what comes must be told all the same
        after = model.seq
    with model.listen(plan) as listener:
        live_from = model.seq
        while after < live_from and (page := await store.read(plan, after=after, limit=HISTORY_PAGE)):
            for record in page:
                yield _log(record)
                after = record.seq
        await model.at_least(after)  # what follows must not be older than the history that was told
        yield _message("plan", fold.view())
        for view in fold.tasks():
            yield _message("task", view)
        yield _message("live", {"seq": model.seq})
        subscription = None
        if nc is not None:

            async def told(message: Msg) -> None:
                listener.give(message)

            # A plain subscriber is good enough here: transcripts decide nothing and are never refused.
            subscription = await nc.subscribe(transcript_filter(plan), cb=told)
        try:
            while True:
                arrived = await listener.take(KEEP_ALIVE_S)
                if not arrived:
                    yield ServerSentEventMessage(comment="alive")
                changed: dict[str, None] = {}
                for item in arrived:
                    if isinstance(item, Msg):
                        yield _message("activity", _entry(item, 0, fold.updated_at))
                        continue
                    changed[item.entity] = None
                    if item.seq > after:
                        after = item.seq
                        yield _log(item)
                for message in _changes(fold, changed):
                    yield message
        except FellBehind:
            return  # the reader comes back with the last id that it saw
        finally:
            if subscription is not None:
                await subscription.unsubscribe()


def _changes(fold: PlanFold, changed: dict[str, None]) -> list[ServerSentEventMessage]:
    """How whatever changed stands now; everything, where the plan's own state changed."""
    if not changed:
        return []
    codes = fold.board.codes if PLAN in changed else [code for code in changed if fold.has_task(code)]
    return [*(_message("task", fold.task(code)) for code in codes), _message("plan", fold.view())]


@get("/plans/{plan:str}/tasks/{code:str}/transcript")
async def read_transcript(plan: str, code: str, state: State) -> list[TranscriptEntry]:
    """What the task's agents did, over all its leases, the oldest first."""
    find_task(state, plan, code)
    entries: list[TranscriptEntry] = []
    async for arrived in follow_messages(state.nc, TRANSCRIPTS, after=0, filters=(transcript_filter(plan, code),)):
        entries = [*entries, *map(_stored_entry, arrived.messages)][-TRANSCRIPT_ENTRIES_MAX:]
        if arrived.caught_up:
            break
    return entries


@get("/plans/{plan:str}/tasks/{code:str}/transcript/stream")
async def follow_transcript(
    plan: str,
    code: str,
    state: State,
    last_event_id: Annotated[int, HeaderParameter(name="Last-Event-ID", ge=0)] = 0,
) -> ServerSentEvent:
    """The same, and then what comes, for ever. Whenever nothing has come for a while, `live` tells how the task stands.

    So a reader knows that it may go: the task is over, and what its agents said before the end has arrived.
    """
    fold = find_task(state, plan, code)

    async def messages() -> AsyncIterator[ServerSentEventMessage]:
        filters = (transcript_filter(plan, code),)
        arriving = follow_messages(state.nc, TRANSCRIPTS, after=last_event_id, filters=filters)
        arrival = asyncio.ensure_future(anext(arriving))
        try:
            while True:
                await asyncio.wait({arrival}, timeout=QUIET_S)
                if not arrival.done():
                    yield _message("live", {"status": fold.task(code).status})
                    continue
                for entry in map(_stored_entry, arrival.result().messages):
                    yield ServerSentEventMessage(data=_json(entry), event="activity", id=entry.seq)
                arrival = asyncio.ensure_future(anext(arriving))
        finally:
            arrival.cancel()

    return ServerSentEvent(messages())


def _stored_entry(message: Msg) -> TranscriptEntry:
    return _entry(message, message.metadata.sequence.stream, message.metadata.timestamp)


def _entry(message: Msg, seq: int, time: datetime) -> TranscriptEntry:
    _, task, lease = parse_transcript_subject(message.subject)
    return TranscriptEntry(seq, time, task, lease, msgspec.json.decode(message.data))


def _log(record: Recorded) -> ServerSentEventMessage:
    return ServerSentEventMessage(data=_json(event_json(record)), event="log", id=record.seq)


def _message(event: str, body: object) -> ServerSentEventMessage:
    return ServerSentEventMessage(data=_json(body), event=event)


def _json(body: object) -> str:
    return msgspec.json.encode(body).decode()


stream_router = Router(path="/", tags=["streams"], route_handlers=[stream_plan, read_transcript, follow_transcript])

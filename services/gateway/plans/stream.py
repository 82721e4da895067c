"""Routes: a plan's events, in pages or as they happen.

A plan's stream begins with the events that its reader lacks, then shows how everything stands, then tells each change.
Messages: `log` (an event of the log; its id resumes the stream), `plan` and `task` (how they stand after it),
`activity` (what an agent does), `live` (what follows is new).
"""

from collections.abc import AsyncGenerator
from functools import partial
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, Router, get
from litestar.datastructures import State
from litestar.params import FromPath, FromQuery, HeaderParameter, QueryParameter
from litestar.response import Stream
from nats.aio.client import Client
from nats.aio.msg import Msg

from services.gateway.accounts.access import Caller
from services.gateway.archives.looking import events_reader
from services.gateway.direct_get import read_events
from services.gateway.plans.event_filter import About, ActorWord, EventFilter, ReadEvents, TaskWord, TypeWord, When
from services.gateway.plans.lookup import find_plan, promptly
from services.gateway.plans.sse import ALIVE, Reader, documented_stream, event_stream, message
from services.gateway.plans.transcripts import live_entry
from services.gateway.problems import documented
from services.gateway.projection.live import FellBehind, Listener, LivePlans, Told
from services.gateway.projection.reads import SEQUENCE_MAX, json_answer
from services.gateway.projection.views import PlanFold, event_json
from shared.subjects import transcript_filter

HISTORY_PAGE = 100
EVENTS_LIMIT = 100
EVENTS_LIMIT_MAX = 1_000
CHUNK_BYTES = 64 * 1024
"""Messages are sent together up to here."""


class EventsPage(msgspec.Struct, frozen=True):
    """Some events of a plan; `next_after` continues, null at the end."""

    events: list[dict[str, Any]]
    next_after: int | None


@get("/plans/{plan:str}/events", responses=documented(400, 401, 404, 503))
async def list_events(
    plan: FromPath[str],
    state: State,
    request: Request[Caller, Any, Any],
    after: Annotated[int, QueryParameter(ge=0, le=SEQUENCE_MAX)] = 0,
    limit: Annotated[int, QueryParameter(ge=1, le=EVENTS_LIMIT_MAX)] = EVENTS_LIMIT,
    task: TaskWord = None,
    type_: TypeWord = None,
    actor: ActorWord = None,
    since: When = None,
    until: When = None,
) -> Response[EventsPage]:
    """The plan's events from the log itself, those after the sequence `after`.

    A page has fewer than `limit` where they are large, some megabytes together; with filters also where thousands that
    are not wanted lie between: it may be empty then, and still have a `next_after`. An event that this Treadle can't
    read has `unreadable` instead of its own fields: why, and its bytes.
    """
    await find_plan(state, request.user, plan)
    wanted = EventFilter.asked(task, type_, actor, since, until)
    read = events_reader(state, plan)
    records, next_after = await promptly(wanted.page(state.nc, read, plan, after=after, limit=limit))
    events = b",".join(msgspec.json.encode(event_json(record)) for record in records)
    return json_answer(b'{"events":[%b],"next_after":%b}' % (events, msgspec.json.encode(next_after)))


@get(
    "/plans/{plan:str}/stream",
    responses={
        **documented(400, 401, 404, 503),
        **documented_stream("Messages `log`, `plan`, `task`, `activity` and `live`, each with JSON as its data."),
    },
)
async def stream_plan(
    plan: FromPath[str],
    state: State,
    request: Request[Caller, Any, Any],
    after: Annotated[int, QueryParameter(ge=0, le=SEQUENCE_MAX)] = 0,
    last_event_id: Annotated[int | None, HeaderParameter(name="Last-Event-ID", ge=0, le=SEQUENCE_MAX)] = None,
    activity: FromQuery[bool] = False,
    task: TaskWord = None,
    type_: TypeWord = None,
    actor: ActorWord = None,
) -> Stream:
    """Everything about a plan after the sequence `after`, or `Last-Event-ID` where that is sent, for ever.

    With filters it is only the events that fit, and `live`.
    """
    await find_plan(state, request.user, plan)
    reader = Reader(state, request.user, plan)
    start = last_event_id if last_event_id is not None else after
    nc = state.nc if activity else None
    wanted = EventFilter.asked(task, type_, actor)
    read = partial(read_events, state.nc, state.store)
    return event_stream(plan_messages(state.live, read, reader, plan, after=start, nc=nc, wanted=wanted))


async def plan_messages(
    live: LivePlans,
    read: ReadEvents,
    reader: Reader,
    plan: str,
    *,
    after: int,
    nc: Client | None = None,
    wanted: EventFilter = EventFilter(),  # noqa: B008 - frozen
) -> AsyncGenerator[bytes]:
    """The stream, as it is sent. It ends where its reader may not read on, or reads too slowly.

    Raises `StoreUnavailable`, TimeoutError.
    """
    try:
        await live.at_least(after)
    except TimeoutError:  # an id from another log: what comes must be told all the same
        after = live.seq
    with live.listen(plan) as listener:
        async with reader.watched(listener.end):
            live_from = live.seq
            following: int | None = after
            while following is not None and following < live_from:
                page = await read(plan, after=following, limit=HISTORY_PAGE, entity=wanted.task)
                following = page.next_after
                for record in page.records:
                    after = record.seq
                    if wanted.wants(About.of(record)):
                        yield message("log", msgspec.json.encode(event_json(record)), record.seq)
                    if listener.ended or not (reader.ask_in_s or await reader.may_read_on()):
                        return
            await live.at_least(after)  # what follows must not be older than the history that was told
            fold = await promptly(live.fold(plan))
            if fold is None or listener.ended:
                return
            for chunk in _standing(fold if wanted.is_empty else None, live.seq):
                yield chunk
            subscription = await nc.subscribe(transcript_filter(plan), cb=_teller(listener, fold)) if nc else None
            try:
                async for chunk in _news(listener, reader, fold, after, wanted):
                    yield chunk
            except FellBehind:
                return  # the reader comes back with the last id that it saw
            finally:
                if subscription is not None:
                    await subscription.unsubscribe()


def _standing(fold: PlanFold | None, seq: int) -> list[bytes]:
    """How everything stands, in chunks; None: only where the news begin."""
    live = message("live", msgspec.json.encode({"seq": seq}))
    if fold is None:
        return [live]
    tasks = (message("task", fold.task_json(code)) for code in fold.board.codes)
    return _chunks([message("plan", fold.view_json()), *tasks, live])


async def _news(
    listener: Listener, reader: Reader, fold: PlanFold, after: int, wanted: EventFilter
) -> AsyncGenerator[bytes]:
    """What comes, with how it leaves the plan and its tasks; with a filter only the events that fit."""
    while True:
        arrived = await listener.take(reader.ask_in_s)
        if listener.ended:
            return
        if not reader.ask_in_s:
            if not await reader.may_read_on():
                return
            yield ALIVE
        if listener.ended:
            return
        messages: list[bytes] = []
        changed: dict[str, None] = {}
        for item in arrived:
            if item.kind == "log" and item.seq <= after:
                continue
            if item.kind == "log" and not wanted.is_empty:
                after = item.seq
                if wanted.wants(msgspec.json.decode(item.json, type=About)):
                    messages.append(message(item.kind, item.json, item.seq))
                continue
            messages.append(message(item.kind, item.json, item.seq or None))
            if item.kind == "log":
                after = item.seq
                changed.update(dict.fromkeys(item.changed))
        if wanted.is_empty and any(item.kind == "log" for item in arrived):
            messages += (message("task", fold.task_json(code)) for code in changed)
            messages.append(message("plan", fold.view_json()))
        for chunk in _chunks(messages):
            yield chunk
            if listener.ended:
                return


def _teller(listener: Listener, fold: PlanFold) -> Any:
    """Gives what an agent says to a listener.

    A plain subscriber is good enough here: transcripts decide nothing and are never refused.
    """

    async def told(said: Msg) -> None:
        listener.give(Told("activity", live_entry(said, fold.updated_at)))

    return told


def _chunks(messages: list[bytes]) -> list[bytes]:
    """Messages joined to what is worth a packet."""
    chunks: list[bytes] = []
    open_: list[bytes] = []
    size = 0
    for one in messages:
        open_.append(one)
        size += len(one)
        if size >= CHUNK_BYTES:
            chunks.append(b"".join(open_))
            open_, size = [], 0
    return [*chunks, b"".join(open_)] if open_ else chunks


stream_router = Router(path="/", tags=["streams"], route_handlers=[stream_plan, list_events])

"""Routes for whoever runs Treadle: who reads the log, how far they are, and letting a pool begin at another place."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, Router, get, post
from litestar.datastructures import State
from litestar.params import FromPath, JSONBody
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.api import ConsumerInfo
from nats.js.errors import APIError

from services.gateway.accounts import audit
from services.gateway.accounts.access import Caller, admin_only
from services.gateway.direct_get import first_seq_since
from services.gateway.plans.commands import NOTE_MAX_CHARS
from services.gateway.problems import Problem, ProblemError, bad_request, documented, not_found
from services.gateway.projection.live import log_end
from services.gateway.projection.projector import Projector
from shared.clock import utc_now
from shared.nats_permissions import POOLS
from shared.requests import ResetReply, ResetRequest
from shared.store import StoreUnavailable
from shared.streams import EVENTS, pool_consumer_name
from shared.subjects import DISPATCHER_RESET

SHOWN_MAX = 1_000
TIMEOUT_S = 5.0
RESET_TIMEOUT_S = 10.0

NOT_RESET = Problem(
    status=409,
    code="not_reset",
    title="The consumer was not reset",
    detail="follow_1f0a… belongs to a running service, which keeps its position itself: restart that service",
)


class ConsumerView(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who reads the log."""

    name: str
    kind: Literal["pool", "follower"]
    """`pool`: durable, all runners of a pool take their tasks from it. `follower`: of one running service."""
    of: str
    """The pool, or the service."""
    position: int
    """Sequence of the last event that it was given."""
    acknowledged: int
    """Up to here everything is done with; a follower acknowledges nothing."""
    pending: int
    """Events that it has not been given yet."""
    unacknowledged: int
    """Given and not done with: tasks in runners' hands."""
    redelivered: int
    waiting: int
    """Requests for more that are open: of runners with a free slot."""
    last_active: datetime | None


class Consumers(msgspec.Struct, frozen=True, kw_only=True):
    """Everybody who reads the log, as of now."""

    log_end: int
    projection_position: int
    """Sequence that the tables which lists are read from have; see `GET /api/projection`."""
    items: list[ConsumerView]


class Reset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a consumer is to begin, and why."""

    to: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    """`start`, `end`, a sequence, or a time such as 2026-01-31T12:00:00Z."""
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=NOTE_MAX_CHARS)]


class ConsumerReset(msgspec.Struct, frozen=True, kw_only=True):
    """What was done."""

    name: str
    seq: int
    """It begins with this event."""
    pending: int
    """What it has to deliver from there."""
    consequence: str
    """For people."""


@get("/consumers", guards=[admin_only], responses=documented(401, 403))
async def list_consumers(state: State) -> Consumers:
    """Who reads the log, and how far they are: the runners' pools first."""
    projector: Projector = state.projector
    views = sorted(map(_view, await _infos(state.nc)), key=lambda view: (view.kind != "pool", view.of, view.name))
    return Consumers(log_end=await log_end(state.nc), projection_position=projector.position, items=views[:SHOWN_MAX])


@post(
    "/consumers/{consumer:str}/reset",
    status_code=200,
    guards=[admin_only],
    responses=documented(400, 401, 403, 404, NOT_RESET),
)
async def reset_consumer(
    consumer: FromPath[str], data: JSONBody[Reset], state: State, request: Request[Caller, Any, Any]
) -> ConsumerReset:
    """Lets a pool's consumer begin at another place of the log.

    Back: what was dispatched from there on is delivered again. That is harmless: a task that went on since is found
    out of date, and one that a live runner works on stays with it. Forward: what was dispatched before and is not done
    stays where it is, and no runner takes it.
    """
    before = {info.name: info for info in await _infos(state.nc)}.get(consumer)
    if before is None:
        raise not_found(f"consumer {consumer[:80]}", "GET /api/consumers")
    view = _view(before)
    if view.kind != "pool":
        detail = f"{consumer} belongs to a running service, which keeps its position itself: restart that service"
        raise ProblemError(NOT_RESET.status, NOT_RESET.code, NOT_RESET.title, detail)
    seq = await _seq(state.nc, data.to)
    pending = await _ask(state.nc, consumer, seq)
    details = {"to": data.to, "seq": seq, "was_at": view.position, "reason": data.reason}
    async with state.db.write() as session:
        await audit.record(session, request.user.actor, "consumer.reset", consumer, details, utc_now())
    return ConsumerReset(name=consumer, seq=seq, pending=pending, consequence=_consequence(view, seq, pending))


async def _infos(nc: Client) -> list[ConsumerInfo]:
    """Raises `StoreUnavailable`."""
    js, found = nc.jetstream(timeout=TIMEOUT_S), list[ConsumerInfo]()
    try:
        while len(found) < SHOWN_MAX and (page := await js.consumers_info(EVENTS, offset=len(found))):
            found += page
    except (NatsError, APIError, OSError, TimeoutError) as error:
        raise StoreUnavailable(f"NATS does not tell who reads the log: {error!r}") from error
    return found


def _view(info: ConsumerInfo) -> ConsumerView:
    pools = {pool_consumer_name(pool): pool for pool in POOLS}
    actives = [s.last_active for s in (info.delivered, info.ack_floor) if s is not None and s.last_active is not None]
    return ConsumerView(
        name=info.name,
        kind="pool" if info.name in pools else "follower",
        of=pools.get(info.name) or info.config.description or "unknown",
        position=info.delivered.stream_seq if info.delivered else 0,
        acknowledged=info.ack_floor.stream_seq if info.ack_floor and info.name in pools else 0,
        pending=info.num_pending or 0,
        unacknowledged=info.num_ack_pending or 0,
        redelivered=info.num_redelivered or 0,
        waiting=info.num_waiting or 0,
        last_active=max(actives, default=None),
    )


async def _seq(nc: Client, to: str) -> int:
    """Raises `ProblemError` 400, `StoreUnavailable`."""
    after_end = await log_end(nc) + 1
    if to in ("start", "end"):
        return 1 if to == "start" else after_end
    if to.isascii() and to.isdecimal():
        if not 1 <= int(to) <= after_end:
            raise bad_request("to", f"the log has the events 1 to {after_end - 1}")
        return int(to)
    try:
        time = datetime.fromisoformat(to)
        time = (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise bad_request("to", "is neither start, end, a sequence, nor a time such as 2026-01-31T12:00:00Z") from None
    return await first_seq_since(nc, None, time) or after_end


async def _ask(nc: Client, name: str, seq: int) -> int:
    """Raises `ProblemError` 409, `StoreUnavailable`."""
    wish = msgspec.json.encode(ResetRequest(consumer=name, seq=seq))
    try:
        answer = await nc.request(DISPATCHER_RESET, wish, timeout=RESET_TIMEOUT_S)
    except (NatsError, OSError, TimeoutError) as error:
        raise StoreUnavailable(f"no dispatcher answers, which alone can do it: {error!r}") from error
    reply = msgspec.json.decode(answer.data, type=ResetReply)
    if reply.refused:
        raise ProblemError(NOT_RESET.status, NOT_RESET.code, NOT_RESET.title, reply.refused)
    return reply.pending


def _consequence(before: ConsumerView, seq: int, pending: int) -> str:
    if seq <= before.position:
        return (
            f"{pending} dispatches are delivered, some of them again: a task that went on since is found out of date, "
            "and one that a live runner works on stays with it, so nothing runs twice"
        )
    if not before.pending + before.unacknowledged:
        return "nothing is passed over: all that was dispatched was taken, and is done with"
    return (
        f"what was dispatched to {before.of} before event {seq} and was not taken is passed over: its tasks stay "
        "queued. What runners have in their hands goes on, but nobody takes it over if one of them dies. "
        "A reset to start brings all of it back"
    )


consumers_router = Router(path="/", tags=["operations"], route_handlers=[list_consumers, reset_consumer])

"""Reading many messages of a stream with one request (NATS ADR-31, batched direct get)."""

import contextlib
from datetime import UTC, datetime, timedelta

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from shared.store import EventStore, Recorded, StoreUnavailable
from shared.streams import EVENTS
from shared.subjects import MANY_EVENTS, entity_filter, plan_filter

READ_TIMEOUT_S = 5.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
BYTES_MAX = 4 * 1024**2
"""Of an answer, but for its last message."""


class Found(msgspec.Struct, frozen=True):
    """A stored message."""

    seq: int
    time: datetime
    subject: str
    headers: dict[str, str]
    body: bytes


async def read_batch(nc: Client, stream: str, subjects: str, *, after: int, limit: int) -> tuple[list[Found], bool]:
    """The first messages behind a sequence, in the stream's order, and whether more follow.

    Raises `StoreUnavailable`.
    """
    wish = {"seq": after + 1, "batch": limit, "max_bytes": BYTES_MAX, "next_by_subj": subjects}
    inbox = nc.new_inbox()
    found: list[Found] = []
    try:
        subscription = await nc.subscribe(inbox)
        try:
            await nc.publish(f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode(wish), reply=inbox)
            while True:
                message = await subscription.next_msg(timeout=READ_TIMEOUT_S)
                headers = message.headers or {}
                # A stored message's own headers may say anything.
                status = "" if "Nats-Sequence" in headers else headers.get("Status", "")
                if status == "204":  # the end of a batch
                    return found, bool(found) and int(headers.get("Nats-Num-Pending", 0)) > 0
                if status == "404":
                    return found, False
                if status:
                    raise StoreUnavailable(f"NATS answered a read of {stream} with {status}")
                found.append(_found(message))
        finally:
            with contextlib.suppress(NatsError):  # a closed connection has no subscriptions left to end
                await subscription.unsubscribe()
    except (NatsError, OSError, TimeoutError) as error:
        raise StoreUnavailable(f"NATS did not answer a read of {stream}: {error!r}") from error


class EventsRead(msgspec.Struct, frozen=True):
    """Some events of a plan."""

    records: list[Recorded]
    next_after: int | None
    """Where the next ones begin; None at the end."""


async def read_events(
    nc: Client, store: EventStore, plan: str, *, after: int, limit: int, entity: str | None = None
) -> EventsRead:
    """The first events of a plan, or of one of its entities, behind a sequence.

    Few enough to be held and sent at once: each can be megabytes, and a hundred such are more than NATS keeps for a
    connection. So one read, bounded in bytes, finds out how many there are to be; what is shown comes from the store,
    which alone knows what is an event of ours. Raises `StoreUnavailable`.
    """
    subjects = plan_filter(plan) if entity is None else entity_filter(plan, entity)
    found, more = await read_batch(nc, EVENTS, subjects, after=after, limit=limit)
    if not found:
        return EventsRead([], None)
    end = found[-1].seq
    records = await store.read(plan, entity, after=after, limit=len(found))
    return EventsRead([record for record in records if record.seq <= end], end if more else None)


async def first_seq_since(nc: Client, plan: str | None, time: datetime) -> int:
    """The sequence of the first message at a time or later, of a plan or of the whole log; 0 where there is none.

    It may be one that is a microsecond earlier: the log's times are finer than ours, which are rounded. Raises
    `StoreUnavailable`.
    """
    subjects = plan_filter(plan) if plan is not None else MANY_EVENTS
    start = time - timedelta(microseconds=1) if time > _EPOCH else _EPOCH
    wish = {"start_time": start, "next_by_subj": subjects}
    try:
        message = await nc.request(f"$JS.API.DIRECT.GET.{EVENTS}", msgspec.json.encode(wish), timeout=READ_TIMEOUT_S)
    except (NatsError, OSError, TimeoutError) as error:
        raise StoreUnavailable(f"NATS did not answer a read of {EVENTS}: {error!r}") from error
    headers = message.headers or {}
    if "Nats-Sequence" in headers:
        return int(headers["Nats-Sequence"])
    if headers.get("Status") == "404":
        return 0
    raise StoreUnavailable(f"NATS answered a read of {EVENTS} with {headers.get('Status')}")


def _found(message: Msg) -> Found:
    headers = message.headers or {}
    return Found(
        seq=int(headers["Nats-Sequence"]),
        time=msgspec.convert(headers["Nats-Time-Stamp"], datetime),  # nanoseconds, which `fromisoformat` does not read
        subject=headers["Nats-Subject"],
        headers=headers,
        body=message.data,
    )

"""The event store on NATS JetStream: the stream `TREADLE_EVENTS` is the log.

Reading goes through JetStream only (direct gets and consumers): a plain subscriber also hears publishes that the
stream refused, and would show events that never happened.
"""

import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import MaxPayloadError
from nats.js.errors import APIError

from shared.events import Event, encode
from shared.store import Batch, Conflict, EventTooLarge, Meta, Recorded, StoreUnavailable, recorded
from shared.streams import EVENTS
from shared.subjects import MANY_EVENTS, entity_filter, event_subject, parse_event_subject, plan_filter
from shared.tail import follow_messages

log = logging.getLogger("treadle.log")

WRONG_LAST_SEQUENCE = 10071
"""The server's error code for a condition that does not hold. Its text may change, the code doesn't."""

APPEND_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 5.0
PAGE_MESSAGES = 500
WALK_MAX_EVENTS = 100
"""Of one entity; a longer history is quicker found by a search, a hundred times as many events at a time."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ACK_TOKENS_WITHOUT_DOMAIN = 9
_EXPECTED = "Nats-Expected-Last-Subject-Sequence"
_DIRECT_GET = f"$JS.API.DIRECT.GET.{EVENTS}"


class JetStreamStore:
    """See `shared.store.EventStore`."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc
        self._js = nc.jetstream(timeout=APPEND_TIMEOUT_S)

    async def append(self, plan: str, entity: str, event: Event, meta: Meta, *, expected: int) -> int:
        """See `EventStore.append`."""
        headers = _headers(event, meta)
        headers[_EXPECTED] = str(expected)
        headers[f"{_EXPECTED}-Subject"] = entity_filter(plan, entity)
        try:
            ack = await self._js.publish(event_subject(plan, entity, event), encode(event), headers=headers)
        except APIError as error:
            if error.err_code == WRONG_LAST_SEQUENCE:
                raise Conflict(f"{plan} {entity}: {error.description}") from error
            raise StoreUnavailable(f"NATS refused an append to {plan} {entity}: {error.description}") from error
        except MaxPayloadError as error:
            raise EventTooLarge(f"{event.name} of {plan} {entity} is over the server's limit for a message") from error
        except (NatsError, OSError, TimeoutError) as error:
            raise StoreUnavailable(f"NATS did not answer an append to {plan} {entity}: {error!r}") from error
        return ack.seq

    async def read(
        self, plan: str, entity: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[Recorded]:
        """See `EventStore.read`."""
        if entity is not None and (events := await self._walk_back(plan, entity, after)) is not None:
            return events[:limit]
        return await self._scan(entity_filter(plan, entity) if entity else plan_filter(plan), after, limit)

    async def last_seq(self, plan: str, entity: str) -> int:
        """See `EventStore.last_seq`."""
        newest = await self._get({"last_by_subj": entity_filter(plan, entity)})
        return _sequence(newest) if newest else 0

    async def _walk_back(self, plan: str, entity: str, after: int) -> list[Recorded] | None:
        """An entity's events by way of their conditions: each was stored with the sequence of the one before it.

        A read by subject makes the server search the log from its beginning, which takes the longer the longer the log
        is; this does not. None where the way is too long or is lost.
        """
        found: list[Recorded] = []
        message = await self._get({"last_by_subj": entity_filter(plan, entity)})
        while message is not None and _sequence(message) > after:
            if len(found) == WALK_MAX_EVENTS:
                return None
            found.append(_read_direct(message))
            previous = (message.headers or {}).get(_EXPECTED)
            if previous is None:
                return None
            message = await self._get({"seq": int(previous)}) if int(previous) > after else None
        return found[::-1]

    async def _scan(self, subject: str, after: int, limit: int | None) -> list[Recorded]:
        """The events of a subject with wildcards, in the log's order."""
        events: list[Recorded] = []
        more = True
        while more and (limit is None or len(events) < limit):
            size = PAGE_MESSAGES if limit is None else min(PAGE_MESSAGES, limit - len(events))
            page, more = await self._get_batch({"seq": after + 1, "batch": size, "next_by_subj": subject})
            events += page
            after = page[-1].seq if page else after
        return events

    async def _get(self, request: dict[str, object]) -> Msg | None:
        """One message, or None where there is none."""
        try:
            message = await self._nc.request(_DIRECT_GET, msgspec.json.encode(request), timeout=READ_TIMEOUT_S)
        except (NatsError, OSError, TimeoutError) as error:
            raise StoreUnavailable(f"NATS did not answer a read: {error!r}") from error
        headers = message.headers or {}
        if headers.get("Status") == "404":
            return None
        if "Status" in headers:
            raise StoreUnavailable(_refused_read(headers))
        return message

    async def follow(self, *, after: int = 0, filters: tuple[str, ...] = ()) -> AsyncIterator[Batch]:
        """See `EventStore.follow`."""
        async for arrived in follow_messages(self._nc, EVENTS, after=after, filters=filters or (MANY_EVENTS,)):
            yield Batch(tuple(filter(None, map(_readable, arrived.messages))), arrived.caught_up)

    async def _get_batch(self, request: dict[str, object]) -> tuple[list[Recorded], bool]:
        """One batched direct get: its messages, and whether more are there."""
        inbox = self._nc.new_inbox()
        subscription = await self._nc.subscribe(inbox)
        page: list[Recorded] = []
        try:
            await self._nc.publish(_DIRECT_GET, msgspec.json.encode(request), reply=inbox)
            while True:
                message = await subscription.next_msg(timeout=READ_TIMEOUT_S)
                headers = message.headers or {}
                status = headers.get("Status", "")
                if status == "204":  # the end of a batch
                    return page, int(headers.get("Nats-Num-Pending", 0)) > 0
                if status == "404":
                    return page, False
                if status:
                    raise StoreUnavailable(_refused_read(headers))
                page.append(_read_direct(message))
        except (NatsError, OSError, TimeoutError) as error:
            raise StoreUnavailable(f"NATS did not answer a read: {error!r}") from error
        finally:
            with contextlib.suppress(NatsError):  # a closed connection has no subscriptions left to end
                await subscription.unsubscribe()


def _refused_read(headers: Mapping[str, str]) -> str:
    return f"NATS answered a read with {headers['Status']} {headers.get('Description', '')}"


_META = {
    "Treadle-Actor": "actor",
    "Treadle-Command": "command",
    "Treadle-Command-Id": "command_id",
    "Treadle-Causation": "causation",
    "Treadle-Correlation": "correlation",
    "Treadle-Seen": "seen",
}


def _headers(event: Event, meta: Meta) -> dict[str, str]:
    headers = {"Treadle-Version": str(event.version)}
    for header, field in _META.items():
        if value := getattr(meta, field):
            headers[header] = str(value)
    return headers


def _meta(headers: dict[str, str]) -> Meta:
    values = {field: headers[header] for header, field in _META.items() if header in headers}
    try:
        return msgspec.convert({"actor": "", **values}, Meta, strict=False)
    except msgspec.ValidationError:  # not written by us; who did it is no reason to stop
        return Meta(actor="?")


def _version(headers: dict[str, str]) -> int:
    """0, which no event has, for what is no number: the event is then kept as one that can't be read."""
    text = headers.get("Treadle-Version", "1")
    return int(text) if text.isdecimal() and text.isascii() else 0


def _readable(message: Msg) -> Recorded | None:
    """None for what somebody else put on a subject of the log's that is no event's: it must not stop the readers."""
    try:
        return read_message(message)
    except ValueError as error:
        log.error("sequence %d of the log is skipped: %s", message.metadata.sequence.stream, error)
        return None


def read_message(message: Msg) -> Recorded:
    """The event in a message that a consumer of the log delivered."""
    headers = message.headers or {}
    metadata = message.metadata
    return recorded(
        metadata.sequence.stream,
        _delivered_time(message),
        parse_event_subject(message.subject),
        _version(headers),
        message.data,
        _meta(headers),
    )


def _sequence(message: Msg) -> int:
    return int((message.headers or {})["Nats-Sequence"])


def _read_direct(message: Msg) -> Recorded:
    headers = message.headers or {}
    return recorded(
        _sequence(message),
        _server_time(headers["Nats-Time-Stamp"]),
        parse_event_subject(headers["Nats-Subject"]),
        _version(headers),
        message.data,
        _meta(headers),
    )


def _delivered_time(message: Msg) -> datetime:
    """The server's time of a delivered message, the same microsecond as `_server_time` gives.

    nats-py's own goes through a float, which is too coarse for that: one event would have two times.
    """
    tokens = message.reply.split(".")
    nanoseconds = int(tokens[7] if len(tokens) == _ACK_TOKENS_WITHOUT_DOMAIN else tokens[9])
    return _EPOCH + timedelta(microseconds=(nanoseconds + 500) // 1000)


def _server_time(text: str) -> datetime:
    """RFC 3339 with nanoseconds, which `fromisoformat` does not read."""
    return msgspec.convert(text, datetime)

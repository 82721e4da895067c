"""The event store on NATS JetStream: the stream `TREADLE_EVENTS` is the log.

Reading goes through JetStream only (direct gets and consumers): a plain subscriber also hears publishes that the
stream refused, and would show events that never happened.

With a key (`shared.authentic`) events that were not written by its holders are left out, wherever the log is read.
"""

import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import MaxPayloadError
from nats.js.errors import APIError

from shared.authentic import EXPECTED, MAC, Guard, mac
from shared.events import Event, encode
from shared.store import Batch, Conflict, EventTooLarge, Meta, Recorded, StoreUnavailable, recorded
from shared.streams import EVENTS
from shared.subjects import MANY_EVENTS, entity_filter, event_subject, parse_event_subject, plan_filter
from shared.tail import delivered, follow_messages
from shared.transact import patiently

log = logging.getLogger("treadle.log")

WRONG_LAST_SEQUENCE = 10071
"""The server's error code for a condition that does not hold. Its text may change, the code doesn't."""

APPEND_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 5.0
PAGE_MESSAGES = 500
PAGE_MAX_BYTES = 16 * 1024 * 1024
"""Twice the largest message."""
WALK_MAX_EVENTS = 100
"""Of one entity; a longer history is quicker found by a search, a hundred times as many events at a time."""

FORGED_MAX = 16
"""How often an append goes round what others put in its way meanwhile."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DIRECT_GET = f"$JS.API.DIRECT.GET.{EVENTS}"


class JetStreamStore:
    """See `shared.store.EventStore`."""

    def __init__(self, nc: Client, key: bytes | None = None) -> None:
        """`key`: of those who may speak for plans; None where one can't tell, and every event is believed."""
        self._nc = nc
        self._js = nc.jetstream(timeout=APPEND_TIMEOUT_S)
        self._key = key

    async def append(self, plan: str, entity: str, event: Event, meta: Meta, *, expected: int) -> int:
        """See `EventStore.append`. `expected` leaves out what is not ours, as reads do; the server counts it."""
        for _ in range(FORGED_MAX):
            try:
                return await self._append(plan, entity, event, meta, expected)
            except Conflict:
                newest = await self._newest_of_others(entity_filter(plan, entity), expected)
                if newest is None:
                    raise
                expected = newest
        raise Conflict(f"{plan} {entity}: somebody stores messages there that are no events")

    async def _append(self, plan: str, entity: str, event: Event, meta: Meta, expected: int) -> int:
        subject, body, headers = event_subject(plan, entity, event), encode(event), _headers(event, meta)
        headers[EXPECTED] = str(expected)
        headers[f"{EXPECTED}-Subject"] = entity_filter(plan, entity)
        if self._key is not None:
            headers[MAC] = mac(self._key, subject, headers, body)
        try:
            ack = await self._js.publish(subject, body, headers=headers)
        except APIError as error:
            if error.err_code == WRONG_LAST_SEQUENCE:
                raise Conflict(f"{plan} {entity}: {error.description}") from error
            raise StoreUnavailable(f"NATS refused an append to {plan} {entity}: {error.description}") from error
        except MaxPayloadError as error:
            raise EventTooLarge(f"{event.name} of {plan} {entity} is over the server's limit for a message") from error
        except (NatsError, OSError, TimeoutError) as error:
            raise StoreUnavailable(f"NATS did not answer an append to {plan} {entity}: {error!r}") from error
        return ack.seq

    async def _newest_of_others(self, subject: str, after: int) -> int | None:
        """The newest message of an entity where nothing after `after` is ours; None where something is, or nothing."""
        newest, guard = after, self._guard(after)
        while guard is not None and (message := await self._get({"seq": newest + 1, "next_by_subj": subject})):
            stored = _stored(message)
            if await _ours(guard, stored):
                return None
            newest = stored.seq
        return newest if newest > after else None

    async def read(
        self, plan: str, entity: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[Recorded]:
        """See `EventStore.read`."""
        if entity is None:
            return await self._scan(plan_filter(plan), after, limit)
        if self._key is not None:
            return await self._walk(entity_filter(plan, entity), after, limit)
        if (events := await self._walk_back(plan, entity, after)) is not None:
            return events[:limit]
        return await self._scan(entity_filter(plan, entity), after, limit)

    async def last_seq(self, plan: str, entity: str) -> int:
        """See `EventStore.last_seq`."""
        if self._key is not None:
            events = await self.read(plan, entity)
            return events[-1].seq if events else 0
        newest = await self._get({"last_by_subj": entity_filter(plan, entity)})
        return _stored(newest).seq if newest else 0

    async def _walk_back(self, plan: str, entity: str, after: int) -> list[Recorded] | None:
        """An entity's events by way of their conditions: each was stored with the sequence of the one before it.

        A read by subject makes the server search the log from its beginning, which takes the longer the longer the log
        is; this does not. None where the way is too long or is lost.
        """
        found: list[Recorded] = []
        message = await self._get({"last_by_subj": entity_filter(plan, entity)})
        while message is not None and (stored := _stored(message)).seq > after:
            if len(found) == WALK_MAX_EVENTS:
                return None
            found.append(_recorded(stored))
            previous = stored.headers.get(EXPECTED)
            if previous is None:
                return None
            message = await self._get({"seq": int(previous)}) if int(previous) > after else None
        return found[::-1]

    async def _walk(self, subject: str, after: int, limit: int | None) -> list[Recorded]:
        """An entity's events in their order, one at a time: no header that others wrote says where to go."""
        guard, start, found = self._guard(after), after, list[Recorded]()
        for _ in range(WALK_MAX_EVENTS):
            if limit is not None and len(found) >= limit:
                return found
            message = await self._get({"seq": after + 1, "next_by_subj": subject})
            if message is None:
                return found
            stored = _stored(message)
            found += await _ours(guard, stored)
            after = stored.seq
        return await self._scan(subject, start, limit)

    async def _scan(self, subject: str, after: int, limit: int | None) -> list[Recorded]:
        """The events of a subject with wildcards, in the log's order."""
        guard, events, more = self._guard(after), list[Recorded](), True
        while more and (limit is None or len(events) < limit):
            size = PAGE_MESSAGES if limit is None else min(PAGE_MESSAGES, limit - len(events))
            page, more = await self._get_batch({"seq": after + 1, "batch": size, "next_by_subj": subject})
            for stored in page:
                events += await _ours(guard, stored)
            after = page[-1].seq if page else after
        return events

    def _guard(self, after: int, *, sees_all: bool = True) -> Guard | None:
        return Guard(self._key, self._find_next, after=after, sees_all=sees_all) if self._key is not None else None

    async def _find_next(self, subject: str, after: int) -> int:
        message = await self._get({"seq": after + 1, "next_by_subj": subject})
        return _stored(message).seq if message else 0

    async def _get(self, request: dict[str, object]) -> Msg | None:
        """One message, or None where there is none."""
        try:
            message = await self._nc.request(_DIRECT_GET, msgspec.json.encode(request), timeout=READ_TIMEOUT_S)
        except (NatsError, OSError, TimeoutError) as error:
            raise StoreUnavailable(f"NATS did not answer a read: {error!r}") from error
        headers = message.headers or {}
        status = _status(headers)
        if status == "404":
            return None
        if status:
            raise StoreUnavailable(_refused_read(headers))
        return message

    async def follow(self, *, after: int = 0, filters: tuple[str, ...] = ()) -> AsyncIterator[Batch]:
        """See `EventStore.follow`."""
        guard = self._guard(after, sees_all=not filters)
        async for arrived in follow_messages(self._nc, EVENTS, after=after, filters=filters or (MANY_EVENTS,)):
            if guard is None:
                yield Batch(tuple(filter(None, map(_readable, map(_delivered, arrived.messages)))), arrived.caught_up)
                continue
            events: list[Recorded] = []
            for message in arrived.messages:
                events += await patiently(partial(_ours, guard, _delivered(message)))
            yield Batch(tuple(events), arrived.caught_up)

    async def pages(self, *, until: int) -> AsyncIterator[tuple[Recorded, ...]]:
        """Every event of the log up to the sequence `until`, by direct gets alone: for who may make no consumer."""
        guard, after, more = self._guard(0), 0, True
        while more and after < until:
            wish = {"seq": after + 1, "batch": PAGE_MESSAGES, "max_bytes": PAGE_MAX_BYTES, "next_by_subj": MANY_EVENTS}
            page, more = await patiently(partial(self._get_batch, wish))
            events: list[Recorded] = []
            for stored in page:
                if guard is None:
                    events += filter(None, [_readable(stored)])
                else:
                    events += await patiently(partial(_ours, guard, stored))
            after = page[-1].seq if page else after
            yield tuple(events)

    async def _get_batch(self, request: dict[str, object]) -> tuple[list["_Stored"], bool]:
        """One batched direct get: its messages, and whether more are there."""
        inbox = self._nc.new_inbox()
        subscription = await self._nc.subscribe(inbox)
        page: list[_Stored] = []
        try:
            await self._nc.publish(_DIRECT_GET, msgspec.json.encode(request), reply=inbox)
            while True:
                message = await subscription.next_msg(timeout=READ_TIMEOUT_S)
                headers = message.headers or {}
                status = _status(headers)
                if status == "204":  # the end of a batch
                    return page, int(headers.get("Nats-Num-Pending", 0)) > 0
                if status == "404":
                    return page, False
                if status:
                    raise StoreUnavailable(_refused_read(headers))
                page.append(_stored(message))
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
    "Treadle-Given": "given",
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


def read_message(message: Msg) -> Recorded:
    """The event in a message that a consumer of the log delivered."""
    return _recorded(_delivered(message))


class _Stored(msgspec.Struct, frozen=True):
    """A message as the log has it."""

    seq: int
    time: datetime
    subject: str
    headers: dict[str, str]
    body: bytes


def _delivered(message: Msg) -> _Stored:
    """One that came from a consumer."""
    said = delivered(message)
    time = _EPOCH + timedelta(microseconds=(said.time_ns + 500) // 1000)  # the same as `_server_time` gives
    return _Stored(said.seq, time, message.subject, message.headers or {}, message.data)


def _stored(message: Msg) -> _Stored:
    """One that was got directly."""
    headers = message.headers or {}
    time = _server_time(headers["Nats-Time-Stamp"])
    return _Stored(int(headers["Nats-Sequence"]), time, headers["Nats-Subject"], headers, message.data)


def _status(headers: Mapping[str, str]) -> str:
    """The server's word about a read; empty for a message, whose own headers may say anything."""
    return "" if "Nats-Sequence" in headers else headers.get("Status", "")


def _readable(stored: _Stored) -> Recorded | None:
    """None for what somebody else put on a subject of the log's that is no event's: it must not stop the readers."""
    try:
        return _recorded(stored)
    except ValueError as error:
        log.error("sequence %d of the log is skipped: %s", stored.seq, error)
        return None


def _recorded(stored: _Stored) -> Recorded:
    """Raises `ValueError` for what is on no event's subject."""
    address, version = parse_event_subject(stored.subject), _version(stored.headers)
    return recorded(stored.seq, stored.time, address, version, stored.body, _meta(stored.headers))


async def _ours(guard: Guard | None, stored: _Stored) -> list[Recorded]:
    """The event, or nothing where it is not ours: that must change nothing, and stop nobody."""
    if guard is not None and (fault := await guard.fault(stored.seq, stored.subject, stored.headers, stored.body)):
        log.error("sequence %d of the log is skipped: %s", stored.seq, fault)
        return []
    return [_recorded(stored)]


def _server_time(text: str) -> datetime:
    """RFC 3339 with nanoseconds, which `fromisoformat` does not read."""
    return msgspec.convert(text, datetime)

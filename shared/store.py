"""The event store: what every store offers, and the one in memory.

`shared.jetstream.JetStreamStore` is the real one. Both pass `tests/shared/test_store.py`, so that what is proved on
the one in memory holds for the other.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Protocol

import msgspec

from shared.clock import Clock, utc_now
from shared.events import Event, UndecodableEvent, decode, encode
from shared.subjects import Address, event_subject, parse_event_subject


class Conflict(Exception):
    """Somebody else wrote to the entity first: load and decide again."""


class StoreUnavailable(Exception):
    """The store did not answer. Whether an append was stored is unknown: load and decide again."""


class EventTooLarge(Exception):
    """The event is over the server's `max_payload`: it can never be stored."""


class Meta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an event's headers say about how it came to be."""

    actor: str
    """Who: `user:…`, `dispatcher`, `runner:…`."""
    command: str = ""
    """Name of the command that was decided."""
    command_id: str = ""
    causation: int = 0
    """Sequence of the event that led to this one; 0 where a person did."""
    correlation: str = ""
    """Shared by everything that one request set off."""
    seen: int = 0
    """The last log sequence that the decider had folded."""
    given: str = ""
    """What the command said that its event does not, as JSON (`shared.given`); empty: it is not known."""


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """An event as the log has it."""

    seq: int
    time: datetime
    """The server's."""
    plan: str
    entity: str
    type: str
    event: Event | None
    """None where this code can't read it; `fault` says why."""
    meta: Meta
    fault: str = ""
    version: int = 1
    """Of the body's shape."""
    body: bytes = b""
    """As it is stored."""


class Batch(msgspec.Struct, frozen=True):
    """Some events in the log's order, as `follow` gives them."""

    events: tuple[Recorded, ...]
    caught_up: bool
    """Nothing further was stored when the last of them was read."""


class EventStore(Protocol):
    """An append-only log with one condition per entity."""

    async def append(self, plan: str, entity: str, event: Event, meta: Meta, *, expected: int) -> int:
        """Stores an event and returns its sequence, once it is durable.

        `expected` is the sequence of the entity's newest event, 0 for none. Raises `Conflict` when that is not so,
        `StoreUnavailable`, `EventTooLarge`.
        """
        ...

    async def read(
        self, plan: str, entity: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[Recorded]:
        """The events of one entity, or of the whole plan, with a sequence over `after`; the first `limit` of them.

        Raises `StoreUnavailable`.
        """
        ...

    async def last_seq(self, plan: str, entity: str) -> int:
        """The sequence of the entity's newest event, 0 for none. Raises `StoreUnavailable`."""
        ...

    def follow(self, *, after: int = 0, filters: tuple[str, ...] = ()) -> AsyncIterator[Batch]:
        """Every event with a sequence over `after`, then every new one, for ever; once each, in order.

        `filters` are subjects with wildcards; none means all. Outages are waited out. The first batch comes at once,
        empty where nothing is stored.
        """
        ...


def recorded(seq: int, time: datetime, address: Address, version: int, body: bytes, meta: Meta) -> Recorded:
    """Reads one stored event; what can't be read is kept as a fault, to stop only what it concerns."""
    try:
        event, fault = decode(address.event_name, version, body), ""
    except UndecodableEvent as error:
        event, fault = None, str(error)
    return Recorded(
        seq=seq, time=time, plan=address.plan, entity=address.entity, type=address.type, event=event, meta=meta,
        fault=fault, version=version, body=body,
    )  # fmt: skip


class MemoryStore:
    """The log in memory, for tests and simulations. It encodes and decodes like the real one."""

    def __init__(self, clock: Clock = utc_now) -> None:
        self._clock = clock
        self._log: list[tuple[str, Recorded]] = []
        self._last: dict[tuple[str, str], int] = {}
        self._grown = asyncio.Condition()

    async def append(self, plan: str, entity: str, event: Event, meta: Meta, *, expected: int) -> int:
        """See `EventStore.append`."""
        subject = event_subject(plan, entity, event)
        last = self._last.get((plan, entity), 0)
        if last != expected:
            raise Conflict(f"{plan} {entity}: expected sequence {expected}, found {last}")
        seq = len(self._log) + 1
        body = encode(event)
        address = parse_event_subject(subject)
        self._log.append((subject, recorded(seq, self._clock(), address, event.version, body, meta)))
        self._last[plan, entity] = seq
        async with self._grown:
            self._grown.notify_all()
        return seq

    async def read(
        self, plan: str, entity: str | None = None, *, after: int = 0, limit: int | None = None
    ) -> list[Recorded]:
        """See `EventStore.read`."""
        return [r for _, r in self._log[after:] if r.plan == plan and entity in (None, r.entity)][:limit]

    async def last_seq(self, plan: str, entity: str) -> int:
        """See `EventStore.last_seq`."""
        return self._last.get((plan, entity), 0)

    async def follow(self, *, after: int = 0, filters: tuple[str, ...] = ()) -> AsyncIterator[Batch]:
        """See `EventStore.follow`."""
        first = True
        while True:
            events = tuple(r for subject, r in self._log[after:] if not filters or matches(subject, filters))
            after = len(self._log)
            if events or first:
                yield Batch(events, caught_up=True)
            first = False
            async with self._grown:
                await self._grown.wait_for(lambda: len(self._log) > after)  # noqa: B023 - waited for right here


def matches(subject: str, filters: tuple[str, ...]) -> bool:
    """Whether one of the filters, which may have wildcards, takes the subject."""
    return any(_matches_one(subject.split("."), pattern.split(".")) for pattern in filters)


def _matches_one(tokens: list[str], pattern: list[str]) -> bool:
    if pattern and pattern[-1] == ">":
        pattern = pattern[:-1]
        if len(tokens) <= len(pattern):
            return False
        tokens = tokens[: len(pattern)]
    return len(tokens) == len(pattern) and all(p in ("*", t) for t, p in zip(tokens, pattern, strict=True))

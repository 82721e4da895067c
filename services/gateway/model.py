"""The gateway's view of all plans: one tail of the log, folded in memory, shared by however many listen."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from nats.aio.msg import Msg

from services.gateway.views import PlanFold
from shared.store import EventStore, Recorded
from shared.task import LEASED

log = logging.getLogger("treadle.gateway")

LISTENER_EVENTS_MAX = 20_000
"""A listener that falls further behind is dropped; it comes back with the last sequence that it saw."""


class FellBehind(Exception):
    """The listener did not read fast enough."""


class Listener:
    """One reader's queue of what is new about a plan: events, and messages of its transcripts."""

    def __init__(self) -> None:
        self._events: list[Recorded | Msg] = []
        self._arrived = asyncio.Event()
        self._fell_behind = False

    def give(self, item: Recorded | Msg) -> None:
        """Queues an item."""
        if len(self._events) >= LISTENER_EVENTS_MAX:
            self._fell_behind = True
        else:
            self._events.append(item)
        self._arrived.set()

    async def take(self, timeout_s: float) -> list[Recorded | Msg]:
        """What has come since the last call; empty after `timeout_s`. Raises `FellBehind`."""
        try:
            async with asyncio.timeout(timeout_s):  # not wait_for, which can swallow a cancellation (CPython 3.11)
                await self._arrived.wait()
        except TimeoutError:
            return []
        if self._fell_behind:
            raise FellBehind
        self._arrived.clear()
        events, self._events = self._events, []
        return events


class ReadModel:
    """Every plan's fold, at the log's end but for milliseconds."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self.plans: dict[str, PlanFold] = {}
        self.seq = 0
        """The last log sequence folded."""
        self.ready = asyncio.Event()
        """Set once the whole log was folded."""
        self._listeners: dict[str, set[Listener]] = {}
        self._advanced = asyncio.Condition()

    async def run(self) -> None:
        """Follows the log for ever."""
        async for batch in self._store.follow():
            for record in batch.events:
                fold = self.plans.get(record.plan)
                if fold is None:
                    fold = self.plans[record.plan] = PlanFold(record.plan, record)
                fold.apply(record)
                self.seq = record.seq
                for listener in self._listeners.get(record.plan, ()):
                    listener.give(record)
            if batch.caught_up:
                self.ready.set()
            async with self._advanced:
                self._advanced.notify_all()

    async def at_least(self, seq: int, timeout_s: float = 5.0) -> None:
        """Waits until the log is folded up to `seq`. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s), self._advanced:
            await self._advanced.wait_for(lambda: self.seq >= seq)

    @contextmanager
    def listen(self, plan: str) -> Iterator[Listener]:
        """A queue of the plan's events from now on."""
        listener = Listener()
        self._listeners.setdefault(plan, set()).add(listener)
        try:
            yield listener
        finally:
            self._listeners[plan].discard(listener)
            if not self._listeners[plan]:
                del self._listeners[plan]

    @property
    def listeners(self) -> int:
        """How many streams are open."""
        return sum(len(group) for group in self._listeners.values())

    @property
    def busy(self) -> bool:
        """Whether any plan can go on by itself, without a person."""
        return any(
            fold.board.standing() in ("running", "cancelling") or any(fold.board.counts[status] for status in LEASED)
            for fold in self.plans.values()
        )

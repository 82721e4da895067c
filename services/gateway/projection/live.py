"""What happens now: one tail of the log for each gateway, told to however many listen.

No history is read at the start. A plan's fold is made from the log when somebody first asks for it, and from then on
kept up by the tail, until it is dropped for others that were asked for later.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from time import monotonic

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.errors import APIError

from services.gateway.projection.folds import Folds, is_ours, read_fold
from services.gateway.projection.views import PlanFold, event_json
from shared.requests import ProjectDeleted
from shared.skipped import skipped_seq
from shared.store import EventStore, Recorded, StoreUnavailable
from shared.streams import EVENTS
from shared.subjects import MANY_PROJECT_EVENTS, PLAN, PLAN_ID

LISTENER_ITEMS_MAX = 20_000
LISTENER_BYTES_MAX = 8 * 1024**2
"""A listener that falls further behind is dropped; it comes back with the last sequence that it saw."""
FRESH_TIMEOUT_S = 5.0
LOG_TIMEOUT_S = 5.0
WANTED_AGAIN_S = 60.0
"""Who asks twice within this is likely to go on asking."""
ASKED_MAX = 1_000


class FellBehind(Exception):
    """The listener did not read fast enough."""


class Told(msgspec.Struct, frozen=True):
    """Something new about a plan, as every listener gets it: made once."""

    kind: str
    """`log` or `activity`."""
    json: bytes
    seq: int = 0
    """Of the log; 0 for what is not in it."""
    changed: tuple[str, ...] = ()
    """The tasks that look otherwise since."""


class Listener:
    """One reader's queue of what is new about a plan."""

    def __init__(self) -> None:
        self._items: list[Told] = []
        self._bytes = 0
        self._arrived = asyncio.Event()
        self._fell_behind = False
        self.ended = False
        """Nothing will come any more, and nobody may be told: the stream ends."""

    def give(self, item: Told) -> None:
        """Queues an item."""
        self._bytes += len(item.json)
        if len(self._items) >= LISTENER_ITEMS_MAX or (self._items and self._bytes > LISTENER_BYTES_MAX):
            self._fell_behind = True
            self._items.clear()
        else:
            self._items.append(item)
        self._arrived.set()

    def end(self) -> None:
        """Lets the reader go at once."""
        self.ended = True
        self._arrived.set()

    async def take(self, timeout_s: float) -> list[Told]:
        """What has come since the last call; empty after `timeout_s` or when it is ended. Raises `FellBehind`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._arrived.wait()
        except TimeoutError:
            return []
        if self.ended:
            return []
        if self._fell_behind:
            raise FellBehind
        self._arrived.clear()
        items, self._items, self._bytes = self._items, [], 0
        return items


async def log_end(nc: Client, stream: str = EVENTS) -> int:
    """The sequence of the log's newest event, or of another stream's. Raises `StoreUnavailable`."""
    try:
        return (await nc.jetstream(timeout=LOG_TIMEOUT_S).stream_info(stream)).state.last_seq
    except (NatsError, APIError, OSError, TimeoutError) as error:
        raise StoreUnavailable(f"NATS does not say where {stream} ends: {error!r}") from error


class LivePlans:
    """The plans that somebody looks at, at the log's end but for milliseconds."""

    def __init__(self, store: EventStore, find_end: Callable[[], Awaitable[int]]) -> None:
        self._store = store
        self._find_end = find_end
        self.seq = 0
        """The last log sequence heard; 0 until `ready`."""
        self.ready = asyncio.Event()
        """Set once the tail has begun: everything stored from then on is heard."""
        self.stirred = asyncio.Event()
        """Set whenever a plan's own event was heard; whoever looks clears it."""
        self._listeners: dict[str, set[Listener]] = {}
        self._folds = Folds(is_pinned=self._listeners.__contains__)
        self._loading: dict[str, asyncio.Task[PlanFold | None]] = {}
        self._asked: dict[str, float] = {}
        self._heard_meanwhile: dict[str, list[Recorded]] = {}
        self._advanced = asyncio.Condition()

    async def run(self) -> None:
        """Follows the log from its present end, for ever."""
        self.seq = await self._find_end()
        self.ready.set()
        async for batch in self._store.follow(after=self.seq):
            for record in filter(is_ours, batch.events):
                self._hear(record, await self._folded_anew(record) if skipped_seq(record) else [])
            async with self._advanced:
                self._advanced.notify_all()

    async def _folded_anew(self, skipped: Recorded) -> list[str]:
        """Without the event that is left out from now on: all tasks, where somebody looks at the plan."""
        fold = self._folds.get(skipped.plan)
        anew = await read_fold(self._store, skipped.plan, before=skipped.seq + 1) if fold is not None else None
        if fold is None or anew is None:
            return []
        fold.become(anew)
        return list(fold.board.codes)

    def _hear(self, record: Recorded, changed: list[str]) -> None:
        """`changed`: the tasks that look otherwise already."""
        self.seq = record.seq
        if record.entity == PLAN:
            self.stirred.set()
        if record.plan in self._heard_meanwhile:
            self._heard_meanwhile[record.plan].append(record)
        if fold := self._folds.get(record.plan):
            changed = [*changed, *fold.apply(record)]
            self._folds.keep(fold)
        if listeners := self._listeners.get(record.plan):
            told = Told("log", msgspec.json.encode(event_json(record)), record.seq, tuple(changed))
            for listener in listeners:
                listener.give(told)

    async def at_least(self, seq: int, timeout_s: float = FRESH_TIMEOUT_S) -> None:
        """Waits until the log was heard up to `seq`. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s), self._advanced:
            await self._advanced.wait_for(lambda: self.seq >= seq)

    async def fold(self, plan: str) -> PlanFold | None:
        """The plan's fold, with everything that was heard and perhaps a little more; None for a plan without events.

        It goes on changing. Raises `ValueError` for what is no plan's id.
        """
        if fold := self._folds.get(plan):
            return fold
        loading = self._loading.get(plan)
        if loading is None:
            loading = self._loading[plan] = asyncio.create_task(self._load(plan))
        return await asyncio.shield(loading)  # others may wait for it too

    def wanted(self, plan: str) -> PlanFold | None:
        """The plan's fold if it is here. It is fetched by the way for whoever asks again soon."""
        if fold := self._folds.get(plan):
            return fold
        if not PLAN_ID.fullmatch(plan) or plan in self._loading:
            return None
        now_s = monotonic()
        if now_s - self._asked.pop(plan, -WANTED_AGAIN_S) < WANTED_AGAIN_S:
            self._loading[plan] = asyncio.create_task(self._load(plan))
            return None
        self._asked[plan] = now_s
        while len(self._asked) > ASKED_MAX:
            del self._asked[next(iter(self._asked))]
        return None

    async def _load(self, plan: str) -> PlanFold | None:
        # What the tail hears from now on is kept; what it heard before is stored, so the reading finds it.
        heard = self._heard_meanwhile[plan] = []
        try:
            fold = await read_fold(self._store, plan)
            while any(skipped_seq(record) and (fold is None or record.seq > fold.seq) for record in heard):
                fold = await read_fold(self._store, plan)
            for record in heard:
                if fold is None:
                    fold = PlanFold(plan, record)
                fold.apply(record)
        finally:
            del self._heard_meanwhile[plan], self._loading[plan]
        if fold is not None:
            self._folds.keep(fold)
        return fold

    @contextmanager
    def listen(self, plan: str) -> Iterator[Listener]:
        """A queue of the plan's events from now on; its fold stays as long."""
        listener = Listener()
        self._listeners.setdefault(plan, set()).add(listener)
        try:
            yield listener
        finally:
            self._listeners[plan].discard(listener)
            if not self._listeners[plan]:
                del self._listeners[plan]

    def end_streams(self, plan: str) -> None:
        """Ends everybody's stream of a plan: nobody may see it any more."""
        for listener in self._listeners.get(plan, ()):
            listener.end()

    async def end_with_projects(self, nc: Client) -> None:
        """From now on the streams of a project's plans end when it is deleted."""

        async def told(message: Msg) -> None:
            deleted = msgspec.json.decode(message.data, type=ProjectDeleted)
            for plan in deleted.plans:
                self.end_streams(plan)

        # A plain subscriber is good enough: a stream asks again at each keep-alive.
        await nc.subscribe(MANY_PROJECT_EVENTS, cb=told)

    @property
    def listeners(self) -> int:
        """How many streams are open."""
        return sum(len(group) for group in self._listeners.values())

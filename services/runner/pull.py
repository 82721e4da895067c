"""Takes messages from the pools' consumers, one for each free slot.

A pull request waits at the server until a message or its expiry comes. There are never more requests open at one pool
than slots are free, so the server hands us nothing that we can't start; with several pools a slot may be promised
twice, and the message that comes second goes straight back.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from shared.streams import EVENTS, pool_consumer_name

log = logging.getLogger("treadle.runner")

EXPIRES_S = 20.0
DRAIN_WITHIN_S = 1.0
CHECK_S = 0.5
"""How soon a reconnect is noticed: open requests die with the connection."""


class SlotPull:
    """Calls `take` for each message, as a task of its own, at most `slots` at once. `take` owns the message."""

    def __init__(
        self,
        nc: Client,
        pools: Sequence[str],
        slots: int,
        take: Callable[[Msg], Coroutine[object, object, None]],
        hindrance: Callable[[], str] = lambda: "",
    ) -> None:
        """`hindrance` tells why nothing new may begin just now; empty when it may. It is asked often."""
        self._nc = nc
        self._pools = pools
        self._free = slots
        self._take = take
        self._hindrance = hindrance
        self._open: dict[str, int] = dict.fromkeys(pools, 0)
        self._changed = asyncio.Event()
        self._inboxes: dict[str, str] = {}
        self.stopped = False
        self.at_work: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Pulls until `stop`. What is at work then goes on; nothing more is on its way once this has returned."""
        while not self.stopped:
            reconnects = self._nc.stats["reconnects"]
            self._open = dict.fromkeys(self._pools, 0)
            subscriptions = [await self._subscribe(pool) for pool in self._pools]
            while not self.stopped and self._nc.stats["reconnects"] == reconnects:
                self._changed.clear()  # before filling: what changes meanwhile must wake us
                await self._fill()
                try:
                    async with asyncio.timeout(CHECK_S):
                        await self._changed.wait()
                except TimeoutError:
                    continue
            await asyncio.gather(*(self._drain(subscription) for subscription in subscriptions))

    def stop(self) -> None:
        """Takes nothing more."""
        self.stopped = True
        self._free = 0
        self._changed.set()

    async def _subscribe(self, pool: str) -> Subscription:
        async def arrived(message: Msg) -> None:
            await self._arrived(pool, message)

        self._inboxes[pool] = self._nc.new_inbox()
        return await self._nc.subscribe(self._inboxes[pool], cb=arrived)

    async def _drain(self, subscription: Subscription) -> None:
        # What is on its way to us is still handled: `_arrived` sends it back, since no slot is free any more.
        # Where the connection is gone, so is the subscription.
        with contextlib.suppress(NatsError, TimeoutError):
            async with asyncio.timeout(DRAIN_WITHIN_S):
                await subscription.drain()  # type: ignore[no-untyped-call] # nats-py leaves this one untyped

    async def _fill(self) -> None:
        if self._hindrance():
            return
        for pool in self._pools:
            while self._open[pool] < self._free:
                body = {"batch": 1, "expires": int(EXPIRES_S * 1e9)}
                subject = f"$JS.API.CONSUMER.MSG.NEXT.{EVENTS}.{pool_consumer_name(pool)}"
                await self._nc.publish(subject, msgspec.json.encode(body), reply=self._inboxes[pool])
                self._open[pool] += 1

    async def _arrived(self, pool: str, message: Msg) -> None:
        self._open[pool] = max(0, self._open[pool] - 1)
        if (message.headers or {}).get("Status"):
            # The request expired, or the consumer is not there just now: asking again can wait for the next check.
            return
        self._changed.set()
        if self._free <= 0 or self._hindrance():
            await message.nak()
            return
        self._free -= 1
        task = asyncio.create_task(self._take(message))
        self.at_work.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self.at_work.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("a delivery could not be handled; it comes again", exc_info=error)
        if not self.stopped:
            self._free += 1
        self._changed.set()

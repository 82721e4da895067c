"""Answers questions for credentials: several gateways share them, and each answers some at once."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

log = logging.getLogger("treadle.gateway.credentials")

QUEUE = "gateway"
AT_ONCE_MAX = 32
ANSWER_MAX_S = 10.0


class Answering:
    """One gateway's ear on one subject."""

    def __init__(self, nc: Client, subject: str, answer: Callable[[Msg], Awaitable[None]]) -> None:
        """`answer` responds to a message, or leaves it unanswered."""
        self._nc = nc
        self._subject = subject
        self._answer = answer
        self._free = asyncio.Semaphore(AT_ONCE_MAX)
        self._answering: set[asyncio.Task[None]] = set()
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Answers from now on."""
        self._subscription = await self._nc.subscribe(self._subject, queue=QUEUE, cb=self._take)
        await self._nc.flush()

    async def stop(self) -> None:
        """Takes no more questions, and finishes the answers at hand."""
        if self._subscription is not None:
            with contextlib.suppress(NatsError):  # a connection that is gone has no subscriptions left to end
                await self._subscription.unsubscribe()
            self._subscription = None
        if self._answering:
            await asyncio.wait(self._answering, timeout=ANSWER_MAX_S)

    async def _take(self, message: Msg) -> None:
        # The client calls this for one message after another: what takes time goes into a task of its own.
        await self._free.acquire()
        answering = asyncio.create_task(self._answered(message))
        self._answering.add(answering)
        answering.add_done_callback(self._done)

    async def _answered(self, message: Msg) -> None:
        if message.reply:
            await self._answer(message)

    def _done(self, answering: asyncio.Task[None]) -> None:
        self._answering.discard(answering)
        self._free.release()
        if not answering.cancelled() and (fault := answering.exception()):
            log.error("a request for credentials was not answered", exc_info=fault)

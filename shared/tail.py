"""Following a stream for ever: an own pull loop on an ephemeral consumer.

Three times the speed of nats-py's `fetch`, and unlike its ordered consumer it notices a server that was restarted.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from uuid import uuid4

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError

API_TIMEOUT_S = 5.0
PULL_MESSAGES = 500
"""One request's size; two are kept open, so that the next messages are on their way while these are read."""
PULL_MAX_BYTES = 16 * 1024 * 1024
"""Twice the largest message. Without it the server sends a request's messages at once, and cuts off as a slow consumer
whoever can't read gigabytes of large drafts that fast."""
PULL_EXPIRES_S = 30
IDLE_HEARTBEAT_S = 5
SILENCE_MAX_S = 12.0
"""Without even a heartbeat for this long the consumer is gone."""
_ACK_TOKENS_WITHOUT_DOMAIN = 9


class Delivered(msgspec.Struct, frozen=True, gc=False):
    """What a consumer says of a message that it delivers."""

    seq: int
    """In the stream."""
    consumer_seq: int
    time_ns: int
    """When the server stored it: nanoseconds since 1970."""
    pending: int
    """How many more there were for the consumer."""


def delivered(message: Msg) -> Delivered:
    """Read off the subject for acknowledging it; nanoseconds and all, which nats-py's own `metadata` rounds.

    It takes a fifth of that one's time, which a long history feels.
    """
    tokens = message.reply.split(".")
    place = 5 if len(tokens) == _ACK_TOKENS_WITHOUT_DOMAIN else 7
    seq, consumer_seq, time_ns, pending = tokens[place : place + 4]
    return Delivered(int(seq), int(consumer_seq), int(time_ns), int(pending))


class Arrived(msgspec.Struct, frozen=True):
    """Some messages in the stream's order."""

    messages: list[Msg]
    caught_up: bool
    """Nothing further was stored when the last of them was read."""


async def follow_messages(
    nc: Client, stream: str, *, after: int, filters: tuple[str, ...]
) -> AsyncGenerator[Arrived, None]:
    """Every message with a sequence over `after`, then every new one; once each, in order; outages are waited out.

    The first item comes at once, empty where nothing is stored.
    """
    first = True
    while True:
        try:
            async with _Puller(nc, stream, after, filters) as puller:
                if puller.empty and first:
                    yield Arrived([], caught_up=True)
                first = False
                async for messages in puller:
                    newest = delivered(messages[-1])
                    after = newest.seq
                    yield Arrived(messages, caught_up=newest.pending == 0)
        except (_Gone, NatsError, APIError, OSError, TimeoutError):
            # The server or its consumer went away; nothing is lost, since we go on from `after`.
            await asyncio.sleep(0.05)


class _Gone(Exception):
    """The consumer is gone or skipped a message: make a new one."""


class _Puller:
    """An ephemeral consumer with its own pull loop: three times the speed of `fetch`, and it knows when it is gone."""

    def __init__(self, nc: Client, stream: str, after: int, filters: tuple[str, ...]) -> None:
        self._nc = nc
        self._stream = stream
        self._after = after
        self._filters = list(filters)
        self._arrived: list[Msg] = []
        self._wake = asyncio.Event()
        self._wanted = 0
        self._next_consumer_seq = 1

    async def __aenter__(self) -> "_Puller":
        self._reconnects = self._nc.stats["reconnects"]
        self._name = f"follow_{uuid4().hex}"
        config = ConsumerConfig(
            name=self._name,
            description=str(self._nc.options.get("name") or ""),  # for people: whose it is
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=self._after + 1,
            ack_policy=AckPolicy.NONE,
            filter_subjects=self._filters,
            mem_storage=True,
            num_replicas=1,
            inactive_threshold=60,
        )
        info = await self._nc.jetstream(timeout=API_TIMEOUT_S).add_consumer(self._stream, config)
        self.empty = info.num_pending == 0
        self._inbox = self._nc.new_inbox()
        self._subscription = await self._nc.subscribe(
            self._inbox, cb=self._take, pending_msgs_limit=-1, pending_bytes_limit=-1
        )
        await self._request()
        await self._request()
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(NatsError, APIError, TimeoutError):  # the server drops an unused consumer by itself
            await self._subscription.unsubscribe()
            if self._nc.is_connected:
                await self._nc.jetstream(timeout=1).delete_consumer(self._stream, self._name)

    def __aiter__(self) -> AsyncIterator[list[Msg]]:
        return self._messages()

    async def _messages(self) -> AsyncIterator[list[Msg]]:
        while True:
            await self._wait()
            arrived, self._arrived = self._arrived, []
            self._wake.clear()
            events = [message for message in arrived if self._is_event(message)]
            if events:
                yield events
            while self._wanted <= PULL_MESSAGES:
                await self._request()

    async def _wait(self) -> None:
        silent_s = 0.0
        while not self._wake.is_set():
            if self._nc.stats["reconnects"] != self._reconnects:
                raise _Gone  # the consumer lived in the memory of a server that may have been restarted
            if silent_s > SILENCE_MAX_S:
                raise _Gone
            try:
                async with asyncio.timeout(0.25):
                    await self._wake.wait()
            except TimeoutError:
                silent_s += 0.25

    async def _take(self, message: Msg) -> None:
        self._arrived.append(message)
        self._wake.set()

    async def _request(self) -> None:
        body = {
            "batch": PULL_MESSAGES,
            "max_bytes": PULL_MAX_BYTES,
            "expires": PULL_EXPIRES_S * 1_000_000_000,
            "idle_heartbeat": IDLE_HEARTBEAT_S * 1_000_000_000,
        }
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._name}"
        await self._nc.publish(subject, msgspec.json.encode(body), reply=self._inbox)
        self._wanted += PULL_MESSAGES

    def _is_event(self, message: Msg) -> bool:
        """Tells events from the server's words about our requests, and keeps count of both."""
        # A stored message may have a header `Status`; but only a stored one is to be acknowledged.
        if message.reply.startswith("$JS.ACK."):
            if delivered(message).consumer_seq != self._next_consumer_seq:
                raise _Gone
            self._next_consumer_seq += 1
            self._wanted -= 1
            return True
        headers = message.headers or {}
        status = headers.get("Status")
        if status == "100":
            return False
        if status == "408" or (status == "409" and "Nats-Pending-Messages" in headers):
            # A request ended, by its time or its bytes, with so many messages unfilled.
            self._wanted -= int(headers.get("Nats-Pending-Messages", PULL_MESSAGES))
            return False
        raise _Gone

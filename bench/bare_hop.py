"""The other end of the bare hop: a process that fetches one message at a time and tells when it came.

`python -m bench.bare_hop`: the address of NATS comes from the environment, as for every service.
"""

import asyncio
import contextlib
import time

from nats.aio.msg import Msg
from nats.errors import TimeoutError as NothingCame
from nats.js.api import AckPolicy, ConsumerConfig, StorageType, StreamConfig

from shared.bus import bus_settings_from_environment, connect

STREAM = "BENCH_HOPS"
SUBJECT = "bench.hop"
CONSUMER = "hopper"
WAITING = "bench.waiting"
"""Request: answered as soon as the consumer is set up."""
ARRIVED = "bench.arrived"
"""Told after each message, once the next one is asked for: when it arrived and when it was stored (Unix time, ns)."""


async def main() -> None:
    """Fetches for ever."""
    nc = await connect(bus_settings_from_environment(), "bench-hop")
    js = nc.jetstream()
    await js.add_stream(StreamConfig(name=STREAM, subjects=[SUBJECT], storage=StorageType.FILE))
    config = ConsumerConfig(durable_name=CONSUMER, ack_policy=AckPolicy.EXPLICIT)
    subscription = await js.pull_subscribe(SUBJECT, CONSUMER, STREAM, config=config)

    async def answer(request: Msg) -> None:
        await request.respond(b"")

    await nc.subscribe(WAITING, cb=answer)
    news = b""
    while True:
        fetching = asyncio.create_task(subscription.fetch(1, timeout=60))
        await asyncio.sleep(0)  # its request leaves before our news: the next message finds it waiting at the server
        if news:
            await nc.publish(ARRIVED, news)
            news = b""
        with contextlib.suppress(NothingCame):
            (message,) = await fetching
            arrived_ns = time.time_ns()
            stored_ns = round(message.metadata.timestamp.timestamp() * 1e6) * 1000
            await message.ack()
            news = f"{arrived_ns} {stored_ns}".encode()


if __name__ == "__main__":
    asyncio.run(main())

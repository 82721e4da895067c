"""Every stream and durable consumer: the only place that declares one.

`declare_streams` runs at the start of each service and is idempotent; it never rewrites what an operator set by hand
on an existing stream, but for the settings that Treadle's correctness rests on.
"""

import asyncio
from time import monotonic
from typing import get_args

import msgspec
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    DiscardPolicy,
    KeyValueConfig,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import NotFoundError

from shared import subjects
from shared.spec import SdkType

EVENTS = "TREADLE_EVENTS"
TRANSCRIPTS = "TREADLE_TRANSCRIPTS"
TIMERS = "TREADLE_TIMERS"
SESSIONS = "TREADLE_SESSIONS"
"""What a lease leaves to the next one: its conversation, and where its files are."""
PROJECTS = "TREADLE_PROJECTS"
RUNNERS = "TREADLE_RUNNERS"
"""The key-value bucket of the runners' presence (`shared.requests.RunnerPresence` by runner's name)."""
RUNNERS_STREAM = f"KV_{RUNNERS}"
WATCHES = "TREADLE_WATCHES"
"""The key-value bucket that says which runner looks at a collaboration repository now."""
WATCHES_STREAM = f"KV_{WATCHES}"
WATCHES_AGE_MAX_S = 2 * 3600.0
"""Longer than anybody may pause between two looks."""
WATCHES_BYTES_MAX = 16 * 1024**2

ACK_WAIT_S = 60.0
"""A runner's silence after which its message goes to another one."""
HEARTBEAT_S = 10.0
"""How often a runner says that it is alive: five may be lost."""

TRANSCRIPTS_AGE_MAX_S = 14 * 24 * 3600.0
TRANSCRIPTS_BYTES_MAX = 2 * 1024**3
SESSIONS_AGE_MAX_S = 35 * 24 * 3600.0
"""Longer than anybody may wait for an approval."""
SESSIONS_BYTES_MAX = 4 * 1024**3
RUNNER_POOLS = (*get_args(SdkType), subjects.DELIVER_POOL)
"""What runners take; a manual dispatch is for people."""
PRESENCE_EVERY_S = 10.0
PRESENCE_AGE_MAX_S = 35.0
"""After so long a runner that says nothing is not shown any more."""
POOL_LOOK_EVERY_S = 0.1
RESET_TIMEOUT_S = 5.0
CONSUMERS_MAX = 10_000
"""The server's silent limit is 1,000 where none is set."""


async def declare_streams(js: JetStreamContext) -> None:
    """Makes the streams that are missing."""
    for config in (
        StreamConfig(
            name=EVENTS,
            subjects=[subjects.MANY_EVENTS],
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            discard=DiscardPolicy.NEW,  # a full disk must refuse what is new, never forget what is old
            max_consumers=CONSUMERS_MAX,
            allow_direct=True,
            deny_delete=True,
            deny_purge=True,
        ),
        StreamConfig(
            name=TRANSCRIPTS,
            subjects=[subjects.MANY_TRANSCRIPTS],
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            discard=DiscardPolicy.OLD,
            max_age=TRANSCRIPTS_AGE_MAX_S,
            max_bytes=TRANSCRIPTS_BYTES_MAX,
            max_consumers=CONSUMERS_MAX,
            allow_direct=True,
        ),
        StreamConfig(
            name=SESSIONS,
            subjects=[subjects.MANY_SESSIONS],
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            discard=DiscardPolicy.OLD,
            max_age=SESSIONS_AGE_MAX_S,
            max_bytes=SESSIONS_BYTES_MAX,
            max_consumers=CONSUMERS_MAX,
            allow_direct=True,
        ),
        StreamConfig(
            name=PROJECTS,
            subjects=[subjects.MANY_PROJECT_EVENTS],
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            max_msgs_per_subject=1,
            max_consumers=CONSUMERS_MAX,
            allow_direct=True,
        ),
        StreamConfig(
            name=TIMERS,
            subjects=[subjects.MANY_TIMERS],
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            max_msgs_per_subject=1,
            allow_msg_schedules=True,
            allow_msg_ttl=True,
            allow_direct=True,
        ),
    ):
        try:
            await js.stream_info(config.name or "")
        except NotFoundError:
            await js.add_stream(config)
    await declare_presence(js)
    await declare_watches(js)


async def declare_presence(js: JetStreamContext) -> None:
    """Makes the runners' bucket if it is missing: it is kept in memory, so a restart of the server loses it."""
    try:
        await js.stream_info(RUNNERS_STREAM)
    except NotFoundError:
        await js.create_key_value(
            KeyValueConfig(bucket=RUNNERS, ttl=PRESENCE_AGE_MAX_S, storage=StorageType.MEMORY, direct=True)
        )


async def declare_watches(js: JetStreamContext) -> None:
    """Makes the watchers' bucket if it is missing: in memory as well, and harmless to lose."""
    try:
        await js.stream_info(WATCHES_STREAM)
    except NotFoundError:
        await js.create_key_value(
            KeyValueConfig(
                bucket=WATCHES,
                ttl=WATCHES_AGE_MAX_S,
                max_bytes=WATCHES_BYTES_MAX,
                storage=StorageType.MEMORY,
                direct=True,
            )
        )


def pool_consumer_name(pool: str) -> str:
    """The durable consumer that every runner of a pool pulls from."""
    return f"pool_{pool}"


async def declare_pool(js: JetStreamContext, pool: str) -> None:
    """Makes the pool's consumer if it is missing.

    Deliveries are unlimited: the decider counts lost leases, the server's count is no lease number (it starts again
    when the server is killed).
    """
    await _declare_consumer(
        js,
        EVENTS,
        ConsumerConfig(
            durable_name=pool_consumer_name(pool),
            filter_subject=subjects.pool_filter(pool),
            deliver_policy=DeliverPolicy.ALL,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT_S,
            max_deliver=-1,
            max_ack_pending=-1,
            max_waiting=10_000,
        ),
    )


async def reset_pool(nc: Client, name: str, seq: int) -> int:
    """Lets a pool's consumer begin at `seq`, as if nothing had been delivered from there on.

    Returns how much it has to deliver. What its runners have in their hands stays there: their acknowledgements count
    for the new deliveries too. Raises `ValueError` with the server's words, and nats-py's errors.
    """
    subject, wish = f"$JS.API.CONSUMER.RESET.{EVENTS}.{name}", msgspec.json.encode({"seq": seq})
    answer = msgspec.json.decode((await nc.request(subject, wish, timeout=RESET_TIMEOUT_S)).data)
    if error := answer.get("error"):
        raise ValueError(str(error.get("description", error)))
    return int(answer["num_pending"])


async def await_pool(js: JetStreamContext, pool: str, patience_s: float) -> None:
    """Waits until somebody who may has made the pool's consumer. Raises TimeoutError."""
    deadline_s, name = monotonic() + patience_s, pool_consumer_name(pool)
    while True:
        try:
            await js.consumer_info(EVENTS, name)
            return
        except NotFoundError:
            if monotonic() > deadline_s:
                raise TimeoutError(
                    f"the log has no consumer {name}: a dispatcher makes it at its start, and so does "
                    "`python -m services.gateway streams` as operator"
                ) from None
        await asyncio.sleep(POOL_LOOK_EVERY_S)


async def _declare_consumer(js: JetStreamContext, stream: str, config: ConsumerConfig) -> None:
    try:
        await js.consumer_info(stream, config.durable_name or "")
    except NotFoundError:
        await js.add_consumer(stream, config)

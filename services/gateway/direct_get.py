"""Reading many messages of a stream with one request (NATS ADR-31, batched direct get)."""

import contextlib
from datetime import datetime

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from shared.store import StoreUnavailable

READ_TIMEOUT_S = 5.0
BYTES_MAX = 4 * 1024**2
"""Of an answer, but for its last message."""


class Found(msgspec.Struct, frozen=True):
    """A stored message."""

    seq: int
    time: datetime
    subject: str
    headers: dict[str, str]
    body: bytes


async def read_batch(nc: Client, stream: str, subjects: str, *, after: int, limit: int) -> tuple[list[Found], bool]:
    """The first messages behind a sequence, in the stream's order, and whether more follow.

    Raises `StoreUnavailable`.
    """
    wish = {"seq": after + 1, "batch": limit, "max_bytes": BYTES_MAX, "next_by_subj": subjects}
    inbox = nc.new_inbox()
    found: list[Found] = []
    try:
        subscription = await nc.subscribe(inbox)
        try:
            await nc.publish(f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode(wish), reply=inbox)
            while True:
                message = await subscription.next_msg(timeout=READ_TIMEOUT_S)
                status = (message.headers or {}).get("Status", "")
                if status == "204":  # the end of a batch
                    return found, bool(found) and int((message.headers or {}).get("Nats-Num-Pending", 0)) > 0
                if status == "404":
                    return found, False
                if status:
                    raise StoreUnavailable(f"NATS answered a read of {stream} with {status}")
                found.append(_found(message))
        finally:
            with contextlib.suppress(NatsError):  # a closed connection has no subscriptions left to end
                await subscription.unsubscribe()
    except (NatsError, OSError, TimeoutError) as error:
        raise StoreUnavailable(f"NATS did not answer a read of {stream}: {error!r}") from error


def _found(message: Msg) -> Found:
    headers = message.headers or {}
    return Found(
        seq=int(headers["Nats-Sequence"]),
        time=msgspec.convert(headers["Nats-Time-Stamp"], datetime),  # nanoseconds, which `fromisoformat` does not read
        subject=headers["Nats-Subject"],
        headers=headers,
        body=message.data,
    )

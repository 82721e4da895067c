"""Says every few seconds that this runner is there, and with what: for people, never for deciding."""

import asyncio
import contextlib
import logging
from collections.abc import Callable

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import APIError

from shared.requests import RunnerPresence
from shared.streams import PRESENCE_EVERY_S, RUNNERS, declare_presence

log = logging.getLogger("treadle.runner")

ANSWER_WITHIN_S = 2.0


async def show_presence(nc: Client, present: Callable[[], RunnerPresence], every_s: float = PRESENCE_EVERY_S) -> None:
    """Shows it until cancelled; then takes it away. A runner that is killed is forgotten by itself after a while."""
    js = nc.jetstream(timeout=ANSWER_WITHIN_S)
    name = present().runner
    try:
        while True:
            try:
                await declare_presence(js)
                await (await js.key_value(RUNNERS)).put(name, msgspec.json.encode(present()))
            except (NatsError, APIError, TimeoutError) as error:
                log.debug("%s is not shown among the runners: %r", name, error)
            await asyncio.sleep(every_s)
    finally:
        with contextlib.suppress(NatsError, APIError, TimeoutError):  # without NATS it is forgotten by itself
            await (await js.key_value(RUNNERS)).delete(name)

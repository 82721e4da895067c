"""Lets a pool's consumer begin at another place of the log, where an operator wants it: they are the dispatcher's."""

import logging

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError

from shared.requests import ResetReply, ResetRequest
from shared.streams import RUNNER_POOLS, pool_consumer_name, reset_pool
from shared.subjects import DISPATCHER_RESET

log = logging.getLogger("treadle.dispatcher")

QUEUE = "dispatchers"
"""Of several dispatchers one answers."""
TOO_OLD = "this nats-server can't reset a consumer: version 2.14 can, and later ones"


async def answer_resets(nc: Client) -> Subscription:
    """From now on."""

    async def asked(message: Msg) -> None:
        await message.respond(msgspec.json.encode(await _reset(nc, message.data)))

    return await nc.subscribe(DISPATCHER_RESET, queue=QUEUE, cb=asked)


async def _reset(nc: Client, body: bytes) -> ResetReply:
    try:
        request = msgspec.json.decode(body, type=ResetRequest)
    except msgspec.MsgspecError as error:
        return ResetReply(refused=f"this is no request for a reset: {error}")
    if request.consumer not in map(pool_consumer_name, RUNNER_POOLS) or request.seq < 1:
        return ResetReply(refused=f"{request.consumer[:80]} is no pool's consumer, or {request.seq} no sequence")
    try:
        pending = await reset_pool(nc, request.consumer, request.seq)
    except NoRespondersError:
        return ResetReply(refused=TOO_OLD)
    except (NatsError, OSError, TimeoutError, ValueError) as error:
        return ResetReply(refused=f"the server did not do it: {error!r}")
    log.info("consumer %s begins at event %d again: %d to deliver", request.consumer, request.seq, pending)
    return ResetReply(pending=pending)

"""The dispatcher's composition root: everything is wired here, nothing at import."""

import asyncio
import contextlib
import logging

from faststream import AckPolicy, Context, FastStream
from faststream.nats import JStream, NatsBroker, NatsMessage, PullSub
from nats.js.api import ConsumerConfig

from services.dispatcher.dispatcher import Dispatcher
from services.dispatcher.timers import Timers
from shared import streams, subjects
from shared.alive import show_life
from shared.bus import BusSettings, inbox_prefix, make_broker
from shared.clock import utc_now
from shared.jetstream import JetStreamStore


def make_app(settings: BusSettings) -> FastStream:
    """The service: `await app.run()` until it is told to stop."""
    broker = make_broker(settings, "treadle-dispatcher")
    app = FastStream(broker, logger=None)
    show_life(app, broker)
    state: dict[str, asyncio.Task[None]] = {}

    @app.on_startup
    async def prepare() -> None:
        nc = await broker.connect()
        await streams.declare_streams(nc.jetstream())
        await streams.declare_timers_consumer(nc.jetstream())
        app.context.set_global("dispatcher", Dispatcher(JetStreamStore(nc), Timers(nc), utc_now))

    _hear_timers(broker, settings)

    @app.after_startup
    async def start(dispatcher: Dispatcher = Context()) -> None:  # noqa: B008 - FastStream's injection
        state["run"] = asyncio.create_task(dispatcher.run())
        # A dispatcher that stopped deciding must not look alive: the process ends and its supervisor starts another.
        state["run"].add_done_callback(lambda run: None if run.cancelled() else app.exit())

    @app.on_shutdown
    async def stop() -> None:
        run = state["run"]
        run.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await run

    return app


def _hear_timers(broker: NatsBroker, settings: BusSettings) -> None:
    @broker.subscriber(
        subjects.TIMERS_DUE,
        durable=streams.TIMERS_CONSUMER,
        stream=JStream(streams.TIMERS, declare=False),
        pull_sub=PullSub(batch_size=100, timeout=30),
        config=ConsumerConfig(durable_name=streams.TIMERS_CONSUMER),
        ack_policy=AckPolicy.NACK_ON_ERROR,
        inbox_prefix=f"{inbox_prefix(settings.user)}.".encode(),  # the broker's own is not used for this
    )
    async def timer_due(message: NatsMessage, dispatcher: Dispatcher = Context()) -> None:  # noqa: B008
        plan, _ = subjects.parse_timer_due(message.raw_message.subject)
        dispatcher.wake(plan)


async def main(settings: BusSettings) -> None:
    """Runs the dispatcher until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    await make_app(settings).run()

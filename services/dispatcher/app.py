"""The dispatcher's composition root: everything is wired here, nothing at import."""

import asyncio
import logging

from faststream import FastStream
from nats.aio.client import Client

from services.dispatcher.dispatcher import Dispatcher
from services.dispatcher.resetting import answer_resets
from services.dispatcher.timers import Timers
from shared import streams, subjects
from shared.alive import end_work, show_life
from shared.bus import BusSettings, make_broker
from shared.clock import utc_now
from shared.jetstream import JetStreamStore
from shared.tail import follow_messages


def make_app(settings: BusSettings) -> FastStream:
    """The service: `await app.run()` until it is told to stop."""
    broker = make_broker(settings, "treadle-dispatcher")
    app = FastStream(broker, logger=None)
    show_life(app, broker)
    at_work: list[asyncio.Task[None]] = []

    @app.after_startup
    async def start() -> None:
        nc = await broker.connect()
        await streams.declare_streams(nc.jetstream())
        for pool in streams.RUNNER_POOLS:
            await streams.declare_pool(nc.jetstream(), pool)
        await answer_resets(nc)
        dispatcher = Dispatcher(JetStreamStore(nc, settings.log_key), Timers(nc), utc_now)
        # Those that were due before are made up for: at its start the dispatcher looks at everything that waits.
        heard = (await nc.jetstream().stream_info(streams.TIMERS)).state.last_seq
        for work in (dispatcher.run(), hear_timers(nc, dispatcher, heard)):
            task = asyncio.create_task(work)
            # A dispatcher that stopped must not look alive: the process ends and its supervisor starts another.
            task.add_done_callback(lambda ended: None if ended.cancelled() else app.exit())
            at_work.append(task)

    @app.on_shutdown
    async def stop() -> None:
        await end_work(at_work)

    return app


async def hear_timers(nc: Client, dispatcher: Dispatcher, after: int) -> None:
    """Wakes the dispatcher at every timer that is due, for ever. Of several dispatchers each hears all of them."""
    async for arrived in follow_messages(nc, streams.TIMERS, after=after, filters=(subjects.TIMERS_DUE,)):
        for message in arrived.messages:
            plan, _ = subjects.parse_timer_due(message.subject)
            dispatcher.wake(plan)


async def main(settings: BusSettings) -> None:
    """Runs the dispatcher until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    await make_app(settings).run()

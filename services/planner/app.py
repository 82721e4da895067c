"""The planner's composition root: everything is wired here, nothing at import."""

import asyncio
import logging

import msgspec
from faststream import FastStream
from faststream.nats import NatsMessage

from services.planner.agents import Team
from services.planner.edit import edit_task, plan_faults
from services.planner.faults import PlanFaults
from services.planner.parse import read_plan
from shared import streams
from shared.alive import show_life
from shared.bus import BusSettings, make_broker
from shared.commands import Changed, Draft, Refused
from shared.jetstream import JetStreamStore
from shared.requests import EditRequest, ImportReply, ImportRequest
from shared.store import EventStore, EventTooLarge, Meta, StoreUnavailable
from shared.subjects import PLANNER_EDIT, PLANNER_IMPORT
from shared.transact import to_plan

PATIENCE_S = 20.0
QUEUE = "planner"
"""Of several planners one answers."""


async def import_plan(store: EventStore, request: ImportRequest) -> ImportReply:
    """Reads the text and stores it as a candidate; a repeated request finds its own event."""
    try:
        spec = await asyncio.to_thread(read_plan, request.text, Team(mode=request.mode, agents=request.agents))
    except PlanFaults as found:
        return ImportReply(faults=plan_faults(found.faults))
    command = Draft(
        candidate=request.candidate,
        spec=spec,
        repo_url=request.repo_url,
        base_commit=request.base_commit,
        project=request.project,
        replaces=request.replaces,
    )
    meta = Meta(actor=request.actor, correlation=request.correlation)
    try:
        decided = await to_plan(store, request.plan, command, meta, patience_s=PATIENCE_S)
    except (Refused, EventTooLarge, StoreUnavailable) as error:
        return ImportReply(refused=str(error), changed=isinstance(error, Changed))
    return ImportReply(seq=decided.seq)


def make_app(settings: BusSettings) -> FastStream:
    """The service: `await app.run()` until it is told to stop."""
    broker = make_broker(settings, "treadle-planner")
    app = FastStream(broker, logger=None)
    show_life(app, broker)

    @broker.subscriber(PLANNER_IMPORT, queue=QUEUE)
    async def hear_import(message: NatsMessage) -> bytes:
        request = msgspec.json.decode(message.body, type=ImportRequest)
        store = JetStreamStore(broker.connection, settings.log_key)
        return msgspec.json.encode(await import_plan(store, request))

    @broker.subscriber(PLANNER_EDIT, queue=QUEUE)
    async def hear_edit(message: NatsMessage) -> bytes:
        request = msgspec.json.decode(message.body, type=EditRequest)
        return msgspec.json.encode(await asyncio.to_thread(edit_task, request))

    @app.on_startup
    async def prepare() -> None:
        nc = await broker.connect()
        await streams.declare_streams(nc.jetstream())

    return app


async def main(settings: BusSettings) -> None:
    """Runs the planner until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    await make_app(settings).run()

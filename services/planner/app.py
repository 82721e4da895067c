"""The planner's composition root: everything is wired here, nothing at import."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
from faststream import FastStream
from faststream.nats import NatsBroker, NatsMessage

from services.planner import template
from services.planner.answering import check_plan, compare_candidates, import_plan, take_offer, write_prompt
from services.planner.drafting import Drafting
from services.planner.edit import edit_task
from services.planner.forking import fork
from services.planner.past_runs import PastRuns
from shared import requests as r
from shared import streams, subjects
from shared.alive import end_work, show_life
from shared.bus import BusSettings, make_broker
from shared.clock import utc_now
from shared.events import PlanFault
from shared.jetstream import JetStreamStore

QUEUE = "planner"
"""Of several planners one answers."""
CAUGHT_UP_PATIENCE_S = 10.0
"""An estimate that rests on half the log is better than none."""

log = logging.getLogger("treadle.planner")
Q = TypeVar("Q")


def make_app(settings: BusSettings) -> FastStream:
    """The service: `await app.run()` until it is told to stop."""
    broker = make_broker(settings, "treadle-planner")
    app = FastStream(broker, logger=None)
    show_life(app, broker)
    past_runs = PastRuns()
    begun: dict[str, Drafting] = {}
    at_work: list[asyncio.Task[None]] = []

    def store() -> JetStreamStore:
        return JetStreamStore(broker.connection, settings.log_key)

    async def compare(request: r.CompareRequest) -> r.CompareReply:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CAUGHT_UP_PATIENCE_S):
                await begun["drafting"].caught_up.wait()
        return await compare_candidates(store(), past_runs, request)

    async def edit(request: r.EditRequest) -> r.EditReply:
        return await asyncio.to_thread(edit_task, request)

    async def render(request: r.RenderRequest) -> r.RenderReply:
        return await asyncio.to_thread(template.answer, request)

    _answer(broker, subjects.PLANNER_IMPORT, r.ImportRequest, lambda q: import_plan(store(), q), _not_imported)
    _answer(broker, subjects.PLANNER_EDIT, r.EditRequest, edit, _not_edited)
    _answer(broker, subjects.PLANNER_CHECK, r.CheckRequest, lambda q: check_plan(store(), q), _not_checked)
    _answer(broker, subjects.PLANNER_OFFER, r.OfferRequest, lambda q: take_offer(store(), q), _not_imported)
    _answer(broker, subjects.PLANNER_PROMPT, r.PromptRequest, lambda q: write_prompt(store(), q), _no_prompt)
    _answer(broker, subjects.PLANNER_COMPARE, r.CompareRequest, compare, _not_compared)
    _answer(broker, subjects.PLANNER_RENDER, r.RenderRequest, render, _not_rendered)
    _answer(broker, subjects.PLANNER_FORK, r.ForkRequest, lambda q: fork(store(), q), _not_forked)

    @app.on_startup
    async def prepare() -> None:
        nc = await broker.connect()
        await streams.declare_streams(nc.jetstream())
        drafting = begun["drafting"] = Drafting(store(), utc_now, past_runs)
        task = asyncio.create_task(drafting.run())
        # A planner that stopped following must not look alive: the process ends and its supervisor starts another.
        task.add_done_callback(lambda ended: None if ended.cancelled() else app.exit())
        at_work.append(task)

    @app.on_shutdown
    async def stop() -> None:
        await end_work(at_work)

    return app


def _answer(
    broker: NatsBroker,
    subject: str,
    kind: type[Q],
    work: Callable[[Q], Awaitable[msgspec.Struct]],
    refused: Callable[[str], msgspec.Struct],
) -> None:
    """Has a subject's requests answered. Whoever asks hears in any case, and why where it is no answer."""

    @broker.subscriber(subject, queue=QUEUE)
    async def hear(message: NatsMessage) -> bytes:
        try:
            reply = await work(msgspec.json.decode(message.body, type=kind))
        except msgspec.MsgspecError as error:
            reply = refused(f"the planner can't read the request ({error}): it is of another version than its sender")
        except Exception as error:
            log.exception("a request on %s failed", subject)
            reply = refused(f"the planner failed ({type(error).__name__}: {error}): its log says where")
        return msgspec.json.encode(reply)


def _not_imported(why: str) -> r.ImportReply:
    return r.ImportReply(refused=why)


def _not_edited(why: str) -> r.EditReply:
    return r.EditReply(faults=(PlanFault(message=why),))


def _not_checked(why: str) -> r.CheckReply:
    return r.CheckReply(refused=why)


def _no_prompt(why: str) -> r.PromptReply:
    return r.PromptReply(refused=why)


def _not_rendered(why: str) -> r.RenderReply:
    return r.RenderReply(faults=(PlanFault(message=why),))


def _not_forked(why: str) -> r.ForkReply:
    return r.ForkReply(refused=why)


def _not_compared(why: str) -> r.CompareReply:
    return r.CompareReply(refused=why)


async def main(settings: BusSettings) -> None:
    """Runs the planner until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    await make_app(settings).run()

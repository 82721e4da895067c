"""The gateway's composition root: everything is wired here, nothing at import."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar import Litestar, Router, get
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.openapi.config import OpenAPIConfig

from services.gateway.access import TokenGuard
from services.gateway.lookup import read_model
from services.gateway.model import ReadModel
from services.gateway.plans import plans_router
from services.gateway.problems import (
    ProblemError,
    on_fault,
    on_http_error,
    on_problem,
    on_refused,
    on_unavailable,
)
from services.gateway.stream import stream_router
from shared.bus import BusSettings, make_broker
from shared.commands import Refused
from shared.jetstream import JetStreamStore
from shared.spec import PLAN_MAX_BYTES
from shared.store import StoreUnavailable
from shared.streams import declare_streams


@get("/health/live")
async def live() -> dict[str, str]:
    """The process answers."""
    return {"status": "live"}


@get("/suite")
async def suite(state: State) -> dict[str, object]:
    """Whether any plan goes on by itself, and how many streams are open."""
    model = read_model(state)
    return {"busy": model.busy, "clients": model.listeners}


log = logging.getLogger("treadle.gateway")


def make_app(settings: BusSettings, token: str) -> Litestar:
    """The ASGI application. It starts once the whole log was folded."""

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        broker = make_broker(settings, "treadle-gateway")
        nc = await broker.connect()
        await declare_streams(nc.jetstream())
        store = JetStreamStore(nc)
        model = ReadModel(store)
        app.state.update({"nc": nc, "store": store, "model": model})
        tail = asyncio.create_task(model.run())
        tail.add_done_callback(_end_process)
        await model.ready.wait()
        yield
        tail.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await tail
        await broker.stop()

    guarded = Router(path="/", guards=[TokenGuard(token)], route_handlers=[suite, plans_router, stream_router])
    return Litestar(
        route_handlers=[Router(path="/api", route_handlers=[live, guarded])],
        lifespan=[lifespan],
        openapi_config=OpenAPIConfig(title="Treadle", version="0.1.0", path="/schema"),
        request_max_body_size=2 * PLAN_MAX_BYTES,
        logging_config=None,
        exception_handlers={
            ProblemError: on_problem,
            Refused: on_refused,
            StoreUnavailable: on_unavailable,
            HTTPException: on_http_error,
            Exception: on_fault,
        },
    )


def _end_process(tail: asyncio.Task[None]) -> None:
    """A gateway that does not follow the log any more must not look alive: its supervisor starts another."""
    if not tail.cancelled():
        log.error("the log is not followed any more", exc_info=tail.exception())
        signal.raise_signal(signal.SIGTERM)


def configure_logging() -> None:
    """Lines to standard error; the access log stays off: it would show every poll."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn.access").disabled = True

"""Routes for whoever runs Treadle: health, metrics, runners, the projection."""

import asyncio
import resource
from time import perf_counter
from typing import Any

import msgspec
from litestar import Request, Response, Router, get, post
from litestar.datastructures import State
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from sqlalchemy.exc import SQLAlchemyError

from services.gateway.accounts.access import Caller, admin_only
from services.gateway.direct_get import read_batch
from services.gateway.problems import Problem, ProblemError, documented
from services.gateway.projection.live import LivePlans, log_end
from services.gateway.projection.projector import Projector, current_head
from services.gateway.projection.reads import is_any_busy
from services.gateway.projection.rebuild import ProjectionStands, Rebuilder, Verification
from shared.clock import utc_now
from shared.requests import RunnerPresence
from shared.store import StoreUnavailable
from shared.streams import RUNNERS, RUNNERS_STREAM

LAG_MAX_S = 10.0
"""A projection that lacks something for longer is not ready to be read."""
CHECK_TIMEOUT_S = 3.0
RUNNERS_MAX = 1_000
_CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})

NOT_READY = Problem(
    status=503, code="not_ready", title="Not ready", detail="the database does not answer: OperationalError"
)
REBUILDING = Problem(
    status=409,
    code="rebuilding",
    title="Already rebuilding",
    detail="a rebuild is at work: `GET /api/projection` shows how far it is",
)


class Health(msgspec.Struct, frozen=True):
    """That all is well; whatever is not is answered with a problem."""

    status: str


class Suite(msgspec.Struct, frozen=True):
    """What a supervisor asks before it stops an idle suite."""

    busy: bool
    """Whether any plan goes on by itself."""
    clients: int
    """How many streams of plans are open."""


class Runners(msgspec.Struct, frozen=True):
    """The runners that said something within the last half minute."""

    items: list[RunnerPresence]


@get("/health/live")
async def live() -> Health:
    """The process answers."""
    return Health("live")


@get("/health/ready", responses=documented(NOT_READY))
async def ready(state: State) -> Health:
    """The database and the event log answer, and the projection is not far behind the log."""
    faults = [fault for fault in await asyncio.gather(_database_fault(state), _log_fault(state)) if fault]
    projector: Projector = state.projector
    if projector.lag_s > LAG_MAX_S:
        faults.append(f"the projection has been behind the log for {projector.lag_s:.0f} s")
    if faults:
        raise ProblemError(503, NOT_READY.code, NOT_READY.title, "; ".join(faults), headers={"Retry-After": "2"})
    return Health("ready")


async def _database_fault(state: State) -> str:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S), state.db.read() as session:
            await current_head(session)
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        return f"the database does not answer: {type(error).__name__}"
    return ""


async def _log_fault(state: State) -> str:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            await log_end(state.nc)
    except (StoreUnavailable, TimeoutError):
        return "the event log does not answer"
    return ""


@get("/suite", responses=documented(401))
async def suite(state: State) -> Suite:
    """Whether anything goes on by itself, and how many streams are open."""
    plans: LivePlans = state.live
    projector: Projector = state.projector
    async with state.db.read() as session:
        busy = await is_any_busy(session, utc_now())
    return Suite(busy or projector.lag_s > 0, plans.listeners)


@get("/runners", responses=documented(401))
async def list_runners(state: State, request: Request[Caller, Any, Any]) -> Runners:
    """Which runners are there. What they have at work is shown to admins only."""
    found, _ = await read_batch(state.nc, RUNNERS_STREAM, f"$KV.{RUNNERS}.>", after=0, limit=RUNNERS_MAX)
    present = [_presence(one.body) for one in found if "KV-Operation" not in one.headers]
    runners = sorted((runner for runner in present if runner is not None), key=lambda runner: runner.runner)
    if not request.user.is_admin:
        runners = [msgspec.structs.replace(runner, leases=()) for runner in runners]
    return Runners(runners)


def _presence(body: bytes) -> RunnerPresence | None:
    try:
        return msgspec.json.decode(body, type=RunnerPresence)
    except msgspec.MsgspecError:  # a runner of another version; it is not ours to judge
        return None


# The projection ---------------------------------------------------------------------------------------------------


@get("/projection", guards=[admin_only], responses=documented(401, 403))
async def read_projection(state: State) -> ProjectionStands:
    """How far the projection is, and a rebuild of it."""
    rebuilder: Rebuilder = state.rebuilder
    return await rebuilder.stands(await log_end(state.nc))


@post("/projection/rebuild", status_code=202, guards=[admin_only], responses=documented(401, 403, REBUILDING))
async def rebuild_projection(state: State) -> ProjectionStands:
    """Fills the projection anew from the log, beside the present one, which is read until then."""
    rebuilder: Rebuilder = state.rebuilder
    await rebuilder.start()
    return await rebuilder.stands(await log_end(state.nc))


class Verify(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to verify."""

    replace: bool = False
    """Whether the rows that were made anew are the ones that are read from then on, where any differ."""


@get("/projection/verify", guards=[admin_only], responses=documented(401, 403))
async def read_verification(state: State) -> Verification:
    """What came of the newest comparison that this gateway was asked for, or how far it is."""
    rebuilder: Rebuilder = state.rebuilder
    return rebuilder.verification


@post("/projection/verify", status_code=202, guards=[admin_only], responses=documented(400, 401, 403, REBUILDING))
async def verify_projection(state: State, data: JSONBody[Verify | None] = None) -> Verification:
    """Fills the projection anew beside the present one, and compares all rows of both at one position of the log."""
    rebuilder: Rebuilder = state.rebuilder
    await rebuilder.start_verifying(replace=data is not None and data.replace)
    return rebuilder.verification


# Metrics ----------------------------------------------------------------------------------------------------------


class Metrics:
    """This gateway's figures. Labels are routes' templates, methods and statuses: few, whatever is asked."""

    def __init__(self, plans: LivePlans, projector: Projector) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "treadle_gateway_requests", "Answers begun", ["method", "route", "status"], registry=self.registry
        )
        self.command_s = Histogram(
            "treadle_gateway_command_seconds",
            "From a changing request to its answer",
            ["method", "route"],
            registry=self.registry,
        )
        for name, text, read in (
            ("treadle_gateway_open_streams", "Streams of plans that are open", lambda: plans.listeners),
            ("treadle_projection_position", "Sequence that the projection has", lambda: projector.position),
            ("treadle_projection_lag_seconds", "For how long it has lacked an event", lambda: projector.lag_s),
            ("treadle_projection_events_folded", "Events folded since the start", lambda: projector.events_folded),
        ):
            Gauge(name, text, registry=self.registry).set_function(read)

    def count(self, method: str, route: str, status: int, duration_s: float) -> None:
        """Notes that an answer began."""
        self.requests.labels(method, route, str(status)).inc()
        if method in _CHANGING:
            self.command_s.labels(method, route).observe(duration_s)


class Measuring(ASGIMiddleware):
    """Counts answers in `state.metrics`. To be the outermost, so that refusals are counted too.

    What no route is found for never comes here, so nobody can make up labels.
    """

    scopes = (ScopeType.HTTP,)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """See `ASGIMiddleware`."""
        began_s = perf_counter()
        metrics: Metrics | None = scope["litestar_app"].state.get("metrics")

        async def measured(message: Message) -> None:
            if metrics is not None and message["type"] == "http.response.start":
                route, method = scope["path_template"], str(scope.get("method"))
                metrics.count(method, route, message["status"], perf_counter() - began_s)
            await send(message)

        await next_app(scope, receive, measured)


@get(
    "/metrics",
    guards=[admin_only],
    responses={
        **documented(401, 403),
        200: ResponseSpec(str, generate_examples=False, description="Prometheus' text format", media_type="text/plain"),
    },
)
async def read_metrics(state: State) -> Response[bytes]:
    """This gateway's figures, for Prometheus."""
    metrics: Metrics = state.metrics
    return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def raise_open_files_limit() -> None:
    """Lets the process have as many connections as the operator allows: a stream is a file, and 1,024 are few."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


operations_router = Router(
    path="/",
    tags=["operations"],
    route_handlers=[
        live, ready, suite, list_runners, read_projection, rebuild_projection, read_verification, verify_projection,
        read_metrics,
    ],
)  # fmt: skip

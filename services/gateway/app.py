"""The gateway's composition root: everything is wired here, nothing at import."""

import asyncio
import logging
import signal
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

from litestar import Litestar, Router
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.spec import Components, SecurityScheme

from services.gateway.accounts.access import Authentication
from services.gateway.accounts.opening import open_accounts
from services.gateway.accounts.routes import accounts_router
from services.gateway.agents.routes import agents_router
from services.gateway.archives.copies import Copies
from services.gateway.archives.importing import CHECKED_AT_ONCE
from services.gateway.archives.plan_store import PlanStore
from services.gateway.archives.read_only import refuse_what_is_read_only
from services.gateway.archives.routes import archives_router
from services.gateway.consumers import consumers_router
from services.gateway.credentials.keyring import Keyring
from services.gateway.credentials.lease import CredentialLeases
from services.gateway.credentials.routes import keys_router
from services.gateway.credentials.watch import WatchLeases
from services.gateway.database.engine import Database
from services.gateway.database.migrate import check_migrated
from services.gateway.histories.routes import histories_router
from services.gateway.histories.spool import Histories
from services.gateway.histories.turns import Turns
from services.gateway.histories.why_route import why_router
from services.gateway.idempotency import BODY_MAX_BYTES, Idempotency
from services.gateway.notifications.routes import webhooks_router
from services.gateway.notifications.sender import Sender
from services.gateway.openapi import SchemaPage
from services.gateway.operations import Measuring, Metrics, operations_router, raise_open_files_limit
from services.gateway.options import Options
from services.gateway.plans.approvals import approvals_router
from services.gateway.plans.auto_finalize import AutoFinalize
from services.gateway.plans.diff import diff_router
from services.gateway.plans.routes import plans_router
from services.gateway.plans.skipping import skipping_router
from services.gateway.plans.stream import stream_router
from services.gateway.plans.tasks import tasks_router
from services.gateway.plans.transcripts import transcripts_router
from services.gateway.problems import exception_handlers
from services.gateway.projection.live import LivePlans, log_end
from services.gateway.projection.projector import Projector
from services.gateway.projection.rebuild import Rebuilder
from services.gateway.projects.deletion import Deletions
from services.gateway.projects.routes import projects_router
from services.gateway.settings import Settings
from services.gateway.strict_body import StrictRequest
from services.gateway.templates.routes import templates_router
from services.gateway.templates.shipped import keep_shipped
from shared.alive import end_work
from shared.bus import make_broker
from shared.jetstream import JetStreamStore
from shared.streams import declare_streams

log = logging.getLogger("treadle.gateway")

BEARER = SecurityScheme(
    type="http", scheme="bearer", description="a session's token (`POST /api/auth/login`) or an API token"
)


def make_app(settings: Settings) -> Litestar:
    """The ASGI application. It starts once the log and the database answer."""

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        raise_open_files_limit()
        async with AsyncExitStack() as held:
            db = Database(settings.database)
            held.push_async_callback(db.close)
            await check_migrated(db)
            await keep_shipped(db)
            broker = make_broker(settings.bus, "treadle-gateway")
            nc = await broker.connect()
            held.push_async_callback(broker.stop)
            await declare_streams(nc.jetstream())
            store, keyring = JetStreamStore(nc, settings.bus.log_key), Keyring(settings.keyring_file)
            find_end = partial(log_end, nc)
            live = LivePlans(store, find_end)
            projector = Projector(store, db, find_end, settings.public_url)
            metrics = Metrics(live, projector)
            sender = Sender(db, keyring, allow_private=settings.local_repositories, registry=metrics.registry)
            rebuilder = Rebuilder(store, db)
            imported = Copies(db, settings.import_max_bytes)
            histories = Histories(store)
            deletions = Deletions(nc, store, db, projector)
            app.state.update(
                {
                    "settings": settings,
                    "db": db,
                    "nc": nc,
                    "store": PlanStore(store, imported),
                    "imported": imported,
                    "histories": histories,
                    "looking_back": Turns(),
                    "keyring": keyring,
                    "live": live,
                    "projector": projector,
                    "rebuilder": rebuilder,
                    "metrics": metrics,
                    "sender": sender,
                    "deletions": deletions,
                    "drafting": Counter[str](),
                    "making": Counter[str](),
                    "importing": Counter[str](),
                    "checking_imports": asyncio.Semaphore(CHECKED_AT_ONCE),
                }
            )
            held.push_async_callback(rebuilder.stop)
            held.push_async_callback(histories.stop)
            await held.enter_async_context(open_accounts(app.state))
            leases = CredentialLeases(nc, store, db, keyring)
            await leases.start()
            held.push_async_callback(leases.stop)
            watch_leases = WatchLeases(nc, store, db, keyring)
            await watch_leases.start()
            held.push_async_callback(watch_leases.stop)
            auto_finalize = AutoFinalize(app.state)
            for work in (live.run(), projector.run(), deletions.run(), sender.run(), auto_finalize.run()):
                held.push_async_callback(end_work, [_start(work)])
            await live.end_with_projects(nc)
            await live.ready.wait()
            yield

    routers = [
        accounts_router,
        agents_router,
        keys_router,
        projects_router,
        plans_router,
        tasks_router,
        approvals_router,
        diff_router,
        stream_router,
        skipping_router,
        transcripts_router,
        histories_router,
        why_router,
        archives_router,
        templates_router,
        webhooks_router,
        operations_router,
        consumers_router,
    ]
    return Litestar(
        route_handlers=[Router(path="/api", route_handlers=routers, guards=[refuse_what_is_read_only])],
        lifespan=[lifespan],
        middleware=[Measuring(), Options(), Authentication, Idempotency()],
        request_class=StrictRequest,
        openapi_config=OpenAPIConfig(
            title="Treadle",
            version="0.1.0",
            path="/schema",
            use_handler_docstrings=True,
            render_plugins=[SchemaPage()],
            components=Components(security_schemes={"bearer": BEARER}),
            security=[{"bearer": []}],
        ),
        request_max_body_size=BODY_MAX_BYTES,
        logging_config=None,
        exception_handlers=exception_handlers(),
    )


def _start(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    task = asyncio.create_task(work)
    task.add_done_callback(_end_process)
    return task


def _end_process(task: asyncio.Task[None]) -> None:
    """A gateway whose work in the background has ended must not look alive: its supervisor starts another."""
    if not task.cancelled():
        log.error("the gateway can't go on", exc_info=task.exception())
        signal.raise_signal(signal.SIGTERM)

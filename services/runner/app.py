"""The runner's composition root: everything is wired here, nothing at import."""

import asyncio
import logging
import os
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
from faststream import FastStream
from faststream.nats import NatsMessage
from nats.aio.client import Client

from services.runner.agents import AGENTS, open_runner
from services.runner.bundle import Bundles
from services.runner.caches import SetupCaches
from services.runner.connection_test import ConnectionTests
from services.runner.credentials import CredentialDesk
from services.runner.deleted import DeletedProjects
from services.runner.delivery_executor import DeliverExecutor
from services.runner.diff import Diffs
from services.runner.disk_floor import DiskFloor
from services.runner.execution import AgentExecutor
from services.runner.git_threads import git_threads
from services.runner.head import Heads
from services.runner.housekeeping import keep_house
from services.runner.lease import Journal, Key
from services.runner.presence import show_presence
from services.runner.runner import Executor, Runner
from services.runner.sandbox import find_sandbox
from services.runner.sandbox_mode import SandboxMode
from services.runner.watch.credentials import WatchCredentials
from services.runner.watch.watcher import QUEUE as WATCHERS
from services.runner.watch.watcher import Watcher
from shared import streams
from shared.alive import show_life
from shared.bus import BusSettings, make_broker
from shared.clock import utc_now
from shared.memory import hide_memory
from shared.requests import (
    BundlePartRequest,
    BundleRequest,
    DiffRequest,
    HeadRequest,
    LookRequest,
    RunnerPresence,
    TestRequest,
)
from shared.sealed import SealKey
from shared.subjects import (
    DELIVER_POOL,
    RUNNER_INTRODUCE,
    WATCH_LOOK,
    runner_bundle,
    runner_bundle_part,
    runner_diff,
    runner_head,
    runner_holds,
    runner_test,
)

log = logging.getLogger("treadle.runner")

STOP_WITHIN_S = 10.0
"""Less than a supervisor's patience."""
GOODBYE_WITHIN_S = 1.0
POOL_QUIETLY_WITHIN_S, POOL_WITHIN_S = 5.0, 120.0
"""How long a dispatcher that starts beside us may take; after the second one we end, and are started again."""
TESTS_AT_ONCE = 8
DIFFS_AT_ONCE = 4
BUNDLES_AT_ONCE = 2
PARTS_AT_ONCE = 4
LOOKS_AT_ONCE = 32
HEADS_AT_ONCE = 4


class Secrets(msgspec.Struct, frozen=True):
    """The line of JSON on standard input: what must be in no environment, argument or file."""

    anthropic_api_key: str | None = None
    anthropic_base_url: str | None = None
    environment_to_allow: dict[str, str] = {}
    """Of the person who started the suite: what a plan's `env_allow` may name."""

    def environment(self) -> dict[str, str]:
        """As the agents' modules ask for them; never this process's own environment."""
        pairs = {"ANTHROPIC_API_KEY": self.anthropic_api_key, "ANTHROPIC_BASE_URL": self.anthropic_base_url}
        return {name: value for name, value in pairs.items() if value}


class RunnerSettings(msgspec.Struct, frozen=True):
    """One runner process's own settings."""

    name: str
    directory: Path
    """Of this runner alone: what its former life held is noted there."""
    data_dir: Path
    """Shared by the machine's runners: mirrors and workspaces."""
    slots: int
    sandbox: SandboxMode = "preferred"
    disk_floor_bytes: int = 1024 << 20
    """With less room on the disk no new work is taken."""
    caches_max_bytes: int = 5120 << 20
    """How large the caches of what set-up downloads may become."""
    watches: bool = True
    """Whether it takes part in the pool `manual`: looks for what people deliver."""


async def main(bus: BusSettings, settings: RunnerSettings, secrets: Secrets) -> None:
    """Runs until SIGTERM or SIGINT; then hands back what runs. Raises NoSandbox where that is required and missing."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    hide_memory()
    sandbox = find_sandbox(settings.sandbox, hidden=[settings.data_dir, settings.directory])
    environment = allowed_environment(secrets)
    caches = SetupCaches(settings.data_dir, settings.caches_max_bytes, git_threads())
    async with AsyncExitStack() as held:
        executors: dict[str, Executor] = {DELIVER_POOL: DeliverExecutor(settings.data_dir, environment, sandbox)}
        for pool in AGENTS:
            agent = await held.enter_async_context(open_runner(pool, secrets.environment()))
            executors[pool] = AgentExecutor(settings.data_dir, agent, environment, sandbox, caches)
        without = "off" if settings.sandbox == "off" else "none"
        has_key, kept_in_by = bool(secrets.anthropic_api_key), sandbox.version if sandbox else without
        await make_app(bus, settings, executors, caches, kept_in_by, has_key=has_key).run()


def make_app(
    bus: BusSettings,
    settings: RunnerSettings,
    executors: Mapping[str, Executor],
    caches: SetupCaches,
    sandbox: str,
    *,
    has_key: bool,
) -> FastStream:
    """The service around one `Runner`; `sandbox` is what it says of its own."""
    broker = make_broker(bus, f"treadle-{settings.name}")
    app = FastStream(broker, logger=None)
    show_life(app, broker)
    parts: dict[str, Runner] = {}
    watchers: list[Watcher] = []
    tasks: dict[str, asyncio.Task[None]] = {}
    seal_key, threads, private_dir = SealKey(), git_threads(), settings.directory / "private"
    tests = ConnectionTests(settings.name, seal_key, private_dir, threads)
    floor = DiskFloor(settings.data_dir, settings.disk_floor_bytes)
    diffs = Diffs(settings.name, settings.data_dir, seal_key, private_dir, threads)
    bundles = Bundles(settings.name, settings.data_dir, settings.directory / "bundles", seal_key, private_dir, threads)
    heads = Heads(settings.name, seal_key, private_dir, threads)

    @broker.subscriber(runner_holds(settings.name))
    async def holds(message: NatsMessage) -> bytes:
        return msgspec.json.encode(parts["runner"].holds(msgspec.json.decode(message.body, type=Key)))

    @broker.subscriber(RUNNER_INTRODUCE, queue="runner")
    async def introduce(message: NatsMessage) -> bytes:
        return msgspec.json.encode(tests.introduce())

    @broker.subscriber(runner_test(settings.name), max_workers=TESTS_AT_ONCE)
    async def test(message: NatsMessage) -> bytes:
        return msgspec.json.encode(await tests.test(msgspec.json.decode(message.body, type=TestRequest)))

    @broker.subscriber(runner_diff(settings.name), max_workers=DIFFS_AT_ONCE)
    async def diff(message: NatsMessage) -> bytes:
        return await diffs.answer(msgspec.json.decode(message.body, type=DiffRequest))

    @broker.subscriber(runner_bundle(settings.name), max_workers=BUNDLES_AT_ONCE)
    async def bundle(message: NatsMessage) -> bytes:
        return msgspec.json.encode(await bundles.make(msgspec.json.decode(message.body, type=BundleRequest)))

    @broker.subscriber(runner_bundle_part(settings.name), max_workers=PARTS_AT_ONCE)
    async def bundle_part(message: NatsMessage) -> bytes:
        return msgspec.json.encode(await bundles.part(msgspec.json.decode(message.body, type=BundlePartRequest)))

    @broker.subscriber(runner_head(settings.name), max_workers=HEADS_AT_ONCE)
    async def head(message: NatsMessage) -> bytes:
        return msgspec.json.encode(await heads.answer(msgspec.json.decode(message.body, type=HeadRequest)))

    if settings.watches:

        @broker.subscriber(WATCH_LOOK, queue=WATCHERS, max_workers=LOOKS_AT_ONCE)
        async def look(message: NatsMessage) -> bytes:
            return msgspec.json.encode(await watchers[0].look(msgspec.json.decode(message.body, type=LookRequest)))

    @app.on_startup
    async def prepare() -> None:
        nc = await broker.connect()
        await streams.declare_streams(nc.jetstream())
        for pool in executors:
            await wait_for_pool(nc, pool)
        bundles.clear()
        journal = Journal(settings.directory / "leases")
        desk = CredentialDesk(nc, seal_key, private_dir)
        if settings.watches:
            credentials = WatchCredentials(nc, seal_key, private_dir)
            watchers.append(Watcher(nc, settings.name, settings.data_dir, credentials, git_threads()))
        parts["runner"] = Runner(
            nc, settings.name, executors, settings.slots, journal, desk, utc_now, hindrance=floor, has_key=has_key
        )

    @app.after_startup
    async def start() -> None:
        nc, position = broker.connection, settings.directory / "projects-position"
        deleted = DeletedProjects(nc, settings.data_dir, position, threads)
        tasks["deleted"] = asyncio.create_task(deleted.run())
        for watcher in watchers:
            tasks["watch"] = asyncio.create_task(watcher.run())
        tasks["presence"] = asyncio.create_task(show_presence(nc, presence))
        tasks["house"] = asyncio.create_task(keep_house(settings.data_dir, caches, threads, parts["runner"].came_back))
        tasks["run"] = asyncio.create_task(parts["runner"].run())
        for task in tasks.values():
            task.add_done_callback(ended)

    def presence() -> RunnerPresence:
        here = parts["runner"].presence()
        return msgspec.structs.replace(here, sandbox=sandbox, full=floor())

    def ended(task: asyncio.Task[None]) -> None:
        # A runner that stopped taking work must not look alive: the process ends and its supervisor starts another.
        if not task.cancelled() and (error := task.exception()):
            log.error("this runner can't go on", exc_info=error)
        app.exit()

    @app.on_shutdown
    async def stop() -> None:
        if not tasks:  # told to while it waited for its pools
            return
        parts["runner"].stop()
        for name in tasks.keys() - {"run"}:
            tasks[name].cancel()
        try:
            await asyncio.wait_for(tasks["run"], STOP_WITHIN_S)
        except TimeoutError:
            # Without NATS nothing can be handed back; the journal does it at the next start.
            log.warning("NATS does not answer: what was held is handed back later")
        except asyncio.CancelledError:
            pass
        await asyncio.wait(tasks.values(), timeout=GOODBYE_WITHIN_S)

    return app


async def wait_for_pool(nc: Client, pool: str) -> None:
    """Until a dispatcher has made the pool's consumer, which a runner may not. Raises TimeoutError."""
    try:
        await streams.await_pool(nc.jetstream(), pool, POOL_QUIETLY_WITHIN_S)
    except TimeoutError as missing:
        log.warning("waiting: %s", missing)
        await streams.await_pool(nc.jetstream(), pool, POOL_WITHIN_S)


def read_secrets() -> Secrets:
    """Reads the line from standard input; none where that is a terminal or closed. Raises msgspec's errors."""
    if sys.stdin is None or sys.stdin.isatty():
        return Secrets()
    line = sys.stdin.buffer.readline()
    return msgspec.json.decode(line, type=Secrets) if line.strip() else Secrets()


def allowed_environment(secrets: Secrets) -> Mapping[str, str]:
    """What a plan's `env_allow` may name: everything but Treadle's own settings."""
    both = {**os.environ, **secrets.environment_to_allow}
    return {name: value for name, value in both.items() if not name.startswith(("TREADLE_", "ANTHROPIC_"))}
